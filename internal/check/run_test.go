// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func mbr() []byte {
	p := make([]byte, 1<<20)
	p[446+4], p[446+12], p[510], p[511] = 0x83, 1, 0x55, 0xaa
	return p
}

func TestRunFile(t *testing.T) {
	dir := t.TempDir()
	vmdk := append([]byte("KDMV\x01\x00\x00\x00"), make([]byte, 1016)...)
	makeImage(t, dir+"/clean.qcow2", small(""))
	makeImage(t, dir+"/leak.qcow2", leaking())
	makeImage(t, dir+"/wiped.qcow2", small(""), "l1-entry-wiped")
	good, err := os.ReadFile(dir + "/clean.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	change := func(off int, b byte) []byte {
		p := append([]byte{}, good[:65536]...)
		p[off] = b
		return p
	}
	writeFile(t, dir+"/feature.qcow2", change(79, 0x20))
	writeFile(t, dir+"/header.qcow2", change(23, 40))
	writeFile(t, dir+"/cut.qcow2", good[:50])
	writeFile(t, dir+"/empty.qcow2", nil)
	writeFile(t, dir+"/garbage.qcow2", []byte("garbage"))
	writeFile(t, dir+"/table.qcow2", mbr())
	writeFile(t, dir+"/a.vmdk", vmdk)
	writeFile(t, dir+"/disk.raw", []byte("odd"))
	writeFile(t, dir+"/sectors", make([]byte, 1024))
	writeFile(t, dir+"/notes.txt", []byte("no disk"))
	writeFile(t, dir+"/\xff.qcow2", good[:30])
	if err := unix.Mkfifo(dir+"/fifo.qcow2", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("clean.qcow2", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		want []string
	}{
		{"clean.qcow2", []string{"clean [0]", "clean.qcow2 qcow2 clean"}},
		{"link", []string{"clean [0]", "link qcow2 clean"}},
		{"leak.qcow2", []string{"found [3]", "leak.qcow2 qcow2 found QC14"}},
		{"wiped.qcow2", []string{"found [3]", "wiped.qcow2 qcow2 found QC13"}},
		{"feature.qcow2", []string{"cannot_tell [1]",
			"feature.qcow2 qcow2 cannot_tell blind(image: not supported at 0x48: incompatible feature bits 0x20)",
			"error check feature.qcow2: not supported at 0x48: incompatible feature bits 0x20"}},
		{"header.qcow2", []string{"found [3]", "header.qcow2 qcow2 found QC01"}},
		{"cut.qcow2", []string{"found [3]", "cut.qcow2 qcow2 found QC01"}},
		{"empty.qcow2", []string{"found [3]", "empty.qcow2 - found QC01"}},
		{"garbage.qcow2", []string{"found [3]", "garbage.qcow2 - found QC01"}},
		{"table.qcow2", []string{"clean [0]", "table.qcow2 raw clean"}},
		{"a.vmdk", []string{"cannot_tell [1]", "a.vmdk vmdk cannot_tell", "error check a.vmdk: format vmdk has no check"}},
		{"disk.raw", []string{"clean [0]", "disk.raw raw clean"}},
		{"sectors", []string{"clean [0]", "sectors raw clean"}},
		{"notes.txt", []string{"cannot_tell [1]",
			"blind notes.txt file: is not a disk image: it has no known magic, and does not look like a raw disk",
			"error check notes.txt: is not a disk image: it has no known magic, and does not look like a raw disk"}},
		{"fifo.qcow2", []string{"cannot_tell [1]", "blind fifo.qcow2 file: not a regular file or block device",
			"error check fifo.qcow2: not a regular file or block device"}},
		{"none.qcow2", []string{"cannot_tell [1]", "blind none.qcow2 file: no such file or directory",
			"error check none.qcow2: no such file or directory"}},
		{"\xff.qcow2", []string{"found [3]", "\xff.qcow2 qcow2 found QC01"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, checkLines(t, dir, Options{}, filepath.Join(dir, tc.name))); diff != "" {
				t.Errorf("Run(%s) (-want +got):\n%s", tc.name, diff)
			}
		})
	}
	t.Run("a device", func(t *testing.T) {
		want := []string{"cannot_tell [1]", "blind /dev/zero file: not a regular file or block device",
			"error check /dev/zero: not a regular file or block device"}
		if diff := cmp.Diff(want, checkLines(t, dir, Options{}, "/dev/zero")); diff != "" {
			t.Errorf("Run(/dev/zero) (-want +got):\n%s", diff)
		}
	})
	t.Run("all at once", func(t *testing.T) {
		want := []string{"found [3 4]",
			"cut.qcow2 qcow2 found QC01", "empty.qcow2 - found QC01", "header.qcow2 qcow2 found QC01",
			"\xff.qcow2 qcow2 found QC01", "garbage.qcow2 - found QC01", "wiped.qcow2 qcow2 found QC13",
			"leak.qcow2 qcow2 found QC14", "a.vmdk vmdk cannot_tell",
			"feature.qcow2 qcow2 cannot_tell blind(image: not supported at 0x48: incompatible feature bits 0x20)",
			"clean.qcow2 qcow2 clean", "disk.raw raw clean", "table.qcow2 raw clean"}
		if diff := cmp.Diff(want, checkLines(t, dir, Options{}, dir)); diff != "" {
			t.Errorf("Run(dir) (-want +got):\n%s", diff)
		}
		rep, err := Run(t.Context(), []string{dir}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i := 1; i < len(rep.Images); i++ {
			if worstFirst(rep.Images[i-1], rep.Images[i]) > 0 {
				t.Errorf("%s stands before %s", rep.Images[i-1].Path, rep.Images[i].Path)
			}
		}
		s := rep.Summary
		if s.Images != 12 || s.Unchecked != 1 || s.Skipped != 3 || s.Links != 1 || s.Clean != 3 || s.LeakedBytes != 65536 {
			t.Errorf("Summary = %+v", s)
		}
		for _, img := range rep.Images {
			if (img.PathB64 != "") != strings.Contains(img.Path, "\xff") {
				t.Errorf("%q has PathB64 %q", img.Path, img.PathB64)
			}
		}
	})
}

func TestRunDirectory(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/pool/a.qcow2", small(""))
	makeImage(t, dir+"/pool/deep/er/without-suffix", leaking())
	makeImage(t, dir+"/outside/secret.qcow2", leaking())
	if err := os.Link(dir+"/pool/a.qcow2", dir+"/pool/hardlink"); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"out": "../outside", "loop": ".", "file": "../outside/secret.qcow2"} {
		if err := os.Symlink(target, dir+"/pool/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir+"/empty", 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/texts/a.txt", []byte("text"))
	leak := "pool/deep/er/without-suffix qcow2 found QC14"
	for _, tc := range []struct {
		name  string
		paths []string
		want  []string
	}{
		{"pool", []string{"pool"}, []string{"found [3]", leak, "pool/a.qcow2 qcow2 clean"}},
		{"overlapping", []string{"pool/deep", "pool", "pool/a.qcow2"}, []string{"found [3]", leak, "pool/a.qcow2 qcow2 clean"}},
		{"the name that was given stays", []string{"pool", "pool/hardlink"},
			[]string{"found [3]", leak, "pool/hardlink qcow2 clean"}},
		{"one is missing", []string{"pool/a.qcow2", "pool/none"},
			[]string{"cannot_tell [4]", "pool/a.qcow2 qcow2 clean", "blind pool/none file: no such file or directory"}},
		{"empty", []string{"empty"}, []string{"cannot_tell [1]", "error check empty: there is nothing in it"}},
		{"no images", []string{"texts"}, []string{"cannot_tell [1]", "error check texts: not a disk image (files looked at: 1)"}},
		{"two that fail", []string{"x", "y"}, []string{"cannot_tell [1]", "blind x file: no such file or directory",
			"blind y file: no such file or directory",
			"error check x: no such file or directory (and 1 more that could not be examined)"}},
		{"nothing", nil, []string{"cannot_tell [1]", "error check: no image was named"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var paths []string
			for _, p := range tc.paths {
				paths = append(paths, filepath.Join(dir, p))
			}
			if diff := cmp.Diff(tc.want, checkLines(t, dir, Options{}, paths...)); diff != "" {
				t.Errorf("Run(%v) (-want +got):\n%s", tc.paths, diff)
			}
		})
	}
}

func TestRunChains(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/base/base.qcow2", small(""))
	makeImage(t, dir+"/base/hurt.qcow2", leaking())
	writeFile(t, dir+"/base/disk.raw", mbr())
	writeFile(t, dir+"/base/empty.raw", nil)
	writeFile(t, dir+"/base/broken.qcow2", append([]byte("QFI\xfb\x00\x00\x00\x09"), make([]byte, 1000)...))
	if err := os.Mkdir(dir+"/base/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	overlay := func(name, backing, format string) {
		s := small(backing)
		if format != "" {
			s.BackingFormat = format
		}
		makeImage(t, dir+"/"+name, s)
	}
	overlay("vm/one.qcow2", "../base/base.qcow2", "")
	overlay("vm/two.qcow2", "../base/base.qcow2", "")
	overlay("vm/gone.qcow2", "../base/none.qcow2", "")
	overlay("vm/dir.qcow2", "../base/dir", "")
	overlay("vm/nbd.qcow2", "nbd://host/disk", "raw")
	overlay("vm/raw.qcow2", "../base/disk.raw", "")
	overlay("vm/empty.qcow2", "../base/empty.raw", "")
	overlay("vm/wrong.qcow2", "../base/base.qcow2", "raw")
	overlay("vm/worse.qcow2", "../base/disk.raw", "qcow2")
	overlay("vm/odd.qcow2", "../base/base.qcow2", "qcow9")
	overlay("ring/a.qcow2", "b.qcow2", "")
	overlay("ring/b.qcow2", "c.qcow2", "")
	overlay("ring/c.qcow2", "a.qcow2", "")
	overlay("ring/in.qcow2", "a.qcow2", "")
	overlay("ring/self.qcow2", "self.qcow2", "")
	overlay("far/hop.qcow2", "middle.qcow2", "")
	overlay("far/middle.qcow2", "../base/hurt.qcow2", "")
	for _, tc := range []struct {
		name  string
		paths []string
		opts  Options
		want  []string
	}{
		{"outside is not followed", []string{"vm/one.qcow2"}, Options{},
			[]string{"clean [0]", "vm/one.qcow2 qcow2 clean on base/base.qcow2:not_followed CH06(note)"}},
		{"follow", []string{"vm/one.qcow2"}, Options{Follow: true},
			[]string{"clean [0]", "base/base.qcow2 qcow2 clean", "vm/one.qcow2 qcow2 clean on base/base.qcow2:checked"}},
		{"pool", []string{"vm/one.qcow2"}, Options{Pools: []string{dir + "/base"}},
			[]string{"clean [0]", "base/base.qcow2 qcow2 clean", "vm/one.qcow2 qcow2 clean on base/base.qcow2:checked"}},
		{"shared base", []string{"vm/one.qcow2", "vm/two.qcow2", "base/base.qcow2"}, Options{},
			[]string{"clean [0]", "base/base.qcow2 qcow2 clean", "vm/one.qcow2 qcow2 clean on base/base.qcow2:checked",
				"vm/two.qcow2 qcow2 clean on base/base.qcow2:checked"}},
		{"missing", []string{"vm/gone.qcow2"}, Options{},
			[]string{"found [3]", "vm/gone.qcow2 qcow2 found on base/none.qcow2:missing CH01"}},
		{"directory", []string{"vm/dir.qcow2"}, Options{Follow: true},
			[]string{"found [3]", "vm/dir.qcow2 qcow2 found on base/dir:unreadable CH03"}},
		{"network", []string{"vm/nbd.qcow2"}, Options{Follow: true},
			[]string{"clean [0]", "vm/nbd.qcow2 qcow2 clean on :not_followed CH06(note)"}},
		{"raw base", []string{"vm/raw.qcow2"}, Options{Pools: []string{dir}},
			[]string{"clean [0]", "base/disk.raw raw clean", "vm/raw.qcow2 qcow2 clean on base/disk.raw:checked"}},
		{"empty base", []string{"vm/empty.qcow2"}, Options{Pools: []string{dir}},
			[]string{"found [3]", "vm/empty.qcow2 qcow2 found on base/empty.raw:checked CH03", "base/empty.raw raw clean"}},
		{"qcow2 as raw", []string{"vm/wrong.qcow2"}, Options{Pools: []string{dir}},
			[]string{"found [3]", "vm/wrong.qcow2 qcow2 found on base/base.qcow2:checked CH05", "base/base.qcow2 qcow2 clean"}},
		{"raw as qcow2", []string{"vm/worse.qcow2"}, Options{Pools: []string{dir}},
			[]string{"found [3]", "vm/worse.qcow2 qcow2 found on base/disk.raw:checked CH03", "base/disk.raw raw clean"}},
		{"unknown format", []string{"vm/odd.qcow2"}, Options{Pools: []string{dir}},
			[]string{"found [3]", "vm/odd.qcow2 qcow2 found on base/base.qcow2:checked CH05", "base/base.qcow2 qcow2 clean"}},
		{"circle", []string{"ring"}, Options{},
			[]string{"found [3]", "ring/a.qcow2 qcow2 found on ring/b.qcow2:loop CH02",
				"ring/b.qcow2 qcow2 found on ring/c.qcow2:loop CH02", "ring/c.qcow2 qcow2 found on ring/a.qcow2:loop CH02",
				"ring/in.qcow2 qcow2 found on ring/a.qcow2:checked CH02",
				"ring/self.qcow2 qcow2 found on ring/self.qcow2:loop CH02"}},
		{"circle from one", []string{"ring/in.qcow2"}, Options{},
			[]string{"found [3]", "ring/a.qcow2 qcow2 found on ring/b.qcow2:loop CH02",
				"ring/b.qcow2 qcow2 found on ring/c.qcow2:loop CH02", "ring/c.qcow2 qcow2 found on ring/a.qcow2:loop CH02",
				"ring/in.qcow2 qcow2 found on ring/a.qcow2:checked CH02"}},
		{"two steps", []string{"far/hop.qcow2"}, Options{Pools: []string{dir + "/base"}},
			[]string{"found [3]", "base/hurt.qcow2 qcow2 found QC14", "far/hop.qcow2 qcow2 clean on far/middle.qcow2:checked",
				"far/middle.qcow2 qcow2 clean on base/hurt.qcow2:checked"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var paths []string
			for _, p := range tc.paths {
				paths = append(paths, filepath.Join(dir, p))
			}
			if diff := cmp.Diff(tc.want, checkLines(t, dir, tc.opts, paths...)); diff != "" {
				t.Errorf("Run(%v) (-want +got):\n%s", tc.paths, diff)
			}
		})
	}
}

// A chain of 200 images is followed to its end, one beyond the bound is not.
func TestRunDeepChain(t *testing.T) {
	dir := t.TempDir()
	spec := small("")
	spec.VirtualBytes, spec.Fill = 1<<20, -1
	const n = 520
	for i := range n {
		s := spec
		if i > 0 {
			s.Backing, s.BackingFormat = fmt.Sprintf("%d.qcow2", i-1), "qcow2"
		}
		makeImage(t, fmt.Sprintf("%s/%d.qcow2", dir, i), s)
	}
	rep, err := Run(t.Context(), []string{dir + "/199.qcow2"}, Options{})
	if err != nil || len(rep.Images) != 200 || rep.Verdict != finding.Clean {
		t.Errorf("Run(200 deep) = %d images, %s, %v, want 200 clean", len(rep.Images), rep.Verdict, err)
	}
	for _, paths := range [][]string{{dir}, {fmt.Sprintf("%s/%d.qcow2", dir, n-1)}} {
		rep, err = Run(t.Context(), paths, Options{})
		var deep []string
		for _, img := range rep.Images {
			for _, f := range img.Findings {
				deep = append(deep, strings.TrimPrefix(img.Path, dir+"/")+" "+f.Code)
			}
		}
		if err != nil || len(deep) != 1 || !strings.HasSuffix(deep[0], "CH04") {
			t.Errorf("Run(%v) = %v, %v, want one CH04", paths, deep, err)
		}
	}
}

// Naming a directory opens no file of the kernel that a header below it names.
func TestRunKernelFiles(t *testing.T) {
	dir := t.TempDir()
	path := makeImage(t, dir+"/a.qcow2", small("/proc/version"))
	want := []string{"clean [0]", "a.qcow2 qcow2 clean on /proc/version:not_followed CH06(note)"}
	for _, opts := range []Options{{}, {Pools: []string{"/"}}, {Pools: []string{"/proc"}}} {
		if diff := cmp.Diff(want, checkLines(t, dir, opts, path)); diff != "" {
			t.Errorf("Run with the pools %v (-want +got):\n%s", opts.Pools, diff)
		}
	}
}

func TestRunDataFile(t *testing.T) {
	dir := t.TempDir()
	spec := func(name string) string {
		s := small("")
		s.DataFile = "data.raw"
		return makeImage(t, dir+"/"+name, s)
	}
	whole := spec("whole/a.qcow2")
	gone := spec("gone/a.qcow2")
	short := spec("short/a.qcow2")
	if err := os.Remove(dir + "/gone/data.raw"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dir+"/short/data.raw", 70000); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path string
		want []string
	}{
		{whole, []string{"clean [0]", "whole/a.qcow2 qcow2 clean"}},
		{gone, []string{"found [3]", "gone/a.qcow2 qcow2 found QC20"}},
		{short, []string{"found [3]", "short/a.qcow2 qcow2 found QC20"}},
	} {
		if diff := cmp.Diff(tc.want, checkLines(t, dir, Options{}, tc.path)); diff != "" {
			t.Errorf("Run(%s) (-want +got):\n%s", tc.path, diff)
		}
	}
}

// Ten thousand files that are no images are each opened once and read little of.
func TestRunManyFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range 10000 {
		if err := os.WriteFile(fmt.Sprintf("%s/%d.log", dir, i), []byte("not a disk at all\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	makeImage(t, dir+"/a.qcow2", small(""))
	r := newRunner(Options{})
	var opened, reads atomic.Int64
	r.reader = func(f *diskio.File) io.ReaderAt {
		if strings.HasSuffix(f.Name(), ".log") {
			opened.Add(1)
			return storage{f, func(int64) error { reads.Add(1); return nil }}
		}
		return f
	}
	rep, err := r.whole(t.Context(), []string{dir})
	if err != nil || len(rep.Images) != 1 || rep.Summary.Skipped != 10000 {
		t.Errorf("Run = %d images, %d skipped, %v, want 1, 10000", len(rep.Images), rep.Summary.Skipped, err)
	}
	if opened.Load() != 10000 || reads.Load() > 3*10000 {
		t.Errorf("10000 files were opened %d times and read %d times, want once each, and 3 reads at most",
			opened.Load(), reads.Load())
	}
}

func TestRunStops(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/a.qcow2", small(""))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rep, err := Run(ctx, []string{dir}, Options{})
	if !errors.Is(err, context.Canceled) || rep.Status[0] != finding.StatusInterrupted || rep.Verdict == finding.Clean {
		t.Errorf("Run after cancel = %v, %s, %v", rep.Status, rep.Verdict, err)
	}
	// In the middle: the progress of the first image stops the run.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	_, err = Run(ctx, []string{dir}, Options{Progress: func(p Progress) {
		if p.Bytes > 0 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want %v", err, context.Canceled)
	}
}

func TestRunProgress(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		makeImage(t, fmt.Sprintf("%s/%d.qcow2", dir, i), small(""))
	}
	var last Progress
	var mu = make(chan struct{}, 1)
	_, err := Run(t.Context(), []string{dir}, Options{Progress: func(p Progress) {
		mu <- struct{}{}
		if p.ImagesDone > last.ImagesDone || p.BytesDone > last.BytesDone {
			last = p
		}
		<-mu
	}})
	if err != nil || last.Images != 5 || last.ImagesDone != 5 || last.Bytes == 0 || last.BytesDone != last.Bytes {
		t.Errorf("Progress ends at %+v, %v, want all of 5 images", last, err)
	}
}

// An interrupted run lists all that applies, what was found before as well.
func TestRunStopsAfterFinding(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/a.qcow2", leaking())
	makeImage(t, dir+"/b.qcow2", small(""))
	for i := range 20 {
		makeImage(t, fmt.Sprintf("%s/over-%d.qcow2", dir, i), small("b.qcow2"))
	}
	writeFile(t, dir+"/gone.qcow2", nil) // found when it is looked at first
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rep, err := Run(ctx, []string{dir}, Options{Progress: func(p Progress) {
		if p.Bytes > 0 {
			cancel()
		}
	}})
	want := []int{finding.StatusInterrupted, finding.StatusFound, finding.StatusCannotTell}
	if !errors.Is(err, context.Canceled) || !cmp.Equal(rep.Status, want) || rep.Verdict != finding.Found {
		t.Errorf("Run stopped in the middle = %v %s, %v, want %v found", rep.Status, rep.Verdict, err, want)
	}
}

// A header that names a file below a directory whose name is exchanged for a symbolic link after it
// was judged does not lead out.
func TestRunTurnedLink(t *testing.T) {
	dir := testenv.DiskDir(t)
	base := makeImage(t, dir+"/pool/sub/base.qcow2", small(""))
	st, err := diskio.Look(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub", dir+"/pool/turned"); err != nil {
		t.Fatal(err)
	}
	r := newRunner(Options{})
	c := candidate{path: dir + "/pool/turned/base.qcow2", id: st.ID, named: true, depth: 1}
	if err := r.probe(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got := show(r.report(nil), dir)[1]
	want := "pool/turned/base.qcow2 - cannot_tell blind(file: was replaced while it was being opened)"
	if got != want {
		t.Errorf("probe through a link = %s\nwant %s", got, want)
	}
}

// Whoever may not read a file is told so, and never that it is clean.
func TestRunUnreadable(t *testing.T) {
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	makeImage(t, dir+"/a.qcow2", small(""))
	makeImage(t, dir+"/closed.qcow2", small(""))
	makeImage(t, dir+"/base/base.qcow2", small(""))
	makeImage(t, dir+"/over.qcow2", small("base/base.qcow2"))
	writeFile(t, dir+"/unknown", []byte("x"))
	for _, p := range []string{"closed.qcow2", "unknown", "base"} {
		if err := os.Chmod(dir+"/"+p, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	asNobody(t, func() {
		want := []string{"cannot_tell [4]",
			"closed.qcow2 - cannot_tell blind(file: permission denied)",
			"over.qcow2 qcow2 cannot_tell on base/base.qcow2:unreadable blind(backing file: base/base.qcow2: permission denied)",
			"a.qcow2 qcow2 clean",
			"blind base directory: permission denied",
			"blind unknown file: permission denied"}
		if diff := cmp.Diff(want, checkLines(t, dir, Options{}, dir)); diff != "" {
			t.Errorf("Run as nobody (-want +got):\n%s", diff)
		}
		want = []string{"cannot_tell [1]", "closed.qcow2 - cannot_tell blind(file: permission denied)",
			"error check closed.qcow2: permission denied"}
		if diff := cmp.Diff(want, checkLines(t, dir, Options{}, dir+"/closed.qcow2")); diff != "" {
			t.Errorf("Run as nobody (-want +got):\n%s", diff)
		}
	})
	for _, p := range []string{"closed.qcow2", "unknown", "base"} {
		if err := os.Chmod(dir+"/"+p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// asNobody runs fn with the file permissions of another user.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	const nobody = 65534
	if err := unix.Setresuid(-1, nobody, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Setresuid(-1, 0, 0)
	fn()
}

// A file that becomes another one between two looks is never taken for the first.
func TestRunReplaced(t *testing.T) {
	dir := t.TempDir()
	path := makeImage(t, dir+"/a.qcow2", small(""))
	other := makeImage(t, dir+"/b.qcow2", small(""))
	st, err := diskio.Look(other)
	if err != nil {
		t.Fatal(err)
	}
	r := newRunner(Options{})
	if err := r.probe(t.Context(), candidate{path: path, id: st.ID}); err != nil {
		t.Fatal(err)
	}
	got := show(r.report([]string{path}), dir)
	want := []string{"cannot_tell [4]", "a.qcow2 - cannot_tell blind(file: was replaced while it was being opened)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("probe of a replaced file (-want +got):\n%s", diff)
	}
}

// The same files give the same report, whoever is faster.
func TestRunIsRepeatable(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/base.qcow2", small(""))
	for i := range 12 {
		s := small("")
		if i%3 == 0 {
			s = small("base.qcow2")
		}
		s.TailLeaks = int64(i % 4)
		makeImage(t, fmt.Sprintf("%s/%d.qcow2", dir, i), s)
		if err := os.Link(fmt.Sprintf("%s/%d.qcow2", dir, i), fmt.Sprintf("%s/%d.link", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	root := t.TempDir() // the processes of this machine come and go
	if err := os.MkdirAll(root+"/proc/1/fd", 0o755); err != nil {
		t.Fatal(err)
	}
	first, err := Run(t.Context(), []string{dir}, Options{Workers: 1, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		again, err := Run(t.Context(), []string{dir}, Options{Workers: 8, Root: root})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, again); diff != "" {
			t.Fatalf("Run again (-first +again):\n%s", diff)
		}
	}
}
