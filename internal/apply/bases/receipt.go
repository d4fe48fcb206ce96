// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// An act leaves its receipt so:
//
//	k := newKeeper(o).as("protect")
//	k.will(steps...)             before the first of them; again for what comes later
//	k.did(step)                  after each; did(&step, err) where it failed
//	err = k.finish(ctx, d, err)  at the end, whatever the end was
//
// Without Options.Receipts none of that does anything, nor without a name, as for what an agent does again and again.

// as names an act in its receipt.
func (k *keeper) as(act string) *keeper {
	if k.act = k.within; k.act == "" {
		k.act = act
	}
	return k
}

// stepAt is a step of a receipt.
func stepAt(what vault.BaseWhat, name, path string, inode uint64) vault.BaseStep {
	s := vault.BaseStep{What: what, Name: name, Inode: inode}
	s.SetAt(path)
	return s
}

// will has the receipt say what comes next, and returns when that is on the disk.
func (k *keeper) will(steps ...vault.BaseStep) error {
	if k.Receipts == nil || k.act == "" || len(steps) == 0 {
		return nil
	}
	first := k.receipt == nil
	if first {
		id, err := plan.NewID()
		if err != nil {
			return err
		}
		// It is held before it is there: who finds one that nobody holds takes its act for cut off, and ends it.
		if k.hold, err = k.Receipts.HoldBase(id); err != nil {
			return err
		}
		k.receipt = &vault.BaseReceipt{Schema: vault.BaseReceiptSchema, ID: id, State: vault.Applying, Act: k.act,
			Tool: k.Tool, Node: k.Node, Created: k.Now().UTC(), Pool: k.pool}
		k.receipt.SetDir(k.Bases)
	}
	k.receipt.Steps = append(k.receipt.Steps, steps...)
	err := k.Receipts.PutBase(k.receipt)
	if err != nil && first { // then nothing is done that it would be about
		err = errors.Join(err, k.Receipts.DropBase(k.receipt.ID), k.hold.Close())
		k.receipt, k.hold = nil, nil
	}
	return err
}

// did notes that a step was done, or why it was not. It is on the disk when the act is finished. What was not
// announced is added.
func (k *keeper) did(s vault.BaseStep, failed error) {
	if k.receipt == nil {
		return
	}
	s.Done, s.Why = failed == nil, ""
	if failed != nil {
		s.Why = failed.Error()
	}
	i := slices.IndexFunc(k.receipt.Steps, func(a vault.BaseStep) bool {
		return a.What == s.What && a.Path == s.Path && a.PathB64 == s.PathB64 && !a.Done
	})
	if i < 0 {
		k.receipt.Steps = append(k.receipt.Steps, s)
		return
	}
	k.receipt.Steps[i] = s
}

// finish ends the receipt of an act that ended with err, and gives that error with its own. A receipt of an act
// that did nothing is taken away.
func (k *keeper) finish(ctx context.Context, d *pool.Done, why error) (err error) {
	err = why
	if k.receipt == nil {
		return err
	}
	if k.hold != nil {
		defer func() { err = errors.Join(err, unfinished(k.receipt, k.hold.Close())) }()
	}
	if errors.Is(err, ErrStopped) {
		return err // a power cut would leave the receipt like this
	}
	r := k.receipt
	if err != nil {
		r.Failure = err.Error()
	}
	// ctx may have ended the act, and does not end this.
	ctx = context.WithoutCancel(ctx)
	kept, e := k.settled(ctx, k.Receipts, r)
	if e != nil || !kept {
		return errors.Join(err, unfinished(r, e))
	}
	if d != nil {
		d.Receipt, d.CanUndo = r.ID, len(InForce(r)) > 0
		d.Begun = slices.ContainsFunc(r.Steps, func(s vault.BaseStep) bool { return s.What == vault.BasePolicy && s.Done })
	}
	// The act was done, whatever becomes of older receipts.
	return errors.Join(err, k.dropOlder(ctx))
}

// ErrReceiptOpen: what was to be done is done, and the receipt does not say so. Settle finds out what it did.
var ErrReceiptOpen = errors.New("its receipt could not be ended")

// unfinished is the error of an act that did something, and whose receipt could not be ended.
func unfinished(r *vault.BaseReceipt, err error) error {
	if err == nil || !slices.ContainsFunc(r.Steps, func(s vault.BaseStep) bool { return s.Done }) {
		return err
	}
	return fmt.Errorf("it is done, and %w: %w", ErrReceiptOpen, err)
}

// settled ends the receipt of an act that is over. It is not kept where nothing was done. Where it cannot be told what was
// done it stays as it is, and the error says so.
func (k *keeper) settled(ctx context.Context, v *vault.Vault, r *vault.BaseReceipt) (kept bool, err error) {
	for i := range r.Steps {
		if s := &r.Steps[i]; !s.Done {
			err = errors.Join(err, k.settle(ctx, s))
		}
	}
	if err != nil {
		err = fmt.Errorf("what the act %s did is not known yet: %w", r.ID, err)
		return true, errors.Join(err, v.PutBase(r))
	}
	if !slices.ContainsFunc(r.Steps, func(s vault.BaseStep) bool { return s.Done }) {
		return false, v.DropBase(r.ID)
	}
	now := k.Now().UTC()
	r.State, r.Finished = vault.Committed, &now
	return true, v.PutBase(r)
}

// Settle ends the receipts of acts that were cut off: what each did is found out by what is there. half are those that
// were being taken back: Undo goes on. What could not be read, as where the storage of a pool is not mounted, is told by the
// error, beside the others; such a receipt stays as it is.
func Settle(ctx context.Context, o Options) (ended, half []*vault.BaseReceipt, err error) {
	v := o.Receipts
	all, err := v.BaseReceipts(ctx)
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	for _, r := range all {
		if !r.State.Unfinished() {
			continue
		}
		underWay := v.BaseUnderWay(r.ID)
		switch {
		case errors.Is(underWay, diskio.ErrInUse):
			continue
		case underWay != nil:
			err = errors.Join(err, underWay)
		case r.State == vault.Undoing:
			half = append(half, r)
		default:
			o.Bases = r.Dir()
			e := newKeeper(o).cutOff(ctx, r)
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			err = errors.Join(err, e)
			if e == nil {
				ended = append(ended, r)
			}
		}
	}
	return ended, half, errors.Join(err, v.DropLeft(ctx, newKeeper(o).Now()))
}

// cutOff ends the receipt of an act that was cut off.
func (k *keeper) cutOff(ctx context.Context, r *vault.BaseReceipt) error {
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return err
	}
	switch first := len(r.Steps) > 0 && r.Steps[0].What == vault.BasePolicy; {
	case s.Policy == nil && (!first || len(s.Unread) > 0), s.Policy != nil && s.Policy.UUID != r.Pool:
		// Where the act was to begin the pool, and there is none, it did nothing.
		return elsewhere(k.Bases, s, r)
	}
	r.Failure = "it was cut off"
	_, err = k.settled(ctx, k.Receipts, r)
	return err
}

// elsewhere is the error for a directory that is not the pool of a receipt any more.
func elsewhere(bases string, s *pool.State, r *vault.BaseReceipt) error {
	switch {
	case s.Policy == nil && len(s.Unread) > 0: // what is there may be it
		return fmt.Errorf("whether %s is pool %s still: %w", bases, r.Pool, errors.Join(s.Unread...))
	case s.Policy == nil:
		return fmt.Errorf("%s %w: it has no %s, and had that of pool %s at %s: is its storage mounted?", bases, ErrOtherPool,
			pool.Dir+"/"+pool.File, r.Pool, r.Created.Format(time.RFC3339))
	}
	return fmt.Errorf("%s %w: it is pool %s, and the receipt is about pool %s", bases, ErrOtherPool, s.Policy.UUID, r.Pool)
}

// settle finds out by what is there whether a step was done that is not known to be: an error does not say that,
// see diskio.Links. Its error is what could not be looked at.
func (k *keeper) settle(ctx context.Context, s *vault.BaseStep) (err error) {
	at := s.At()
	if s.What == vault.BaseQuarantine {
		at = k.path(pool.Quarantine, pool.HeldName(s.ID, s.Name))
	}
	e, err := diskio.LookEntry(at)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, diskio.ErrSpecial) && !errors.Is(err, syscall.ENAMETOOLONG) {
		return err // no file has a name that is too long for its file system
	}
	switch s.What {
	case vault.BaseShield, vault.BaseRestore, vault.BaseAdopt, vault.BaseQuarantine, vault.BaseMember, vault.BaseRetire:
		s.Done = err == nil && s.Inode != 0 && e.Ino == s.Inode
	case vault.BaseTouch:
		// Any other time is somebody else's: then there is nothing that could be taken back.
		s.Done = err == nil && e.Ino == s.Inode && s.After != nil && e.ModTime.Equal(*s.After)
	case vault.BaseUnshield, vault.BaseForget:
		s.Done = errors.Is(err, fs.ErrNotExist)
	case vault.BaseRecord, vault.BasePolicy, vault.BasePin, vault.BaseUnpin, vault.BaseUnretire:
		s.Done = err == nil
	case vault.BasePurge:
		if s.Done, err = k.purged(ctx, s); err != nil {
			return err
		}
	}
	if s.Done && s.Why != "" {
		s.Why = "it is done all the same: " + s.Why
	}
	return nil
}

// purged tells whether a base was removed for good: no name of it is left, and the audit says so, or there is an intent.
func (k *keeper) purged(ctx context.Context, s *vault.BaseStep) (bool, error) {
	held := pool.HeldName(s.ID, s.Name)
	for _, path := range []string{k.path(pool.Quarantine, held), k.path(pool.Purge, held), filepath.Join(k.Bases, s.Name),
		k.path(pool.Shields, pool.ShieldName(s.Inode, s.Name))} {
		e, err := diskio.LookEntry(path)
		switch {
		case err == nil && e.Ino == s.Inode:
			return false, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, diskio.ErrSpecial):
			return false, err
		}
	}
	all, unread, err := pool.AuditOf(ctx, k.Bases, s.Name, k.Timeout)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(all, func(e pool.Entry) bool {
		return e.Act == pool.ActPurge && e.Inode == s.Inode && filepath.Base(e.Path) == pool.Valid(held)
	}) {
		return true, nil
	}
	_, err = diskio.LookEntry(k.path(pool.Journal, pool.IntentName(s.ID, pool.ActPurge)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, errors.Join(unread...)
	}
	return err == nil, err
}

// dropOlder takes away the receipts of acts that only touched what this one touched again: none of them can be
// taken back any more, and a timer makes one every 20 minutes.
func (k *keeper) dropOlder(ctx context.Context) error {
	touched := map[uint64]bool{}
	for _, s := range k.receipt.Steps {
		if s.What == vault.BaseTouch && s.Done {
			touched[s.Inode] = true
		}
	}
	if len(touched) == 0 {
		return nil
	}
	// A receipt that cannot be read is of another act, and is told to who takes that back.
	all, _ := k.Receipts.BaseReceipts(ctx)
	for _, r := range all {
		if r.ID == k.receipt.ID || r.State != vault.Committed || r.Dir() != k.Bases || r.Created.After(k.receipt.Created) {
			continue
		}
		if slices.ContainsFunc(r.Steps, func(s vault.BaseStep) bool {
			return s.Done && (s.What != vault.BaseTouch || !touched[s.Inode])
		}) {
			continue
		}
		if err := k.Receipts.DropBase(r.ID); err != nil {
			return err
		}
	}
	return nil
}

// ErrOtherPool: a directory holds another pool than it did, or none any more.
var ErrOtherPool = errors.New("is not the pool that it was")

// known refuses a directory whose pool is another one than the receipts of this host say, or gone: the storage of
// the bases may not be mounted.
func (k *keeper) known(ctx context.Context, s *pool.State) error {
	if k.Receipts == nil || k.NewPool {
		return nil
	}
	all, unread := k.Receipts.BaseReceipts(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, r := range all {
		if r.Dir() != k.Bases || r.Pool == "" {
			continue
		}
		switch {
		case s.Policy == nil:
			return elsewhere(k.Bases, s, r)
		case s.Policy.UUID != r.Pool:
			return fmt.Errorf("%s %w: it is pool %s, and was pool %s at %s", k.Bases, ErrOtherPool, s.Policy.UUID, r.Pool,
				r.Created.Format(time.RFC3339))
		}
		return nil // the newest counts
	}
	if unread != nil && s.Policy == nil {
		return fmt.Errorf("whether %s was a pool: %w", k.Bases, unread)
	}
	return nil
}
