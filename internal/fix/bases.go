// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// Rest says who rests on an image.
type Rest struct {
	// Overlays are images whose headers name it as their backing file, or as their data file.
	Overlays []string
	// Files counts what was looked at, Unread is what could not be.
	Files  int
	Unread []finding.Blind
}

const (
	// nameTimeout is how long one name is waited for.
	nameTimeout = 10 * time.Second
	// maxRestFiles and maxRestDepth bound what is looked at: Nova's images are one directory below that of its
	// bases, other managers' in the same.
	maxRestFiles, maxRestDepth = 20000, 2
	// maxRestUnread bounds what is listed.
	maxRestUnread = 100
)

// RestsOn looks for images that rest on one, in its own directory, the one above where that holds images'
// directories, and further ones. What it changes below them they would all see, torn. It opens every file
// there for reading.
func RestsOn(ctx context.Context, image string, dirs []string) (*Rest, error) {
	st, err := diskio.Look(image)
	if err != nil {
		return nil, err
	}
	r := &Rest{}
	l := &looker{rest: r, id: st.ID, seen: map[string]bool{}}
	own := filepath.Dir(image)
	all := append([]string{own}, dirs...)
	if filepath.Base(own) == "_base" { // of Nova: who rests on it is beside that
		all = append(all, filepath.Dir(own))
	}
	for _, dir := range all {
		if err := l.dir(ctx, dir, maxRestDepth); err != nil {
			return nil, err
		}
	}
	slices.Sort(r.Overlays)
	r.Overlays = slices.Compact(r.Overlays)
	return r, nil
}

// looker goes through directories.
type looker struct {
	rest *Rest
	id   diskio.ID
	seen map[string]bool
}

func (l *looker) unread(name string, err error) {
	if len(l.rest.Unread) < maxRestUnread {
		l.rest.Unread = append(l.rest.Unread, finding.Blind{Object: name, What: "image that may rest on it",
			Reason: err.Error(), Host: []finding.Range{}, Guest: []finding.Range{}})
	}
}

// dir looks at what is in a directory, and some levels below.
func (l *looker) dir(ctx context.Context, dir string, depth int) error {
	if l.seen[dir] {
		return nil
	}
	l.seen[dir] = true
	names, err := diskio.Within(ctx, nameTimeout, func() ([]os.DirEntry, error) { return os.ReadDir(dir) }, nil)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		l.unread(dir, err)
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := filepath.Join(dir, n.Name())
		switch {
		case l.rest.Files == maxRestFiles:
			l.unread(dir, fmt.Errorf("more than %d files were not looked at", maxRestFiles))
			return nil
		case n.IsDir() && depth > 0:
			if err := l.dir(ctx, name, depth-1); err != nil {
				return err
			}
		case n.Type().IsRegular() || n.Type()&fs.ModeSymlink != 0:
			l.rest.Files++
			if err := l.file(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				l.unread(name, err)
			}
		}
	}
	return nil
}

// file looks whether one file rests on the image.
func (l *looker) file(ctx context.Context, name string) error {
	rests, err := diskio.Within(ctx, nameTimeout, func() (bool, error) { return l.rests(name) }, nil)
	if rests {
		l.rest.Overlays = append(l.rest.Overlays, name)
	}
	return err
}

func (l *looker) rests(name string) (bool, error) {
	st, err := diskio.Look(name)
	if errors.Is(err, diskio.ErrDirectory) || errors.Is(err, diskio.ErrSpecial) || err == nil && st.ID == l.id {
		return false, nil // a link to a directory, or the image itself
	}
	if err != nil {
		return false, err
	}
	f, err := diskio.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	magic := make([]byte, 4)
	if n, err := f.ReadAt(magic, 0); n < len(magic) {
		if f.Size() < int64(len(magic)) {
			return false, nil
		}
		return false, err
	}
	if string(magic) != "QFI\xfb" {
		return false, nil // no other format has raw or qcow2 images below it, but for QED, which nobody makes
	}
	h, err := qcow2.ReadHeader(f, f.Size())
	if err != nil {
		return false, err
	}
	policy := disk.Policy{Follow: true}
	if h.HasDataFile() && policy.ResolveData(name, h.DataFile, nil).Stat.ID == l.id {
		return true, nil
	}
	return h.HasBacking && policy.Resolve(name, h.Backing, h.BackingFormat, nil).Stat.ID == l.id, nil
}
