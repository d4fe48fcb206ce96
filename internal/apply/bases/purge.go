// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// PurgeOptions say that a person wants bases removed for good.
type PurgeOptions struct {
	// Approve is the digest of the plan that the person read.
	Approve string
	// Allowed: the configuration of this host allows it. The pool has to allow it as well.
	Allowed bool
	// By is the person.
	By string
}

// Purge removes bases for good of which a plan says that they may be. Each is claimed first: it is renamed out of the
// quarantine, so that it is no more removed once somebody brought it back, and not brought back half removed. Then
// everything is decided once more, and only then do its shield and the claim lose their names. What was not removed is
// told by Left and is in quarantine again.
//
// The errors are those of Quarantine, ErrApproval and ErrPurgeOff.
func Purge(ctx context.Context, p *judge.Plan, g PurgeOptions, by Decision, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("purge")
	switch {
	case !g.Allowed:
		return nil, fmt.Errorf("%w by the configuration of this host", ErrPurgeOff)
	case g.Approve != p.SHA256:
		return nil, fmt.Errorf("plan %s %w: %.64q", p.SHA256, ErrApproval, g.Approve)
	}
	s, lock, err := k.ready(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if !s.Policy.AllowPurge {
		return nil, fmt.Errorf("%w by the pool: allow_purge in %s is false", ErrPurgeOff, k.path(pool.File))
	}
	d = newDone(k.Bases, s)
	wanted := p.With(judge.MayPurge)
	if len(wanted) == 0 {
		return d, nil
	}
	var steps []vault.BaseStep
	for _, b := range wanted {
		steps = append(steps, purgeStep(b.ID, b.Name, b.Inode, k.path(pool.Quarantine, pool.HeldName(b.ID, b.Name))))
	}
	if err := k.will(steps...); err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, d, err) }()
	now, _, _, err := k.decide(ctx, by, judge.Options{})
	if err != nil {
		return nil, err
	}
	all, err := k.claimAll(ctx, s, now, wanted, d)
	if err != nil {
		return d, errors.Join(err, k.unclaimAll(ctx, all, err.Error()))
	}
	return d, k.removeAll(ctx, all, by, fmt.Sprintf("plan %s, approved by %s", p.SHA256, g.By), d)
}

func purgeStep(id, name string, inode uint64, path string) vault.BaseStep {
	s := stepAt(vault.BasePurge, name, path, inode)
	s.ID = id
	return s
}

// claimed is a base that is being removed for good.
type claimed struct {
	pool.Held
	from   string
	intent *pool.Intent
}

// claimAll claims those of the wanted bases that may still be removed.
func (k *keeper) claimAll(
	ctx context.Context, s *pool.State, now *judge.Plan, wanted []*judge.Decided, d *pool.Done,
) (all []*claimed, err error) {
	for _, w := range wanted {
		b := now.Find(w)
		h, err := heldFor(s, w.ID, 0)
		switch {
		case err != nil:
			d.Leave(w.Name, err)
			continue
		case b == nil || h == nil || h.File.Ino != b.Inode:
			d.Leave(w.Name, errors.New("it is not in quarantine any more under the id of the plan"))
			continue
		case b.Verdict != judge.MayPurge:
			d.Leave(w.Name, errors.New(now.Against(b)))
			continue
		}
		a, err := k.claim(ctx, h)
		if err != nil {
			if stopped(ctx, err) || errors.Is(err, ErrUnfinished) {
				return all, err
			}
			d.Leave(w.Name, err)
			continue
		}
		all = append(all, a)
	}
	return all, nil
}

// claim renames a base from quarantine to where nobody brings it back from but Recover.
func (k *keeper) claim(ctx context.Context, h *pool.Held) (*claimed, error) {
	ctx, err := toItsEnd(ctx)
	if err != nil {
		return nil, err
	}
	a := &claimed{Held: *h, from: h.Path, intent: &pool.Intent{Act: pool.ActPurge, ID: h.ID, Name: h.Name, Inode: h.File.Ino,
		SizeBytes: h.SizeBytes, From: pool.Quarantine + "/" + pool.HeldName(h.ID, h.Name)}}
	a.Path = k.path(pool.Purge, pool.HeldName(h.ID, h.Name))
	if err := k.intend(ctx, a.intent); err != nil {
		return nil, err
	}
	if err := k.step(ctx, "claim "+h.Name); err != nil {
		return nil, err
	}
	moved, err := k.move(h.File, a.from, a.Path)
	switch {
	case err != nil && !moved:
		return nil, errors.Join(err, k.ended(ctx, a.intent)) // it was brought back
	case err != nil:
		return nil, fmt.Errorf("claim of %s %w: %w", h.Name, ErrUnfinished, err)
	}
	return a, nil
}

// unclaim puts a base back into quarantine.
func (k *keeper) unclaim(ctx context.Context, a *claimed, why string) error {
	if err := k.step(ctx, "unclaim "+a.Name); err != nil {
		return err
	}
	if _, err := k.move(a.File, a.Path, a.from); err != nil {
		return fmt.Errorf("put %s back into quarantine: %w: %w", a.Name, ErrUnfinished, err)
	}
	i := *a.intent
	if err := k.reshield(ctx, a.File, a.from, a.Name, why); err != nil {
		return err
	}
	if err := k.note(ctx, "unclaim", a.Name, a.File.Ino, a.from, why); err != nil {
		return err
	}
	return k.ended(ctx, &i)
}

// unclaimAll puts the bases back that are claimed still, also where who began it wants it to end.
func (k *keeper) unclaimAll(ctx context.Context, all []*claimed, why string) (err error) {
	ctx = context.WithoutCancel(ctx)
	for _, a := range all {
		switch e, look := diskio.LookEntry(a.Path); {
		case look == nil && e.ID == a.File:
			err = errors.Join(err, k.unclaim(ctx, a, why))
		case look != nil && !errors.Is(look, fs.ErrNotExist) && !errors.Is(look, diskio.ErrSpecial): // it may be there
			err = errors.Join(err, fmt.Errorf("putting %s back into quarantine %w: %w", a.Name, ErrUnfinished, look))
		}
	}
	return err
}

// reshield gives a base in quarantine its shield again, where its removal had begun with that.
func (k *keeper) reshield(ctx context.Context, id diskio.ID, path, name, why string) error {
	to := k.path(pool.Shields, pool.ShieldName(id.Ino, name))
	if e, err := diskio.LookEntry(to); err == nil && e.ID == id {
		return nil
	}
	err := k.step(ctx, "shield again "+name)
	if err == nil {
		err = k.Disk.MakeDir(k.path(pool.Shields), 0o755)
	}
	if err == nil {
		err = k.Links.Link(id, path, to)
	}
	if err != nil {
		return fmt.Errorf("its shield: %w", err)
	}
	return k.note(ctx, "shield", name, id.Ino, to, why)
}

// removeAll decides once more now that nobody can bring the bases back any more, and removes them. The decision needs
// what was published and seen until now; it is the last one.
func (k *keeper) removeAll(ctx context.Context, all []*claimed, by Decision, why string, d *pool.Done) error {
	if len(all) == 0 {
		return nil
	}
	mine := make([]string, 0, len(all))
	for _, a := range all {
		mine = append(mine, a.ID)
	}
	now, _, _, err := k.decide(ctx, by, judge.Options{Mine: mine, Acting: true})
	if err != nil {
		return errors.Join(err, k.unclaimAll(ctx, all, err.Error()))
	}
	back := context.WithoutCancel(ctx) // one that is put back is that to the end
	for n, a := range all {
		if e := ctx.Err(); e != nil {
			return errors.Join(err, e, k.unclaimAll(ctx, all[n:], e.Error()))
		}
		i := judgedClaim(now, a)
		if i == nil || i.Verdict != judge.MayPurge {
			against := "it is not there any more"
			if i != nil {
				against = now.Against(i)
			}
			d.Leave(a.Name, errors.New(against))
			err = errors.Join(err, k.unclaim(back, a, against))
			continue
		}
		s, e := k.lastLook(ctx, a)
		if e != nil && !stopped(ctx, e) {
			d.Leave(a.Name, e)
			err = errors.Join(err, k.unclaim(back, a, e.Error()))
			continue
		}
		if e == nil {
			e = k.remove(ctx, a, s, why)
		}
		k.did(purgeStep(a.ID, a.Name, a.File.Ino, a.from), e)
		if e != nil && stopped(ctx, e) {
			return errors.Join(e, k.unclaimAll(ctx, all[n:], e.Error()))
		}
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		d.Purged = append(d.Purged, pool.HeldName(a.ID, a.Name))
	}
	return err
}

func judgedClaim(p *judge.Plan, a *claimed) *judge.Decided {
	for i := range p.All {
		if b := &p.All[i]; b.ID == a.ID && b.State == refs.Claimed && b.Inode == a.File.Ino {
			return b
		}
	}
	return nil
}

// remove takes all names from a base that was claimed: those of its shields first, so that what is left after a crash
// in between is the claim, which goes back into quarantine. Only then is the space free: a file lives as long as any
// of its names.
func (k *keeper) remove(ctx context.Context, a *claimed, s *pool.State, why string) error {
	ctx, err := toItsEnd(ctx)
	if err != nil {
		return err
	}
	for _, h := range s.Shields {
		if h.ID != a.File {
			continue
		}
		if err := k.step(ctx, "unshield "+a.Name); err != nil {
			return err
		}
		if err := k.unlink(a.File, h.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, k.unclaim(ctx, a, err.Error()))
		}
	}
	if err := k.step(ctx, "remove "+a.Name); err != nil {
		return err
	}
	if err := k.unlink(a.File, a.Path); err != nil {
		return errors.Join(err, k.unclaim(ctx, a, err.Error()))
	}
	return k.conclude(ctx, a.intent, a.Path, why)
}

// lastLook gives the state of the pool, with what speaks against a removal by that alone.
func (k *keeper) lastLook(ctx context.Context, a *claimed) (*pool.State, error) {
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err == nil {
		err = errors.Join(wantedNow(a, s), k.allNames(a, s))
	}
	return s, err
}

// wantedNow tells whether somebody said since the last decision that a base is wanted, or may be: the removal of those before it
// takes its time, and who pins one that was claimed is told that it is pinned, and who has a node join that nothing is removed
// until that has spoken.
func wantedNow(a *claimed, s *pool.State) error {
	was := map[string]bool{a.Name: true} // and by its shields
	for i := range s.Shields {
		was[s.Shields[i].Name] = was[s.Shields[i].Name] || s.Shields[i].ID == a.File
	}
	for i := range s.Pins {
		if p := &s.Pins[i]; p.Holds(a.Name, a.File.Ino, s.Clock) || was[p.Name] && p.Inode == 0 && p.Holds(p.Name, 0, s.Clock) {
			return fmt.Errorf("it was pinned meanwhile: %s", p.Reason)
		}
	}
	if s.Policy == nil || !s.Policy.AllowPurge {
		return errors.Join(errors.New("the pool does not allow it any more"), errors.Join(s.Unread...))
	}
	for _, n := range s.Nodes() {
		switch {
		case n.Away():
			continue
		case n.Report == nil:
			return fmt.Errorf("node %s joined meanwhile, and has never said what it needs", n.Name)
		}
		for i := range n.Report.Uses {
			// A use of the name by another inode is one of a file that was made anew.
			if u := &n.Report.Uses[i]; u.Inode == a.File.Ino || was[u.Name] && u.Inode == 0 {
				return fmt.Errorf("node %s said meanwhile that it needs it: %s", n.Name, u.Holder)
			}
		}
	}
	return errors.Join(s.Unread...)
}

// allNames tells whether the names that are known are all that a base has: another one is somebody's, who may rest on
// it or look for the space.
func (k *keeper) allNames(a *claimed, s *pool.State) error {
	e, err := diskio.LookEntry(a.Path)
	if err != nil {
		return err
	}
	known := uint64(1)
	for _, h := range s.Shields {
		if h.ID == a.File {
			known++
		}
	}
	if e.ID != a.File || e.Links != known {
		return fmt.Errorf("%s has %s, of which %s known", a.Path, finding.Count(int64(e.Links), "name", "names"),
			finding.Count(int64(known), "is", "are"))
	}
	return nil
}
