// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cut

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
)

const (
	// maxEvery is up to how many uncertain changes every subset is tried.
	maxEvery = 10
	// someRandom is how many random subsets are tried beyond that, and someTorn how many where the
	// changes are few but their sectors are many.
	someRandom, someTorn = 256, 32
)

// unit is a change that may have survived a cut, whole.
type unit struct {
	file   *inode
	change change
	// index is the place of the change in the file's log, or in the list of names where file is nil.
	index int
}

// Survivors gives the disks that may be found after the power was cut now: each different one once.
// Of the changes that no sync made sure every subset is tried, torn at sectors, while there are few;
// else random ones, from seed. Nothing may be done on the disk meanwhile.
func (d *Disk) Survivors(seed uint64) iter.Seq[*Disk] {
	d.mu.Lock()
	defer d.mu.Unlock()
	units, torn := d.units(false), d.units(true)
	return func(yield func(*Disk) bool) {
		seen := map[[32]byte]bool{}
		try := func(units []unit, survives func(i int) bool) bool {
			s := d.survivor(units, survives)
			sum := s.sum()
			if seen[sum] {
				return true
			}
			seen[sum] = true
			return yield(s)
		}
		every := func(units []unit) bool {
			for set := range 1 << len(units) {
				if !try(units, func(i int) bool { return set>>i&1 != 0 }) {
					return false
				}
			}
			return true
		}
		some := someRandom
		switch {
		case len(torn) <= maxEvery:
			every(torn)
			return
		case len(units) <= maxEvery:
			if !every(units) {
				return
			}
			some = someTorn
		}
		r := rand.New(rand.NewPCG(seed, 1))
		for range some {
			// All densities are tried, not only halves.
			density := r.Float64()
			if !try(torn, func(int) bool { return r.Float64() < density }) {
				return
			}
		}
	}
}

// Some gives at most so many different ones of the disks that may be found after the power was cut
// now: the one with nothing of what no sync made sure, the one with all of it, and random ones from
// seed.
func (d *Disk) Some(seed uint64, most int) iter.Seq[*Disk] {
	d.mu.Lock()
	defer d.mu.Unlock()
	torn := d.units(true)
	return func(yield func(*Disk) bool) {
		seen := map[[32]byte]bool{}
		r := rand.New(rand.NewPCG(seed, 2))
		tries := 2 * most
		if len(torn) < 16 {
			tries = min(tries, 1<<len(torn))
		}
		for n := 0; n < tries && len(seen) < most; n++ {
			density := r.Float64()
			s := d.survivor(torn, func(int) bool { return n == 1 || n > 1 && r.Float64() < density })
			if sum := s.sum(); !seen[sum] {
				seen[sum] = true
				if !yield(s) {
					return
				}
			}
		}
	}
}

// units lists what no sync made sure, in the order in which it was done.
func (d *Disk) units(torn bool) []unit {
	var all []unit
	for _, f := range d.files() {
		for n, c := range f.log {
			switch {
			case c.how == sure:
			case torn:
				for _, p := range c.pieces() {
					all = append(all, unit{f, p, n})
				}
			default:
				all = append(all, unit{f, c, n})
			}
		}
	}
	for n := range d.pending {
		all = append(all, unit{index: n})
	}
	return all
}

// files lists the files that have a name, or may have one after a cut, each once.
func (d *Disk) files() []*inode {
	found := map[*inode]bool{}
	for _, f := range d.names {
		found[f] = true
	}
	for _, f := range d.safe {
		found[f] = true
	}
	for _, r := range d.pending {
		found[r.file] = true
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b *inode) int { return int(a.ino) - int(b.ino) })
}

// survivor is the disk on which the units of which survives is true are found.
func (d *Disk) survivor(units []unit, survives func(i int) bool) *Disk {
	s := New(d.hang)
	s.dirs, s.free, s.inodes, s.noLocks = maps.Clone(d.dirs), d.free, d.inodes, d.noLocks
	s.freeAt = maps.Clone(d.freeAt)
	kept := map[*inode][]unit{}
	names := maps.Clone(d.safe)
	for i, u := range units {
		switch {
		case !survives(i):
		case u.file == nil:
			d.pending[u.index].apply(names)
		default:
			kept[u.file] = append(kept[u.file], u)
		}
	}
	copies := map[*inode]*inode{}
	for path, f := range names {
		if copies[f] == nil {
			copies[f] = f.after(kept[f])
		}
		s.names[path], s.safe[path] = copies[f], copies[f]
	}
	return s
}

// after is the file with the changes that survived, in the order in which they were made.
func (i *inode) after(kept []unit) *inode {
	p := slices.Clone(i.base)
	for n, c := range i.log {
		if c.how == sure {
			p = c.apply(p)
		}
		for _, u := range kept {
			if u.index == n {
				p = u.change.apply(p)
			}
		}
	}
	return &inode{ino: i.ino, block: i.block, changed: i.changed, owner: i.owner, mode: i.mode, bad: slices.Clone(i.bad),
		base: p, view: slices.Clone(p)}
}

// sum tells disks apart.
func (d *Disk) sum() (sum [32]byte) {
	h := sha256.New()
	for _, p := range slices.Sorted(maps.Keys(d.names)) {
		f := d.names[p]
		fmt.Fprintf(h, "%q %d %d\n", p, f.ino, len(f.base))
		h.Write(f.base)
	}
	h.Sum(sum[:0])
	return sum
}
