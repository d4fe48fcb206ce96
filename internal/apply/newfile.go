// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
)

// NewFile is a file that is made from another one, which is not touched: an image whose header is
// lost gets a new one in a copy.
type NewFile struct {
	// Source and Target are paths. Target must not exist.
	Source, Target string
	// SizeBytes is the length of Source.
	SizeBytes int64
	// Writes are made to the copy, ordered by phase. The last is the first sector, in the phase
	// Switch; before it the copy is no image. None changes the length of the file.
	Writes []plan.Write
}

// ErrNewFile: the description of a new file breaks the rules of one.
var ErrNewFile = errors.New("not the description of a new file")

// validate checks what making the file relies on.
func (n *NewFile) validate() error {
	last := len(n.Writes) - 1
	if last < 0 || n.Writes[last].Phase != plan.Switch || n.Writes[last].Offset != 0 {
		return fmt.Errorf("%w: the last write is not that of the first sector", ErrNewFile)
	}
	order := map[plan.Phase]int{}
	for i, ph := range plan.Phases() {
		order[ph] = i
	}
	for i, w := range n.Writes {
		at, known := order[w.Phase]
		switch {
		case !known || i > 0 && at < order[n.Writes[i-1].Phase]:
			return fmt.Errorf("%w: write %d is in phase %q", ErrNewFile, i, w.Phase)
		case len(w.New) == 0 || len(w.Old) != len(w.New) || w.Offset < 0 ||
			len(w.New) > plan.MaxWriteBytes || w.Offset > n.SizeBytes-int64(len(w.New)):
			return fmt.Errorf("%w: write %d of %d bytes for %d at %#x", ErrNewFile, i, len(w.New),
				len(w.Old), w.Offset)
		case (i == last) != (w.Offset < plan.SectorBytes) || i == last && len(w.New) > plan.SectorBytes:
			return fmt.Errorf("%w: write %d at %#x of the first sector", ErrNewFile, i, w.Offset)
		}
	}
	return nil
}

// MakeNew copies Source to Target and makes the writes there; of o it uses Disk, Progress, Verify
// and Patience. Source is not touched. The errors are ErrNewFile, ErrChanged where Source is not as
// the writes need it, ErrInterrupted where the storage hangs, that of Verify, and those of
// diskio.CopyNew: fs.ErrExist, diskio.ErrInUse, diskio.ErrNoSpace. After an error Target is not
// there, but for ErrInterrupted: then a file that is no image may be left.
func MakeNew(ctx context.Context, n NewFile, o Options) error {
	if err := n.validate(); err != nil {
		return err
	}
	if o.Disk == nil {
		o.Disk = diskio.Host()
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	p := &patient{Disk: o.Disk, ctx: ctx, grace: o.Patience}
	c, err := wait(p, func() (*diskio.Copied, error) {
		return diskio.CopyNew(ctx, o.Disk, n.Source, n.Target, func(done, total int64) {
			if ctx.Err() == nil { // else nobody may wait for this copy any more
				o.Progress("copy the image", done, total)
			}
		})
	}, func(c *diskio.Copied) {
		// It came when nobody waited any more. Where it cannot be removed it is no image.
		c.File.Close()
		o.Disk.Remove(n.Target)
	})
	switch {
	case errors.Is(err, errHung):
		return fmt.Errorf("%w: copy %s: %w", ErrInterrupted, n.Source, err)
	case err != nil:
		return err
	}
	f := &patientFile{p, c.File}
	err = n.fill(ctx, p, f, c.SizeBytes, o)
	if err == nil {
		err = f.Close()
	} else if !p.hung {
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		return nil
	}
	if p.hung {
		return fmt.Errorf("%w: make %s: %w", ErrInterrupted, n.Target, err)
	}
	if rerr := p.do(func() error { return o.Disk.Remove(n.Target) }); rerr != nil {
		return fmt.Errorf("%w: %w", ErrInterrupted, errors.Join(err, rerr))
	}
	return errors.Join(err, p.do(func() error { return o.Disk.SyncDir(filepath.Dir(n.Target)) }))
}

// fill makes the writes, each phase on the disk before the next, and examines the file.
func (n *NewFile) fill(ctx context.Context, p *patient, f diskio.Writable, size int64, o Options) error {
	if size != n.SizeBytes {
		return &ChangedError{Path: n.Source,
			What: fmt.Sprintf("it has %d bytes, %d were expected", size, n.SizeBytes)}
	}
	for _, w := range n.Writes {
		was := make([]byte, len(w.Old))
		if _, err := f.ReadAt(was, w.Offset); err != nil {
			return fmt.Errorf("read %d bytes at %#x of %s: %w", len(was), w.Offset, n.Target, err)
		}
		if !bytes.Equal(was, w.Old) {
			return &ChangedError{Path: n.Source, What: "it holds other bytes than when it was looked at",
				Ranges: []finding.Range{{Offset: w.Offset, Length: int64(len(was))}}}
		}
	}
	for i, w := range n.Writes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if i > 0 && n.Writes[i-1].Phase != w.Phase {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		if _, err := f.WriteAt(w.New, w.Offset); err != nil {
			return fmt.Errorf("write %d bytes at %#x of %s: %w", len(w.New), w.Offset, n.Target, err)
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.DropCache(); err != nil {
		return err
	}
	if o.Verify == nil {
		return nil
	}
	o.Progress("check the new image", 0, 0)
	if err := o.Verify(ctx, f, size); err != nil {
		return fmt.Errorf("check %s: %w", n.Target, err)
	}
	return nil
}
