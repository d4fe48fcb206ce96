// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

const (
	// holdCommand makes this program one that holds a mount for moments: the way and the directory.
	holdCommand = "hold-for-moments"
	// caught are the failed umounts for each way, of which so many percent must be told exactly.
	caught, caughtQuick = 200, 20
	caughtShare         = 97
	// catchTimeout is how long that may take for one way: umounts seldom meet a stat.
	catchTimeout = 10 * time.Minute
	// The costs of watching for what has nothing to do with the mount, as a factor.
	watchFactor, syscallFactor = 1.05, 1.35
	// Rounds with and without, so many batches of calls in each: the fastest batch counts.
	costRounds, costBatches, costCalls = 8, 200, 500
)

func traceRows() []row {
	return []row{
		{name: "holders --trace: who made umounts fail, by watchpoint", special: func(ctx context.Context, b *bench,
			dir string) result {
			return b.catches(ctx, dir, probe.Watch, "stat", "open", "mmap", "chdir", "exec")
		}},
		{name: "holders --trace: who made umounts fail, by system calls", special: func(ctx context.Context, b *bench,
			dir string) result {
			return b.catches(ctx, dir, probe.Syscall, "stat", "open", "chdir", "exec")
		}},
		{name: "holders --trace: cost for other mounts", special: func(ctx context.Context, b *bench,
			dir string) result {
			return b.watching(ctx, dir)
		}},
	}
}

// ways are the ways of holding a directory's mount for a moment.
func ways() map[string]func(dir string) error {
	return map[string]func(dir string) error{
		"stat": func(dir string) error {
			var st unix.Stat_t
			return unix.Stat(dir, &st)
		},
		"open": func(dir string) error {
			fd, err := unix.Open(dir+"/file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			spin()
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
			spin()
			return unix.Munmap(m)
		},
		"chdir": func(dir string) error {
			if err := unix.Chdir(dir); err != nil {
				return err
			}
			spin()
			return unix.Chdir("/")
		},
		"exec": func(dir string) error {
			argv := [][]string{{"df", dir}, {"ls", dir}, {"cat", dir + "/file"},
				{"sh", "-c", "cd " + dir + " && exec stat ."}}
			a := argv[rand.IntN(len(argv))]
			return exec.Command(a[0], a[1:]...).Run()
		},
	}
}

// spin lasts 50 us to 5 ms, the short ones being as many as the long ones.
func spin() {
	for end := time.Now().Add(time.Duration(50 * math.Pow(100, rand.Float64()) * 1000)); time.Now().Before(end); {
		unix.Getppid()
	}
}

// holdForMoments holds until the program that started it is gone.
func holdForMoments(way, dir string) int {
	hold, ok := ways()[way]
	if !ok || unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) != nil {
		return 1
	}
	for {
		if hold(dir) != nil {
			time.Sleep(100 * time.Microsecond) // the mount is away now and then
		}
	}
}

// mountpoint is a directory that is mounted and unmounted again and again.
type mountpoint struct{ source, target string }

func newMountpoint(dir string) (p mountpoint, undo func() error, err error) {
	p = mountpoint{filepath.Join(dir, "source"), filepath.Join(dir, "target")}
	undo = func() error {
		for unix.Unmount(p.target, unix.MNT_DETACH) == nil {
		}
		if err := unix.Unmount(p.source, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return err
		}
		return errors.Join(os.RemoveAll(p.source), os.RemoveAll(p.target))
	}
	err = errors.Join(os.Mkdir(p.source, 0o700), os.Mkdir(p.target, 0o700))
	if err == nil {
		err = unix.Mount("shisa", p.source, "tmpfs", 0, "")
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(p.source, "file"), make([]byte, 8192), 0o600)
	}
	if err == nil {
		err = p.mount()
	}
	return p, undo, err
}

func (p mountpoint) mount() error { return unix.Mount(p.source, p.target, "", unix.MS_BIND, "") }

func (p mountpoint) mounted(ctx context.Context) (linux.Mount, error) {
	all, err := linux.Open("").Mounts(ctx, 0)
	if err != nil {
		return linux.Mount{}, err
	}
	i := slices.IndexFunc(all, func(m linux.Mount) bool { return m.Point == p.target })
	if i < 0 {
		return linux.Mount{}, fmt.Errorf("%s is not mounted", p.target)
	}
	return all[i], nil
}

// catches has umounts fail in several ways and counts who is named for it.
func (b *bench) catches(ctx context.Context, dir, engine string, names ...string) (res result) {
	n := caught
	if b.quick {
		n = caughtQuick
	}
	must, what := float64(caughtShare), "held at the check"
	if engine == probe.Syscall {
		must, what = 100, "suspect"
	}
	wrong := 0
	res.theirsText = "nobody is left to be found"
	for _, way := range names {
		c, err := catch(ctx, dir, engine, way, n)
		if err != nil {
			return result{missing: fmt.Sprintf("%s: %v", way, err)}
		}
		got := c.exact
		if engine == probe.Syscall {
			got = c.named
		}
		wrong += c.wrong
		res.text += fmt.Sprintf("%s %d of %d, ", way, got, n)
		res.goals = append(res.goals, outcome{got: 100 * float64(got) / float64(n),
			goal: goal{what: way, must: must, unit: " %", always: true}})
	}
	res.text += what
	res.goals = append(res.goals, outcome{goal: count("wrongly named", 0), got: float64(wrong)})
	return res
}

// catchCount counts failed umounts: those whose holder is named, those where that is certain, and
// those where a process is named that looks at another mount.
type catchCount struct{ named, exact, wrong int }

func catch(ctx context.Context, dir, engine, way string, n int) (c catchCount, err error) {
	p, undo, err := newMountpoint(dir)
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return c, err
	}
	m, err := p.mounted(ctx)
	if err != nil {
		return c, err
	}
	t, err := trace.Start(ctx, trace.Options{Host: linux.Open(""), Engine: engine, Mounts: []linux.Mount{m}})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	holder, stop, err := holdingFor(way, p.target)
	if err != nil {
		return c, err
	}
	defer stop()
	decoy, stop, err := holdingFor("stat", p.source)
	if err != nil {
		return c, err
	}
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, catchTimeout)
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- p.fail(ctx, t, n) }()
	for range n {
		f, err := t.Next(ctx)
		if err != nil {
			return c, errors.Join(err, <-failed)
		}
		c.add(f, holder.Pid, decoy.Pid)
	}
	return c, <-failed
}

// add judges a failure by whether it names the holder, or a child of it.
func (c *catchCount) add(f trace.Failure, holder, decoy int) {
	named, exact := false, false
	for _, h := range f.Holders {
		switch {
		case h.Process.PID == decoy:
			c.wrong++
		case h.Process.PID == holder || h.Process.PPID == holder:
			named, exact = true, exact || h.Certainty == holders.HeldAtCheck
		}
	}
	if named {
		c.named++
	}
	if exact {
		c.exact++
	}
}

// fail unmounts until that failed n times.
func (p mountpoint) fail(ctx context.Context, t *trace.Trace, n int) error {
	for failed := 0; failed < n; {
		switch err := unix.Unmount(p.target, 0); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.EBUSY):
			failed++
			time.Sleep(time.Millisecond)
		case err != nil:
			return fmt.Errorf("umount: %w", err)
		default:
			if err := errors.Join(p.mount(), t.Follow(ctx)); err != nil {
				return err
			}
		}
	}
	return nil
}

// holdingFor starts a process that holds, and gives what ends it.
func holdingFor(way, dir string) (p *os.Process, stop func(), err error) {
	c := exec.Command("/proc/self/exe", holdCommand, way, dir)
	c.Env = append(os.Environ(), "GOMAXPROCS=1")
	if err := c.Start(); err != nil {
		return nil, nil, err
	}
	return c.Process, func() {
		c.Process.Kill()
		c.Wait()
	}, nil
}

// watching measures calls on another file system with and without an engine, in turn.
func (b *bench) watching(ctx context.Context, dir string) (res result) {
	p, undo, err := newMountpoint(dir)
	defer func() {
		if err := undo(); err != nil {
			res.missing = err.Error()
		}
	}()
	if err != nil {
		return result{missing: err.Error()}
	}
	m, err := p.mounted(ctx)
	if err != nil {
		return result{missing: err.Error()}
	}
	res.text, res.theirsText = "stat and open of another file", "nothing is watched"
	for _, e := range []struct {
		engine string
		must   float64
	}{{probe.Watch, watchFactor}, {probe.Syscall, syscallFactor}} {
		factors, err := costOf(ctx, e.engine, m, filepath.Join(dir, "other"))
		if err != nil {
			return result{missing: err.Error()}
		}
		for what, factor := range factors {
			res.goals = append(res.goals, outcome{got: factor,
				goal: goal{what: e.engine + " " + what, must: e.must, lower: true, unit: "x"}})
		}
	}
	slices.SortFunc(res.goals, func(a, b outcome) int {
		if a.what < b.what {
			return 1
		}
		return -1
	})
	return res
}

// costOf gives by which factor an engine slows calls down that have nothing to do with the mount.
func costOf(ctx context.Context, engine string, m linux.Mount, other string) (map[string]float64, error) {
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(other)
	calls := map[string]func() error{
		"stat": func() error {
			var st unix.Stat_t
			return unix.Stat(other, &st)
		},
		"open": func() error {
			fd, err := unix.Open(other, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		},
	}
	best := map[bool]map[string]time.Duration{false: {}, true: {}}
	for round := range 2 * costRounds {
		armed := round%2 == 1
		var t *trace.Trace
		if armed {
			var err error
			t, err = trace.Start(ctx, trace.Options{Host: linux.Open(""), Engine: engine, Mounts: []linux.Mount{m}})
			if err != nil {
				return nil, err
			}
		}
		err := batches(calls, best[armed])
		if armed {
			err = errors.Join(err, t.Close())
		}
		if err != nil {
			return nil, err
		}
	}
	out := map[string]float64{}
	for what := range calls {
		out[what] = float64(best[true][what]) / float64(best[false][what])
	}
	return out, nil
}

// batches notes the fastest batch of each call.
func batches(calls map[string]func() error, best map[string]time.Duration) error {
	runtime.GC() // loading an engine leaves garbage, whose collection would be measured
	for what, call := range calls {
		for range costBatches {
			from := time.Now()
			for range costCalls {
				if err := call(); err != nil {
					return err
				}
			}
			if took := time.Since(from); best[what] == 0 || took < best[what] {
				best[what] = took
			}
		}
	}
	return nil
}
