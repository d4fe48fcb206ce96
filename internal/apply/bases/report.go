// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

var (
	// ErrNoPool: nothing was ever begun beside the bases. A directory where the pool should be mounted looks
	// the same.
	ErrNoPool = errors.New("is not there: no pool was begun here, or it is not mounted")
	// ErrOther: the pool is another one than it should be.
	ErrOther = errors.New("is another pool")
	// ErrDuplicate: two machines call themselves by the name of one node.
	ErrDuplicate = errors.New("two machines have the name of one node")
	// ErrTwice: another agent of this node reported while this one looked, and knows more by now.
	ErrTwice = errors.New("another agent of this node reported meanwhile")
)

// duplicateOf is under which name the second machine of a name says so. It is a member from then on, and speaks
// against every removal until a person has found out which is which.
const duplicateOf = "@duplicate"

const (
	// maxUses bounds the uses of one base by one How that a report lists: more are counted.
	maxUses = 20
	// maxGaps bounds the gaps that a report lists, of which one is enough.
	maxGaps = 100
)

// PassOptions say who reports, and how it looks.
type PassOptions struct {
	// Pool is the UUID that the pool should have, "" for any.
	Pool string
	// Machine is a digest of the number of this machine, "" if it is not known.
	Machine string
	// Run tells about this run of the machine.
	Run func(ctx context.Context) (linux.Run, error)
	// Census looks at who needs what, from the moment that it is called.
	Census func(ctx context.Context) (*refs.Census, error)
}

// Pass is what a node does again and again: it says what it needs, so that whoever removes a base knows. The order
// is what makes a removal safe (see internal/refs/protocol):
//
//  1. it lists what is in quarantine
//  2. it looks the directory of the bases up anew, so that no launch of this node finds a base from now on that
//     was in quarantine at 1
//  3. it waits until every launch that looked a name up before 2 has written its overlay: launch_grace of the pool
//  4. it looks for uses
//  5. it publishes, and names as observed what it listed at 1
//
// Nothing sleeps in 3. What was listed at 1 is kept in the report as draining, with the moment after 2 by the clock
// of this machine, and is named as observed by the first later pass whose 4 begins launch_grace after that moment:
// for these ids the five steps are in the same order as if the first pass had waited, and all that lies between is
// more time and more looking. A machine that started anew has no launch of before, so that what it listed then
// is drained by that. The clock is the one that stands still while the machine sleeps, as its launches do.
//
// A node becomes a member by its first pass. The errors are ErrNoPool, ErrOther, ErrOtherPool, ErrDuplicate, ErrTwice, those
// of
// Run and Census, and what could not be read or written.
func Pass(ctx context.Context, p PassOptions, o Options) (*pool.Report, *refs.Census, error) {
	k := newKeeper(o)
	before, err := k.published()
	if err != nil {
		return nil, nil, err
	}
	s, err := k.readPool(ctx, p.Pool)
	if err != nil {
		return nil, nil, err
	}
	r := &pool.Report{Schema: pool.ReportSchema, Pool: s.Policy.UUID, Node: k.Node, Machine: p.Machine, Gaps: []string{},
		Observed: []string{}, Draining: []pool.Draining{}, Uses: []pool.Use{}, Storages: []pool.BaseStorage{}}
	run, err := p.Run(ctx)
	if err != nil {
		return nil, nil, err
	}
	r.BootID = run.BootID
	if err := k.makeDirs(ctx, pool.Members, pool.Nodes, pool.Audit); err != nil {
		return nil, nil, err
	}
	last := lastOf(s, k.Node)
	if err := k.single(ctx, s, last, p, run); err != nil {
		return nil, nil, errors.Join(err, k.tellDuplicate(ctx, s, r, err))
	}
	if err := k.joinByPass(ctx, s, last, p); err != nil {
		return nil, nil, err
	}
	seen, err := k.lookAnew(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	if run, err = p.Run(ctx); err != nil {
		return nil, nil, err
	}
	drain(r, last.Report, seen, run, time.Duration(s.Policy.LaunchGrace))
	c, err := p.Census(ctx)
	if err != nil {
		return nil, nil, err
	}
	if c.Bases != k.Bases || c.Pool != s.Policy.UUID {
		return nil, nil, fmt.Errorf("%s %w by now: %s of pool %q", k.Bases, ErrOther, c.Bases, c.Pool)
	}
	fill(r, c)
	r.Seq = nextSeq(s, &last)
	if now, err := k.published(); err != nil || now != before {
		return nil, nil, errors.Join(fmt.Errorf("node %s: %w", k.Node, ErrTwice), err)
	}
	return r, c, k.publish(ctx, r)
}

// nextSeq is the number of the next report of a node: above that of its last one, and of what was noted of it where that was lost,
// or is an older one.
func nextSeq(s *pool.State, n *pool.Node) uint64 {
	last := uint64(0)
	if n.Report != nil {
		last = n.Report.Seq
	}
	for i := range s.Notes {
		for _, k := range s.Notes[i].Nodes {
			if k.Node == n.Name {
				last = max(last, k.Seq)
			}
		}
	}
	return last + 1
}

// published tells reports of this node apart without reading them; the zero value is for none.
func (k *keeper) published() (diskio.Stat, error) {
	e, err := diskio.LookEntry(k.path(pool.Nodes, pool.NodeFile(k.Node)))
	if errors.Is(err, fs.ErrNotExist) {
		return diskio.Stat{}, nil
	}
	return e.Stat, err
}

// readPool reads the state of the pool, which has to be there, and the one that it was.
func (k *keeper) readPool(ctx context.Context, uuid string) (*pool.State, error) {
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	switch {
	case err != nil:
		return nil, err
	case s.Policy == nil && len(s.Unread) > 0:
		return nil, errors.Join(s.Unread...)
	case s.Policy == nil:
		return nil, fmt.Errorf("%s %w", k.path(pool.File), ErrNoPool)
	case uuid != "" && s.Policy.UUID != uuid:
		return nil, fmt.Errorf("%s %w: %s, want %s", k.path(pool.File), ErrOther, s.Policy.UUID, uuid)
	}
	return s, k.known(ctx, s)
}

// makeDirs makes directories of the pool, where they are not there.
func (k *keeper) makeDirs(ctx context.Context, dirs ...string) error {
	for _, dir := range dirs {
		if err := k.step(ctx, "make "+dir); err != nil {
			return err
		}
		if err := k.Disk.MakeDir(k.path(dir), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// lastOf is what the pool keeps of a node.
func lastOf(s *pool.State, node string) pool.Node {
	for _, n := range s.Nodes() {
		if n.Name == node {
			return n
		}
	}
	return pool.Node{Name: node}
}

// single tells whether no other machine goes by the name of this node: its references would be forgotten by the
// next report of this one. A name that a person retired is free.
func (k *keeper) single(ctx context.Context, s *pool.State, n pool.Node, p PassOptions, run linux.Run) error {
	if n.Away() {
		return nil
	}
	for _, machine := range []string{memberMachine(n.Member), reportMachine(n.Report)} {
		if machine != "" && p.Machine != "" && machine != p.Machine {
			return fmt.Errorf("node %s: %w: machine %.8s is a member, and this is %.8s", n.Name, ErrDuplicate, machine, p.Machine)
		}
	}
	if n.Report == nil || n.Report.BootID == run.BootID {
		return nil
	}
	// A run of the machine before this one cannot have said anything since this one began, by the clock of the file
	// server. Copies of one machine have the same number.
	e, err := diskio.LookEntry(k.path(pool.Nodes, pool.NodeFile(n.Name)))
	if err != nil {
		return err
	}
	now, err := k.now(ctx)
	if err != nil {
		return err
	}
	if started := now.Add(-run.Up); e.ModTime.After(started) {
		return fmt.Errorf("node %s: %w: one reported in run %.8s of the machine, %v after run %.8s had begun",
			n.Name, ErrDuplicate, n.Report.BootID, e.ModTime.Sub(started).Round(time.Second), run.BootID)
	}
	return nil
}

func memberMachine(m *pool.Member) string {
	if m == nil {
		return ""
	}
	return m.Machine
}

func reportMachine(r *pool.Report) string {
	if r == nil {
		return ""
	}
	return r.Machine
}

// tellDuplicate says in the pool that there is a second machine of the name, if that is what is wrong.
func (k *keeper) tellDuplicate(ctx context.Context, s *pool.State, r *pool.Report, why error) error {
	if !errors.Is(why, ErrDuplicate) {
		return nil
	}
	second := *r
	second.Node, second.Gaps = k.Node+duplicateOf, []string{why.Error()}
	old := lastOf(s, second.Node)
	second.Seq = nextSeq(s, &old)
	return k.publish(ctx, &second)
}

// joinByPass makes this node a member, if it is none. A name that was retired may be another machine's now.
func (k *keeper) joinByPass(ctx context.Context, s *pool.State, n pool.Node, p PassOptions) error {
	if n.Member != nil {
		if !n.Away() || n.Member.Machine == p.Machine {
			return nil
		}
		if err := k.putAside(ctx, pool.Members, n.Name); err != nil {
			return err
		}
	}
	err := k.join(ctx, &pool.Member{Node: k.Node, Machine: p.Machine, By: "agent", Reason: "its first report"})
	switch {
	case !errors.Is(err, fs.ErrExist):
		return err
	case len(s.Unread) > 0:
		return errors.Join(append([]error{err}, s.Unread...)...)
	}
	// Another program of this node was faster, or another machine of that name: the next pass tells which.
	return fmt.Errorf("node %s: %w: %w", k.Node, ErrTwice, err)
}

// lookAnew is step 2: it gives the ids of what was set aside as the state has it, but for bases that are still, or
// again, found under their names by this node.
func (k *keeper) lookAnew(ctx context.Context, s *pool.State) (seen []string, err error) {
	seen = []string{}
	if err := k.step(ctx, "look anew"); err != nil {
		return nil, err
	}
	_, err = diskio.WithinAt(ctx, k.Bases, k.Timeout, func() (struct{}, error) { return struct{}{}, diskio.LookAnew(k.Bases) }, nil)
	if err != nil {
		return nil, err
	}
	for i := range s.Held {
		h := &s.Held[i]
		e, err := diskio.WithinAt(ctx, filepath.Join(k.Bases, h.Name), k.Timeout, func() (diskio.Entry, error) {
			return diskio.LookEntry(filepath.Join(k.Bases, h.Name))
		}, nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case e.ID == h.File:
			continue
		}
		if !slices.Contains(seen, h.ID) {
			seen = append(seen, h.ID)
		}
	}
	slices.Sort(seen)
	return seen, nil
}

// fill puts into a report what a census found.
func fill(r *pool.Report, c *refs.Census) {
	gap := func(text string) {
		if len(r.Gaps) < maxGaps {
			r.Gaps = append(r.Gaps, valid(text))
		}
	}
	for i := range c.Gaps {
		g := &c.Gaps[i]
		gap(fmt.Sprintf("%s (%s): %s", g.Object, g.What, g.Reason))
	}
	for i := range c.All {
		b := &c.All[i]
		if odd := !pool.IsName(b.Name) || valid(b.Name) != b.Name; odd && (len(b.Uses) > 0 || b.State != refs.Live) {
			gap(fmt.Sprintf("%q may be needed, and its name cannot be told in a report", b.Path))
			continue
		}
		count, at := map[refs.How]int{}, map[refs.How]int{}
		for j := range b.Uses {
			u := &b.Uses[j]
			switch {
			case u.How == refs.LastReport || u.How == refs.Pin:
				continue // others say so themselves
			case count[u.How] == maxUses:
				r.Uses[at[u.How]].More++
				continue
			}
			count[u.How]++
			at[u.How] = len(r.Uses)
			r.Uses = append(r.Uses, pool.Use{Name: b.Name, Inode: b.File.Ino, How: string(u.How), Holder: valid(u.Holder),
				Machine: valid(u.Machine), Depth: u.Depth, Since: u.Since.UTC().Truncate(time.Second)})
		}
	}
	r.Files, r.Images, r.Overlays = c.Looked.Files, c.Looked.Images, c.Looked.Overlays
	r.Storages = slices.Clone(c.Storages)
	for i := range r.Storages {
		r.Storages[i].Path, r.Storages[i].Source = valid(r.Storages[i].Path), valid(r.Storages[i].Source)
	}
	r.Complete = len(r.Gaps) == 0
}

// valid is a text as a document can carry it, and a terminal show it.
func valid(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(text, string(utf8.RuneError)))
}

// publish gives the report to all who share the pool.
func (k *keeper) publish(ctx context.Context, r *pool.Report) error {
	now, err := k.now(ctx)
	if err != nil {
		return err
	}
	r.Time = now.UTC()
	r.Complete = len(r.Gaps) == 0
	text, err := r.Text()
	if err != nil {
		return err
	}
	if err := k.step(ctx, "publish"); err != nil {
		return err
	}
	return k.put(k.path(pool.Nodes, pool.NodeFile(r.Node)), text)
}
