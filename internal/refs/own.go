// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// silentAfter is how old the last report of a node is that is called silent. It is told, and changes nothing: what a
// node said counts for ever.
const silentAfter = time.Hour

// own adds what the pool keeps about itself: second names, bases that were set aside, and what was said of them.
func (t *taking) own(ctx context.Context) error {
	s := t.state
	for _, err := range s.Unread {
		t.gap(pool.Path(t.c.Bases), "what the pool keeps about itself", err.Error())
	}
	if s.Policy != nil {
		t.c.Pool = s.Policy.UUID
	}
	if err := t.names(ctx); err != nil {
		return err
	}
	t.shieldNames = map[diskio.ID][]string{}
	for i := range s.Shields {
		h := &s.Shields[i]
		t.shieldNames[h.ID] = append(t.shieldNames[h.ID], h.Name)
	}
	said := said(s)
	t.unknown(said)
	t.held(s)
	t.keptOnly(s)
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
		e, err := diskio.WithinAt(ctx, b.Path, t.o.Timeout, func() (diskio.Entry, error) { return diskio.LookEntry(b.Path) }, nil)
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
				Node: n.Name, NodeState: state, Depth: u.Depth, As: u.Name, Since: u.Since, Said: n.Report.Time}})
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
		for _, name := range t.called(&b) {
			b.Uses = append(b.Uses, t.wanted[name]...)
		}
		for k := range t.c.All {
			m := &t.c.All[k]
			if m.State != Missing || !slices.Contains(t.called(&b), m.Name) {
				continue
			}
			if m.Name == h.Name && t.c.Here(m) {
				m.Held = h.ID
			}
			b.Uses = append(b.Uses, m.Uses...)
		}
		t.c.All = append(t.c.All, b)
	}
}

// called gives the names by which a base may be meant: of one that has no name any more also those of its shields.
func (t *taking) called(b *Base) []string {
	names := []string{b.Name}
	if b.State == Live || b.State == Missing {
		return names
	}
	for _, n := range t.shieldNames[b.File] {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// live gives the names that files have in the directory of the bases.
func (t *taking) live() map[string]bool {
	live := map[string]bool{}
	for i := range t.c.All {
		if b := &t.c.All[i]; b.State == Live {
			live[b.Name] = true
		}
	}
	return live
}

// keptOnly adds what only shields keep. Who needs it by a name that is missing is told by that, see shielded.
func (t *taking) keptOnly(s *pool.State) {
	listed := map[diskio.ID]bool{} // removed, set aside or brought back since it was seen
	for i := range t.c.All {
		listed[t.c.All[i].File] = true
	}
	for i := range t.files {
		listed[t.files[i].stat.ID] = true // in a directory of images no base, and there
	}
	for _, h := range s.Alone() {
		if listed[h.ID] {
			continue
		}
		b := Base{Name: h.Name, Path: h.Path, State: ByShield, File: h.ID, SizeBytes: h.SizeBytes, AllocatedBytes: h.AllocatedBytes,
			Modified: h.Modified, Changed: h.Changed, Links: h.Links, Shield: h.Path, Uses: []Reference{}}
		if o, ok := s.Objects[h.ID.Ino]; ok && o.SizeBytes == h.SizeBytes {
			b.Format = o.Format
		}
		if k, ok := t.byID[h.ID]; ok {
			b.Uses = append(b.Uses, t.uses(int(k))...) // by the name of a shield
		}
		for _, name := range t.called(&b) {
			b.Uses = append(b.Uses, t.wanted[name]...)
		}
		t.c.All = append(t.c.All, b)
	}
}

// shielded gives each base that is missing its shield. What that keeps is no base of its own then: it is the one that is
// missing. Of several files that had the name nobody knows which is meant, and all are needed.
func (t *taking) shielded() {
	live, at, file := t.live(), map[string][]int{}, map[string]diskio.ID{}
	for i := range t.c.All {
		if b := &t.c.All[i]; b.State == Missing && t.c.Here(b) {
			at[b.Name] = append(at[b.Name], i)
		}
	}
	for _, h := range t.state.Shields {
		for _, i := range at[h.Name] {
			m := &t.c.All[i]
			// One with further names is the very file as well: somebody gave it those, or another base is it too.
			if !live[h.Name] && (t.state.IsAlone(&h) || m.Shield == "" && m.Held == "") {
				m.Shield, file[h.Path] = h.Path, h.ID
			}
		}
	}
	is := map[diskio.ID]bool{}
	for i := range t.c.All {
		if b := &t.c.All[i]; b.State == ByShield {
			is[b.File] = t.serves(b, at, file)
		}
	}
	t.c.All = slices.DeleteFunc(t.c.All, func(b Base) bool { return is[b.File] && b.State == ByShield })
}

// serves tells whether what only shields keep is a base that is missing, and gives it the uses of the others that it may be.
// at are the places of those by their names, file is which file a shield is.
func (t *taking) serves(b *Base, at map[string][]int, file map[string]diskio.ID) (is bool) {
	for _, name := range t.called(b) {
		for _, i := range at[name] {
			if m := &t.c.All[i]; m.Shield != "" && file[m.Shield] == b.File {
				m.Uses, is = union(m.Uses, b.Uses), true
			} else {
				b.Uses = union(b.Uses, m.Uses)
			}
		}
	}
	return is
}

// union adds uses that are not told yet. A process that has a file open which was removed is told by that.
func union(to, uses []Reference) []Reference {
	has, process := map[Reference]bool{}, map[int]bool{}
	for i := range to {
		has[to[i]] = true
		process[to[i].PID] = process[to[i].PID] || to[i].How == Deleted && to[i].PID > 0
	}
	for i := range uses {
		if u := &uses[i]; !has[*u] && !process[u.PID] {
			to = append(to, *u)
		}
	}
	return to
}

// add adds what was said to the bases that it is about.
func (t *taking) add(all []saying) {
	names, inodes, live := map[string][]int{}, map[uint64][]int{}, t.live()
	for i := range t.c.All {
		b := &t.c.All[i]
		for _, name := range t.called(b) {
			names[name] = append(names[name], i)
		}
		if b.File.Ino != 0 {
			inodes[b.File.Ino] = append(inodes[b.File.Ino], i)
		}
	}
	for i := range all {
		s := &all[i]
		for _, k := range names[s.name] {
			// A name means the file that has it, and what had it before only where none has.
			if b := &t.c.All[k]; b.ID == "" && b.State != ByShield || !live[s.name] || s.inode == b.File.Ino {
				b.Uses = append(b.Uses, s.ref)
			}
		}
		if s.inode == 0 {
			continue
		}
		for _, k := range inodes[s.inode] {
			if !slices.Contains(names[s.name], k) {
				t.c.All[k].Uses = append(t.c.All[k].Uses, s.ref)
			}
		}
	}
}

// shields tells which bases have a second name, and what only such names keep; shielded does of those that are missing.
func (t *taking) shields(s *pool.State) {
	for i := range t.c.All {
		b := &t.c.All[i]
		for _, h := range s.Shields {
			if h.ID == b.File && (h.Name == b.Name || b.Shield == "") {
				b.Shield = h.Path
			}
		}
	}
	for _, h := range s.Alone() {
		t.c.Kept.add(h.AllocatedBytes, h.Modified)
	}
	for i := range s.Partials {
		t.c.Partial.add(s.Partials[i].AllocatedBytes, s.Partials[i].Modified)
	}
}

func (k *Kept) add(allocatedBytes int64, modified time.Time) {
	k.Files++
	k.AllocatedBytes += allocatedBytes
	if k.Oldest.IsZero() || modified.Before(k.Oldest) {
		k.Oldest = modified
	}
}
