// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// hold has a process keep a file open until the test ends.
func (w *world) hold(name string) {
	w.t.Helper()
	f, err := os.Open(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	// Our own descriptors are no use of a file.
	holder := exec.Command("sleep", "1000")
	holder.ExtraFiles = []*os.File{f}
	testenv.Start(w.t, holder)
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
}

// TestRemoteHeader: an image on another machine may rest on any base, unless it is a raw one, or the base of that name. What a
// program of this host serves may be any base.
func TestRemoteHeader(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for _, c := range []struct {
		format, name string
		gaps         int
	}{{"raw", "nbd://h/x", 0}, {"qcow2", "nbd://h/x", 1}, {"qed", "nfs://h/_base/b", 0}, {"", "nbd://h/x", 1},
		{"raw", "nbd+unix:///?socket=/s", 1}, {"raw", "nbd:unix:/s", 1}, {"qcow2", "nbd+unix:///x?socket=/s", 1}} {
		format, w := c.format, newWorld(t)
		w.base("b")
		w.mkdir("pool/i")
		disk, as := w.path("pool/i/disk"), format
		if as == "" {
			as = "raw"
		}
		img := exec.Command("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", c.name, "-F", as, disk, "64K")
		if out, err := img.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if format == "" { // as qemu-img of before 6.1 made them
			text, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			w.write("pool/i/disk", bytes.Replace(text, []byte("\xe2\x79\x2a\xca"), make([]byte, 4), 1))
		}
		gaps := 0
		for _, g := range w.look(Options{}).Gaps {
			if strings.HasPrefix(g.What, "header") || g.What == "backing file" {
				gaps++
			}
		}
		if gaps != c.gaps {
			t.Errorf("%s as %q: %d gaps, want %d", c.name, format, gaps, c.gaps)
		}
	}
}

// TestOtherMounts: what an image calls a base by is one thing, which file that is another. The same file system may be
// mounted elsewhere, and a base that is missing there is missing here.
func TestOtherMounts(t *testing.T) {
	testenv.NeedRoot(t)
	w := newWorld(t)
	w.base("there")
	w.base("held")
	w.mkdir("images")
	if err := unix.Mount(w.path("pool/_base"), w.path("images"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(w.path("images"), 0); err != nil {
			t.Error(err)
		}
	})
	w.image("pool/1/disk", "qcow2", w.path("images/there"))
	w.image("pool/2/disk", "qcow2", w.path("images/gone"))
	w.image("pool/3/disk", "qcow2", w.path("pool/_base/gone"))
	w.image("pool/4/disk", "qcow2", "../../images/gone")
	// A process has one open by its name there, which is then removed here.
	w.hold("images/held")
	if err := os.Remove(w.path("pool/_base/held")); err != nil {
		t.Fatal(err)
	}
	tr, err := tree.OpenDirectory(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	c := w.look(Options{Host: &Host{Linux: linux.Open(""), Tree: tr, Root: t.TempDir()}})
	got := slices.DeleteFunc(w.lines(c), func(s string) bool { return strings.HasPrefix(s, "gap ") })
	for i, s := range got {
		if strings.HasPrefix(s, "held missing: deleted ") {
			got[i] = "held missing: deleted" // whatever the test is called
		}
	}
	want := []string{
		"gone missing: header pool/2/disk 1 header pool/3/disk 1 header pool/4/disk 1",
		"held missing: deleted",
		"there live: header pool/1/disk 1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Look (-want +got):\n%s", d)
	}
	for _, b := range c.All {
		if b.Path != w.path("pool/_base/"+b.Name) {
			t.Errorf("%s is said to be at %s", b.Name, b.Path)
		}
	}
}

// TestOtherPools: what was removed from another pool of the same name is none of this one's.
func TestOtherPools(t *testing.T) {
	w := newWorld(t)
	w.base("b")
	w.write("other/_base/x", make([]byte, 4096))
	w.hold("other/_base/x")
	if err := os.Remove(w.path("other/_base/x")); err != nil {
		t.Fatal(err)
	}
	tr, err := tree.OpenDirectory(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	host := &Host{Linux: linux.Open(""), Tree: tr, Root: t.TempDir()}
	has := func() bool {
		return slices.ContainsFunc(w.look(Options{Host: host}).All, func(b Base) bool { return b.Name == "x" })
	}
	if has() {
		t.Error("what was removed from another directory of bases is said to be missing here")
	}
	// Where that directory is gone too, nobody can tell any more whose it was.
	if err := os.RemoveAll(w.path("other")); err != nil {
		t.Fatal(err)
	}
	if !has() {
		t.Error("what was removed from a directory that cannot be looked at any more is said to be no base")
	}
}

// TestSince: an image needs its base since it was made, whatever was written to it later; a process since it was
// started.
func TestSince(t *testing.T) {
	w := newWorld(t)
	before := time.Now().Add(-5 * time.Second)
	w.image("pool/1/disk", "qcow2", w.base("b"))
	w.hold("pool/_base/b")
	after := time.Now().Add(5 * time.Second)
	future := time.Now().Add(time.Hour)
	if err := os.Chtimes(w.path("pool/1/disk"), future, future); err != nil {
		t.Fatal(err)
	}
	tr, err := tree.OpenDirectory(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	uses := w.look(Options{Host: &Host{Linux: linux.Open(""), Tree: tr, Root: t.TempDir()}}).All[0].Uses
	if len(uses) != 2 {
		t.Fatalf("uses = %+v, want a process and an image", uses)
	}
	for _, u := range uses {
		if u.Since.Before(before) || u.Since.After(after) {
			t.Errorf("%s needs it since %v, want %v to %v", u.How, u.Since, before.UTC(), after.UTC())
		}
	}
	made, changed := time.Unix(1, 0), time.Unix(2, 0)
	if since(made, changed) != made.UnixNano() || since(time.Time{}, changed) != changed.UnixNano() {
		t.Error("since does not prefer when it was made")
	}
}

// TestEmptyRoot: a directory that somebody named and in which nothing is, is one whose storage may not be mounted.
func TestEmptyRoot(t *testing.T) {
	w := newWorld(t)
	w.base("a")
	w.mkdir("more")
	gaps := func() (n int) {
		for _, g := range w.look(Options{Roots: []string{w.path("more")}}).Gaps {
			if g.Object == w.path("more") {
				n++
			}
		}
		return n
	}
	if n := gaps(); n != 1 {
		t.Errorf("%d gaps for an empty directory, want 1", n)
	}
	w.mkdir("more/lost+found")
	if n := gaps(); n != 0 {
		t.Errorf("%d gaps for an empty file system, want none", n)
	}
}

// TestAddress: an image may rest on a base by the name of the server that has it.
func TestAddress(t *testing.T) {
	for name, want := range map[string]string{
		"nfs://filer/export/_base/a":           "a live: name pool/i/disk 1",
		"gluster+tcp://g1:24007/vol/_base/a":   "a live: name pool/i/disk 1",
		"ssh://root@n2/srv/_base/a?x=1":        "a live: name pool/i/disk 1",
		"nfs://filer/export/images/a":          "a live:",
		"rbd:pool/_base/a":                     "a live:",
		"nbd://host:10809/a":                   "a live:",
		"https://images.example.org/_base/%zz": "a live:",
	} {
		w := newWorld(t)
		w.base("a")
		w.image("pool/i/disk", "qcow2", name)
		if got := strings.Join(w.lines(w.look(Options{})), "|"); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestEndedMeanwhile: a process that had a removed file of some directory of bases open, and ended since, needs none.
func TestEndedMeanwhile(t *testing.T) {
	root, pool := t.TempDir(), t.TempDir()
	proc := filepath.Join(root, "proc", "2000000000")
	fd := filepath.Join(proc, "fd/3")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(proc, "fd"), 0o755), os.Mkdir(filepath.Join(proc, "fdinfo"), 0o755),
		os.Symlink("/srv/other/_base/used (deleted)", fd), os.Mkdir(filepath.Join(pool, "_base"), 0o755),
		os.WriteFile(filepath.Join(proc, "fdinfo/3"), []byte("flags:\t0100000\nmnt_id:\t27\nino:\t77\n"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c, err := linux.Open(root).Census(t.Context())
	if err != nil || len(c.Deleted()) != 1 {
		t.Fatalf("Census = %+v, %v, want one file", c, err)
	}
	tk := &taking{o: Options{Timeout: time.Minute}, c: &Census{Bases: filepath.Join(pool, "_base")}}
	if err := tk.whereabouts(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		f := c.Deleted()[0]
		if is, err := tk.ours(t.Context(), c, &f); is != want || err != nil {
			t.Errorf("that it may be a base: %v, %v, want %v", is, err, want)
		}
		if err := os.RemoveAll(fd); err != nil {
			t.Fatal(err)
		}
	}
}
