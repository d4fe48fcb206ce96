// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Apply carries out a plan, once. The receipt is nil where the image was not touched; where the
// change was rolled back it says so. Where the context ends in the middle the image gets its old
// bytes back, and the error is both that of the context and ErrRolledBack. The errors are ErrEmpty,
// ErrUsed, ErrUnfinished, ErrChanged, ErrNoRoom, ErrRolledBack, ErrInterrupted, and those named
// there. It blocks as long as the storage does, see Options.Patience.
func Apply(ctx context.Context, p *plan.Plan, o Options) (*vault.Receipt, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Empty() {
		return nil, ErrEmpty
	}
	e, err := newEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	img, err := e.open(vault.PathOf(p.Object))
	if err != nil {
		return nil, err
	}
	defer img.Close()
	if err := e.unused(ctx, img, p); err != nil {
		return nil, err
	}
	d, err := e.draft(ctx, img, p)
	if err != nil {
		return nil, err
	}
	journal, err := e.journal(img)
	if err != nil {
		return nil, err
	}
	undoDir := journal
	if undoDir == "" {
		undoDir = filepath.Dir(img.path)
	}
	if err := e.room(img, d, undoDir); err != nil {
		return nil, err
	}
	e.o.Progress("write the undo file", 0, 0)
	u, err := e.v.Create(ctx, d, img.path, journal)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	c, err := e.prepare(ctx, img, u)
	if err != nil {
		return nil, err
	}
	if err := c.finish(ctx); err != nil {
		return c.failed(ctx, err)
	}
	return c.record("")
}

// journal is the directory for the undo file, "" for that of the image. Beside a block device it
// would lie in the kernel's own directory of devices, and be gone when the host starts again.
func (e *engine) journal(img *image) (string, error) {
	id, err := img.f.Identity()
	switch {
	case err != nil:
		return "", err
	case e.o.JournalDir != "":
		return e.o.JournalDir, nil
	case !id.Block:
		return "", nil
	}
	return e.v.ReceiptsDir(), e.disk.MakeDir(e.v.ReceiptsDir(), 0o700)
}

// prepare does the rest of what comes before the first write to the image. Where it goes wrong the
// image is untouched, and the undo file and the receipt are removed.
func (e *engine) prepare(ctx context.Context, img *image, u *vault.Undo) (*change, error) {
	c, err := e.newChange(ctx, img, u)
	if err == nil {
		_, err = c.note(vault.Prepared, "")
	}
	if err == nil {
		// The bytes that are saved must be those that are on the disk, not older ones in memory.
		err = img.dropCache()
	}
	if err == nil {
		err = c.survey(ctx, wantOld)
	}
	if err != nil {
		// The receipt goes first: one without its undo file could not be told from a loss.
		err2 := e.v.Drop(u.ID())
		if err2 == nil {
			err2 = e.v.Discard(u.Path())
		}
		return nil, errors.Join(err, err2)
	}
	if err := u.Advance(vault.Applying, e.o.Now()); err != nil {
		return nil, c.interrupted(err)
	}
	return c, nil
}

// failed takes back a change that went wrong.
func (c *change) failed(ctx context.Context, cause error) (*vault.Receipt, error) {
	if stops(cause) {
		return nil, c.interrupted(cause)
	}
	if err := c.takeBack(ctx, vault.RolledBack); err != nil {
		return nil, c.interrupted(fmt.Errorf("%w; and then: %w", cause, err))
	}
	why := cause.Error()
	if ctx.Err() != nil {
		why = "it was interrupted"
	}
	r, err := c.record(why)
	if err != nil {
		return r, fmt.Errorf("%w; and then: %w", cause, err)
	}
	return r, fmt.Errorf("%w: %w", ErrRolledBack, cause)
}

// Undo gives an image the bytes that it had before the newest change that is in force, or before
// the one whose receipt id names. image may be "" where id is not, and is then the path in the
// receipt; id may be "" where image is not. An image that was changed since is a *ChangedError. A
// change that was undone before is nothing to do. The errors are ErrNothing, ErrUnfinished,
// ErrChanged, ErrLater, ErrInterrupted, vault.ErrNotFound, and those named at ErrEmpty.
func Undo(ctx context.Context, image, id string, o Options) (*vault.Receipt, error) {
	e, err := newEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	if image == "" {
		r, err := e.v.Receipt(id)
		if err != nil {
			return nil, err
		}
		image = r.Image()
	} else if image, err = e.disk.RealPath(image); err != nil {
		return nil, err
	}
	img, err := e.open(image)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	i, err := vault.ImageOf(img.path, img.f)
	if err != nil {
		return nil, err
	}
	all, unread := e.v.FindOf(ctx, i)
	r, err := e.undoOne(ctx, img, i, id, all)
	if err == nil {
		// What could not be read is of another image, or of a change that this one does not rest on:
		// all that it left was found as it left it.
		return r, nil
	}
	return r, errors.Join(err, unread)
}

// undoOne undoes the newest of the candidates that fits.
func (e *engine) undoOne(
	ctx context.Context, img *image, i *vault.Image, id string, all []*vault.Candidate,
) (*vault.Receipt, error) {
	var undone *vault.Receipt
	var errs, since []error
	var later, known *vault.Candidate
	for _, c := range all {
		if id != "" && c.ID != id {
			if c.State == vault.Committed && c.Match == vault.MatchFile && later == nil && known == nil {
				later = c
			}
			continue
		}
		if known == nil && !isCopy(c, i) {
			known = c
		}
		switch c.State {
		case vault.Applying, vault.Undoing:
			if left, err := e.leftMiddle(ctx, img, i, c); err != nil || left {
				return nil, errors.Join(err, unfinished(c))
			}
		case vault.Undone:
			if undone != nil {
				continue
			}
			err := e.stillUndone(ctx, img, c)
			if errors.Is(err, ErrChanged) {
				// Perhaps a copy, made before the change was undone in another one.
				r, err2 := e.undo(ctx, img, i, c)
				if !errors.Is(err2, ErrChanged) {
					return r, err2
				}
			}
			switch {
			case err == nil:
				undone = c.Receipt
			case errors.Is(err, ErrChanged):
				since = append(since, fmt.Errorf("it was undone before: %w", err))
			default:
				return nil, err
			}
		case vault.Committed:
			r, err := e.undo(ctx, img, i, c)
			if errors.Is(err, ErrChanged) && later != nil {
				return nil, &LaterError{img.path, later.ID, later.Receipt.Created, c.ID}
			}
			if !errors.Is(err, ErrChanged) {
				return r, err
			}
			errs = append(errs, err)
		case "":
			if errors.Is(c.Err, vault.ErrNewer) {
				return nil, c.Err // nobody knows what it did
			}
			errs = append(errs, c.Err)
		}
	}
	switch {
	case len(errs) == 0 && undone != nil:
		return undone, nil
	case len(errs)+len(since) > 0:
		return nil, errors.Join(append(errs, since...)...)
	}
	return nil, nothing(img.path, id, known)
}

// nothing is ErrNothing with what is known all the same, if anything is: the newest change.
func nothing(path, id string, known *vault.Candidate) error {
	switch {
	case known == nil && id != "":
		return fmt.Errorf("%w in %s: no change %s is known of it", ErrNothing, path, id)
	case known == nil:
		return fmt.Errorf("%w in %s: no change of it is known", ErrNothing, path)
	case known.State == vault.RolledBack:
		return fmt.Errorf("%w in %s: its change %s was rolled back, and is not in force", ErrNothing, path,
			known.ID)
	case known.State == vault.SetAside:
		return fmt.Errorf("%w in %s: its change %s was given up, and its undo file is kept as %s", ErrNothing, path,
			known.ID, known.Receipt.Undo())
	case known.State == vault.Prepared || known.State == vault.Partial:
		return fmt.Errorf("%w in %s: its change was prepared and never begun (undo file %s)", ErrNothing,
			path, known.UndoPath)
	}
	return fmt.Errorf("%w in %s: no change of it is in force", ErrNothing, path)
}

// stillUndone holds an image against the bytes that an undo gave it. Without the undo file they are
// not known, and the receipt is believed.
func (e *engine) stillUndone(ctx context.Context, img *image, found *vault.Candidate) error {
	if found.UndoPath == "" {
		return nil
	}
	u, err := e.v.OpenUndo(ctx, found.UndoPath)
	if err != nil {
		return err
	}
	defer u.Close()
	c, err := e.newChange(ctx, img, u)
	if err != nil {
		return err
	}
	return c.survey(ctx, wantOld)
}

// undo undoes one change. An image that does not fit is a *ChangedError, and was not touched.
func (e *engine) undo(ctx context.Context, img *image, i *vault.Image, found *vault.Candidate) (
	*vault.Receipt, error,
) {
	if found.UndoPath == "" {
		p, err := e.v.Peek(ctx, found.Receipt.Undo())
		if err == nil {
			err = p.TrustedFor(i.Identity)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, fmt.Errorf("%w in %s: the undo file %s of receipt %s is gone", ErrNothing, img.path,
			found.Receipt.Undo(), found.ID)
	}
	u, err := e.v.OpenUndoToAdvance(ctx, found.UndoPath, false)
	if err != nil {
		return nil, err
	}
	defer func() { u.Close() }() // whichever it is by then
	c, err := e.newChange(ctx, img, u)
	if err != nil {
		return nil, err
	}
	if s := u.State(); s != vault.Committed && s != vault.Undone {
		return nil, fmt.Errorf("%w: undo file %s (%s)", ErrUnfinished, u.Path(), u.State())
	}
	if err := c.survey(ctx, wantNew); err != nil {
		return nil, err
	}
	if u.State() == vault.Undone || e.v.IsCopy(found, i) && !i.Beside(found.UndoPath) {
		fork, err := e.fork(ctx, img, u)
		if err != nil {
			return nil, err
		}
		u.Close()
		u, c.u = fork, fork
	}
	// Recover finds by the receipt what it must finish, wherever the undo file lies.
	if _, err := c.note(vault.Undoing, ""); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		_, err2 := c.note(u.State(), "")
		return nil, errors.Join(err, err2)
	}
	if err := u.Advance(vault.Undoing, e.o.Now()); err != nil {
		return nil, c.interrupted(err)
	}
	if err := c.takeBack(ctx, vault.Undone); err != nil {
		return nil, c.interrupted(err)
	}
	return c.record("")
}

// fork gives a copy of an image an undo file of its own: the change stays in force in the image that
// it was made for.
func (e *engine) fork(ctx context.Context, img *image, u *vault.Undo) (*vault.Undo, error) {
	journal, err := e.journal(img)
	if err != nil {
		return nil, err
	}
	path, err := e.v.Fork(ctx, u.Path(), img.path, journal)
	if err != nil {
		return nil, err
	}
	return e.v.OpenUndoToAdvance(ctx, path, false)
}
