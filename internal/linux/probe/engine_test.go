// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// scratch mounts a tmpfs. The file of the target is open until the engine has it.
func scratch(t *testing.T) Target {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("shisa", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID|unix.STATX_BASIC_STATS, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	return Target{ID: int(st.Mnt_id), Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Path: dir, File: f}
}

// opened opens an engine on the targets.
func opened(t *testing.T, name string, ringBytes uint32, targets ...Target) *Engine {
	t.Helper()
	e, err := Open(name, targets, ringBytes)
	for _, target := range targets {
		target.File.Close()
	}
	if errors.Is(err, ErrRefused) {
		testenv.Lacks(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// until reads events up to one that is wanted.
func until(t *testing.T, e *Engine, want func(Event) bool) Event {
	t.Helper()
	timer := time.AfterFunc(5*time.Minute, func() { e.Close() })
	defer timer.Stop()
	for {
		ev, err := e.Read()
		if err != nil {
			t.Fatalf("wait for an event: %v", err)
		}
		if want(ev) {
			return ev
		}
	}
}

// TestHeld has a umount fail over an open file, and wants both to be told of.
func TestHeld(t *testing.T) {
	for _, name := range testenv.Engines() {
		t.Run(name, func(t *testing.T) {
			on := scratch(t)
			e := opened(t, name, 0, on)
			f, err := os.Create(filepath.Join(on.Path, "file"))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Unmount(on.Path, 0); err != unix.EBUSY {
				t.Fatalf("umount = %v, want %v", err, unix.EBUSY)
			}
			u := until(t, e, func(ev Event) bool { return ev.Kind == Umount && ev.PID == os.Getpid() })
			f.Close()
			h := until(t, e, func(ev Event) bool { return ev.Kind != Umount && ev.PID == os.Getpid() })

			if u.Got.Text != on.Path || CallName(u.Got.Nr) != "umount2" {
				t.Errorf("the umount was %s, want one of %s", u.Got, on.Path)
			}
			if name != Syscall && (u.Count != 3 || !u.Attached || u.MountID != on.ID) {
				t.Errorf("the umount met %d references of mount %d (there after it: %t), want 3 of %d",
					u.Count, u.MountID, u.Attached, on.ID)
			}
			if name == Syscall && (!u.RetRead || unix.Errno(-u.Ret) != unix.EBUSY) {
				t.Errorf("the umount returned %d, want %d", u.Ret, -int(unix.EBUSY))
			}
			self, _ := os.Executable()
			if h.Exe != self || h.Parent != os.Getppid() || !slices.Equal(h.Command, os.Args[:len(h.Command)]) {
				t.Errorf("the holder runs %s as %q for %d, want %s as %q for %d",
					h.Exe, h.Command, h.Parent, self, os.Args, os.Getppid())
			}
			if h.Dev != on.Dev || h.MountID != on.ID || len(h.Stack) == 0 || len(h.Regs) != userRegs {
				t.Errorf("held mount %d of device %#x, %d bytes of stack, %d registers; want mount %d of %#x",
					h.MountID, h.Dev, len(h.Stack), len(h.Regs), on.ID, on.Dev)
			}
			switch name {
			case Watch, Fentry, Kprobe:
				if CallName(h.Got.Nr) != "openat" || CallName(h.Let.Nr) != "close" || h.Since == 0 ||
					h.Since > u.Since || len(h.GotStack) == 0 {
					t.Errorf("held from %s to %s, want from openat before the umount to close", h.Got, h.Let)
				}
			case Syscall:
				if CallName(h.Got.Nr) != "close" || !h.Released || h.Where != f.Name() {
					t.Errorf("%s let go of %q (%t), want %s", h.Got, h.Where, h.Released, f.Name())
				}
			}
		})
	}
}

// TestElsewhere holds that nothing is told of other mounts, nor of what was over before the umount.
func TestElsewhere(t *testing.T) {
	for _, name := range testenv.Engines() {
		t.Run(name, func(t *testing.T) {
			on, other := scratch(t), scratch(t)
			other.File.Close()
			e := opened(t, name, 0, on)
			for range 100 {
				os.Stat(other.Path)
				os.Stat(on.Path)
			}
			if err := unix.Unmount(other.Path, 0); err != nil {
				t.Fatal(err)
			}
			if err := unix.Unmount(on.Path, 0); err != nil {
				t.Fatal(err)
			}
			u := until(t, e, func(ev Event) bool {
				if ev.Kind != Umount && ev.PID == os.Getpid() {
					t.Errorf("told of %s, which held nothing", ev.Got)
				}
				return ev.Kind == Umount && ev.Got.Text == on.Path
			})
			if u.Attached || u.RetRead && u.Ret != 0 {
				t.Errorf("the umount of %s failed (%d), want that it succeeded", on.Path, u.Ret)
			}
		})
	}
}

// TestLettingGo holds that the syscall engine tells who had let go just before a umount that failed, though
// they began to hold after the one before: what a call drops may stay for a while after it.
func TestLettingGo(t *testing.T) {
	on := scratch(t)
	e := opened(t, Syscall, 0, on)
	stays, err := os.Create(filepath.Join(on.Path, "stays"))
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	goes := filepath.Join(on.Path, "goes")
	for range 100 { // a busy machine may take long for some of them
		if err := unix.Unmount(on.Path, 0); err != unix.EBUSY {
			t.Fatalf("umount = %v, want %v", err, unix.EBUSY)
		}
		if err := os.WriteFile(goes, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var failed int64
	until(t, e, func(ev Event) bool {
		if ev.Kind == Umount {
			failed = ev.TS
		}
		return ev.Released && ev.Where == goes && failed != 0 && ev.Since > failed && !ev.InFlight
	})
}

// TestRingFull holds that what does not fit into the ring buffer is counted.
func TestRingFull(t *testing.T) {
	const rounds = 200
	for _, name := range testenv.Engines() {
		t.Run(name, func(t *testing.T) {
			on := scratch(t)
			e := opened(t, name, 64<<10, on)
			if err := e.TellAll(true); err != nil {
				t.Fatal(err)
			}
			for range rounds {
				if err := unix.Access(on.Path, unix.R_OK); err != nil {
					t.Fatal(err)
				}
			}
			c, err := e.Counters()
			if err != nil {
				t.Fatal(err)
			}
			told := int64(0)
			for ; e.Pending() > 0; told++ {
				if _, err := e.Read(); err != nil {
					t.Fatal(err)
				}
			}
			if told == 0 || c.Drops == 0 || told+c.Drops < rounds {
				t.Errorf("%d events and %d drops, want both, and %d in all", told, c.Drops, rounds)
			}
		})
	}
}

// TestWithinUmount attaches engines while umounts are under way, and wants none of these to be left
// as under way.
func TestWithinUmount(t *testing.T) {
	for _, name := range testenv.Engines() {
		t.Run(name, func(t *testing.T) {
			on := scratch(t)
			defer on.File.Close()
			for range 5 {
				attachWithin(t, name, on)
			}
		})
	}
}

func attachWithin(t *testing.T, name string, on Target) {
	t.Helper()
	var err error
	if on.File, err = os.OpenFile(on.Path, unix.O_PATH, 0); err != nil {
		t.Fatal(err)
	}
	hold, err := os.Open(on.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			unix.Unmount(on.Path, 0)
		}
	})
	e := opened(t, name, 0, on)
	until(t, e, func(ev Event) bool { return ev.Kind == Umount })
	stop.Store(true)
	wg.Wait()
	if c, err := e.Counters(); err != nil || c.UnderWay != 0 {
		t.Errorf("%d umounts are under way (%v), want none", c.UnderWay, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// TestHooks holds that the engines at functions of the kernel work, or say what the kernel refused where
// they are not said to work.
func TestHooks(t *testing.T) {
	for _, name := range []string{Fentry, Kprobe} {
		t.Run(name, func(t *testing.T) {
			on := scratch(t)
			defer on.File.Close()
			e, err := Open(name, []Target{on}, 0)
			if errors.Is(err, ErrRefused) && !slices.Contains(testenv.Engines(), name) {
				t.Log(err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			if err := unix.Unmount(on.Path, 0); err != unix.EBUSY {
				t.Fatalf("umount = %v, want %v", err, unix.EBUSY)
			}
			u := until(t, e, func(ev Event) bool { return ev.Kind == Umount && ev.PID == os.Getpid() })
			if u.MountID != on.ID || unix.Errno(-u.Ret) != unix.EBUSY || u.Count != 3 {
				t.Errorf("umount of %d = %d with %d references, want of %d, EBUSY, 3", u.MountID, u.Ret, u.Count, on.ID)
			}
		})
	}
}

// TestMisuse holds that an engine says what it cannot do.
func TestMisuse(t *testing.T) {
	testenv.NeedRoot(t)
	for name, open := range map[string]func() (*Engine, error){
		"no mounts":  func() (*Engine, error) { return Open(Watch, nil, 0) },
		"no file":    func() (*Engine, error) { return Open(Watch, []Target{{ID: 1}}, 0) },
		"too many":   func() (*Engine, error) { return Open(Watch, make([]Target, MaxWatched+1), 0) },
		"too many S": func() (*Engine, error) { return Open(Syscall, make([]Target, maxTargets+1), 0) },
		"no engine":  func() (*Engine, error) { return Open("dtrace", nil, 0) },
	} {
		if e, err := open(); err == nil {
			e.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// TestOneEvent holds that all objects have the event that decode reads.
func TestOneEvent(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		Watch: loadWatch, Syscall: loadWindow, Fentry: loadFentry, Kprobe: loadKprobe,
	} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		var s *btf.Struct
		if err := spec.Types.TypeByName("event", &s); err != nil || int(s.Size) != headBytes {
			t.Errorf("%s: an event has %d bytes (%v), want %d", name, s.Size, err, headBytes)
		}
	}
}

func TestPollers(t *testing.T) {
	on := scratch(t)
	defer on.File.Close()
	p, err := OpenPollers([]Target{on})
	if errors.Is(err, ErrRefused) {
		testenv.Lacks(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const rounds = 6
	dir, err := os.Open(on.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range rounds {
		var st unix.Stat_t
		var fs unix.Statfs_t
		if err := errors.Join(unix.Stat(on.Path, &st), unix.Fstatfs(int(dir.Fd()), &fs)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond) // more than the gap that ends a poll
	}
	polls, err := p.Polls()
	if err != nil {
		t.Fatal(err)
	}
	mine := slices.DeleteFunc(slices.Clone(polls), func(q Poll) bool { return q.PID != os.Getpid() || q.Children != "" })
	if len(mine) != 2 {
		t.Fatalf("%d kinds of polls, want stat and statfs: %+v", len(mine), mine)
	}
	for _, q := range mine {
		if q.Calls != rounds || q.Polls != rounds || q.Period < 60*time.Millisecond || q.Target != 0 ||
			q.Parent != os.Getppid() {
			t.Errorf("%+v, want %d polls of target 0", q, rounds)
		}
	}
	if i := slices.IndexFunc(polls, func(q Poll) bool { return q.PID == os.Getppid() && q.Children != "" }); i < 0 {
		t.Errorf("no polls of the children of %d in %+v", os.Getppid(), polls)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(make([]byte, headBytes))
	f.Add(make([]byte, headBytes+16384))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decode(raw)
		if err != nil {
			return
		}
		if len(e.Stack) > len(raw) {
			t.Errorf("%d bytes of stack out of %d", len(e.Stack), len(raw))
		}
	})
}

func TestDeviceNumbers(t *testing.T) {
	for _, dev := range []uint64{unix.Mkdev(8, 1), unix.Mkdev(0, 300), unix.Mkdev(259, 1<<20-1), unix.Mkdev(4095, 0)} {
		if got := userDev(kernelDev(dev)); got != dev {
			t.Errorf("userDev(kernelDev(%#x)) = %#x", dev, got)
		}
	}
}

func TestCalls(t *testing.T) {
	c := Call{Nr: unix.SYS_OPENAT, Text: "/mnt/a b"}
	if got, want := c.String(), `openat("/mnt/a b")`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	seen := map[int]string{}
	for _, c := range calls() {
		if other, ok := seen[c.nr]; ok || c.nr >= maxCalls {
			t.Errorf("%d is %s and %q", c.nr, c.name, other)
		}
		seen[c.nr] = c.name
	}
}
