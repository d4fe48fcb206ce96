// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// ErrUnfit: a file is of a kind that a plan for text files does not touch, for errors.Is.
var ErrUnfit = errors.New("is not changed by a plan for text files")

// texts is a change of text files that is carried out or taken back. Its receipt has all that both need,
// and is on the disk before the first file is touched:
//
//	receipt "applying" -> every new file beside the old one, synced -> each renamed, its directory
//	synced -> read back -> receipt "committed"
//
// At every moment each file is as before or as after; which of the two, it says itself.
type texts struct {
	e *engine
	r *vault.TextReceipt
}

// DraftTexts fills in what a plan says of this host: the names without symbolic links, and what is there
// now. Of p it needs Why, Tool, Costs, Then, of the files all but Before, and of the settings all but Before. The errors are ErrUnfit,
// plan.ErrNotPlan, and those of reading.
func DraftTexts(ctx context.Context, p *plan.Texts, o Options) error {
	e, err := newEngine(ctx, o)
	if err != nil {
		return err
	}
	p.Schema, p.Created = plan.TextsSchema, e.o.Now()
	if p.ID, err = plan.NewID(); err != nil {
		return err
	}
	for i := range p.Files {
		f := &p.Files[i]
		dir, err := e.realDir(filepath.Dir(filepath.Clean(f.Path)))
		if err != nil {
			return fmt.Errorf("plan %s: %w", f.Path, err)
		}
		f.Path = filepath.Join(dir, filepath.Base(f.Path))
		if _, f.Before, err = e.textNow(f.Path, f.Links()); err != nil {
			return fmt.Errorf("plan %s: %w", f.Path, err)
		}
	}
	for i := range p.Live {
		l := &p.Live[i]
		now, there, err := e.liveNow(l)
		if err == nil && !there {
			err = fs.ErrNotExist
		}
		if err != nil {
			return fmt.Errorf("plan %s: %w", l.Path, err)
		}
		l.Before = now
	}
	if err := p.Validate(); err != nil {
		return err
	}
	return p.Seal()
}

// realDir is the directory without symbolic links, as far as it is there.
func (e *engine) realDir(dir string) (string, error) {
	missing := ""
	for {
		real, err := e.disk.RealPath(dir)
		switch {
		case err == nil:
			return filepath.Join(real, missing), nil
		case !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir):
			return "", err
		}
		// A link that leads nowhere is not a directory that is missing.
		if _, err2 := e.disk.LookAt(dir); !errors.Is(err2, fs.ErrNotExist) {
			return "", errors.Join(err, err2)
		}
		missing = filepath.Join(filepath.Base(dir), missing)
		dir = filepath.Dir(dir)
	}
}

// textNow reads a file; the state is nil where there is none. A symbolic link is unfit unless links may be
// there: then its content is where it leads to.
func (e *engine) textNow(path string, links bool) ([]byte, *plan.TextState, error) {
	n, err := e.disk.LookAt(path)
	unfit := func(why string) ([]byte, *plan.TextState, error) {
		return nil, nil, fmt.Errorf("%s %w: %s", path, ErrUnfit, why)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case n.Mode&fs.ModeSymlink != 0 && n.Links > 1:
		return unfit("it has other names, which would keep the old content")
	case n.Mode&fs.ModeSymlink != 0 && links:
		to, err := e.disk.ReadLink(path)
		if err != nil {
			return nil, nil, err
		}
		s := plan.LinkState(to)
		return []byte(to), &s, nil
	case n.Mode&fs.ModeSymlink != 0:
		return unfit("it is a symbolic link")
	case !n.Mode.IsRegular():
		return unfit("it is no regular file")
	case n.Mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0:
		return unfit("its mode is " + n.Mode.String())
	case n.Links > 1:
		return unfit("it has other names, which would keep the old content")
	}
	f, err := e.disk.Open(path)
	if err != nil {
		return nil, nil, err
	}
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, plan.MaxTextBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, err
	}
	if len(raw) > plan.MaxTextBytes {
		return unfit(fmt.Sprintf("it has more than %d bytes", plan.MaxTextBytes))
	}
	s := plan.StateOf(raw, plan.ModeOf(n.Mode))
	return raw, &s, nil
}

// ApplyTexts carries out a plan for text files, once. The receipt is nil where nothing was touched. The
// errors are those of Apply, ErrUnfit, and plan.ErrEdited. The commands that the plan tells of are not run.
func ApplyTexts(ctx context.Context, p *plan.Texts, o Options) (*vault.TextReceipt, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if sum, err := p.Digest(); err != nil || sum != p.SHA256 {
		return nil, errors.Join(plan.ErrEdited, err)
	}
	if p.Empty() {
		return nil, ErrEmpty
	}
	e, err := newEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	lock, err := e.v.LockTexts()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := e.textsUnused(ctx, p); err != nil {
		return nil, err
	}
	c, err := e.beginTexts(p)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := e.v.PutText(c.r); err != nil {
		if stops(err) {
			return nil, c.interrupted(err) // the receipt may be there
		}
		return nil, errors.Join(err, e.v.DropText(p.ID))
	}
	if err := c.forward(ctx); err != nil {
		return c.failed(ctx, err)
	}
	return c.end(vault.Committed, "")
}

// textsUnused refuses a plan that was used, and one of files that an earlier change left in the middle.
func (e *engine) textsUnused(ctx context.Context, p *plan.Texts) error {
	all, err := e.v.TextReceipts(ctx)
	if err != nil {
		return err // one that cannot be read may be such a change
	}
	for _, r := range all {
		if r.ID == p.ID {
			return fmt.Errorf("%w: its receipt is %s", ErrUsed, e.v.TextReceiptPath(r.ID))
		}
		if r.State.Unfinished() && slices.ContainsFunc(p.Files, func(f plan.Text) bool { return names(r, f.Path) }) {
			return fmt.Errorf("%w: its receipt is %s", ErrUnfinished, e.v.TextReceiptPath(r.ID))
		}
	}
	return nil
}

// names reports whether a change is one of the file at path.
func names(r *vault.TextReceipt, path string) bool {
	return slices.ContainsFunc(r.Plan.Files, func(f plan.Text) bool { return f.Path == path })
}

// beginTexts holds the plan against what is there, and keeps that.
func (e *engine) beginTexts(p *plan.Texts) (*texts, error) {
	r := &vault.TextReceipt{Schema: vault.TextReceiptSchema, ID: p.ID, State: vault.Applying,
		Created: e.now(), Plan: p}
	c := &texts{e, r}
	for i := range p.Files {
		f := &p.Files[i]
		raw, was, err := c.now(f)
		switch {
		case err != nil:
			return nil, err
		case !sameState(was, f.Before):
			return nil, &ChangedError{Path: f.Path, What: "it " + differs(was, f.Before) + " when the plan was made"}
		}
		if err := e.syncs(filepath.Dir(f.Path)); err != nil {
			return nil, err
		}
		r.Before = append(r.Before, vault.TextBefore{Path: f.Path, Absent: was == nil, Content: raw})
	}
	return c, c.liveBefore()
}

// syncs makes sure, before anything is touched, that names in a directory, or in the one above that is
// there, can be had on the disk: a change could neither be finished nor taken back otherwise.
func (e *engine) syncs(dir string) error {
	for {
		err := e.disk.SyncDir(dir)
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return err
		}
		dir = filepath.Dir(dir)
	}
}

func sameState(a, b *plan.TextState) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// differs says what a file that should be as want is, up to a point in time.
func differs(got, want *plan.TextState) string {
	switch {
	case want == nil:
		return "is there, and was not"
	case got == nil:
		return "is gone, and was there"
	case got.Link != want.Link:
		return "is of another kind than"
	case got.SHA256 == want.SHA256:
		return fmt.Sprintf("has the mode %s, and had %s", got.Mode, want.Mode)
	}
	return "holds something else than"
}

// now reads a file of the plan, whose directory must still be the one that was meant.
func (c *texts) now(f *plan.Text) ([]byte, *plan.TextState, error) {
	dir := filepath.Dir(f.Path)
	real, err := c.e.realDir(dir)
	if err != nil {
		return nil, nil, err
	}
	if real != dir {
		return nil, nil, &ChangedError{Path: f.Path, What: "its directory is " + real + " by now"}
	}
	return c.e.textNow(f.Path, f.Links())
}

// fresh is the name of a file that is to take the place of path.
func (c *texts) fresh(path string) string {
	const unique = 16 // digits of the plan's name
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+c.r.ID[:unique]+".shisa-new")
}

// stage makes what is to take the place of path, of a state, and returns when its content is on the disk; that of
// a link is when its name is.
func (c *texts) stage(path string, content []byte, s *plan.TextState) error {
	fresh := c.fresh(path)
	if err := c.unstage(path); err != nil {
		return err
	}
	var err error
	if s.Link {
		err = c.e.disk.MakeLink(string(content), fresh)
	} else {
		err = c.write(fresh, content, s.Mode)
	}
	if err != nil {
		return err
	}
	is, err := c.e.disk.LookAt(fresh)
	if err != nil {
		return err
	}
	was, err := c.e.disk.LookAt(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case was.Owner != is.Owner || was.Group != is.Group:
		return fmt.Errorf("%s %w: it belongs to user %d and group %d, and a new one would to %d and %d", path,
			ErrUnfit, was.Owner, was.Group, is.Owner, is.Group)
	}
	return nil
}

// write makes a file, and returns when its content is on the disk.
func (c *texts) write(fresh string, content []byte, mode plan.Mode) error {
	f, err := c.e.disk.CreateNew(fresh, mode.Perm())
	if err != nil {
		return err
	}
	if len(content) > 0 {
		_, err = f.WriteAt(content, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", fresh, err)
	}
	return nil
}

// unstage removes what stage wrote, if it is there. Its name has that of the plan in it.
func (c *texts) unstage(path string) error {
	err := c.e.disk.Remove(c.fresh(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// forward puts the new files in place.
func (c *texts) forward(ctx context.Context) error {
	for i := range c.r.Plan.Files {
		f := &c.r.Plan.Files[i]
		if err := ctx.Err(); err != nil {
			return err
		}
		if done, err := c.is(f, true); err != nil || done {
			if err == nil {
				continue
			}
			return err
		}
		if f.Gone {
			continue
		}
		if err := c.e.disk.MakeDir(filepath.Dir(f.Path), 0o755); err != nil {
			return err
		}
		if err := c.stage(f.Path, []byte(f.Content), f.After()); err != nil {
			return err
		}
	}
	for i := range c.r.Plan.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &c.r.Plan.Files[i]
		if err := c.put(f, true, func(path string) error {
			if f.Gone {
				return c.e.disk.Remove(path) // what it held is in the receipt
			}
			return c.e.disk.Rename(c.fresh(path), path)
		}); err != nil {
			return err
		}
	}
	if err := c.readBack(true); err != nil {
		return err
	}
	return c.setLive(true)
}

// is reports whether a file is as after the change, or as before it. One that is neither is a
// *ChangedError.
func (c *texts) is(f *plan.Text, after bool) (bool, error) {
	_, now, err := c.now(f)
	if err != nil {
		return false, err
	}
	new := f.After()
	switch {
	case after && sameState(now, new), !after && sameState(now, f.Before):
		return true, nil
	case sameState(now, new), sameState(now, f.Before):
		return false, nil
	}
	return false, &ChangedError{Path: f.Path, What: "it is neither as before the change nor as after it"}
}

// put brings one file to its state after the change, or before it, by fn, where it is not.
func (c *texts) put(f *plan.Text, after bool, fn func(path string) error) error {
	done, err := c.is(f, after)
	if err != nil {
		return err
	}
	if !done {
		if err := fn(f.Path); err != nil {
			return err
		}
	}
	// Also where it was done before: nobody may have lived to sync the name. A directory that is not
	// there holds none.
	err = c.e.disk.SyncDir(filepath.Dir(f.Path))
	if errors.Is(err, fs.ErrNotExist) && f.Before == nil && !after {
		return nil
	}
	return err
}

// readBack holds what is there against what should be.
func (c *texts) readBack(after bool) error {
	for i := range c.r.Plan.Files {
		f := &c.r.Plan.Files[i]
		ok, err := c.is(f, after)
		if err == nil && !ok {
			err = &ChangedError{Path: f.Path, What: "it does not hold what was written"}
		}
		if err != nil {
			return fmt.Errorf("read back: %w", err)
		}
	}
	return nil
}

// back puts the old files in place, and notes how it ended.
func (c *texts) back() error {
	if err := c.known(); err != nil {
		return err
	}
	if err := c.setLive(false); err != nil {
		return err
	}
	for i := len(c.r.Plan.Files) - 1; i >= 0; i-- {
		f := &c.r.Plan.Files[i]
		if err := c.unstage(f.Path); err != nil {
			return err
		}
		err := c.put(f, false, func(path string) error {
			if f.Before == nil {
				return c.e.disk.Remove(path) // all that it held is in the receipt
			}
			if err := c.stage(path, c.r.Before[i].Content, f.Before); err != nil {
				return err
			}
			return c.e.disk.Rename(c.fresh(path), path)
		})
		if err != nil {
			return err
		}
	}
	return c.readBack(false)
}

// known returns a *ChangedError unless every file is as before the change or as after it.
func (c *texts) known() error {
	for i := range c.r.Plan.Files {
		if _, err := c.is(&c.r.Plan.Files[i], true); err != nil {
			return err
		}
	}
	return c.liveKnown()
}

// failed takes back a change that went wrong.
func (c *texts) failed(ctx context.Context, cause error) (*vault.TextReceipt, error) {
	if stops(cause) {
		return nil, c.interrupted(cause)
	}
	if err := c.back(); err != nil {
		return nil, c.interrupted(fmt.Errorf("%w; and then: %w", cause, err))
	}
	why := strings.ReplaceAll(cause.Error(), "\n", "; ")
	if ctx.Err() != nil {
		why = "it was interrupted"
	}
	r, err := c.end(vault.RolledBack, why)
	if err != nil {
		return nil, fmt.Errorf("%w; and then: %w", cause, err)
	}
	return r, fmt.Errorf("%w: %w", ErrRolledBack, cause)
}

// end notes on the disk how the change ended.
func (c *texts) end(s vault.State, why string) (*vault.TextReceipt, error) {
	now := c.e.now()
	c.r.State = s
	if s == vault.Undone {
		c.r.Undone = &now
	} else {
		c.r.Finished, c.r.Failure = &now, why
	}
	if err := c.e.v.PutText(c.r); err != nil {
		return nil, c.interrupted(err)
	}
	return c.r, nil
}

// interrupted is ErrInterrupted with what to name to recover.
func (c *texts) interrupted(err error) error {
	return fmt.Errorf("%w: %s: %w", ErrInterrupted, c.r.ID, err)
}

// UndoTexts gives the files of a change what they held before, or takes them away where there were
// none. Files that were changed since are a *ChangedError, and nothing is touched; a *LaterError where
// a later plan did it. One that was undone before is nothing to do. The errors are those of Undo.
func UndoTexts(ctx context.Context, id string, o Options) (*vault.TextReceipt, error) {
	e, err := newEngine(ctx, o)
	if err != nil {
		return nil, err
	}
	if _, err := e.v.TextReceipt(id); err != nil {
		return nil, err
	}
	lock, err := e.v.LockTexts()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	r, err := e.v.TextReceipt(id) // as it is now that nobody changes it
	if err != nil {
		return nil, err
	}
	switch r.State {
	case vault.Committed:
	case vault.Undone:
		return r, nil
	case vault.RolledBack:
		return nil, fmt.Errorf("%w: the change %s was rolled back, and is not in force", ErrNothing, id)
	case vault.SetAside:
		return nil, fmt.Errorf("%w: the change %s was given up; what was there before is in %s", ErrNothing, id,
			e.v.TextReceiptPath(id))
	default:
		return nil, fmt.Errorf("%w: its receipt is %s", ErrUnfinished, e.v.TextReceiptPath(id))
	}
	c := &texts{e, r}
	if err := errors.Join(c.readBack(true), c.liveKnown()); err != nil {
		return nil, c.later(ctx, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.State = vault.Undoing
	if err := e.v.PutText(r); err != nil {
		return nil, c.interrupted(err)
	}
	if err := c.back(); err != nil {
		return nil, c.interrupted(err)
	}
	return c.end(vault.Undone, "")
}

// later names the change that came after this one, where that is why it cannot be undone.
func (c *texts) later(ctx context.Context, why error) error {
	var changed *ChangedError
	if !errors.As(why, &changed) {
		return why
	}
	all, err := c.e.v.TextReceipts(ctx)
	if err != nil {
		return errors.Join(changed, err)
	}
	for _, r := range all {
		if r.State == vault.Committed && r.ID != c.r.ID && r.Created.After(c.r.Created) && names(r, changed.Path) {
			return &LaterError{changed.Path, r.ID, r.Created, c.r.ID}
		}
	}
	return changed
}
