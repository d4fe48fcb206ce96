// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// newTree gives a tree in a directory next to which lies another.
func newTree(t *testing.T) (tree *Tree, dir, outside string) {
	t.Helper()
	above := t.TempDir()
	dir, outside = filepath.Join(above, "in"), filepath.Join(above, "out")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree, dir, outside
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range all {
		out = append(out, e.Name())
	}
	return out
}

// TestNewFile makes files with and without a name meanwhile: they have their own only when they are
// whole, and take nobody else's.
func TestNewFile(t *testing.T) {
	for name, create := range map[string]func(*Tree, string) (*NewFile, error){
		"nameless": (*Tree).Create, "named": (*Tree).createNamed,
	} {
		t.Run(name, func(t *testing.T) {
			tree, dir, _ := newTree(t)
			when := time.Unix(1e9, 5)
			for range 2 { // the second time it is there
				n, err := create(tree, "file")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := n.Write([]byte("content")); err != nil {
					t.Fatal(err)
				}
				_, before := os.Lstat(filepath.Join(dir, "file"))
				not, err := n.Commit(Attributes{Mode: 0o4750, Atime: when, Mtime: when})
				if len(not) > 0 || before != nil && err != nil || before == nil && !errors.Is(err, fs.ErrExist) {
					t.Errorf("Commit = %v, %v; it was there: %v", not, err, before == nil)
				}
			}
			st, err := os.Stat(filepath.Join(dir, "file"))
			if err != nil || st.Mode() != 0o750|fs.ModeSetuid || !st.ModTime().Equal(when) || st.Size() != 7 {
				t.Errorf("%+v, %v", st, err)
			}
			n, err := create(tree, "other")
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Discard(); err != nil {
				t.Error(err)
			}
			if got := names(t, dir); len(got) != 1 {
				t.Errorf("%q, want one file", got)
			}
		})
	}
}

// TestTreeStaysInside puts links and other things where another program could: nothing is made
// beyond them.
func TestTreeStaysInside(t *testing.T) {
	tree, dir, outside := newTree(t)
	for name, to := range map[string]string{"absolute": outside, "relative": "../out"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"absolute", "relative", "fifo", "../out", outside} {
		p := at + "/new"
		create := func() error {
			n, err := tree.Create(p)
			if err == nil {
				_, err = n.Commit(Attributes{})
			}
			return err
		}
		for what, err := range map[string]error{"Create": create(), "Mkdir": tree.Mkdir(p),
			"Symlink": tree.Symlink("x", p), "Link": tree.Link("file", p),
			"Mknod": tree.Mknod(p, unix.S_IFIFO, 0, 0)} {
			if err == nil {
				t.Errorf("%s(%s) works", what, p)
			}
		}
	}
	if got := names(t, outside); len(got) != 0 {
		t.Errorf("outside are %q", got)
	}
	// What has become a link gets no attributes of a directory, and neither what it leads to.
	before, err := os.Stat(outside)
	if err != nil {
		t.Fatal(err)
	}
	tree.SetAttributes("absolute", Attributes{Mode: 0o777, Atime: time.Unix(1, 0), Mtime: time.Unix(1, 0)})
	after, err := os.Stat(outside)
	if err != nil || before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("%v, %v", after, err)
	}
}

// TestNodeXattrs gives a link, a FIFO and a device extended attributes, and tells what cannot be given.
func TestNodeXattrs(t *testing.T) {
	testenv.NeedRoot(t)
	tree, dir, _ := newTree(t)
	if err := errors.Join(tree.Symlink("fifo", "link"), tree.Mknod("fifo", unix.S_IFIFO, 0, 0),
		tree.Mknod("device", unix.S_IFCHR, 1, 3)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "fifo", "device"} {
		not := tree.SetAttributes(name, Attributes{Mode: 0o600, Atime: time.Unix(1, 0), Mtime: time.Unix(1, 0),
			Xattrs: map[string][]byte{"trusted.of": []byte(name), "user.none": []byte("such")}})
		if len(not) != 1 || !errors.Is(not[0], unix.EPERM) {
			t.Errorf("not set of %s is %v, want user.none", name, not)
		}
		b := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(dir, name), "trusted.of", b)
		if err != nil || string(b[:n]) != name {
			t.Errorf("%s has the attribute %q, %v", name, b[:max(n, 0)], err)
		}
	}
}
