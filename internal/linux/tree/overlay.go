// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"bytes"
	"context"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Overlay gives a tree with files more, by their names. Those in one directory replace that directory:
// nothing of the tree below is seen in it, but files that were given to it so before.
func Overlay(t Tree, files map[string][]byte) Tree {
	if below, was := t.(*overlay); was {
		all := maps.Clone(below.files)
		maps.Copy(all, files)
		return &overlay{below.Tree, all}
	}
	return &overlay{t, files}
}

type overlay struct {
	Tree
	files map[string][]byte
}

// own tells whether a name is in a directory of its files.
func (o *overlay) own(name string) bool {
	for n := range o.files {
		if under(name, path.Dir(n)) {
			return true
		}
	}
	return false
}

// get gives one of its files.
func (o *overlay) get(name string) ([]byte, error) {
	b, known := o.files[name]
	if !known {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	return b, nil
}

func (o *overlay) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	if !o.own(name) {
		return o.Tree.Read(ctx, name, limit)
	}
	b, err := o.get(name)
	if err == nil && int64(len(b)) > limit {
		return slices.Clone(b[:limit]), &fs.PathError{Op: "read", Path: name, Err: ErrTooLarge}
	}
	return slices.Clone(b), err
}

func (o *overlay) Open(ctx context.Context, name string) (File, error) {
	if !o.own(name) {
		return o.Tree.Open(ctx, name)
	}
	b, err := o.get(name)
	if err != nil {
		return nil, err
	}
	return memory{bytes.NewReader(b)}, nil
}

// memory is a file in memory.
type memory struct{ *bytes.Reader }

func (m memory) Size() int64    { return m.Reader.Size() }
func (memory) Mtime() time.Time { return time.Time{} }
func (memory) Close() error     { return nil }

func (o *overlay) List(ctx context.Context, name string) ([]Entry, error) {
	if !o.own(name) {
		return o.Tree.List(ctx, name)
	}
	var all []Entry
	for _, n := range slices.Sorted(maps.Keys(o.files)) {
		rest, in := strings.CutPrefix(n, strings.TrimSuffix(name, "/")+"/")
		if !in {
			continue
		}
		e := Entry{Name: rest, Size: int64(len(o.files[n]))}
		if dir, _, deeper := strings.Cut(rest, "/"); deeper {
			e = Entry{Name: dir, Type: fs.ModeDir}
		}
		if len(all) == 0 || all[len(all)-1].Name != e.Name {
			all = append(all, e)
		}
	}
	if all == nil {
		return nil, &fs.PathError{Op: "list", Path: name, Err: fs.ErrNotExist}
	}
	return all, nil
}

func (o *overlay) Link(ctx context.Context, name string) (string, error) {
	if !o.own(name) {
		return o.Tree.Link(ctx, name)
	}
	if _, err := o.get(name); err != nil {
		return "", err
	}
	return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
}

// Namer is a tree that can find the names of inodes.
type Namer interface {
	// Names gives for each of some inodes of a volume a name in it, as far as there is one. It may have
	// to go through all of the volume. The error says why not all names were looked at.
	Names(ctx context.Context, volume string, inodes []uint64) (map[uint64]string, error)
}

// Names asks the tree below, if that can find names.
func (o *overlay) Names(ctx context.Context, volume string, inodes []uint64) (map[uint64]string, error) {
	if n, can := o.Tree.(Namer); can {
		return n.Names(ctx, volume, inodes)
	}
	return nil, nil
}
