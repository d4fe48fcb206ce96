// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// asChild has the test binary hold a mount instead: the way and the directory.
const asChild = "SHISA_TRACE_HOLD"

func TestMain(m *testing.M) {
	if way, dir := os.Getenv(asChild), os.Getenv(asChild+"_DIR"); way != "" {
		go func() {
			io.Copy(io.Discard, os.Stdin) // ends with the test
			os.Exit(0)
		}()
		for {
			if err := ways[way](dir); err != nil {
				// The mount is away now and then; a holder that cannot hold is seen by its test.
				time.Sleep(time.Millisecond)
			}
		}
	}
	testenv.Main(m)
}

// ways are the ways of holding a mount for a moment.
var ways = map[string]func(dir string) error{
	"stat": func(dir string) error {
		var st unix.Stat_t
		return unix.Stat(dir, &st)
	},
	// A stat holds for less than a microsecond, which the bench has the time for; this holds in the
	// same way, in one call, until release.
	"call": func(dir string) error {
		fd, err := unix.Open(dir+"/fifo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	},
	"open": func(dir string) error {
		fd, err := unix.Open(dir+"/file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		hold()
		return unix.Close(fd)
	},
	"mmap": func(dir string) error {
		fd, err := unix.Open(dir+"/file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
		hold()
		return unix.Munmap(m)
	},
	"chdir": func(dir string) error {
		if err := unix.Chdir(dir); err != nil {
			return err
		}
		hold()
		return unix.Chdir("/")
	},
	"exec": func(dir string) error {
		argv := [][]string{{"df", dir}, {"ls", dir}, {"cat", dir + "/file"},
			{"sh", "-c", "cd " + dir + " && exec stat ."}, {"tail", "-f", "--pid=1", dir + "/file"}}
		c := exec.Command("timeout", append([]string{"0.02"}, argv[rand.IntN(len(argv))]...)...)
		return c.Run()
	},
}

// hold lasts 50 us to 5 ms, of which there are as many short ones as long ones, and a pause.
func hold() {
	held := 50 * math.Pow(100, rand.Float64()) * float64(time.Microsecond)
	for end := time.Now().Add(time.Duration(held)); time.Now().Before(end); {
		unix.Getppid()
	}
}

// holding starts a process that holds dir in one way.
func holding(t *testing.T, way, dir string) *os.Process {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), asChild+"="+way, asChild+"_DIR="+dir, "GOMAXPROCS=1")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		c.Wait()
	})
	return c.Process
}

// place is a directory that is mounted and unmounted again and again.
type place struct{ source, target string }

func newPlace(t *testing.T) place {
	t.Helper()
	testenv.NeedRoot(t)
	p := place{t.TempDir(), t.TempDir()}
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
	if err := unix.Mkfifo(filepath.Join(p.source, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.mount(t)
	return p
}

// release lets a call go on that waits for somebody to write into the pipe.
func (p place) release(t *testing.T) {
	t.Helper()
	fd, err := unix.Open(filepath.Join(p.source, "fifo"), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil && err != unix.ENXIO {
		t.Fatal(err)
	}
}

func (p place) mount(t *testing.T) {
	t.Helper()
	if err := unix.Mount(p.source, p.target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
}

// mounted is its mount in the table.
func (p place) mounted(t *testing.T) linux.Mount {
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

// fail unmounts until that failed n times, and gives what was told of it. Where it succeeds it is
// mounted again.
func (p place) fail(t *testing.T, tr *Trace, n int) []Failure {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	told := make(chan []Failure, 1)
	go func() {
		var all []Failure
		for len(all) < n {
			f, err := tr.Next(ctx)
			if err != nil {
				break
			}
			all = append(all, f)
		}
		told <- all
	}()
	tries := 0
	for failed := 0; failed < n && ctx.Err() == nil; tries++ {
		switch err := unix.Unmount(p.target, 0); {
		case err == nil:
			p.mount(t)
			if err := tr.Follow(ctx); err != nil {
				t.Fatal(err)
			}
		case errors.Is(err, unix.EBUSY):
			failed++
			p.release(t)
			time.Sleep(time.Millisecond)
		default:
			t.Fatalf("umount: %v", err)
		}
	}
	all := <-told
	if len(all) != n {
		t.Fatalf("told of %d failures of %d", len(all), n)
	}
	t.Logf("%d of %d umounts failed", n, tries)
	return all
}

// TestCatch holds that those who made umounts fail are named, and nobody else is.
func TestCatch(t *testing.T) {
	testenv.Need(t, "stat", "df", "ls", "cat", "tail", "timeout")
	for _, c := range []struct {
		way    string
		rounds int
	}{{"open", 30}, {"chdir", 30}, {"mmap", 30}, {"call", 30}, {"exec", 10}} {
		for _, engine := range testenv.Engines() {
			if engine == probe.Syscall && c.way == "mmap" {
				continue // it does not see what holds without a file: its coverage says so
			}
			t.Run(engine+"/"+c.way, func(t *testing.T) { catch(t, engine, c.way, c.rounds) })
		}
	}
}

func catch(t *testing.T, engine, way string, rounds int) {
	p := newPlace(t)
	tr := started(t, Options{Engine: engine, Mounts: []linux.Mount{p.mounted(t)}})
	holder, decoy := holding(t, way, p.target), holding(t, "stat", p.source)
	exact, suspect := 0, 0
	for _, f := range p.fail(t, tr, rounds) {
		c, wrong := judge(f, holder.Pid, decoy.Pid)
		switch c {
		case holders.HeldAtCheck:
			exact++
			fallthrough
		case holders.Overlap:
			suspect++
		default:
			t.Logf("nobody is named: %+v", f)
		}
		if wrong > 0 {
			t.Errorf("a process is named that looks at another mount: %+v", f.Holders)
		}
	}
	t.Logf("of %d failures %d have their holder, %d exactly", rounds, suspect, exact)
	if suspect < rounds*9/10 {
		t.Errorf("of %d failures %d have their holder", rounds, suspect)
	}
	if engine != probe.Syscall && exact < rounds*8/10 {
		t.Errorf("of %d failures %d have their holder exactly", rounds, exact)
	}
}

// judge tells how sure a failure names the holder or a child of it, and how often the decoy.
func judge(f Failure, holder, decoy int) (c holders.Certainty, wrong int) {
	for _, h := range f.Holders {
		switch {
		case h.Process.PID == decoy:
			wrong++
		case h.Process.PID != holder && h.Process.PPID != holder && h.Process.Parent != "timeout" &&
			h.Process.Comm != "timeout":
		case c != holders.HeldAtCheck:
			c = h.Certainty
		}
	}
	return c, wrong
}
