// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Node is what is compared of a name.
type Node struct {
	Stat    files.Stat
	Content string // a digest of a regular file's bytes, or the target of a symbolic link
	Xattrs  map[string]string
}

// Tree is a file system as a list of paths, "/" being its root.
type Tree map[string]Node

// ReadMounted reads the tree that the kernel shows at dir, on one file system. Before any content is
// read all is asked for its state: reading alone may change that of an inode, whose time of access is
// set and whose space behind its end is given back, and it may have other names.
func ReadMounted(t testing.TB, dir string) Tree {
	t.Helper()
	tree := make(Tree)
	var read func(at string)
	read = func(at string) {
		full := filepath.Join(dir, at)
		n := Node{Stat: mountedStat(t, full)}
		tree[at] = n
		if !n.Stat.IsDir() {
			return
		}
		names, err := os.ReadDir(full)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range names {
			read(strings.TrimSuffix(at, "/") + "/" + e.Name())
		}
	}
	read("/")
	for at, n := range tree {
		tree[at] = mountedNode(t, filepath.Join(dir, at), n.Stat)
	}
	return tree
}

// mountedStat asks the kernel for the state of one name.
func mountedStat(t testing.TB, full string) files.Stat {
	t.Helper()
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, full, unix.AT_SYMLINK_NOFOLLOW,
		unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x); err != nil {
		t.Fatalf("statx %q: %v", full, err)
	}
	st := files.Stat{
		Ino: files.Ino(x.Ino), Mode: uint32(x.Mode), Links: x.Nlink, UID: x.Uid, GID: x.Gid,
		Size: int64(x.Size), Sectors: int64(x.Blocks), Major: x.Rdev_major, Minor: x.Rdev_minor,
		Atime: stamp(x.Atime), Mtime: stamp(x.Mtime), Ctime: stamp(x.Ctime),
	}
	if x.Mask&unix.STATX_BTIME != 0 {
		st.Birth = stamp(x.Btime)
	}
	return st
}

// mountedNode reads what belongs to one name.
func mountedNode(t testing.TB, full string, st files.Stat) Node {
	t.Helper()
	n := Node{Stat: st, Xattrs: mountedXattrs(t, full)}
	switch n.Stat.Mode & files.TypeMask {
	case files.TypeRegular:
		f, err := os.Open(full)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if n.Content, err = mountedDigest(f); err != nil {
			t.Fatal(err)
		}
	case files.TypeLink:
		to, err := os.Readlink(full)
		if err != nil {
			t.Fatal(err)
		}
		n.Content = to
	}
	return n
}

func stamp(s unix.StatxTimestamp) files.Time {
	return files.Time{Seconds: s.Sec, Nanoseconds: s.Nsec}
}

// mountedXattrs reads all extended attributes of one name.
func mountedXattrs(t testing.TB, full string) map[string]string {
	t.Helper()
	list := make([]byte, 128<<10)
	n, err := unix.Llistxattr(full, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		t.Fatalf("listxattr %q: %v", full, err)
	}
	attrs := make(map[string]string)
	value := make([]byte, files.MaxXattrBytes)
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list[:n], []byte{0}), []byte{0}) {
		if len(name) == 0 {
			continue
		}
		n, err := unix.Lgetxattr(full, string(name), value)
		if err != nil {
			t.Fatalf("getxattr %q %s: %v", full, name, err)
		}
		attrs[string(name)] = string(value[:n])
	}
	return attrs
}

// ReadView reads the tree that a reader shows, with everything counted by [files.Survey]. A name
// that cannot be read has no content.
func ReadView(ctx context.Context, fs files.FS) (Tree, files.View, error) {
	tree := make(Tree)
	_, view, err := files.Survey(ctx, fs, func(f *files.Found) error {
		if f.File == nil {
			tree[f.Path] = Node{}
			return nil
		}
		if _, again := tree[f.Path]; again {
			return nil // its entries could not all be read
		}
		tree[f.Path] = viewNode(ctx, f.File)
		return nil
	})
	// What reading the contents noted came after the walk's view.
	if last := fs.View(); last.State == files.Incomplete {
		view.State = files.Incomplete
	}
	return tree, view, err
}

func viewNode(ctx context.Context, f files.File) Node {
	n := Node{Stat: *f.Stat(), Xattrs: make(map[string]string)}
	err := f.Xattrs(ctx, func(name string, value []byte) error {
		n.Xattrs[name] = string(value)
		return nil
	})
	if err != nil {
		n.Xattrs["error"] = err.Error()
	}
	switch n.Stat.Mode & files.TypeMask {
	case files.TypeRegular:
		var err error
		if n.Content, err = viewDigest(ctx, f); err != nil {
			n.Content = err.Error()
		}
	case files.TypeLink:
		to := make([]byte, min(n.Stat.Size, files.MaxLinkBytes))
		if _, err := io.ReadFull(io.NewSectionReader(f, 0, n.Stat.Size), to); err != nil {
			n.Content = err.Error()
			break
		}
		n.Content = string(to)
	}
	return n
}

// Loose says what a comparison leaves out.
type Loose struct {
	Atime, Sectors, Birth bool
}

// Differences compares what a reader shows with what the kernel shows, and gives a line for each
// difference, the first of many.
func Differences(got, want Tree, loose Loose) []string {
	var lines []string
	paths := maps.Clone(want)
	maps.Copy(paths, got)
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		g, in := got[p]
		w, should := want[p]
		switch {
		case !in:
			lines = append(lines, fmt.Sprintf("%q is not listed", p))
		case !should:
			lines = append(lines, fmt.Sprintf("%q is listed, and the kernel does not have it", p))
		default:
			if d := differ(g, w, loose); d != "" {
				lines = append(lines, fmt.Sprintf("%q: %s", p, d))
			}
		}
		if len(lines) == 20 {
			return append(lines, "...")
		}
	}
	return lines
}

// differ names the first thing in which two nodes differ.
func differ(got, want Node, loose Loose) string {
	g, w := got.Stat, want.Stat
	if loose.Atime {
		g.Atime = w.Atime
	}
	if loose.Sectors {
		g.Sectors = w.Sectors
	}
	if loose.Birth || w.Birth == (files.Time{}) {
		g.Birth = w.Birth
	}
	// Of these a mount tells nothing here.
	g.Generation, g.Flags, g.Project, g.Deleted = 0, 0, 0, files.Time{}
	w.Generation, w.Flags, w.Project, w.Deleted = 0, 0, 0, files.Time{}
	var text string
	if g != w {
		text = fmt.Sprintf("stat is %+v, want %+v", g, w)
	}
	if got.Content != want.Content {
		text = cmp.Or(text, fmt.Sprintf("content is %.80q, want %.80q", got.Content, want.Content))
	}
	if !maps.Equal(got.Xattrs, want.Xattrs) {
		text = cmp.Or(text, fmt.Sprintf("attributes are %.200q, want %.200q", fmt.Sprint(got.Xattrs),
			fmt.Sprint(want.Xattrs)))
	}
	return text
}

// Same requires that a reader shows what the kernel shows at dir, and that its view is whole. It
// gives the tree.
func Same(t testing.TB, fs files.FS, dir string, loose Loose) Tree {
	t.Helper()
	want := ReadMounted(t, dir)
	got, view, err := ReadView(t.Context(), fs)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range Differences(got, want, loose) {
		t.Error(line)
	}
	if view.State == files.Incomplete {
		t.Errorf("the view is incomplete: %+v", view.Problems[:min(5, len(view.Problems))])
	}
	return want
}
