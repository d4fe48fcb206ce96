// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

const (
	// callCommand makes this program one that measures its own calls on a file.
	callCommand = "measure-calls"
	// Rounds with and without, so many batches of calls in each: the fastest batch counts.
	costRounds, costRoundsQuick, costBatches, costCalls = 12, 2, 100, 500
	// readBytes are read at once, out of memory.
	readBytes = 4096
)

// callCost is what one call takes of the processor, in ns.
type callCost struct{ Stat, Open, Read float64 }

func (c callCost) least(o callCost) callCost {
	return callCost{math.Min(c.Stat, o.Stat), math.Min(c.Open, o.Open), math.Min(c.Read, o.Read)}
}

// watchingFound is what calls on an unrelated file cost: with nothing watched, with an engine, and with
// it for as long as a umount failed within the last second.
type watchingFound struct {
	Engine           string
	Off, On, Failing callCost
}

// watching measures calls on another file system with and without an engine, in turn.
func (b *bench) watching(ctx context.Context, dir string) (res result) {
	var found []watchingFound
	if err := b.apart(ctx, dir, "watching", &found); err != nil {
		return result{missing: err.Error()}
	}
	res.theirsText = "nothing is watched"
	for _, f := range found {
		must := watchFactor
		if f.Engine == probe.Syscall {
			must = syscallFactor
		}
		for _, c := range []struct {
			what                 string
			off, on, whileFailed float64
		}{{"stat", f.Off.Stat, f.On.Stat, f.Failing.Stat}, {"open", f.Off.Open, f.On.Open, f.Failing.Open},
			{"read", f.Off.Read, f.On.Read, f.Failing.Read}} {
			res.goals = append(res.goals, outcome{got: c.on / c.off,
				goal: goal{what: f.Engine + " " + c.what, must: must, lower: true, unit: "x"}})
			res.text += fmt.Sprintf("%s %s %.0f ns, %.0f when watched, %.0f just after a failed umount; ", f.Engine,
				c.what, c.off, c.on, c.whileFailed)
		}
	}
	return res
}

// watchingCosts measures them for both engines.
func (a *apart) watchingCosts(ctx context.Context) (all []watchingFound, err error) {
	p, undo, err := a.mountpoint()
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return nil, err
	}
	other := filepath.Join(a.Dir, "other")
	if err := os.WriteFile(other, make([]byte, readBytes), 0o600); err != nil {
		return nil, err
	}
	c, err := newCaller(ctx, other)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	for _, engine := range []string{probe.Watch, probe.Syscall} {
		f, err := a.watchingCost(ctx, p, c, engine)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", engine, err)
		}
		all = append(all, f)
	}
	return all, nil
}

func (a *apart) watchingCost(ctx context.Context, p mountpoint, c *caller, engine string) (f watchingFound, err error) {
	most := callCost{math.Inf(1), math.Inf(1), math.Inf(1)}
	f = watchingFound{engine, most, most, most}
	m, err := mountOn(ctx, p.target)
	if err == nil && m == nil {
		err = fmt.Errorf("%s is not mounted", p.target)
	}
	if err != nil {
		return f, err
	}
	rounds := costRounds
	if a.Quick {
		rounds = costRoundsQuick
	}
	for range rounds {
		t, err := trace.Start(ctx, trace.Options{Host: linux.Open(""), Engine: engine, Mounts: []linux.Mount{*m}})
		if err != nil {
			return f, err
		}
		err = c.measure(&f.On)
		err = errors.Join(err, p.failOnce(), c.measure(&f.Failing), t.Close(), c.measure(&f.Off))
		if err != nil {
			return f, err
		}
	}
	return f, nil
}

// failOnce has one umount fail.
func (p mountpoint) failOnce() error {
	f, err := os.Open(p.target)
	if err != nil {
		return err
	}
	if err := unix.Unmount(p.target, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY {
		return errors.Join(fmt.Errorf("umount of what is open = %v, want %w", err, unix.EBUSY), f.Close())
	}
	return f.Close()
}

// caller is another process, which has nothing to do with the watching and makes calls when it is told
// to. It counts the processor's time of its thread: what others take of the machine does not matter.
type caller struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newCaller(ctx context.Context, path string) (*caller, error) {
	c := &caller{cmd: exec.CommandContext(ctx, "/proc/self/exe", callCommand, path)}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out, c.cmd.Stderr = bufio.NewReader(out), os.Stderr
	return c, c.cmd.Start()
}

func (c *caller) end() error { return errors.Join(c.in.Close(), c.cmd.Wait()) }

// measure makes calls, and notes what they cost if that is less.
func (c *caller) measure(least *callCost) error {
	if _, err := c.in.Write([]byte{0}); err != nil {
		return err
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return err
	}
	var got callCost
	if err := json.Unmarshal(line, &got); err != nil {
		return err
	}
	*least = least.least(got)
	return nil
}

// measureCalls is the caller.
func measureCalls(path string, in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return err
	}
	var last unix.CPUSet
	for i := range len(may) * 64 {
		if may.IsSet(i) {
			last.Zero()
			last.Set(i)
		}
	}
	if err := unix.SchedSetaffinity(0, &last); err != nil {
		return err
	}
	buf := make([]byte, readBytes)
	f, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	for {
		if _, err := io.ReadFull(in, make([]byte, 1)); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		var c callCost
		for _, m := range []struct {
			to   *float64
			call func() error
		}{{&c.Stat, func() error {
			var st unix.Stat_t
			return unix.Stat(path, &st)
		}}, {&c.Open, func() error {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}}, {&c.Read, func() error {
			_, err := unix.Pread(f, buf, 0)
			return err
		}}} {
			if *m.to, err = fastest(m.call); err != nil {
				return err
			}
		}
		if err := json.NewEncoder(out).Encode(c); err != nil {
			return err
		}
	}
}

// fastest is what a call takes of the processor in the fastest batch, in ns.
func fastest(call func() error) (float64, error) {
	var all []time.Duration
	for range costBatches {
		from, err := threadTime()
		if err != nil {
			return 0, err
		}
		for range costCalls {
			if err := call(); err != nil {
				return 0, err
			}
		}
		to, err := threadTime()
		if err != nil {
			return 0, err
		}
		all = append(all, to-from)
	}
	return float64(slices.Min(all).Nanoseconds()) / costCalls, nil
}

// threadTime is the processor's time that this thread has had.
func threadTime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}
