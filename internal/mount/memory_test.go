// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// memory is a file system that exists in memory alone.
type memory struct {
	root  files.Ino
	inode map[files.Ino]*memoryFile
	notes files.Notes
	opens atomic.Int64
}

// errBroken is what unreadable parts give.
var errBroken = errors.New("the disk cannot be read here")

type memoryFile struct {
	stat    files.Stat
	content []byte
	holes   []files.Extent // the parts with content; nil is all
	entries []files.Entry
	xattrs  []xattr
	// What cannot be read: the inode, content from an offset on, the end of the directory, the end of
	// the attributes.
	noInode, noEnd, noXattrs bool
	bad                      int64
	reads                    atomic.Int64 // of the directory
}

func newMemory(root files.Ino) *memory {
	m := &memory{root: root, inode: map[files.Ino]*memoryFile{}}
	m.add(root, files.TypeDir|0o755)
	m.name(root, ".", root)
	m.name(root, "..", root)
	return m
}

// add makes an inode without a name.
func (m *memory) add(ino files.Ino, mode uint32) *memoryFile {
	f := &memoryFile{stat: files.Stat{Ino: ino, Mode: mode, Links: 1}, bad: -1}
	m.inode[ino] = f
	return f
}

// name gives an inode a name.
func (m *memory) name(dir files.Ino, name string, ino files.Ino) {
	d := m.inode[dir]
	typ := uint32(0)
	if f := m.inode[ino]; f != nil {
		typ = f.stat.Mode & files.TypeMask
	}
	d.entries = append(d.entries, files.Entry{Name: name, Ino: ino, Type: typ})
}

// file makes a regular file.
func (m *memory) file(dir files.Ino, name string, ino files.Ino, content string) *memoryFile {
	f := m.add(ino, files.TypeRegular|0o644)
	f.content, f.stat.Size = []byte(content), int64(len(content))
	m.name(dir, name, ino)
	return f
}

// dir makes a directory.
func (m *memory) dir(in files.Ino, name string, ino files.Ino) *memoryFile {
	f := m.add(ino, files.TypeDir|0o755)
	f.stat.Links = 2
	m.name(in, name, ino)
	m.name(ino, ".", ino)
	m.name(ino, "..", in)
	return f
}

func (m *memory) Info() files.Info {
	return files.Info{Kind: "memory", BlockBytes: 4096, SizeBytes: 1 << 30, FreeBytes: 1 << 28,
		Inodes: 1000, FreeInodes: 900, Root: m.root}
}

func (m *memory) View() files.View { return m.notes.View() }

func (m *memory) Open(ctx context.Context, ino files.Ino) (files.File, error) {
	m.opens.Add(1)
	f := m.inode[ino]
	if f == nil || f.noInode {
		return nil, m.notes.Fail(fmt.Sprintf("inode %d", ino), -1, ino, errBroken)
	}
	return f, ctx.Err()
}

func (m *memory) Inodes(_ context.Context, fn func(*files.Stat) error) error {
	for _, ino := range slices.Sorted(maps.Keys(m.inode)) {
		if err := fn(&m.inode[ino].stat); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Owners(context.Context, []files.Range, func(files.Owner) error) error { return nil }

// withNames is a memory that gives directories with their inodes.
type withNames struct{ *memory }

func (m withNames) Names(
	ctx context.Context, dir files.Ino, fn func(files.Entry, files.File, error) error,
) error {
	return m.inode[dir].Entries(ctx, func(e files.Entry) error {
		if e.Name == "." || e.Name == ".." {
			return fn(e, nil, nil)
		}
		if f := m.inode[e.Ino]; f != nil && !f.noInode {
			return fn(e, f, nil)
		}
		return fn(e, nil, errBroken)
	})
}

func (f *memoryFile) Stat() *files.Stat { return &f.stat }

func (f *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	if f.bad >= 0 && off+int64(len(p)) > f.bad {
		return 0, errBroken
	}
	if f.holes == nil {
		return bytes.NewReader(f.content).ReadAt(p, off)
	}
	n := int(min(int64(len(p)), f.stat.Size-off))
	clear(p[:n])
	for _, e := range f.holes {
		if !e.Unwritten && e.Offset < off+int64(n) && e.Offset+e.Length > off {
			for i := max(off, e.Offset); i < min(off+int64(n), e.Offset+e.Length); i++ {
				p[i-off] = 'x'
			}
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memoryFile) Extents(_ context.Context, fn func(files.Extent) error) error {
	holes := f.holes
	if holes == nil {
		holes = []files.Extent{{Length: f.stat.Size}}
	}
	for _, e := range holes {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *memoryFile) Entries(_ context.Context, fn func(files.Entry) error) error {
	f.reads.Add(1)
	for _, e := range f.entries {
		if err := fn(e); err != nil {
			return err
		}
	}
	if f.noEnd {
		return errBroken
	}
	return nil
}

func (f *memoryFile) Xattrs(_ context.Context, fn func(string, []byte) error) error {
	for _, x := range f.xattrs {
		if err := fn(x.name, x.value); err != nil {
			return err
		}
	}
	if f.noXattrs {
		return errBroken
	}
	return nil
}
