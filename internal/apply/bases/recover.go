// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// Recover brings acts to their end that came to none, by where the files are and not by what was said of them: what
// has its new name was done, what has its old one was not, what has both keeps the one under which machines find it,
// and what was claimed goes back into quarantine. Then whatever is needed and in quarantine is brought back. It can be
// done again at any time. The error is ErrBusy while another program is at work.
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
	for i := range s.Intents {
		if err := k.settleIntent(ctx, &s.Intents[i], d); err != nil {
			if stopped(ctx, err) {
				return d, err
			}
			d.Leave(s.Intents[i].Name, err)
		}
	}
	if err := k.strays(ctx, d); err != nil {
		return d, err
	}
	return d, k.needed(ctx, by, d)
}

// names are where a base may be that an act was about.
type places struct {
	id                   diskio.ID
	name, quar, claim    string
	atName, atQ, atClaim bool
}

// where finds a base by its inode. The device is that of the directory that the names lie in.
func (k *keeper) where(i *pool.Intent) (*places, error) {
	name := i.Name
	if i.Act == pool.ActRestore && pool.IsName(i.To) {
		name = i.To // it may have been meant to come back under another name
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
	text := ""
	switch {
	case p.atClaim && p.atName, p.atClaim && p.atQ:
		// Somebody brought it back, or the file system renames in two steps.
		text, err = "the claim was taken away: the base has another name", k.drop(ctx, p.id, p.claim, i.Name)
	case p.atClaim:
		if err = k.step(ctx, "unclaim "+i.Name); err == nil {
			text = "it was not removed, and is in quarantine again"
			_, err = k.move(p.id, p.claim, p.quar)
		}
	case p.atName && p.atQ:
		text, err = "it has its name in the directory of the bases, and lost that in quarantine", k.drop(ctx, p.id, p.quar, i.Name)
	case p.atName && i.Act == pool.ActRestore:
		text = "it was brought back"
	case p.atName:
		text = "nothing had been done: it has its name"
	case p.atQ && i.Act == pool.ActRestore:
		// Bringing back is what was wanted, and takes nothing from anybody.
		text, err = "it was brought back", k.back(ctx, held(), p.name)
		if errors.Is(err, ErrThere) {
			text, err = "it is in quarantine: "+err.Error(), nil
		}
	case p.atQ && i.Act == pool.ActPurge:
		text = "it was not removed, and is in quarantine"
	case p.atQ:
		text = "it was set aside"
	case i.Act == pool.ActPurge:
		text = "it was removed for good"
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
	if err := k.note(ctx, "recover", i.Name, i.Inode, p.name, i.Act+" of "+i.ID+": "+text); err != nil {
		return err
	}
	return k.ended(ctx, i)
}

// drop takes a name from a file that has another one.
func (k *keeper) drop(ctx context.Context, id diskio.ID, path, name string) error {
	if err := k.step(ctx, "drop "+name); err != nil {
		return err
	}
	return k.Links.Unlink(id, path)
}

// strays finds what no intent tells of: a base with a name and one in quarantine, and one that was claimed.
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
			what = "it was claimed, and is in quarantine again"
		default:
			continue
		}
		d.Recovered = append(d.Recovered, fmt.Sprintf("%s (%s): %s", h.Name, h.ID, what))
		if err := k.note(ctx, "recover", h.Name, h.File.Ino, h.Path, what); err != nil {
			return err
		}
	}
	return nil
}

// needed brings back whatever is needed and in quarantine.
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
			err = k.bringBack(ctx, h, h.Name, "it is needed: "+now.Against(b), d)
		}
		if err != nil {
			if stopped(ctx, err) {
				return err
			}
			d.Leave(b.Name, err)
		}
	}
	return nil
}
