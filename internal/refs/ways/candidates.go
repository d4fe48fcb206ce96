// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ways

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// file is what may be a base.
type file struct {
	path string
	name string
	stat diskio.Stat
	// renamed: a client of NFS called it so when it was removed.
	renamed bool
}

// candidates lists the files that may be a base.
func (f *finder) candidates(ctx context.Context) error {
	var dirs []string
	for _, p := range f.o.From {
		st, err := diskio.Within(ctx, f.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(p) }, nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, diskio.ErrDirectory):
			dirs = append(dirs, p)
		case err != nil:
			f.gap(p, "candidate", err)
		default:
			f.files = append(f.files, file{path: p, name: filepath.Base(p), stat: st})
		}
	}
	s := diskio.Sweep{Workers: 1, Timeout: f.o.Timeout, Enter: func(string) bool { return false },
		File: func(_ int, w *diskio.Swept) {
			f.files = append(f.files, file{path: w.Path(), name: w.Name, stat: w.Stat})
		},
		Other: func(kind diskio.WalkKind, path string, err error) {
			if kind == diskio.WalkBlind {
				f.gap(path, "candidates", err)
			}
		}}
	if err := s.Run(ctx, dirs); err != nil {
		return err
	}
	// The client of NFS on which a file is removed that is still open there gives it such a name, and removes
	// it with the last close.
	s.File = func(_ int, w *diskio.Swept) {
		if pool.IsSilly(w.Name) {
			f.files = append(f.files, file{path: w.Path(), name: w.Name, stat: w.Stat, renamed: true})
		}
	}
	err := s.Run(ctx, []string{f.r.Bases})
	slices.SortFunc(f.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return err
}

// chosen are the candidates that are worth reading: with the length that was recorded, or else of the same name
// first.
func (f *finder) chosen(m *Missing, recorded []pool.Object) (all []file) {
	for _, c := range f.files {
		if len(recorded) > 0 && !slices.ContainsFunc(recorded, func(o pool.Object) bool { return o.SizeBytes == c.stat.SizeBytes }) {
			continue
		}
		all = append(all, c)
	}
	slices.SortStableFunc(all, func(a, b file) int {
		return cmp.Compare(btoi(a.name != m.Name), btoi(b.name != m.Name))
	})
	if len(all) > maxCandidates {
		f.gap(m.Name, "candidates", fmt.Errorf("only the first %d of %d were read", maxCandidates, len(all)))
		all = all[:maxCandidates]
	}
	return all
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sameInode tells whether a file that was renamed in the directory of the bases is the inode that was recorded.
func (f *finder) sameInode(ctx context.Context, c *file, recorded []pool.Object) (bool, error) {
	if !c.renamed {
		return false, nil
	}
	born, err := diskio.Within(ctx, f.o.Timeout, func() (time.Time, error) {
		r, err := diskio.Open(c.path)
		if err != nil {
			return time.Time{}, err
		}
		defer r.Close()
		if r.Stat().ID != c.stat.ID {
			return time.Time{}, diskio.ErrChanged
		}
		return r.Born().UTC(), nil
	}, nil)
	return slices.ContainsFunc(recorded, func(o pool.Object) bool {
		return o.Inode == c.stat.Ino && o.SizeBytes == c.stat.SizeBytes && o.Born.Equal(born)
	}), err
}
