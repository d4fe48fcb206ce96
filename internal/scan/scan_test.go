// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package scan

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func put(t *testing.T, path string, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func makeImage(t *testing.T, path, backing string, leaks int64, faults ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	s := lab.Spec{VirtualBytes: 64 << 20, Fill: .2, Seed: 7, TailLeaks: leaks, Backing: backing}
	if backing != "" {
		s.BackingFormat = "qcow2"
	}
	if err := lab.Write(path, s); err != nil {
		t.Fatal(err)
	}
	for _, f := range lab.Faults() {
		for _, name := range faults {
			if f.Name != name {
				continue
			}
			if _, err := f.Apply(path, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	diskio.RequireUnchanged(t, path)
}

// show gives a report as lines.
func show(rep *Report, dir string) []string {
	cut := func(s string) string { return strings.ReplaceAll(s, dir+"/", "") }
	lines := []string{fmt.Sprintf("%s %v", rep.Verdict, rep.Status)}
	for _, c := range rep.Causes {
		codes := ""
		for _, f := range c.Symptoms {
			codes += " " + f.Code
		}
		lines = append(lines, cut(fmt.Sprintf("%s %v affects %v machines %v explains [%s]", c.Code, c.Objects, c.Affects,
			c.Machines, strings.TrimSpace(codes))))
	}
	for _, b := range rep.NotLookedAt {
		lines = append(lines, cut(fmt.Sprintf("not looked at: %s (%s): %s", b.Object, b.What, b.Reason)))
	}
	return lines
}

func TestRunPaths(t *testing.T) {
	dir := t.TempDir()
	makeImage(t, dir+"/sound.qcow2", "", 0)
	makeImage(t, dir+"/leak1.qcow2", "", 1)
	makeImage(t, dir+"/leak2.qcow2", "sound.qcow2", 3)
	makeImage(t, dir+"/base.qcow2", "", 0, "refcount-zero")
	makeImage(t, dir+"/over.qcow2", "base.qcow2", 0, "l1-reserved")
	makeImage(t, dir+"/top.qcow2", "over.qcow2", 0)
	makeImage(t, dir+"/gone1.qcow2", "none.qcow2", 0)
	makeImage(t, dir+"/sub/gone2.qcow2", "../none.qcow2", 0)
	makeImage(t, dir+"/ring1.qcow2", "ring2.qcow2", 0)
	makeImage(t, dir+"/ring2.qcow2", "ring1.qcow2", 0)
	makeImage(t, dir+"/onheader.qcow2", "header.qcow2", 0)
	put(t, dir+"/header.qcow2", "QFI\xfb\x00\x00\x00\x03"+strings.Repeat("\x00", 1000))
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(dir+"/header.qcow2", old, old); err != nil {
		t.Fatal(err)
	}
	makeImage(t, dir+"/far.qcow2", "/elsewhere/base.qcow2", 0)
	rep, err := Run(t.Context(), []string{dir}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"found [3]",
		"CH01 [none.qcow2] affects [gone1.qcow2 sub/gone2.qcow2] machines [] explains []",
		"CH01 [/elsewhere/base.qcow2] affects [far.qcow2] machines [] explains []",
		"QC01 [header.qcow2] affects [onheader.qcow2] machines [] explains [CH03]",
		"CH02 [ring1.qcow2 ring2.qcow2] affects [] machines [] explains []",
		"QC04 [base.qcow2] affects [over.qcow2 top.qcow2] machines [] explains [QC05]",
		"QC09 [over.qcow2] affects [top.qcow2] machines [] explains []",
		"QC14 [leak1.qcow2 leak2.qcow2] affects [] machines [] explains []",
	}
	got := show(rep, dir)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
	leaks := rep.Causes[len(rep.Causes)-1]
	if want := "leaked clusters at the end, left by a crash: 4 clusters (262144 bytes) in 2 images; nothing shows that data is lost"; leaks.Summary != want {
		t.Errorf("Summary = %q, want %q", leaks.Summary, want)
	}
	if len(rep.Edges) != 9 || rep.Edges[0].State != check.BackingMissing || len(rep.Images) != 13 {
		t.Errorf("%d edges, %d images, first %+v", len(rep.Edges), len(rep.Images), rep.Edges[0])
	}
}

// The world of the demo is told by its causes.
func TestRunWorld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "world")
	if _, err := lab.NewWorld(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	rep, err := Run(t.Context(), []string{dir}, Options{Check: check.Options{Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}})
	if err != nil || rep.Verdict != finding.Found {
		t.Fatalf("Run = %s, %v, want found", rep.Verdict, err)
	}
	last := rep.Causes[len(rep.Causes)-1]
	if last.Severity != finding.Waste || rep.Causes[0].Severity != finding.Lost {
		t.Errorf("Run = %s\nwant lost data first and leaks last", strings.Join(show(rep, dir), "\n"))
	}
}

func TestRunFails(t *testing.T) {
	dir := t.TempDir()
	rep, err := Run(t.Context(), []string{dir + "/none"}, Options{})
	if err == nil || rep.Status[0] != finding.StatusFailed {
		t.Errorf("Run(missing) = %v, %v, want an error and [1]", rep.Status, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, paths := range [][]string{nil, {dir}} {
		rep, err = Run(ctx, paths, Options{})
		if !errors.Is(err, context.Canceled) || rep.Status[0] != finding.StatusInterrupted {
			t.Errorf("Run(%v) after cancel = %v, %v, want [130] and %v", paths, rep.Status, err, context.Canceled)
		}
	}
}

// bare is a host without machines that lets everything be seen.
func bare(t *testing.T) string {
	root := t.TempDir()
	put(t, root+"/proc/1/comm", "init\n")
	if err := os.MkdirAll(root+"/proc/1/fd", 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestRunHost(t *testing.T) {
	root := bare(t)
	opts := Options{Check: check.Options{Root: root}}
	rep, err := Run(t.Context(), nil, opts)
	if err != nil || rep.Verdict != finding.Clean || len(rep.Places) < 10 {
		t.Fatalf("Run on a host without machines = %s, %v, %v", strings.Join(show(rep, root), "\n"), len(rep.Places), err)
	}
	put(t, root+"/etc/libvirt/storage/vms.xml", "<pool type='dir'><name>vms</name><target><path>/pool</path></target></pool>")
	put(t, root+"/etc/libvirt/storage/ceph.xml", "<pool type='rbd'><name>ceph</name></pool>")
	put(t, root+"/etc/libvirt/qemu/web.xml", "<domain><name>web</name><devices><disk device='disk'>"+
		"<source file='/srv/web.qcow2'/><target dev='vda'/></disk></devices></domain>")
	makeImage(t, root+"/base/debian.qcow2", "", 0, "refcount-zero")
	makeImage(t, root+"/srv/web.qcow2", root+"/pool/middle.qcow2", 0)
	makeImage(t, root+"/pool/middle.qcow2", root+"/base/debian.qcow2", 0)
	makeImage(t, root+"/var/lib/nova/instances/1/disk", root+"/var/lib/nova/instances/_base/gone", 0)
	makeImage(t, root+"/run/open.qcow2", "", 2)
	put(t, root+"/proc/17/comm", "qemu-system-x86\n")
	put(t, root+"/proc/17/cmdline", "qemu-system-x86_64\x00-name\x00mail\x00")
	put(t, root+"/proc/17/fdinfo/5", "flags:\t02\n")
	put(t, root+"/proc/17/fdinfo/6", "flags:\t02\n")
	put(t, root+"/proc/17/fdinfo/7", "flags:\t02\n")
	put(t, root+"/run/log", "a log")
	if err := syscall.Mkfifo(root+"/run/monitor", 0o600); err != nil { // no disk, as a device for vfio is none
		t.Fatal(err)
	}
	for fd, target := range map[string]string{"5": "/run/open.qcow2", "6": "/run/log", "7": "/run/monitor"} {
		if err := os.MkdirAll(root+"/proc/17/fd", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, root+"/proc/17/fd/"+fd); err != nil {
			t.Fatal(err)
		}
	}
	rep, err = Run(t.Context(), nil, opts)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"found [3 4]",
		"CH01 [var/lib/nova/instances/_base/gone] affects [var/lib/nova/instances/1/disk] machines [] explains []",
		"QC14 [run/open.qcow2] affects [] machines [mail] explains []",
		"not looked at: base/debian.qcow2 (backing file): it is outside the directories that were named",
		`not looked at: ceph (storage pool "ceph" of libvirt (rbd)): is not made of files of this host, so it was not looked at`,
	}
	if diff := cmp.Diff(want, show(rep, root)); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
	opts.Check.Follow = true
	if rep, err = Run(t.Context(), nil, opts); err != nil {
		t.Fatal(err)
	}
	want = []string{"found [3 4]", want[1],
		"QC04 [base/debian.qcow2] affects [pool/middle.qcow2 srv/web.qcow2] machines [web] explains [QC05]", want[2], want[4]}
	if diff := cmp.Diff(want, show(rep, root)); diff != "" {
		t.Errorf("Run with follow (-want +got):\n%s", diff)
	}
	for _, p := range rep.Places {
		if strings.HasSuffix(p.Path, "/run/log") {
			t.Errorf("a log is listed as a place: %+v", p)
		}
	}
}

// An image that was removed while its machine runs is examined through the machine.
func TestRunRemoved(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(testenv.DiskDir(t), "a.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	cmd := exec.Command("qemu-io", "-f", "qcow2", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		cmd.Wait()
	}()
	fmt.Fprintln(in, "length")
	for s := bufio.NewScanner(out); s.Scan() && !strings.Contains(s.Text(), "MiB"); {
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	rep, err := Run(t.Context(), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	through := fmt.Sprintf("/proc/%d/fd/", cmd.Process.Pid)
	for _, img := range rep.Images {
		if strings.HasPrefix(img.Path, through) && img.Verdict == finding.Clean && img.Use.State == check.UseWrite {
			for _, p := range rep.Places {
				if p.Path == img.Path && strings.Contains(p.Why, "was removed") {
					return
				}
			}
		}
	}
	t.Errorf("Run = %d images, places %+v, want %s", len(rep.Images), rep.Places, through)
}

func TestCauses(t *testing.T) {
	mk := func(code string, sev finding.Severity, object string, depends ...string) finding.Finding {
		f := finding.New(finding.Rule{Code: code, Severity: sev}, object, finding.Sure, "k", code+" of "+object)
		f.DependsOn = depends
		return f
	}
	image := func(path string, fs ...finding.Finding) check.Image {
		return check.Image{Path: path, Findings: fs}
	}
	for _, tc := range []struct {
		name   string
		images []check.Image
		edges  []Edge
		want   []string
	}{
		{"nothing", []check.Image{image("a")}, nil, []string{}},
		{"a note is no cause", []check.Image{image("a", mk("X1", finding.Note, "a"))}, nil, []string{}},
		{"symptom", []check.Image{image("a", mk("X1", finding.Lost, "a"), mk("X2", finding.Danger, "a", "X1"))}, nil,
			[]string{"X1 [a] [] 1"}},
		{"symptom of a symptom", []check.Image{image("a", mk("X1", finding.Lost, "a"), mk("X2", finding.Danger, "a", "X1"),
			mk("X3", finding.Lost, "a", "X2"))}, nil, []string{"X1 [a] [] 2"}},
		{"they explain each other", []check.Image{image("a", mk("X1", finding.Lost, "a", "X2"), mk("X2", finding.Danger, "a", "X1"))},
			nil, []string{"X1 [a] [] 0", "X2 [a] [] 0"}},
		{"explained by what is not there", []check.Image{image("a", mk("X2", finding.Danger, "a", "X1"))}, nil, []string{"X2 [a] [] 0"}},
		{"explained by a note", []check.Image{image("a", mk("X1", finding.Note, "a"), mk("X2", finding.Danger, "a", "X1"))},
			nil, []string{"X2 [a] [] 0"}},
		{"a base before its overlay", []check.Image{image("o", mk("X1", finding.Lost, "o")), image("b", mk("X2", finding.Danger, "b")),
			image("z", mk("X1", finding.Lost, "z"))}, []Edge{{From: "o", To: "b"}},
			[]string{"X2 [b] [o] 0", "X1 [o] [] 0", "X1 [z] [] 0"}},
		{"waste does not come forward", []check.Image{image("o", mk("X1", finding.Lost, "o")), image("b", mk("X2", finding.Waste, "b"))},
			[]Edge{{From: "o", To: "b"}}, []string{"X1 [o] [] 0", "X2 [b] [] 0"}},
		{"a ring", []check.Image{image("a", mk("CH02", finding.Lost, "a")), image("b", mk("CH02", finding.Lost, "b")),
			image("c", mk("CH02", finding.Lost, "c"))}, []Edge{{From: "a", To: "b"}, {From: "b", To: "a"}, {From: "c", To: "a"}},
			[]string{"CH02 [a b c] [] 0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := []string{}
			for _, c := range causes(t.Context(), tc.images, tc.edges, []hypervisor.Place{}, nil) {
				got = append(got, fmt.Sprintf("%s %v %v %d", c.Code, c.Objects, c.Affects, len(c.Symptoms)))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("causes (-want +got):\n%s", diff)
			}
		})
	}
}

// Twice as many overlays on one hurt base take about twice the memory, not four times.
func TestManyCauses(t *testing.T) {
	var taken [2]uint64
	for i, n := range []int{5000, 10000} {
		images, edges := overlays(n)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got := causes(t.Context(), images, edges, nil, nil)
		runtime.ReadMemStats(&after)
		taken[i] = after.TotalAlloc - before.TotalAlloc
		if len(got) != n+2 || got[0].Objects[0] != "base" || len(got[0].Affects) != n {
			t.Errorf("causes of %d overlays = %d, first %v, want %d, first the base", n, len(got), got[0].Objects, n+2)
		}
	}
	if taken[1] > 3*taken[0] {
		t.Errorf("causes takes %d bytes for 5000 overlays and %d for 10000", taken[0], taken[1])
	}
}

// overlays are a hurt base and n hurt overlays of it.
func overlays(n int) ([]check.Image, []Edge) {
	leak := finding.New(finding.QC03, "", finding.Sure, "leaked", "leak")
	images, edges := []check.Image{{Path: "base", Findings: []finding.Finding{finding.New(finding.QC04, "base", finding.Sure, "guest_data", "x")}}}, []Edge{}
	for i := range n {
		path := fmt.Sprint(i)
		images = append(images, check.Image{Path: path, Findings: []finding.Finding{leak, finding.New(finding.QC06, path, finding.Sure, "shared_clusters", "x")}})
		edges = append(edges, Edge{From: path, To: "base"})
	}
	return images, edges
}
