// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// newSuffix ends the names of files that are to become bases. What a power cut leaves of one lies beside the pool's
// own files and is nobody's.
const newSuffix = ".get"

// NewFile is a file that is to become a base, once it is proved to be that: on the file system of the bases, under a
// name that nobody takes for one. Adopt gives it its name.
type NewFile struct {
	// Path is its name for now.
	Path string

	k    *keeper
	f    diskio.Writable
	id   diskio.ID
	room int64
}

// ErrFull: the file system of the bases has not enough room.
var ErrFull = errors.New("not enough room")

// Create makes a new file beside the bases of a pool. It must be discarded, whatever becomes of it.
func Create(ctx context.Context, o Options) (*NewFile, error) {
	k := newKeeper(o)
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	if err := k.begin(ctx, s); err != nil {
		return nil, err
	}
	id, err := plan.NewID()
	if err != nil {
		return nil, err
	}
	n := &NewFile{Path: k.path("." + id + newSuffix), k: k}
	room, err := k.Disk.Room(k.Bases)
	if err != nil {
		return nil, err
	}
	n.room = room.FreeBytes
	// Whoever may read bases may read this one; who that is, is said by the directories above.
	if n.f, err = k.Disk.CreateNew(n.Path, 0o644); err != nil {
		return nil, err
	}
	made, err := n.f.Identity()
	if err != nil {
		return nil, errors.Join(err, n.f.Close(), k.Disk.Remove(n.Path))
	}
	n.id = made.ID
	return n, nil
}

// ID is which file it is.
func (n *NewFile) ID() diskio.ID { return n.id }

// Fits tells whether the file system has room for so many bytes more: ErrFull.
func (n *NewFile) Fits(sizeBytes int64) error {
	if sizeBytes > n.room {
		return fmt.Errorf("%w: %d bytes are needed, %s has %d", ErrFull, sizeBytes, n.k.Bases, n.room)
	}
	return nil
}

// WriteAt is io.WriterAt.
func (n *NewFile) WriteAt(p []byte, off int64) (int, error) { return n.f.WriteAt(p, off) }

// Truncate makes it so long.
func (n *NewFile) Truncate(sizeBytes int64) error { return n.f.Truncate(sizeBytes) }

// End ends the writing; the file is on the disk then.
func (n *NewFile) End() error {
	if n.f == nil {
		return nil
	}
	err := errors.Join(n.f.Sync(), n.f.Close())
	n.f = nil
	return err
}

// Discard takes the name away. A file that was adopted has that of the base beside it.
func (n *NewFile) Discard() error {
	var err error
	if n.f != nil {
		err = n.f.Close()
		n.f = nil
	}
	return errors.Join(err, n.k.Links.Unlink(n.id, n.Path))
}
