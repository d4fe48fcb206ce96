// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

const (
	// caught are the failed umounts for each way, of which so many percent must be told exactly.
	caught, caughtQuick = 200, 20
	caughtShare         = 97
	// catchTimeout is how long that may take for one way: umounts seldom meet a stat.
	catchTimeout, catchTimeoutQuick = 4 * time.Minute, time.Minute
	// tellTimeout is how long it is waited for what is told of a failure: that takes a second.
	tellTimeout = 30 * time.Second
	// The costs of watching for what has nothing to do with the mount, as a factor.
	watchFactor, syscallFactor = 1.05, 1.35
)

// catchWays are the ways of holding for moments, as they are called in the table.
var catchWays = []struct{ name, kind string }{{"stat", hold.StatLoop}, {"open", hold.OpenLoop},
	{"mmap", hold.MapLoop}, {"chdir", hold.CwdLoop}, {"exec", hold.RunLoop}}

func traceRows() []row {
	return []row{
		{name: "holders --trace: who made umounts fail, by watchpoint", special: func(ctx context.Context, b *bench,
			dir string) result {
			return b.catches(ctx, dir, probe.Watch)
		}},
		{name: "holders --trace: who made umounts fail, by system calls", special: func(ctx context.Context, b *bench,
			dir string) result {
			return b.catches(ctx, dir, probe.Syscall)
		}},
		{name: "holders --trace: cost for other mounts", special: func(ctx context.Context, b *bench,
			dir string) result {
			return b.watching(ctx, dir)
		}},
	}
}

// mountpoint is a directory that is mounted and unmounted again and again.
type mountpoint struct{ source, target string }

func (a *apart) mountpoint() (p mountpoint, undo func() error, err error) {
	p = mountpoint{filepath.Join(a.Dir, "source"), filepath.Join(a.Dir, "target")}
	undo = func() error {
		return errors.Join(gone(p.target), gone(p.source), os.RemoveAll(p.source), os.RemoveAll(p.target))
	}
	err = errors.Join(os.Mkdir(p.source, 0o700), os.Mkdir(p.target, 0o700))
	if err == nil {
		err = tmpfs(p.source)
	}
	if err == nil {
		err = p.mount()
	}
	return p, undo, err
}

func (p mountpoint) mount() error { return unix.Mount(p.source, p.target, "", unix.MS_BIND, "") }

// catches has umounts fail in several ways and counts who is named for it.
func (b *bench) catches(ctx context.Context, dir, engine string) (res result) {
	var found []catchFound
	if err := b.apart(ctx, dir, "catch-"+engine, &found); err != nil {
		return result{missing: err.Error()}
	}
	must, what := float64(caughtShare), "held at the check"
	if engine == probe.Syscall {
		must, what = 100, "suspect"
	}
	wrong := 0
	res.theirsText = "nobody is left to be found"
	for _, c := range found {
		got := c.Exact
		if engine == probe.Syscall {
			got = c.Named
		}
		wrong += c.Wrong
		res.text += fmt.Sprintf("%s %d of %d, ", c.Way, got, c.Failed)
		res.goals = append(res.goals,
			outcome{got: 100 * float64(got) / float64(max(c.Failed, 1)), goal: goal{what: c.Way, must: must,
				unit: " %", always: true}},
			outcome{got: float64(c.Failed), goal: goal{what: c.Way + " umounts that failed",
				must: float64(c.Want), unit: fmt.Sprintf(" of %d", c.Want), always: true}})
	}
	res.text += what
	res.goals = append(res.goals, outcome{goal: count("wrongly named", 0), got: float64(wrong)})
	return res
}

// catchFound counts failed umounts of one way: those that were told of, those whose holder is named,
// those where that is certain, and those where a process is named that looks at another mount.
type catchFound struct {
	Way                               string
	Want, Failed, Named, Exact, Wrong int
	// Lost is what the engine could not tell of.
	Lost int64
}

// catchesBy has umounts fail in all ways that an engine sees.
func (a *apart) catchesBy(ctx context.Context, engine string) ([]catchFound, error) {
	var all []catchFound
	for _, way := range catchWays {
		if engine == probe.Syscall && way.kind == hold.MapLoop {
			continue // it does not see what holds without a file, and says so
		}
		c, err := a.catch(ctx, engine, way.kind)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.name, err)
		}
		c.Way = way.name
		fmt.Fprintf(a.log, "      %s: %+v\n", engine, c)
		all = append(all, c)
	}
	return all, nil
}

func (a *apart) catch(ctx context.Context, engine, kind string) (c catchFound, err error) {
	p, undo, err := a.mountpoint()
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return c, err
	}
	m, err := mountOn(ctx, p.target)
	if err == nil && m == nil {
		err = fmt.Errorf("%s is not mounted", p.target)
	}
	if err != nil {
		return c, err
	}
	t, err := trace.Start(ctx, trace.Options{Host: linux.Open(""), Engine: engine, Mounts: []linux.Mount{*m}})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	holder, err := hold.Pass(ctx, kind, p.target)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, holder.Release()) }()
	decoy, err := hold.Pass(ctx, hold.StatLoop, p.source)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, decoy.Release()) }()
	n, timeout := caught, catchTimeout
	if a.Quick {
		n, timeout = caughtQuick, catchTimeoutQuick
	}
	c.Want = n
	if c.Failed, err = p.fail(ctx, t, n, timeout); err != nil {
		return c, err
	}
	for told := 0; told < c.Failed; {
		f, err := next(ctx, t)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			break // the rest was not told of, and counts as not named
		}
		if err != nil {
			return c, err
		}
		if f.Umount.Process.PID == os.Getpid() { // the other engine sees every umount of the host
			told++
			c.add(f, holder.PID, decoy.PID)
		}
	}
	lost, err := t.Lost()
	c.Lost = lost.Drops + lost.Tables
	return c, err
}

// next waits for a failure, for far longer than it takes to be told.
func next(ctx context.Context, t *trace.Trace) (trace.Failure, error) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	return t.Next(ctx)
}

// add judges a failure by whether it names the holder, or a child of it.
func (c *catchFound) add(f trace.Failure, holder, decoy int) {
	named, exact := false, false
	for _, h := range f.Holders {
		switch {
		case h.Process.PID == decoy:
			c.Wrong++
		case h.Process.PID == holder || h.Process.PPID == holder:
			named, exact = true, exact || h.Certainty == holders.HeldAtCheck
		}
	}
	if named {
		c.Named++
	}
	if exact {
		c.Exact++
	}
}

// fail unmounts until that failed n times, or the time is over. Where it succeeds the mount is there
// again at once.
func (p mountpoint) fail(ctx context.Context, t *trace.Trace, n int, limit time.Duration) (failed int, err error) {
	for end := time.Now().Add(limit); failed < n && time.Now().Before(end); {
		switch err := unix.Unmount(p.target, unix.UMOUNT_NOFOLLOW); {
		case ctx.Err() != nil:
			return failed, ctx.Err()
		case err == unix.EBUSY:
			failed++
			time.Sleep(time.Millisecond)
		case err != nil:
			return failed, fmt.Errorf("umount: %w", err)
		default:
			if err := errors.Join(p.mount(), t.Follow(ctx)); err != nil {
				return failed, err
			}
		}
	}
	return failed, nil
}
