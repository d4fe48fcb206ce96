// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	switch {
	case IsGuard(os.Args):
		os.Exit(RunGuard(os.Args))
	case hold.IsChild(os.Args):
		hold.Serve()
	case len(os.Args) == 3 && os.Args[1] == "freeze-and-wait":
		freezeAndWait(os.Args[2])
	}
	if err := hold.Apart(); err != nil {
		fmt.Fprintln(os.Stderr, err) // tests that need it fail
	}
	testenv.Main(m)
}

// freezeAndWait stops a unit and waits to be killed.
func freezeAndWait(unit string) {
	f, err := newFreezer(context.Background(), world(), unit, linux.Mount{})
	if err == nil {
		err = f.freeze(context.Background())
	}
	fmt.Println(err)
	time.Sleep(time.Hour)
}

// opener starts a process that has a directory open for 60 % of the time, for moments. Who calls it
// releases it.
func opener(t *testing.T, dir string) *hold.Hold {
	t.Helper()
	h, err := hold.Pass(t.Context(), hold.OpenLoop, dir)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func release(t *testing.T, h *hold.Hold) {
	t.Helper()
	if err := h.Release(); err != nil {
		t.Error(err)
	}
}

func world() World { return World{Host: linux.Open(""), Guard: StartGuard} }

// mount mounts a tmpfs that the end of the test takes away.
func mount(t *testing.T) string {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("shisa-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	return dir
}

// run starts this program once more, or another one; the end of the test ends it.
func run(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testenv.Start(t, c)
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	return c
}

func isMounted(t *testing.T, dir string) bool {
	t.Helper()
	_, err := mounted(context.Background(), linux.Open(""), dir)
	if err != nil && !errors.Is(err, ErrNotMounted) {
		t.Fatal(err)
	}
	return err == nil
}

func TestUnmount(t *testing.T) {
	dir := mount(t)
	r, err := Unmount(t.Context(), world(), dir, Options{})
	if err != nil || r.State != Done || r.Tries != 1 || r.Status[0] != 0 || isMounted(t, dir) {
		t.Errorf("Unmount = %+v, %v, want one try", r, err)
	}
	if _, err := Unmount(t.Context(), world(), dir, Options{}); !errors.Is(err, ErrNotMounted) {
		t.Errorf("Unmount of nothing = %v, want ErrNotMounted", err)
	}
}

// TestOpener is the cure: somebody opens the mount again and again, and every umount succeeds.
func TestOpener(t *testing.T) {
	rounds := 10
	if testenv.Long() {
		rounds = 50
	}
	dir := mount(t)
	defer release(t, opener(t, dir))
	tries := 0
	for n := range rounds {
		// On a machine that does other things the opener may sleep while it holds.
		r, err := Unmount(t.Context(), world(), dir, Options{Wait: time.Hour})
		if err != nil || r.State != Done {
			t.Fatalf("umount %d = %+v, %v", n, r, err)
		}
		tries += r.Tries
		if err := unix.Mount("shisa-test", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // for the other one to meet the new mount
	}
	t.Logf("%d umounts took %d tries", rounds, tries)
}

func TestHeld(t *testing.T) {
	dir := mount(t)
	c := exec.Command("sleep", "1000")
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	w := world()
	w.Scan = func(_ context.Context, path string) (*holders.Report, error) {
		if path != dir {
			t.Errorf("Scan of %s", path)
		}
		return &holders.Report{Holders: []holders.Holder{{Kind: holders.Cwd}}}, nil
	}
	r, err := Unmount(t.Context(), w, dir, Options{Wait: 50 * time.Millisecond})
	if err != nil || r.State != Held || r.Tries < 2 || r.Report == nil || r.Status[0] != finding.StatusFound ||
		!isMounted(t, dir) {
		t.Errorf("Unmount = %+v, %v, want it held, and who", r, err)
	}
	w.Scan = nil
	if r, err = Unmount(t.Context(), w, dir, Options{Wait: 1}); err != nil || r.State != Held || r.Tries < 2 {
		t.Errorf("Unmount on a machine that has no time = %+v, %v, want it tried again", r, err)
	}
	r, err = Unmount(t.Context(), w, dir, Options{})
	if err != nil || r.State != Held || r.Tries != 1 || r.Status[0] != finding.StatusCannotTell {
		t.Errorf("Unmount without a look = %+v, %v, want that it cannot be told by whom", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unmount(ctx, w, dir, Options{Wait: time.Minute}); !errors.Is(err, context.Canceled) {
		t.Errorf("Unmount called off = %v", err)
	}
}

// watched is a watcher that saw failures.
type watched struct {
	failed []Try
	closed bool
}

func (w *watched) Engine() string                      { return "watch" }
func (w *watched) Tell(context.Context) ([]Try, int64) { return w.failed, 2 }
func (w *watched) Close() error                        { w.closed = true; return nil }

func TestWatched(t *testing.T) {
	dir := mount(t)
	seen := &watched{failed: make([]Try, maxFailed+3)}
	w := world()
	w.Watch = func(context.Context, linux.Mount) (Watcher, error) { return seen, nil }
	r, err := Unmount(t.Context(), w, dir, Options{})
	if err != nil || r.Watched != "watch" || len(r.Failed) != maxFailed || r.FailedCut != 3 || !seen.closed ||
		!slices.Contains(r.Notes, "2 records of the watch were lost") {
		t.Errorf("Unmount = %+v, %v", r, err)
	}
	dir = mount(t)
	w.Watch = func(context.Context, linux.Mount) (Watcher, error) { return nil, errors.New("no engine") }
	if r, err = Unmount(t.Context(), w, dir, Options{}); err != nil || r.NotWatched != "no engine" {
		t.Errorf("Unmount = %+v, %v", r, err)
	}
}

// patience is how long is waited for what comes by itself, on a machine that may be very busy.
const patience = 5 * time.Minute

// group makes a control group for one unit with a process in it.
func group(t *testing.T, pid int) (unit, dir string) {
	t.Helper()
	mounts, err := linux.Open("").Mounts(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.Type != "cgroup2" {
			continue
		}
		unit = fmt.Sprintf("shisa-test-%d.service", pid)
		dir = filepath.Join(m.Point, unit)
		if err := os.Mkdir(dir, 0o755); err != nil {
			break
		}
		t.Cleanup(func() {
			// A process leaves its group some time after it was waited for.
			for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
				if err := os.Remove(dir); err == nil {
					return
				} else if time.Now().After(end) {
					t.Error(err)
					return
				}
			}
		})
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
			t.Fatal(err)
		}
		return unit, dir
	}
	testenv.Lacks(t, "control groups of version 2 to be made")
	return "", ""
}

func frozen(t *testing.T, dir string) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze"))
	if err != nil {
		t.Fatal(err)
	}
	return b[0] == '1'
}

func TestFreeze(t *testing.T) {
	dir := mount(t)
	o := opener(t, dir)
	defer release(t, o) // before its group
	unit, at := group(t, o.PID)
	r, err := Unmount(t.Context(), world(), dir, Options{Wait: time.Hour, Freeze: unit})
	if err != nil || r.State != Done || r.Frozen != unit || !r.Thawed || frozen(t, at) {
		t.Errorf("Unmount = %+v, %v; frozen: %v", r, err, frozen(t, at))
	}
}

// TestKilled: whoever stops a unit may be killed, and it goes on.
func TestKilled(t *testing.T) {
	testenv.NeedRoot(t)
	victim := exec.Command("sleep", "1000")
	victim.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	unit, at := group(t, victim.Process.Pid)
	t.Cleanup(func() {
		victim.Process.Kill()
		victim.Wait()
	})
	c := exec.Command(os.Args[0], "freeze-and-wait", unit)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256)
	n, err := out.Read(b)
	if err != nil || string(b[:n]) != "<nil>\n" || !frozen(t, at) {
		t.Fatalf("stopping the unit: %q, %v; frozen: %v", b[:n], err, frozen(t, at))
	}
	c.Process.Kill()
	c.Wait()
	for end := time.Now().Add(patience); frozen(t, at); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the unit is stopped still")
		}
	}
}

func TestNotStopped(t *testing.T) {
	testenv.NeedRoot(t)
	sshd := filepath.Join(t.TempDir(), "sshd")
	program, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sshd, program, 0o700); err != nil {
		t.Fatal(err)
	}
	fuse, err := os.Open("/dev/fuse")
	if err != nil {
		testenv.Lacks(t, "FUSE: "+err.Error())
	}
	defer fuse.Close()
	server := exec.Command("sleep", "1000")
	server.ExtraFiles = []*os.File{fuse}
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer server.Wait()
	defer server.Process.Kill()
	for _, c := range []struct {
		name, fstype string
		pid          int
		want         string
	}{
		{"the first process", "tmpfs", 1, "process 1 of it is the first one of the host"},
		{"itself", "tmpfs", os.Getpid(), "or one that started this program"},
		{"who started it", "tmpfs", os.Getppid(), "or one that started this program"},
		{"sshd", "tmpfs", run(t, sshd, "1000").Process.Pid, "by which people come in"},
		{"a server", "fuse.x", server.Process.Pid, "serves a file system such as this one"},
		{"a server of another", "tmpfs", server.Process.Pid, ""},
		{"nobody", "tmpfs", 0, "it has no processes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			text := strconv.Itoa(c.pid) + "\n"
			if c.pid == 0 {
				text = ""
			}
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := harmless(t.Context(), linux.Open(""), "x.service", dir, linux.Mount{Type: c.fstype})
			switch {
			case c.want == "" && err != nil:
				t.Errorf("harmless = %v", err)
			case c.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("harmless = %v, want %s", err, c.want)
			}
		})
	}
	if _, err := groupOf(t.Context(), linux.Open(""), "shisa-no-such.service"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a unit that is none: %v", err)
	}
	if _, err := groupOf(t.Context(), linux.Open(""), "../init.scope"); err == nil {
		t.Error("a unit with a path: no error")
	}
}

func TestLazy(t *testing.T) {
	held := func(k holders.Kind, writing ...bool) *holders.Report {
		h := holders.Holder{Kind: k, FD: -1}
		for _, w := range writing {
			h.Writing = &w
		}
		return &holders.Report{Audit: holders.Audit{Read: true}, Holders: []holders.Holder{h}}
	}
	for _, c := range []struct {
		name   string
		report *holders.Report
		accept bool
		want   string // refused
	}{
		{"nobody", &holders.Report{Audit: holders.Audit{Read: true}}, false, ""},
		{"a working directory", held(holders.Cwd, false), false, ""},
		{"an open file", held(holders.OpenFD, true), false, "the kernel may write to it: open_fd"},
		{"an open file, accepted", held(holders.OpenFD, true), true, ""},
		{"a file open for reading", held(holders.OpenFD, false), false, ""},
		{"a loop device", held(holders.Loop, true), false, "may write"},
		{"not known", held(holders.Mapping), false, "whether the kernel writes to it is not known: mapping"},
		{"not known, accepted", held(holders.Mapping), true, ""},
		{"a writer by the kernel's count", &holders.Report{Audit: holders.Audit{Read: true, Writers: 2}}, false,
			"writers that nobody explains: 2"},
		{"not looked", nil, false, "could not be looked at"},
		{"no counter", &holders.Report{Audit: holders.Audit{Reason: "no BPF"}}, false, "no BPF"},
		{"unexplained", &holders.Report{Audit: holders.Audit{Read: true, Unexplained: 1}}, false, "references that nobody explains: 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := mount(t)
			w := world()
			w.Scan = func(context.Context, string) (*holders.Report, error) { return c.report, nil }
			r, err := Unmount(t.Context(), w, dir, Options{Lazy: true, AcceptLazy: c.accept})
			switch {
			case c.want != "":
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) || !isMounted(t, dir) {
					t.Errorf("Unmount = %+v, %v, want refused: %s", r, err, c.want)
				}
			case err != nil || r.State != Detached || isMounted(t, dir):
				t.Errorf("Unmount = %+v, %v, want it detached", r, err)
			}
		})
	}
}

// TestDeviceFree: the mount is gone, and its file system lives on in a bind mount.
func TestDeviceFree(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mount", "losetup")
	dir, other := t.TempDir(), t.TempDir()
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.Truncate(mustCreate(t, image), 8<<20); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", image)
	loop := strings.TrimSpace(command(t, "losetup", "-f", "--show", image))
	t.Cleanup(func() { command(t, "losetup", "-d", loop) })
	command(t, "mount", loop, dir)
	command(t, "mount", "--bind", dir, other)
	t.Cleanup(func() {
		for _, d := range []string{dir, other} {
			if isMounted(t, d) {
				command(t, "umount", d)
			}
		}
	})
	w := world()
	w.Scan = func(_ context.Context, path string) (*holders.Report, error) {
		if path != loop {
			t.Errorf("Scan of %s, want %s", path, loop)
		}
		return &holders.Report{Holders: []holders.Holder{{Kind: holders.Mounted}}}, nil
	}
	r, err := Unmount(t.Context(), w, dir, Options{DeviceFree: true, Wait: 50 * time.Millisecond})
	if err != nil || r.State != Pinned || r.Status[0] != finding.StatusFound || isMounted(t, dir) ||
		r.Undo != "mount -t ext4 "+loop+" "+dir {
		t.Errorf("Unmount = %+v, %v, want its device busy", r, err)
	}
	if r, err = Unmount(t.Context(), w, other, Options{DeviceFree: true}); err != nil || r.State != Done {
		t.Errorf("Unmount of the last = %+v, %v, want it free", r, err)
	}
	w.Kernel = func() (Kernel, error) { return nil, errors.New("no BPF") }
	r, err = Unmount(t.Context(), w, mount(t), Options{DeviceFree: true})
	if err != nil || r.State != Unknown || r.Status[0] != finding.StatusCannotTell {
		t.Errorf("Unmount without a device = %+v, %v, want that it cannot be told", r, err)
	}
}

func mustCreate(t *testing.T, path string) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}
