// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// maxStorages bounds how many file systems are told apart.
const maxStorages = 1000

// storages tells on which file systems the bases and the roots lie, and how many images on each rest on others: what is
// not mounted any more looks like nothing else than fewer images. One that does not say what it is, is a gap. The error
// is that of ctx.
func (t *taking) storages(ctx context.Context) error {
	if err := t.mounts(ctx); err != nil {
		return err
	}
	if err := t.storage(ctx, pool.OfBases, t.c.Bases, t.c.Bases, 0); err != nil {
		return err
	}
	devs := map[string]uint64{}
	for _, r := range t.c.Roots {
		if _, twice := devs[r]; twice {
			continue
		}
		st, err := diskio.WithinAt(ctx, r, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(r) }, nil)
		dir := r
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil, errors.Is(err, diskio.ErrSpecial):
			dir = filepath.Dir(r) // somebody named a file
		case !errors.Is(err, diskio.ErrDirectory):
			t.gap(r, "file system", reason(err))
			continue
		}
		devs[r] = st.Dev
		if err := t.storage(ctx, pool.OfRoot, r, dir, 0); err != nil {
			return err
		}
	}
	type part struct {
		root string
		dev  uint64
	}
	type count struct {
		images int64
		dir    string // the first one of them
	}
	parts := map[part]*count{}
	var last part
	var at *count // of last
	for i := range t.images {
		m := &t.images[i]
		dir := m.dir()
		root := t.rootOf(dir)
		if root == "" {
			if root = t.rootOf(m.path); root == "" {
				continue
			}
		}
		if p := (part{root, m.id.Dev}); p != last || at == nil {
			if last, at = p, parts[p]; at == nil {
				at = &count{dir: dir}
				parts[p] = at
			}
		}
		at.images++
		at.dir = min(at.dir, dir)
	}
	for p, f := range parts {
		what := pool.Below
		if p.dev == devs[p.root] {
			what = pool.OfRoot
		}
		if err := t.storage(ctx, what, p.root, f.dir, f.images); err != nil {
			return err
		}
	}
	slices.SortFunc(t.c.Storages, func(a, b pool.BaseStorage) int {
		return strings.Compare(a.What+"\x00"+a.Path+"\x00"+a.FS(), b.What+"\x00"+b.Path+"\x00"+b.FS())
	})
	return nil
}

// storage adds the file system of dir, which is path or lies below it, with images on it.
func (t *taking) storage(ctx context.Context, what, path, dir string, overlays int64) error {
	f, err := diskio.WithinAt(ctx, dir, t.o.Timeout, func() (diskio.FileSystem, error) { return diskio.FileSystemOf(dir) }, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		t.gap(dir, "file system", reason(err))
		return nil
	}
	s := pool.BaseStorage{What: what, Path: pool.Valid(path), Type: f.Type, ID: f.ID, Overlays: overlays}
	if s.ID == "" {
		s.Source = pool.Valid(t.sourceOf(dir, f.Dev))
	}
	t.note(s)
	return nil
}

// note adds a file system, or the images of one that is there.
func (t *taking) note(s pool.BaseStorage) {
	for i := range t.c.Storages {
		if o := &t.c.Storages[i]; o.What == s.What && o.Path == s.Path && o.FS() == s.FS() {
			o.Overlays += s.Overlays
			return
		}
	}
	if len(t.c.Storages) == maxStorages {
		t.gap(s.Path, "file system", fmt.Sprintf("there are more than %d", maxStorages))
		return
	}
	t.c.Storages = append(t.c.Storages, s)
}

// mounts notes what is mounted below the roots, with images or without: one that is not there any more may have had some. The
// error is that of ctx.
func (t *taking) mounts(ctx context.Context) error {
	if t.o.Host == nil || t.o.Host.Linux == nil {
		return nil // which is told with the processes
	}
	all, err := t.o.Host.Linux.Mounts(ctx, 0)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		t.gap("/proc", "mounts", reason(err))
	}
	t.mountTable = all
	at := map[string]linux.Mount{}
	for _, m := range all { // of two on the same directory the later one covers the other
		at[m.Point] = m
	}
	for _, point := range slices.Sorted(maps.Keys(at)) {
		if t.rootOf(filepath.Dir(point)) == "" {
			continue
		}
		if err := t.mount(ctx, point, at[point]); err != nil {
			return err
		}
	}
	return nil
}

// mount notes what is mounted at one place below a root. The error is that of ctx.
func (t *taking) mount(ctx context.Context, point string, m linux.Mount) error {
	pseudo, err := diskio.WithinAt(ctx, point, t.o.Timeout, func() (bool, error) {
		if _, err := diskio.Look(point); err != nil && !errors.Is(err, diskio.ErrDirectory) && !errors.Is(err, diskio.ErrSpecial) {
			return false, err
		}
		return diskio.InPseudo(point), nil
	}, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case pseudo, err != nil && missing(err): // another mount covers the way to it
		return nil
	case err != nil:
		t.gap(point, "file system", reason(err))
		return nil
	}
	f, err := diskio.WithinAt(ctx, point, t.o.Timeout, func() (diskio.FileSystem, error) { return diskio.FileSystemOf(point) }, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, syscall.ENOTDIR):
		f = diskio.FileSystem{Type: m.Type} // a file that something is mounted on
	case err != nil:
		t.gap(point, "file system", reason(err))
		return nil
	}
	s := pool.BaseStorage{What: pool.AtMount, Path: pool.Valid(point), Type: f.Type, ID: f.ID}
	if s.ID == "" {
		s.Source = pool.Valid(m.Source)
	}
	t.note(s)
	return nil
}

// sourceOf gives what is mounted where a directory lies, "" if that is not known. dev is the device of its file system.
func (t *taking) sourceOf(dir string, dev uint64) (source string) {
	point := ""
	for _, m := range t.mountTable {
		if m.Dev == dev && len(m.Point) >= len(point) && (dir == m.Point || strings.HasPrefix(dir, strings.TrimSuffix(m.Point, "/")+"/")) {
			point, source = m.Point, m.Source
		}
	}
	return source
}

// rootOf gives the innermost of the roots that a directory lies in, "" for none.
func (t *taking) rootOf(dir string) (root string) {
	for _, r := range t.c.Roots {
		if len(r) > len(root) && (dir == r || strings.HasPrefix(dir, strings.TrimSuffix(r, "/")+"/")) {
			root = r
		}
	}
	return root
}
