// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

var (
	// ErrAlive: a node that is to be retired spoke a moment ago.
	ErrAlive = errors.New("reported a moment ago")
	// ErrSilent: a node that is to be retired has never said what it needs.
	ErrSilent = errors.New("has never reported, so that nobody knows what it needs")
	// ErrPartly: a node that is to be retired could not see all that it needs when it spoke last.
	ErrPartly = errors.New("could not see all that it needs when it reported last")
	// ErrUnknown: there is no such node.
	ErrUnknown = errors.New("no node of that name is known")
	// ErrMember: it is one already.
	ErrMember = errors.New("is a member already")
)

// aliveFor is how long after its last report a node is taken to be alive: it reports every ten minutes, and a pass
// over a million images takes some.
const aliveFor = 2 * passEvery

// Person is who acts, and why.
type Person struct{ By, Reason string }

// Join makes a node a member, before it has said anything: nothing is removed until it has. A retirement of it is
// taken back; the pins that stand for what it used stay. It makes the pool where there is none. ErrMember: there
// is nothing to do.
func Join(ctx context.Context, node string, by Person, o Options) (now *pool.State, err error) {
	k := newKeeper(o).as("join")
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, nil, err) }()
	if err := k.begin(ctx, s); err != nil {
		return nil, err
	}
	if err := k.makeDirs(ctx, pool.Members); err != nil {
		return nil, err
	}
	n := lastOf(s, node)
	back := n.Away()
	if n.Retired != nil {
		if err := k.putAside(ctx, pool.Gone, node); err != nil {
			return nil, err
		}
	}
	switch {
	case n.Member == nil:
		err = k.join(ctx, &pool.Member{Node: node, By: by.By, Reason: by.Reason})
	case back:
		err = k.note(ctx, "join", node, 0, k.path(pool.Members, pool.NodeFile(node)), by.Reason)
	default:
		err = fmt.Errorf("%s %w", node, ErrMember)
	}
	if err != nil {
		return nil, err
	}
	return pool.Read(ctx, k.Bases, k.Timeout)
}

// join writes the document of a member. The error is fs.ErrExist if there is one.
func (k *keeper) join(ctx context.Context, m *pool.Member) error {
	if !pool.IsNode(m.Node) {
		return fmt.Errorf("%q is no name of a node", m.Node)
	}
	now, err := k.now(ctx)
	if err != nil {
		return err
	}
	m.Schema, m.Joined = pool.MemberSchema, now.UTC()
	text, err := m.Text()
	if err != nil {
		return err
	}
	path := k.path(pool.Members, pool.NodeFile(m.Node))
	if err := k.step(ctx, "join "+m.Node); err != nil {
		return err
	}
	if err := k.putOnce(path, text); err != nil {
		return err
	}
	return k.note(ctx, "join", m.Node, 0, path, m.By+": "+m.Reason)
}

// putOnce is put for a name that must not be there: fs.ErrExist.
func (k *keeper) putOnce(path string, text []byte) error {
	id, err := plan.NewID()
	if err != nil {
		return err
	}
	tmp := k.path("." + id + ".new")
	f, err := k.Disk.CreateNew(tmp, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	as, err2 := f.Identity()
	err = errors.Join(err, err2, f.Sync(), f.Close())
	if err == nil {
		err = k.Links.Move(as.ID, tmp, path)
	}
	if err != nil {
		return errors.Join(err, k.Disk.Remove(tmp))
	}
	return nil
}

// putAside takes a document of a node out of use. It is kept under another name.
func (k *keeper) putAside(ctx context.Context, dir, node string) error {
	id, err := plan.NewID()
	if err != nil {
		return err
	}
	from := k.path(dir, pool.NodeFile(node))
	e, err := diskio.LookEntry(from)
	if err != nil {
		return err
	}
	if err := k.step(ctx, "put aside "+from); err != nil {
		return err
	}
	to := k.path(dir, strings.TrimSuffix(pool.NodeFile(node), ".json")+"."+id+".gone.json")
	if err := k.Links.Move(e.ID, from, to); err != nil {
		return err
	}
	return k.note(ctx, "put_aside", node, 0, to, "a newer one takes its place")
}

// RetireOptions say which risks of retiring a node were accepted, by its name.
type RetireOptions struct {
	// Alive: it may have spoken a moment ago. Silent: it may never have. Partly: its last report may be incomplete.
	Alive, Silent, Partly bool
	// Known are further nodes that may be retired: those that others than the pool tell of.
	Known []string
}

// Retire says for a person that a node does not come back, so that it is not waited for any more. Whatever its last
// report says that it needs is pinned before that: a retirement which is cut off in the midst has at most
// pinned something. The errors are ErrUnknown, ErrAlive, ErrSilent, ErrPartly, and what the pool could not tell.
func Retire(ctx context.Context, node string, by Person, r RetireOptions, o Options) (*pool.Retired, error) {
	k := newKeeper(o)
	s, err := k.readPool(ctx, "")
	if err != nil {
		return nil, err
	}
	if len(s.Unread) > 0 {
		// It may be the node's own report, or a pin that is there already.
		return nil, errors.Join(s.Unread...)
	}
	now, err := k.now(ctx)
	if err != nil {
		return nil, err
	}
	n := lastOf(s, node)
	if err := mayRetire(&n, now, r); err != nil {
		return nil, fmt.Errorf("%s %w", node, err)
	}
	if err := k.makeDirs(ctx, pool.Gone, pool.Pins, pool.Audit); err != nil {
		return nil, err
	}
	gone := &pool.Retired{Schema: pool.RetiredSchema, Node: node, Reason: by.Reason, By: by.By, Time: now.UTC(), Pins: []string{}}
	if n.Report != nil {
		gone.Report = n.Report.SHA256
		for _, p := range pinsOf(n.Report, by, k.Node, now) {
			id, err := k.pinFor(ctx, s, &p)
			if err != nil {
				return nil, err
			}
			gone.Pins = append(gone.Pins, id)
		}
	}
	if n.Retired != nil {
		if err := k.putAside(ctx, pool.Gone, node); err != nil {
			return nil, err
		}
	}
	text, err := gone.Text()
	if err != nil {
		return nil, err
	}
	path := k.path(pool.Gone, pool.NodeFile(node))
	if err := k.step(ctx, "retire "+node); err != nil {
		return nil, err
	}
	if err := k.putOnce(path, text); err != nil {
		return nil, err
	}
	why := fmt.Sprintf("%s: %s; %d pins stand for what it used", by.By, by.Reason, len(gone.Pins))
	return gone, k.note(ctx, "retire", node, 0, path, why)
}

// mayRetire tells what speaks against retiring a node.
func mayRetire(n *pool.Node, now time.Time, r RetireOptions) error {
	known := n.Member != nil || n.Report != nil || n.Retired != nil || slices.Contains(r.Known, n.Name)
	switch {
	case !known:
		return ErrUnknown
	case n.Away():
		return fmt.Errorf("was retired on %s already: %w", n.Retired.Time.Format(time.DateOnly), fs.ErrExist)
	case n.Report == nil && !r.Silent:
		return ErrSilent
	case n.Report == nil:
		return nil
	}
	// One from the future was written before the server's clock was put back, nobody knows when.
	if ago := now.Sub(n.Report.Time); ago < aliveFor && !r.Alive {
		return fmt.Errorf("%w: %v ago, report %d", ErrAlive, ago.Round(time.Second), n.Report.Seq)
	}
	if !n.Report.Complete && !r.Partly {
		return fmt.Errorf("%w: %s", ErrPartly, n.Report.Gaps[0])
	}
	return nil
}

// pinsOf gives the pins that stand for all uses of a report, one for each base.
func pinsOf(r *pool.Report, by Person, here string, now time.Time) (all []pool.Pin) {
	type base struct {
		name  string
		inode uint64
	}
	at := map[base]int{}
	for _, u := range r.Uses {
		b := base{u.Name, u.Inode}
		i, ok := at[b]
		if !ok {
			i = len(all)
			at[b] = i
			all = append(all, pool.Pin{Schema: pool.PinSchema, Name: u.Name, Inode: u.Inode, By: by.By, Node: here,
				Reason: "node " + r.Node + " was retired: " + by.Reason, Time: now.UTC(), Uses: []pool.Use{}})
		}
		all[i].Uses = append(all[i].Uses, u)
	}
	return all
}

// pinFor makes a pin, unless one stands for the very same already, as after a retirement that was cut off.
func (k *keeper) pinFor(ctx context.Context, s *pool.State, p *pool.Pin) (id string, err error) {
	for i := range s.Pins {
		old := &s.Pins[i]
		if old.Name == p.Name && old.Inode == p.Inode && old.Until == nil && slices.Equal(old.Uses, p.Uses) {
			return old.ID, nil
		}
	}
	if p.ID, err = plan.NewID(); err != nil {
		return "", err
	}
	text, err := p.Text()
	if err != nil {
		return "", err
	}
	path := k.path(pool.Pins, pool.PinName(p.ID))
	if err := k.step(ctx, "pin "+p.Name); err != nil {
		return "", err
	}
	if err := k.putOnce(path, text); err != nil {
		return "", err
	}
	return p.ID, k.note(ctx, "pin", p.Name, p.Inode, path, p.Reason)
}
