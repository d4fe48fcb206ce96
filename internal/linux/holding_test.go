// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestParseMounts(t *testing.T) {
	table := "36 35 98:0 /sub\\134x /mnt\\040\u00a0a\\011\\012 rw,noatime shared:1 master:2 propagate_from:3 - ext4 /dev/a\\040b rw,data=x - y\n" +
		"37 36 0:52 / /b rw unbindable - tmpfs  rw\n" +
		"a b c d e f - g h i\n" +
		"38 36 0:1 / /c rw\n\n"
	got, bad := ParseMounts([]byte(table))
	want := []Mount{
		{ID: 36, Parent: 35, Dev: unix.Mkdev(98, 0), Root: `/sub\x`, Point: "/mnt \u00a0a\t\n", Options: "rw,noatime",
			Shared: 1, Master: 2, Type: "ext4", Source: "/dev/a b", Super: "rw,data=x - y"},
		{ID: 37, Parent: 36, Dev: unix.Mkdev(0, 52), Root: "/", Point: "/b", Options: "rw", Type: "tmpfs",
			Super: "rw"},
	}
	if diff := cmp.Diff(want, got); diff != "" || bad != 2 {
		t.Errorf("ParseMounts, %d bad lines, want 2 (-want +got):\n%s", bad, diff)
	}
}

func TestParseCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	const pod = "8b5a2c1e-0001-4f3a-9c6d-aaaabbbbcccc"
	for _, tc := range []struct {
		name, text string
		want       Place
	}{
		{"service", "0::/system.slice/ssh.service\n",
			Place{"/system.slice/ssh.service", "ssh.service", "", ""}},
		{"session", "0::/user.slice/user-1000.slice/session-3.scope\n",
			Place{"/user.slice/user-1000.slice/session-3.scope", "session-3.scope", "", ""}},
		{"user's service", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/gvfs.service\n",
			Place{"/user.slice/user-1000.slice/user@1000.service/app.slice/gvfs.service", "user@1000.service",
				"gvfs.service", ""}},
		{"escaped, deleted", "0::/system.slice/_cpu.service (deleted)\n",
			Place{"/system.slice/_cpu.service", "cpu.service", "", ""}},
		{"none", "0::/\n", Place{"/", "", "", ""}},
		{"version 1", "12:cpu,cpuacct:/x\n1:name=systemd:/system.slice/cron.service\n0::/\n",
			Place{"/system.slice/cron.service", "cron.service", "", ""}},
		{"docker with systemd", "0::/system.slice/docker-" + id + ".scope\n",
			Place{"/system.slice/docker-" + id + ".scope", "docker-" + id + ".scope", "", "docker:" + id}},
		{"docker, version 1", "4:memory:/docker/" + id + "\n1:name=systemd:/docker/" + id + "\n",
			Place{"/docker/" + id, "", "", "docker:" + id}},
		{"podman", "0::/machine.slice/libpod-" + id + ".scope/container\n",
			Place{"/machine.slice/libpod-" + id + ".scope/container", "libpod-" + id + ".scope", "", "podman:" + id}},
		{"podman's monitor", "0::/machine.slice/libpod-conmon-" + id + ".scope\n",
			Place{"/machine.slice/libpod-conmon-" + id + ".scope", "libpod-conmon-" + id + ".scope", "", ""}},
		{"kubernetes with systemd", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" +
			strings.ReplaceAll(pod, "-", "_") + ".slice/cri-containerd-" + id + ".scope\n",
			Place{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" +
				strings.ReplaceAll(pod, "-", "_") + ".slice/cri-containerd-" + id + ".scope",
				"cri-containerd-" + id + ".scope", "", "kubernetes:" + pod + "/" + id}},
		{"kubernetes", "0::/kubepods/besteffort/pod" + pod + "/" + id + "\n",
			Place{"/kubepods/besteffort/pod" + pod + "/" + id, "", "", "kubernetes:" + pod + "/" + id}},
		{"lxc", "0::/lxc.payload.web/init.scope\n", Place{"/lxc.payload.web/init.scope", "", "", "lxc:web"}},
		{"libvirt", "0::/machine.slice/machine-qemu\\x2d7\\x2dvm\\x2d17.scope/libvirt/emulator\n",
			Place{"/machine.slice/machine-qemu\\x2d7\\x2dvm\\x2d17.scope/libvirt/emulator",
				"machine-qemu\\x2d7\\x2dvm\\x2d17.scope", "", "libvirt:vm-17"}},
		{"nspawn", "0::/machine.slice/systemd-nspawn@de\\x2db.service/payload\n",
			Place{"/machine.slice/systemd-nspawn@de\\x2db.service/payload", "systemd-nspawn@de\\x2db.service", "",
				"nspawn:de-b"}},
		{"proxmox", "0::/qemu.slice/100.scope\n", Place{"/qemu.slice/100.scope", "100.scope", "", "proxmox:100"}},
		{"no text", "", Place{}},
		{"nonsense", "a\n::b\n:::\n", Place{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, ParseCgroup(tc.text)); diff != "" {
				t.Errorf("ParseCgroup(%q) (-want +got):\n%s", tc.text, diff)
			}
		})
	}
}

func TestParseFdinfo(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       Fdinfo
	}{
		{"file", "pos:\t0\nflags:\t012100000\nmnt_id:\t29\nino:\t5\n", Fdinfo{Mount: 29, Path: true, Opened: true}},
		{"for reading", "flags:\t0100000\n", Fdinfo{Opened: true}},
		{"for writing", "flags:\t0100001\n", Fdinfo{Opened: true, Write: true}},
		{"socket", "flags:\t02\nmnt_id:\t9\nino:\t7\nscm_fds: 2\n", Fdinfo{Mount: 9, InFlight: 2, Opened: true, Write: true}},
		{"ring", "mnt_id:\t16\nUserFiles:\t3\n    0: /mnt/a\\040b\n    1: <none>\n    2: /mnt/c (deleted)\n" +
			"UserBufs:\t1\n    0: 0x1000/4096\n", Fdinfo{Mount: 16, Registered: []string{"/mnt/a b", "/mnt/c"}}},
		{"fanotify", "mnt_id:\t16\nfanotify flags:0 event-flags:8000\n" +
			"fanotify mnt_id:2c mflags:0 mask:20 ignored_mask:0\nfanotify sdev:700003 mflags:0 mask:8\n" +
			"fanotify ino:4f sdev:fe00000 mflags:0 mask:8 fhandle-bytes:8\n",
			Fdinfo{Mount: 16, Marks: []Mark{{Mount: 0x2c}, {Dev: unix.Mkdev(7, 3)}, {Dev: unix.Mkdev(254, 0)}}}},
		{"nonsense", "mnt_id:x\nflags:9\nfanotify \n: \n    3: /a\n", Fdinfo{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, ParseFdinfo([]byte(tc.text))); diff != "" {
				t.Errorf("ParseFdinfo (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseMaps(t *testing.T) {
	got := ParseMaps([]byte("7f00-7f01 r-xp 00000000 fe:00 99     /usr/a b (deleted)\n" +
		"7f01-7f02 r--p 00001000 fe:00 99     /usr/a b (deleted)\n" +
		"7f01-7f02 r--s 00001000 fe:00 99     /usr/a b (deleted)\n" +
		"7f02-7f03 rw-p 00000000 00:00 0 \n7f03-7f04 rw-p 00000000 00:00 0      [heap]\n" +
		"7f04-7f05 rw-s 00000000 00:01 12     /SYSV00000000\nx\n"))
	want := []Use{
		{Kind: UseMapping, FD: -1, Path: "/usr/a b (deleted)", Dev: unix.Mkdev(254, 0), Inode: 99, Shared: true},
		{Kind: UseMapping, FD: -1, Path: "/SYSV00000000", Dev: unix.Mkdev(0, 1), Inode: 12, Shared: true, Write: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ParseMaps (-want +got):\n%s", diff)
	}
}

// The lists of the kernel, as they stand below another root.
func TestKernelSide(t *testing.T) {
	h := fake(t, map[string]string{
		"proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" +
			"/mnt/swap\\040file                       file\t\t65532\t\t0\t\t-2\n" +
			"/dev/dm-1                               partition\t1\t0\t-3\n" +
			"/x\\040(deleted)                         file\t\t65532\t\t0\t\t-2\n",
		"sys/block/loop0/loop/backing_file":   "/mnt/a b (deleted)\n",
		"sys/block/loop0/loop/autoclear":      "1\n",
		"sys/block/loop0/ro":                  "1\n",
		"sys/block/loop1/size":                "0\n",
		"sys/block/sda/size":                  "8\n",
		"proc/sys/fs/binfmt_misc/status":      "enabled\n",
		"proc/sys/fs/binfmt_misc/qemu-arm":    "enabled\ninterpreter /mnt/qemu-arm\nflags: OCF\noffset 0\n",
		"proc/sys/fs/binfmt_misc/python":      "enabled\ninterpreter /mnt/python\nflags: \n",
		"sys/kernel/tracing/uprobe_events":    "p:uprobes/a /mnt/x y:0x0000000000001130 arg=%di\nr:g/b /z:0x1 (inode)\nbad\n",
		"proc/self/net/unix":                  "Num RefCount Protocol Flags Type St Inode Path\n00: 00000002 00000000 00010000 0001 01   12 /mnt/a  b\n00: 2 0 0 1 1 13 @abs\n00: 2 0 0 1 1 14\n00: 2 0 0 1 1 15 rel\n",
		"sys/class/block/sda/dev":             "8:0\n",
		"sys/class/block/sda/sda1/partition":  "1\n",
		"sys/class/block/sda1/dev":            "8:1\n",
		"sys/class/block/sda1/partition":      "1\n",
		"sys/class/block/sda1/holders/dm-0/x": "",
		"sys/class/block/dm-0/dev":            "254:0\n",
		"sys/class/block/dm-0/dm/name":        "vg-lv\n",
		"sys/class/block/dm-0/holders/sda/x":  "",
		"sys/dev/block/8:1":                   "->../../devices/x/block/sda/sda1",
		"sys/fs/btrfs/a-b/devices/sdc/x":      "", "sys/fs/btrfs/a-b/devices/sdb/x": "",
		"sys/fs/btrfs/features/x": "",
	})
	ctx := t.Context()
	swaps, err := h.Swaps(ctx)
	same(t, "Swaps", swaps, []Swap{{"/mnt/swap file", false, false}, {"/dev/dm-1", false, true},
		{"/x", true, false}}, err)
	loops, err := h.Loops(ctx)
	same(t, "Loops", loops, []Loop{{"loop0", "/mnt/a b", true, true, true}}, err)
	interpreters, err := h.Interpreters(ctx, "/proc/sys/fs/binfmt_misc")
	same(t, "Interpreters", interpreters, []Interpreter{{"qemu-arm", "/mnt/qemu-arm"}}, err)
	uprobes, err := h.Uprobes(ctx, "/sys/kernel/tracing")
	same(t, "Uprobes", uprobes, []Uprobe{{"uprobes/a", "/mnt/x y"}, {"g/b", "/z"}}, err)
	sockets, err := h.UnixSockets(ctx, 0)
	same(t, "UnixSockets", sockets, []UnixSocket{{12, "/mnt/a  b"}, {15, "rel"}}, err)
	devices, err := h.BtrfsDevices(ctx)
	same(t, "BtrfsDevices", devices, map[string][]string{"sdb": {"sdb", "sdc"}, "sdc": {"sdb", "sdc"}}, err)
	name, err := h.BlockOf(unix.Mkdev(8, 1))
	same(t, "BlockOf", name, "sda1", err)
	_, err = h.Block(ctx, "../sda")
	if !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Block(../sda) = %v, want %v", err, fs.ErrInvalid)
	}
	// Nothing of it is there.
	none := Open(t.TempDir())
	for what, fn := range map[string]func() error{
		"Swaps":       func() error { _, err := none.Swaps(ctx); return err },
		"Uprobes":     func() error { _, err := none.Uprobes(ctx, "/x"); return err },
		"Btrfs":       func() error { _, err := none.BtrfsDevices(ctx); return err },
		"Loops":       func() error { _, err := none.Loops(ctx); return missing(err) },
		"Sockets":     func() error { _, err := none.UnixSockets(ctx, 0); return missing(err) },
		"binfmt_misc": func() error { _, err := none.Interpreters(ctx, "/proc/sys/fs/binfmt_misc"); return missing(err) },
		"Mounts":      func() error { _, err := none.Mounts(ctx, 0); return missing(err) },
		"Tasks":       func() error { _, err := none.Tasks(ctx, TasksOptions{}); return missing(err) },
		"Detail":      func() error { _, err := none.Detail(ctx, 1); return missing(err) },
	} {
		if err := fn(); err != nil {
			t.Errorf("%s where nothing is: %v", what, err)
		}
	}
}

// missing is nil where err says that something is not there.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(errors.New("want that it is not there"), err)
}

func same(t *testing.T, what string, got, want any, err error) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%s: %v (-want +got):\n%s", what, err, diff)
	}
}

// A process that holds a file in every way that a link or a list tells, found by texts.
func TestTasks(t *testing.T) {
	testenv.Need(t, "sleep")
	dir := t.TempDir()
	path := filepath.Join(dir, "held")
	f := openFile(t, path, os.O_RDWR|os.O_CREATE)
	other := openFile(t, path, unix.O_PATH)
	cmd := exec.Command("sleep", "100")
	cmd.Dir, cmd.ExtraFiles = dir, []*os.File{f, other}
	testenv.Start(t, cmd)
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	h, pid := Open(""), cmd.Process.Pid
	for _, tc := range []struct {
		name  string
		o     TasksOptions
		kinds []string
	}{
		{"all", TasksOptions{Files: true, Wants: func(p string) bool { return strings.HasPrefix(p, dir) }},
			[]string{"cwd -1 " + dir, "fd 3 " + path, "fd 4 " + path}},
		{"what the kernel's lists do not tell", TasksOptions{}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := h.Tasks(t.Context(), tc.o)
			if err != nil {
				t.Fatal(err)
			}
			var kinds []string
			for _, u := range got.Uses {
				if u.PID == pid {
					kinds = append(kinds, fmt.Sprintf("%s %d %s", u.Kind, u.FD, u.Path))
				}
				if u.PID == pid && u.Kind == UseFD && (u.Info.Mount == 0 || u.Info.Path != (u.FD == 4)) {
					t.Errorf("fdinfo of %d = %+v", u.FD, u.Info)
				}
			}
			slices.Sort(kinds)
			if diff := cmp.Diff(tc.kinds, kinds); diff != "" {
				t.Errorf("Tasks (-want +got):\n%s", diff)
			}
			d, err := h.Detail(t.Context(), pid)
			if err != nil || d.Parent != os.Getpid() || d.UID != os.Geteuid() || d.Zombie ||
				!slices.Contains(got.Namespaces[d.MountNamespace], Thread{pid, pid}) {
				t.Errorf("Detail = %+v, %v", d, err)
			}
		})
	}
}

func FuzzHolding(f *testing.F) {
	f.Add([]byte("36 35 98:0 /a /mnt\\040 rw shared:1 - ext4 /dev/a rw\n"))
	f.Add([]byte("UserFiles:\t3\n    0: /mnt/a\\040b\nfanotify mnt_id:2c sdev:700003\n"))
	f.Add([]byte("0::/machine.slice/machine-qemu\\x2d7\\x2dvm.scope\n4:memory:/kubepods/podx/y\n"))
	f.Add([]byte("7f00-7f01 r-xp 00000000 fe:00 99     /usr/a b (deleted)\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		mounts, bad := ParseMounts(text)
		if lines := strings.Count(string(text), "\n") + 1; len(mounts)+bad > lines {
			t.Errorf("%d mounts and %d bad lines of %d", len(mounts), bad, lines)
		}
		for _, m := range mounts {
			if len(m.Point) > len(text) {
				t.Errorf("a name grew: %q", m.Point)
			}
		}
		info := ParseFdinfo(text)
		if info.Mount < 0 || info.InFlight < 0 {
			t.Errorf("ParseFdinfo = %+v", info)
		}
		ParseCgroup(string(text))
		for _, u := range ParseMaps(text) {
			if !strings.HasPrefix(u.Path, "/") {
				t.Errorf("ParseMaps gave %q", u.Path)
			}
		}
	})
}

// What the kernel lists is read without fear of what stands there.
func FuzzKernelSide(f *testing.F) {
	f.Add([]byte("Filename Type Size Used Priority\n/mnt/a\\040b file 1 1 1\n"))
	f.Add([]byte("p:uprobes/a /mnt/x y:0x0000000000001130 arg=%di\n"))
	f.Add([]byte("Num RefCount Protocol Flags Type St Inode Path\n00: 2 0 0 1 1 12 /mnt/a  b\n"))
	f.Add([]byte("enabled\ninterpreter /mnt/q\nflags: OCF\n"))
	f.Add([]byte("/srv\\040a\t*(rw)\n"))
	root := f.TempDir()
	files := []string{"proc/swaps", "trace/uprobe_events", "proc/self/net/unix", "bm/x", "proc/fs/nfsd/exports",
		"sys/block/loop0/loop/backing_file", "sys/class/block/sda/dev", "sys/class/block/sda/partition"}
	for _, name := range files {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	h := Open(root)
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, name := range files {
			if err := os.WriteFile(filepath.Join(root, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ctx := t.Context()
		swaps, err1 := h.Swaps(ctx)
		probes, err2 := h.Uprobes(ctx, "/trace")
		sockets, err3 := h.UnixSockets(ctx, 0)
		interpreters, err4 := h.Interpreters(ctx, "/bm")
		exports, err5 := h.Exports(ctx)
		loops, err6 := h.Loops(ctx)
		if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
			t.Error(err)
		}
		if lines := strings.Count(string(text), "\n") + 1; len(swaps) > lines || len(probes) > lines || len(sockets) > lines ||
			len(exports) > lines || len(interpreters) > 1 || len(loops) != 1 {
			t.Errorf("more was read than stands there: %v %v %v %v %v %v", swaps, probes, sockets, exports, interpreters, loops)
		}
		if b, err := h.Block(ctx, "sda"); err == nil && b.Partition < 0 {
			t.Errorf("Block = %+v", b)
		}
	})
}
