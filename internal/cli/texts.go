// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/vault"
)

// showTexts shows a plan for text files. next is the command line that carries it out.
func (o *changeOptions) showTexts(s *stdio, p *plan.Texts, saved, next string) error {
	var err error
	if o.json {
		err = render.JSON(s.out, plan.TextsSchema, p)
	} else {
		err = render.Texts(s.out, p, saved, next, s.style(o.all))
	}
	if err != nil {
		return err
	}
	return exitWith(p.Status[0])
}

// carryOutTexts applies a plan for text files and shows what became of it.
func (o *changeOptions) carryOutTexts(ctx context.Context, p *plan.Texts, s *stdio) error {
	bar := newProgress(s, "changing files")
	opts, err := o.engine(nil, p.Files[0].Path, bar)
	if err != nil {
		return err
	}
	r, err := apply.ApplyTexts(ctx, p, opts)
	bar.Done()
	if err != nil {
		err = textError(ctx, err, p.ID)
		if r == nil {
			return err
		}
		return errors.Join(o.showTextReceipt(s, r, statusOf(err)), err)
	}
	return o.showTextReceipt(s, r, finding.StatusClean)
}

// showTextReceipt writes the receipt of a text change.
func (o *changeOptions) showTextReceipt(s *stdio, r *vault.TextReceipt, statuses ...int) error {
	if o.json {
		doc := &render.TextReceiptDocument{Status: finding.OrderStatus(statuses...), TextReceipt: *r}
		return render.JSON(s.out, vault.TextReceiptSchema, doc)
	}
	return render.TextReceipt(s.out, r, "shisa undo"+stateWord(o.state)+" "+r.ID, s.style(o.all))
}

// textChange finds the change of text files that the user means: by the name of its receipt, its file, or
// a file of it, and then the newest that is in force. It is "" where there is none.
func (o *changeOptions) textChange(ctx context.Context, v *vault.Vault, name string) (string, error) {
	id := name
	if abs, err := filepath.Abs(name); err == nil && filepath.Dir(abs) == v.TextsDir() {
		id = strings.TrimSuffix(filepath.Base(abs), ".json")
	}
	if vault.IsID(id) {
		_, err := v.TextReceipt(id)
		switch {
		case err == nil:
			return id, nil
		case !errors.Is(err, vault.ErrNotFound):
			return "", err
		}
		return "", nil
	}
	path, err := diskio.RealPath(name)
	if err != nil {
		if path, err = filepath.Abs(name); err != nil {
			return "", err
		}
	}
	own := path // the name itself, where it is a link that a change made
	if dir, err := diskio.RealPath(filepath.Dir(name)); err == nil {
		own = filepath.Join(dir, filepath.Base(name))
	}
	all, err := v.TextReceipts(ctx)
	for _, r := range all {
		of := func(f plan.Text) bool { return f.Path == path || f.Path == own }
		if (r.State == vault.Committed || r.State.Unfinished()) && slices.ContainsFunc(r.Plan.Files, of) {
			return r.ID, nil
		}
	}
	if len(all) == 0 {
		return "", err
	}
	return "", nil // what could not be read is of other files, as far as is known
}

// undoTexts takes a change of text files back.
func (o *changeOptions) undoTexts(ctx context.Context, v *vault.Vault, id string, s *stdio) error {
	was, err := v.TextReceipt(id)
	if err != nil {
		return textError(ctx, err, id)
	}
	bar := newProgress(s, "undoing")
	opts, err := o.engine(nil, "", bar)
	if err != nil {
		return err
	}
	r, err := apply.UndoTexts(ctx, id, opts)
	bar.Done()
	if err != nil {
		if errors.Is(err, apply.ErrChanged) {
			err = finding.WithHint(err, "what was written since would be lost; the change stays in force")
		}
		return textError(ctx, err, id)
	}
	if was.State == vault.Undone {
		fmt.Fprintf(s.err, "shisa: it was undone before, at %s\n", r.Undone.Format(time.RFC3339))
	}
	return o.showTextReceipt(s, r, finding.StatusClean)
}

// textError gives an error of a change of text files its status and hint.
func textError(ctx context.Context, err error, id string) error {
	refused := func(hint string) error {
		return withStatus(finding.StatusRefused, finding.WithHint(oneLine{err}, hint))
	}
	var later *apply.LaterError
	switch {
	case err == nil, errors.As(err, new(*statusError)):
		return err
	case errors.Is(err, apply.ErrInterrupted):
		return withStatus(finding.StatusHalfDone, finding.WithHint(oneLine{err}, "shisa recover "+id))
	case errors.Is(err, apply.ErrRolledBack) && ctx.Err() != nil:
		return withStatus(finding.StatusInterrupted, errors.New("interrupted; the files are as they were"))
	case errors.Is(err, apply.ErrRolledBack):
		return withStatus(finding.StatusHalfDone, finding.WithHint(oneLine{err}, "nothing is left in the middle"))
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return withStatus(finding.StatusInterrupted, errors.New("interrupted; no file was touched"))
	case errors.Is(err, apply.ErrUnfinished):
		return refused("shisa recover")
	case errors.Is(err, diskio.ErrNoSync) && !errors.Is(err, vault.ErrReceipt):
		return refused("nothing was changed: after a power cut nobody could tell what is there")
	case errors.Is(err, diskio.ErrNoLocks), errors.Is(err, diskio.ErrNoSync):
		return refused("keep receipts on a local file system with --state DIR")
	case errors.Is(err, diskio.ErrInUse):
		return refused("another shisa is at work: wait until it ends, and try again")
	case errors.Is(err, apply.ErrUsed):
		return refused("a plan is carried out once; make a new one")
	case errors.As(err, &later):
		return refused("undo the later one first: shisa undo " + later.ID)
	case errors.Is(err, apply.ErrChanged), errors.Is(err, apply.ErrUnfit), errors.Is(err, plan.ErrEdited):
		if finding.HintOf(err) == "" {
			err = finding.WithHint(oneLine{err}, "look at the file, and make a new plan")
		}
		return withStatus(finding.StatusRefused, err)
	case errors.Is(err, plan.ErrNewer), errors.Is(err, vault.ErrNewer):
		return finding.WithHint(oneLine{err}, "use the version of shisa that made it, or a newer one")
	case errors.Is(err, fs.ErrPermission):
		return refused("run it as root, or as one who may write there")
	}
	return oneLine{err}
}

// applyTexts carries out a plan for text files that was saved.
func (o *changeOptions) applyTexts(ctx context.Context, p *plan.Texts, s *stdio) error {
	if p.Empty() {
		p.Status = []int{finding.StatusClean}
		return o.showTexts(s, p, "", "")
	}
	return o.carryOutTexts(ctx, p, s)
}
