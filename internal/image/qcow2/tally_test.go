// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"testing"

	"pgregory.net/rapid"
)

// plainTally is a tally as anybody would write it first.
type plainTally map[int64]*plainCount

type plainCount struct {
	n       uint64
	copied  bool // some reference has COPIED
	unowned bool // some active reference lacks it
	plain   bool // some reference is neither
}

func (p plainTally) add(first, last int64, weight uint64, kind refKind) {
	for c := first; c <= last; c++ {
		if p[c] == nil {
			p[c] = &plainCount{}
		}
		p[c].n += weight
		p[c].copied = p[c].copied || kind == refCopied
		p[c].unowned = p[c].unowned || kind == refUnowned
		p[c].plain = p[c].plain || kind == refPlain
	}
}

// doubts gives what word and run report for one cluster: a flag to be looked at, and sharing.
func doubts(t *tally, cluster int64) (copied bool) {
	c := t.chunkAt(cluster >> chunkBits)
	if c == nil {
		return false
	}
	i := uint32(cluster & (chunkClusters - 1))
	if c.planes == nil {
		for _, r := range c.runs {
			if uint32(r.first) <= i && i <= uint32(r.last) {
				return r.count == 1 && r.kind == refUnowned || r.multi
			}
		}
		return false
	}
	p, w, bit := c.planes, i>>6, uint64(1)<<(i&63)
	one, many := p.singles(w)
	doubt := one & p.base[2*w+1]
	if p.plain != nil {
		doubt &^= p.plain[w]
	}
	if p.multi != nil {
		doubt |= p.multi[w] & many
	}
	return doubt&bit != 0
}

func TestTallyCountsLikeAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const clusters = 3 * chunkClusters
		tallies := []*tally{newTally(clusters, 1<<30), newTally(clusters, 1<<30)}
		want := plainTally{}
		for range rapid.IntRange(1, 60).Draw(t, "adds") {
			first := rapid.Int64Range(0, clusters-1).Draw(t, "first")
			if rapid.Bool().Draw(t, "near") {
				first %= 300
			}
			last := min(clusters-1, first+rapid.SampledFrom([]int64{0, 0, 0, 1, 7, 63, 64, 500, 40000}).Draw(t, "length"))
			weight := rapid.SampledFrom([]uint64{1, 1, 1, 2, 5, 1 << 15, 1<<15 + 1, 100000}).Draw(t, "weight")
			kind := rapid.SampledFrom([]refKind{refPlain, refCopied, refUnowned}).Draw(t, "kind")
			tl := rapid.SampledFrom(tallies).Draw(t, "tally")
			if rapid.Bool().Draw(t, "later") {
				last, weight, kind = min(last, first|63), 1, max(kind, refCopied)
				if err := tl.addLater(first, uint64(last-first+1), kind == refUnowned); err != nil {
					t.Fatalf("addLater(%d, %d) = %v", first, last-first+1, err)
				}
			} else if err := tl.add(first, last, weight, kind); err != nil {
				t.Fatalf("add(%d, %d, %d, %d) = %v", first, last, weight, kind, err)
			}
			want.add(first, last, weight, kind)
		}
		for _, tl := range tallies {
			if err := tl.flush(); err != nil {
				t.Fatalf("flush() = %v", err)
			}
		}
		got := tallies[0]
		if err := got.merge(tallies[1]); err != nil {
			t.Fatalf("merge() = %v", err)
		}
		highest := int64(-1)
		for c := range int64(clusters) {
			w := want[c]
			if w == nil {
				w = &plainCount{}
			} else {
				highest = max(highest, c)
			}
			if n := got.count(c); n != w.n {
				t.Fatalf("count(%d) = %d, want %d", c, n, w.n)
			}
			doubt := w.n == 1 && w.unowned || w.n > 1 && w.copied
			if d := doubts(got, c); d != doubt {
				t.Fatalf("doubts(%d) = %v, want %v (%+v)", c, d, doubt, *w)
			}
		}
		if h := got.highest(); h != highest {
			t.Fatalf("highest() = %d, want %d", h, highest)
		}
	})
}

func TestPlanesAbove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tl := newTally(chunkClusters, 1<<30)
		counts := rapid.SliceOfN(rapid.Uint64Range(0, 9), 64, 64).Draw(t, "counts")
		for i, n := range counts {
			for range n {
				if err := tl.add(int64(i), int64(i), 1, refUnowned); err != nil {
					t.Fatal(err)
				}
			}
		}
		c := tl.chunkAt(0)
		if c == nil || c.planes == nil {
			return // all in runs
		}
		limit := rapid.Uint64Range(0, 20).Draw(t, "limit")
		got := c.planes.above(0, limit)
		for i, n := range counts {
			if got>>i&1 != 0 != (n > limit) {
				t.Fatalf("above(%d) of count %d = %v", limit, n, got>>i&1 != 0)
			}
		}
	})
}

func TestTallyFarAndBounded(t *testing.T) {
	far := newTally(1<<45, 1<<20)
	if far.flat != nil {
		t.Fatalf("newTally(1<<45) has a flat directory")
	}
	for _, c := range []int64{0, 1 << 44, 1<<45 - 1} {
		if err := far.add(c, c, 1, refCopied); err != nil {
			t.Fatalf("add(%d) = %v", c, err)
		}
		if n := far.count(c); n != 1 {
			t.Errorf("count(%d) = %d, want 1", c, n)
		}
	}
	if h := far.highest(); h != 1<<45-1 {
		t.Errorf("highest() = %d, want %d", h, int64(1<<45-1))
	}
	var err error
	for i := int64(0); i < 1<<20 && err == nil; i++ {
		err = far.add(i<<24, i<<24, 1, refCopied)
	}
	if err != errTallyMemory {
		t.Errorf("add beyond the bound = %v, want %v", err, errTallyMemory)
	}
}

func TestRefcountWidths(t *testing.T) {
	for order := range uint32(7) {
		h := &Header{RefcountOrder: order}
		for _, n := range []uint64{0, 1, 2, 3, 0x7f, h.MaxRefcount()} {
			if n > h.MaxRefcount() {
				continue
			}
			p := refcountPattern(n, order)
			for i := int64(0); i < 64>>order; i++ {
				if got := refcountAt(p[:], i, order); got != n {
					t.Errorf("refcountAt(pattern of %d, %d, width %d) = %d", n, i, 1<<order, got)
				}
			}
		}
	}
	block := []byte{0b11100100}
	for i, want := range []uint64{0, 1, 2, 3} {
		if got := refcountAt(block, int64(i), 1); got != want {
			t.Errorf("refcountAt(0b11100100, %d) = %d, want %d", i, got, want)
		}
	}
}
