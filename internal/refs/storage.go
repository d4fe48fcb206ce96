// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// maxStorages bounds how many file systems are told apart.
const maxStorages = 1000

// storages tells on which file systems the bases and the roots lie, and how many images on each rest on others: what is
// not mounted any more looks like nothing else than fewer images. One that does not say what it is, is a gap. The error
// is that of ctx.
func (t *taking) storages(ctx context.Context) error {
	if err := t.storage(ctx, pool.OfBases, t.c.Bases, t.c.Bases, 0); err != nil {
		return err
	}
	devs := map[string]uint64{}
	for _, r := range t.c.Roots {
		if _, twice := devs[r]; twice {
			continue
		}
		st, err := diskio.Within(ctx, t.o.Timeout, func() (diskio.Stat, error) { return diskio.Look(r) }, nil)
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
	counts, dirs := map[part]int64{}, map[part]string{}
	for i := range t.images {
		m := &t.images[i]
		root := t.rootOf(m.dir)
		if root == "" {
			if root = t.rootOf(m.path()); root == "" {
				continue
			}
		}
		p := part{root, m.id.Dev}
		if counts[p]++; dirs[p] == "" || m.dir < dirs[p] {
			dirs[p] = m.dir
		}
	}
	for p, n := range counts {
		what, dir := pool.Below, dirs[p]
		if p.dev == devs[p.root] {
			what = pool.OfRoot
		}
		if err := t.storage(ctx, what, p.root, dir, n); err != nil {
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
	f, err := diskio.Within(ctx, t.o.Timeout, func() (diskio.FileSystem, error) { return diskio.FileSystemOf(dir) }, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		t.gap(dir, "file system", reason(err))
		return nil
	}
	s := pool.BaseStorage{What: what, Path: strings.ToValidUTF8(path, "\uFFFD"), Type: f.Type, ID: f.ID, Overlays: overlays}
	for i := range t.c.Storages {
		if o := &t.c.Storages[i]; o.What == s.What && o.Path == s.Path && o.FS() == s.FS() {
			o.Overlays += overlays
			return nil
		}
	}
	if len(t.c.Storages) == maxStorages {
		t.gap(dir, "file system", fmt.Sprintf("there are more than %d", maxStorages))
		return nil
	}
	t.c.Storages = append(t.c.Storages, s)
	return nil
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
