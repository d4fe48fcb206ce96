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

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

var (
	// ErrNeeded: somebody needs a base, or may.
	ErrNeeded = errors.New("is needed, or may be")
	// ErrNothing: nothing that an act did can be taken back.
	ErrNothing = errors.New("cannot be taken back")
)

// UndoOptions say how far an act may be taken back.
type UndoOptions struct {
	// Census looks at who needs what now. It is asked only where a name would be taken away, or a time set back.
	Census func(ctx context.Context) (*refs.Census, error)
	// Needed tells whether the name of a base may be taken away, and its old time given back, although it is needed,
	// or may be.
	Needed func(path string) bool
}

// undoing is an act that is being taken back.
type undoing struct {
	*keeper
	// receipts is where the receipt lies. The acts by which it is taken back leave none of their own.
	receipts *vault.Vault
	u        UndoOptions
	r        *vault.BaseReceipt
	s        *pool.State
	census   *refs.Census
}

// Undo takes an act back as far as nothing is lost by it: the last step first. What stays is told by the Why of its
// step; one that stays since something changed meanwhile may be tried again. The receipt is given as it is then.
//
// The errors are those of reading the receipt; ErrOtherPool; diskio.ErrInUse where the act is under way, or is being taken back;
// vault.ErrReceipt; ErrNothing; where the name of a base is to be taken away ErrBusy and ErrUnfinished as well. o.Bases is taken from the receipt.
func Undo(ctx context.Context, id string, u UndoOptions, o Options) (r *vault.BaseReceipt, err error) {
	lock, err := o.Receipts.LockBases()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if r, err = o.Receipts.BaseReceipt(id); err != nil || r.State == vault.Undone {
		return r, err
	}
	if err := o.Receipts.BaseUnderWay(id); err != nil {
		return nil, err
	}
	receipts := o.Receipts
	o.Bases, o.Receipts = r.Dir(), nil
	k := &undoing{keeper: newKeeper(o), receipts: receipts, u: u, r: r}
	if k.s, err = pool.Read(ctx, k.Bases, k.Timeout); err != nil {
		return nil, err
	}
	if k.s.Policy == nil || k.s.Policy.UUID != r.Pool {
		return nil, elsewhere(k.Bases, k.s, r)
	}
	if r.State == vault.Applying {
		for i := range r.Steps {
			if err := k.settle(ctx, &r.Steps[i]); err != nil {
				return nil, err
			}
		}
	}
	if err := nothing(r); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(InForce(r), func(s vault.BaseStep) bool { return takesName(&s) }) {
		lock, err := k.alone(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	// From now on the receipt says that it may be half taken back; again, Undo goes on.
	r.State = vault.Undoing
	if err := k.receipts.PutBase(r); err != nil {
		return nil, err
	}
	if err := k.all(ctx); err != nil {
		return r, err
	}
	now := k.Now().UTC()
	if r.State = vault.Committed; len(InForce(r)) == 0 {
		r.State, r.Undone = vault.Undone, &now
	}
	if err := k.receipts.PutBase(r); err != nil {
		return r, fmt.Errorf("it is taken back, and %w: %w", ErrReceiptOpen, err)
	}
	return r, nil
}

// InForce gives the steps of an act that are done and not taken back, without those that are never taken back: what
// those left takes nothing from anybody, or can only be made anew.
func InForce(r *vault.BaseReceipt) (steps []vault.BaseStep) {
	for _, s := range r.Steps {
		if s.Done && !s.Undone && !stays(r, &s) {
			steps = append(steps, s)
		}
	}
	return steps
}

// nothing is ErrNothing for an act that did something, and nothing that is ever taken back.
func nothing(r *vault.BaseReceipt) error {
	gone, done := "", false
	for i := range r.Steps {
		s := &r.Steps[i]
		done = done || s.Done
		if s.Done && s.What == vault.BasePurge && gone == "" {
			gone = s.Name
		}
	}
	switch {
	case len(InForce(r)) > 0 || r.State == vault.Undoing:
		return nil
	case gone != "":
		return fmt.Errorf("the act %s %w: %s was removed for good", r.ID, ErrNothing, gone)
	case done && r.State == vault.Committed:
		return fmt.Errorf("the act %s %w: what it left takes nothing from anybody, or can be made anew", r.ID, ErrNothing)
	}
	return nil
}

// stays tells whether a step is never taken back. What an act brought back that it had set aside itself is none of its
// doing.
func stays(r *vault.BaseReceipt, s *vault.BaseStep) bool {
	switch s.What {
	case vault.BasePolicy, vault.BaseRecord, vault.BaseForget, vault.BasePurge:
		return true
	case vault.BaseRestore:
		return r.Act == "quarantine"
	}
	return false
}

// all takes the steps back, the last one first, and times after all else: a base that keeps its name must not look old.
func (k *undoing) all(ctx context.Context) error {
	for _, touches := range []bool{false, true} {
		for i := range slices.Backward(k.r.Steps) {
			s := &k.r.Steps[i]
			if !s.Done || s.Undone || stays(k.r, s) || touches != (s.What == vault.BaseTouch) {
				continue
			}
			why, err := k.back(ctx, s)
			if err != nil && (stopped(ctx, err) || errors.Is(err, ErrUnfinished)) {
				s.Why = err.Error()
				return errors.Join(err, k.receipts.PutBase(k.r))
			}
			s.Undone, s.Why = err == nil, why
			if err != nil {
				s.Why = err.Error()
			}
		}
	}
	return nil
}

// keptName tells whether an act gave a file a name that it keeps.
func (k *undoing) keptName(inode uint64) bool {
	return slices.ContainsFunc(k.r.Steps, func(s vault.BaseStep) bool {
		return (s.What == vault.BaseRestore || s.What == vault.BaseAdopt) && s.Inode == inode && s.Done && !s.Undone
	})
}

// back takes one step back. why says what was found where there was nothing to be done.
func (k *undoing) back(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	switch s.What {
	case vault.BaseShield:
		return k.shieldBack(ctx, s)
	case vault.BaseUnshield:
		return "", k.shieldAgain(ctx, s)
	case vault.BaseTouch:
		return k.touchBack(ctx, s)
	case vault.BaseRestore, vault.BaseAdopt:
		return k.nameBack(ctx, s)
	case vault.BaseQuarantine:
		return k.heldBack(ctx, s)
	case vault.BasePin:
		if k.r.Act == "retire" {
			if err := k.speaks(ctx, s); err != nil {
				return "", err
			}
		}
		return k.pinBack(ctx, s, pool.PinGoneName(s.ID))
	case vault.BaseUnpin:
		return k.pinBack(ctx, s, pool.PinName(s.ID))
	case vault.BaseMember:
		return k.memberBack(ctx, s)
	case vault.BaseRetire:
		return k.retireBack(ctx, s)
	case vault.BaseUnretire:
		return k.unretireBack(ctx, s)
	}
	return "", fmt.Errorf("%s cannot be taken back", s.What)
}

func (k *undoing) shieldBack(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	e, why, err := there(s)
	if why != "" || err != nil {
		return why, err
	}
	_, name, ok := pool.ParseShieldName(filepath.Base(s.At()))
	if !ok {
		return "", fmt.Errorf("%s is no shield", s.At())
	}
	d := newDone(k.Bases, k.s)
	return "", k.unshield(ctx, &pool.Shield{Name: name, Path: s.At(), ID: e.ID, SizeBytes: e.SizeBytes, Links: e.Links}, d,
		"undo of "+k.r.ID)
}

// shieldAgain gives a base its second name again.
func (k *undoing) shieldAgain(ctx context.Context, s *vault.BaseStep) error {
	_, name, ok := pool.ParseShieldName(filepath.Base(s.At()))
	if !ok {
		return fmt.Errorf("%s is no shield", s.At())
	}
	again := *s
	again.What = vault.BaseShield
	return k.shield(ctx, &again, newDone(k.Bases, k.s), "undo of "+k.r.ID+" for "+name)
}

func (k *undoing) touchBack(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	e, why, err := there(s)
	switch {
	case why == goneAlready: // this very undo took the name of what was restored, as a rule
		return "it has not that name any more, and keeps its new time", nil
	case why != "" || err != nil:
		return why, err
	case s.After == nil || !e.ModTime.Equal(*s.After) || s.Before == nil:
		return "it was changed or touched again since", nil
	case k.keptName(s.Inode):
		return "", errors.New("it keeps its name, and would look old")
	}
	// With its old time, and without the shield that is taken back too, the next cleaner would remove it for good.
	switch err := k.unneeded(ctx, s.At(), e.ID); {
	case errors.Is(err, ErrNeeded):
		return "it keeps its new time: it is needed, or may be, and a cleaner removes what looks old", nil
	case err != nil:
		return "", err
	}
	if err := k.step(ctx, "touch "+s.Name); err != nil {
		return "", err
	}
	return "", k.Links.Touch(e.ID, s.At(), *s.Before)
}

// unneeded refuses to take the name of a base away that somebody needs, or may.
func (k *undoing) unneeded(ctx context.Context, path string, id diskio.ID) error {
	if k.u.Needed != nil && k.u.Needed(path) {
		return nil
	}
	if k.census == nil {
		c, err := k.u.Census(ctx)
		if err != nil {
			return err
		}
		k.census = c
	}
	for i := range k.census.All {
		b := &k.census.All[i]
		if b.File != id {
			continue
		}
		if len(b.Uses) > 0 {
			return fmt.Errorf("%s %w: %s", path, ErrNeeded, needWord(k.census, b))
		}
	}
	if !k.census.Complete() {
		return fmt.Errorf("%s %w: %s that may need it", path, ErrNeeded, notSeen(len(k.census.Gaps)))
	}
	return nil
}

// heldBack brings a base back that was set aside. One that only its shield kept is kept by that again, or has its name if
// it is needed, or may be.
func (k *undoing) heldBack(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	h, err := heldFor(k.s, s.ID, 0)
	if err != nil {
		return "", err
	}
	if h == nil {
		return k.heldGone(ctx, s)
	}
	name := filepath.Base(s.At())
	if byShield(s) {
		switch err := k.unneeded(ctx, h.Path, h.File); {
		case err == nil:
			return "its shield keeps it, as before", k.letGo(ctx, h, "undo of "+k.r.ID)
		case !errors.Is(err, ErrNeeded):
			return "", err
		}
		name, why = h.Name, "it has its name again: it is needed, or may be"
	}
	return why, k.bringBack(ctx, h, name, "undo of "+k.r.ID, newDone(k.Bases, k.s))
}

// heldGone is for a base that is not in quarantine any more: somebody brought it back, or removed it.
func (k *undoing) heldGone(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	if e, err := diskio.LookEntry(s.At()); err == nil && e.Ino == s.Inode {
		return "it has its name already", nil
	}
	switch gone, err := k.purged(ctx, s); {
	case err != nil:
		return "", err
	case gone:
		return "it was removed for good since", nil
	}
	switch kept, err := k.shielded(ctx, s.Inode); {
	case err != nil:
		return "", fmt.Errorf("whether its shield keeps it: %w", err)
	case kept:
		return "", errors.New("it is not in quarantine any more, and has not its name: shisa base restore gives it that from its shield")
	}
	return "it is not in quarantine any more, and has neither its name nor a shield", nil
}

// pinBack gives the document of a pin its other name: that of one which counts, or of one that was taken back.
func (k *undoing) pinBack(ctx context.Context, s *vault.BaseStep, name string) (why string, err error) {
	if !pool.IsID(s.ID) {
		return "", fmt.Errorf("%q is no id of a pin", s.ID)
	}
	if _, err := diskio.LookEntry(s.At()); errors.Is(err, fs.ErrNotExist) {
		return goneAlready, nil
	}
	if err := k.step(ctx, "rename the pin of "+s.Name); err != nil {
		return "", err
	}
	to := k.path(pool.Pins, name)
	if err := k.renamePin(s.At(), to); err != nil {
		return "", err
	}
	act := "unpin"
	if s.What == vault.BaseUnpin {
		act = "pin"
	}
	return "", k.note(ctx, act, s.Name, s.Inode, to, "undo of "+k.r.ID)
}
