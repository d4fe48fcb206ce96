// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

func xfsScenarios() []Scenario {
	return []Scenario{
		{"xfs-log-eio", "The blocks of the log cannot be written; all others can.", xfsLogEIO},
		{"xfs-goingdown", "Somebody shut the file system down, by ioctl.", xfsGoingDown},
		{"xfs-writeback-eio", "The content of one file cannot be written.", xfsWritebackEIO},
	}
}

// xfsLog is where the log of an XFS lies, by its superblock (struct xfs_dsb): sb_blocksize at 4,
// sb_logstart at 48, sb_agblocks at 84, sb_logblocks at 96, sb_agblklog at 124. sb_logstart is the
// number of a group and of a block in it.
func xfsLog(d *Disk) (Range, error) {
	f, err := os.Open(d.Image)
	if err != nil {
		return Range{}, err
	}
	defer f.Close()
	sb := make([]byte, sectorBytes)
	if _, err := f.ReadAt(sb, 0); err != nil {
		return Range{}, err
	}
	u32 := func(at int) int64 { return int64(binary.BigEndian.Uint32(sb[at:])) }
	block, start, shift := u32(4), binary.BigEndian.Uint64(sb[48:]), sb[124]
	if string(sb[:4]) != "XFSB" || start == 0 || shift > 31 {
		return Range{}, fmt.Errorf("%s has no log of an XFS", d.Image)
	}
	group, in := int64(start>>shift), int64(start&(1<<shift-1))
	return Range{Off: (group*u32(84) + in) * block, Len: u32(96) * block}, nil
}

func xfsLogEIO(ctx context.Context, w *World) error {
	d, err := w.usedDisk(ctx, DiskOptions{Type: "xfs"})
	if err != nil {
		return err
	}
	log, err := xfsLog(d)
	if err != nil {
		return err
	}
	w.Where = []Range{log}
	return w.abort("write eio "+Ranges(w.Where), "XFS ("+d.Name+"): log I/O error -5",
		"XFS ("+d.Name+"): Filesystem has been shut down due to log error (0x2).")
}

func xfsGoingDown(ctx context.Context, w *World) error {
	d, err := w.usedDisk(ctx, DiskOptions{Type: "xfs"})
	if err != nil {
		return err
	}
	return errors.Join(shut(d.Mount), w.said("XFS ("+d.Name+"): User initiated shutdown received.",
		"Shutting down filesystem"))
}

func xfsWritebackEIO(ctx context.Context, w *World) error {
	if _, err := w.usedDisk(ctx, DiskOptions{Type: "xfs"}); err != nil {
		return err
	}
	return w.dataEIO("%s: writeback error on inode", "writeback error on inode %d, offset ")
}
