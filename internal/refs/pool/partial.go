// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// partialSuffix ends the names of files that are to become bases.
const partialSuffix = ".get"

// PartialName is the name, beside the pool's own files, of one that is to become a base once it is proved to be that.
func PartialName(id string) string { return "." + id + partialSuffix }

// IsPartial tells whether a name is such a one.
func IsPartial(name string) bool {
	id, ok := strings.CutSuffix(name, partialSuffix)
	return ok && strings.HasPrefix(id, ".") && IsID(id[1:])
}

// Partial is a file that is to become a base, or was: a power cut leaves it.
type Partial struct {
	Path                      string
	File                      diskio.ID
	SizeBytes, AllocatedBytes int64
	Modified                  time.Time
}

// partials finds the files that are to become bases. The pool's other files are read by their names.
func (s *State) partials(ctx context.Context, dir string, timeout time.Duration) error {
	names, err := listWith(ctx, dir, timeout, func(string) {})
	for _, n := range names {
		if !IsPartial(n) {
			continue
		}
		path := filepath.Join(dir, n)
		e, err := diskio.WithinAt(ctx, path, timeout, func() (diskio.Entry, error) { return diskio.LookEntry(path) }, nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			continue // it was adopted, or given up, meanwhile
		case err != nil:
			s.Unread = append(s.Unread, err)
			continue
		}
		s.Partials = append(s.Partials, Partial{path, e.ID, e.SizeBytes, e.AllocatedBytes, e.ModTime})
	}
	return err
}
