// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/vault"
)

// now is the time as documents have it.
func (e *engine) now() time.Time { return e.o.Now().UTC().Truncate(time.Second) }

// recoverTexts finishes or takes back the changes of text files that target means: the name of a
// receipt, its file, a file of the change, a directory above one, or "" for all. known: there is one,
// whatever its state.
func (e *engine) recoverTexts(ctx context.Context, target string) (outcomes []Outcome, known bool, err error) {
	all, unread := e.v.TextReceipts(ctx)
	path := target
	if target != "" && !vault.IsID(target) {
		if dir, err := e.disk.RealPath(filepath.Dir(target)); err == nil && e.isLink(target) {
			path = filepath.Join(dir, filepath.Base(target)) // the name itself is what a change is of
		} else if real, err := e.disk.RealPath(target); err == nil {
			path = real
		} else if abs, err := filepath.Abs(target); err == nil {
			path = abs // it may be a file that is not there yet, or not any more
		}
	}
	if target == "" || path == e.v.TextsDir() || within(e.v.TextsDir(), path) {
		err = unread
	}
	outcomes = []Outcome{}
	if len(all) > 0 {
		e.o.Looked(Place{Path: e.v.TextsDir(), Receipts: len(all)})
		// One that says that its change has ended may not be on the disk: the sync may be what failed.
		err = errors.Join(err, e.disk.SyncDir(e.v.TextsDir()))
	}
	var open []*vault.TextReceipt
	for _, r := range all {
		meant, exact := e.means(r, target, path)
		known = known || meant
		switch {
		case meant && r.State.Unfinished():
			open = append(open, r)
		case exact:
			outcomes = append(outcomes, e.textOutcome(r, DidNothing))
		}
	}
	cut := false
	if target == "" {
		var cutErr error
		cut, cutErr = e.v.TextsCutOff(ctx)
		err = errors.Join(err, cutErr)
	}
	if len(open) == 0 && !cut {
		return outcomes, known, err
	}
	lock, lockErr := e.v.LockTexts()
	if lockErr != nil {
		return outcomes, known, errors.Join(err, lockErr)
	}
	defer lock.Close()
	if cut {
		err = errors.Join(err, e.v.DropTextsCutOff(ctx))
	}
	for _, r := range open {
		out := e.textOutcome(r, "")
		if fault := e.recoverText(ctx, r.ID, &out); fault != nil {
			out.Did, out.Err = DidNotRecover, fault
			err = errors.Join(err, fault)
		}
		outcomes = append(outcomes, out)
	}
	return outcomes, known, err
}

// isLink reports whether a name is a symbolic link that leads to no directory.
func (e *engine) isLink(target string) bool {
	n, err := e.disk.LookAt(target)
	if err != nil || n.Mode&fs.ModeSymlink == 0 {
		return false
	}
	real, err := e.disk.RealPath(target)
	if err != nil {
		return true // it leads nowhere
	}
	n, err = e.disk.LookAt(real)
	return err != nil || !n.Mode.IsDir()
}

// means tells whether a target means a change, and whether it names just that one.
func (e *engine) means(r *vault.TextReceipt, target, path string) (meant, exact bool) {
	own := e.v.TextReceiptPath(r.ID)
	switch {
	case target == r.ID || path == own:
		return true, true
	case target == "" || within(path, own) || names(r, path):
		return true, false
	}
	for _, f := range r.Plan.Files {
		if within(path, f.Path) {
			return true, false
		}
	}
	return false, false
}

func (e *engine) textOutcome(r *vault.TextReceipt, did string) Outcome {
	o := Outcome{ID: r.ID, Image: r.Plan.Files[0].Path, UndoPath: e.v.TextReceiptPath(r.ID), Did: did}
	for _, f := range r.Plan.Files {
		o.Texts = append(o.Texts, f.Path)
	}
	return o
}

// recoverText brings one change to an end.
func (e *engine) recoverText(ctx context.Context, id string, out *Outcome) error {
	r, err := e.v.TextReceipt(id) // as it is now that nobody changes it
	if err != nil {
		return err
	}
	c := &texts{e, r}
	end, why := vault.RolledBack, "it was cut off, and taken back by a recovery"
	switch {
	case !r.State.Unfinished():
		out.Did = DidNothing
		return nil
	case r.State == vault.Undoing:
		end, why, out.Did = vault.Undone, "", DidUndo
		err = c.back()
	case e.o.Forward:
		end, why, out.Did = vault.Committed, "", DidCommit
		if err = c.known(); err == nil {
			err = c.unstageAll()
		}
		if err == nil {
			err = c.forward(ctx)
		}
	default:
		out.Did = DidRollBack
		err = c.back()
	}
	var changed *ChangedError
	if errors.As(err, &changed) && e.o.LeaveAsIs != nil && e.o.LeaveAsIs(changed.Path) {
		out.Did, end = DidSetAside, vault.SetAside
		why = "it was given up by a recovery, as " + changed.Path + " was written to after it was cut off"
		err = c.unstageAll()
	}
	switch {
	case errors.Is(err, ErrChanged):
		return err
	case err != nil:
		return c.interrupted(err)
	}
	_, err = c.end(end, why)
	return err
}

// unstageAll removes what was to take the place of files.
func (c *texts) unstageAll() error {
	var errs []error
	for _, f := range c.r.Plan.Files {
		errs = append(errs, c.unstage(f.Path))
	}
	return errors.Join(errs...)
}
