// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// lookAgain decides once more after bases were set aside, and brings those back that somebody began to use in between.
func (k *keeper) lookAgain(ctx context.Context, by Decision, all []*aside, d *pool.Done) error {
	if len(d.Quarantined) == 0 {
		return nil
	}
	var now *judge.Plan
	err := k.step(ctx, "look again")
	if err == nil {
		now, _, _, err = k.decide(ctx, by, judge.Options{Acting: true})
	}
	if err != nil {
		err = fmt.Errorf("look again after the bases were set aside: %w", err)
		return errors.Join(err, k.allBack(ctx, err.Error(), all, d))
	}
	if why := unseen(now); why != nil {
		d.Leave(pool.Dir, fmt.Errorf("when it was looked again not everything was seen: %w", why))
		return k.allBack(ctx, why.Error()+", which may need it", all, d)
	}
	// Whoever wants the act to end has what is known to be needed back before.
	ctx = context.WithoutCancel(ctx)
	needed := now.With(judge.RestoreNow)
	if len(needed) == 0 {
		return nil
	}
	s, unread, err := k.setAsideNow(ctx)
	if err != nil {
		return err
	}
	for _, b := range needed {
		for i := range s.Held {
			h := &s.Held[i]
			if h.ID != b.ID || !slices.Contains(d.Quarantined, pool.HeldName(h.ID, h.Name)) {
				continue // what was set aside before may be another file of that name
			}
			if err := k.bringBack(ctx, h, h.Name, "somebody began to use it: "+now.Against(b), d); err != nil {
				if stopped(ctx, err) || errors.Is(err, ErrUnfinished) {
					return errors.Join(err, unread)
				}
				d.Leave(h.Name, err)
			}
		}
	}
	return unread
}

// setAsideNow reads what is in quarantine. unread is ErrUnfinished where that could not be read as a whole: what is not seen
// there is not brought back.
func (k *keeper) setAsideNow(ctx context.Context) (s *pool.State, unread, err error) {
	if s, err = pool.Read(ctx, k.Bases, k.Timeout); err == nil && len(s.Unread) > 0 {
		unread = fmt.Errorf("bringing back what was set aside %w: %w", ErrUnfinished, errors.Join(s.Unread...))
	}
	return s, unread, err
}

// unseen is what a decision did not see, nil where it saw everything: it may need any base.
func unseen(p *judge.Plan) error {
	var all []string
	for _, b := range p.Blockers {
		if b.Rule == judge.Unreadable {
			all = append(all, strings.TrimPrefix(b.Path+": "+b.Why, ": "))
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return errors.New(all[0])
	}
	return fmt.Errorf("%s and %d more", all[0], len(all)-1)
}

// allBack brings all bases back that were set aside, also where who began it wants it to end: nobody knows whether somebody
// began to use them. Those that only their shields kept are kept by those again.
func (k *keeper) allBack(ctx context.Context, why string, all []*aside, d *pool.Done) error {
	if len(d.Quarantined) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	s, unread, err := k.setAsideNow(ctx)
	if err != nil {
		return err
	}
	for i := range s.Held {
		h := &s.Held[i]
		name := pool.HeldName(h.ID, h.Name)
		if !slices.Contains(d.Quarantined, name) {
			continue
		}
		kept := slices.ContainsFunc(all, func(a *aside) bool { return a.ID == h.ID && a.kept() })
		var e error
		if kept {
			e = k.letGo(ctx, h, why)
		} else {
			e = k.bringBack(ctx, h, h.Name, why, d)
		}
		if e != nil && !errors.Is(e, ErrUnfinished) {
			e = fmt.Errorf("bringing back %s %w: %w", h.Name, ErrUnfinished, e)
		}
		if err = errors.Join(err, e); e != nil || !kept {
			continue
		}
		k.didNot(h.ID, why)
		d.Quarantined = slices.DeleteFunc(d.Quarantined, func(n string) bool { return n == name })
		d.Leave(h.Name, errors.New(why))
	}
	return errors.Join(err, unread)
}

// didNot notes that a base is not set aside any more by the act that did it.
func (k *keeper) didNot(id, why string) {
	if k.receipt == nil {
		return
	}
	for i := range k.receipt.Steps {
		if s := &k.receipt.Steps[i]; s.What == vault.BaseQuarantine && s.ID == id {
			s.Done, s.Why = false, why
		}
	}
}

// letGo takes its name in quarantine from a base that its shield keeps as well. That shield is looked at right before, and
// the file is open until it was looked at once more: nobody can take the last of it away. The error is ErrLast where
// it has no shield, and keeps its name.
func (k *keeper) letGo(ctx context.Context, h *pool.Held, why string) error {
	ctx, err := toItsEnd(ctx)
	if err != nil {
		return err
	}
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return err
	}
	n := slices.IndexFunc(s.Shields, func(a pool.Shield) bool { return a.ID == h.File })
	if n < 0 {
		return fmt.Errorf("%s %w", h.Path, ErrLast)
	}
	shield := &s.Shields[n]
	i := &pool.Intent{Act: pool.ActUndo, ID: h.ID, Name: h.Name, Inode: h.File.Ino, SizeBytes: h.SizeBytes,
		From: pool.Quarantine + "/" + pool.HeldName(h.ID, h.Name)}
	if err := k.intend(ctx, i); err != nil {
		return err
	}
	f, err := diskio.Open(h.Path)
	if err != nil {
		return errors.Join(err, k.ended(ctx, i))
	}
	defer f.Close()
	if err := k.step(ctx, "take away "+h.Name); err != nil {
		return err
	}
	if err := keeps(shield); err != nil {
		return errors.Join(err, k.ended(ctx, i))
	}
	if err := k.unlink(h.File, h.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s of %s %w: %w", i.Act, h.Name, ErrUnfinished, err)
	}
	if err := keeps(shield); err != nil {
		return errors.Join(err, k.copyBack(ctx, f, shield), k.ended(ctx, i))
	}
	return k.conclude(ctx, i, h.Path, why+"; its shield keeps it")
}

// keeps is ErrLast unless a shield is there and the file that it was.
func keeps(h *pool.Shield) error {
	if e, err := diskio.LookEntry(h.Path); err != nil || e.ID != h.ID {
		return errors.Join(fmt.Errorf("its shield is not there any more, and its name in quarantine %w", ErrLast), err)
	}
	return nil
}
