// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// tmpfs mounts a file system in memory where only these tests see it.
func tmpfs(t testing.TB) string {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// own gives the holders of a kind that this process has on the mount.
func own(t testing.TB, r *Refs, m Mount, k Kind) map[uint64]Reference {
	t.Helper()
	refs, err := r.References(t.Context(), m.Super)
	if err != nil {
		t.Fatal(err)
	}
	held := map[uint64]Reference{}
	for _, ref := range refs {
		if ref.Kind == k && ref.PID == os.Getpid() && ref.Mount == m.Addr {
			held[ref.Holder] = ref
		}
	}
	return held
}

// many is more than any program takes in one run.
const many = 700

// open opens n files in dir until the test's end.
func open(t testing.TB, dir string, n int) (fds []int) {
	t.Helper()
	for i := range n {
		fd, err := unix.Open(fmt.Sprintf("%s/file%d", dir, i), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

func shut(t testing.TB, fds []int) {
	t.Helper()
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
}

// TestManyFiles holds that open files are found to the last one, with their descriptors and names.
func TestManyFiles(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	m := find(t, r, dir)
	fds := open(t, dir, many)
	held := own(t, r, m, OpenFD)
	if len(held) != many {
		t.Errorf("%d open files, want %d", len(held), many)
	}
	for _, ref := range held {
		if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ref.FD)); err != nil || to != ref.Path {
			t.Errorf("descriptor %d is at %q, want %q (%v)", ref.FD, ref.Path, to, err)
		}
	}
	shut(t, fds)
	if held := own(t, r, m, OpenFD); len(held) != 0 {
		t.Errorf("%d open files after they were closed, want 0", len(held))
	}
}

// TestManyMappings holds that mappings are found to the last one, from a tree of areas with several
// levels.
func TestManyMappings(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	m := find(t, r, dir)
	var maps [][]byte
	for _, fd := range open(t, dir, many) {
		// Three apart from each other, so that there are many areas of few files.
		for range 3 {
			mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			maps = append(maps, mem)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	if held := own(t, r, m, Mapping); len(held) != many {
		t.Errorf("%d files are mapped, want %d", len(held), many)
	}
	for _, mem := range maps {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	}
	if held := own(t, r, m, Mapping); len(held) != 0 {
		t.Errorf("%d files are mapped after they were unmapped, want 0", len(held))
	}
}

// TestMappingsAgree holds what is found of the libraries of all processes against /proc/PID/maps.
func TestMappingsAgree(t *testing.T) {
	r := openRefs(t)
	c := exec.Command("sleep", "inf") // one that has libraries, and keeps still
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		c.Process.Kill()
		c.Wait()
	}()
	super := find(t, r, "/").Super
	var want, got map[string]bool
	for ready := false; !ready; { // until it has its libraries, and is done with all else
		want, got = mapped(t, c), map[string]bool{}
		refs, err := r.References(t.Context(), super)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range refs {
			if ref.PID == c.Process.Pid && ref.Kind == Mapping {
				got[ref.Path] = true
			}
		}
		ready = len(want) > 1 && maps.Equal(want, mapped(t, c))
	}
	if !maps.Equal(want, got) {
		t.Errorf("these files are mapped: %v, want %v", got, want)
	}
}

// mapped are the files that a process has mapped besides its program.
func mapped(t *testing.T, c *exec.Cmd) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	program, err := filepath.EvalSymlinks(c.Path)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]bool{}
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		if len(f) > 5 && strings.HasPrefix(f[5], "/") && f[5] != program {
			files[f[5]] = true
		}
	}
	return files
}

// TestManyInFlight holds that messages are found to the last one, and in each the last file.
func TestManyInFlight(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	m := find(t, r, dir)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	const messages, each = 80, 100
	fds := open(t, dir, each)
	for range messages {
		if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fds...), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, fds)
	held := own(t, r, m, InFlight)
	if len(held) != each {
		t.Errorf("%d files in flight, want %d", len(held), each)
	}
	for _, ref := range held {
		if ref.FD != pair[1] {
			t.Errorf("%+v is in flight to descriptor %d, want %d", ref, ref.FD, pair[1])
		}
	}
	shut(t, pair[:])
	if held := own(t, r, m, InFlight); len(held) != 0 {
		t.Errorf("%d files in flight to no socket, want 0", len(held))
	}
}

// TestManyEvents holds that events are found to the last one.
func TestManyEvents(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	m := find(t, r, dir)
	group, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, 0)
	if err != nil {
		testenv.Lacks(t, "fanotify: "+err.Error())
	}
	if err := unix.FanotifyMark(group, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_OPEN, -1, dir); err != nil {
		t.Fatal(err)
	}
	shut(t, open(t, dir, many))
	if held := own(t, r, m, Fanotify); len(held) != many {
		t.Errorf("%d events, want %d", len(held), many)
	}
	shut(t, []int{group})
	if held := own(t, r, m, Fanotify); len(held) != 0 {
		t.Errorf("%d events that nobody can read, want 0", len(held))
	}
}

// TestInherited holds that what two processes share is said of both, and is one holder.
func TestInherited(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	m := find(t, r, dir)
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := exec.Command("sleep", "inf")
	c.ExtraFiles = []*os.File{f}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		c.Process.Kill()
		c.Wait()
	}()
	refs, err := r.References(t.Context(), m.Super)
	if err != nil {
		t.Fatal(err)
	}
	holders, pids := map[uint64]bool{}, map[int]bool{}
	for _, ref := range refs {
		holders[ref.Holder], pids[ref.PID] = true, true
	}
	if len(holders) != 1 || !pids[os.Getpid()] || !pids[c.Process.Pid] {
		t.Errorf("References = %+v, want one file of %d and %d", refs, os.Getpid(), c.Process.Pid)
	}
}

// TestProcessNamespace holds that processes have the numbers of our own namespace of processes.
func TestProcessNamespace(t *testing.T) {
	testenv.NeedRoot(t)
	c := exec.Command(os.Args[0], "-test.v", "-test.run=^TestInherited$")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestInherited ") {
		t.Errorf("TestInherited as process 1: %v\n%s", err, out)
	}
}

// TestDeepPath holds that a path of any depth is whole, and that its bytes stay as they are.
func TestDeepPath(t *testing.T) {
	r := openRefs(t)
	dir := tmpfs(t)
	m := find(t, r, dir)
	path := dir
	for i := range 200 {
		path += fmt.Sprintf("/%d", i)
		if i == 100 {
			path += "\x01\n\xff" + strings.Repeat("n", 249) // 255 bytes with the number
		}
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, ref := range own(t, r, m, OPath) {
		if ref.Path != path {
			t.Errorf("path = %q, want %q", ref.Path, path)
		}
		return
	}
	t.Error("the directory was not found")
}

// TestIncomplete holds that what this kernel keeps in a way that is not known is said, with what was
// found.
func TestIncomplete(t *testing.T) {
	s := newSearch(nil, 1, nil)
	data := make([]byte, 48)
	binary.NativeEndian.PutUint16(data[4:], foundUnknown)
	o := owner{&refsTaskFound{Tgid: 7}, 9}
	if err := s.take(record{kind: foundUnknown, data: data}, IOUring, []owner{o}, false, nil, nil); err != nil {
		t.Fatal(err)
	}
	want := Unread{Kind: IOUring, PID: 7, FD: 9, Reason: s.unread[0].Reason}
	if len(s.unread) != 1 || s.unread[0] != want || want.Reason == "" {
		t.Errorf("not looked into: %+v, want %+v", s.unread, want)
	}
	for n, end := range map[int]string{1: "is not known", 5: "and 2 more"} {
		err := error(&Incomplete{slices.Repeat(s.unread, n)})
		if text := err.Error(); !strings.HasSuffix(text, end) || strings.Contains(text, "\n") {
			t.Errorf("%q does not end in %q on one line", text, end)
		}
	}
}

// TestEndOfContext holds that a scan ends with its context.
func TestEndOfContext(t *testing.T) {
	r := openRefs(t)
	m := find(t, r, "/")
	ctx, cancel := contextEnded(t)
	defer cancel()
	if _, err := r.References(ctx, m.Super); !errors.Is(err, ctx.Err()) {
		t.Errorf("References = %v, want %v", err, ctx.Err())
	}
	if _, err := r.MountsOf(ctx, m.Super); !errors.Is(err, ctx.Err()) {
		t.Errorf("MountsOf = %v, want %v", err, ctx.Err())
	}
}
