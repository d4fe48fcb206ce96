// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// insideRows hold shisa disk against libguestfs, and against the kernel's own view of the same disk.
// Both sides begin with the disk out of the page cache, in turn. The time of mounting is not counted.
func insideRows() []row {
	rows := []row{
		{name: "disk cat: one file of a 10 GiB guest", space: 2 * guestSpace, scales: true, special: catRow},
		{name: "disk ls -lR of a 10 GiB guest", space: 2 * guestSpace, scales: true, special: listGuestfsRow},
	}
	add := func(name string, space int64, measure func(context.Context, *bench, string) (result, error)) {
		rows = append(rows, row{name: name, space: space, scales: true,
			special: func(ctx context.Context, b *bench, dir string) result {
				res, err := measure(ctx, b, dir)
				if err != nil {
					res.missing = err.Error()
				}
				return res
			}})
	}
	for _, kind := range []string{"ext4", "xfs"} {
		for _, format := range []string{"raw", "qcow2"} {
			add("disk find: 30,000 names, "+kind+", "+format, 2*guestSpace,
				func(ctx context.Context, b *bench, dir string) (result, error) {
					return b.find(ctx, dir, kind, format)
				})
		}
		add("disk cp: one file of 1 GiB, "+kind, 2*guestSpace,
			func(ctx context.Context, b *bench, dir string) (result, error) {
				return b.copyOut(ctx, dir, kind, "/srv/big", false)
			})
		add("disk cp: 20,000 files, "+kind, 2*guestSpace,
			func(ctx context.Context, b *bench, dir string) (result, error) {
				return b.copyOut(ctx, dir, kind, "/srv/small", true)
			})
		add("disk ls: 100,000 names in a directory, "+kind, 1<<30,
			func(ctx context.Context, b *bench, dir string) (result, error) {
				return b.listMany(ctx, dir, kind)
			})
	}
	return rows
}

// guestfsPatience bounds one run: without hardware that virtualises it takes minutes.
const guestfsPatience = 10 * time.Minute

// guestfs runs a tool of libguestfs once. Without KVM its own machine is emulated, which the text
// says.
func guestfs(ctx context.Context, argv ...string) (c cost, text string, err error) {
	if _, err := exec.LookPath(argv[0]); err != nil {
		return c, "", fmt.Errorf("%w (on Debian: apt-get install guestfs-tools and a linux-image)", err)
	}
	run := func(settings string) (cost, error) {
		ctx, cancel := context.WithTimeout(ctx, guestfsPatience)
		defer cancel()
		return okRun(ctx, []int{0}, append([]string{"env", "LIBGUESTFS_BACKEND=direct",
			"LIBGUESTFS_BACKEND_SETTINGS=" + settings}, argv...)...)
	}
	// The first run builds its machine's disk, which later ones use again.
	if _, err = run(""); err == nil {
		c, err = run("")
		return c, fmt.Sprintf("%s: %s", argv[0], seconds(c.wall)), err
	}
	if _, again := run("force_tcg"); again != nil {
		return c, "", errors.Join(err, again)
	}
	c, err = run("force_tcg")
	return c, fmt.Sprintf("%s: %s, its machine emulated without KVM", argv[0], seconds(c.wall)), err
}

func catRow(ctx context.Context, b *bench, dir string) result {
	return b.againstGuestfs(ctx, dir, "virt-cat", "/etc/passwd", wallRatio(100, 0), "cat")
}

func listGuestfsRow(ctx context.Context, b *bench, dir string) result {
	g := wallRatio(0, 0)
	g.shown = true
	return b.againstGuestfs(ctx, dir, "virt-ls", "/", g, "ls", "-lR")
}

// againstGuestfs holds a command against the tool of libguestfs that does the same.
func (b *bench) againstGuestfs(ctx context.Context, dir, tool, path string, g goal, command ...string,
) (res result) {
	disk, err := b.guest(ctx, dir, "ext4")
	if err != nil {
		return result{missing: err.Error()}
	}
	image, err := b.qcow2(ctx, disk)
	if err != nil {
		return result{missing: err.Error()}
	}
	var costs []cost
	ours := append(append([]string{b.shisa, "disk"}, command...), image+":"+path)
	for range b.runs {
		c, err := coldRun(ctx, image, []int{0}, ours...)
		if err != nil {
			return result{failed: err.Error()}
		}
		costs = append(costs, c)
	}
	res.ours = median(costs)
	res.text = noMemory(res.ours)
	argv := append([]string{tool}, command[1:]...)
	if res.theirs, res.theirsText, err = guestfs(ctx, append(argv, "-a", image, "-m", "/dev/sda1",
		path)...); err != nil {
		res.missing = err.Error()
		return res
	}
	res.goals = []outcome{{goal: g, got: g.value(res.ours, res.theirs)}}
	return res
}

// noMemory is a cost of which memory was not measured: that of a program alone says little where it
// has a child.
func noMemory(c cost) string { return fmt.Sprintf("%s / %s", seconds(c.cpu), seconds(c.wall)) }

// slower is how many times the time of the kernel's side ours took.
func slower(must float64, than string) goal {
	return goal{what: "wall", must: must, lower: true, unit: "x of " + than,
		value: func(o, t cost) float64 { return o.wall.Seconds() / t.wall.Seconds() }}
}

// turns runs both sides in turn, with nothing of the disk in the page cache.
func (b *bench) turns(ctx context.Context, g guest, theirs func(top string) []string, image string,
	ours []string, before func() error,
) (res result, err error) {
	var oursCosts, theirsCosts []cost
	for range b.runs {
		if err := before(); err != nil {
			return res, err
		}
		c, err := kernelRun(ctx, g, theirs)
		if err != nil {
			return res, err
		}
		theirsCosts = append(theirsCosts, c)
		if err := before(); err != nil {
			return res, err
		}
		if c, err = coldRun(ctx, image, []int{0}, ours...); err != nil {
			return result{failed: err.Error()}, nil
		}
		oursCosts = append(oursCosts, c)
	}
	res.ours, res.theirs = median(oursCosts), median(theirsCosts)
	res.text, res.theirsText = noMemory(res.ours), theirs("")[0]+": "+noMemory(res.theirs)
	return res, nil
}

func nothing() error { return nil }

// find holds listing a whole guest against find(1) with the status of each name.
func (b *bench) find(ctx context.Context, dir, kind, format string) (res result, err error) {
	g, err := b.guest(ctx, dir, kind)
	if err != nil {
		return res, err
	}
	image := g.raw
	if format == "qcow2" {
		if image, err = b.qcow2(ctx, g); err != nil {
			return res, err
		}
	}
	theirs := func(top string) []string {
		return []string{"find", top, "-printf", "%i %s %m %U %G %T@ %p\n"}
	}
	res, err = b.turns(ctx, g, theirs, image, []string{b.shisa, "disk", "find", image}, nothing)
	if err == nil && res.failed == "" {
		goal := slower(2, "find")
		res.goals = []outcome{{goal: goal, got: goal.value(res.ours, res.theirs)}}
	}
	return res, err
}

// copyOut holds copying a directory out against cp -a. Its bytes are written out in the time of
// neither.
func (b *bench) copyOut(ctx context.Context, dir, kind, path string, shown bool) (res result, err error) {
	g, err := b.guest(ctx, dir, kind)
	if err != nil {
		return res, err
	}
	to := filepath.Join(dir, "copied")
	defer func() { err = errors.Join(err, os.RemoveAll(to)) }()
	before := func() error { return errors.Join(os.RemoveAll(to), syncAt(dir)) }
	theirs := func(top string) []string { return []string{"cp", "-a", filepath.Join(top, path), to} }
	res, err = b.turns(ctx, g, theirs, g.raw, []string{b.shisa, "disk", "cp", g.raw + ":" + path, to},
		before)
	if err == nil && res.failed == "" {
		goal := goal{what: "speed", must: .5, unit: "x of cp -a", shown: shown,
			value: func(o, t cost) float64 { return t.wall.Seconds() / o.wall.Seconds() }}
		res.goals = []outcome{{goal: goal, got: goal.value(res.ours, res.theirs)}}
	}
	return res, err
}

// syncAt writes out what waits, so that neither side pays for the other.
func syncAt(dir string) error {
	_, err := command(context.Background(), "sync", "-f", dir)
	return err
}

// listMany lists one large directory. The required value is a time; ls -U by the kernel stands
// beside it.
func (b *bench) listMany(ctx context.Context, dir, kind string) (res result, err error) {
	g, err := b.many(ctx, dir, kind)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, os.Remove(g.raw)) }()
	theirs := func(top string) []string { return []string{"ls", "-U", filepath.Join(top, "many")} }
	res, err = b.turns(ctx, g, theirs, g.raw, []string{b.shisa, "disk", "ls", g.raw + ":/many"}, nothing)
	if err == nil && res.failed == "" {
		ratio := slower(0, "ls -U")
		ratio.shown = true
		for _, goal := range []goal{wallUnder(1), ratio} {
			res.goals = append(res.goals, outcome{goal: goal, got: goal.value(res.ours, res.theirs)})
		}
	}
	return res, err
}
