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
	"slices"

	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/lab/cutfs"
)

// wrongDisk has one percent of its refcounts wrong, half of them too low, all over the file.
var wrongDisk = disk{"wrong-1T", lab.Spec{VirtualBytes: 1 << 40, WrongPercent: 1}}

// writtenDisk is the same, small enough to be kept in memory.
var writtenDisk = disk{"wrong-64G", lab.Spec{VirtualBytes: 64 << 30, WrongPercent: 1}}

func repairRows() []row {
	image := wrongDisk.bytesOnDisk(false)
	return []row{
		{name: "repair: 1 TiB, 1 % wrong refcounts", space: 3 * image, special: repairCost},
		{name: "repair: the plan, against two checks", space: image, special: planCost},
		{name: "repair: bytes written", space: 2 * writtenDisk.bytesOnDisk(false), special: repairWrites},
	}
}

// repairCost repairs with both programs, each time a copy of its own.
func repairCost(ctx context.Context, b *bench, dir string) result {
	res, err := b.repairCost(ctx, dir)
	if err != nil {
		res.missing = err.Error()
	}
	return res
}

func (b *bench) repairCost(ctx context.Context, dir string) (res result, err error) {
	image, err := b.make(ctx, &wrongDisk, dir)
	if err != nil {
		return res, err
	}
	defer os.Remove(image)
	own := filepath.Join(dir, "repair")
	defer os.RemoveAll(own)
	target := filepath.Join(own, "image.qcow2")
	ours := []string{b.shisa, "repair", "--apply", "--state", filepath.Join(own, "state"), target}
	theirs := []string{b.qemuImg, "check", "-q", "-r", "all", target}
	// fresh makes the copy that is repaired, without what an earlier repair left.
	fresh := func() error {
		if err := errors.Join(os.RemoveAll(own), os.Mkdir(own, 0o755)); err != nil {
			return err
		}
		if err := copySparse(ctx, image, target); err != nil {
			return err
		}
		return warm(ctx, target)
	}
	var oursCosts, theirsCosts []cost
	for range b.runs {
		c, errs, err := freshRun(ctx, fresh, theirs)
		if err != nil {
			return res, err
		}
		if c.exit != 0 {
			return res, fmt.Errorf("qemu-img check -r all: exit status %d: %s", c.exit, errs)
		}
		theirsCosts = append(theirsCosts, c)
		if c, errs, err = freshRun(ctx, fresh, ours); err != nil {
			return res, err
		}
		// 3: what was too high may stay until it is asked for.
		if !slices.Contains([]int{0, 3}, c.exit) {
			return result{failed: fmt.Sprintf("shisa repair --apply: exit status %d: %s", c.exit, errs)}, nil
		}
		oursCosts = append(oursCosts, c)
	}
	if res.failed, err = b.mended(ctx, target); err != nil {
		return res, err
	}
	res.ours, res.oursRan = median(oursCosts), true
	res.theirs, res.theirsRan = median(theirsCosts), true
	for _, m := range []struct {
		argv []string
		into *int64
	}{{ours, &res.ours.memory}, {theirs, &res.theirs.memory}} {
		if err := fresh(); err != nil {
			return res, err
		}
		if *m.into, err = peakMemory(ctx, m.argv); err != nil {
			return res, err
		}
	}
	g := cpuRatio(10, 0)
	res.goals = []outcome{{goal: g, got: g.value(res.ours, res.theirs)}}
	return res, nil
}

// freshRun runs a program on a new copy.
func freshRun(ctx context.Context, fresh func() error, argv []string) (cost, string, error) {
	if err := fresh(); err != nil {
		return cost{}, "", err
	}
	return timeRun(ctx, argv)
}

// mended asks qemu-img whether the image is without errors. Leaks are none.
func (b *bench) mended(ctx context.Context, path string) (string, error) {
	c, errs, err := timeRun(ctx, []string{b.qemuImg, "check", "-q", path})
	if err != nil || slices.Contains([]int{0, 3}, c.exit) {
		return "", err
	}
	return fmt.Sprintf("qemu-img check of what shisa repaired: exit status %d: %s", c.exit, errs), nil
}

// copySparse copies a file with its holes, as cheaply as the file system allows.
func copySparse(ctx context.Context, from, to string) error {
	cmd := exec.CommandContext(ctx, "cp", "--reflink=auto", "--sparse=auto", from, to)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the image: %w: %s", err, out)
	}
	return nil
}

// planCost holds making a plan against checking the same image.
func planCost(ctx context.Context, b *bench, dir string) result {
	image, err := b.make(ctx, &wrongDisk, dir)
	if err != nil {
		return result{missing: err.Error()}
	}
	defer os.Remove(image)
	r := row{ours: func(path string) []string { return []string{"repair", path} }, oursExit: []int{3}}
	plan, err := r.compare(ctx, b, image)
	if err != nil || plan.failed != "" {
		return plan
	}
	r.ours = check
	whole, err := r.compare(ctx, b, image)
	if err != nil || whole.failed != "" {
		return whole
	}
	g := goal{what: "CPU of a plan", must: 2, lower: true, unit: " checks",
		value: func(plan, check cost) float64 { return plan.cpu.Seconds() / check.cpu.Seconds() }}
	return result{ours: plan.ours, oursRan: true, theirsText: "shisa check: " + whole.ours.String(),
		goals: []outcome{{goal: g, got: g.value(plan.ours, whole.ours)}}}
}

// repairWrites counts what a repair writes: to the image, and to keep what was there.
func repairWrites(ctx context.Context, b *bench, dir string) result {
	res, err := b.repairWrites(ctx, dir)
	if err != nil {
		res.missing = err.Error()
	}
	return res
}

func (b *bench) repairWrites(ctx context.Context, dir string) (res result, err error) {
	world, mount := filepath.Join(dir, "world"), filepath.Join(dir, "disk")
	defer os.RemoveAll(world)
	defer os.RemoveAll(mount)
	if err := errors.Join(os.Mkdir(world, 0o755), os.Mkdir(mount, 0o755)); err != nil {
		return res, err
	}
	path, err := b.make(ctx, &writtenDisk, world)
	if err != nil {
		return res, err
	}
	start, err := cutfs.Load(world)
	if err != nil {
		return res, err
	}
	name := filepath.Base(path)
	image := filepath.Join(mount, name)
	var all, touched int64
	for _, side := range []struct {
		argv  []string
		exits []int
		text  *string
	}{
		{[]string{b.qemuImg, "check", "-q", "-r", "all", image}, []int{0}, &res.theirsText},
		{[]string{b.shisa, "repair", "--apply", "--state", filepath.Join(mount, "state"), image},
			[]int{0, 3}, &res.text},
	} {
		fs, err := cutfs.Mount(mount, start)
		if err != nil {
			return res, err
		}
		var c cost
		var errs string
		err = fs.Do(func() (err error) {
			c, errs, err = timeRun(ctx, side.argv)
			return err
		})
		if err = errors.Join(err, fs.Unmount()); err != nil {
			return res, err
		}
		if !slices.Contains(side.exits, c.exit) {
			return result{failed: fmt.Sprintf("%v: exit status %d: %s", side.argv, c.exit, errs)}, nil
		}
		all, touched = written(fs.Writes(), name)
		*side.text = fmt.Sprintf("%.1f MiB, %d clusters touched", float64(all)/(1<<20),
			touched/clusterBytes)
	}
	g := goal{what: "bytes", must: 3, lower: true, unit: "x of the clusters touched", always: true}
	res.goals = []outcome{{goal: g, got: float64(all) / float64(max(1, touched))}}
	return res, nil
}

// clusterBytes is the cluster size of the images above.
const clusterBytes = 64 << 10

// written adds up what was written to all files, and the image's clusters that were written to.
func written(list []cutfs.Write, image string) (all, touched int64) {
	clusters := map[int64]bool{}
	for _, w := range list {
		all += w.Length
		if w.Path != image {
			continue
		}
		for c := w.Offset / clusterBytes; c*clusterBytes < w.Offset+w.Length; c++ {
			clusters[c] = true
		}
	}
	return all, int64(len(clusters)) * clusterBytes
}
