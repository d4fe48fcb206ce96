// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// UnprotectOptions say what is taken away beside the shields.
type UnprotectOptions struct {
	// Records takes the records of what bases hold away too, of those that are in their place and can be recorded
	// again.
	Records bool
}

// Unprotect takes away all shields but those that are the last name of a file which is needed, or may be. The
// records stay if nothing else was asked for, and those of bases that are gone in any case: they are what proves a
// copy. What stays is told, with the reason.
func Unprotect(ctx context.Context, u UnprotectOptions, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("unprotect")
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	if err := k.known(ctx, s); err != nil {
		return nil, err
	}
	d = newDone(k.Bases, s)
	k.pool = d.Pool
	defer func() { err = k.finish(ctx, d, err) }()
	var todo []vault.BaseStep
	shields := map[string]*pool.Shield{}
	for i := range s.Shields {
		h := &s.Shields[i]
		if err := k.inPlace(h); err != nil {
			d.Leave(h.Name, err)
			continue
		}
		t := stepAt(vault.BaseUnshield, h.Name, h.Path, h.ID.Ino)
		shields[h.Path] = h
		todo = append(todo, t)
	}
	if u.Records {
		todo = append(todo, k.records(s, d)...)
	}
	if err := k.will(todo...); err != nil {
		return d, err
	}
	for i := range todo {
		t := &todo[i]
		err := k.forget(ctx, t, d)
		if h := shields[t.At()]; h != nil {
			err = k.unshield(ctx, h, d, "unprotect")
		}
		k.did(*t, err)
		if err != nil {
			if stopped(ctx, err) {
				return d, err
			}
			d.Leave(t.Name, err)
		}
	}
	for _, err := range s.Unread {
		d.Leave(pool.Dir, err) // there may be more shields
	}
	if s, err = pool.Read(ctx, k.Bases, k.Timeout); err != nil {
		return d, err
	}
	d.Stays = staying(s)
	return d, nil
}

// inPlace tells whether the base of a shield is there, under its name: the error is ErrLast where it is not. Another
// name may be that of a shield as well.
func (k *keeper) inPlace(h *pool.Shield) error {
	e, err := diskio.LookEntry(filepath.Join(k.Bases, h.Name))
	switch {
	case err == nil && e.ID == h.ID:
		return nil
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, diskio.ErrSpecial):
		return ErrLast
	}
	return err
}

// unshield takes the second name of a base away.
func (k *keeper) unshield(ctx context.Context, h *pool.Shield, d *pool.Done, why string) error {
	if err := k.inPlace(h); err != nil {
		return err
	}
	if err := k.step(ctx, "unshield "+h.Name); err != nil {
		return err
	}
	// As long as it is open here, nobody can take the last of it away.
	f, err := diskio.Open(h.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := k.unlink(h.ID, h.Path); err != nil {
		return err
	}
	if err := k.inPlace(h); err != nil {
		// Somebody removed the base at this very moment, or set it aside.
		return errors.Join(err, k.copyBack(ctx, f, h))
	}
	d.Unshielded = append(d.Unshielded, h.Name)
	return k.note(ctx, "unshield", h.Name, h.ID.Ino, h.Path, why)
}

// copyBack makes a shield anew from an open file that has no name any more. One that is in quarantine gets its own again: a copy
// would be a second file of that name. What cannot be read keeps nobody from copying, and who wants the act to end has to wait:
// once the file is closed it is gone.
func (k *keeper) copyBack(ctx context.Context, f *diskio.File, h *pool.Shield) error {
	ctx = context.WithoutCancel(ctx)
	if s, err := pool.Read(ctx, k.Bases, k.Timeout); err == nil {
		if held := heldInode(s, h.ID); held != nil {
			return k.reshield(ctx, h.ID, held.Path, h.Name, "it was set aside while its shield was taken away")
		}
	}
	id, err := plan.NewID()
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(h.Path), "."+id+".copy")
	w, err := k.Disk.CreateNew(tmp, baseMode)
	if err != nil {
		return err
	}
	err = k.copyTo(ctx, &writer{w: w}, f, h.Path, f.Size())
	made, err2 := w.Identity()
	if err = errors.Join(err, w.Sync(), err2, w.Close()); err != nil {
		return err
	}
	to := filepath.Join(filepath.Dir(h.Path), pool.ShieldName(made.Ino, h.Name))
	if err := k.Links.Move(made.ID, tmp, to); err != nil {
		return err
	}
	return k.note(ctx, "shield", h.Name, made.Ino, to, "a copy: the base was removed while its shield was")
}

// writer writes to a file from its beginning.
type writer struct {
	w   io.WriterAt
	off int64
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.w.WriteAt(p, w.off)
	w.off += int64(n)
	return n, err
}

// records gives the records of bases that are in their place. Those of others stay.
func (k *keeper) records(s *pool.State, d *pool.Done) (todo []vault.BaseStep) {
	for _, ino := range slices.Sorted(maps.Keys(s.Objects)) {
		o := s.Objects[ino]
		e, err := diskio.LookEntry(filepath.Join(k.Bases, o.Name))
		if err != nil || e.Ino != ino {
			d.Leave(o.Name, errors.New("its record stays: the base is not in its place, and nothing else proves a copy of it"))
			continue
		}
		todo = append(todo, stepAt(vault.BaseForget, o.Name, k.path(pool.Objects, pool.ObjectName(ino)), ino))
	}
	return todo
}

// forget takes the record of a base away.
func (k *keeper) forget(ctx context.Context, t *vault.BaseStep, d *pool.Done) error {
	if t.What != vault.BaseForget {
		return nil
	}
	if err := k.step(ctx, "forget "+t.Name); err != nil {
		return err
	}
	if err := k.Disk.Remove(t.At()); err != nil {
		return err
	}
	d.Forgotten = append(d.Forgotten, t.Name)
	return errors.Join(k.syncDir(filepath.Dir(t.At())), k.note(ctx, "forget", t.Name, t.Inode, t.At(), "unprotect"))
}

// staying tells what of a pool is still there when it is protected no more, and why.
func staying(s *pool.State) []pool.Left {
	all := []pool.Left{}
	add := func(n int, what, why string) {
		if n > 0 {
			all = append(all, pool.Left{Name: fmt.Sprintf("%s (%d)", what, n), Why: why})
		}
	}
	add(len(s.Objects), pool.Dir+"/"+pool.Objects,
		"records of what bases hold: they prove a copy; --records takes those away of bases that are in their place")
	add(len(s.Held), pool.Dir+"/"+pool.Quarantine, "bases in quarantine: shisa base restore brings one back")
	add(len(s.Pins), pool.Dir+"/"+pool.Pins, "pins of people: shisa base unpin takes one away")
	add(len(s.Audits), pool.Dir+"/"+pool.Audit, "lines of the audit: they say who did what to which base")
	if s.Policy != nil {
		add(1, pool.Dir+"/"+pool.File, "the pool's identity, by which a storage that is not mounted is told")
	}
	return all
}
