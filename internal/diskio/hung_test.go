// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestHungLooks: who looks every half minute for a month at what hangs leaves one look an hour behind, is told since when, and
// sees at once that it answers again. What else is looked for, and other paths, are not disturbed.
func TestHungLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, dead := WithHung(t.Context()), make(chan struct{})
		since := time.Now().UTC().Format(time.RFC3339)
		var begun atomic.Int32
		look := func() (int, error) {
			return WithinAt(ctx, "/dead", time.Second, func() (int, error) { begun.Add(1); <-dead; return 7, nil }, nil)
		}
		told := 0
		for at := time.Now(); time.Since(at) < 30*24*time.Hour; time.Sleep(30 * time.Second) {
			_, err := look()
			if !errors.Is(err, ErrTimeout) {
				t.Fatalf("a look at what hangs = %v, want %v", err, ErrTimeout)
			}
			if strings.HasSuffix(err.Error(), "since "+since) {
				told++
			}
		}
		if n := begun.Load(); n < 24*30 || n > 24*30+20 || told < 80000 {
			t.Errorf("%d looks were begun in a month, and %d times it was told since when", n, told)
		}
		if n, err := WithinAt(ctx, "/good", time.Second, func() (int, error) { return 1, nil }, nil); n != 1 || err != nil {
			t.Errorf("a look beside it = %d, %v", n, err)
		}
		if s, err := WithinAt(ctx, "/dead", time.Second, func() (string, error) { return "x", nil }, nil); s != "x" || err != nil {
			t.Errorf("a look for something else = %q, %v", s, err)
		}
		close(dead)
		synctest.Wait()
		if n, err := look(); n != 7 || err != nil {
			t.Errorf("a look after it answered = %d, %v", n, err)
		}
	})
}

// TestHungMountedAnew: what hangs for ever keeps nobody from seeing what was mounted in its place.
func TestHungMountedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, never := WithHung(t.Context()), make(chan struct{})
		var anew atomic.Bool
		defer close(never)
		look := func() (int, error) {
			return WithinAt(ctx, "/dead", time.Second, func() (int, error) {
				if !anew.Load() {
					<-never
				}
				return 7, nil
			}, nil)
		}
		begun := time.Now()
		for time.Since(begun) < time.Hour {
			if _, err := look(); !errors.Is(err, ErrTimeout) {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Second)
		}
		for anew.Store(true); ; time.Sleep(30 * time.Second) {
			if _, err := look(); err == nil {
				break
			}
			if time.Since(begun) > 3*time.Hour {
				t.Fatal("it is still not looked at")
			}
		}
		if _, err := look(); err != nil {
			t.Errorf("the next look = %v", err)
		}
	})
}

// TestHungThreads: looks that wait in the kernel keep few threads.
func TestHungThreads(t *testing.T) {
	ctx, fifo := WithHung(t.Context()), filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	threads := func() int {
		all, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	back := make(chan struct{}, 300)
	look := func() (bool, error) { // unix.Open waits in a system call until somebody writes
		return WithinAt(ctx, fifo, time.Millisecond, func() (bool, error) {
			defer func() { back <- struct{}{} }()
			fd, err := unix.Open(fifo, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return false, err
			}
			return true, unix.Close(fd)
		}, nil)
	}
	before := threads()
	for range cap(back) {
		if _, err := look(); !errors.Is(err, ErrTimeout) {
			t.Fatalf("a look at what hangs = %v, want %v", err, ErrTimeout)
		}
	}
	if n := threads() - before; n > 50 {
		t.Errorf("%d looks left %d threads", cap(back), n)
	}
	w, err := os.OpenFile(fifo, os.O_RDWR, 0) // does not wait, and lets the look go on
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	<-back
	for { // the look is over, and says so in a moment
		if is, err := look(); err == nil {
			if !is {
				t.Error("what answers is not seen")
			}
			return
		}
	}
}

// TestHungSweep: a sweep does not look at what an earlier one still waits for, and what answers when it is tried once more is
// looked at from then on. The clock goes on only while all wait.
func TestHungSweep(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "sub", "dead")
	if err := errors.Join(os.Mkdir(filepath.Dir(name), 0o700), os.WriteFile(name, []byte("x"), 0o600),
		os.WriteFile(dir+"/good", []byte("y"), 0o600)); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, never := WithHung(t.Context()), make(chan struct{})
		defer close(never)
		var hangs atomic.Bool
		var begun atomic.Int32
		hangs.Store(true)
		sweep := func() (seen int32, why string) {
			var files atomic.Int32
			s := Sweep{HeadBytes: 1, Workers: 1, Timeout: time.Second, File: func(int, *Swept) { files.Add(1) },
				Other: func(_ WalkKind, _ string, err error) { why = err.Error() },
				opening: func(path string) {
					if path == name && hangs.Load() {
						begun.Add(1)
						<-never
					}
				}}
			if err := s.Run(ctx, []string{dir}); err != nil {
				t.Fatal(err)
			}
			return files.Load(), why
		}
		for i := range 10 {
			seen, why := sweep()
			if seen != 1 || !strings.Contains(why, ErrTimeout.Error()) || i > 0 && !strings.Contains(why, " since 2") {
				t.Fatalf("sweep %d sees %d files, %q, want one, and since when the other hangs", i, seen, why)
			}
		}
		if n := begun.Load(); n != 1 {
			t.Errorf("%d looks were begun, want 1", n)
		}
		time.Sleep(maxHung)
		if seen, why := sweep(); seen != 1 || begun.Load() != 2 {
			t.Errorf("a sweep that tries it once more sees %d files, %q, with %d looks", seen, why, begun.Load())
		}
		if seen, why := sweep(); seen != 1 || begun.Load() != 2 {
			t.Errorf("the one after that sees %d files, %q, with %d looks", seen, why, begun.Load())
		}
		hangs.Store(false) // another file is there now
		time.Sleep(maxHung)
		for range 2 {
			if seen, why := sweep(); seen != 2 || why != "" {
				t.Errorf("a sweep of what answers sees %d files, %q, want both", seen, why)
			}
		}
	})
}

// TestHungKnown: what hangs is left alone for as long where an index knows it, whatever it is there and wherever else the
// program sweeps meanwhile; then it is told as before.
func TestHungKnown(t *testing.T) {
	dir, elsewhere := trustedDir(t), t.TempDir()
	manyDirs(t, dir)
	first := &Learning{Now: later()}
	want, _ := told(t, first, nil, dir)
	now := later()
	for _, dead := range []string{"i040", "i041/disk", "i022/disk"} { // i022 has other directories in it
		t.Run(strings.ReplaceAll(dead, "/", " "), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, never := WithHung(t.Context()), make(chan struct{})
				var hangs atomic.Bool
				var begun atomic.Int32
				hangs.Store(true)
				ask := func(path string) {
					if path == filepath.Join(dir, dead) && hangs.Load() {
						begun.Add(1)
						<-never
					}
				}
				for at := time.Now(); time.Since(at) < 24*time.Hour; time.Sleep(10 * time.Minute) {
					l := &Learning{Known: first.Seen, Now: now}
					got, _ := toldIn(ctx, t, l, ask, dir)
					if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, ErrTimeout.Error()) }) {
						t.Fatalf("nobody is told what hangs after %v", time.Since(at))
					}
					toldIn(ctx, t, nil, nil, elsewhere)
				}
				if n := begun.Load(); n > 24+10 {
					t.Errorf("%d looks were begun in a day", n)
				}
				hangs.Store(false)
				close(never)
				synctest.Wait()
				if got, _ := toldIn(ctx, t, &Learning{Known: first.Seen, Now: now}, ask, dir); !slices.Equal(got, want) {
					t.Errorf("what answers is not told as before: %s", cmp.Diff(want, got))
				}
			})
		})
	}
}

// TestStoppedNotHung: a time in which the program had no turn is none in which a name did not answer.
func TestStoppedNotHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &sweep{Sweep: &Sweep{Other: func(WalkKind, string, error) {}}, timeout: time.Second}
		r.more = sync.NewCond(&r.mu)
		w := &sweeper{r: r, dir: "/dir", turn: 1}
		for i := range parts {
			r.giveUp(w)
			if w.gone {
				t.Fatalf("it is given up at look %d of %d", i, parts)
			}
			time.Sleep(time.Hour)
		}
		if r.giveUp(w); !w.gone {
			t.Error("it is not given up at all")
		}
	})
}
