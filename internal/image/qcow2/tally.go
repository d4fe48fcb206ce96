// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"errors"
	"maps"
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
	// maxFlatChunks bounds the flat directory to 512 KiB, 128 TiB with the usual clusters; beyond it
	// chunks are kept in a map.
	maxFlatChunks = 1 << 16
	// maxRuns is how many runs a chunk keeps before planes are cheaper to search.
	maxRuns = 24
	// maxPlanes bounds the digits of a count; more references than 2^40 do not fit into any file.
	maxPlanes = 40
	// maxWaiting is how many additions are done in bulk; they stay in the fastest cache.
	maxWaiting = 128
	// slabBases is how many pairs of planes are made at once, 256 KiB.
	slabBases = 32
	// chunkBytes is about what a chunk of one run takes.
	chunkBytes = 128
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

type tally struct {
	flat  []*chunk
	far   map[int64]*chunk
	bytes int64 // memory taken so far
	limit int64
	// later[:waiting] are additions still to be done.
	later   [maxWaiting]addition
	waiting int
	// spare are planes made in advance: one large piece of memory costs less than many.
	spare []basePlanes
}

// newTally makes a tally for clusters below n that may take limitBytes of memory.
func newTally(n int64, limitBytes int64) *tally {
	t := &tally{limit: limitBytes}
	if chunks := n>>chunkBits + 1; chunks <= maxFlatChunks {
		t.flat = make([]*chunk, chunks)
	} else {
		t.far = map[int64]*chunk{}
	}
	return t
}

// chunkAt gives the chunk of number no, nil if nothing refers to it.
func (t *tally) chunkAt(no int64) *chunk {
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
	if c := t.chunkAt(no); c != nil {
		return c, nil
	}
	c := new(chunk)
	t.setChunk(no, c)
	return c, t.take(chunkBytes)
}

func (t *tally) setChunk(no int64, c *chunk) {
	if t.flat == nil {
		t.far[no] = c
		return
	}
	for int64(len(t.flat)) <= no { // a reference into a last cluster that is cut
		t.flat = append(t.flat, nil)
	}
	t.flat[no] = c
}

func (t *tally) take(n int64) error {
	t.bytes += n
	if t.bytes > t.limit {
		return errTallyMemory
	}
	return nil
}

// addition is one reference to each of n clusters from first on, which lie in one word of a plane.
type addition struct {
	first   int64
	n       uint32 // 1 to 64
	unowned bool
}

// addLater is add for what nearly all entries of a scattered image are: a few clusters, referred to
// once, by the active disk. Additions are done in bulk, for each waits for memory: done one after
// the other with nothing in between, the processor waits for many of them at once.
func (t *tally) addLater(first int64, n uint64, unowned bool) error {
	t.later[t.waiting] = addition{first, uint32(n), unowned}
	t.waiting++
	if t.waiting == len(t.later) {
		return t.flush()
	}
	return nil
}

// flush does the additions that wait. It must be called before the tally is looked at.
func (t *tally) flush() error {
	waiting := t.later[:t.waiting]
	t.waiting = 0
	for i := range waiting {
		a := &waiting[i]
		if no := a.first >> chunkBits; no < int64(len(t.flat)) {
			if c := t.flat[no]; c != nil && c.planes != nil && c.planes.addFew(a) {
				continue
			}
		}
		kind := refCopied
		if a.unowned {
			kind = refUnowned
		}
		if err := t.add(a.first, a.first+int64(a.n)-1, 1, kind); err != nil {
			return err
		}
	}
	return nil
}

// addFew does an addition to clusters that have no reference yet, and reports whether that was so.
func (p *planes) addFew(a *addition) bool {
	in := uint32(a.first) & (chunkClusters - 1)
	pair := (*[2]uint64)(p.base[in>>6<<1:])
	mask := ^uint64(0) >> ((64 - a.n) & 63) << (in & 63)
	if pair[0]&mask != 0 || p.high != nil {
		return false
	}
	pair[0] |= mask
	if a.unowned {
		pair[1] |= mask
	}
	return true
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
		if err := c.add(t, a, b, weight, kind); err != nil {
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

// has reports whether a cluster has references.
func (t *tally) has(cluster int64) bool {
	c := t.chunkAt(cluster >> chunkBits)
	if c == nil {
		return false
	}
	i := uint32(cluster & (chunkClusters - 1))
	if p := c.planes; p != nil && len(p.high) == 0 {
		return p.base[2*(i>>6)]>>(i&63)&1 != 0
	}
	return t.count(cluster) > 0
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

// next gives the first cluster in [first, last] that has a reference, last+1 if there is none.
func (t *tally) next(first, last int64) int64 {
	for first <= last {
		end := min(last, first|(chunkClusters-1))
		if c := t.chunkAt(first >> chunkBits); c != nil {
			for ; first <= end; first = first&^63 + 64 {
				in := uint32(first & (chunkClusters - 1))
				if m := c.any(in>>6) >> (in & 63); m != 0 {
					return min(first+int64(bits.TrailingZeros64(m)), last+1)
				}
			}
		}
		first = end + 1
	}
	return last + 1
}

// merge adds all of o to t; o must not be used afterwards.
func (t *tally) merge(o *tally) error {
	return o.each(func(no int64, c *chunk) error {
		mine := t.chunkAt(no)
		if mine == nil {
			t.setChunk(no, c)
			return t.take(chunkBytes)
		}
		return mine.merge(t, c)
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
	for no, c := range t.flat {
		if c != nil {
			if err := fn(int64(no), c); err != nil {
				return err
			}
		}
	}
	for _, no := range slices.Sorted(maps.Keys(t.far)) {
		if err := fn(no, t.far[no]); err != nil {
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
