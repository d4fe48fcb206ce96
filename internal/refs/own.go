// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// silentAfter is how old the last report of a node is that is called silent. It is told, and changes nothing: what a
// node said counts for ever.
const silentAfter = time.Hour

// own adds what the pool keeps about itself: second names, bases that were set aside, and what was said of them.
func (t *taking) own(ctx context.Context) error {
	s, err := pool.Read(ctx, t.c.Bases, t.o.Timeout)
	if err != nil {
		return err
	}
	for _, err := range s.Unread {
		t.gap(pool.Path(t.c.Bases), "what the pool keeps about itself", err.Error())
	}
	if s.Policy != nil {
		t.c.Pool = s.Policy.UUID
	}
	if err := t.names(ctx); err != nil {
		return err
	}
	said := said(s)
	t.unknown(said)
	t.held(s)
	t.add(said)
	t.shields(s)
	return nil
}

// names counts how many names each base has.
func (t *taking) names(ctx context.Context) error {
	for i := range t.c.All {
		b := &t.c.All[i]
		if b.State != Live {
			continue
		}
		e, err := diskio.Within(ctx, t.o.Timeout, func() (diskio.Entry, error) { return diskio.LookEntry(b.Path) }, nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist): // it was taken away meanwhile, and has no names
		case err != nil:
			t.gap(b.Path, "number of names", reason(err))
		case e.ID == b.File:
			b.Links, b.Changed, b.Modified = e.Links, e.ChangeTime, e.ModTime
		}
	}
	return nil
}

// saying is one use that somebody else told of.
type saying struct {
	name  string
	inode uint64
	ref   Reference
}

// said gives what others said that need a base: the pins, and the latest report of each node, however long ago that
// was. Of a node that was retired the pins tell.
func said(s *pool.State) (all []saying) {
	now := s.Latest()
	for i := range s.Pins {
		p := &s.Pins[i]
		if p.Until != nil && !s.Clock.Before(*p.Until) {
			continue
		}
		ref := Reference{How: Pin, Holder: p.Reason, Node: p.Node, As: p.Name, Since: p.Time}
		if len(p.Uses) > 0 {
			ref.NodeState = "retired"
		}
		all = append(all, saying{p.Name, p.Inode, ref})
	}
	for _, n := range s.Nodes() {
		if n.Report == nil || n.Away() {
			continue
		}
		state := ""
		if now.Sub(n.Report.Time) > silentAfter {
			state = "silent"
		}
		for i := range n.Report.Uses {
			u := &n.Report.Uses[i]
			all = append(all, saying{u.Name, u.Inode, Reference{How: LastReport, Holder: u.Holder, Machine: u.Machine,
				Node: n.Name, NodeState: state, Depth: u.Depth, As: u.Name, Since: n.Report.Time}})
		}
	}
	return all
}

// unknown adds bases that another node needs and that are not there. A pin may be of one that is gone for good.
func (t *taking) unknown(all []saying) {
	names, inodes := map[string]bool{}, map[uint64]bool{}
	for i := range t.c.All {
		names[t.c.All[i].Name] = true
		inodes[t.c.All[i].File.Ino] = true
	}
	for i := range all {
		s := &all[i]
		if s.ref.How == Pin || names[s.name] || s.inode != 0 && inodes[s.inode] {
			continue
		}
		names[s.name] = true
		t.c.All = append(t.c.All, Base{Name: s.name, Path: filepath.Join(t.c.Bases, s.name), State: Missing, Uses: []Reference{}})
	}
}

// held adds what was set aside. Who needs a base that is missing under its name needs what was set aside under it.
func (t *taking) held(s *pool.State) {
	for i := range s.Held {
		h := &s.Held[i]
		b := Base{Name: h.Name, ID: h.ID, Path: h.Path, State: Quarantined, File: h.File, SizeBytes: h.SizeBytes,
			AllocatedBytes: h.AllocatedBytes, Modified: h.Modified, Changed: h.Since, Since: h.Since, Links: h.Links,
			Uses: []Reference{}}
		if h.Claimed {
			b.State = Claimed
		}
		if o, ok := s.Objects[h.File.Ino]; ok && o.SizeBytes == h.SizeBytes {
			b.Format = o.Format
		}
		if k, ok := t.byID[h.File]; ok {
			b.Uses = append(b.Uses, t.uses(int(k))...) // by a name of its own
		}
		for k := range t.c.All {
			if m := &t.c.All[k]; m.State == Missing && m.Name == h.Name {
				m.Held = h.ID
				b.Uses = append(b.Uses, m.Uses...)
			}
		}
		t.c.All = append(t.c.All, b)
	}
}

// add adds what was said to the bases that it is about.
func (t *taking) add(all []saying) {
	names, inodes := map[string][]int{}, map[uint64][]int{}
	live := map[string]bool{}
	for i := range t.c.All {
		b := &t.c.All[i]
		names[b.Name] = append(names[b.Name], i)
		live[b.Name] = live[b.Name] || b.State == Live
		if b.File.Ino != 0 {
			inodes[b.File.Ino] = append(inodes[b.File.Ino], i)
		}
	}
	for i := range all {
		s := &all[i]
		for _, k := range names[s.name] {
			// A name means the file that has it, and what had it before only where none has.
			if b := &t.c.All[k]; b.ID == "" || !live[s.name] || s.inode == b.File.Ino {
				b.Uses = append(b.Uses, s.ref)
			}
		}
		if s.inode == 0 {
			continue
		}
		for _, k := range inodes[s.inode] {
			if b := &t.c.All[k]; b.Name != s.name {
				b.Uses = append(b.Uses, s.ref)
			}
		}
	}
}

// shields tells which bases have a second name, and what only such names keep.
func (t *taking) shields(s *pool.State) {
	for i := range t.c.All {
		b := &t.c.All[i]
		for _, h := range s.Shields {
			switch {
			case b.State == Missing:
				// One with further names is the very file as well: somebody gave it those, or another base is it too.
				if h.Name == b.Name && filepath.Dir(b.Path) == t.c.Bases && (s.IsAlone(&h) || b.Shield == "" && b.Held == "") {
					b.Shield = h.Path
				}
			case h.ID == b.File && (h.Name == b.Name || b.Shield == ""):
				b.Shield = h.Path
			}
		}
	}
	for _, h := range s.Alone() {
		t.c.Kept.Files++
		t.c.Kept.AllocatedBytes += h.AllocatedBytes
		if t.c.Kept.Oldest.IsZero() || h.Modified.Before(t.c.Kept.Oldest) {
			t.c.Kept.Oldest = h.Modified
		}
	}
}
