// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func spaceScenarios() []Scenario {
	return []Scenario{
		{"ext4-full", "No block is free.", ext4Full},
		{"ext4-reserved-only", "What is free is reserved for root.", ext4ReservedOnly},
		{"ext4-inodes-full", "No inode is free, and there is space.", ext4InodesFull},
		{"enospc-under", "The store that the image is in is full; in the image there is space.",
			enospcUnder},
		{"enospc-journal", "The store is full, and the journal in the image needs space there.",
			enospcJournal},
	}
}

// fill takes space in a new file until fn says that it is enough.
func fill(path string, enough func() (bool, error)) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	for off, done := int64(0), false; err == nil && !done; {
		// A quarter of what is there at a time, and the rest block by block.
		var st unix.Statfs_t
		if err = unix.Fstatfs(int(f.Fd()), &st); err != nil {
			break
		}
		n := max(int64(st.Bavail)/4, 1) * st.Bsize
		if err = unix.Fallocate(int(f.Fd()), 0, off, n); err == nil {
			off += n
			done, err = enough()
		}
	}
	return errors.Join(err, f.Close())
}

func ext4Full(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	err = fill(d.Mount+"/ballast", func() (bool, error) { return false, nil })
	if err := fails(err, unix.ENOSPC); err != nil {
		return err
	}
	// The kernel keeps some for what was written and has no place yet: what is left goes by the block.
	for {
		if err := tryToWrite(d.Mount); err != nil {
			return fails(err, unix.ENOSPC)
		}
		f, err := os.OpenFile(d.Mount+"/ballast", os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, blockBytes))
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return fails(err, unix.ENOSPC)
		}
	}
}

func ext4ReservedOnly(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w, "-m", "20")
	if err != nil {
		return err
	}
	return fill(d.Mount+"/ballast", func() (bool, error) {
		var st unix.Statfs_t
		err := unix.Statfs(d.Mount, &st)
		return st.Bavail == 0, err
	})
}

func ext4InodesFull(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w, "-N", "64")
	if err != nil {
		return err
	}
	const more = 1000
	for i := range more {
		if err := os.WriteFile(fmt.Sprintf("%s/n%d", d.Mount, i), nil, 0o600); err != nil {
			return fails(err, unix.ENOSPC)
		}
	}
	return fmt.Errorf("%d more files than inodes", more)
}

func enospcUnder(ctx context.Context, w *World) error {
	// What the file system keeps of itself lies in the first 6 MiB: only content needs space.
	const storeBytes, ownBytes, fileBytes = 8 << 20, 6 << 20, 12 << 20
	d, err := w.disk(ctx, "disk", DiskOptions{Type: "ext4", StoreBytes: storeBytes,
		AllocatedBytes: ownBytes, Options: "errors=remount-ro"})
	if err != nil {
		return err
	}
	w.File = d.Mount + "/hurt"
	f, err := os.OpenFile(w.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, fileBytes))
	err = errors.Join(err, f.Sync(), f.Close())
	if err := fails(err, unix.EIO, unix.ENOSPC); err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Stat(w.File, &st)
	w.Inode = st.Ino
	w.Others = []string{d.Store}
	return errors.Join(err, w.said("EXT4-fs warning (device "+d.Name+"): ext4_end_bio:",
		fmt.Sprintf("writing to inode %d ", st.Ino)))
}

func enospcJournal(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	if w.Where, err = journal(ctx, d); err != nil {
		return err
	}
	return w.abort("write enospc "+Ranges(w.Where), "Aborting journal on device "+d.Name+"-8.",
		"EXT4-fs ("+d.Name+"): Remounting filesystem read-only")
}
