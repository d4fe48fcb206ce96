// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func btrfsScenarios() []Scenario {
	return []Scenario{
		{"btrfs-abort", "Nothing can be written to the disk any more.", btrfsAbort},
		{"btrfs-read-eio", "The content of one file cannot be read.", btrfsReadEIO},
		{"btrfs-corrupt", "The content of one file comes back with wrong bits.", btrfsCorrupt},
	}
}

func btrfsAbort(ctx context.Context, w *World) error {
	if _, err := w.usedDisk(ctx, DiskOptions{Type: "btrfs"}); err != nil {
		return err
	}
	// "errs: wr 1" and "forced readonly" come too, unless there were many such lines just before;
	// "Transaction aborted" comes of Linux 6.18 and not of 6.1.
	return w.abort("write eio", "errno=-5 IO failure")
}

func btrfsReadEIO(ctx context.Context, w *World) error {
	return btrfsRead(ctx, w, "read eio ",
		"BTRFS error (device %[1]s): bdev /dev/%[1]s errs: wr 0, rd ")
}

func btrfsCorrupt(ctx context.Context, w *World) error {
	return btrfsRead(ctx, w, "read flip ", "BTRFS warning (device %s): csum failed root 5 ino ")
}

func btrfsRead(ctx context.Context, w *World, rule, says string) error {
	d, err := w.usedDisk(ctx, DiskOptions{Type: "btrfs"})
	if err != nil {
		return err
	}
	if err := w.marked("hurt"); err != nil {
		return err
	}
	if err := w.set(rule + Ranges(w.Where)); err != nil {
		return err
	}
	return w.provoke(func() error {
		if err := w.forget(); err != nil {
			return err
		}
		_, err := os.ReadFile(w.File)
		return fails(err, unix.EIO)
	}, fmt.Sprintf(says, d.Name))
}
