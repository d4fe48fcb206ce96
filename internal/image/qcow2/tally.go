// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"errors"
	"math/bits"
	"slices"
)

// A tally counts the references to host clusters. It is the memory of a check, so it is built for
// three shapes of image at once:
//
//	sequential  a chunk of 32768 clusters is a handful of runs: a few dozen bytes
//	random      a chunk becomes bit planes: one bit a cluster for "one reference", one for its kind
//	shared      further planes hold the higher binary digits of the counts, so adding a reference
//	            to 64 clusters is a ripple of carries through words, exact and never saturated
//
// Where nothing refers to a chunk there is no chunk: a hole of a terabyte costs nothing.
//
// Beside the count a tally remembers what decides about COPIED flags ("Cluster mapping": the flag
// is set if and only if the refcount is exactly one): whether the single reference lacks the flag,
// and whether any of several references has it. Everything else needs a second look at the tables.
const (
	chunkBits     = 15
	chunkClusters = 1 << chunkBits
	chunkWords    = chunkClusters / 64
	pageBits      = 6 // chunks in a page
	pageChunks    = 1 << pageBits
	// maxFlatPages bounds the flat directory to 512 KiB; beyond it pages are kept in a map.
	maxFlatPages = 1 << 16
	// maxRuns is how many runs a chunk keeps before planes are cheaper to search.
	maxRuns = 24
	// maxPlanes bounds the digits of a count; more references than 2^40 do not fit into any file.
	maxPlanes = 40
)

// errTallyMemory: the references do not fit into the memory allowed for them.
var errTallyMemory = errors.New("reference counts need more memory than allowed")

// refKind says what a reference means for the COPIED flag.
type refKind uint8

const (
	refPlain   refKind = iota // metadata, compressed, or of a snapshot: no COPIED flag
	refCopied                 // active, COPIED set
	refUnowned                // active, COPIED clear
)

// run is a range of clusters in a chunk that all have the same count and kind.
type run struct {
	first, last uint16
	count       uint16 // 1 or more
	kind        refKind
	multi       bool // count > 1 and one of the references has COPIED
}

// chunk counts 32768 clusters: as runs while these are few, else as planes.
type chunk struct {
	runs   []run // sorted, disjoint
	planes *planes
}

// planes are bit vectors over a chunk. The two that every reference touches share a cache line.
type planes struct {
	base  [2 * chunkWords]uint64 // ones digit, and "the single reference is refUnowned", in turn
	plain *[chunkWords]uint64    // there is a refPlain reference; nil: none
	multi *[chunkWords]uint64    // several references, one with COPIED; nil: none
	high  []*[chunkWords]uint64  // twos, fours, ... digits
}

type chunkPage [pageChunks]*chunk

type tally struct {
	flat  []*chunkPage
	far   map[int64]*chunkPage
	bytes int64 // memory taken so far
	limit int64
	// the page added to last, which serves nearly all additions
	lastNo   int64
	lastPage *chunkPage
}

// newTally makes a tally for clusters below n that may take limitBytes of memory.
func newTally(n int64, limitBytes int64) *tally {
	t := &tally{limit: limitBytes, lastNo: -1}
	pages := n>>(chunkBits+pageBits) + 1
	if pages <= maxFlatPages {
		t.flat = make([]*chunkPage, pages)
	} else {
		t.far = map[int64]*chunkPage{}
	}
	return t
}

// chunkAt gives the chunk of a cluster, nil if nothing refers to it.
func (t *tally) chunkAt(no int64) *chunk {
	p := t.pageAt(no >> pageBits)
	if p == nil {
		return nil
	}
	return p[no&(pageChunks-1)]
}

func (t *tally) pageAt(no int64) *chunkPage {
	if t.flat == nil {
		return t.far[no]
	}
	if no >= int64(len(t.flat)) {
		return nil
	}
	return t.flat[no]
}

// makeChunk gives the chunk of number no, making it if there is none.
func (t *tally) makeChunk(no int64) (*chunk, error) {
	p := t.lastPage
	if no>>pageBits != t.lastNo {
		p = t.pageAt(no >> pageBits)
	}
	if p == nil {
		if err := t.take(pageChunks * 8); err != nil {
			return nil, err
		}
		p = new(chunkPage)
		if t.flat != nil {
			t.flat = growTo(t.flat, int(no>>pageBits))
			t.flat[no>>pageBits] = p
		} else {
			t.far[no>>pageBits] = p
		}
	}
	t.lastNo, t.lastPage = no>>pageBits, p
	c := p[no&(pageChunks-1)]
	if c == nil {
		if err := t.take(64); err != nil {
			return nil, err
		}
		c = new(chunk)
		p[no&(pageChunks-1)] = c
	}
	return c, nil
}

func growTo(s []*chunkPage, i int) []*chunkPage {
	for len(s) <= i {
		s = append(s, nil)
	}
	return s
}

func (t *tally) take(n int64) error {
	t.bytes += n
	if t.bytes > t.limit {
		return errTallyMemory
	}
	return nil
}

// add counts weight references of one kind to each of the clusters [first, last].
func (t *tally) add(first, last int64, weight uint64, kind refKind) error {
	for {
		no := first >> chunkBits
		end := min(last, no<<chunkBits|(chunkClusters-1))
		c, err := t.makeChunk(no)
		if err != nil {
			return err
		}
		a, b := uint32(first&(chunkClusters-1)), uint32(end&(chunkClusters-1))
		if c.planes != nil && a == b && weight == 1 {
			w, bit := a>>6, uint64(1)<<(a&63)
			p := c.planes
			if p.base[2*w]&bit == 0 && p.high == nil && kind != refPlain {
				p.base[2*w] |= bit
				if kind == refUnowned {
					p.base[2*w+1] |= bit
				}
			} else if err := p.addWord(t, w, bit, weight, kind); err != nil {
				return err
			}
		} else if err := c.add(t, a, b, weight, kind); err != nil {
			return err
		}
		if end == last {
			return nil
		}
		first = end + 1
	}
}

func (c *chunk) add(t *tally, a, b uint32, weight uint64, kind refKind) error {
	if c.planes == nil {
		if weight <= 1<<15 && c.addRun(run{uint16(a), uint16(b), uint16(weight), kind,
			weight > 1 && kind == refCopied}) {
			return nil
		}
		if err := c.spill(t); err != nil {
			return err
		}
	}
	return c.planes.addRange(t, a, b, weight, kind)
}

// addRun adds a run that touches no other reference; false if it does or there are too many.
func (c *chunk) addRun(r run) bool {
	n := len(c.runs)
	at := n
	if n > 0 && c.runs[n-1].first > r.first {
		at, _ = slices.BinarySearchFunc(c.runs, r.first, func(x run, f uint16) int {
			return int(x.first) - int(f)
		})
	}
	if at > 0 && c.runs[at-1].last >= r.first || at < n && c.runs[at].first <= r.last {
		return false
	}
	joinLeft := at > 0 && c.runs[at-1].last+1 == r.first && c.runs[at-1].same(r)
	joinRight := at < n && r.last+1 == c.runs[at].first && c.runs[at].same(r)
	switch {
	case joinLeft && joinRight:
		c.runs[at-1].last = c.runs[at].last
		c.runs = slices.Delete(c.runs, at, at+1)
	case joinLeft:
		c.runs[at-1].last = r.last
	case joinRight:
		c.runs[at].first = r.first
	case n >= maxRuns:
		return false
	default:
		c.runs = slices.Insert(c.runs, at, r)
	}
	return true
}

func (r run) same(o run) bool { return r.count == o.count && r.kind == o.kind && r.multi == o.multi }

// spill turns the runs of a chunk into planes.
func (c *chunk) spill(t *tally) error {
	if err := t.take(16 * chunkWords); err != nil {
		return err
	}
	c.planes = new(planes)
	for _, r := range c.runs {
		kind := r.kind
		if r.multi {
			kind = refCopied
		}
		if err := c.planes.addRange(t, uint32(r.first), uint32(r.last), uint64(r.count), kind); err != nil {
			return err
		}
	}
	c.runs = nil
	return nil
}

func (p *planes) addRange(t *tally, a, b uint32, weight uint64, kind refKind) error {
	for w := a >> 6; w <= b>>6; w++ {
		mask := ^uint64(0)
		if w == a>>6 {
			mask <<= a & 63
		}
		if w == b>>6 {
			mask &= ^uint64(0) >> (63 - b&63)
		}
		if err := p.addWord(t, w, mask, weight, kind); err != nil {
			return err
		}
	}
	return nil
}

// addWord adds weight references to the clusters of mask in word w.
func (p *planes) addWord(t *tally, w uint32, mask, weight uint64, kind refKind) error {
	one, many := p.singles(w)
	again := mask & (one | many)
	first := mask &^ again
	// Several references now: keep whether one of them had COPIED.
	copied := again & one & p.copiedSingles(w)
	if kind == refUnowned {
		p.base[2*w+1] |= mask
	}
	if kind == refCopied {
		copied |= again
		if weight > 1 {
			copied |= first
		}
	}
	if copied != 0 {
		if err := lazy(t, &p.multi); err != nil {
			return err
		}
		p.multi[w] |= copied
	}
	if kind == refPlain {
		if err := lazy(t, &p.plain); err != nil {
			return err
		}
		p.plain[w] |= mask
	}
	for digit := 0; weight != 0; digit, weight = digit+1, weight>>1 {
		if weight&1 != 0 {
			if err := p.carry(t, w, mask, digit); err != nil {
				return err
			}
		}
	}
	return nil
}

// carry adds 1<<digit to the clusters of mask.
func (p *planes) carry(t *tally, w uint32, mask uint64, digit int) error {
	if digit == 0 {
		old := p.base[2*w]
		p.base[2*w] = old ^ mask
		mask &= old
		digit = 1
	}
	for ; mask != 0; digit++ {
		if digit >= maxPlanes {
			return errTallyMemory
		}
		for len(p.high) < digit {
			p.high = append(p.high, nil)
		}
		if err := lazy(t, &p.high[digit-1]); err != nil {
			return err
		}
		old := p.high[digit-1][w]
		p.high[digit-1][w] = old ^ mask
		mask &= old
	}
	return nil
}

func lazy(t *tally, plane **[chunkWords]uint64) error {
	if *plane != nil {
		return nil
	}
	*plane = new([chunkWords]uint64)
	return t.take(8 * chunkWords)
}

// singles gives the clusters of word w with exactly one reference, and those with more.
func (p *planes) singles(w uint32) (one, many uint64) {
	for _, h := range p.high {
		if h != nil {
			many |= h[w]
		}
	}
	return p.base[2*w] &^ many, many
}

// above gives the clusters of word w with more than n references: the digits are compared from the
// highest down, 64 numbers at a time.
func (p *planes) above(w uint32, n uint64) uint64 {
	var more uint64
	same := ^uint64(0)
	if n>>(len(p.high)+1) != 0 {
		return 0
	}
	for d := len(p.high); d >= 0; d-- {
		digit := p.base[2*w]
		if d > 0 {
			digit = 0
			if h := p.high[d-1]; h != nil {
				digit = h[w]
			}
		}
		if n>>d&1 == 0 {
			more |= same & digit
			same &^= digit
		} else {
			same &= digit
		}
	}
	return more
}

// copiedSingles gives the clusters whose reference, if it is the only one, has COPIED.
func (p *planes) copiedSingles(w uint32) uint64 {
	c := ^p.base[2*w+1]
	if p.plain != nil {
		c &^= p.plain[w]
	}
	return c
}

// count gives how many references cluster i of the chunk has.
func (p *planes) count(i uint32) uint64 {
	w, s := i>>6, i&63
	n := p.base[2*w] >> s & 1
	for d, h := range p.high {
		if h != nil {
			n |= h[w] >> s & 1 << (d + 1)
		}
	}
	return n
}

// count gives how many references a cluster has.
func (t *tally) count(cluster int64) uint64 {
	c := t.chunkAt(cluster >> chunkBits)
	if c == nil {
		return 0
	}
	i := uint32(cluster & (chunkClusters - 1))
	if c.planes != nil {
		return c.planes.count(i)
	}
	for _, r := range c.runs {
		if uint32(r.first) <= i && i <= uint32(r.last) {
			return uint64(r.count)
		}
	}
	return 0
}

// merge adds all of o to t; o must not be used afterwards.
func (t *tally) merge(o *tally) error {
	return o.each(func(no int64, c *chunk) error {
		p := t.pageAt(no >> pageBits)
		if p == nil || p[no&(pageChunks-1)] == nil {
			if _, err := t.makeChunk(no); err != nil {
				return err
			}
			t.pageAt(no >> pageBits)[no&(pageChunks-1)] = c
			return nil
		}
		return p[no&(pageChunks-1)].merge(t, c)
	})
}

func (c *chunk) merge(t *tally, o *chunk) error {
	if o.planes == nil {
		for _, r := range o.runs {
			kind := r.kind
			if r.multi {
				kind = refCopied
			}
			if err := c.add(t, uint32(r.first), uint32(r.last), uint64(r.count), kind); err != nil {
				return err
			}
		}
		return nil
	}
	if c.planes == nil {
		*c, *o = *o, *c
		return c.merge(t, o)
	}
	for w := range uint32(chunkWords) {
		if err := c.planes.mergeWord(t, o.planes, w); err != nil {
			return err
		}
	}
	return nil
}

func (p *planes) mergeWord(t *tally, o *planes, w uint32) error {
	one, many := p.singles(w)
	oOne, oMany := o.singles(w)
	if oOne|oMany == 0 {
		return nil
	}
	both := (one | many) & (oOne | oMany)
	copied := both & (one&p.copiedSingles(w) | oOne&o.copiedSingles(w))
	if o.multi != nil {
		copied |= o.multi[w]
	}
	if copied != 0 {
		if err := lazy(t, &p.multi); err != nil {
			return err
		}
		p.multi[w] |= copied
	}
	p.base[2*w+1] |= o.base[2*w+1]
	if o.plain != nil && o.plain[w] != 0 {
		if err := lazy(t, &p.plain); err != nil {
			return err
		}
		p.plain[w] |= o.plain[w]
	}
	if err := p.carry(t, w, o.base[2*w], 0); err != nil {
		return err
	}
	for d, h := range o.high {
		if h != nil {
			if err := p.carry(t, w, h[w], d+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// each calls fn for the chunks in ascending order.
func (t *tally) each(fn func(no int64, c *chunk) error) error {
	page := func(no int64, p *chunkPage) error {
		for i, c := range p {
			if c != nil {
				if err := fn(no<<pageBits|int64(i), c); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if t.flat != nil {
		for no, p := range t.flat {
			if p != nil {
				if err := page(int64(no), p); err != nil {
					return err
				}
			}
		}
		return nil
	}
	nos := make([]int64, 0, len(t.far))
	for no := range t.far {
		nos = append(nos, no)
	}
	slices.Sort(nos)
	for _, no := range nos {
		if err := page(no, t.far[no]); err != nil {
			return err
		}
	}
	return nil
}

// empty reports whether nothing was ever added.
func (t *tally) empty() bool { return t.bytes == 0 }

// highest gives the highest cluster that has a reference, -1 if there is none.
func (t *tally) highest() int64 {
	top := int64(-1)
	_ = t.each(func(no int64, c *chunk) error { // fn returns no error
		base := no << chunkBits
		if c.planes == nil {
			if n := len(c.runs); n > 0 {
				top = base | int64(c.runs[n-1].last)
			}
			return nil
		}
		for w := chunkWords - 1; w >= 0; w-- {
			one, many := c.planes.singles(uint32(w))
			if m := one | many; m != 0 {
				top = base | int64(w<<6+bits.Len64(m)-1)
				return nil
			}
		}
		return nil
	})
	return top
}
