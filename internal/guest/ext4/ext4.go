// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package ext4 reads ext2, ext3 and ext4 without mounting them. What a crash left in the journal is
// replayed first, in memory, as the kernel does it; the volume is never written.
//
// Whatever has a checksum is verified, and numbers are held against the size of the volume before
// they are used. What does not fit is a problem of the view (internal/guest/files), with its place.
package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// FS is a file system that is being looked into. It implements files.FS.
type FS struct {
	meta    *cache // the volume with the journal replayed
	super   *super
	groups  []group
	orphans map[files.Ino]bool
	notes   *files.Notes
}

// Open opens the file system on a volume of size bytes. Its journal is read if it has something to
// replay. The errors are ErrNotExt, ErrUnsupported, those of ctx and of reading; what is damaged
// beside the superblock is no error but a problem of the view.
func Open(ctx context.Context, volume io.ReaderAt, size int64) (*FS, error) {
	fs := &FS{notes: new(files.Notes)}
	if err := fs.load1(ctx, volume, size); err != nil {
		return nil, err
	}
	return fs, nil
}

func (fs *FS) load1(ctx context.Context, volume io.ReaderAt, size int64) error {
	fs.meta = newCache(volume, size)
	s, err := findSuper(ctx, fs.meta)
	if s == nil {
		return err
	}
	if err != nil {
		fs.notes.Note(files.Problem{What: fmt.Sprintf("superblock: %v", err), Offset: superAt,
			Length: superBytes, Hides: true})
	}
	if err := s.supported(); err != nil {
		return err
	}
	fs.super = s
	if total := s.blocks * s.blockBytes; total > size {
		fs.notes.Note(files.Problem{What: fmt.Sprintf(
			"the file system has %d bytes, its volume only %d", total, size), Offset: size,
			Hides: true})
	}
	if err := fs.readGroups(ctx); err != nil {
		return err
	}
	return fs.readOrphans(ctx)
}

// Info describes the file system.
func (fs *FS) Info() files.Info {
	info := fs.super.info()
	for i := range fs.groups {
		if g := &fs.groups[i]; g.state != groupLost {
			info.FreeBytes += int64(g.freeBlocks) * fs.super.clusterBlocks * fs.super.blockBytes
			info.FreeInodes += int64(g.freeInodes)
		}
	}
	return info
}

// View gives the state of what was read so far.
func (fs *FS) View() files.View { return fs.notes.View() }

// block reads a block.
func (fs *FS) block(ctx context.Context, block int64) ([]byte, error) {
	return fs.meta.read(ctx, block*fs.super.blockBytes, fs.super.blockBytes)
}

// note notes what could not be read, and gives the error for it. That reading was called off is no
// fault of the file system.
func (fs *FS) note(what string, at int64, ino files.Ino, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fs.notes.Fail(what, at, ino, err)
}
