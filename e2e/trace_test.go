// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

const (
	// rounds is how many umounts have to fail over each kind of holder.
	rounds = 4
	// apart is how long is waited after each.
	apart = 200 * time.Millisecond
	// patience is how long a guest on a busy machine may take to do one thing.
	patience = 10 * time.Minute
)

// TestTracing has the program itself watch by each engine while umounts fail over those who hold a mount
// for a moment, and holds that it names them, and nobody who looks at another mount.
func TestTracing(t *testing.T) {
	testenv.NeedGuest(t)
	for _, engine := range testenv.Engines() {
		t.Run(engine, func(t *testing.T) {
			p := newPlace(t)
			w := watching(t, engine, p)
			p.lasting(t, w)
			if engine == probe.Watch {
				return // a mount that was unmounted and mounted again is another one to it
			}
			decoy := p.passing(t, hold.StatLoop, p.source)
			ways := []string{hold.CallLoop, hold.OpenLoop, hold.CwdLoop, hold.StatLoop}
			if engine == probe.Syscall {
				ways = ways[:1] // what overlaps is a suspect; the package's own tests have the rest
			}
			for _, way := range ways {
				t.Run(way, func(t *testing.T) {
					h := p.passing(t, way, p.target)
					pipe := ""
					if way == hold.CallLoop {
						pipe = h.Path
					}
					if len(p.traced(t, w, h.PID, decoy.PID, pipe)) == 0 {
						t.Error("the program's stacks have no names")
					}
				})
			}
			if engine != probe.Syscall {
				t.Run("programs", func(t *testing.T) { p.traced(t, w, p.programs(t), decoy.PID, "") })
			}
		})
	}
}

// place is a mount that is unmounted and mounted again.
type place struct{ source, target string }

func newPlace(t *testing.T) place {
	t.Helper()
	p := place{t.TempDir(), t.TempDir()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("shisa", p.source, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(p.source, unix.MNT_DETACH) })
	must(p.mount())
	t.Cleanup(func() { unix.Unmount(p.target, unix.MNT_DETACH) })
	return p
}

func (p place) mount() error { return unix.Mount(p.source, p.target, "", unix.MS_BIND, "") }

// watcher is the program that traces.
type watcher struct {
	engine string
	lines  chan trace.Failure
}

// watching starts the program, and waits until it watches.
func watching(t *testing.T, engine string, p place) *watcher {
	t.Helper()
	where := []string{"--any"}
	if engine == probe.Watch {
		where = []string{p.target}
	}
	args := append([]string{"holders", "--trace", "--json", "--engine", engine}, where...)
	c := exec.Command("shisa", args...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	words, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w := &watcher{engine, make(chan trace.Failure, 1000)}
	read := make(chan error, 1)
	go func() {
		defer close(w.lines)
		for d := json.NewDecoder(out); ; {
			var f trace.Failure
			if err := d.Decode(&f); err != nil {
				read <- err
				return
			}
			w.lines <- f
		}
	}()
	said := bufio.NewReader(words)
	line, err := said.ReadString('\n')
	if want := "watching by " + engine; err != nil || !strings.Contains(line, want) {
		t.Errorf("it said %q (%v), want %s", line, err, want)
	}
	t.Cleanup(func() {
		c.Process.Signal(unix.SIGINT)
		rest, err := io.ReadAll(said)
		if err = errors.Join(err, <-read); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		var exit *exec.ExitError
		if err := c.Wait(); err != nil && !errors.As(err, &exit) {
			t.Error(err)
		}
		t.Logf("%s ended with %d %s", engine, c.ProcessState.ExitCode(), rest)
	})
	return w
}

// next is the next failure that is told of p.
func (w *watcher) next(t *testing.T, p place) trace.Failure {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case f, ok := <-w.lines:
			if !ok {
				t.Fatal("it does not watch any more")
			}
			if f.Mount.Path == p.target || f.Umount.Path == p.target {
				return f
			}
		case <-timer.C:
			t.Fatal("a umount that failed is not told of")
		}
	}
}

// lasting has a umount fail over a program that is there until somebody asks it to end.
func (p place) lasting(t *testing.T, w *watcher) {
	c := exec.Command("sh", "-c", `cd "$0" && echo && read x`, p.target)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = out.Read(make([]byte, 1))
	umount := unix.Unmount(p.target, unix.UMOUNT_NOFOLLOW)
	if err := errors.Join(err, in.Close()); err != nil || umount != unix.EBUSY {
		t.Fatalf("umount = %v, want %v; the holder: %v", umount, unix.EBUSY, err)
	}
	c.Wait() // read ends with 1 at the end of its input
	f := w.next(t, p)
	h := holding(f, c.Process.Pid)
	if h == nil || f.Unexplained != 0 || h.Process.Comm != "sh" {
		t.Errorf("%+v, want that sh (%d) holds it and nobody else", f, c.Process.Pid)
	}
}

// holding finds the holder that is a process or a child of it.
func holding(f trace.Failure, pid int) *holders.Holder {
	i := slices.IndexFunc(f.Holders, func(h holders.Holder) bool {
		return h.Process.PID == pid || h.Process.PPID == pid
	})
	if i < 0 {
		return nil
	}
	return &f.Holders[i]
}

func (p place) passing(t *testing.T, way, dir string) *hold.Hold {
	t.Helper()
	h, err := hold.Pass(t.Context(), way, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Release(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// programs starts short programs there, one after the other. Each of them is gone when somebody asks;
// it gives the process that starts them.
func (p place) programs(t *testing.T) int {
	t.Helper()
	c := exec.Command("sh", "-c", `while :; do (cd "$0" && exec sleep 0.02); done`, p.target)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	return c.Process.Pid
}

// traced has umounts fail over who holds in one way, and wants the most of them named exactly. It gives
// the names on the longest stack of the program; one that ended may have none.
// pipe: what lets it go on, "" if it does by itself.
func (p place) traced(t *testing.T, w *watcher, holder, decoy int, pipe string) (names []string) {
	exact, failed := 0, 0
	var kernel, program []string
	// Each is told of a second later: they fail one after the other, and are waited for together. The program looks
	// at the moment of one at a time, and with one processor it has its turn when nobody else is busy.
	for failed < rounds && p.fail(t, pipe) {
		failed++
		time.Sleep(apart)
	}
	for range failed {
		f := w.next(t, p)
		if holding(f, decoy) != nil {
			t.Errorf("a process is named that looks at another mount: %+v", f)
		}
		x := holding(f, holder)
		if x == nil || x.Certainty == holders.Overlap && f.Engine != probe.Syscall {
			t.Logf("not named exactly: %+v", f)
			continue
		}
		exact++
		kernel, program = longer(kernel, x.KernelStack), longer(program, x.UserStack)
	}
	t.Logf("of %d failures %d have their holder exactly; kernel: %s; program: %s", failed, exact,
		kernel, program)
	if exact == 0 || exact < failed/2 {
		t.Errorf("of %d failures %d have their holder exactly", failed, exact)
	}
	if len(kernel) == 0 && w.engine != probe.Syscall {
		t.Error("the kernel's stacks have no names")
	}
	return program
}

// fail unmounts until that fails, and mounts again what was unmounted.
func (p place) fail(t *testing.T, pipe string) bool {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		switch err := unix.Unmount(p.target, unix.UMOUNT_NOFOLLOW); err {
		case nil:
			if err := p.mount(); err != nil {
				t.Fatal(err)
			}
		case unix.EBUSY:
			if pipe != "" {
				comeBy(t, pipe)
			}
			return true
		default:
			t.Fatalf("umount = %v", err)
		}
	}
	return false
}

// comeBy lets a call go on that waits for somebody to write into a pipe.
func comeBy(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil && err != unix.ENXIO {
		t.Fatal(err)
	}
}

// longer gives the names of a stack if there are more of them.
func longer(so []string, stack []holders.Frame) []string {
	var names []string
	for _, f := range stack {
		if f.Symbol != "" {
			names = append(names, filepath.Base(f.Module)+"`"+f.Symbol)
		}
	}
	if len(names) > len(so) {
		return names
	}
	return so
}
