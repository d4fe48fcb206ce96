// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// takesName tells whether a step is taken back by taking the name of a base away.
func takesName(s *vault.BaseStep) bool {
	return s.What == vault.BaseRestore || s.What == vault.BaseAdopt || byShield(s)
}

// byShield tells whether a step set a base aside that only its shield kept.
func byShield(s *vault.BaseStep) bool {
	return s.What == vault.BaseQuarantine && strings.HasSuffix(filepath.Dir(s.At()), "/"+pool.Dir+"/"+pool.Shields)
}

// alone locks the pool as for any act that takes a name away, and reads its state anew.
func (k *undoing) alone(ctx context.Context) (lock io.Closer, err error) {
	if lock, err = k.control(); err != nil {
		return nil, err
	}
	if k.s, err = pool.Read(ctx, k.Bases, k.Timeout); err == nil && len(k.s.Intents) > 0 {
		a := &k.s.Intents[0]
		err = fmt.Errorf("%s of %s on %s %w", a.Act, a.Name, a.Node, ErrUnfinished)
	}
	if err == nil {
		err = errors.Join(k.s.Odd...)
	}
	for _, dir := range []string{pool.Journal, pool.Quarantine, pool.Shields, pool.Audit} {
		if err == nil {
			err = k.Disk.MakeDir(k.path(dir), 0o755)
		}
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// nameBack takes the name of a base away again. One that came from quarantine is there again, under an id that no other
// ever had; any other is kept by its shield, and gets one if it has none.
//
// The name is another program's too: a base may be made anew under it at any moment. So it is renamed into the quarantine
// in any case, which gives a file that was taken by mistake its name again, and loses its name there only then. What a
// power cut leaves is a base in quarantine, and Recover brings that back.
func (k *undoing) nameBack(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	e, why, err := there(s)
	if why != "" || err != nil {
		return why, err
	}
	at := s.At()
	if err := k.unneeded(ctx, at, e.ID); err != nil {
		return "", err
	}
	if ctx, err = toItsEnd(ctx); err != nil {
		return "", err
	}
	name := filepath.Base(at)
	if s.What == vault.BaseRestore && s.Name != "" {
		name = s.Name // of a base that came back under another name
	}
	h := pool.Shield{Name: name, ID: e.ID, Path: k.path(pool.Shields, pool.ShieldName(e.Ino, name))}
	for _, one := range k.s.Shields {
		if one.ID == e.ID {
			h = one
		}
	}
	if err := k.Links.Link(e.ID, at, h.Path); err != nil {
		return "", fmt.Errorf("its shield: %w", err)
	}
	held := s.ID != ""
	i, to, err := k.takeAway(ctx, &e, name, at, held)
	if err != nil {
		return "", err
	}
	if held {
		return "", k.conclude(ctx, i, to, "undo of "+k.r.ID)
	}
	// As long as it is open here, nobody can take the last of it away.
	f, err := diskio.Open(to)
	if err != nil {
		return "", fmt.Errorf("%s of %s %w: %w", i.Act, name, ErrUnfinished, err)
	}
	defer f.Close()
	if err := k.step(ctx, "take away "+name); err != nil {
		return "", err
	}
	if err := k.unlink(e.ID, to); err != nil {
		return "", fmt.Errorf("%s of %s %w: %w", i.Act, name, ErrUnfinished, err)
	}
	if now, err := diskio.LookEntry(h.Path); err != nil || now.ID != e.ID {
		return "", errors.Join(ErrLast, err, k.copyBack(ctx, f, &h), k.ended(ctx, i))
	}
	if err := k.step(ctx, "note undo "+name); err != nil {
		return "", err
	}
	err = k.note(ctx, pool.ActUndo, name, e.Ino, at, "undo of "+k.r.ID+"; its shield keeps it")
	return "", errors.Join(err, k.ended(ctx, i))
}

// takeAway renames a base into the quarantine: to stay there, or to lose that name too.
func (k *undoing) takeAway(ctx context.Context, e *diskio.Entry, name, at string, stays bool) (
	i *pool.Intent, to string, err error,
) {
	id, err := plan.NewID()
	if err != nil {
		return nil, "", err
	}
	if !pool.IsName(pool.HeldName(id, name)) {
		return nil, "", errors.New("its name is too long to get an id before it")
	}
	to = k.path(pool.Quarantine, pool.HeldName(id, name))
	i = &pool.Intent{Act: pool.ActUndo, ID: id, Name: name, Inode: e.Ino, SizeBytes: e.SizeBytes, From: filepath.Base(at),
		To: pool.Quarantine + "/" + filepath.Base(to)}
	if stays {
		i.Act = pool.ActQuarantine
	}
	if err := k.intend(ctx, i); err != nil {
		return nil, "", err
	}
	if err := k.step(ctx, "rename "+name); err != nil {
		return nil, "", err
	}
	moved, err := k.move(e.ID, at, to)
	switch {
	case err != nil && !moved:
		return nil, "", errors.Join(err, k.ended(ctx, i))
	case err != nil:
		return nil, "", fmt.Errorf("%s of %s %w: %w", i.Act, name, ErrUnfinished, err)
	}
	return i, to, nil
}
