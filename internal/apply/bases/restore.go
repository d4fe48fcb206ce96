// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// RestoreOptions say which shield is meant, and where the base goes.
type RestoreOptions struct {
	// Inode chooses between several files that had one name, 0 for the only one.
	Inode uint64
	// As is another name in the directory of the bases, "" for its own.
	As string
	// Why is kept in the audit.
	Why string
}

// Restore gives a base that was removed its name back, from its shield or from quarantine; of one in quarantine the
// name may be its id. It makes it look as if it was changed now: a cleaner removes again at once what looks old. An
// existing name is never written over: ErrThere. The other errors are ErrNoShield, ErrSeveral and ErrUnfinished.
func Restore(ctx context.Context, name string, r RestoreOptions, o Options) (*pool.Done, error) {
	return RestoreAll(ctx, []string{name}, r, o)
}

// RestoreAll is Restore for several names as one act. What cannot be had of several is left.
func RestoreAll(ctx context.Context, names []string, r RestoreOptions, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("restore")
	s, d, err := k.restoring(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, d, err) }()
	for _, name := range names {
		err := k.restore(ctx, s, name, r, d)
		if err != nil && (len(names) == 1 || stopped(ctx, err) || errors.Is(err, ErrUnfinished)) {
			return d, err
		}
		if err != nil {
			d.Leave(name, err)
		}
	}
	return d, nil
}

// RestoreKept gives all files their names back that only shields keep, whoever needs them, as one act. Of several that
// had one name one has it again where all hold the same, and the others are left. Else nobody knows which is meant: they are
// left, as is what could not be read.
func RestoreKept(ctx context.Context, why string, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("restore")
	s, d, err := k.restoring(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, d, err) }()
	for _, err := range s.Unread {
		d.Leave(pool.Dir, err)
	}
	for _, h := range s.Alone() {
		err := ErrSeveral
		if s.OneContent(s.Formers(h.Name)) {
			err = k.restore(ctx, s, h.Name, RestoreOptions{Inode: h.ID.Ino, Why: why}, d)
		}
		if err != nil && (stopped(ctx, err) || errors.Is(err, ErrUnfinished)) {
			return d, err
		}
		if err != nil {
			d.Leave(h.Name, fmt.Errorf("%w; --inode %d --as NAME gives it another name (%d bytes)", err, h.ID.Ino, h.SizeBytes))
		}
	}
	return d, nil
}

// restoring reads the pool for an act that brings back.
func (k *keeper) restoring(ctx context.Context) (*pool.State, *pool.Done, error) {
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, nil, err
	}
	if err := k.known(ctx, s); err != nil {
		return nil, nil, err
	}
	d := newDone(k.Bases, s)
	k.pool = d.Pool
	return s, d, nil
}

// restore gives one base its name back.
func (k *keeper) restore(ctx context.Context, s *pool.State, name string, r RestoreOptions, d *pool.Done) error {
	if strings.ContainsRune(name+r.As, '/') || name == "" || name == "." || name == ".." || r.As == "." || r.As == ".." {
		return fmt.Errorf("%q is no name in a directory", name+r.As)
	}
	why := cmp.Or(r.Why, "restore")
	held, err := heldFor(s, name, r.Inode)
	if err != nil {
		return err
	}
	if held != nil {
		if held.ID != name && r.Inode == 0 {
			err = onlyOne(s, name)
		}
		if err != nil {
			return err
		}
		return k.bringBack(ctx, held, cmp.Or(r.As, held.Name), why, d)
	}
	h, err := shieldFor(s, name, r.Inode)
	if err != nil {
		return errors.Join(append([]error{err}, s.Unread...)...)
	}
	if held := heldInode(s, h.ID); held != nil {
		// It was set aside under another name. A link from the shield would give the file two names.
		return k.bringBack(ctx, held, cmp.Or(r.As, name), why, d)
	}
	to := filepath.Join(k.Bases, cmp.Or(r.As, name))
	e, err := diskio.LookEntry(to)
	var steps []vault.BaseStep
	switch {
	case err == nil && e.ID == h.ID: // it is this very file: all that is left is the time
	case err == nil, errors.Is(err, diskio.ErrSpecial):
		return fmt.Errorf("%s %w", to, ErrThere)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		steps = append(steps, stepAt(vault.BaseRestore, name, to, h.ID.Ino))
	}
	now, err := k.now(ctx)
	if err != nil {
		return err
	}
	touch := touchStep(name, to, h.ID.Ino, h.Modified, now)
	if err := k.will(append(steps, touch)...); err != nil {
		return err
	}
	// By the shield, and before it has its name: else a cleaner could take it for old in between.
	if err := k.touchBy(ctx, &touch, h.Path, d); err != nil {
		return err
	}
	for i := range steps {
		if err := k.link(ctx, h, &steps[i], d); err != nil {
			return err
		}
	}
	return k.note(ctx, "restore", name, h.ID.Ino, to, why)
}

// link gives the file of a shield its name in the directory of the bases.
func (k *keeper) link(ctx context.Context, h *pool.Shield, t *vault.BaseStep, d *pool.Done) error {
	if err := k.step(ctx, "restore "+t.Name); err != nil {
		return err
	}
	to := t.At()
	err := k.Links.Link(h.ID, h.Path, to)
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%s %w: %w", to, ErrThere, err)
	}
	k.did(*t, err)
	if err != nil {
		return err
	}
	d.Restored = append(d.Restored, filepath.Base(to))
	return nil
}

// missing tells which bases are needed and gone, and can come back from their shields: for each the name, and the touch.
func (k *keeper) missing(c *refs.Census, s *pool.State, now time.Time, d *pool.Done) (todo []vault.BaseStep) {
	for i := range c.All {
		b := &c.All[i]
		if b.State != refs.Missing || b.Shield == "" {
			continue
		}
		to := filepath.Join(k.Bases, b.Name)
		switch _, err := diskio.LookEntry(to); {
		case err == nil:
			continue // there is one by now
		case !errors.Is(err, fs.ErrNotExist):
			d.Leave(b.Name, err)
			continue
		}
		if b.Held != "" {
			continue // see heldNeeded
		}
		h, err := shieldFor(s, b.Name, 0)
		if err == nil && heldInode(s, h.ID) != nil {
			err = errors.New("it was set aside; shisa base restore brings it back")
		}
		if err != nil {
			d.Leave(b.Name, err)
			continue
		}
		touch := touchStep(b.Name, to, h.ID.Ino, h.Modified, now)
		todo = append(todo, stepAt(vault.BaseRestore, b.Name, to, h.ID.Ino), touch)
	}
	return todo
}

// fromShield gives a base that is needed its name back.
func (k *keeper) fromShield(
	ctx context.Context, c *refs.Census, s *pool.State, t, touch *vault.BaseStep, d *pool.Done,
) error {
	h, err := shieldFor(s, t.Name, t.Inode)
	if err == nil {
		err = k.touchBy(ctx, touch, h.Path, d) // before it has its name, see Restore
	}
	if err == nil {
		err = k.link(ctx, h, t, d)
	}
	if err != nil {
		return err
	}
	why := ""
	for i := range c.All {
		if b := &c.All[i]; b.State == refs.Missing && b.Name == t.Name {
			why = "it was missing, and " + needWord(c, b)
		}
	}
	return k.note(ctx, "restore", t.Name, t.Inode, t.At(), why)
}

// shieldFor gives the shield of a name, or of an inode.
func shieldFor(s *pool.State, name string, inode uint64) (*pool.Shield, error) {
	var found []pool.Shield
	for _, h := range s.ShieldsOf(name) {
		if inode == 0 || h.ID.Ino == inode {
			found = append(found, h)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%s: %w", name, ErrNoShield)
	case 1:
		return &found[0], nil
	}
	// One of them may be the file that has the name now, and the others what had it before.
	var alone []pool.Shield
	for _, h := range found {
		if s.IsAlone(&h) {
			alone = append(alone, h)
		}
	}
	if len(alone) == 1 || len(alone) > 1 && onlyOne(s, name) == nil {
		return &alone[0], nil
	}
	var all []string
	for _, h := range found {
		all = append(all, fmt.Sprintf("inode %d, %d bytes", h.ID.Ino, h.SizeBytes))
	}
	return nil, fmt.Errorf("%s: %w: %s", name, ErrSeveral, strings.Join(all, "; "))
}
