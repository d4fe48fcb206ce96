// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// state is what the pool keeps at this moment: all of it has to be read, since it may be what a node said.
func (k *undoing) state(ctx context.Context) (*pool.State, error) {
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err == nil {
		err = errors.Join(s.Unread...)
	}
	return s, err
}

// memberBack has a node be no member again. One that said anything since is one by that, and for ever.
func (k *undoing) memberBack(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	if _, why, err := there(s); why != "" || err != nil {
		return why, err
	}
	now, err := k.state(ctx)
	if err != nil {
		return "", err
	}
	switch n := lastOf(now, s.Name); {
	case n.Report != nil:
		return "", fmt.Errorf("%s has said what it needs since, in report %d of %s: it is a member by that", s.Name, n.Report.Seq,
			n.Report.Time.UTC().Format(time.RFC3339))
	case n.Retired != nil:
		return "", fmt.Errorf("%s was retired since: that is to be taken back first", s.Name)
	}
	return "", k.putAside(ctx, pool.Members, s.Name)
}

// retireBack has a node be waited for again. What it said last counts as it did.
func (k *undoing) retireBack(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	if _, why, err := there(s); why != "" || err != nil {
		return why, err
	}
	return "", k.putAside(ctx, pool.Gone, s.Name)
}

// unretireBack has a retirement be in force again that a join took back, or that another one took the place of.
func (k *undoing) unretireBack(ctx context.Context, s *vault.BaseStep) (why string, err error) {
	e, why, err := there(s)
	if why != "" || err != nil {
		return why, err
	}
	now, err := k.state(ctx)
	if err != nil {
		return "", err
	}
	gone, err := pool.ReadRetired(ctx, s.At(), k.Timeout)
	if err != nil {
		return "", err
	}
	n := lastOf(now, s.Name)
	n.Retired = &gone
	if k.r.Act == "join" && !n.Away() {
		return "", fmt.Errorf("%s has said what it needs since: it is back by that", s.Name)
	}
	for _, id := range gone.Pins {
		if n.Away() && pinOf(now, id) == nil {
			return "", fmt.Errorf("the pin %s was taken back since, and told what %s used: it is to be retired anew", id, s.Name)
		}
	}
	to := k.path(pool.Gone, pool.NodeFile(s.Name))
	if err := k.step(ctx, "retire "+s.Name); err != nil {
		return "", err
	}
	if err := k.Links.Move(e.ID, s.At(), to); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s was retired again since: %w", s.Name, err)
		}
		return "", err
	}
	return "", k.note(ctx, "retire", s.Name, 0, to, "undo of "+k.r.ID)
}

// pinOf is the pin with an id, nil if none is in force.
func pinOf(s *pool.State, id string) *pool.Pin {
	i := slices.IndexFunc(s.Pins, func(p pool.Pin) bool { return p.ID == id })
	if i < 0 {
		return nil
	}
	return &s.Pins[i]
}

// speaks tells whether a pin of a retirement may go: no retirement may be in force that names it, and the report of the
// node whose uses it stands for has to be there and to tell of them. A later one may be another machine's of that name.
func (k *undoing) speaks(ctx context.Context, s *vault.BaseStep) error {
	now, err := k.state(ctx)
	if err != nil {
		return err
	}
	for _, n := range now.Nodes() {
		if n.Away() && slices.Contains(n.Retired.Pins, s.ID) {
			return fmt.Errorf("%s is retired, and the pin of %s stands for what it used", n.Name, s.Name)
		}
	}
	pin := pinOf(now, s.ID)
	for i := range k.r.Steps {
		r := &k.r.Steps[i]
		if r.What != vault.BaseRetire || pin == nil {
			continue
		}
		report := lastOf(now, r.Name).Report
		switch {
		case report == nil:
			return fmt.Errorf("the last report of %s is gone, and the pin of %s tells what it used", r.Name, s.Name)
		case slices.ContainsFunc(pin.Uses, func(u pool.Use) bool { return !tells(report, &u) }):
			return fmt.Errorf("%s has reported since and does not name all that the pin of %s stands for; if nothing of that is needed "+
				"any more: shisa base unpin %s %s --reason TEXT", r.Name, s.Name, finding.Word(k.Bases), s.ID)
		}
	}
	return nil
}

// tells tells whether a report names the very use of an earlier one.
func tells(r *pool.Report, u *pool.Use) bool {
	return slices.ContainsFunc(r.Uses, func(v pool.Use) bool {
		return v.Name == u.Name && v.Inode == u.Inode && v.How == u.How && v.Holder == u.Holder
	})
}

const goneAlready = "it was gone already"

// there looks whether a name is still the file of a step. why says what it is where it is not.
func there(s *vault.BaseStep) (e diskio.Entry, why string, err error) {
	e, err = diskio.LookEntry(s.At())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return e, goneAlready, nil
	case errors.Is(err, diskio.ErrSpecial), err == nil && e.Ino != s.Inode:
		return e, "the name is another file's by now", nil
	}
	return e, "", err
}
