// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"encoding/json"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// table is a mountinfo of a host with each kind of file system.
const table = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /sys rw - sysfs sysfs rw
30 22 8:17 / /data rw - xfs /dev/sdb1 rw,attr2
31 22 0:40 / /srv rw - btrfs /dev/sdc rw,space_cache=v2
32 22 253:3 / /shared rw - gfs2 /dev/mapper/vg-gfs rw
33 22 0:50 / /mnt/nfs rw,relatime - nfs4 nas.example:/export rw,vers=4.2,soft,timeo=600,retrans=2,addr=10.0.0.9
34 22 0:51 / /old rw - nfs [fd00::1]:/a\040b ro,vers=3,hard,local_lock=all
35 22 8:1 /var/lib /bound rw - ext4 /dev/sda1 rw,errors=remount-ro
`

// stats is a mountstats of two NFS mounts.
const mountstats = `device proc mounted on /proc with fstype proc
device nas.example:/export mounted on /mnt/nfs with fstype nfs4 statvers=1.1
	opts:	rw,vers=4.2
	age:	1000
	events:	1 2 3
	bytes:	1 2 3
	RPC iostats version: 1.1  p/v: 100003/4 (nfs)
	xprt:	tcp 780 0 1 0 12 3411 3401 0 3409 0 2 0 2
	per-op statistics
	        NULL: 1 1 0 44 24 0 0 0 0
	        READ: 20 23 1 4000 2000 0 10 10 0
device [fd00::1]:/a\040b mounted on /old with fstype nfs statvers=1.1
	opts:	ro
`

func TestMounts(t *testing.T) {
	e := gathered(t, map[string]string{
		"proc/1/mountinfo": table, "proc/1/mountstats": mountstats, "proc/1/ns/mnt": "-> mnt:[4026531841]",
		"sys/dev/block/8:1":               "-> ../../devices/x/block/sda/sda1",
		"sys/dev/block/8:17":              "-> ../../devices/x/block/sdb/sdb1",
		"sys/dev/block/253:3":             "-> ../../devices/virtual/block/dm-3",
		"dev/disk/by-uuid/AB\\x20CD":      "-> ../../sda1",
		"sys/fs/ext4/sda1/errors_count":   "3\n",
		"sys/fs/ext4/sda1/last_error_ino": "17\n", "sys/fs/ext4/sda1/first_error_ino": "12\n",
		"sys/fs/ext4/sda1/last_error_time": "1699990000\n", "sys/fs/ext4/sda1/first_error_time": "1699980000\n",
		"sys/fs/ext4/sda1/last_error_func":               "ext4_journal_check_start\n",
		"sys/fs/ext4/sda1/first_error_func":              "ext4_find_entry\n",
		"proc/fs/ext4/sda1/options":                      "rw\nerrors=continue\n",
		"sys/fs/xfs/sdb1/error/fail_at_unmount":          "1\n",
		"sys/fs/btrfs/1-2/devices/sdc/size":              "1\n",
		"sys/fs/btrfs/1-2/devinfo/1/error_stats":         "write_errs 4\nread_errs 0\n",
		"sys/fs/gfs2/c:fs/id":                            "253:3\n",
		"sys/fs/gfs2/c:fs/withdraw":                      "1\n",
		"sys/fs/xfs/sdb1/error/metadata/EIO/max_retries": "-1\n",
	})
	if len(e.Mounts) != 9 || len(e.FSs) != 6 {
		t.Fatalf("%d mounts, %d file systems: %+v", len(e.Mounts), len(e.FSs), e.FSs)
	}
	at := func(point string) *FS {
		i := slices.IndexFunc(e.Mounts, func(m Mount) bool { return m.Point == point })
		if i < 0 || !e.Mounts[i].Own || e.Mounts[i].Namespace != 4026531841 {
			t.Fatalf("%s: %+v", point, e.Mounts)
		}
		return &e.FSs[e.Mounts[i].FS]
	}
	root := at("/")
	if root.Device != "sda1" || root.UUID != "AB CD" || len(root.Mounts) != 2 || at("/bound") != root {
		t.Errorf("the root: %+v", root)
	}
	want := &Super{Errors: 3, FirstError: time.Unix(1699980000, 0).UTC(), LastError: time.Unix(1699990000, 0).UTC(),
		FirstFunc: "ext4_find_entry", LastFunc: "ext4_journal_check_start", FirstInode: 12, LastInode: 17, OnError: "continue",
		From: Source{Path: "/sys/fs/ext4/sda1/errors_count"}}
	if d := cmp.Diff(want, root.Super); d != "" {
		t.Error(d)
	}
	if s := at("/data").Super; s == nil || s.Retries["metadata/EIO/max_retries"] != "-1" || s.Retries["fail_at_unmount"] != "1" {
		t.Errorf("XFS: %+v", s)
	}
	if f := at("/srv"); f.Device != "sdc" || f.UUID != "1-2" || f.Super == nil || f.Super.DeviceErrors["1"]["write_errs"] != 4 {
		t.Errorf("btrfs: %+v, %+v", f, f.Super)
	}
	if f := at("/shared"); f.Device != "dm-3" || f.Super == nil || !f.Super.Withdrawn {
		t.Errorf("gfs2: %+v, %+v", f, f.Super)
	}
	if e.FSOf("/dev/sdb1") < 0 || e.FSOf("sdz") >= 0 || e.FSOf("") >= 0 {
		t.Error("file systems are not found by their devices")
	}
	nfs := e.Mounts[e.MountOf("/mnt/nfs/dir/file")].NFS
	wantNFS := &NFS{Server: "nas.example", Addr: "10.0.0.9", Export: "/export", Vers: "4.2", Soft: true, Timeo: 600, Retrans: 2, Ops: 21,
		Retransmits: 3, Timeouts: 1, Idle: 12 * time.Second, Waiting: 7, received: 3401}
	if d := cmp.Diff(wantNFS, nfs, cmp.AllowUnexported(NFS{})); d != "" {
		t.Error(d)
	}
	old := e.Mounts[e.MountOf("/old")].NFS
	if old.Server != "fd00::1" || old.Export != "/a b" || !old.NoLock || old.Soft || old.Vers != "3" || old.Waiting != -1 {
		t.Errorf("the other: %+v", old)
	}
	if why, known := e.Known(PartProbes); known || why == "" {
		t.Error("a copy is told to have been asked")
	}
	if why, known := e.Known(PartTasks); known || why == "" {
		t.Error("tasks of a copy are told to have been looked at")
	}
}

// TestMapperNames: a device of the device mapper has both its names, whichever of the two the mount tells: messages of
// the kernel have the one, people the other.
func TestMapperNames(t *testing.T) {
	e := gathered(t, map[string]string{
		"proc/1/mountinfo": "30 1 0:40 / /srv rw - btrfs /dev/mapper/data rw\n31 1 253:3 / /shared rw - gfs2 /dev/mapper/vg-gfs rw\n" +
			"32 1 0:41 / /gone rw - btrfs /dev/mapper/gone rw\n",
		"sys/dev/block/253:3":                    "-> ../../devices/virtual/block/dm-3",
		"sys/class/block/dm-1/dm/name":           "data\n",
		"sys/class/block/dm-3/dm/name":           "vg-gfs\n",
		"sys/class/block/sda/size":               "8\n",
		"sys/fs/btrfs/1-2/devices/dm-1/x":        "",
		"sys/fs/btrfs/1-2/devinfo/1/error_stats": "write_errs 4\n",
	})
	for _, c := range []struct{ point, device, other string }{
		{"/srv", "dm-1", "mapper/data"}, {"/shared", "dm-3", "mapper/vg-gfs"}, {"/gone", "mapper/gone", ""},
	} {
		f := &e.FSs[e.Mounts[e.MountOf(c.point)].FS]
		if f.Device != c.device || strings.Join(f.Names, " ") != c.other {
			t.Errorf("%s lies on %s, also %q, want %s and %q", c.point, f.Device, f.Names, c.device, c.other)
		}
	}
	if f := &e.FSs[e.FSOf("/dev/mapper/data")]; f.UUID != "1-2" || f.Super == nil || f.Super.Errors != 4 {
		t.Errorf("what sysfs has by the kernel's name is not found: %+v", f)
	}
}

// TestNoMounts: of a copy without /proc nothing is known of mounts and file systems, with a reason, once.
func TestNoMounts(t *testing.T) {
	e := gathered(t, map[string]string{"etc/hostname": "h"})
	for _, p := range []Part{PartMounts, PartFSs} {
		n := 0
		for _, g := range e.Gaps {
			if g.Part == p {
				n++
			}
		}
		if why, known := e.Known(p); known || why == "" || n != 1 {
			t.Errorf("%s: known %v, %q, %d gaps", p, known, why, n)
		}
	}
	if e.Host.Name != "h" {
		t.Errorf("the host is called %q", e.Host.Name)
	}
}

// TestAnswersInATree: what was asked elsewhere is found in the tree, one answer for all mounts of a file
// system, and none for a mount that is another one.
func TestAnswersInATree(t *testing.T) {
	e := &Evidence{Mounts: []Mount{
		{Mount: linux.Mount{ID: 1, Point: "/a", Dev: 5}, Namespace: 9, FS: 0}, {Mount: linux.Mount{ID: 2, Point: "/b", Dev: 5}, Namespace: 9, FS: 0},
		{Mount: linux.Mount{ID: 3, Point: "/other"}, Namespace: 9, FS: 1}, {Mount: linux.Mount{ID: 4, Point: "/new"}, Namespace: 9, FS: 1},
	}, FSs: []FS{{Mounts: []int{0, 1}}, {Mounts: []int{2, 3}}}}
	p, err := json.Marshal(Probed{Mounts: []ProbedMount{{ID: 1, Namespace: 9, Point: "/a", Answer: &Answer{Blocks: 7, ReadOnly: true}},
		{ID: 2, Namespace: 9, Point: "/b", Why: sameSystem}, {ID: 3, Namespace: 9, Point: "/gone", Answer: &Answer{}}}})
	if err != nil {
		t.Fatal(err)
	}
	g := &gatherer{t: &memory{files: map[string]string{"/shisa/probes.json": string(p)}}, e: e}
	g.answers(t.Context())
	if a := e.Mounts[1].Probe; a == nil || a.Blocks != 7 || a.ReadOnly || e.Mounts[1].NotAsked != "" {
		t.Errorf("the second mount of a file system: %+v, %q", a, e.Mounts[1].NotAsked)
	}
	for _, i := range []int{2, 3} {
		if e.Mounts[i].Probe != nil || e.Mounts[i].NotAsked == "" {
			t.Errorf("mount %d has the answer of another: %+v", i, e.Mounts[i])
		}
	}
}

// memory is a tree in memory, of a system that runs; a value that begins with "->" is a link.
type memory struct {
	files map[string]string
	reads map[string]int
	// each gives another content at each read.
	each func(name string, n int) (string, bool)
}

func (*memory) Kind() tree.Kind { return tree.Live }

func (m *memory) Read(_ context.Context, name string, limit int64) ([]byte, error) {
	if m.reads == nil {
		m.reads = map[string]int{}
	}
	m.reads[name]++
	text, known := m.files[name]
	if m.each != nil {
		if other, is := m.each(name, m.reads[name]); is {
			text, known = other, true
		}
	}
	if !known {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(text[:min(len(text), int(limit))]), nil
}

func (m *memory) Open(_ context.Context, name string) (tree.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (m *memory) List(_ context.Context, name string) ([]tree.Entry, error) {
	var names []string
	for n := range m.files {
		if rest, in := strings.CutPrefix(n, strings.TrimSuffix(name, "/")+"/"); in {
			first, _, _ := strings.Cut(rest, "/")
			names = append(names, first)
		}
	}
	slices.Sort(names)
	var all []tree.Entry
	for _, n := range slices.Compact(names) {
		all = append(all, tree.Entry{Name: n})
	}
	if all == nil {
		return nil, &fs.PathError{Op: "list", Path: name, Err: fs.ErrNotExist}
	}
	return all, nil
}

func (m *memory) Link(_ context.Context, name string) (string, error) {
	to, is := strings.CutPrefix(m.files[name], "->")
	if !is {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrNotExist}
	}
	return to, nil
}

// TestJudge: which mounts are asked.
func TestJudge(t *testing.T) {
	all, bad := linux.ParseMounts([]byte(`1 1 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:30 / /net rw - autofs auto rw
3 2 0:31 / /net/nas rw - nfs4 nas:/e rw
4 1 0:32 / /srv rw - tmpfs a rw
5 4 0:33 / /srv rw - tmpfs b rw
6 1 8:1 /x /bind rw - ext4 /dev/sda1 rw
7 1 0:34 / /network rw - nfs4 nas:/f rw
`))
	if bad > 0 {
		t.Fatal(bad)
	}
	mounts := []Mount{}
	for _, m := range all {
		mounts = append(mounts, Mount{Mount: m, Namespace: 3})
	}
	j := newJudge(mounts, map[string]string{"3 /network": "it waits"})
	got := []string{}
	for i := range mounts {
		got = append(got, j.not(&mounts[i]))
	}
	if d := cmp.Diff([]string{"", belowAuto, belowAuto, covered, "", sameSystem, "it waits"}, got); d != "" {
		t.Error(d)
	}
}

// TestStalled: an NFS mount is not asked where requests wait since a major timeout and none is answered; one
// that answers slowly is.
func TestStalled(t *testing.T) {
	now := func(received string) string {
		return strings.Replace(mountstats, "3411 3401", "3411 "+received, 1)
	}
	for _, tc := range []struct {
		name, later string
		timeouts    string
		want        bool
	}{{"no answer", "3401", "23 1", true}, {"an answer", "3402", "23 1", false}, {"not for long", "3401", "23 0", false}} {
		m := &memory{files: map[string]string{"/proc/1/ns/mnt": "->mnt:[5]", "/proc/1/mountinfo": table, "/proc/self/ns/mnt": "->mnt:[5]"}}
		m.each = func(name string, n int) (string, bool) {
			if name != "/proc/1/mountstats" {
				return "", false
			}
			text := now("3401")
			if n > 1 {
				text = now(tc.later)
			}
			return strings.Replace(text, "READ: 20 23 1", "READ: 20 "+tc.timeouts, 1), true
		}
		p := &prober{t: m}
		g := &gatherer{t: m, byDev: map[systemKey]int{}, e: &Evidence{}}
		spaces, _, err := g.spaces(t.Context())
		if err != nil || len(spaces) != 1 {
			t.Fatal(spaces, err)
		}
		g.table(spaces[0], "", []byte(table))
		g.nfs(t.Context(), spaces)
		got := p.stuck(t.Context(), g, spaces)
		if (got["5 /mnt/nfs"] != "") != tc.want || len(got) > 1 {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

// TestTasksThatWait: who is at the same place is told, who got on is not, and our own who ask are not.
func TestTasksThatWait(t *testing.T) {
	stat := func(comm, state, times string) string {
		return "17 (" + comm + ") " + state + " 1 1 1 0 -1 4194304 0 0 0 0 " + times + " 0 0 20 0 1 0 555 0 0"
	}
	m := &memory{files: map[string]string{
		"/proc/17/task/17/stat": stat("a) b", "D", "1 2"), "/proc/17/task/17/comm": "a) b\n", "/proc/17/task/17/wchan": "rpc_wait",
		"/proc/17/task/17/status": "voluntary_ctxt_switches:\t4\n", "/proc/17/task/17/syscall": "257 0xffffffffffffff9c 0x7f",
		"/proc/17/task/17/stack":  "[<0>] rpc_wait_bit_killable+0x1/0x2\n[<0>] nfs4_read+0x1/0x2\n",
		"/proc/17/task/17/cgroup": "0::/system.slice/backup.service\n", "/proc/17/task/17/exe": "->/usr/bin/cat",
		"/proc/17/task/17/fd/3": "->/mnt/nfs/file", "/proc/17/task/17/cwd": "->/data", "/proc/17/mountinfo": table,
		"/proc/17/cmdline":      "cat\x00file\x00",
		"/proc/18/task/18/stat": stat("busy", "D", "1 2"), "/proc/18/task/18/exe": "->/bin/x",
		"/proc/19/task/19/stat": stat("ask:33", "D", "1 2"), "/proc/20/task/20/stat": stat("sleeps", "S", "1 2"),
		"/proc/21/task/21/stat": stat("jbd2/sda1-8", "D", "0 0"), "/proc/21/task/21/comm": "jbd2/sda1-8\n",
		"/proc/22/task/22/stat": stat("df", "S", "1 2"), "/proc/22/task/22/wchan": "request_wait_answer", "/proc/22/task/22/exe": "->/bin/df",
		"/proc/22/task/22/comm": "df\n", "/proc/23/task/23/stat": stat("other", "S", "1 2"), "/proc/23/task/23/wchan": "0",
		"/proc/20/task/20/wchan": "do_wait", "/sys/fs/fuse/connections/41/waiting": "1",
	}}
	m.each = func(name string, n int) (string, bool) {
		return stat("busy", "D", "1 "+string(rune('0'+min(n, 9)))), name == "/proc/18/task/18/stat"
	}
	p := &prober{t: m, o: ProbeOptions{Between: 250 * time.Millisecond}, files: map[string][]byte{}}
	p.tasks(t.Context())
	var got Tasks
	if err := json.Unmarshal(p.files["/shisa/tasks.json"], &got); err != nil {
		t.Fatal(err)
	}
	if got.Looked != 7 || got.Hidden != 1 || len(got.Waiting) != 3 || got.Between < 250*time.Millisecond {
		t.Fatalf("%+v", got)
	}
	cat := got.Waiting[0]
	want := Task{PID: 17, TID: 17, Comm: "a) b", Args: []string{"cat", "file"}, Unit: "backup.service", WChan: "rpc_wait", Same: true,
		Stack: []string{"rpc_wait_bit_killable", "nfs4_read"}, Syscall: "257 0xffffffffffffff9c 0x7f", Mounts: []string{"/mnt/nfs", "/data", "/"},
		Devices: []string{}, From: Source{Path: "/proc/17/task/17/stat"}}
	if d := cmp.Diff(want, cat); d != "" {
		t.Error(d)
	}
	if j := got.Waiting[1]; !j.Kernel || !slices.Equal(j.Devices, []string{"sda1"}) {
		t.Errorf("a thread of the kernel: %+v", j)
	}
	if df := got.Waiting[2]; !df.Asleep || df.Comm != "df" || df.WChan != fuseWait {
		t.Errorf("who waits for a server of FUSE: %+v", df)
	}
	if m.reads["/mnt/nfs/file"] > 0 {
		t.Error("what a task has open was read")
	}
}

// TestStalledDevices: a device is named whose requests wait while none is answered, and no mount on it is
// touched; one that is busy is not.
func TestStalledDevices(t *testing.T) {
	line := func(name, minor, done, flight string) string {
		return "   8  " + minor + " " + name + " 10 0 80 9 " + done + " 0 77 5 " + flight + " 12 14 0 0 0 0 3 1\n"
	}
	m := &memory{}
	m.each = func(name string, n int) (string, bool) {
		text := line("sda", "0", "5", "0") + line("sdb", "16", "7", "2") + line("sdc", "32", string(rune('0'+min(n, 9))), "4") +
			line("sdd", "48", "5", string(rune('3'-min(n, 3))))
		return text, name == "/proc/diskstats"
	}
	p := &prober{t: m, o: ProbeOptions{Between: 350 * time.Millisecond}}
	found := p.stalledDevices(t.Context())
	dev := unix.Mkdev(8, 16)
	if d := found[dev]; len(found) != 1 || d.Name != "sdb" || d.InFlight != 2 || d.Waited < 350*time.Millisecond {
		t.Fatalf("%+v", found)
	}
	a := &avoiding{memory: m}
	p.t = a
	p.avoidStalled([]Mount{{Mount: linux.Mount{Dev: dev, Point: "/data"}, Namespace: 1}, {Mount: linux.Mount{Dev: dev, Point: "/"}, Namespace: 1},
		{Mount: linux.Mount{Dev: dev, Point: "/elsewhere"}, Namespace: 2}, {Mount: linux.Mount{Dev: 5, Point: "/well"}, Namespace: 1}}, found, 1)
	if !slices.Equal(a.dirs, []string{"/data"}) {
		t.Errorf("avoided: %v", a.dirs)
	}
}

// avoiding is a tree that notes what it is to avoid.
type avoiding struct {
	*memory
	dirs []string
}

func (a *avoiding) Avoid(dir, _ string) { a.dirs = append(a.dirs, dir) }

func TestKernelDevices(t *testing.T) {
	for comm, want := range map[string]string{"jbd2/dm-0-8": "dm-0", "xfsaild/sda1": "sda1", "kworker/u4:2+flush-8:0": "8:0",
		"md0_raid1": "md0", "kswapd0": "", "jbd2/x": "", "md_misc": ""} {
		if got := strings.Join(kernelDevices(comm), ","); got != want {
			t.Errorf("kernelDevices(%s) = %q, want %q", comm, got, want)
		}
	}
}

func FuzzParseStats(f *testing.F) {
	f.Add(mountstats)
	f.Add("device  mounted on  with fstype nfs\n\txprt:\ttcp 1 2 3 4 5 6 7 8 9 10\n")
	f.Fuzz(func(t *testing.T, text string) {
		if n := len(parseStats(text)); n > strings.Count(text, "device ") {
			t.Errorf("%d mounts of %q", n, text)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add("17 (a) b) D 1 1 1 0 -1 4194304 0 0 0 0 1 2 0 0 20 0 1 0 555 0 0", "0 0x3", "[<0>] x+0x1/0x2")
	f.Add(")(", "", "")
	f.Fuzz(func(t *testing.T, stat, call, stack string) {
		m := &memory{files: map[string]string{"/proc/1/task/1/stat": stat, "/proc/1/task/1/syscall": call, "/proc/1/task/1/stack": stack}}
		p := &prober{t: m}
		if s, ok := p.state(t.Context(), thread{1, 1}, true); ok && s.d {
			p.describe(t.Context(), thread{1, 1}, s)
		}
	})
}

func TestHost(t *testing.T) {
	e := gathered(t, map[string]string{
		"proc/sys/kernel/hostname": "vm1\n", "etc/machine-id": "abc\n", "proc/sys/kernel/osrelease": "6.1.0-56-amd64\n",
		"etc/os-release": "NAME=x\nPRETTY_NAME=\"Debian 12\"\n", "proc/stat": "cpu 1\nbtime 1699990000\n",
		"sys/class/dmi/id/sys_vendor": "QEMU\n", "sys/class/dmi/id/product_uuid": "AAAA-BB\n",
		"proc/cpuinfo": "processor\t: 0\nflags : fpu hypervisor\n\nprocessor\t: 1\n",
		"proc/net/fib_trie": "Main:\n  +-- 0.0.0.0/0\n     |-- 10.0.0.5\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n" +
			"     |-- 127.0.0.1\n        /32 host LOCAL\n",
		"proc/net/if_inet6": "fd000000000000000000000000000005 02 40 00 80 eth0\nfe800000000000000000000000000001 02 40 20 80 eth0\n",
	})
	want := Host{Name: "vm1", MachineID: "abc", Kernel: "6.1.0-56-amd64", OS: "Debian 12", UUID: "aaaa-bb", Virtual: "kvm",
		Booted: time.Unix(1699990000, 0).UTC(), Addresses: []string{"10.0.0.5", "fd00::5"}, Processors: 2}
	if d := cmp.Diff(want, e.Host); d != "" {
		t.Error(d)
	}
}

// TestMeantBy: who looks at a name has nothing open there; its stack speaks of a type, and its arguments name places.
func TestMeantBy(t *testing.T) {
	mounts, bad := linux.ParseMounts([]byte("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:50 / /srv rw - nfs4 a:/x rw\n" +
		"3 1 0:51 / /mnt rw - nfs b:/ rw\n"))
	if bad != 0 {
		t.Fatalf("%d lines are no mounts", bad)
	}
	nfs := []string{"rpc_wait_bit_killable", "nfs4_do_open"}
	for _, c := range []struct {
		name   string
		mounts int
		task   Task
		want   []string
	}{
		{"an argument", 3, Task{Args: []string{"ls", "-l", "/srv/a"}, Stack: nfs, Mounts: []string{"/"}}, []string{"/srv"}},
		{"an argument behind a word", 3, Task{Args: []string{"dd", "if=/dev/zero", "of=/mnt/a"}, Stack: nfs,
			Mounts: []string{"/"}}, []string{"/mnt"}},
		{"two of them, and no argument", 3, Task{Args: []string{"x"}, Stack: nfs, Mounts: []string{"/"}}, []string{}},
		{"one of them, and no argument", 2, Task{Args: []string{"x"}, Stack: nfs, Mounts: []string{"/"}}, []string{"/srv"}},
		{"a file is open there", 3, Task{Args: []string{"cat", "/mnt/a"}, Stack: nfs, Mounts: []string{"/srv", "/"}},
			[]string{"/srv", "/"}},
		{"a stack that nobody may see", 3, Task{Args: []string{"ls", "/srv"}, Mounts: []string{"/"}}, []string{"/"}},
	} {
		if got := meantBy(mounts[:c.mounts], &c.task); !slices.Equal(got, c.want) {
			t.Errorf("%s: waits for %q, want %q", c.name, got, c.want)
		}
	}
}
