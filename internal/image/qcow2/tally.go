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
