// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Recover finishes or takes back what was cut off. target is an image, an undo file, the name of a
// receipt, a file of a text change, a directory (all undo files in and below it, and all receipts of
// images and text files there), or ""
// for all that the state directory and the journal directory know of. By default an image gets its old bytes back, with Options.Forward the new ones;
// an undo that was cut off is finished. The error joins those of the outcomes: ErrChanged where
// somebody else wrote to the image since, vault.ErrDamaged and ErrNewer for undo files that cannot
// be used, ErrInterrupted where the storage failed again, and those named at ErrEmpty.
//
// Done a second time it does nothing.
func Recover(ctx context.Context, target string, o Options) ([]Outcome, error) {
	e, err := newEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	outcomes, known, textErr := e.recoverTexts(ctx, target)
	jobs, err := e.jobs(ctx, target)
	if known && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, vault.ErrNotFound)) {
		err = nil // it is a change of text files that is meant
	}
	errs := []error{textErr, err}
	// The newest change first: it was made from what the one before had left.
	slices.SortStableFunc(jobs, func(a, b job) int { return b.created.Compare(a.created) })
	for _, j := range jobs {
		if err := ctx.Err(); err != nil {
			return outcomes, errors.Join(append(errs, err)...)
		}
		out := Outcome{ID: j.id, Image: j.image, UndoPath: j.undo}
		if err := e.recover(ctx, j, &out); err != nil {
			out.Did, out.Err = DidNotRecover, err
			errs = append(errs, err)
		}
		if out.Did != "" {
			outcomes = append(outcomes, out)
		}
	}
	return outcomes, errors.Join(errs...)
}

// settled tells whether a change came to its end before. Where its receipt says so as well nobody
// needs the image, which a machine may use by now; where that does not, the image must be free.
func (e *engine) settled(ctx context.Context, j job, out *Outcome) (ended, noted bool) {
	p, err := e.v.Peek(ctx, j.undo)
	if err != nil || p.State.Unfinished() {
		return false, false
	}
	out.ID, out.Receipt = p.Receipt.ID, p.Receipt
	kept, err := e.v.Receipt(p.Receipt.ID)
	if err != nil || kept.State != p.State && e.v.Speaks(kept, j.undo) {
		return true, false
	}
	out.Receipt = kept
	return true, true
}

// recover brings one change to an end.
func (e *engine) recover(ctx context.Context, j job, out *Outcome) error {
	ended, noted := e.settled(ctx, j, out)
	if noted {
		out.Did = DidNothing
		return nil
	}
	var img *image
	var err error
	if j.image != "" {
		img, err = e.open(j.image)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it was renamed, or is gone
		case ended && errors.Is(err, diskio.ErrInUse):
			out.Did = DidNothing // but for the receipt, for which there is time
			return nil
		case err != nil:
			return err
		default:
			defer img.Close()
		}
	}
	if j.copied {
		if j.undo, err = e.forkUnfinished(ctx, img, j.undo); err != nil || j.undo == "" {
			return err
		}
		out.UndoPath = j.undo
	}
	u, err := e.v.OpenUndoToAdvance(ctx, j.undo, img == nil && !e.o.AcceptNoLocks)
	switch {
	case errors.Is(err, vault.ErrPartial):
		return e.removePartial(ctx, j, out, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the undo file of receipt %s is gone: %w", j.id, err)
	case err != nil:
		return err
	}
	defer u.Close()
	out.ID = u.ID()
	if img == nil {
		return e.recoverAlone(j, u, out)
	}
	c, err := e.newChange(ctx, img, u)
	if err != nil {
		return err
	}
	failure := ""
	switch u.State() {
	case vault.Prepared:
		out.Did, failure = DidRollBack, "it was cut off before the first write"
		err = u.Advance(vault.RolledBack, e.o.Now())
	case vault.Applying:
		out.Did, failure, err = c.resume(ctx)
	case vault.Undoing:
		out.Did = DidUndo
		if err = c.survey(ctx, wantEither); err == nil {
			err = c.takeBack(ctx, vault.Undone)
		}
	default:
		out.Did = DidNothing
		kept, err2 := e.v.Receipt(u.ID())
		if err2 == nil && (kept.State == u.State() || !e.v.Speaks(kept, u.Path())) {
			out.Receipt = kept
			return nil
		}
		err = u.Confirm()
	}
	if err != nil && e.mayLeave(ctx, c, j.image, err) {
		return e.setAside(u, out)
	}
	if err != nil {
		return c.again(err)
	}
	out.Receipt, err = c.record(failure)
	return err
}

// mayLeave tells whether a change may be given up: where the user accepts that, and the image holds what
// is neither from before the change nor from after it. It is looked at once more, for what failed may
// have been a write.
func (e *engine) mayLeave(ctx context.Context, c *change, image string, why error) bool {
	return e.o.LeaveAsIs != nil && errors.Is(why, ErrChanged) && c.u.State().Unfinished() &&
		e.o.LeaveAsIs(image) && errors.Is(c.survey(ctx, wantEither), ErrChanged)
}

// setAside gives a change up.
func (e *engine) setAside(u *vault.Undo, out *Outcome) error {
	path, kept, err := e.v.SetAside(u, "it was given up by a recovery, as the image was written to after it was cut off",
		e.o.Now())
	if err != nil {
		return err
	}
	out.Did, out.UndoPath, out.Receipt = DidSetAside, path, kept
	return nil
}

// removePartial removes an undo file that was never finished. It is nobody's in this moment: who
// makes one holds a lock on it.
func (e *engine) removePartial(ctx context.Context, j job, out *Outcome, fault error) error {
	all, err := e.v.Receipts(ctx)
	for _, r := range all {
		// A receipt is written when its undo file is whole and on the disk.
		if r.State.Unfinished() && r.Undo() == j.undo {
			return fmt.Errorf("%w, though its receipt %s says that it was finished: it %w", fault, r.ID,
				vault.ErrDamaged)
		}
	}
	if err != nil {
		return err
	}
	out.Did = DidRemove
	return e.v.Discard(j.undo)
}

// forkUnfinished gives a copy of an image, made while a change was under way, an undo file of its
// own. It gives "" where the copy is as before the change, or as after it: then nothing is left in
// the middle.
func (e *engine) forkUnfinished(ctx context.Context, img *image, undo string) (string, error) {
	if img == nil {
		return "", nil
	}
	u, err := e.v.OpenUndo(ctx, undo)
	if err != nil {
		return "", err
	}
	defer u.Close()
	c, err := e.newChange(ctx, img, u)
	if err != nil {
		return "", err
	}
	for _, w := range []want{wantOld, wantNew} {
		if err := c.survey(ctx, w); !errors.Is(err, ErrChanged) {
			return "", err
		}
	}
	journal, err := e.journal(img)
	if err != nil {
		return "", err
	}
	return e.v.Fork(ctx, undo, img.path, journal)
}

// recoverAlone brings a change to an end whose image is not known: where that was not touched, or is
// in order.
func (e *engine) recoverAlone(j job, u *vault.Undo, out *Outcome) error {
	switch {
	case !u.State().Unfinished():
		out.Did = DidNothing
	case u.State() == vault.Prepared:
		out.Did = DidRollBack
		if err := u.Advance(vault.RolledBack, e.o.Now()); err != nil {
			return err
		}
	case j.image != "":
		return fmt.Errorf("undo file %s: its image %s is gone; if it was renamed, recover it by its "+
			"new name", u.Path(), j.image)
	default:
		return fmt.Errorf("undo file %s: its image is not beside it and no receipt names it; "+
			"recover the image by its own name", u.Path())
	}
	out.Receipt = u.Receipt()
	kept, err := e.v.Receipt(u.ID())
	if err != nil || kept.State == u.State() || !e.v.Speaks(kept, u.Path()) {
		return nil // there is none to be put right
	}
	kept.State, kept.Finished, kept.Undone = out.Receipt.State, out.Receipt.Finished, out.Receipt.Undone
	out.Receipt = kept
	return e.v.Put(kept)
}

// again says of an error whether the storage failed once more.
func (c *change) again(err error) error {
	for _, e := range []error{ErrChanged, ErrRolledBack, vault.ErrDamaged} {
		if errors.Is(err, e) {
			return err
		}
	}
	return c.interrupted(err)
}

// resume goes on with a change that was cut off while it was made.
func (c *change) resume(ctx context.Context) (did, failure string, err error) {
	err = c.survey(ctx, wantEither)
	switch {
	case errors.Is(err, ErrChanged) && c.e.o.Forward:
		// Where the last write of the change was made, all of it was; what differs was written
		// afterwards, by somebody who found the image in order. It stays as it is.
		if made, err2 := c.switched(); err2 != nil || !made {
			return "", "", errors.Join(err, err2)
		}
		return DidCommit, "", c.u.Advance(vault.Committed, c.e.o.Now())
	case err != nil:
		return "", "", err
	case c.e.o.Forward:
		err := c.finish(ctx)
		if err == nil || stops(err) {
			return DidCommit, "", err
		}
		if err2 := c.takeBack(ctx, vault.RolledBack); err2 != nil {
			return "", "", fmt.Errorf("%w; and then: %w", err, err2)
		}
		_, err2 := c.record(err.Error())
		return "", "", errors.Join(fmt.Errorf("%w: %w", ErrRolledBack, err), err2)
	}
	failure = "it was cut off, and taken back by a recovery"
	return DidRollBack, failure, c.takeBack(ctx, vault.RolledBack)
}

// switched tells whether the last write of a change is there, and makes sure that it is on the disk:
// a sync of it may be what failed.
func (c *change) switched() (bool, error) {
	if c.sector == nil {
		return false, nil
	}
	if err := c.img.dropCache(); err != nil {
		return false, err
	}
	size, err := c.img.size()
	if err != nil {
		return false, err
	}
	b := make([]byte, len(c.sector.New))
	if err := c.img.read(b, 0, size); err != nil {
		return false, err
	}
	if !bytes.Equal(b, c.sector.New) || bytes.Equal(b, c.sector.Old) {
		return false, nil
	}
	return true, c.writeSector(b)
}
