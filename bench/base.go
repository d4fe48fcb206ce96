// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// A pool as OpenStack Nova makes it: a directory of each machine, with an overlay as qemu-img creates it in it.
// Every overlay is a file of its own, with an inode of its own; its holes are left out.
const (
	poolOverlays = 100_000
	poolBases    = 200
	// poolSpace is what it takes: three blocks of 4 KiB that are not zeros, an inode and a directory each.
	poolSpace = 3 << 30
	// poolSample is how many overlays qemu-img is asked about, one by one; all would take a quarter of an hour.
	poolSample = 400
	poolBlock  = 4096
)

func baseRows() []row {
	return []row{
		{name: "base scan: 100000 overlays, warm", space: poolSpace, scales: true,
			special: func(ctx context.Context, b *bench, dir string) result { return baseScanRow(ctx, b, dir, false) }},
		{name: "base scan --index: 100000 overlays", space: poolSpace, scales: true,
			special: func(ctx context.Context, b *bench, dir string) result { return baseScanRow(ctx, b, dir, true) }},
	}
}

// Against one "qemu-img info" for each overlay a census is to take so many times less CPU: one by an index, and one of
// everything, where the nine calls of the kernel for each overlay alone take about a 500th of it.
const (
	poolIndexRatio = 500
	poolFullRatio  = 150
)

// baseScanRow holds a census against one "qemu-img info" for each overlay, as JSON and as text. Both run warm; what
// qemu-img takes is measured on a sample and scaled up to all. With an index the census is one of a pool in which nothing
// changed since the last one.
func baseScanRow(ctx context.Context, b *bench, dir string, index bool) result {
	overlays := poolOverlays
	if b.quick {
		overlays /= 16
	}
	pool := filepath.Join(dir, "pool")
	disks, err := b.makePool(ctx, pool, overlays)
	if err != nil {
		return result{missing: errors.Join(err, os.RemoveAll(pool)).Error()}
	}
	argv := []string{b.shisa, "base", "scan", pool}
	state := filepath.Join(dir, "state")
	if index {
		argv = append(argv, "--index", "--state", state)
		err = fillIndex(ctx, argv)
	}
	var res result
	if err == nil {
		res, err = b.scanPool(ctx, argv, disks, index)
	}
	if err = errors.Join(err, os.RemoveAll(pool), os.RemoveAll(state)); err != nil {
		return result{missing: err.Error()}
	}
	return res
}

// racyTime is for how long what was just made is not remembered, and more.
const racyTime = 3 * time.Second

// fillIndex makes the index when the pool is old enough to be remembered.
func fillIndex(ctx context.Context, argv []string) error {
	select {
	case <-time.After(racyTime):
	case <-ctx.Done():
		return ctx.Err()
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return fmt.Errorf("make the index: %w: %.200s", err, out)
	}
	return nil
}

// scanPool runs both in turn, as JSON and as text.
func (b *bench) scanPool(ctx context.Context, argv, disks []string, index bool) (res result, err error) {
	remembered, ratio := 0, cpuRatio(poolFullRatio, poolIndexRatio)
	if index {
		remembered, ratio = len(disks)+poolBases, cpuRatio(poolIndexRatio, 0)
	}
	asJSON := append(slices.Clone(argv), "--json")
	if res.failed, err = sawAll(ctx, asJSON, len(disks), remembered); err != nil || res.failed != "" {
		return res, err
	}
	info := []string{b.qemuImg, "info", "-U"}
	var text, textTheirs cost
	if text, textTheirs, res.failed, err = b.censuses(ctx, argv, info, disks); err != nil || res.failed != "" {
		return res, err
	}
	res.ours, res.theirs, res.failed, err = b.censuses(ctx, asJSON, append(info, "--output=json"), disks)
	if err != nil || res.failed != "" {
		return res, err
	}
	if res.ours.memory, err = peakMemory(ctx, asJSON); err != nil {
		return res, err
	}
	res.text = fmt.Sprintf("%d overlays, %d bases: %s / %s (text %s), %.0f MiB", len(disks), poolBases, seconds(res.ours.cpu),
		seconds(res.ours.wall), seconds(text.cpu), float64(res.ours.memory)/(1<<20))
	res.theirsText = fmt.Sprintf("%s / %s (text %s), scaled up from %d of them", seconds(res.theirs.cpu), seconds(res.theirs.wall),
		seconds(textTheirs.cpu), min(poolSample, len(disks)))
	for _, g := range []goal{cpuUnder(2000), memoryUnder(200), ratio} {
		res.goals = append(res.goals, outcome{goal: g, got: g.value(res.ours, res.theirs)})
	}
	ratio.what = "CPU as text"
	res.goals = append(res.goals, outcome{goal: ratio, got: ratio.value(text, textTheirs)})
	return res, nil
}

// censuses runs a census in the middle of the loop of qemu-img, as often as is asked for: what else the machine does falls on
// both.
func (b *bench) censuses(ctx context.Context, argv, info, disks []string) (ours, theirs cost, failed string, err error) {
	var our, their []cost
	for range b.runs {
		var c cost
		var errs string
		t, err := infoLoop(ctx, info, disks, func() (err error) {
			c, errs, err = timeRun(ctx, argv)
			return err
		})
		if err != nil {
			return ours, theirs, "", err
		}
		if c.exit != 0 && c.exit != 4 { // the rest of this host may not be readable for the user
			return ours, theirs, fmt.Sprintf("exit status %d: %s", c.exit, errs), nil
		}
		our, their = append(our, c), append(their, t)
	}
	return median(our), median(their), "", nil
}

// sawAll runs a census and says what is wrong with it: being fast and blind is worth nothing. It also brings all
// that is read into the page cache.
func sawAll(ctx context.Context, argv []string, overlays, remembered int) (wrong string, err error) {
	var errs tail
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return "", err
	}
	var census struct {
		All []struct {
			State string            `json:"state"`
			Uses  []json.RawMessage `json:"uses"`
		} `json:"all"`
		Looked struct {
			Overlays int `json:"overlays"`
		} `json:"looked"`
		Remembered int `json:"remembered"`
	}
	if err := json.Unmarshal(out, &census); err != nil {
		return "", fmt.Errorf("read the census: %w: %s", err, errs.b.Bytes())
	}
	uses := 0
	for _, base := range census.All {
		uses += len(base.Uses)
	}
	if len(census.All) != poolBases || census.Looked.Overlays != overlays || uses != overlays {
		return fmt.Sprintf("%d bases, %d overlays, %d uses; want %d, %d, %d", len(census.All), census.Looked.Overlays,
			uses, poolBases, overlays, overlays), nil
	}
	if census.Remembered != remembered {
		return fmt.Sprintf("%d files are remembered, want %d", census.Remembered, remembered), nil
	}
	return "", nil
}

// infoLoop asks qemu-img about overlays, one after the other, and gives what that takes for all of them. In the middle of
// it, it calls half.
func infoLoop(ctx context.Context, info, disks []string, half func() error) (total cost, err error) {
	sample := min(poolSample, len(disks))
	for i := range sample {
		if i == sample/2 {
			if err := half(); err != nil {
				return total, err
			}
		}
		c, errs, err := timeRun(ctx, append(slices.Clone(info), disks[i*len(disks)/sample]))
		if err != nil {
			return total, err
		}
		if c.exit != 0 {
			return total, fmt.Errorf("qemu-img info: exit status %d: %s", c.exit, errs)
		}
		total.cpu += c.cpu
		total.wall += c.wall
	}
	scale := float64(len(disks)) / float64(sample)
	total.cpu = time.Duration(float64(total.cpu) * scale)
	total.wall = time.Duration(float64(total.wall) * scale)
	return total, nil
}

// makePool makes a pool and gives its overlays.
func (b *bench) makePool(ctx context.Context, pool string, overlays int) (disks []string, err error) {
	if err := os.MkdirAll(filepath.Join(pool, "_base"), 0o755); err != nil {
		return nil, err
	}
	name := func(i int) string { return filepath.Join(pool, "_base", fmt.Sprintf("%040x", i)) }
	for i := range poolBases {
		if err := os.WriteFile(name(i), bytes.Repeat([]byte{byte(i + 1)}, poolBlock), 0o644); err != nil {
			return nil, err
		}
		if err := os.Truncate(name(i), 1<<30); err != nil {
			return nil, err
		}
	}
	first := filepath.Join(pool, "first")
	if _, err := command(ctx, b.qemuImg, "create", "-q", "-f", "qcow2", "-b", name(0), "-F", "raw", first); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(first)
	if err = errors.Join(err, os.Remove(first)); err != nil {
		return nil, err
	}
	for i := range overlays {
		if i%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		d := filepath.Join(pool, fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i))
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
		disk := filepath.Join(d, "disk")
		if err := writeSparse(disk, bytes.Replace(text, []byte(name(0)), []byte(name(i%poolBases)), 1)); err != nil {
			return nil, err
		}
		disks = append(disks, disk)
	}
	return disks, nil
}

// writeSparse writes a new file, and leaves blocks of zeros out.
func writeSparse(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	zeros := make([]byte, poolBlock)
	for off := 0; off < len(text) && err == nil; off += poolBlock {
		p := text[off:min(off+poolBlock, len(text))]
		if !bytes.Equal(p, zeros[:len(p)]) {
			_, err = f.WriteAt(p, int64(off))
		}
	}
	if err == nil {
		err = f.Truncate(int64(len(text)))
	}
	return errors.Join(err, f.Close())
}
