// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

var (
	// ErrBusy: another program is setting aside, removing or recovering in this pool.
	ErrBusy = errors.New("another program is at work in this pool")
	// ErrUnfinished: an act came to no end, and Recover has to bring it there.
	ErrUnfinished = errors.New("was begun and came to no end")
	// ErrApproval: a person approved another plan.
	ErrApproval = errors.New("is not the plan that was approved")
	// ErrPurgeOff: removing for good is not allowed.
	ErrPurgeOff = errors.New("removing for good is not allowed")
)

// Decision is how it is found out what may be done.
type Decision struct {
	// Census looks at who needs what now.
	Census func(ctx context.Context) (*refs.Census, error)
	// Known gives the nodes that use the pool of a census as others than the pool say, and what of that could not
	// be read. The error is that of ctx. Nil gives none.
	Known func(ctx context.Context, c *refs.Census) ([]judge.Known, []error, error)
	// NoOverlays are nodes of which a person knows that no image rests on others there any more.
	NoOverlays []string
	// OtherStorage are nodes of which a person knows that the file systems there became others.
	OtherStorage []string
	// NewAudits are nodes of which a person knows that their audits do not hold, for Recover.
	NewAudits []string
}

// decide looks at everything anew and decides. only and mine are as in judge.Options; acting tells of an act whose
// intents are under way.
func (k *keeper) decide(ctx context.Context, d Decision, o judge.Options) (*judge.Plan, *pool.Notes, *refs.Census, error) {
	var err error
	// What has the name of the clock and is no file is told with all else that was not read, and there is no time.
	if o.Now, err = k.now(ctx); err != nil && !errors.Is(err, diskio.ErrSpecial) {
		return nil, nil, nil, err
	}
	c, err := d.Census(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	// What was said since the census counts as well.
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, nil, nil, err
	}
	if c.Bases != k.Bases {
		return nil, nil, nil, fmt.Errorf("%s %w: it was %s", c.Bases, judge.ErrOther, k.Bases)
	}
	if d.Known != nil {
		if o.Known, o.Unknown, err = d.Known(ctx, c); err != nil {
			return nil, nil, nil, err
		}
	}
	o.Node, o.Local, o.NoOverlays, o.OtherStorage = k.Node, k.Now(), d.NoOverlays, d.OtherStorage
	p, n := judge.Judge(c, s, o)
	return p, n, c, nil
}

// Plan decides what may be done with the bases of a pool, those of only if there are any, and notes what it saw for
// the next decision: that is all that it changes. Notes that could not be read stay. Where there is no pool it changes nothing. The error is
// ErrOtherPool where it was another pool.
func Plan(ctx context.Context, only []string, d Decision, o Options) (*judge.Plan, error) {
	k := newKeeper(o)
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	// What could not be read is told by the plan itself, and nothing is done by that.
	if s.NoPolicy == nil {
		if err := k.known(ctx, s); err != nil {
			return nil, err
		}
	}
	if s.Policy == nil {
		c, err := d.Census(ctx)
		if err != nil {
			return nil, err
		}
		p, _ := judge.Judge(c, s, judge.Options{Node: k.Node, Local: k.Now(), Only: only})
		return p, p.Seal()
	}
	p, n, _, err := k.decide(ctx, d, judge.Options{Only: only})
	if err != nil {
		return nil, err
	}
	unread, err := k.unreadNotes(s)
	if err != nil {
		return nil, err
	}
	if n.Time.IsZero() || unread {
		return p, p.Seal() // notes without a time are none; what cannot be read may tell of what became less, and stays
	}
	text, err := n.Text()
	if err != nil {
		return nil, err
	}
	if err := k.Disk.MakeDir(k.path(pool.Noted), 0o755); err != nil {
		return nil, err
	}
	if err := k.put(k.path(pool.Noted, pool.NodeFile(k.Node)), text); err != nil {
		return nil, err
	}
	return p, p.Seal()
}

// unreadNotes tells whether this node has notes that could not be read.
func (k *keeper) unreadNotes(s *pool.State) (bool, error) {
	_, err := diskio.LookEntry(k.path(pool.Noted, pool.NodeFile(k.Node)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil && !errors.Is(err, diskio.ErrSpecial):
		return false, err
	}
	return !slices.ContainsFunc(s.Notes, func(n pool.Notes) bool { return n.Node == k.Node }), nil
}

// ready begins an act that a plan is for: nobody else is at work, nothing is left half done, and the plan is of
// this pool and fresh. The lock is to be closed.
func (k *keeper) ready(ctx context.Context, p *judge.Plan) (s *pool.State, lock io.Closer, err error) {
	if s, err = pool.Read(ctx, k.Bases, k.Timeout); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(k.known(ctx, s), p.Of(k.Bases, s)); err != nil {
		return nil, nil, err
	}
	k.pool = s.Policy.UUID
	if lock, err = k.control(); err != nil {
		return nil, nil, err
	}
	now, err := k.now(ctx)
	if err == nil {
		err = p.Fresh(now)
	}
	if err == nil && len(s.Intents) > 0 {
		a := &s.Intents[0]
		err = fmt.Errorf("%s of %s on %s %w", a.Act, a.Name, a.Node, ErrUnfinished)
	}
	for _, dir := range []string{pool.Journal, pool.Quarantine, pool.Purge, pool.Audit} {
		if err == nil {
			err = k.Disk.MakeDir(k.path(dir), 0o755)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return s, lock, nil
}

// control locks the pool against other programs that set aside or remove. Where its file system keeps no locks there
// is none: what makes an act safe are the fresh names that bases are renamed to, and not this.
func (k *keeper) control() (io.Closer, error) {
	path := k.path(pool.Controller)
	f, err := k.Disk.CreateNew(path, 0o600)
	if errors.Is(err, fs.ErrExist) {
		f, err = k.Disk.OpenForRepair(path)
	}
	switch {
	case errors.Is(err, diskio.ErrInUse):
		return nil, fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, diskio.ErrNoLocks):
		return k.Disk.OpenWithoutLocks(path)
	case err != nil:
		return nil, err
	}
	return f, nil
}
