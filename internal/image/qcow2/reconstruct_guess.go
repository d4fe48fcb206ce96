// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"math/bits"
	"slices"
)

const (
	// maxL1Guesses bounds the L1 tables that are kept beside the best.
	maxL1Guesses = 16
	// maxTargets bounds the entries of an L1 table that are followed.
	maxTargets = 128
	// maxPointers bounds the offsets by which a cluster size is judged.
	maxPointers = 4096
)

// l1Guess is an L1 table as it may be.
type l1Guess struct {
	off     int64
	entries int64 // that can be entries of this table
	used    []uint64
	index   []int32 // where they stand
	last    int64   // the last of them
	// Of the L2 tables looked at these look like tables, are empty, and are none.
	good, empty, bad int64
	// agree and differ count COPIED flags held against refcounts; owned: the table itself is counted
	// once.
	agree, differ int64
	owned         bool
	dataFile      bool
}

// guess is a cluster size with the tables that go with it.
type guess struct {
	bits uint32
	refs *refGuess // nil if there is none
	// l1s are the possible L1 tables, the best one first; l1 is that one, or nil.
	l1    *l1Guess
	l1s   []*l1Guess
	snaps []snapshotGuess

	// exact is how many of the pointers are multiples of this cluster size and of no larger one.
	pointers, exact int64
	// Of the pointers these are counted as used by the refcounts, and not.
	counted, uncounted int64
}

// settled reports whether the cluster size is beyond doubt.
func (g *guess) settled() bool {
	return g.bits > 0 && g.l1 != nil && g.exact >= 2 && g.agrees() && (g.refs != nil || g.exact >= 8)
}

// agrees reports whether the refcounts know what the tables lead to.
func (g *guess) agrees() bool { return g.uncounted*10 <= g.counted+g.uncounted }

// decide finds the cluster size and the tables; nil if there is none of either.
func (s *scout) decide(ctx context.Context) (*guess, error) {
	refs, err := s.findReftables(ctx)
	if err != nil {
		return nil, err
	}
	var best *guess
	try := func(b uint32, r *refGuess) error {
		g := &guess{bits: b, refs: r}
		if err := s.findL1(ctx, g); err != nil {
			return err
		}
		s.weigh(g)
		if best == nil || g.better(best, s.size) {
			best = g
		}
		return nil
	}
	for _, r := range refs {
		if err := try(r.bits, r); err != nil {
			return nil, err
		}
	}
	if best != nil && best.l1 != nil && best.agrees() {
		return best, nil
	}
	for b := uint32(MaxClusterBits); b >= MinClusterBits; b-- {
		if s.opts.ClusterBits != 0 && s.opts.ClusterBits != b {
			continue
		}
		if err := try(b, nil); err != nil {
			return nil, err
		}
	}
	if best == nil || best.refs == nil && best.l1 == nil {
		return nil, nil
	}
	// Late refcounts, as of an image that was not closed, still are those of the image.
	for _, r := range refs {
		if best.refs == nil && best.l1 != nil && r.bits == best.bits {
			g := &guess{bits: r.bits, refs: r}
			if err := s.findL1(ctx, g); err != nil {
				return nil, err
			}
			if g.l1 != nil && g.l1.off == best.l1.off {
				s.weigh(g)
				return g, nil
			}
		}
	}
	return best, nil
}

// better reports whether g explains the file better than o. A cluster size that is half of the
// true one fits every offset too, but none exactly, and its refcounts are those of other clusters.
func (g *guess) better(o *guess, size int64) bool {
	say := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	past := func(x *guess) bool {
		return x.refs != nil && x.refs.last > (size+1<<x.bits-1)>>x.bits
	}
	return cmp.Or(
		cmp.Compare(say(g.agrees() && (g.l1 != nil || g.refs != nil)),
			say(o.agrees() && (o.l1 != nil || o.refs != nil))),
		cmp.Compare(say(g.l1 != nil), say(o.l1 != nil)),
		cmp.Compare(say(g.refs != nil), say(o.refs != nil)),
		cmp.Compare(say(g.exact > 0), say(o.exact > 0)),
		cmp.Compare(say(!past(g)), say(!past(o))),
		cmp.Compare(g.bits, o.bits),
		cmp.Compare(o.order(), g.order()),
	) > 0
}

// order prefers the usual width of refcounts where several fit.
func (g *guess) order() int {
	if g.refs == nil {
		return 0
	}
	return max(int(g.refs.order)-4, 4-int(g.refs.order))
}

// weigh holds the offsets in the tables of g against its cluster size and its refcounts.
func (s *scout) weigh(g *guess) {
	add := func(off uint64) {
		if off == 0 || g.pointers >= maxPointers {
			return
		}
		g.pointers++
		if bits.TrailingZeros64(off) == int(g.bits) {
			g.exact++
		}
		if g.refs == nil || off >= uint64(s.size) {
			return
		}
		if s.refcount(g.refs, int64(off>>g.bits)) > 0 {
			g.counted++
		} else {
			g.uncounted++
		}
	}
	if g.refs != nil {
		add(uint64(g.refs.off))
		for i := 0; i < len(g.refs.entries) && i < maxBlocksTried; i++ {
			add(g.refs.entries[i])
		}
	}
	if g.l1 == nil {
		return
	}
	add(uint64(g.l1.off))
	step := max(1, len(g.l1.used)/maxTargets)
	for i := 0; i < len(g.l1.used); i += step {
		table := int64(g.l1.used[i] & OffsetMask)
		add(uint64(table))
		if g.l1.dataFile {
			continue
		}
		// Plain entries only: those of subclusters are at even places, and their bitmaps seldom
		// pass for offsets.
		for k := int64(0); k < min(512, int64(1)<<g.bits); k += 8 {
			w := s.word(table + k)
			if w&(FlagCompressed|l2ReservedMask) == 0 && w&OffsetMask < uint64(s.size) &&
				w&OffsetMask&(1<<g.bits-1) == 0 {
				add(w & OffsetMask)
			}
		}
	}
}

// findL1 finds the L1 tables for the cluster size and refcounts of g.
func (s *scout) findL1(ctx context.Context, g *guess) error {
	if err := s.findSnapshots(ctx, g); err != nil {
		return err
	}
	if s.opts.L1Off != 0 {
		if t := s.l1At(g, int64(s.opts.L1Off), false); t != nil {
			g.l1, g.l1s = t, []*l1Guess{t}
		} else if t := s.l1At(g, int64(s.opts.L1Off), true); t != nil {
			g.l1, g.l1s = t, []*l1Guess{t}
		}
		return nil
	}
	for _, dataFile := range []bool{false, true} {
		if err := s.findL1Of(ctx, g, dataFile); err != nil || g.l1 != nil {
			return err
		}
	}
	return nil
}

func (s *scout) findL1Of(ctx context.Context, g *guess, dataFile bool) error {
	end := int64(0) // of the last table found: what follows in it is no table of its own
	consider := func(off int64) {
		if off < end || g.snapshotAt(off) || g.refs != nil && off == g.refs.off {
			return
		}
		if t := s.l1At(g, off, dataFile); t != nil {
			g.l1s = append(g.l1s, t)
			end = off + t.entries*8
		}
		if len(g.l1s) >= 2*maxL1Guesses {
			g.sortL1s()
			g.l1s = g.l1s[:maxL1Guesses]
		}
	}
	err := s.starts(ctx, g.bits, func(c candidate) error {
		consider(c.off)
		return nil
	})
	if err != nil {
		return err
	}
	end = 0
	if old := int64(s.old64(40)) &^ (1<<g.bits - 1); old > 0 && old < s.size &&
		!slices.ContainsFunc(g.l1s, func(t *l1Guess) bool { return t.off == old }) {
		consider(old)
	}
	g.sortL1s()
	if len(g.l1s) > 0 {
		g.l1 = g.l1s[0]
	}
	return nil
}

// sortL1s puts the best table first: counted once itself, with flags that agree with the refcounts,
// and then the one with the most L2 tables.
func (g *guess) sortL1s() {
	slices.SortStableFunc(g.l1s, func(a, b *l1Guess) int {
		return cmp.Or(
			compareBool(b.owned, a.owned),
			// In shares of ten, for a few refcounts may be wrong.
			cmp.Compare(a.differ*10/max(1, a.agree+a.differ), b.differ*10/max(1, b.agree+b.differ)),
			cmp.Compare(b.good, a.good),
			cmp.Compare(a.off, b.off),
		)
	})
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// l1At reads what may be an L1 table, and gives it if it leads to L2 tables.
func (s *scout) l1At(g *guess, off int64, dataFile bool) *l1Guess {
	if off <= 0 || off&(1<<g.bits-1) != 0 || off >= s.size {
		return nil
	}
	t := &l1Guess{off: off, last: -1, dataFile: dataFile}
	if !s.firstTargets(g, t) {
		return nil
	}
	s.readL1(g, t)
	s.trimL1(g, t)
	step := max(1, len(t.used)/maxTargets)
	for i := 0; i < len(t.used); i += step {
		e := t.used[i]
		switch s.l2Like(int64(e&OffsetMask), g.bits, int64(t.index[i]), dataFile) {
		case tableGood, tableZeros:
			t.good++
		case tableEmpty:
			t.empty++
		default:
			t.bad++
		}
		if g.refs == nil {
			continue
		}
		if (s.refcount(g.refs, int64(e&OffsetMask)>>g.bits) == 1) == (e&FlagCopied != 0) {
			t.agree++
		} else {
			t.differ++
		}
	}
	if t.good == 0 || t.bad*4 > t.good+t.empty || t.empty > 4*t.good {
		return nil
	}
	t.owned = g.refs != nil && s.refcount(g.refs, off>>g.bits) == 1
	return t
}

// trimL1 takes off the end of t what leads to no tables: behind a table's last entry its cluster may
// hold what was there before.
func (s *scout) trimL1(g *guess, t *l1Guess) {
	bad := func(i int) bool {
		return s.l2Like(int64(t.used[i]&OffsetMask), g.bits, int64(t.index[i]), t.dataFile) == tableBad
	}
	// The last of several samples that is a table, and from there entry by entry.
	step := max(1, len(t.used)/maxTargets)
	last := 0
	for i := 0; i < len(t.used); i += step {
		if !bad(i) {
			last = i
		}
	}
	end := last + 1
	for end < min(len(t.used), last+step) && !bad(end) {
		end++
	}
	if len(t.used)-end < minStale {
		return
	}
	t.entries = int64(t.index[end])
	t.used, t.index = t.used[:end], t.index[:end]
	t.last = int64(t.index[end-1])
}

// minStale is how many entries in a row that lead nowhere are more than damage.
const minStale = 3

// firstTargets follows the first few entries of a table: most of what may be one leads to data.
func (s *scout) firstTargets(g *guess, t *l1Guess) bool {
	good, empty, bad := 0, 0, 0
	for i := int64(0); i < 1<<g.bits/8 && good == 0; i++ {
		e := s.word(t.off + 8*i)
		if e == 0 {
			continue
		}
		if !s.l1Entry(g, e) {
			return false
		}
		switch s.l2Like(int64(e&OffsetMask), g.bits, i, t.dataFile) {
		case tableGood:
			good++
		case tableEmpty, tableZeros:
			if empty++; empty > 8 {
				return false
			}
		default:
			if bad++; bad > 1 {
				return false
			}
		}
	}
	return good > 0
}

// l1Entry reports whether e can be an L1 entry.
func (s *scout) l1Entry(g *guess, e uint64) bool {
	off := e & OffsetMask
	return e&(FlagCompressed|l1ReservedMask) == 0 && off&(1<<g.bits-1) == 0 && off != 0 &&
		off < uint64(s.size)
}

// readL1 reads the entries of t up to the first that cannot be one. A table ends with the cluster
// behind which the refcounts say something else, a snapshot's table begins, or tables come twice.
func (s *scout) readL1(g *guess, t *l1Guess) {
	cs := int64(1) << g.bits
	seen := map[uint64]bool{}
	buf := make([]byte, min(cs, windowBytes))
	most := min(MaxL1Bytes, s.size-t.off)
	for pos := int64(0); pos < most; pos += int64(len(buf)) {
		at := t.off + pos
		if pos > 0 && pos%cs == 0 && (seen[uint64(at)] || g.snapshotAt(at) || g.refs != nil &&
			(at == g.refs.off || s.refcount(g.refs, at>>g.bits) != s.refcount(g.refs, t.off>>g.bits))) {
			return
		}
		s.looked += int64(len(buf))
		if err := s.read(buf, at); err != nil {
			s.note("L1 table", at, err)
			return
		}
		if pos > 0 && pos%cs == 0 && !s.goesOn(g, t, buf, pos/8) {
			return
		}
		for i := 0; i < len(buf); i += 8 {
			e := binary.BigEndian.Uint64(buf[i:])
			if e == 0 {
				continue
			}
			if !s.l1Entry(g, e) || seen[e&OffsetMask] || int64(e&OffsetMask) == t.off {
				t.cut(pos/8+int64(i/8), cs)
				return
			}
			seen[e&OffsetMask] = true
			t.used = append(t.used, e)
			t.last = pos/8 + int64(i/8)
			t.index = append(t.index, int32(t.last))
		}
		// Clusters without entries are taken only if entries follow.
		t.entries = max(t.entries, (t.last*8/cs+1)*cs/8)
		if pos+int64(len(buf)) > t.entries*8+maxZeroL1Bytes {
			return
		}
	}
}

// goesOn reports whether p, the next cluster of a table from entry index on, leads to tables too if
// it leads anywhere: what lies behind an L1 table is often an L2 table.
func (s *scout) goesOn(g *guess, t *l1Guess, p []byte, index int64) bool {
	tried := 0
	for i := 0; i < len(p) && tried < 16; i += 8 {
		e := binary.BigEndian.Uint64(p[i:])
		if e == 0 {
			continue
		}
		if !s.l1Entry(g, e) {
			return false
		}
		tried++
		switch s.l2Like(int64(e&OffsetMask), g.bits, index+int64(i/8), t.dataFile) {
		case tableGood, tableZeros:
			return true
		}
	}
	return tried == 0
}

// maxZeroL1Bytes is how much of a table may be empty before its next entry.
const maxZeroL1Bytes = 1 << 20

// cut ends the table before entry i, which cannot be one; in the cluster of the last entry it may be
// what was there before.
func (t *l1Guess) cut(i, cs int64) {
	n := (t.last*8/cs + 1) * cs / 8
	if i < n {
		n = max(i, t.last+1)
	}
	t.entries = n
}
