// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// onAnother runs fn on a thread that no other goroutine uses, and keeps that until the test ends.
func onAnother(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		fn()
		close(done)
		<-t.Context().Done()
	}()
	<-done
}

// busy has a umount fail, and gives what is told of it.
func busy(t *testing.T, e *Engine, on Target) Event {
	t.Helper()
	if err := unix.Unmount(on.Path, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY {
		t.Fatalf("umount = %v, want %v", err, unix.EBUSY)
	}
	return until(t, e, func(ev Event) bool { return ev.Kind == Umount && ev.PID == os.Getpid() })
}

// TestThreads holds that what one thread took and another one dropped is known from begin to end, and
// that nothing of it stays: more often than references of one thread are told apart.
func TestThreads(t *testing.T) {
	on := scratch(t)
	e := opened(t, Watch, 0, on)
	for range 6 {
		var fd int
		var err error
		onAnother(t, func() { fd, err = unix.Open(on.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
		if err != nil {
			t.Fatal(err)
		}
		u := busy(t, e, on)
		onAnother(t, func() { err = unix.Close(fd) })
		if err != nil {
			t.Fatal(err)
		}
		h := until(t, e, func(ev Event) bool { return ev.Kind == Hold && ev.PID == os.Getpid() })
		if h.Since == 0 || h.Since > u.Since || h.TS < u.TS || CallName(h.Got.Nr) != "openat" {
			t.Errorf("held from %d (%s) to %d, want from before %d to after %d", h.Since, h.Got, h.TS, u.Since, u.TS)
		}
	}
}

// TestHandedDown holds that the directory of a child is its own from the fork on, whose parent goes
// elsewhere.
func TestHandedDown(t *testing.T) {
	on := scratch(t)
	e := opened(t, Watch, 0, on)
	// A shell gives what it runs beside itself no input of its own.
	c := exec.Command("sh", "-c", `exec 3<&0; cd "$0" && { (echo; read x <&3) & cd /; echo; wait; }`, on.Path)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	for range 2 { // both, in any order
		if _, err := said.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	u := busy(t, e, on)
	if err := errors.Join(in.Close(), c.Wait()); err != nil {
		t.Fatal(err)
	}
	h := until(t, e, func(ev Event) bool { return ev.Kind == Hold && ev.Parent == c.Process.Pid && ev.TS > u.TS })
	if h.Since == 0 || h.Since > u.Since {
		t.Errorf("the child held from %d (%s), want from before %d", h.Since, h.Got, u.Since)
	}
}

// TestEarly holds that a reference that was there before the watching is known to have been, and one
// that somebody else took is not.
func TestEarly(t *testing.T) {
	on := scratch(t)
	f, err := os.Open(on.Path)
	if err != nil {
		t.Fatal(err)
	}
	e := opened(t, Watch, 0, on)
	busy(t, e, on)
	f.Close()
	h := until(t, e, func(ev Event) bool { return ev.Kind == Hold && ev.PID == os.Getpid() })
	if h.Since != 0 || !h.Early {
		t.Errorf("held from %d, early is %t; want 0 and that it was", h.Since, h.Early)
	}
}
