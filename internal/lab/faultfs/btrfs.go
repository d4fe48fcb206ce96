// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"errors"
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
	d, err := w.usedDisk(ctx, DiskOptions{Type: "btrfs"})
	if err != nil {
		return err
	}
	return w.abort("write eio", "bdev "+d.Device+" errs: wr 1, rd 0,", "Transaction aborted (error -5)",
		"forced readonly")
}

func btrfsReadEIO(ctx context.Context, w *World) error {
	return btrfsRead(ctx, w, "read eio ", "errs: wr 0, rd 1, flush 0, corrupt 0,")
}

func btrfsCorrupt(ctx context.Context, w *World) error {
	return btrfsRead(ctx, w, "read flip ", "csum failed root 5 ino ", "rd 0, flush 0, corrupt 1,")
}

func btrfsRead(ctx context.Context, w *World, rule string, says ...string) error {
	if _, err := w.usedDisk(ctx, DiskOptions{Type: "btrfs"}); err != nil {
		return err
	}
	if err := errors.Join(w.marked("hurt"), w.forget()); err != nil {
		return err
	}
	if err := w.set(rule + Ranges(w.Where)); err != nil {
		return err
	}
	_, err := os.ReadFile(w.File)
	if err := fails(err, unix.EIO); err != nil {
		return err
	}
	return errors.Join(w.Fault.Hit(), w.said(says...))
}
