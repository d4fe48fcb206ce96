// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/vault"
)

// neededRisk is what is accepted where the name of a base is taken away that somebody needs, or may.
const neededRisk = "needed"

// baseAct finds the act on base images that the user means: by the name of its receipt, its file, or the directory
// of a pool, and then the newest that is in force. It is "" where there is none.
func baseAct(ctx context.Context, v *vault.Vault, name string) (string, error) {
	id := name
	if abs, err := filepath.Abs(name); err == nil && filepath.Dir(abs) == v.BasesDir() {
		id = strings.TrimSuffix(filepath.Base(abs), ".json")
	}
	if vault.IsID(id) {
		switch _, err := v.BaseReceipt(id); {
		case errors.Is(err, vault.ErrNotFound):
			return "", nil
		case err != nil:
			return "", err
		}
		return id, nil
	}
	if _, err := diskio.Look(name); !errors.Is(err, diskio.ErrDirectory) {
		return "", nil
	}
	dir, err := basesIn(ctx, name)
	if err != nil {
		return "", err
	}
	all, unread := v.BaseReceipts(ctx)
	for _, r := range all {
		if r.Dir() == dir && (r.State.Unfinished() || len(bases.InForce(r)) > 0) {
			return r.ID, nil
		}
	}
	return "", errors.Join(fmt.Errorf("no act on the bases in %s is in force", dir), unread)
}

// undoBases takes an act on base images back.
func (o *undoOptions) undoBases(ctx context.Context, v *vault.Vault, id string, risks []risk, s *stdio) error {
	was, err := v.BaseReceipt(id)
	if err != nil {
		return err
	}
	p := poolOptions{pool: was.Dir(), baseName: "_base", state: o.state, config: o.pools}
	if err := p.configure(ctx); err != nil {
		return err // it may say who else needs the bases
	}
	act, done, err := p.actIn(was.Dir(), s)
	if err != nil {
		return err
	}
	r, err := bases.Undo(ctx, id, bases.UndoOptions{
		Census: func(ctx context.Context) (*refs.Census, error) { return p.census(ctx, s) },
		Needed: func(path string) bool { return accepted(risks, neededRisk, path) },
	}, act)
	done()
	switch {
	case errors.Is(err, diskio.ErrInUse):
		return finding.WithHint(withStatus(finding.StatusRefused, oneLine{err}), "wait until it ends, and try again")
	case errors.Is(err, bases.ErrOtherPool), errors.Is(err, bases.ErrNothing):
		return withStatus(finding.StatusRefused, oneLine{err})
	case err != nil && ctx.Err() != nil:
		return withStatus(finding.StatusInterrupted, errors.New("interrupted; run it again to take the rest back"))
	case err != nil:
		return poolError(err, was.Dir())
	}
	if was.State == vault.Undone {
		fmt.Fprintf(s.err, "shisa: it was undone before, at %s\n", r.Undone.Format(time.RFC3339))
	}
	return o.showBaseReceipt(s, r)
}

// showBaseReceipt writes what became of an act that was taken back.
func (o *changeOptions) showBaseReceipt(s *stdio, r *vault.BaseReceipt) error {
	status := finding.StatusClean
	left := bases.InForce(r)
	if len(left) > 0 {
		status = finding.StatusRefused
	}
	var err error
	if o.json {
		doc := &render.BaseReceiptDocument{Status: finding.OrderStatus(status), BaseReceipt: *r}
		err = render.JSON(s.out, vault.BaseReceiptSchema, doc)
	} else {
		err = render.BaseReceipt(s.out, r, left, "--accept-risk="+neededRisk+":", s.style(o.all))
	}
	if err != nil {
		return err
	}
	return exitWith(status)
}

// acts ends the receipts of acts on base images that were cut off.
func (o *recoverOptions) acts(ctx context.Context, doc *render.RecoverDocument, s *stdio) []int {
	v, err := o.vault()
	if err != nil {
		return nil // recover has said so
	}
	say := warn(s)
	ended, half, err := bases.Settle(ctx, s.machine.act(bases.Options{Receipts: v}))
	for _, r := range ended {
		text := fmt.Sprintf("the act %s on the bases in %s was cut off, and its receipt says now what it did", r.Act, r.Dir())
		for i := range r.Steps {
			if st := &r.Steps[i]; st.Done && st.What == vault.BasePurge {
				text += fmt.Sprintf("; %s was removed for good", render.Name(st.Name))
			}
		}
		if !slices.ContainsFunc(r.Steps, func(st vault.BaseStep) bool { return st.Done }) {
			text = fmt.Sprintf("the act %s on the bases in %s was cut off before it did anything", r.Act, r.Dir())
		}
		if len(bases.InForce(r)) > 0 {
			text += ": shisa undo" + stateWord(o.state) + " " + r.ID + " takes that back"
		}
		say(text)
	}
	var statuses []int
	for _, r := range half {
		text := fmt.Sprintf("the undo of %s on the bases in %s was cut off: shisa undo%s %s goes on", r.Act, r.Dir(),
			stateWord(o.state), r.ID)
		say(text)
		doc.Errors = append(doc.Errors, text)
		statuses = append(statuses, finding.StatusHalfDone)
	}
	if err != nil {
		say(oneLine{err}.Error())
		doc.Errors = append(doc.Errors, oneLine{err}.Error())
		statuses = append(statuses, finding.StatusHalfDone)
	}
	return statuses
}
