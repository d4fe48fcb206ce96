// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/ext4"
	"github.com/shisa-vm/shisa/internal/guest/files"
)

const (
	journalIno   = 8    // EXT4_JOURNAL_INO
	superblockAt = 1024 // in bytes
)

func ext4Scenarios() []Scenario {
	return []Scenario{
		{"ext4-journal-eio", "The blocks of the journal cannot be written; all others can.",
			ext4JournalEIO},
		{"ext4-disk-eio", "Nothing can be written to the disk any more, not even that it failed.",
			ext4DiskEIO},
		{"ext4-error-logical", "The file system found an error of its own, on a healthy disk.",
			ext4ErrorLogical},
		{"ext4-data-eio", "The content of one file cannot be written.", ext4DataEIO},
		{"ext4-shutdown", "Somebody shut the file system down, by ioctl.", ext4Shutdown},
		{"ext4-read-only", "Nothing is wrong: its administrator mounted it read-only.", ext4ReadOnly},
		{"ext4-errors-continue", "The file system found an error, and is told to go on with it.",
			ext4ErrorsContinue},
	}
}

// ext4Disk is a disk in use, with a file on it, mounted as Debian mounts one.
func ext4Disk(ctx context.Context, w *World, mkfs ...string) (*Disk, error) {
	return w.usedDisk(ctx, DiskOptions{Type: "ext4", Mkfs: mkfs, Options: "errors=remount-ro"})
}

// journal is where that of an ext4 lies.
func journal(ctx context.Context, d *Disk) (list []Range, err error) {
	f, err := os.Open(d.Image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	fs, err := ext4.Open(ctx, f, st.Size())
	if err != nil {
		return nil, err
	}
	j, err := fs.Open(ctx, journalIno)
	if err != nil {
		return nil, err
	}
	err = j.Extents(ctx, func(e files.Extent) error {
		list = append(list, Range{Off: e.Volume, Len: e.Length})
		return nil
	})
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%s has no journal", d.Image)
	}
	return list, err
}

func ext4JournalEIO(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	if w.Where, err = journal(ctx, d); err != nil {
		return err
	}
	err = w.abort("write eio "+Ranges(w.Where), "Aborting journal on device "+d.Name+"-8.",
		"EXT4-fs ("+d.Name+"): Remounting filesystem read-only")
	return errors.Join(err, ext4Noted(d))
}

func ext4DiskEIO(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	return w.abort("write eio", "Aborting journal on device "+d.Name+"-8.",
		"EXT4-fs ("+d.Name+"): I/O error while writing superblock",
		"EXT4-fs ("+d.Name+"): Remounting filesystem read-only")
}

// abort sets a rule and changes something, which must not succeed. The kernel says so.
func (w *World) abort(rule string, says ...string) error {
	if err := w.set(rule); err != nil {
		return err
	}
	err := errors.Join(os.WriteFile(w.Hurt.Mount+"/lost", []byte("text"), 0o644), w.Hurt.Sync())
	if err := fails(err, unix.EIO, unix.EROFS); err != nil {
		return err
	}
	if err := w.Fault.Hit(); err != nil {
		return err
	}
	// The error is known before the file system is done with it.
	err = until(func() (bool, error) {
		err := tryToWrite(w.Hurt.Mount)
		return errors.Is(err, unix.EROFS) || errors.Is(err, unix.EIO), nil
	})
	return errors.Join(err, w.said(says...))
}

func ext4ErrorLogical(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	return errors.Join(w.ext4Trigger(d), w.said("Aborting journal on device "+d.Name+"-8.",
		"EXT4-fs ("+d.Name+"): Remounting filesystem read-only"), ext4Noted(d))
}

// ext4Noted waits until an error is noted in the superblock on the disk: s_error_count, at 0x194.
// The kernel does it some time after the error (where it goes on, by the journal, and much later).
func ext4Noted(d *Disk) error {
	f, err := os.Open(d.Image)
	if err != nil {
		return err
	}
	defer f.Close()
	count := make([]byte, 4)
	err = until(func() (bool, error) {
		_, err := f.ReadAt(count, superblockAt+0x194)
		return binary.LittleEndian.Uint32(count) != 0, err
	})
	if err != nil {
		err = fmt.Errorf("no error is noted in the superblock of %s: %w", d.Image, err)
	}
	return err
}

// ext4Trigger has the file system find an error.
func (w *World) ext4Trigger(d *Disk) error {
	text := []byte("found an error that is none")
	err := os.WriteFile("/sys/fs/ext4/"+d.Name+"/trigger_fs_error", text, 0o200)
	if errors.Is(err, os.ErrNotExist) {
		err = errors.Join(err, ErrUnavailable)
	}
	return errors.Join(err, w.said("EXT4-fs error (device "+d.Name+"): trigger_test_error:"),
		until(func() (bool, error) { // it is counted some time after it is told
			text, err := os.ReadFile("/sys/fs/ext4/" + d.Name + "/errors_count")
			return strings.TrimSpace(string(text)) != "0", err
		}))
}

func ext4DataEIO(ctx context.Context, w *World) error {
	if _, err := ext4Disk(ctx, w); err != nil {
		return err
	}
	return w.dataEIO("EXT4-fs warning (device %s): ext4_end_bio:", "writing to inode %d ")
}

// dataEIO has the content of a file fail to be written. The kernel says so of the device and the
// inode.
func (w *World) dataEIO(ofDevice, ofInode string) error {
	if err := w.marked("hurt"); err != nil {
		return err
	}
	if err := w.set("write eio " + Ranges(w.Where)); err != nil {
		return err
	}
	says := []string{fmt.Sprintf(ofDevice, w.Hurt.Name), fmt.Sprintf(ofInode, w.Inode)}
	return w.provoke(func() error { return fails(w.overwrite(), unix.EIO) }, says...)
}

func ext4Shutdown(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	return errors.Join(shut(d.Mount), w.said("EXT4-fs ("+d.Name+"): shut down requested (2)"))
}

func ext4ErrorsContinue(ctx context.Context, w *World) error {
	d, err := w.usedDisk(ctx, DiskOptions{Type: "ext4", Options: "errors=continue"})
	if err != nil {
		return err
	}
	return w.ext4Trigger(d)
}

func ext4ReadOnly(ctx context.Context, w *World) error {
	d, err := ext4Disk(ctx, w)
	if err != nil {
		return err
	}
	return unix.Mount("", d.Mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
}
