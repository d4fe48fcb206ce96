// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// made is a directory with files, and links where the content begins with "->".
func made(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(text, "->"); link {
			err = os.Symlink(to, at)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(at, 0o755)
		} else {
			err = os.WriteFile(at, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func opened(t *testing.T, dir string) *Local {
	t.Helper()
	l, err := OpenDirectory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestDirectoryReads(t *testing.T) {
	l := opened(t, made(t, map[string]string{
		"etc/hostname":      "one\n",
		"etc/absolute":      "->/etc/hostname",
		"etc/up":            "->../../../../../etc/hostname",
		"etc/dir":           "->/var/real/../real",
		"var/real/file":     "two\n",
		"var/loop":          "->loop",
		"var/away":          "->/../../../../proc/version",
		"var/empty/":        "",
		"sys/class/block/x": "1\n",
		"shisa/meta.json":   "{}",
	}))
	if err := unix.Mkfifo(filepath.Join(l.base, "etc/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, want string
		err        error
	}{
		{"/etc/hostname", "one\n", nil},
		{"/etc/../etc//hostname", "one\n", nil},
		{"/etc/absolute", "one\n", nil},
		{"/etc/up", "one\n", nil},
		{"/etc/dir/file", "two\n", nil},
		{"/etc/dir/../real/file", "", fs.ErrNotExist}, // names are cleaned first
		{"/sys/class/block/x", "1\n", nil},
		{"/var/loop", "", unix.ELOOP},
		{"/var/away", "", ErrNotCollected},
		{"/var/none", "", fs.ErrNotExist},
		{"/etc/hostname/below", "", fs.ErrNotExist},
		{"/proc/1/mountinfo", "", ErrNotCollected},
		{"/sys/class/block/y", "", ErrNotCollected},
		{"/run/udev", "", ErrNotCollected},
		{"/shisa/meta.json", "", ErrNotCollected},
		{"/etc/fifo", "", diskio.ErrSpecial},
		{"/etc", "", diskio.ErrSpecial},
		{"etc/hostname", "", fs.ErrInvalid},
		{"/etc/a\x00b", "", fs.ErrInvalid},
	} {
		got, err := l.Read(t.Context(), tc.name, 100)
		if string(got) != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("Read(%q) = %q, %v; want %q, %v", tc.name, got, err, tc.want, tc.err)
		}
	}
	if got, err := l.Read(t.Context(), "/etc/hostname", 2); string(got) != "on" || !errors.Is(err, ErrTooLarge) {
		t.Errorf("a long file = %q, %v", got, err)
	}
	if to, err := l.Link(t.Context(), "/etc/absolute"); to != "/etc/hostname" || err != nil {
		t.Errorf("Link = %q, %v", to, err)
	}
	if _, err := l.Link(t.Context(), "/etc/hostname"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Link of a file: %v", err)
	}
}

func TestDirectoryLists(t *testing.T) {
	l := opened(t, made(t, map[string]string{
		"etc/b": "12", "etc/a": "->b", "etc/c/": "", "var/empty/": "", "proc/": "", "sys/block/": "",
	}))
	all, err := l.List(t.Context(), "/etc")
	got := ""
	for _, e := range all {
		got += fmt.Sprintf("%s %v %v %v;", e.Name, e.Type, e.Size > 0, e.Mtime.IsZero())
	}
	if want := "a L--------- true false;b ---------- true false;c d--------- true false;"; err != nil ||
		got != want {
		t.Errorf("List = %s, %v; want %s", got, err, want)
	}
	if all, err := l.List(t.Context(), "/var/empty"); len(all) > 0 || err != nil {
		t.Errorf("an empty directory: %v, %v", all, err)
	}
	for _, name := range []string{"/proc", "/sys/block", "/dev"} {
		if all, err := l.List(t.Context(), name); len(all) > 0 || !errors.Is(err, ErrNotCollected) {
			t.Errorf("List(%s) of a copy = %v, %v; want %v", name, all, err, ErrNotCollected)
		}
	}
}

// TestDirectoryWithoutItsVolumes: what a system mounts, and a copy has not, is not missing there.
func TestDirectoryWithoutItsVolumes(t *testing.T) {
	l := opened(t, made(t, map[string]string{
		"etc/fstab": "UUID=1 / ext4 x 0 1\nUUID=2 /var xfs x 0 2\nUUID=3 /home ext4 x 0 2\ntmpfs /tmp tmpfs x\n" +
			"UUID=4 /srv xfs x 0 2\n",
		"var/": "", "home/user/file": "x", "tmp/": "",
	}))
	for name, want := range map[string]error{"/var/log/messages": ErrNotCollected, "/srv/a": ErrNotCollected,
		"/home/other": fs.ErrNotExist, "/tmp/x": fs.ErrNotExist, "/opt/x": fs.ErrNotExist} {
		if _, err := l.Read(t.Context(), name, 10); !errors.Is(err, want) {
			t.Errorf("Read(%s): %v, want %v", name, err, want)
		}
	}
}

func TestReport(t *testing.T) {
	files := map[string]string{
		"sos_commands/kernel/dmesg": "[ 1.0] x\n", "proc/self/mountinfo": "x", "etc/hostname": "h",
	}
	deeper := map[string]string{}
	for name, text := range files {
		deeper["sosreport-h-1/"+name] = text
	}
	for _, dir := range []string{made(t, files), made(t, deeper)} {
		l := opened(t, dir)
		if b, err := l.Read(t.Context(), "/sos_commands/kernel/dmesg", 100); err != nil || len(b) == 0 {
			t.Errorf("what a command printed: %q, %v", b, err)
		}
		if _, err := l.Read(t.Context(), "/etc/fstab", 100); !errors.Is(err, ErrNotCollected) {
			t.Errorf("what is not in a report: %v, want %v", err, ErrNotCollected)
		}
	}
}

// TestLongName: a hostile copy makes no more work than Linux would have with it.
func TestLongName(t *testing.T) {
	files := map[string]string{"end": "x"}
	for i := range maxLinks + 5 {
		files[fmt.Sprintf("l%d", i)] = fmt.Sprintf("->/l%d", i+1)
	}
	files[fmt.Sprintf("l%d", maxLinks+5)] = "->/end"
	l := opened(t, made(t, files))
	if _, err := l.Read(t.Context(), "/l0", 10); !errors.Is(err, unix.ELOOP) {
		t.Errorf("too many links: %v", err)
	}
	if b, err := l.Read(t.Context(), "/l10", 10); string(b) != "x" || err != nil {
		t.Errorf("as many as are followed: %q, %v", b, err)
	}
}

// stuck mounts a file system at dir that never answers.
func stuck(t *testing.T, dir string) {
	t.Helper()
	testenv.NeedRoot(t)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		testenv.Lacks(t, "/dev/fuse: "+err.Error())
	}
	err = unix.Mount("stuck", dir, "fuse.stuck", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	if err != nil {
		unix.Close(fd)
		testenv.Lacks(t, "FUSE: "+err.Error())
	}
	t.Cleanup(func() {
		unix.Close(fd) // who waits gets an error
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestMountsThatMayHang: neither a name below such a mount nor its place in a list is touched.
func TestMountsThatMayHang(t *testing.T) {
	dir := made(t, map[string]string{"srv/dead/": "", "srv/file": "x", "etc/link": "->../srv/dead/file",
		"etc/side": "->/srv/dead/../file"})
	stuck(t, filepath.Join(dir, "srv/dead"))
	l := opened(t, dir)
	for _, name := range []string{"/srv/dead", "/srv/dead/file", "/etc/link", "/etc/side"} {
		if _, err := l.Read(t.Context(), name, 10); !errors.Is(err, ErrAvoided) {
			t.Errorf("Read(%s): %v, want %v", name, err, ErrAvoided)
		}
	}
	if b, err := l.Read(t.Context(), "/srv/file", 10); string(b) != "x" || err != nil {
		t.Errorf("beside it: %q, %v", b, err)
	}
	all, err := l.List(t.Context(), "/srv")
	if err != nil || len(all) != 2 || all[0].Name != "dead" || !all[0].Type.IsDir() {
		t.Errorf("List = %v, %v", all, err)
	}
}

// TestNoAnswer: what does not answer is waited for once.
func TestNoAnswer(t *testing.T) {
	dir := made(t, map[string]string{"srv/dead/": "", "srv/file": "x"})
	stuck(t, filepath.Join(dir, "srv/dead"))
	l := opened(t, dir)
	clear(l.avoid) // as if it were of a type that waits for disks
	for i, want := range []error{diskio.ErrTimeout, ErrAvoided, ErrAvoided} {
		if _, err := l.Read(t.Context(), fmt.Sprintf("/srv/dead/%d", i), 10); !errors.Is(err, want) {
			t.Errorf("Read %d: %v, want %v", i, err, want)
		}
	}
	if b, err := l.Read(t.Context(), "/srv/file", 10); string(b) != "x" || err != nil {
		t.Errorf("beside it: %q, %v", b, err)
	}
}

func TestLive(t *testing.T) {
	l, err := OpenLive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := l.Read(t.Context(), "/proc/self/mountinfo", 64<<20)
	if err != nil || !strings.Contains(string(b), " / ") {
		t.Errorf("mountinfo: %d bytes, %v", len(b), err)
	}
	if _, err := l.Read(t.Context(), "/proc/self/cwd/local_test.go", 10); !errors.Is(err, ErrAvoided) {
		t.Errorf("through what a process has open: %v", err)
	}
	if _, err := l.Read(t.Context(), "/proc/kmsg", 10); !errors.Is(err, diskio.ErrSpecial) {
		t.Errorf("/proc/kmsg: %v", err)
	}
	if to, err := l.Link(t.Context(), "/proc/self/ns/mnt"); err != nil || !strings.HasPrefix(to, "mnt:[") {
		t.Errorf("a name space: %q, %v", to, err)
	}
	if _, err := l.Read(t.Context(), "/proc/4194305/stat", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.List(ctx, "/proc"); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

func TestOverlay(t *testing.T) {
	l := opened(t, made(t, map[string]string{"etc/hostname": "h", "shisa/tasks.json": "planted"}))
	o := Overlay(l, map[string][]byte{"/shisa/probes.json": []byte("123")})
	b, err := o.Read(t.Context(), "/shisa/probes.json", 2)
	if string(b) != "12" || !errors.Is(err, ErrTooLarge) {
		t.Errorf("Read = %q, %v", b, err)
	}
	if _, err := o.Read(t.Context(), "/shisa/tasks.json", 9); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what lies below: %v", err)
	}
	if b, err := o.Read(t.Context(), "/etc/hostname", 9); string(b) != "h" || err != nil {
		t.Errorf("the tree itself: %q, %v", b, err)
	}
	all, err := o.List(t.Context(), "/shisa")
	if d := cmp.Diff([]Entry{{Name: "probes.json", Size: 3}}, all); d != "" || err != nil {
		t.Errorf("List: %s, %v", d, err)
	}
	more := Overlay(o, map[string][]byte{"/shisa/log.json": []byte("4")})
	for name, want := range map[string]string{"/shisa/probes.json": "123", "/shisa/log.json": "4"} {
		if b, err := more.Read(t.Context(), name, 9); string(b) != want || err != nil {
			t.Errorf("of two overlays: %s is %q, %v", name, b, err)
		}
	}
}
