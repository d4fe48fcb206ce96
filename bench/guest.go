// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// What a guest of the bench holds: about 2 GiB of 10 GiB, in 30,000 names. The directory of many
// names is on a disk of its own.
const (
	guestBytes      = 10 << 30
	guestBig        = 1 << 30 // the one large file
	guestSmall      = 20_000  // files of up to 60 kB
	guestSystem     = 9_400   // files as below /usr
	guestFileBytes  = 60_000
	guestSpace      = 2 << 30
	manyBytes       = 2 << 30 // for ext4 to have 100,000 inodes
	partitionStart  = 1 << 20
	partitionBehind = 1 << 20 // the second table of a GPT lies there
)

// guest is a raw disk that stays for all rows of a run.
type guest struct {
	raw, kind   string
	start, size int64 // of the file system
}

// scaled is a number as the flags want it.
func (b *bench) scaled(n int64) int64 {
	if b.quick {
		return n / 16
	}
	return n
}

// guest makes a disk with a GPT and one file system, once for all rows of a kind.
func (b *bench) guest(ctx context.Context, dir, kind string) (guest, error) {
	g := guest{raw: filepath.Join(dir, "guest-"+kind+".raw"), kind: kind, start: partitionStart,
		size: guestBytes - partitionStart - partitionBehind}
	return g, b.once(ctx, g, guestBytes, b.fillGuest)
}

// many makes a disk with 100,000 names in one directory.
func (b *bench) many(ctx context.Context, dir, kind string) (guest, error) {
	g := guest{raw: filepath.Join(dir, "many-"+kind+".raw"), kind: kind, start: partitionStart,
		size: manyBytes - partitionStart - partitionBehind}
	return g, b.once(ctx, g, manyBytes, func(top string) error {
		if err := os.Mkdir(filepath.Join(top, "many"), 0o755); err != nil {
			return err
		}
		for i := range b.scaled(100_000) {
			if err := emptyFile(filepath.Join(top, "many", fmt.Sprintf("a name of many %d", i))); err != nil {
				return err
			}
		}
		return nil
	})
}

// once makes a disk unless it is there.
func (b *bench) once(ctx context.Context, g guest, size int64, fill func(top string) error) error {
	if _, err := os.Stat(g.raw); err == nil {
		return nil
	}
	err := b.newGuest(ctx, g, size, fill)
	if err != nil {
		err = errors.Join(err, os.RemoveAll(g.raw))
	}
	return err
}

func (b *bench) newGuest(ctx context.Context, g guest, size int64, fill func(top string) error) error {
	for _, tool := range []string{"sfdisk", "mkfs." + g.kind, "mount", "umount", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(g.raw, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	table := exec.CommandContext(ctx, "sfdisk", "-q", g.raw)
	table.Stdin = strings.NewReader(fmt.Sprintf("label: gpt\nstart=%d, size=%d, type=linux\n",
		g.start/512, g.size/512))
	if out, err := table.CombinedOutput(); err != nil {
		return fmt.Errorf("sfdisk: %w: %s", err, out)
	}
	loop, err := command(ctx, "losetup", "-f", "--show", "-o", fmt.Sprint(g.start),
		"--sizelimit", fmt.Sprint(g.size), g.raw)
	if err != nil {
		return err
	}
	_, err = command(ctx, "mkfs."+g.kind, "-q", loop)
	if _, gone := command(context.WithoutCancel(ctx), "losetup", "-d", loop); err != nil || gone != nil {
		return errors.Join(err, gone)
	}
	return errors.Join(g.mounted(ctx, "rw", fill), g.released(ctx))
}

var errMount = errors.New("the kernel here does not mount this file system, or not for this user")

// mounted mounts the file system for as long as do takes.
func (g guest) mounted(ctx context.Context, options string, do func(top string) error) error {
	top, err := os.MkdirTemp(filepath.Dir(g.raw), "mounted-")
	if err != nil {
		return err
	}
	options = fmt.Sprintf("loop,noatime,%s,offset=%d,sizelimit=%d", options, g.start, g.size)
	if _, err = command(ctx, "mount", "-t", g.kind, "-o", options, g.raw, top); err != nil {
		err = fmt.Errorf("%w: %w", errMount, err)
	} else {
		err = errors.Join(do(top), unmount(top))
	}
	return errors.Join(err, os.Remove(top))
}

// unmount waits until nobody is busy there.
func unmount(top string) error {
	var err error
	for range 100 {
		if err = syscall.Unmount(top, 0); !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", top, err)
	}
	return nil
}

// released waits until no loop device has the disk open: the kernel takes them away a moment after
// the file system. Then all is in the disk's file, and the next mount is a new one. A program that took
// a copy of all mounts for itself meanwhile delays that until it ends.
func (g guest) released(ctx context.Context) error {
	for range 600 {
		left, err := command(ctx, "losetup", "-j", g.raw)
		if err != nil || left == "" {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s is still on a loop device", g.raw)
}

// command runs a program and gives what it printed.
func command(ctx context.Context, argv ...string) (string, error) {
	var errs tail
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(errs.b.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

// fillGuest makes the files.
func (b *bench) fillGuest(top string) error {
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(i*7919>>5) ^ byte(i)
	}
	for _, d := range []string{"etc", "srv/big", "srv/small", "usr/share"} {
		if err := os.MkdirAll(filepath.Join(top, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(top, "etc/passwd"),
		bytes.Repeat([]byte("root:x:0:0:root:/root:/bin/sh\n"), 40), 0o644); err != nil {
		return err
	}
	big, err := os.Create(filepath.Join(top, "srv/big/one"))
	if err != nil {
		return err
	}
	for range b.scaled(guestBig) >> 20 {
		if _, err = big.Write(content); err != nil {
			break
		}
	}
	if err := errors.Join(err, big.Close()); err != nil {
		return err
	}
	for _, s := range []struct {
		dir          string
		files, apart int64
	}{{"srv/small", guestSmall, 100}, {"usr/share", guestSystem, 20}} {
		for i := range b.scaled(s.files) {
			at := filepath.Join(top, s.dir, fmt.Sprintf("directory %d", i/s.apart))
			if i%s.apart == 0 {
				if err := os.Mkdir(at, 0o755); err != nil {
					return err
				}
			}
			if err := os.WriteFile(filepath.Join(at, fmt.Sprintf("file %d", i)),
				content[:i*7919%guestFileBytes], 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// emptyFile makes one in a single call.
func emptyFile(name string) error { return syscall.Mknod(name, syscall.S_IFREG|0o644, 0) }

// qcow2 converts the disk, once.
func (b *bench) qcow2(ctx context.Context, g guest) (string, error) {
	to := strings.TrimSuffix(g.raw, ".raw") + ".qcow2"
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	_, err := command(ctx, b.qemuImg, "convert", "-f", "raw", "-O", "qcow2", g.raw, to)
	if err != nil {
		err = errors.Join(err, os.RemoveAll(to))
	}
	return to, err
}

// coldRun runs a program on an image of the disk that is not in the page cache.
func coldRun(ctx context.Context, image string, exits []int, argv ...string) (cost, error) {
	if err := cool(image); err != nil {
		return cost{}, err
	}
	return okRun(ctx, exits, argv...)
}

func okRun(ctx context.Context, exits []int, argv ...string) (cost, error) {
	c, errs, err := timeRun(ctx, argv)
	if err == nil && !slices.Contains(exits, c.exit) {
		err = fmt.Errorf("%s: exit status %d, want one of %v: %s", strings.Join(argv, " "), c.exit, exits,
			errs)
	}
	return c, err
}

// kernelRun runs a program on a new mount of the disk, of which nothing is cached. The time is that of
// the program alone, without that of mounting.
func kernelRun(ctx context.Context, g guest, argv func(top string) []string) (c cost, err error) {
	if err := cool(g.raw); err != nil {
		return c, err
	}
	err = g.mounted(ctx, "ro", func(top string) (err error) {
		c, err = okRun(ctx, []int{0}, argv(top)...)
		return err
	})
	return c, errors.Join(err, g.released(ctx))
}
