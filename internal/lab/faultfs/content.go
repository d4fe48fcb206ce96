// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// markedBlocks is how many blocks the file of a scenario has that is to be hurt.
const markedBlocks = 16

// mark is what each block of such a file begins with.
const mark = "shisa-faultfs-block-"

// marked makes a file on the disk whose blocks are found again, has it written, and makes it what
// is hurt in the world: Where is where its content lies on the disk.
func (w *World) marked(name string) error {
	w.File = w.Hurt.Mount + "/" + name
	if err := os.WriteFile(w.File, markedContent(0), 0o644); err != nil {
		return err
	}
	if err := w.Hurt.Sync(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(w.File, &st); err != nil {
		return err
	}
	w.Inode = st.Ino
	return w.findMarked()
}

// markedContent is a file's content; version tells it from what was there before.
func markedContent(version byte) []byte {
	text := bytes.Repeat([]byte{version}, markedBlocks*blockBytes)
	for i := range markedBlocks {
		n := copy(text[i*blockBytes:], mark)
		binary.BigEndian.PutUint32(text[i*blockBytes+n:], uint32(i))
	}
	return text
}

// findMarked looks for the blocks on the disk.
func (w *World) findMarked() error {
	f, err := os.Open(w.Hurt.Image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	block, found := make([]byte, blockBytes), 0
	err = eachData(f, st.Size(), func(off, n int64) error {
		for at := off / blockBytes * blockBytes; at < off+n; at += blockBytes {
			if _, err := f.ReadAt(block, at); err != nil {
				return err
			}
			if bytes.HasPrefix(block, []byte(mark)) {
				found++
				w.Where = appendBlock(w.Where, at)
			}
		}
		return nil
	})
	if err == nil && found != markedBlocks {
		err = fmt.Errorf("%d blocks of %s are on the disk, want %d", found, w.File, markedBlocks)
	}
	return err
}

// appendBlock adds a block to a list in ascending order.
func appendBlock(list []Range, at int64) []Range {
	if n := len(list); n > 0 && list[n-1].Off+list[n-1].Len == at {
		list[n-1].Len += blockBytes
		return list
	}
	return append(list, Range{Off: at, Len: blockBytes})
}

// overwrite changes the file in place and has it written; the error is that of fsync.
func (w *World) overwrite() error {
	f, err := os.OpenFile(w.File, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(markedContent(1), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// forget has the kernel drop what it has of the file in memory.
func (w *World) forget() error {
	f, err := os.Open(w.File)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

// fails turns the error that is wanted into none.
func fails(err error, want ...unix.Errno) error {
	for _, errno := range want {
		if errors.Is(err, errno) {
			return nil
		}
	}
	return fmt.Errorf("it ended with %v, want %v", err, want)
}

// shut ends a file system, as programs do that ask the kernel to: EXT4_IOC_SHUTDOWN and
// XFS_IOC_GOINGDOWN, _IOR('X', 125, __u32). What is in the log only stays there.
func shut(mount string) error {
	const goingDown, withoutLog = 0x8004587d, 2
	fd, err := unix.Open(mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.IoctlSetPointerInt(fd, goingDown, withoutLog)
	if errors.Is(err, unix.ENOTTY) {
		err = errors.Join(err, ErrUnavailable)
	}
	return errors.Join(err, unix.Close(fd))
}
