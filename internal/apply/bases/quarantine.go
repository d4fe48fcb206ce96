// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Quarantine sets aside the bases of which a plan says that they may be: each gets a name in the quarantine of the pool
// under an id that no other ever had, one that only its shield keeps beside that. Everything is decided anew before that,
// and once more after it: a base that turns out to be needed is back at once. What was not set aside is told by Left.
//
// The errors are ErrBusy, ErrUnfinished, ErrOtherPool, judge.ErrOther and judge.ErrTooOld. After an error while
// a base was renamed, and after one that is ErrUnfinished, Recover finds out where it is.
func Quarantine(ctx context.Context, p *judge.Plan, by Decision, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("quarantine")
	s, lock, err := k.ready(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	d = newDone(k.Bases, s)
	wanted := p.With(judge.MayQuarantine)
	if len(wanted) == 0 {
		return d, nil
	}
	only := make([]string, 0, len(wanted))
	for _, b := range wanted {
		only = append(only, b.Name)
	}
	now, _, c, err := k.decide(ctx, by, judge.Options{Only: only})
	if err != nil {
		return nil, err
	}
	k.instances = c.Instances
	todo := k.still(now, c, wanted, d)
	var steps []vault.BaseStep
	for _, a := range todo {
		steps = append(steps, a.receipt())
	}
	if err := k.will(steps...); err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, d, err) }()
	for _, a := range todo {
		if err := k.setAside(ctx, a, p.SHA256); err != nil {
			if stopped(ctx, err) || errors.Is(err, ErrUnfinished) {
				return d, errors.Join(err, k.allBack(ctx, "it could not be looked again: "+err.Error(), todo, d))
			}
			d.Leave(a.Name, err)
			continue
		}
		d.Quarantined = append(d.Quarantined, pool.HeldName(a.ID, a.Name))
	}
	return d, k.lookAgain(ctx, by, todo, d)
}

// aside is a base that is being set aside.
type aside struct {
	refs.Base
	to string
}

// kept tells whether it has no name to lose, so that it is linked and not renamed.
func (a *aside) kept() bool { return a.State == refs.ByShield }

func (a *aside) receipt() vault.BaseStep {
	s := stepAt(vault.BaseQuarantine, a.Name, a.Path, a.File.Ino)
	s.ID = a.ID
	return s
}

// still gives those of the wanted bases that may still be set aside.
func (k *keeper) still(now *judge.Plan, c *refs.Census, wanted []*judge.Decided, d *pool.Done) (todo []*aside) {
	for _, w := range wanted {
		b := now.Find(w)
		if b == nil {
			d.Leave(w.Name, errors.New("it is not the file any more that the plan is about, or not there"))
			continue
		}
		if b.Verdict != judge.MayQuarantine {
			d.Leave(w.Name, errors.New(now.Against(b)))
			continue
		}
		id, err := plan.NewID()
		if err != nil {
			d.Leave(w.Name, err)
			continue
		}
		for i := range c.All {
			if f := &c.All[i]; f.State == b.State && f.File.Ino == b.Inode && f.Name == b.Name {
				a := &aside{*f, k.path(pool.Quarantine, pool.HeldName(id, f.Name))}
				a.ID = id
				todo = append(todo, a)
			}
		}
	}
	return todo
}

// setAside renames one base, or gives the file of its shield a name. The order is that of all acts: the intent, the
// rename to a name that is fresh, a look where the file is now whatever the rename said, the directories on the disk, the
// audit, the end of the intent.
func (k *keeper) setAside(ctx context.Context, a *aside, why string) error {
	ctx, err := toItsEnd(ctx)
	if err != nil {
		return err
	}
	if !pool.IsName(filepath.Base(a.to)) {
		return errors.New("its name is too long to get an id before it")
	}
	i := &pool.Intent{Act: pool.ActQuarantine, ID: a.ID, Name: a.Name, Inode: a.File.Ino, SizeBytes: a.SizeBytes,
		From: a.Name, To: pool.Quarantine + "/" + filepath.Base(a.to)}
	if a.kept() {
		i.From = pool.Shields + "/" + filepath.Base(a.Path)
	}
	if err := k.intend(ctx, i); err != nil {
		return err
	}
	if err := unchanged(&a.Base); err != nil {
		return errors.Join(err, k.ended(ctx, i))
	}
	lock, err := k.novaLock(a.Name)
	if err != nil {
		return errors.Join(err, k.ended(ctx, i))
	}
	defer lock()
	if err := k.step(ctx, "rename "+a.Name); err != nil {
		return err
	}
	moved, err := k.nameAside(a)
	switch {
	case err != nil && !moved:
		k.did(a.receipt(), err)
		return errors.Join(err, k.ended(ctx, i))
	case err != nil:
		return fmt.Errorf("%s of %s %w: %w", i.Act, a.Name, ErrUnfinished, err)
	}
	k.did(a.receipt(), nil)
	return k.conclude(ctx, i, a.to, "plan "+why)
}

// nameAside gives a base its name in quarantine, and tells as move does what became of it.
//
// What only its shield keeps has none to lose. A file that somebody brought back at this very moment has more names then
// than it may, and loses the one in quarantine.
func (k *keeper) nameAside(a *aside) (moved bool, err error) {
	if !a.kept() {
		return k.move(a.File, a.Path, a.to)
	}
	err = k.Links.Link(a.File, a.Path, a.to)
	e, look := diskio.LookEntry(a.to)
	switch {
	case errors.Is(look, fs.ErrNotExist):
		return false, cmp.Or(err, look)
	case look != nil:
		return true, errors.Join(err, look)
	case e.ID != a.File:
		return true, cmp.Or(err, fmt.Errorf("%s is another file", a.to))
	case e.Links > a.Links+1 || k.has(a.Name, a.File): // with fewer the one in quarantine may be the last
		if err := k.unlink(a.File, a.to); err != nil {
			return true, err
		}
		return false, errors.Join(errors.New("somebody gave it a name meanwhile"), k.syncDir(filepath.Dir(a.to)))
	}
	return true, k.syncDir(filepath.Dir(a.to))
}

// toItsEnd is for what is begun with one base, and is short: it is not begun any more where somebody wants the act to end,
// and nobody ends it in the midst.
func toItsEnd(ctx context.Context) (context.Context, error) {
	return context.WithoutCancel(ctx), ctx.Err()
}

// unchanged tells whether a base is as it was when it was decided about: whoever begins to use it may touch it.
func unchanged(b *refs.Base) error {
	e, err := diskio.LookEntry(b.Path)
	switch {
	case err != nil:
		return err
	case e.ID != b.File || e.SizeBytes != b.SizeBytes || e.Links != b.Links || !e.ModTime.Equal(b.Modified) || !e.ChangeTime.Equal(b.Changed):
		return fmt.Errorf("%s: it was changed, touched or renamed since it was decided about", b.Path)
	}
	return nil
}

// intend writes down what is about to be done.
func (k *keeper) intend(ctx context.Context, i *pool.Intent) error {
	now, err := k.now(ctx)
	if err != nil {
		return err
	}
	i.Schema, i.Node, i.Time = pool.IntentSchema, k.Node, now.UTC()
	text, err := i.Text()
	if err != nil {
		return err
	}
	if err := k.step(ctx, "intend "+i.Act+" "+i.Name); err != nil {
		return err
	}
	return k.put(k.path(pool.Journal, pool.IntentName(i.ID, i.Act)), text)
}

// ended takes an intent away: its act was done, or has changed nothing.
func (k *keeper) ended(ctx context.Context, i *pool.Intent) error {
	if err := k.step(ctx, "end "+i.Act+" "+i.Name); err != nil {
		return err
	}
	err := k.Disk.Remove(k.path(pool.Journal, pool.IntentName(i.ID, i.Act)))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // who recovered was faster
	}
	return errors.Join(err, k.syncDir(k.path(pool.Journal)))
}

// conclude notes in the audit that an act was done, and ends its intent.
func (k *keeper) conclude(ctx context.Context, i *pool.Intent, path, why string) error {
	err := k.step(ctx, "note "+i.Act+" "+i.Name)
	if err == nil {
		err = k.note(ctx, i.Noted(), i.Name, i.Inode, path, why)
	}
	if err == nil {
		err = k.ended(ctx, i)
	}
	if err != nil {
		return fmt.Errorf("%s of %s %w: %w", i.Act, i.Name, ErrUnfinished, err)
	}
	return nil
}

// move renames a file and looks where it is then: the error of a rename over NFS says nothing. With an error, moved
// tells that the file may have its new name; without one it has that, and not the old one.
func (k *keeper) move(id diskio.ID, from, to string) (moved bool, err error) {
	if k.own(to) {
		err = k.Links.Aside(id, from, to)
	} else {
		err = k.Links.Move(id, from, to)
	}
	at := func(path string) bool {
		e, err := diskio.LookEntry(path)
		return err == nil && e.ID == id
	}
	switch {
	case at(to) && !at(from):
		err = nil
	case at(from) && at(to) && !k.own(to):
		// A file system that renames in two steps, and had an end after the first: it goes on.
		if e := k.unlink(id, from); e != nil {
			return true, errors.Join(err, e)
		}
		err = nil
	case at(from):
		if at(to) { // the same, and the first step is taken back
			err = errors.Join(err, k.unlink(id, to))
		}
		return at(to), cmp.Or(err, fmt.Errorf("%s has its name still", from))
	case errors.Is(err, diskio.ErrChanged):
		// Another file had the name from, and has it again: nothing was done, unless it could not get that back.
		_, look := diskio.LookEntry(to)
		return !errors.Is(look, fs.ErrNotExist), err
	default:
		return true, cmp.Or(err, fmt.Errorf("%s has neither its old name nor the new one", from))
	}
	return true, errors.Join(err, k.syncDir(filepath.Dir(from)), k.syncDir(filepath.Dir(to)))
}

// own tells whether a path is one that only programs like this one give to a file.
func (k *keeper) own(path string) bool { return strings.HasPrefix(path, k.path()+"/") }

// unlink takes a name of our own from a file. A name in the directory of the bases may become another file's at any
// moment: it is moved aside first.
func (k *keeper) unlink(id diskio.ID, path string) error {
	if !k.own(path) {
		return fmt.Errorf("%s is no name of ours, and is not taken away", path)
	}
	return k.Links.Unlink(id, path)
}

// novaLock takes the locks that Nova holds while it makes or removes a base, where there are some: beside the bases, and
// in each directory of instances that they belong to. It is politeness: Nova takes the files of its locks away while others
// wait for them.
func (k *keeper) novaLock(name string) (unlock func(), err error) {
	var held []io.Closer
	unlock = func() {
		for _, f := range held {
			_ = f.Close() // it was only read
		}
	}
	dirs := append([]string{filepath.Dir(k.Bases)}, k.instances...)
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		f, err := k.Disk.OpenForRepair(filepath.Join(dir, "locks", "nova-"+name))
		if errors.Is(err, diskio.ErrInUse) {
			unlock()
			return nil, fmt.Errorf("a program of Nova is at work on it: %w", err)
		}
		if err == nil { // else there is no lock of Nova, or none that can be had
			held = append(held, f)
		}
	}
	return unlock, nil
}
