// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/vault"
)

// act is what an act on the bases of the pool needs, and what ends its progress.
func (o *poolOptions) act(ctx context.Context, s *stdio) (bases.Options, func(), error) {
	dir, err := refs.BasesIn(ctx, o.pool, o.baseName, 0)
	if err != nil {
		return bases.Options{}, nil, err
	}
	return o.actIn(dir, s)
}

// actIn is act for a directory of bases.
func (o *poolOptions) actIn(dir string, s *stdio) (bases.Options, func(), error) {
	host, err := o.thisNode()
	if err != nil {
		return bases.Options{}, nil, err
	}
	state, err := stateDir(o.state)
	if err != nil {
		return bases.Options{}, nil, err
	}
	receipts, err := vault.New(vault.Options{StateDir: state})
	if err != nil {
		return bases.Options{}, nil, err
	}
	bar := newProgress(s, "reading")
	return s.machine.act(bases.Options{Bases: dir, Node: host, Receipts: receipts, Tool: "shisa " + version,
		Progress: func(what string, done, total int64) { bar.Part(filepath.Base(what), done, total) }}), bar.Done, nil
}

// thisNode is what this host is called among the nodes.
func (o *poolOptions) thisNode() (string, error) {
	if o.node != "" {
		return o.node, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the name of this host: %w", err)
	}
	return host, nil
}

// who is the person that runs the program, as far as the system knows.
func who() string {
	if sudo := os.Getenv("SUDO_USER"); sudo != "" {
		return sudo
	}
	u, err := user.Current()
	if err != nil {
		return fmt.Sprintf("uid %d", os.Getuid())
	}
	return u.Username
}

// acting is one act on the bases of a pool. An error that wants another status or hint than poolError gives has them.
type acting func(ctx context.Context, act bases.Options) (*pool.Done, error)

// done has something done to the bases of the pool.
func (o *poolOptions) done(ctx context.Context, s *stdio, do acting) (*pool.Done, error) {
	act, end, err := o.act(ctx, s)
	if err != nil {
		return nil, err
	}
	d, err := do(ctx, act)
	end()
	if d != nil && d.CanUndo {
		d.Undo = "shisa undo" + stateWord(o.state) + " " + d.Receipt
	}
	return d, poolError(err, o.pool)
}

// change has something done to the bases of the pool, and prints what. It ends with the status left if something was
// not done that was to be. Of an act that ended in the midst it is told what it did until then.
func (o *poolOptions) change(ctx context.Context, s *stdio, left int, do acting) error {
	d, err := o.done(ctx, s, do)
	switch {
	case err == nil:
		var status []int
		if len(d.Left) > 0 || len(d.Restored) > 0 && len(d.Quarantined) > 0 { // set aside, and back at once
			status = append(status, left)
		}
		if len(d.Unseen) > 0 {
			status = append(status, finding.StatusCannotTell)
		}
		return o.show(&render.BasePool{Path: o.pool, Status: finding.OrderStatus(status...), Done: d}, s)
	case d != nil && o.json && d.Did():
		d.Failure = oneLine{err}.Error()
		status := statusOf(err)
		if wasInterrupted(ctx, err) {
			status, d.Failure = finding.StatusInterrupted, "interrupted"
		}
		return errors.Join(err, (&render.BasePool{Path: o.pool, Status: []int{status}, Done: d}).JSON(s.out))
	case d != nil && !o.json && (d.Receipt != "" || len(d.Left) > 0):
		return errors.Join(err, render.BaseDone(s.out, d, s.style(o.all)))
	}
	return err
}

// poolError gives an error of an act on a pool its status and hint, unless it has them.
func poolError(err error, name string) error {
	refused := func(hint string) error {
		return finding.WithHint(withStatus(finding.StatusRefused, oneLine{err}), hint)
	}
	word := render.Word(name)
	again := "make a new one: shisa base plan --out FILE " + word
	switch {
	case err == nil || errors.As(err, new(*statusError)) || finding.HintOf(err) != "":
		return err
	case errors.Is(err, pool.ErrChain):
		if errors.Is(err, bases.ErrUnfinished) {
			err = withStatus(finding.StatusHalfDone, oneLine{err})
		}
		return finding.WithHint(err, "if a power cut or two programs without locks may have done that: shisa base recover "+
			"--accept-risk=audit:NODE "+word+", with the NODE that the file is called by")
	case errors.Is(err, bases.ErrUnfinished):
		return finding.WithHint(withStatus(finding.StatusHalfDone, oneLine{err}), "shisa base recover "+word)
	case errors.Is(err, bases.ErrReceiptOpen):
		return finding.WithHint(withStatus(finding.StatusHalfDone, oneLine{err}), "shisa recover finds out what it did")
	case errors.Is(err, bases.ErrBusy):
		return refused("wait until it has ended")
	case errors.Is(err, bases.ErrPurgeOff):
		return refused("it takes purge: true for the pool in the configuration, and allow_purge in the pool's pool.json")
	case errors.Is(err, bases.ErrApproval):
		return refused("read the plan, and give the digest that it ends with")
	case errors.Is(err, judge.ErrTooOld), errors.Is(err, judge.ErrOther), errors.Is(err, plan.ErrEdited):
		return refused(again)
	case errors.Is(err, plan.ErrNotPlan), errors.Is(err, plan.ErrNewer), errors.Is(err, errNoPlan):
		return finding.WithHint(oneLine{err}, again)
	case errors.Is(err, bases.ErrNoPool):
		return finding.WithHint(oneLine{err}, "mount it; a pool begins with: shisa base protect "+word+
			", or shisa base node join "+word)
	case errors.Is(err, bases.ErrOtherPool):
		return refused("mount it; if the old pool is gone for good: shisa base protect --accept-risk=new-pool:" + word + " " + word)
	case errors.Is(err, bases.ErrOther):
		return refused("mount it, or put its uuid right in the configuration")
	case errors.Is(err, bases.ErrTwice):
		return refused("one agent is enough for a node and pool: look who runs another one")
	case errors.Is(err, bases.ErrDuplicate):
		return refused("give one of them another name; if the other does not come back: shisa base node retire " + word +
			" NODE --reason TEXT")
	case errors.Is(err, vault.ErrReceipt):
		return finding.WithHint(oneLine{err}, "keep receipts elsewhere with --state DIR")
	}
	return err
}
