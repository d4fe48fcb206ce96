// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// partialAfter is how old a file is that was to become a base and is taken away: nothing was written to it for so long,
// and nobody holds its lock. What it was made of is there still.
const partialAfter = 24 * time.Hour

// NewFile is a file that is to become a base, once it is proved to be that: on the file system of the bases, under a
// name that nobody takes for one. Adopt gives it its name. What a power cut leaves of one is taken away by Recover, and
// by who makes the next.
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
	k := newKeeper(o).as("adopt")
	s, err := k.begun(ctx)
	if err != nil {
		return nil, err
	}
	n, err := k.newFile(ctx, s, newDone(k.Bases, s))
	if err != nil {
		return nil, err
	}
	room, err := k.Disk.Room(k.Bases)
	if err != nil {
		return nil, err
	}
	n.room = room.FreeBytes
	if n.f, err = k.Disk.CreateNew(n.Path, baseMode); err != nil {
		return nil, err
	}
	made, err := n.f.Identity()
	if err != nil {
		return nil, errors.Join(err, n.f.Close(), k.Disk.Remove(n.Path))
	}
	n.id = made.ID
	return n, nil
}

// begun reads the state of the pool, and makes that first where there is none.
func (k *keeper) begun(ctx context.Context) (s *pool.State, err error) {
	if s, err = pool.Read(ctx, k.Bases, k.Timeout); err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, nil, err) }()
	return s, k.begin(ctx, s)
}

// newFile names a new file, after those that came to nothing were taken away.
func (k *keeper) newFile(ctx context.Context, s *pool.State, d *pool.Done) (*NewFile, error) {
	if err := k.dropPartials(ctx, s, d); err != nil {
		return nil, err
	}
	id, err := plan.NewID()
	if err != nil {
		return nil, err
	}
	return &NewFile{Path: k.path(pool.PartialName(id)), k: k}, nil
}

// dropPartials takes files away that were to become bases, and came to nothing.
func (k *keeper) dropPartials(ctx context.Context, s *pool.State, d *pool.Done) error {
	if len(s.Partials) == 0 {
		return nil
	}
	now, err := k.now(ctx)
	if err != nil {
		return err
	}
	for i := range s.Partials {
		p := &s.Partials[i]
		if now.Sub(p.Modified) < partialAfter {
			continue
		}
		if err := k.dropPartial(ctx, p, d); err != nil {
			if stopped(ctx, err) {
				return err
			}
			d.Leave(p.Path, err) // it takes room, and keeps no base from coming back
		}
	}
	return nil
}

// dropPartial takes one away, unless somebody writes to it, or gave it its name meanwhile.
func (k *keeper) dropPartial(ctx context.Context, p *pool.Partial, d *pool.Done) error {
	// Who writes to one locks it. Where the file system keeps no locks the time has to do.
	f, err := k.Disk.OpenForRepair(p.Path)
	switch {
	case errors.Is(err, diskio.ErrInUse), errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, diskio.ErrNoLocks):
	case err != nil:
		return err
	default:
		defer f.Close() // nothing was written to it
	}
	if err := k.step(ctx, "drop "+filepath.Base(p.Path)); err != nil {
		return err
	}
	switch err := k.unlink(p.File, p.Path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	why := fmt.Sprintf("a copy that was to become a base until %s, of %d bytes",
		p.Modified.UTC().Format("2006-01-02 15:04 UTC"), p.AllocatedBytes)
	d.Recovered = append(d.Recovered, "taken away: "+p.Path+", "+why)
	return k.note(ctx, "dropped", filepath.Base(p.Path), p.File.Ino, p.Path, why)
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

// Discard takes the file away, unless it was adopted.
func (n *NewFile) Discard() error {
	var err error
	if n.f != nil {
		err = n.f.Close()
		n.f = nil
	}
	e := n.k.unlink(n.id, n.Path)
	if errors.Is(e, fs.ErrNotExist) {
		e = nil // it was adopted
	}
	return errors.Join(err, e)
}
