// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux"
)

// umountRows hold shisa umount against umount(8): where somebody looks into the mount for moments, and
// where somebody stays.
func umountRows() []row {
	return []row{
		{name: "umount: 50 against an opener of 60 %", special: passingRow},
		{name: "umount: a lasting holder", special: lastingRow},
	}
}

const (
	passingUmounts = 50
	passingWait    = 10 * time.Second
	// meeting is how long the opener is given to meet a new mount.
	meeting = 10 * time.Millisecond
	// lastingWait is how long a mount is tried that is held for good. It may take lastingMore: the
	// last pause, and the look who it is.
	lastingWait, lastingWaitQuick = 10 * time.Second, time.Second
	lastingMore                   = 2 * time.Second
)

// passingFound is what became of umounts that somebody was in the way of for moments.
type passingFound struct {
	Rounds, Ours, Theirs int
	Tries                int // of umount(2), by shisa
	Slowest, Middle      time.Duration
	Failed               []string
}

func passingRow(ctx context.Context, b *bench, dir string) result {
	var f passingFound
	if err := b.apart(ctx, dir, "passing", &f); err != nil {
		return result{missing: err.Error()}
	}
	return f.result()
}

func (f passingFound) result() result {
	all := goal{what: "unmounted", must: float64(f.Rounds), unit: fmt.Sprintf(" of %d", f.Rounds),
		always: true}
	return result{theirsText: fmt.Sprintf("umount(8): %d of %d", f.Theirs, f.Rounds),
		text: fmt.Sprintf("%d of %d in %d tries, %s each, slowest %s", f.Ours, f.Rounds, f.Tries,
			seconds(f.Middle), seconds(f.Slowest)),
		goals: []outcome{{goal: all, got: float64(f.Ours)}}}
}

// umountText is what the bench reads of shisa umount --json.
type umountText struct {
	State  string       `json:"state"`
	Tries  int          `json:"tries"`
	TookNS int64        `json:"took_ns"`
	Thawed bool         `json:"thawed"`
	Report *holdersText `json:"report"`
}

// umount runs shisa umount.
func (a *apart) umount(ctx context.Context, at string, wait time.Duration, flags ...string,
) (c cost, t umountText, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait+crowdPatience)
	defer cancel()
	argv := slices.Concat([]string{a.Shisa, "umount", "--json", "--wait", wait.String()}, flags, []string{at})
	c, out, err := answered(ctx, (*exec.Cmd).Start, argv...)
	if err == nil && len(out) > 0 {
		err = json.Unmarshal(out, &t)
	}
	return c, t, err
}

// passing unmounts what somebody opens again and again, by both programs in turn.
func (a *apart) passing(ctx context.Context) (f passingFound, err error) {
	f.Rounds = passingUmounts
	if a.Quick {
		f.Rounds /= 5
	}
	at, err := a.directory()
	if err != nil {
		return f, err
	}
	opener, err := hold.Pass(ctx, hold.OpenLoop, at)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, opener.Release(), gone(at)) }()
	var costs []cost
	for i := range f.Rounds {
		if err := met(at); err != nil {
			return f, err
		}
		if c, _, err := timeRun(ctx, []string{"umount", at}); err != nil {
			return f, err
		} else if c.exit == 0 {
			f.Theirs++
			if err := met(at); err != nil {
				return f, err
			}
		}
		c, t, err := a.umount(ctx, at, passingWait)
		if err != nil {
			return f, err
		}
		f.Tries += t.Tries
		// The time is that of the umount, without that of the program's start.
		took := time.Duration(t.TookNS)
		costs = append(costs, cost{wall: took})
		f.Slowest = max(f.Slowest, took)
		left, err := mountOn(ctx, at)
		if err != nil {
			return f, err
		}
		if c.exit != 0 || t.State != "unmounted" || left != nil {
			fmt.Fprintf(a.log, "      umount %d: exit status %d, %q, still mounted: %t\n", i, c.exit,
				t.State, left != nil)
			if err := gone(at); err != nil {
				return f, err
			}
			continue
		}
		f.Ours++
	}
	f.Middle = median(costs).wall
	return f, nil
}

// met mounts a file system and gives others the time to look into it.
func met(at string) error {
	if err := tmpfs(at); err != nil {
		return err
	}
	time.Sleep(meeting)
	return nil
}

// mountOn is what is mounted on a directory, nil for nothing.
func mountOn(ctx context.Context, at string) (*linux.Mount, error) {
	all, err := linux.Open("").Mounts(ctx, 0)
	if err != nil {
		return nil, err
	}
	for _, m := range slices.Backward(all) {
		if m.Point == at {
			return &m, nil
		}
	}
	return nil, nil
}

// lastingFound is what became of an umount that somebody is in the way of for good.
type lastingFound struct {
	Wait, Took time.Duration
	Tries      int
	// Wrong is what is not as it must be.
	Wrong []string
}

func lastingRow(ctx context.Context, b *bench, dir string) result {
	var f lastingFound
	if err := b.apart(ctx, dir, "lasting", &f); err != nil {
		return result{missing: err.Error()}
	}
	return f.result()
}

func (f lastingFound) result() result {
	late := goal{what: "late by", must: lastingMore.Seconds(), lower: true, unit: " s"}
	res := result{text: fmt.Sprintf("gave up after %s of %s, %d tries; held, named, thawed", seconds(f.Took),
		f.Wait, f.Tries), theirsText: "umount(8): target is busy",
		goals: []outcome{{goal: late, got: (f.Took - f.Wait).Seconds()},
			{goal: count("wrong", 0), got: float64(len(f.Wrong))}}}
	if len(f.Wrong) > 0 {
		res.failed = strings.Join(f.Wrong, "; ")
	}
	return res
}

// lasting unmounts what a process has open for good, which is stopped from running at each try.
func (a *apart) lasting(ctx context.Context) (f lastingFound, err error) {
	f.Wait = lastingWait
	if a.Quick {
		f.Wait = lastingWaitQuick
	}
	at, err := a.directory()
	if err == nil {
		err = tmpfs(at)
	}
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, gone(at)) }()
	h, err := hold.Make(ctx, hold.Kinds()[0], hold.Place{Mount: at})
	if err != nil {
		return f, err
	}
	group, unit, err := controlGroup(ctx, h.PID)
	if err != nil {
		return f, errors.Join(err, h.Release())
	}
	// The group can go when its process has.
	defer func() { err = errors.Join(err, h.Release(), removed(group)) }()
	before, err := mountOn(ctx, at)
	if err != nil {
		return f, err
	}
	c, t, err := a.umount(ctx, at, f.Wait, "--freeze", unit)
	if err != nil {
		return f, err
	}
	after, err := mountOn(ctx, at)
	if err != nil {
		return f, err
	}
	stopped, err := os.ReadFile(filepath.Join(group, "cgroup.freeze"))
	if err != nil {
		return f, err
	}
	f.Took, f.Tries = time.Duration(t.TookNS), t.Tries
	say := func(wrong bool, format string, args ...any) {
		if wrong {
			f.Wrong = append(f.Wrong, fmt.Sprintf(format, args...))
		}
	}
	say(c.exit != 3, "exit status %d, want 3", c.exit)
	say(t.State != "held", "it says %q, want held", t.State)
	say(!t.Report.names(h.PID), "it does not name process %d, which holds it", h.PID)
	say(f.Took < f.Wait, "it gave up after %s, want %s", f.Took, f.Wait)
	say(before == nil || after == nil || *before != *after, "the mount is not as it was: %+v", after)
	say(!t.Thawed || strings.TrimSpace(string(stopped)) != "0", "the unit %s is stopped", unit)
	return f, nil
}

// controlGroup makes one for one unit, with one process in it.
func controlGroup(ctx context.Context, pid int) (dir, unit string, err error) {
	all, err := linux.Open("").Mounts(ctx, 0)
	if err != nil {
		return "", "", err
	}
	for _, m := range all {
		if m.Type != "cgroup2" || m.Root != "/" {
			continue
		}
		unit = fmt.Sprintf("shisa-bench-%d.service", pid)
		dir = filepath.Join(m.Point, unit)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", "", err
		}
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600)
		if err != nil {
			return "", "", errors.Join(err, os.Remove(dir))
		}
		return dir, unit, nil
	}
	return "", "", errors.New("there are no control groups of version 2 here")
}

// removed removes a control group: a process leaves it some time after it was waited for.
func removed(group string) (err error) {
	for range 600 {
		if err = os.Remove(group); !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}
