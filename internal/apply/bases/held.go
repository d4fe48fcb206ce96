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
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// heldFor gives the base in quarantine that a name or an id means, nil if there is none.
func heldFor(s *pool.State, name string, inode uint64) (*pool.Held, error) {
	var found []*pool.Held
	for i := range s.Held {
		h := &s.Held[i]
		if h.ID == name || h.Name == name && (inode == 0 || h.File.Ino == inode) {
			found = append(found, h)
		}
	}
	switch {
	case len(found) == 0:
		return nil, nil
	case len(found) == 1:
		return found[0], nil
	case inode == 0 && onlyOne(s, name) == nil: // they hold the same
		return found[0], nil
	}
	var all []string
	for _, h := range found {
		all = append(all, fmt.Sprintf("%s, since %s, inode %d", h.ID, h.Since.UTC().Format("2006-01-02 15:04 UTC"), h.File.Ino))
	}
	return nil, fmt.Errorf("%s: %w in quarantine: %s", name, ErrSeveral, strings.Join(all, "; "))
}

// onlyOne is ErrSeveral where several files had a name, and are not known to hold the same.
func onlyOne(s *pool.State, name string) error {
	all := s.Formers(name)
	if s.OneContent(all) {
		return nil
	}
	text := make([]string, len(all))
	for i := range all {
		text[i] = all[i].Text
	}
	return fmt.Errorf("%s: %w: %s", name, ErrSeveral, strings.Join(text, "; "))
}

// bringBack renames a base from quarantine to where it was. It is touched before: a cleaner removes at once what looks
// old.
func (k *keeper) bringBack(ctx context.Context, h *pool.Held, as, why string, d *pool.Done) error {
	ctx, err := toItsEnd(ctx)
	if err != nil {
		return err
	}
	to := filepath.Join(k.Bases, as)
	step := stepAt(vault.BaseRestore, h.Name, to, h.File.Ino)
	step.ID = h.ID
	if err := k.will(step); err != nil {
		return err
	}
	switch e, err := diskio.LookEntry(to); {
	case err == nil && e.ID != h.File, errors.Is(err, diskio.ErrSpecial):
		err = fmt.Errorf("%s %w", to, ErrThere)
		k.did(step, err)
		return err
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for _, dir := range []string{pool.Journal, pool.Audit} {
		if err := k.Disk.MakeDir(k.path(dir), 0o755); err != nil {
			return err
		}
	}
	i := &pool.Intent{Act: pool.ActRestore, ID: h.ID, Name: h.Name, Inode: h.File.Ino, SizeBytes: h.SizeBytes,
		From: filepath.Base(filepath.Dir(h.Path)) + "/" + filepath.Base(h.Path), To: as}
	if err := k.intend(ctx, i); err != nil {
		return err
	}
	if err := k.back(ctx, h, to); err != nil {
		k.did(step, err)
		if stopped(ctx, err) || errors.Is(err, ErrUnfinished) {
			return err
		}
		return errors.Join(err, k.ended(ctx, i))
	}
	k.did(step, nil)
	d.Restored = append(d.Restored, as)
	return k.conclude(ctx, i, to, why)
}

// back gives a base in quarantine its name. The file may be there already: somebody else was faster, or a crash left
// it with both names.
func (k *keeper) back(ctx context.Context, h *pool.Held, to string) error {
	if err := k.step(ctx, "touch "+h.Name); err != nil {
		return err
	}
	err := k.Links.Touch(h.File, h.Path, time.Time{})
	e, look := diskio.LookEntry(to)
	there := look == nil && e.ID == h.File
	if err != nil && !there {
		return err
	}
	if err := k.step(ctx, "rename "+h.Name); err != nil {
		return err
	}
	if there {
		err := k.unlink(h.File, h.Path)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	moved, err := k.move(h.File, h.Path, to)
	switch e, look := diskio.LookEntry(to); {
	case err == nil, look == nil && e.ID == h.File && !moved:
		return nil
	case look == nil && e.ID != h.File:
		return fmt.Errorf("%s %w", to, ErrThere)
	case moved:
		return fmt.Errorf("restore of %s %w: %w", h.Name, ErrUnfinished, err)
	}
	return err
}

// heldNeeded brings back what is missing and in quarantine.
func (k *keeper) heldNeeded(ctx context.Context, c *refs.Census, s *pool.State, d *pool.Done) error {
	for i := range c.All {
		b := &c.All[i]
		if b.State != refs.Missing || b.Held == "" || !c.Here(b) {
			continue
		}
		h, err := heldFor(s, b.Held, 0)
		if err == nil && h == nil {
			continue // it was brought back meanwhile
		}
		if err == nil {
			err = onlyOne(s, b.Name)
		}
		if err == nil {
			err = k.bringBack(ctx, h, h.Name, "it was missing, and "+needWord(c, b), d)
		}
		if err != nil {
			if stopped(ctx, err) || errors.Is(err, ErrUnfinished) {
				return err
			}
			d.Leave(b.Name, err)
		}
	}
	return nil
}

// heldInode is the base in quarantine that is a file, nil if that was not set aside.
func heldInode(s *pool.State, id diskio.ID) *pool.Held {
	i := slices.IndexFunc(s.Held, func(h pool.Held) bool { return h.File == id })
	if i < 0 {
		return nil
	}
	return &s.Held[i]
}
