// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// storages gives the file systems of a census in short; ids are told apart by what they are on here.
func (w *world) storages(o Options) (all []string) {
	w.t.Helper()
	c := w.look(o)
	for _, g := range c.Gaps {
		if g.What == "file system" {
			w.t.Errorf("gap %s: %s", g.Object, g.Reason)
		}
	}
	bases := ""
	for i := range c.Storages {
		s := &c.Storages[i]
		if s.What == "bases" {
			bases = s.FS()
		}
		where := "other"
		if s.FS() == bases {
			where = "same"
		}
		path, err := filepath.Rel(w.dir, s.Path)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %s %s %d", s.What, path, where, s.Overlays))
	}
	return all
}

// TestMounts: what is mounted below a root is told with or without images, by its source where it has no id of its own.
func TestMounts(t *testing.T) {
	testenv.NeedRoot(t)
	w := newWorld(t)
	w.base("b")
	for _, dir := range []string{"pool/mnt/deep", "pool/covered/under", "pool/twice", "beside"} {
		w.mkdir(dir)
	}
	w.write("pool/file", nil)
	w.write("file", nil)
	tmpfs := func(source, dir string) {
		t.Helper()
		if err := unix.Mount(source, w.path(dir), "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(w.path(dir), 0); err != nil {
				t.Error(err)
			}
		})
	}
	tmpfs("one", "pool/mnt")
	w.mkdir("pool/mnt/deep er")
	tmpfs("two", "pool/mnt/deep er")
	tmpfs("under", "pool/covered/under")
	tmpfs("over", "pool/covered")
	tmpfs("first", "pool/twice")
	tmpfs("last", "pool/twice")
	tmpfs("beside", "beside")
	if err := unix.Mount(w.path("file"), w.path("pool/file"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(w.path("pool/file"), 0); err != nil {
			t.Error(err)
		}
	})
	tr, err := tree.OpenDirectory(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	c := w.look(Options{Roots: []string{w.path("pool/mnt")}, Host: &Host{Linux: linux.Open(""), Tree: tr, Root: t.TempDir()}})
	var got []string
	for i := range c.Storages {
		s := &c.Storages[i]
		if s.What == pool.AtMount || s.Source != "" {
			source := s.Source
			if s.Path == w.path("pool/file") {
				source = "" // that of the directory of the test
			}
			got = append(got, s.What+" "+strings.TrimPrefix(s.Path, w.dir+"/")+" "+s.ID+source)
		}
	}
	want := []string{"mount pool/covered over", "mount pool/file ", "mount pool/mnt one", "mount pool/mnt/deep er two",
		"mount pool/twice last", "root pool/mnt one"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("mounts (-want +got):\n%s", d)
	}
}

// TestStorages: images are counted for each file system below each root, so that one that is not mounted any more shows
// even if others still have some.
func TestStorages(t *testing.T) {
	testenv.NeedRoot(t)
	w := newWorld(t)
	b := w.base("b")
	w.mkdir("pool/mnt")
	w.mkdir("far")
	for _, dir := range []string{"pool/mnt", "far"} {
		if err := unix.Mount("none", w.path(dir), "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
	}
	mounted := true
	unmount := func() {
		for _, dir := range []string{"pool/mnt", "far"} {
			if err := unix.Unmount(w.path(dir), 0); err != nil {
				t.Error(err)
			}
		}
		mounted = false
	}
	t.Cleanup(func() {
		if mounted {
			unmount()
		}
	})
	w.image("pool/1/disk", "qcow2", b)
	w.image("pool/mnt/2/disk", "qcow2", b)
	w.image("pool/mnt/3/disk", "qcow2", b)
	w.image("far/4/disk", "qcow2", b)
	// An image that is only walked to counts as well, and a directory that lies in another is a root of its own.
	w.image("near/5/disk", "vmdk", "", "-o", "subformat=monolithicFlat")
	w.mkdir("pool/1/own")
	o := Options{Roots: []string{w.path("far"), w.path("pool/1/own"), w.path("near")}}
	got := strings.Join(w.storages(o), "\n")
	want := `bases pool/_base same 0
below pool other 2
root far other 1
root near same 1
root pool same 1
root pool/1/own same 0`
	// The order of the first words is that of the letters.
	if got != want {
		t.Errorf("mounted:\n%s\nwant\n%s", got, want)
	}
	unmount()
	got = strings.Join(w.storages(o), "\n")
	want = `bases pool/_base same 0
root far same 0
root near same 1
root pool same 1
root pool/1/own same 0`
	if got != want {
		t.Errorf("not mounted:\n%s\nwant\n%s", got, want)
	}
	if err := os.Symlink(w.path("near/5"), w.path("pool/link")); err != nil {
		t.Fatal(err)
	}
	if got := w.storages(o); len(got) != 5 {
		t.Errorf("with a link to what is looked through anyway: %q", got)
	}
}
