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
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// Recover brings acts to their end that came to none, by where the files are and not by what was said of them: what
// has its new name was done, what has its old one was not, what has both keeps the one under which machines find it,
// and what was claimed goes back into quarantine. Then whatever is needed and in quarantine is brought back. It can be
// done again at any time. An audit that does not hold is noted in by a person's word alone: see Decision.NewAudits. The error is
// ErrBusy while another program is at work.
func Recover(ctx context.Context, by Decision, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("recover")
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	if err := k.known(ctx, s); err != nil {
		return nil, err
	}
	d = newDone(k.Bases, s)
	if s.Policy == nil {
		return d, errors.Join(s.Unread...) // nothing was ever begun here
	}
	k.pool = d.Pool
	lock, err := k.control()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	defer func() { err = k.finish(ctx, d, err) }()
	if s, err = pool.Read(ctx, k.Bases, k.Timeout); err != nil {
		return nil, err
	}
	for _, dir := range []string{pool.Journal, pool.Quarantine, pool.Purge, pool.Audit} {
		if err := k.Disk.MakeDir(k.path(dir), 0o755); err != nil {
			return d, err
		}
	}
	// That of this node first, in which the others are told.
	audits := slices.Clone(by.NewAudits)
	if i := slices.Index(audits, k.Node); i > 0 {
		audits[0], audits[i] = audits[i], audits[0]
	}
	for _, node := range audits {
		if err := k.newAudit(ctx, node, d); err != nil {
			return d, fmt.Errorf("begin another audit of %s: %w", node, err)
		}
	}
	for _, err := range s.Odd {
		d.Leave(pool.Dir, err)
	}
	for i := range s.Intents {
		if err := k.settleIntent(ctx, &s.Intents[i], d); err != nil {
			if stopped(ctx, err) {
				return d, err
			}
			d.Leave(s.Intents[i].Name, err)
		}
	}
	// What cannot be brought to its end keeps no base that is needed from coming back.
	strays := k.strays(ctx, d)
	if strays != nil && stopped(ctx, strays) {
		return d, strays
	}
	dropped := k.dropPartials(ctx, s, d)
	if dropped != nil && stopped(ctx, dropped) {
		return d, errors.Join(strays, dropped)
	}
	return d, errors.Join(strays, dropped, k.needed(ctx, by, d))
}

// names are where a base may be that an act was about.
type places struct {
	id                   diskio.ID
	name, quar, claim    string
	atName, atQ, atClaim bool
	// other is a file in quarantine under the id that the act was never about: it took the name just when that was
	// renamed, and the program ended before it had put it back.
	other diskio.ID
}

// where finds a base by its inode. The device is that of the directory that the names lie in.
func (k *keeper) where(i *pool.Intent) (*places, error) {
	name := i.Name
	switch {
	case i.Act == pool.ActRestore && pool.IsName(i.To):
		name = i.To // it may have been meant to come back under another name
	case i.Act != pool.ActRestore && pool.IsName(i.From):
		name = i.From // it may have come back under another name
	}
	p := &places{name: filepath.Join(k.Bases, name), quar: k.path(pool.Quarantine, pool.HeldName(i.ID, i.Name)),
		claim: k.path(pool.Purge, pool.HeldName(i.ID, i.Name))}
	for path, at := range map[string]*bool{p.name: &p.atName, p.quar: &p.atQ, p.claim: &p.atClaim} {
		e, err := diskio.LookEntry(path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, diskio.ErrSpecial):
		case err != nil:
			return nil, err
		case e.Ino == i.Inode:
			*at, p.id = true, e.ID
		case path == p.quar:
			p.other = e.ID
		}
	}
	return p, nil
}

// settleIntent brings one act to its end.
func (k *keeper) settleIntent(ctx context.Context, i *pool.Intent, d *pool.Done) error {
	p, err := k.where(i)
	if err != nil {
		return err
	}
	held := func() *pool.Held {
		return &pool.Held{ID: i.ID, Name: i.Name, Path: p.quar, File: p.id, SizeBytes: i.SizeBytes}
	}
	// The audit names what was done by its own act, whoever comes to note it.
	text, act, path := "", "recover", p.name
	if p.other != (diskio.ID{}) && pool.IsName(i.From) {
		if err := k.putBack(ctx, i, p, d); err != nil {
			return err
		}
	}
	kept := false
	if !p.atName && !p.atQ && !p.atClaim {
		if kept, err = k.shielded(ctx, i.Inode); err != nil {
			return fmt.Errorf("whether its shield keeps it: %w", err)
		}
	}
	switch {
	case p.atClaim && p.atName, p.atClaim && p.atQ:
		// Somebody brought it back, or the file system renames in two steps.
		text, err = "the claim was taken away: the base has another name", k.drop(ctx, p.id, p.claim, i.Name)
	case p.atClaim:
		if err = k.step(ctx, "unclaim "+i.Name); err == nil {
			text = "it was not removed, and is in quarantine again"
			_, err = k.move(p.id, p.claim, p.quar)
		}
		if err == nil {
			err = k.reshield(ctx, p.id, p.quar, i.Name, "it was not removed")
		}
	case p.atName && p.atQ:
		text, err = "it has its name in the directory of the bases, and lost that in quarantine", k.drop(ctx, p.id, p.quar, i.Name)
	case p.atName && i.Act == pool.ActRestore:
		text, act = "it was brought back", pool.ActRestore
	case p.atName:
		text = "nothing had been done: it has its name"
	case p.atQ && i.Act == pool.ActUndo && !pool.IsName(i.From):
		text, path = "its name in quarantine was not taken away: it is set aside", p.quar
	case p.atQ && (i.Act == pool.ActRestore || i.Act == pool.ActUndo):
		// Bringing back takes nothing from anybody: it is what was wanted, or the undo is gone on with by its command.
		text, act, err = "it was brought back", pool.ActRestore, k.back(ctx, held(), p.name)
		if errors.Is(err, ErrThere) {
			act = "recover"
			text, err = "it is in quarantine: "+err.Error(), nil
		}
	case p.atQ && i.Act == pool.ActPurge:
		text = "it was not removed, and is in quarantine"
	case p.atQ:
		text, act, path = "it was set aside", i.Noted(), p.quar
	case i.Act == pool.ActPurge && !kept:
		// The last name is taken away when nobody could bring it back any more: whoever did that, it is gone.
		text, act, path = "it was removed for good", pool.ActPurge, p.claim
	case i.Act == pool.ActUndo && kept:
		text, act = "its name was taken away, and its shield keeps it", i.Noted()
	case i.Act == pool.ActQuarantine && !pool.IsName(i.From) && kept:
		text, path = "nothing had been done: its shield keeps it", k.path(i.From)
	default:
		text = "it has neither of its names any more: its shield may have it"
	}
	if err != nil {
		return err
	}
	d.Recovered = append(d.Recovered, fmt.Sprintf("%s of %s (%s): %s", i.Act, i.Name, i.ID, text))
	if err := k.step(ctx, "note recover "+i.Name); err != nil {
		return err
	}
	why := i.Act + " of " + i.ID + ": " + text
	if act != "recover" {
		why += "; begun by " + i.Node + " on " + i.Time.UTC().Format("2006-01-02 15:04 UTC") + ", which did not come to note it"
	}
	if err := k.note(ctx, act, i.Name, i.Inode, path, why); err != nil {
		return err
	}
	return k.ended(ctx, i)
}

// putBack gives a file its name again that was moved into quarantine by mistake. Where a third has the name by now it
// stays there.
func (k *keeper) putBack(ctx context.Context, i *pool.Intent, p *places, d *pool.Done) error {
	if err := k.step(ctx, "put back "+i.Name); err != nil {
		return err
	}
	text := "a file that had taken the name of " + i.Name + " meanwhile has it again"
	moved, err := k.move(p.other, p.quar, p.name)
	switch _, look := diskio.LookEntry(p.name); {
	case err == nil:
	case moved || look != nil && !errors.Is(look, diskio.ErrSpecial):
		return err
	default:
		text = "a file that had taken the name of " + i.Name + " meanwhile is in quarantine as " + i.ID +
			": the name is another one's by now"
	}
	d.Recovered = append(d.Recovered, text)
	return k.note(ctx, "recover", i.Name, p.other.Ino, p.name, i.Act+" of "+i.ID+": "+text)
}

// shielded tells whether a file has a shield. The error is what could not be read that may be one.
func (k *keeper) shielded(ctx context.Context, inode uint64) (bool, error) {
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(s.Shields, func(h pool.Shield) bool { return h.ID.Ino == inode }) {
		return true, nil
	}
	return false, errors.Join(s.Unread...)
}

// drop takes a name from a file that has another one.
func (k *keeper) drop(ctx context.Context, id diskio.ID, path, name string) error {
	if err := k.step(ctx, "drop "+name); err != nil {
		return err
	}
	return k.unlink(id, path)
}

// strays finds what no intent tells of: a base with a name and one in quarantine, one that was claimed, and one in quarantine
// that has no shield.
func (k *keeper) strays(ctx context.Context, d *pool.Done) error {
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return err
	}
	for i := range s.Held {
		h := &s.Held[i]
		what := ""
		switch e, err := diskio.LookEntry(filepath.Join(k.Bases, h.Name)); {
		case err == nil && e.ID == h.File:
			what, err = "it has its name, and lost that in quarantine", k.drop(ctx, h.File, h.Path, h.Name)
			if err != nil {
				return err
			}
		case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, diskio.ErrSpecial):
			return err
		case h.Claimed:
			if err := k.step(ctx, "unclaim "+h.Name); err != nil {
				return err
			}
			if _, err := k.move(h.File, h.Path, k.path(pool.Quarantine, pool.HeldName(h.ID, h.Name))); err != nil {
				d.Leave(h.Name, err)
				continue
			}
			if err := k.reshield(ctx, h.File, k.path(pool.Quarantine, pool.HeldName(h.ID, h.Name)), h.Name, "it was not removed"); err != nil {
				return err
			}
			what = "it was claimed, and is in quarantine again"
		case slices.ContainsFunc(s.Shields, func(sh pool.Shield) bool { return sh.ID == h.File }):
			continue
		default:
			// A program that put it back there came to its end before the shield, or somebody took that away.
			if err := k.reshield(ctx, h.File, h.Path, h.Name, "it was in quarantine without one"); err != nil {
				if stopped(ctx, err) {
					return err
				}
				d.Leave(h.Name, err)
				continue
			}
			what = "it was in quarantine without a shield, and has one again"
		}
		d.Recovered = append(d.Recovered, fmt.Sprintf("%s (%s): %s", h.Name, h.ID, what))
		if err := k.note(ctx, "recover", h.Name, h.File.Ino, h.Path, what); err != nil {
			return err
		}
	}
	return nil
}

// needed brings back whatever is needed and in quarantine, and tells of what may be, and of what the pool keeps and could not
// be read: nobody knows what that would tell.
func (k *keeper) needed(ctx context.Context, by Decision, d *pool.Done) error {
	now, _, _, err := k.decide(ctx, by, judge.Options{})
	if err != nil {
		return err
	}
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return err
	}
	for _, b := range now.With(judge.RestoreNow) {
		h, err := heldFor(s, b.ID, 0)
		if b.ID == "" || h == nil && err == nil {
			continue // one that is missing: what has it is listed as itself
		}
		if err == nil {
			err = onlyOne(s, h.Name)
		}
		if err == nil {
			err = k.bringBack(ctx, h, h.Name, "it is needed: "+now.Against(b), d)
		}
		if err != nil {
			if stopped(ctx, err) {
				return err
			}
			d.Leave(b.Name, err)
		}
	}
	for _, err := range s.Unread {
		d.Unseen = append(d.Unseen, pool.Left{Name: pool.Dir, Why: err.Error()})
	}
	if why := unseen(now); why != nil {
		for _, b := range now.All {
			if b.ID != "" && b.Verdict != judge.RestoreNow {
				d.Unseen = append(d.Unseen, pool.Left{Name: pool.HeldName(b.ID, b.Name), Why: why.Error()})
			}
		}
	}
	return nil
}
