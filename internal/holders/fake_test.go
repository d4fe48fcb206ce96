// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// fakeKernel answers from lists.
type fakeKernel struct {
	mounts []probe.Mount
	refs   []probe.Reference
	// counts are what the counter of mount 40 says at each look; the last stays.
	counts []int64
	fails  error
	// uncounted: there are no counters; unread is what the references lack.
	uncounted error
	unread    []probe.Unread
	frozen    bool
}

func (k *fakeKernel) Mount(_ context.Context, id int) (probe.Mount, error) {
	for _, m := range k.mounts {
		if m.ID == id {
			return m, k.fails
		}
	}
	return probe.Mount{}, fs.ErrNotExist
}

func (k *fakeKernel) Supers(context.Context, uint64) ([]probe.Super, error) {
	return []probe.Super{{Addr: 9, Frozen: k.frozen}}, k.fails
}

func (k *fakeKernel) MountsOf(context.Context, uint64) ([]probe.Mount, error) {
	all := slices.Clone(k.mounts)
	if len(k.counts) > 0 {
		all[0].Count = k.counts[0]
		if len(k.counts) > 1 {
			k.counts = k.counts[1:]
		}
	}
	return all, k.fails
}

func (k *fakeKernel) References(context.Context, uint64, ...uint64) ([]probe.Reference, error) {
	if k.fails == nil && len(k.unread) > 0 {
		return k.refs, &probe.Incomplete{Unread: k.unread}
	}
	return k.refs, k.fails
}

func (k *fakeKernel) Uncounted() error { return k.uncounted }

// world is a host of three processes, whose /proc is below a new directory: 10 is alone in namespace
// 100, 11 and this program (99) are in 200. A file system is mounted on /mnt, and in the other namespace
// there is a copy that an umount goes to.
func world(t *testing.T, more map[string]string) *linux.Host {
	t.Helper()
	const own = `20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
40 20 7:3 / /mnt rw shared:2 - ext4 /dev/loop3 rw
`
	files := map[string]string{
		"proc/self/mountinfo": own, "proc/99/mountinfo": own, "proc/11/mountinfo": own,
		"proc/10/mountinfo": "120 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n" +
			"140 120 7:3 / /mnt rw shared:2 - ext4 /dev/loop3 rw\n",
		"sys/block/": "",
	}
	for pid, ns := range map[string]string{"10": "100", "11": "200", "99": "200"} {
		dir := "proc/" + pid + "/"
		files[dir+"root"] = "->/"
		files[dir+"comm"] = "p" + pid + "\n"
		files[dir+"cmdline"] = "p" + pid + "\x00"
		files[dir+"stat"] = pid + " (p) S 1 1 1 0 -1 0 0"
		files[dir+"status"] = "Uid:\t0\t5\t0\t0\n"
		files[dir+"cgroup"] = "0::/system.slice/u" + pid + ".service\n"
		files[dir+"net/unix"] = ""
		files[dir+"ns/mnt"] = "->mnt:[" + ns + "]"
		task := dir + "task/" + pid + "/"
		files[task+"ns/mnt"], files[task+"ns/net"] = "->mnt:["+ns+"]", "->net:[300]"
		files[task+"fd/0"], files[task+"cwd"], files[task+"root"] = "->/dev/null", "->/", "->/"
		files[task+"fdinfo/0"] = "mnt_id:\t5\n"
	}
	for name, text := range more {
		files[name] = text
	}
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		target, link := strings.CutPrefix(text, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			err = errors.Join(err, os.MkdirAll(path, 0o755))
		case link:
			err = errors.Join(err, os.Symlink(target, path))
		default:
			err = errors.Join(err, os.WriteFile(path, []byte(text), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return linux.Open(root)
}

// The mounts of world as the kernel has them.
func kernelMounts(count, copies int64) []probe.Mount {
	return []probe.Mount{
		{Addr: 0x40, Super: 9, ID: 40, Count: count, Baseline: 1, Namespace: 200, Root: "/", Group: 2, ParentGroup: 1,
			PointAddr: 7},
		{Addr: 0x140, Super: 9, ID: 140, Count: copies, Baseline: 1, Namespace: 100, Root: "/", Group: 2,
			ParentGroup: 1, PointAddr: 7},
	}
}

// based sets what the first counts when nobody uses it.
func based(m []probe.Mount, baseline int64) []probe.Mount {
	m[0].Baseline = baseline
	return m
}

func TestAudit(t *testing.T) {
	file := func(pid, fd int, holder, mount uint64) probe.Reference {
		return probe.Reference{Kind: probe.OpenFD, Count: 1, PID: pid, TID: pid, FD: fd, Holder: holder, Mount: mount, Path: "/mnt/a"}
	}
	nestedMount := map[string]string{"proc/self/mountinfo": `20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
40 20 7:3 / /mnt rw shared:2 - ext4 /dev/loop3 rw
41 40 0:9 / /mnt/x rw - tmpfs tmpfs rw
`}
	for _, tc := range []struct {
		name   string
		kernel fakeKernel
		more   map[string]string
		want   string // verdict, status, count, explained, unexplained, own
		list   []string
	}{
		{"free", fakeKernel{mounts: kernelMounts(1, 1)}, nil, "free [0] 1 0 0 0", nil},
		{"one", fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{file(11, 3, 1, 0x40)}}, nil,
			"busy [3] 2 1 0 0", []string{"open_fd 11 3 [] 1 umount /mnt/a"}},
		{"an open file of two processes and three descriptors",
			fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{file(11, 7, 1, 0x40), file(10, 3, 1, 0x40), file(11, 3, 1, 0x40)}},
			nil, "busy [3] 2 1 0 0", []string{"open_fd 10 3 [] 1 umount /mnt/a", "open_fd 11 3 [7] 0 umount /mnt/a"}},
		{"both directories of a process", fakeKernel{mounts: kernelMounts(3, 1), refs: []probe.Reference{
			{Kind: probe.Cwd, PID: 11, FD: -1, Holder: 5, Mount: 0x40, Count: 1, Path: "/mnt"},
			{Kind: probe.Root, PID: 11, FD: -1, Holder: 6, Mount: 0x40, Count: 1, Path: "/mnt"}}},
			nil, "busy [3] 3 2 0 0", []string{"cwd 11 -1 [] 1 umount /mnt", "root 11 -1 [] 1 umount /mnt"}},
		{"a program and its mapping", fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{
			{Kind: probe.Mapping, PID: 11, FD: -1, Holder: 5, Mount: 0x40, Count: 1},
			{Kind: probe.Exe, PID: 11, FD: -1, Holder: 5, Mount: 0x40, Count: 1}}},
			nil, "busy [3] 2 1 0 0", []string{"exe 11 -1 [] 1 umount "}},
		{"one unexplained", fakeKernel{mounts: kernelMounts(2, 1)}, nil, "unknown [4] 2 0 1 0", nil},
		{"one of two unexplained", fakeKernel{mounts: kernelMounts(3, 1), refs: []probe.Reference{file(11, 3, 1, 0x40)}}, nil,
			"busy [3 4] 3 1 1 0", []string{"open_fd 11 3 [] 1 umount /mnt/a"}},
		{"this process alone", fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{file(99, 3, 1, 0x40)}}, nil,
			"free [0] 2 0 0 1", nil},
		{"this process and another", fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{file(99, 3, 1, 0x40), file(11, 0, 1, 0x40)}},
			nil, "busy [3] 2 1 0 0", []string{"open_fd 11 0 [] 1 umount /mnt/a"}},
		{"a copy", fakeKernel{mounts: kernelMounts(1, 2), refs: []probe.Reference{file(10, 3, 1, 0x140)}}, nil, "busy_peer [3] 1 0 0 0",
			[]string{"open_fd 10 3 [] 1 umount /mnt/a", "peer 10 -1 [] 0 umount /mnt"}},
		{"a copy, unexplained", fakeKernel{mounts: kernelMounts(1, 2)}, nil, "busy_peer [3 4] 1 0 0 0",
			[]string{"peer 10 -1 [] 1 umount /mnt"}},
		{"gone at the second look", fakeKernel{mounts: kernelMounts(1, 1), counts: []int64{2, 1, 1}}, nil, "free [0] 1 0 0 0", nil},
		{"moves at each look", fakeKernel{mounts: kernelMounts(1, 1), counts: []int64{2, 1, 2, 1, 2, 3}}, nil,
			"unknown [4] 3 0 2 0", nil},
		{"dropped at each look", fakeKernel{mounts: kernelMounts(1, 1), refs: []probe.Reference{file(11, 3, 1, 0x40)}}, nil,
			"busy [3 4] 1 1 -1 0", []string{"open_fd 11 3 [] 1 umount /mnt/a"}},
		{"nested, since Linux 6.17", fakeKernel{mounts: kernelMounts(1, 1)}, nestedMount,
			"nested [3] 1 0 0 0", []string{"nested_mount 0 -1 [] 0 umount /mnt/x"}},
		{"nested, before that", fakeKernel{mounts: based(kernelMounts(2, 1), 2)}, nestedMount,
			"nested [3] 2 0 0 0", []string{"nested_mount 0 -1 [] 0 umount /mnt/x"}},
		{"no counters", fakeKernel{mounts: kernelMounts(0, 0), uncounted: unix.ENOSYS}, nil, "unknown [4] 0 0 0 0", nil},
		{"part of the lists", fakeKernel{mounts: kernelMounts(2, 1), unread: []probe.Unread{{PID: 11}}}, nil,
			"unknown [4] 2 0 1 0", nil},
		{"a loop device, swap and an interpreter", fakeKernel{mounts: kernelMounts(4, 1)}, map[string]string{
			"sys/block/loop7/loop/backing_file": "/mnt/i\n", "proc/swaps": "/mnt/s file 1 1 1\n",
			"proc/self/mountinfo": "20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n40 20 7:3 / /mnt rw shared:2 - ext4 /dev/loop3 rw\n" +
				"44 20 0:8 / /bm rw - binfmt_misc none rw\n",
			"bm/status": "enabled\n", "bm/arm": "enabled\ninterpreter /mnt/q\nflags: F\n"},
			"busy [3] 4 3 0 0", []string{"loop 0 -1 [] 1 umount /mnt/i", "swap 0 -1 [] 1 umount /mnt/s", "binfmt_misc 0 -1 [] 1 umount /mnt/q"}},
		{"a loop device that shares its file", fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{
			{Kind: probe.OpenFD, PID: 11, FD: 3, Holder: 1, Mount: 0x40, Count: 1, Path: "/mnt/i"}}},
			map[string]string{"sys/block/loop7/loop/backing_file": "/mnt/i\n"}, "busy [3] 2 1 0 0",
			[]string{"open_fd 11 3 [] 1 umount /mnt/i", "loop 0 -1 [] 0 umount /mnt/i"}},
		{"a loop device with a file of its own", fakeKernel{mounts: kernelMounts(3, 1), refs: []probe.Reference{
			{Kind: probe.OpenFD, PID: 11, FD: 3, Holder: 1, Mount: 0x40, Count: 1, Path: "/mnt/i"}}},
			map[string]string{"sys/block/loop7/loop/backing_file": "/mnt/i\n"}, "busy [3] 3 2 0 0",
			[]string{"open_fd 11 3 [] 1 umount /mnt/i", "loop 0 -1 [] 1 umount /mnt/i"}},
		{"the lists fail", fakeKernel{mounts: kernelMounts(1, 1), fails: unix.EPERM}, nil, "unknown [4] 0 0 0 0",
			nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := Host{Linux: world(t, tc.more), Kernel: &tc.kernel, Self: 99}
			target, err := Resolve(t.Context(), h, "/mnt")
			if err != nil {
				t.Fatal(err)
			}
			r, err := Scan(t.Context(), h, target, Options{})
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%s %v %d %d %d %d", r.Verdict, r.Status, r.Audit.Count, r.Audit.Explained,
				r.Audit.Unexplained, r.Audit.Own)
			var list []string
			for _, o := range r.Holders {
				list = append(list, fmt.Sprintf("%s %d %d %v %d %s %s", o.Kind, o.Process.PID, o.FD, o.AlsoFDs, o.References,
					o.Blocks, o.Path))
			}
			if tc.name == "the lists fail" {
				list = slices.DeleteFunc(list, func(s string) bool { return strings.HasPrefix(s, "namespace") })
			}
			if diff := cmp.Diff(tc.list, list); diff != "" || got != tc.want {
				t.Errorf("Scan = %s, want %s; holders (-want +got):\n%s", got, tc.want, diff)
			}
		})
	}
}

// What only pins the file system is told, and counts where that is asked for.
func TestPins(t *testing.T) {
	k := &fakeKernel{mounts: append(kernelMounts(1, 1),
		probe.Mount{Addr: 0x50, Super: 9, ID: 50, Count: 2, Root: "/"},
		probe.Mount{Addr: 0x51, Super: 9, ID: 51, Count: 1, Root: "/l", Internal: true},
		probe.Mount{Addr: 0x52, Super: 9, ID: 52, Count: 1, Root: "/", Namespace: 400, Master: 7}), frozen: true}
	h := Host{Linux: world(t, nil), Kernel: k, Self: 99}
	target, err := Resolve(t.Context(), h, "/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for _, all := range []bool{false, true} {
		r, err := Scan(t.Context(), h, target, Options{AllSuperblock: all})
		if err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for _, o := range r.Holders {
			kinds = append(kinds, fmt.Sprintf("%s %d %s", o.Kind, o.MountID, o.Blocks))
		}
		want := []string{"frozen 0 superblock", "namespace 52 superblock", "detached_mount 50 superblock"}
		status := map[bool]int{true: 3}[all]
		if diff := cmp.Diff(want, kinds); diff != "" || r.Verdict != Pinned || r.Status[0] != status || len(r.Notes) != 1 {
			t.Errorf("Scan(all: %t) = %s %v (-want +got):\n%s", all, r.Verdict, r.Status, diff)
		}
	}
}

// The layers of an overlay are named as the one saw them who mounted it: not as a container does, and
// perhaps from a directory that is not known.
func TestOverlays(t *testing.T) {
	const own = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 20 7:3 / /mnt rw - ext4 /dev/loop3 rw\n"
	for _, tc := range []struct{ name, own, other, want string }{
		{"seen", "50 20 0:7 / /m rw - overlay o rw,lowerdir=/x:/mnt/l\n", "", "overlay on /m /mnt/l"},
		{"in a container first", "50 20 0:7 / /m rw - overlay o rw,lowerdir=/mnt/l\n",
			"150 1 0:7 / / rw - overlay o rw,lowerdir=/mnt/l\n", "overlay on /m /mnt/l"},
		{"relative", "50 20 0:7 / /m rw - overlay o rw,lowerdir=l,upperdir=/x\n", "", "perhaps the overlay on /m l"},
		{"another one", "50 20 0:7 / /m rw - overlay o rw,lowerdir=/x\n", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := &fakeKernel{mounts: append(kernelMounts(1, 1)[:1],
				probe.Mount{Addr: 0x51, Super: 9, ID: 51, Count: 1, Internal: true})}
			h := Host{Linux: world(t, map[string]string{"proc/self/mountinfo": own + tc.own,
				"proc/10/mountinfo": tc.other}), Kernel: k, Self: 99}
			target, err := Resolve(t.Context(), h, "/mnt")
			if err != nil {
				t.Fatal(err)
			}
			r, err := Scan(t.Context(), h, target, Options{})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, o := range r.Holders {
				got += o.Device + " " + o.Path
			}
			if got != tc.want || (len(r.Notes) == 1) != (tc.want == "") {
				t.Errorf("overlays %q, notes %q, want %q", got, r.Notes, tc.want)
			}
		})
	}
}

// What this program mounted has its own way of being released.
func TestOwnMounts(t *testing.T) {
	k := &fakeKernel{mounts: kernelMounts(2, 1), refs: []probe.Reference{
		{Kind: probe.OpenFD, PID: 11, FD: 3, Holder: 1, Mount: 0x40, Count: 1}}}
	h := Host{Linux: world(t, nil), Kernel: k, Self: 99}
	target, err := Resolve(t.Context(), h, "/mnt")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Scan(t.Context(), h, target, Options{Mounted: map[int]string{11: "/a b", 12: "/mnt"}})
	if err != nil {
		t.Fatal(err)
	}
	note := []string{"process 12 of shisa disk mount serves it: shisa disk umount /mnt"}
	if diff := cmp.Diff(note, r.Notes); diff != "" || r.Holders[0].Release != "shisa disk umount '/a b'" {
		t.Errorf("%q, notes (-want +got):\n%s", r.Holders[0].Release, diff)
	}
}

func TestLayersOf(t *testing.T) {
	for text, want := range map[string][]string{
		`rw,lowerdir=/a:/b\:c,upperdir=/d\,e,workdir=/w`: {"/a", "/b:c", "/d,e", "/w"},
		`ro,lowerdir+=/a\040b,datadir+=/x`:               {"/a b", "/x"},
		`ro,lowerdir=/a::/data`:                          {"/a", "/data"},
		`rw`:                                             nil,
		`\`:                                              nil,
	} {
		if diff := cmp.Diff(want, layersOf(text)); diff != "" {
			t.Errorf("layersOf(%q) (-want +got):\n%s", text, diff)
		}
	}
}

func TestWalk(t *testing.T) {
	mounts, bad := linux.ParseMounts([]byte(`20 1 8:1 / / rw - ext4 a rw
30 20 8:2 / /a rw - ext4 b rw
31 30 8:3 / /a/b rw - ext4 c rw
32 20 8:4 / /a rw - ext4 hidden rw
33 31 8:5 / /a/b rw - ext4 upon rw
34 20 8:6 / /ab rw - ext4 d rw
35 20 8:7 / /x/y rw - ext4 hidden-later rw
36 20 8:8 / /x rw - ext4 over rw
`))
	if bad > 0 {
		t.Fatal(bad)
	}
	for path, want := range map[string]int{"/": 20, "/a/c": 32, "/abc": 20, "/ab": 34, "/x/y": 36, "/x": 36, "/q": 20} {
		if m, ok := walk(mounts, path); !ok || m.ID != want {
			t.Errorf("walk(%s) = %d, want %d", path, m.ID, want)
		}
	}
	if m, ok := walk(mounts[:3], "/a/b/c"); !ok || m.ID != 31 {
		t.Errorf("walk(/a/b/c) = %d, want 31", m.ID)
	}
	if _, ok := walk(nil, "/"); ok {
		t.Error("walk without mounts found one")
	}
}

func TestResolve(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "image")
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, []byte("x"), 0o600), unix.Mkfifo(fifo, 0o600), os.Symlink(dir, link)); err != nil {
		t.Fatal(err)
	}
	h := byText()
	for _, tc := range []struct {
		name, path string
		kind       TargetKind
		inside     string
		err        error
	}{
		{"/", "/", TargetMount, "", nil},
		{"/proc/../proc/", "/proc", TargetMount, "", nil},
		{file, file, TargetImage, "", nil},
		{link + "/image", file, TargetImage, "", nil},
		{fifo, "", "", "", ErrKind},
		{dir + "/none", "", "", "", fs.ErrNotExist},
	} {
		got, err := Resolve(t.Context(), h, tc.name)
		if !errors.Is(err, tc.err) {
			t.Errorf("Resolve(%s) = %v, want %v", tc.name, err, tc.err)
		} else if err == nil && (got.Path != tc.path || got.Kind != tc.kind || got.Inside != tc.inside || got.MountID == 0) {
			t.Errorf("Resolve(%s) = %+v", tc.name, got)
		}
	}
	inside, err := Resolve(t.Context(), h, link)
	if err != nil || inside.Kind != TargetMount || inside.Inside != dir || inside.Path == dir {
		t.Errorf("Resolve(a link to a directory) = %+v, %v", inside, err)
	}
	t.Chdir(dir)
	here, err := Resolve(t.Context(), h, "image")
	if err != nil || here.Path != file {
		t.Errorf("Resolve(image) = %+v, %v", here, err)
	}
}

func TestResolveDevice(t *testing.T) {
	testenv.NeedRoot(t)
	dev, err := Resolve(t.Context(), byText(), "/dev/loop0")
	if err != nil || dev.Kind != TargetDevice || dev.Device != "loop0" {
		t.Errorf("Resolve(/dev/loop0) = %+v, %v", dev, err)
	}
}
