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
	"strconv"
	"strings"
	"time"
)

// The disk of many inodes. Their tables alone take more than a GiB.
const (
	manyInodes      = 5_000_000
	manyInodesQuick = 200_000
	inodesEach      = 10_000 // in a directory
	inodesBytes     = 8 << 30
	inodesSpace     = 3 << 30
	memoryMiB       = 256
)

func memoryRows() []row {
	name := "memory: disk %s, 5 million inodes"
	return []row{
		{name: fmt.Sprintf(name, "find"), space: inodesSpace, scales: true,
			special: func(ctx context.Context, b *bench, dir string) result {
				return b.memory(ctx, dir, func(disk string) ([]string, error) {
					return []string{b.shisa, "disk", "find", disk}, nil
				})
			}},
		{name: fmt.Sprintf(name, "who"), space: inodesSpace, scales: true,
			special: func(ctx context.Context, b *bench, dir string) result {
				return b.memory(ctx, dir, func(disk string) ([]string, error) {
					sector, err := sectorOf(ctx, disk, "/last")
					return []string{b.shisa, "disk", "who", "--sector", sector, disk}, err
				})
			}},
	}
}

// memory runs a command on the disk of many inodes and adds up the peaks of the program and of the
// child that reads the guest. Memory that both have mapped counts twice.
func (b *bench) memory(ctx context.Context, dir string, argv func(disk string) ([]string, error)) (
	res result,
) {
	inodes := manyInodes
	if b.quick {
		inodes = manyInodesQuick
	}
	disk, err := b.inodesDisk(ctx, dir, inodes)
	if err != nil {
		return result{missing: err.Error()}
	}
	line, err := argv(disk)
	if err != nil {
		return result{missing: err.Error()}
	}
	start := time.Now()
	parent, child, err := familyPeak(ctx, line)
	if err != nil {
		return result{failed: err.Error()}
	}
	res.text = fmt.Sprintf("%d inodes, %.0f MiB and %.0f MiB of its child, %s", inodes,
		float64(parent)/(1<<20), float64(child)/(1<<20), seconds(time.Since(start)))
	g := memoryUnder(memoryMiB)
	res.goals = []outcome{{goal: g, got: g.value(cost{memory: parent + child}, cost{})}}
	return res
}

// inodesDisk makes the disk, once for both rows: empty files through the kernel, without a journal,
// which would only take time.
func (b *bench) inodesDisk(ctx context.Context, dir string, inodes int) (string, error) {
	g := guest{raw: filepath.Join(dir, "inodes.raw"), kind: "ext4", size: inodesBytes}
	if _, err := os.Stat(g.raw); err == nil {
		return g.raw, nil
	}
	f, err := os.OpenFile(g.raw, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	err = errors.Join(f.Truncate(inodesBytes), f.Close())
	if err == nil {
		_, err = command(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-N",
			fmt.Sprint(inodes+inodes/10), g.raw)
	}
	if err == nil {
		err = g.mounted(ctx, "rw", func(top string) error { return fillInodes(ctx, top, inodes) })
		err = errors.Join(err, g.released(ctx))
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(g.raw))
	}
	return g.raw, nil
}

func fillInodes(ctx context.Context, top string, inodes int) error {
	for i := range inodes {
		at := fmt.Sprintf("%s/directory %d", top, i/inodesEach)
		if i%inodesEach == 0 {
			if err := errors.Join(ctx.Err(), os.Mkdir(at, 0o755)); err != nil {
				return err
			}
		}
		if err := emptyFile(at + "/" + strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(top, "last"), make([]byte, 8192), 0o644)
}

// sectorOf gives the first sector of a file on a disk without partitions.
func sectorOf(ctx context.Context, disk, path string) (string, error) {
	out, err := command(ctx, "debugfs", "-R", "bmap "+path+" 0", disk)
	if err != nil {
		return "", err
	}
	block, err := strconv.ParseInt(out, 10, 64)
	return fmt.Sprint(block * 8), err
}

// familyPeak runs a program and gives its highest resident memory and that of its child. The kernel
// keeps the peak, so that looking now and then misses only what comes in the last moment.
func familyPeak(ctx context.Context, argv []string) (parent, child int64, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var errs tail
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err = <-ended:
			if err != nil {
				return 0, 0, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, errs.b.Bytes())
			}
			if parent == 0 || child == 0 {
				return 0, 0, fmt.Errorf("%s: it or its child ended before its memory was read",
					strings.Join(argv, " "))
			}
			return parent, child, nil
		case <-time.After(5 * time.Millisecond):
		}
		// What cannot be read has ended, or not begun.
		if n, err := highWater(cmd.Process.Pid); err == nil {
			parent = max(parent, n)
		}
		for _, pid := range childrenOf(cmd.Process.Pid) {
			if n, err := highWater(pid); err == nil {
				child = max(child, n)
			}
		}
	}
}

// childrenOf lists the children of a process that have begun to be a program of their own.
func childrenOf(pid int) []int {
	var all []int
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	for _, l := range lists {
		text, err := os.ReadFile(l)
		if err != nil {
			return all // a thread that ended
		}
		for word := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(word); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}
