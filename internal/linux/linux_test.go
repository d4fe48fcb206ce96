// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestMachine(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"libvirt", []string{"/usr/bin/qemu-system-x86_64", "-name", "guest=vm-17,debug-threads=on", "-S"}, "vm-17"},
		{"plain", []string{"qemu-system-x86_64", "-name", "web"}, "web"},
		{"with process", []string{"qemu", "-name", "web,process=qemu-web"}, "web"},
		{"process first", []string{"qemu", "-name", "process=p,guest=web"}, "web"},
		{"two dashes", []string{"qemu", "--name", "web"}, "web"},
		{"commas in the name", []string{"qemu", "-name", "guest=a,,b,debug-threads=on"}, "a,b"},
		{"comma at the end", []string{"qemu", "-name", "web,"}, "web"},
		{"none", []string{"qemu", "-m", "512"}, ""},
		{"cut off", []string{"qemu", "-name"}, ""},
		{"only options", []string{"qemu", "-name", "debug-threads=on"}, ""},
		{"no arguments", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := (Process{Args: tc.args}).Machine(); got != tc.want {
				t.Errorf("Machine(%q) = %q, want %q", tc.args, got, tc.want)
			}
		})
	}
}

func TestEmulator(t *testing.T) {
	for _, tc := range []struct {
		comm string
		args []string
		want bool
	}{
		{"qemu-system-x86", []string{"/usr/bin/qemu-system-x86_64", "-S"}, true},
		{"renamed", []string{"/usr/libexec/qemu-kvm"}, true},
		{"kvm", []string{"/usr/bin/kvm", "-id", "100"}, true},
		{"qemu-nbd", nil, true},
		{"bash", []string{"bash", "/root/qemu-start"}, false},
		{"", nil, false},
	} {
		if got := (Process{Comm: tc.comm, Args: tc.args}).Emulator(); got != tc.want {
			t.Errorf("Emulator(%q, %q) = %v, want %v", tc.comm, tc.args, got, tc.want)
		}
	}
}

// fake writes a /proc below a new root. Keys are paths below it; a value that begins with "->" is
// the text of a symbolic link.
func fake(t *testing.T, files map[string]string) *Host {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		target, link := strings.CutPrefix(content, "->")
		var err error
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case link:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Open(root)
}

const lockLines = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:77 100 101\n" +
	"lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:77 103 103\n"

func qemuWorld(t *testing.T) *Host {
	return fake(t, map[string]string{
		"proc/17/comm":       "qemu-system-x86\n",
		"proc/17/cmdline":    "/usr/bin/qemu-system-x86_64\x00-name\x00guest=vm-17,debug-threads=on\x00-S\x00",
		"proc/17/fd/4":       "->/pool/a.qcow2",
		"proc/17/fdinfo/4":   "pos:\t0\nflags:\t02100002\nmnt_id:\t27\nino:\t77\n" + lockLines,
		"proc/17/fd/5":       "->socket:[123]",
		"proc/17/fdinfo/5":   "flags:\t02\nino:\t123\n",
		"proc/17/fd/6":       "->/pool/gone.qcow2 (deleted)",
		"proc/17/fdinfo/6":   "pos:\t0\nflags:\t02100002\nmnt_id:\t27\nino:\t78\n",
		"proc/17/fd/7":       "->/dev/kvm",
		"proc/17/fdinfo/7":   "flags:\t02\nino:\t9\n",
		"proc/20/comm":       "cat\n",
		"proc/20/cmdline":    "cat\x00/pool/a.qcow2\x00",
		"proc/20/fd/3":       "->/pool/a.qcow2",
		"proc/20/fdinfo/3":   "flags:\t0100000\nino:\t77\n",
		"proc/30/comm":       "vmm\n",
		"proc/30/cmdline":    "",
		"proc/30/fd/3":       "->/pool/vm.raw",
		"proc/30/fdinfo/3":   "mnt_id:\t27\nino:\t79\n",
		"proc/30/fd/4":       "->anon_inode:kvm-vm",
		"proc/40/fd/x":       "->/pool/a.qcow2",
		"proc/50/comm":       "nofd\n",
		"proc/self/":         "",
		"proc/meminfo":       "MemTotal: 1 kB\n",
		"sys/block/sda/size": "1\n",

		"sys/block/loop0/loop/backing_file": "/pool/disk.raw\n",
		"sys/block/loop0/ro":                "1\n",
		"sys/block/loop1/ro":                "0\n",
		"sys/block/loop2/loop/backing_file": "/pool/a b\tc.raw (deleted)\n",
		"sys/block/loop2/ro":                "0\n",
	})
}

func TestHolders(t *testing.T) {
	c, err := qemuWorld(t).Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := diskio.Stat{ID: diskio.ID{Dev: unix.Mkdev(0xfe, 0), Ino: 77}}
	for _, tc := range []struct {
		name string
		st   diskio.Stat
		path string
		want []string
	}{
		{"by inode and device", a, "/other/name", []string{"17 /usr/bin/qemu-system-x86_64 vm-17 writing"}},
		{"by name too", a, "/pool/a.qcow2", []string{"17 /usr/bin/qemu-system-x86_64 vm-17 writing", "20 cat  reading"}},
		{"another device", diskio.Stat{ID: diskio.ID{Dev: 1, Ino: 77}}, "/other", nil},
		{"another inode", diskio.Stat{ID: diskio.ID{Dev: 1, Ino: 7}}, "/pool/a.qcow2", nil},
		{"no flags known", diskio.Stat{ID: diskio.ID{Dev: 1, Ino: 79}}, "/pool/vm.raw", []string{"30 [vmm]  writing"}},
		{"loop device", diskio.Stat{ID: diskio.ID{Dev: 1, Ino: 5}}, "/pool/disk.raw", []string{"0 [loop0]  reading"}},
		{"removed file", diskio.Stat{ID: diskio.ID{Dev: 1, Ino: 5}}, "/pool/a b\tc.raw", nil},
		{"nobody", diskio.Stat{ID: diskio.ID{Dev: 1, Ino: 1}}, "/x", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, h := range c.Holders(t.Context(), tc.st, tc.path) {
				mode := "reading"
				if h.Writing {
					mode = "writing"
				}
				got = append(got, fmt.Sprintf("%d %s %s %s", h.PID, h.Command(), h.Machine(), mode))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Holders(%s) (-want +got):\n%s", tc.path, diff)
			}
		})
	}
}

func TestMachineFiles(t *testing.T) {
	c, err := qemuWorld(t).Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range c.MachineFiles(t.Context()) {
		got = append(got, fmt.Sprintf("%d %s %v %s", f.PID, f.Path, f.Deleted, f.Process.Machine()))
	}
	want := []string{"17 /pool/a.qcow2 false vm-17", "17 /pool/gone.qcow2 true vm-17", "30 /pool/vm.raw false "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("MachineFiles (-want +got):\n%s", diff)
	}
}

// A process whose files cannot be listed is counted, one that ended is not.
func TestCensusCounts(t *testing.T) {
	h := fake(t, map[string]string{
		"proc/1/fd/0":     "->/dev/null",
		"proc/2/fd":       "is no directory",
		"proc/3/comm":     "ended\n",
		"proc/4/fd/3":     "->/pool/a",
		"proc/4/fdinfo/3": "->/loop",
		// A thread of the kernel and a process that has ended have no files; a name may look like
		// the rest of the line.
		"proc/5/fd":   "is no directory",
		"proc/5/stat": "5 (kworker/0:0) I 2 0 0 0 -1 69238880 0 0\n",
		"proc/6/fd":   "is no directory",
		"proc/6/stat": "6 (gone) Z 1 0 0 0 -1 4228300 0 0\n",
		"proc/7/fd":   "is no directory",
		"proc/7/stat": "7 (x) Z 1 0 0 0 -1 69238880) S 1 0 0 0 -1 4194304 0 0\n",
	})
	c, err := h.Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.Processes != 3 || c.Protected != 3 {
		t.Errorf("Census = %d processes, %d protected, want 3, 3", c.Processes, c.Protected)
	}
	want := []string{"3 of 6 processes are protected from this user"}
	if diff := cmp.Diff(want, c.Gaps()); diff != "" {
		t.Errorf("Gaps (-want +got):\n%s", diff)
	}
	if _, err := Open(t.TempDir()).Census(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Census without /proc = %v, want %v", err, os.ErrNotExist)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Census(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Census after cancel = %v, want %v", err, context.Canceled)
	}
}

// Where only machines matter, a protected process counts that may run one.
func TestMachineGaps(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"another program", map[string]string{"proc/2/fd": "x", "proc/2/comm": "cron\n", "proc/2/cmdline": "cron\x00"}, nil},
		{"called like an emulator", map[string]string{"proc/2/fd": "x", "proc/2/comm": "qemu-system-x86\n",
			"proc/2/cmdline": "/usr/bin/qemu-system-x86_64\x00"}, []string{"1 of 2 processes are protected from this user"}},
		{"no command line", map[string]string{"proc/2/fd": "x", "proc/2/comm": "cron\n", "proc/2/cmdline/": ""},
			[]string{"1 of 2 processes are protected from this user"}},
		{"no word of the kernel's modules", map[string]string{"proc/2/fd": "x", "proc/2/comm": "cron\n",
			"proc/2/cmdline": "cron\x00"}, []string{"1 of 2 processes are protected from this user"}},
		{"a host with KVM", map[string]string{"proc/2/fd": "x", "proc/2/comm": "cron\n", "proc/2/cmdline": "cron\x00",
			"sys/module/kvm/": ""}, []string{"1 of 2 processes are protected from this user"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.files["proc/1/fd/0"] = "->/dev/null"
			if tc.name != "no word of the kernel's modules" {
				tc.files["sys/module/loop/"] = ""
			}
			c, err := fake(t, tc.files).Census(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c.Protected != 1 || len(c.Gaps()) != 1 {
				t.Errorf("Census = %d protected, gaps %q, want one", c.Protected, c.Gaps())
			}
			if diff := cmp.Diff(tc.want, c.MachineGaps(t.Context())); diff != "" {
				t.Errorf("MachineGaps (-want +got):\n%s", diff)
			}
		})
	}
}

// look gives stat and real path of a file.
func look(t *testing.T, path string) (diskio.Stat, string) {
	t.Helper()
	st, err := diskio.Look(path)
	if err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return st, real
}

// hold starts a process that has a file open as its descriptor 3, until the test ends.
func hold(t *testing.T, path string, flags int) int {
	t.Helper()
	testenv.Need(t, "sleep")
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "100")
	cmd.ExtraFiles = []*os.File{f}
	testenv.Start(t, cmd)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestLiveHolders(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a\nb.img"), filepath.Join(dir, "other")
	for _, p := range []string{path, other} {
		if err := os.WriteFile(p, make([]byte, 512), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own, err := os.OpenFile(path, os.O_RDWR, 0) // our own must not count
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	reader, writer := hold(t, path, os.O_RDONLY), hold(t, path, os.O_RDWR)
	hold(t, other, os.O_RDWR)
	c, err := Open("").Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st, real := look(t, path)
	got := map[int]bool{}
	for _, h := range c.Holders(t.Context(), st, real) {
		if h.Command() != "sleep" {
			t.Errorf("Command() = %q, want sleep", h.Command())
		}
		got[h.PID] = h.Writing
	}
	if diff := cmp.Diff(map[int]bool{reader: false, writer: true}, got); diff != "" {
		t.Errorf("Holders (-want +got):\n%s", diff)
	}
	// A hard link is the same file.
	if err := os.Link(path, other+"2"); err != nil {
		t.Fatal(err)
	}
	st, real = look(t, other+"2")
	if n := len(c.Holders(t.Context(), st, real)); n != 2 {
		t.Errorf("Holders of a hard link = %d, want 2", n)
	}
}

func TestLiveLoop(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "losetup")
	path := filepath.Join(testenv.DiskDir(t), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		testenv.Lacks(t, "loop devices: "+string(out))
	}
	dev := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", dev).Run()
	holder := hold(t, dev, os.O_RDWR)
	c, err := Open("").Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st, real := look(t, path)
	hs := c.Holders(t.Context(), st, real)
	if len(hs) != 1 || "/dev/"+hs[0].Device != dev || !hs[0].Writing {
		t.Errorf("Holders(%s) = %+v, want %s writing", path, hs, dev)
	}
	// The device itself, by another node.
	node := filepath.Join(testenv.DiskDir(t), "node")
	if err := syscall.Mknod(node, syscall.S_IFBLK|0o600, int(mustLook(t, dev).Device)); err != nil {
		testenv.Lacks(t, "mknod: "+err.Error())
	}
	st, real = look(t, node)
	hs = c.Holders(t.Context(), st, real)
	if len(hs) != 1 || hs[0].PID != holder {
		t.Errorf("Holders(%s) = %+v, want process %d", node, hs, holder)
	}
}

func mustLook(t *testing.T, path string) diskio.Stat {
	st, _ := look(t, path)
	return st
}

// TestLiveElsewhere: a file is held by a loop device that was made of it by another mount, which is gone since, and by who has it
// open through an overlay. A file of the same name and inode on another file system is another one.
func TestLiveElsewhere(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "losetup", "mount", "umount")
	dir := testenv.DiskDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	run := func(what string, args ...string) string {
		out, err := exec.Command(what, args...).CombinedOutput()
		if err != nil {
			testenv.Lacks(t, what+": "+string(out))
		}
		return strings.TrimSpace(string(out))
	}
	for _, name := range []string{"pool", "bound", "upper", "work", "over"} {
		if err := os.Mkdir(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("pool/disk.raw"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	run("mount", "--bind", at("pool"), at("bound"))
	device := run("losetup", "--find", "--show", at("bound/disk.raw"))
	defer exec.Command("losetup", "-d", device).Run()
	run("umount", "--lazy", at("bound"))
	run("mount", "-t", "overlay", "over", "-o", "lowerdir="+at("pool")+",upperdir="+at("upper")+",workdir="+at("work"), at("over"))
	defer exec.Command("umount", "--lazy", at("over")).Run()
	over := hold(t, at("over/disk.raw"), os.O_RDONLY)
	plain := hold(t, at("pool/disk.raw"), os.O_RDONLY)
	c, err := Open("").Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	holders := func(st diskio.Stat) map[string]bool {
		got := map[string]bool{}
		for _, h := range c.Holders(t.Context(), st, at("pool/disk.raw")) {
			got[fmt.Sprint(h.PID, " ", h.Device)] = true
		}
		return got
	}
	st := mustLook(t, at("pool/disk.raw"))
	want := map[string]bool{"0 " + strings.TrimPrefix(device, "/dev/"): true, fmt.Sprint(over, " "): true, fmt.Sprint(plain, " "): true}
	if diff := cmp.Diff(want, holders(st)); diff != "" {
		t.Errorf("Holders (-want +got):\n%s", diff)
	}
	st.Dev++
	if diff := cmp.Diff(map[string]bool{fmt.Sprint(over, " "): true}, holders(st)); diff != "" {
		t.Errorf("Holders of another file system's file (-want +got):\n%s", diff)
	}
}

// The census of a whole host must stay a small part of a check.
func TestCensusIsQuick(t *testing.T) {
	start := time.Now()
	c, err := Open("/").Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d processes, %d open files: %v", c.Processes, len(c.files), time.Since(start))
}

func FuzzGuestName(f *testing.F) {
	for _, s := range []string{"guest=a,debug-threads=on", "a,,b", ",", "guest=,guest=b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := guestName(s); len(got) > len(s) {
			t.Errorf("guestName(%q) = %q, longer than its input", s, got)
		}
	})
}

func FuzzFdinfo(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t02100002\nmnt_id:\t27\nino:\t77\n" + lockLines))
	f.Add([]byte("flags:\t9\nino:\t-1\nlock:\t: : :\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var o OpenFile
		o.fdinfo(b)
	})
}

// TestBacking: a loop device that loses its file while it is looked at has none, or another.
func TestBacking(t *testing.T) {
	for _, c := range []struct {
		answers []error
		want    error
	}{
		{[]error{nil}, nil},
		{[]error{unix.ENOENT}, unix.ENOENT},
		{[]error{unix.ENODEV, unix.ENOENT}, unix.ENOENT},
		{[]error{unix.ENODEV, unix.ENODEV, nil}, nil},
		{[]error{unix.EIO, nil}, unix.EIO},
		{[]error{unix.ENODEV, unix.ENODEV, unix.ENODEV, unix.ENODEV, unix.ENODEV, nil}, unix.ENODEV},
	} {
		n := 0
		_, err := backing(func() ([]byte, error) { n++; return nil, c.answers[n-1] })
		if err != c.want {
			t.Errorf("answers %v: %v, want %v", c.answers, err, c.want)
		}
	}
}
