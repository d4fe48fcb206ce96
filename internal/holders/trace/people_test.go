// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if hold.IsChild(os.Args) {
		hold.Serve()
	}
	if os.Geteuid() == 0 {
		if err := hold.Apart(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	testenv.Main(m)
}

// mountpoint is a directory that is mounted and unmounted again and again.
type mountpoint struct{ source, target string }

func newMountpoint(t *testing.T) mountpoint {
	t.Helper()
	testenv.NeedRoot(t)
	p := mountpoint{t.TempDir(), t.TempDir()}
	if err := unix.Mount("shisa", p.source, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(p.target, unix.MNT_DETACH) == nil {
		}
		unix.Unmount(p.source, unix.MNT_DETACH)
	})
	if err := os.WriteFile(filepath.Join(p.source, "file"), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	p.mount(t)
	return p
}

func (p mountpoint) mount(t *testing.T) {
	t.Helper()
	if err := unix.Mount(p.source, p.target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
}

// mounted is its mount in the table.
func (p mountpoint) mounted(t *testing.T) linux.Mount {
	t.Helper()
	all, err := linux.Open("").Mounts(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(m linux.Mount) bool { return m.Point == p.target })
	if i < 0 {
		t.Fatalf("%s is not mounted", p.target)
	}
	return all[i]
}

// started begins to trace.
func started(t *testing.T, o Options) *Trace {
	t.Helper()
	o.Host = linux.Open("")
	tr, err := Start(context.Background(), o)
	if err != nil {
		testenv.Lacks(t, err.Error())
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// attempt is a umount that failed, and whose reference it met: 0 where it was none of the test's, or
// one that was held for longer after it than is waited for.
type attempt struct {
	way string
	pid int
}

// fail has n umounts fail, each while somebody stands still in the way. In between it is unmounted
// and mounted again.
func (p mountpoint) fail(t *testing.T, tr *Trace, way string, n int) (all []attempt) {
	t.Helper()
	ctx := t.Context()
	h, err := hold.TakeTurns(ctx, way, p.target)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Release(); err != nil {
			t.Error(err)
		}
	}()
	for i := range n {
		pid, err := h.Take(ctx)
		if err != nil {
			t.Fatal(err)
		}
		from := time.Now()
		if err := unix.Unmount(p.target, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY {
			t.Fatalf("umount = %v, want %v", err, unix.EBUSY)
		}
		if err := h.LetGo(ctx); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(from); took > settle {
			t.Logf("%s, umount %d: held for %s after it, on a busy machine", way, i, took)
			pid = 0
		}
		all = append(all, attempt{way, pid})
		if i%4 != 3 {
			continue
		}
		for {
			err := unix.Unmount(p.target, unix.UMOUNT_NOFOLLOW)
			if err == nil {
				break
			}
			if err != unix.EBUSY || len(all) > 10*n {
				t.Fatalf("umount = %v, want that it succeeds", err)
			}
			all = append(all, attempt{way, 0}) // somebody else looked at it, and may have no turn to go on
			time.Sleep(time.Duration(len(all)) * time.Millisecond)
		}
		p.mount(t)
		if err := tr.Follow(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestCatch holds that those who made umounts fail are named, each time, and nobody else is: exactly
// where the engine sees references, and where it sees calls as suspects at least.
func TestCatch(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "sh")
	const rounds = 12
	for _, engine := range testenv.Engines() {
		t.Run(engine, func(t *testing.T) {
			p := newMountpoint(t)
			tr := started(t, Options{Engine: engine, Mounts: []linux.Mount{p.mounted(t)}})
			decoy, err := hold.Pass(t.Context(), hold.StatLoop, p.source)
			if err != nil {
				t.Fatal(err)
			}
			defer decoy.Release()
			ways := []string{hold.OpenLoop, hold.CwdLoop, hold.CallLoop, hold.RunLoop}
			if engine != probe.Syscall {
				ways = append(ways, hold.MapLoop) // the other does not see it: its coverage says so
			}
			var all []attempt
			for _, way := range ways {
				all = append(all, p.fail(t, tr, way, rounds)...)
			}
			judgeAll(t, tr, all, decoy.PID)
		})
	}
}

// judgeAll takes what was told of attempts and holds it against them.
func judgeAll(t *testing.T, tr *Trace, all []attempt, decoy int) {
	t.Helper()
	want := holders.HeldAtCheck
	if tr.Engine().Name == probe.Syscall {
		want = holders.Overlap
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for i, a := range all {
		f, err := tr.Next(ctx)
		for err == nil && f.Umount.Process.PID != os.Getpid() {
			f, err = tr.Next(ctx) // somebody else's, of which it is not known which mount it was about
		}
		if err != nil {
			t.Fatalf("told of %d failures of %d: %v", i, len(all), err)
		}
		c, wrong := judge(f, a.pid, decoy)
		if wrong > 0 {
			t.Errorf("%s, umount %d: a process is named that looks at another mount: %+v", a.way, i, f.Holders)
		}
		if a.pid != 0 && c != want && c != holders.HeldAtCheck {
			t.Errorf("%s, umount %d: %d is told as %q, want %q: %+v", a.way, i, a.pid, c, want, f)
		}
	}
}

// judge tells how sure a failure names the holder, and how often the decoy.
func judge(f Failure, holder, decoy int) (c holders.Certainty, wrong int) {
	for _, h := range f.Holders {
		switch {
		case h.Process.PID == decoy:
			wrong++
		case h.Process.PID == holder && c != holders.HeldAtCheck:
			c = h.Certainty
		}
	}
	return c, wrong
}
