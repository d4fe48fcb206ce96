// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/vault"
)

// forward writes the new bytes, phase after phase. It may be begun again after it was cut off:
// everything is written anew, for after a sync that failed nobody knows what is on the disk.
func (c *change) forward(ctx context.Context) error {
	if c.fence != nil {
		if err := c.writeSector(c.fenced()); err != nil {
			return err
		}
	}
	done := int64(0)
	for k := vault.KindNew; k <= vault.KindLower; k++ {
		wrote := false
		if k == vault.KindNew && c.img.after > c.img.before {
			if err := c.img.resize(c.img.after); err != nil {
				return err
			}
			wrote = true
		}
		b := &batch{img: c.img, size: c.img.after}
		err := c.u.Records(ctx, k, func(r vault.Record) error {
			wrote = true
			done += int64(len(r.New))
			c.e.o.Progress("write", done, c.total)
			return b.put(r.New, r.Offset)
		})
		if err == nil {
			err = b.flush()
		}
		if err == nil && wrote {
			err = c.img.sync()
		}
		if err != nil {
			return err
		}
	}
	// The last moment at which the user's wish to stop costs nothing but the writes.
	if err := ctx.Err(); err != nil || c.sector == nil {
		return err
	}
	return c.writeSector(c.sector.New)
}

// back writes the old bytes, in the reverse order. Like forward it may be begun again.
func (c *change) back(ctx context.Context) error {
	if c.sector != nil {
		if err := c.writeSector(c.fenced()); err != nil {
			return err
		}
	}
	// An image that was cut off while it grew has any length between that before and that after.
	size, err := c.img.size()
	if err != nil {
		return err
	}
	done := int64(0)
	var old []byte
	for k := vault.KindLower; k >= vault.KindNew; k-- {
		wrote := false
		b := &batch{img: c.img, size: size}
		err := c.u.Records(ctx, k, func(r vault.Record) error {
			done += int64(len(r.New))
			c.e.o.Progress("write the old bytes", done, c.total)
			if len(r.Old) == 0 {
				return nil // it goes when the image becomes shorter
			}
			wrote = true
			// Where the image ended inside, zeros go behind: a sector with old bytes and then new ones
			// is neither as before nor as after, and would be taken for somebody else's work.
			old = append(append(old[:0], r.Old...), make([]byte, len(r.New)-len(r.Old))...)
			return b.put(old, r.Offset)
		})
		if err == nil {
			err = b.flush()
		}
		if err == nil && wrote {
			err = c.img.sync()
		}
		if err != nil {
			return err
		}
	}
	if c.img.after > c.img.before {
		err := c.img.resize(c.img.before)
		if err == nil {
			err = c.img.sync()
		}
		if err != nil {
			return err
		}
	}
	if c.fence != nil {
		if err := c.writeSector(c.sector.Old); err != nil {
			return err
		}
	}
	return c.readBack(ctx, wantOld)
}

// writeSector writes the first sector, at once.
func (c *change) writeSector(b []byte) error {
	if err := c.img.write(b, 0); err != nil {
		return err
	}
	return c.img.sync()
}

// readBack reads from the disk what was written.
func (c *change) readBack(ctx context.Context, w want) error {
	if err := c.img.dropCache(); err != nil {
		return err
	}
	if err := c.surveyTouched(ctx, w); err != nil {
		return fmt.Errorf("read back what was written: %w", err)
	}
	return nil
}

// finish writes the new bytes, examines the image, and commits.
func (c *change) finish(ctx context.Context) error {
	err := c.u.Confirm()
	if err == nil {
		err = c.forward(ctx)
	}
	if err == nil {
		err = c.readBack(ctx, wantNew)
	}
	if err == nil {
		err = c.examine(ctx)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = c.u.Advance(vault.Committed, c.e.o.Now())
	}
	return err
}

// examine has the whole image examined, and holds what the plan relied on against what it has to be
// by now, as far as it can with what the examination reads.
func (c *change) examine(ctx context.Context) error {
	verify := c.e.o.Verify
	if c.e.o.VerifyOf != nil {
		verify = c.e.o.VerifyOf(c.u.Receipt())
	}
	var seen *summer
	if verify != nil {
		var err error
		if seen, err = c.newSummer(ctx); err != nil {
			return err
		}
		c.e.o.Progress("check the image", 0, 0)
		if err := c.e.disk.do(func() error { return verify(ctx, seen, c.img.after) }); err != nil {
			return err
		}
	}
	if err := c.surveyWatches(ctx, seen); err != nil {
		return fmt.Errorf("read back what was relied on: %w", err)
	}
	return nil
}

// takeBack gives the image its old bytes and notes that, as a state.
func (c *change) takeBack(ctx context.Context, s vault.State) error {
	// Once begun it is ended, whatever the user wishes meanwhile; only storage that hangs stops it.
	ctx = context.WithoutCancel(ctx)
	// A write of "committed" that failed may have reached the disk all the same.
	if err := c.u.Confirm(); err != nil {
		return err
	}
	if err := c.back(ctx); err != nil {
		return err
	}
	return c.u.Advance(s, c.e.o.Now())
}

// interrupted says that the image is left in the middle.
func (c *change) interrupted(err error) error {
	return fmt.Errorf("%w: %s: %w", ErrInterrupted, c.img.path, err)
}

// record writes the receipt as the undo file has it now.
func (c *change) record(failure string) (*vault.Receipt, error) {
	r, err := c.note(c.u.State(), failure)
	if err != nil {
		err = fmt.Errorf("%w (the image itself is in order): %w", ErrInterrupted, err)
	}
	return r, err
}

// note writes the receipt with a state. That of the image of which this one is a copy is left alone.
func (c *change) note(s vault.State, failure string) (*vault.Receipt, error) {
	r := c.u.Receipt()
	// The image may have another name by now, or lie on another machine; and what an undo file from
	// elsewhere says of files of this one is not believed.
	id, err := c.img.f.Identity()
	if err != nil {
		return nil, err
	}
	r.SetImage(c.img.path, id)
	r.State = s
	kept, err := c.e.v.Receipt(r.ID)
	switch {
	case err == nil && !c.e.v.Speaks(kept, c.u.Path()):
		return r, nil
	case err == nil:
		r.Resolved, r.Failure = kept.Resolved, kept.Failure
	case !errors.Is(err, vault.ErrNotFound):
		return nil, err
	}
	if failure != "" {
		r.Failure = failure
	}
	return r, c.e.v.Put(r)
}
