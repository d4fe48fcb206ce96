// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stories

import (
	"bytes"
	"context"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// told is a tree of what a story tells of a machine. What it does not tell is not there; what was taken
// away was not collected.
type told struct {
	*Machine
	without []string
}

// Tree is the machine, without some files, or all below some directories.
func (m *Machine) Tree(without ...string) tree.Tree { return &told{m, without} }

func (t *told) Kind() tree.Kind { return t.Machine.Kind }

func (t *told) missing(op, name string) error {
	if !t.has(name) {
		return &fs.PathError{Op: op, Path: name, Err: tree.ErrNotCollected}
	}
	return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

func (t *told) has(name string) bool {
	return !slices.ContainsFunc(t.without, func(gone string) bool {
		return name == gone || strings.HasPrefix(name, gone+"/")
	})
}

func (t *told) Read(_ context.Context, name string, limit int64) ([]byte, error) {
	text, known := t.files[name]
	if !known || !t.has(name) {
		return nil, t.missing("read", name)
	}
	if int64(len(text)) > limit {
		return []byte(text[:limit]), &fs.PathError{Op: "read", Path: name, Err: tree.ErrTooLarge}
	}
	return []byte(text), nil
}

func (t *told) Open(_ context.Context, name string) (tree.File, error) {
	text, known := t.files[name]
	if !known || !t.has(name) {
		return nil, t.missing("open", name)
	}
	return file{bytes.NewReader([]byte(text))}, nil
}

type file struct{ *bytes.Reader }

func (f file) Size() int64    { return f.Reader.Size() }
func (file) Mtime() time.Time { return Noon() }
func (file) Close() error     { return nil }

func (t *told) Link(_ context.Context, name string) (string, error) {
	to, known := t.links[name]
	if !known || !t.has(name) {
		return "", t.missing("readlink", name)
	}
	return to, nil
}

// List names what was taken away as well, unless all of the directory was.
func (t *told) List(_ context.Context, dir string) ([]tree.Entry, error) {
	prefix := strings.TrimSuffix(dir, "/") + "/"
	all := map[string]tree.Entry{}
	add := func(name string, e tree.Entry) {
		rest, in := strings.CutPrefix(name, prefix)
		if !in {
			return
		}
		first, _, deeper := strings.Cut(rest, "/")
		e.Name, e.Mtime = first, Noon()
		if _, link := t.links[prefix+first]; link {
			e.Type, e.Size = fs.ModeSymlink, 0
		} else if deeper {
			e.Type, e.Size = fs.ModeDir, 0
		}
		all[first] = e
	}
	for name, text := range t.files {
		add(name, tree.Entry{Size: int64(len(text))})
	}
	for name := range t.links {
		add(name, tree.Entry{})
	}
	if len(all) == 0 || !t.has(dir) {
		return nil, t.missing("list", dir)
	}
	return slices.SortedFunc(maps.Values(all), func(a, b tree.Entry) int { return strings.Compare(a.Name, b.Name) }), nil
}
