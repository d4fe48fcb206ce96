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
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

var (
	// ErrAlive: a node that is to be retired spoke a moment ago.
	ErrAlive = errors.New("reported a moment ago")
	// ErrSilent: a node that is to be retired has never said what it needs.
	ErrSilent = errors.New("has never reported, so that nobody knows what it needs")
	// ErrPartly: a node that is to be retired could not see all that it needs when it spoke last.
	ErrPartly = errors.New("could not see all that it needs when it reported last")
	// ErrUnknown: there is no such node.
	ErrUnknown = errors.New("is no node that is known")
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
func Join(ctx context.Context, node string, by Person, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("join")
	if !pool.IsNode(node) {
		return nil, fmt.Errorf("%q is no name of a node", node)
	}
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	n := lastOf(s, node)
	back := n.Away()
	if n.Member != nil && !back {
		return nil, fmt.Errorf("%s %w", node, ErrMember)
	}
	defer func() { err = k.finish(ctx, d, err) }()
	if err := k.begin(ctx, s); err != nil {
		return nil, err
	}
	d = newDone(k.Bases, s)
	if err := k.makeDirs(ctx, pool.Members); err != nil {
		return d, err
	}
	if back {
		if err := k.putAside(ctx, pool.Gone, node); err != nil {
			return d, err
		}
	}
	if n.Member == nil {
		return d, k.join(ctx, &pool.Member{Node: node, By: by.By, Reason: by.Reason})
	}
	return d, k.note(ctx, "join", node, 0, k.path(pool.Members, pool.NodeFile(node)), by.Reason)
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
	if err := k.once(ctx, "join "+m.Node, stepAt(vault.BaseMember, m.Node, path, 0), text); err != nil {
		return err
	}
	return k.note(ctx, "join", m.Node, 0, path, m.By+": "+m.Reason)
}

// once writes the document that a step is about, unless there is one: fs.ErrExist. The receipt has its inode before that.
func (k *keeper) once(ctx context.Context, what string, s vault.BaseStep, text []byte) (err error) {
	tmp, id, err := k.draft(text)
	if err != nil {
		return err
	}
	s.Inode = id.Ino
	if err = k.will(s); err == nil {
		err = k.step(ctx, what)
	}
	if err == nil {
		err = k.Links.Move(id, tmp, s.At())
		k.did(s, err)
	}
	if err != nil {
		return errors.Join(err, k.undraft(tmp))
	}
	return nil
}

// draft writes a document under a name of its own.
func (k *keeper) draft(text []byte) (tmp string, id diskio.ID, err error) {
	fresh, err := plan.NewID()
	if err != nil {
		return "", id, err
	}
	tmp = k.path("." + fresh + ".new")
	f, err := k.Disk.CreateNew(tmp, 0o600)
	if err != nil {
		return "", id, err
	}
	_, err = f.WriteAt(text, 0)
	as, err2 := f.Identity()
	if err = errors.Join(err, err2, f.Sync(), f.Close()); err != nil {
		return "", id, errors.Join(err, k.Disk.Remove(tmp))
	}
	return tmp, as.ID, nil
}

func (k *keeper) undraft(tmp string) error {
	err := k.Disk.Remove(tmp)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has its name, whatever the answer was
	}
	return err
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
	to := k.path(dir, strings.TrimSuffix(pool.NodeFile(node), ".json")+"."+id+".gone.json")
	step := stepAt(vault.BaseUnretire, node, to, e.Ino)
	if dir == pool.Gone {
		if err := k.will(step); err != nil {
			return err
		}
	}
	if err := k.step(ctx, "put aside "+from); err != nil {
		return err
	}
	err = k.Links.Move(e.ID, from, to)
	if dir == pool.Gone {
		k.did(step, err)
	}
	if err != nil {
		return err
	}
	return k.note(ctx, "put_aside", node, 0, to, "it is not in force any more")
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
func Retire(ctx context.Context, node string, by Person, r RetireOptions, o Options) (
	gone *pool.Retired, d *pool.Done, err error,
) {
	k := newKeeper(o).as("retire")
	s, err := k.readPool(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	if len(s.Unread) > 0 {
		// It may be the node's own report, or a pin that is there already.
		return nil, nil, errors.Join(s.Unread...)
	}
	k.pool = s.Policy.UUID
	now, err := k.now(ctx)
	if err != nil {
		return nil, nil, err
	}
	n := lastOf(s, node)
	if err := mayRetire(&n, now, r); err != nil {
		return nil, nil, fmt.Errorf("%s %w", node, err)
	}
	if err := k.makeDirs(ctx, pool.Gone, pool.Pins, pool.Audit); err != nil {
		return nil, nil, err
	}
	d = newDone(k.Bases, s)
	defer func() { err = k.finish(ctx, d, err) }()
	gone = &pool.Retired{Schema: pool.RetiredSchema, Node: node, Reason: by.Reason, By: by.By, Time: now.UTC(), Pins: []string{}}
	if n.Report != nil {
		gone.Report = n.Report.SHA256
		if gone.Pins, err = k.pinAll(ctx, s, pinsOf(n.Report, by, k.Node, now), d); err != nil {
			return nil, d, err
		}
	}
	if n.Retired != nil {
		if err := k.putAside(ctx, pool.Gone, node); err != nil {
			return nil, d, err
		}
	}
	text, err := gone.Text()
	if err != nil {
		return nil, d, err
	}
	path := k.path(pool.Gone, pool.NodeFile(node))
	if err := k.once(ctx, "retire "+node, stepAt(vault.BaseRetire, node, path, 0), text); err != nil {
		return nil, d, err
	}
	why := fmt.Sprintf("%s: %s; %s for what it used", by.By, by.Reason,
		finding.Count(int64(len(gone.Pins)), "pin stands", "pins stand"))
	return gone, d, k.note(ctx, "retire", node, 0, path, why)
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

// pinAll makes pins, and gives their ids. Where one stands for the very same already, as after a retirement that was cut
// off, it is that.
func (k *keeper) pinAll(ctx context.Context, s *pool.State, wanted []pool.Pin, d *pool.Done) (ids []string, err error) {
	var fresh []*pool.Pin
	var steps []vault.BaseStep
	ids = []string{}
	for i := range wanted {
		p := &wanted[i]
		old := slices.IndexFunc(s.Pins, func(o pool.Pin) bool {
			return o.Name == p.Name && o.Inode == p.Inode && o.Until == nil && slices.Equal(o.Uses, p.Uses)
		})
		if old >= 0 {
			ids = append(ids, s.Pins[old].ID)
			continue
		}
		if p.ID, err = plan.NewID(); err != nil {
			return nil, err
		}
		ids, fresh = append(ids, p.ID), append(fresh, p)
		steps = append(steps, pinStep(p, k.path(pool.Pins, pool.PinName(p.ID))))
	}
	if err := k.will(steps...); err != nil {
		return nil, err
	}
	for i, p := range fresh {
		if err := k.putPin(ctx, p, &steps[i], d); err != nil {
			return nil, err
		}
	}
	return ids, nil
}
