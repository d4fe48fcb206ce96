// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

// readBytes bounds the memory of the reads under way.
const readBytes = 4 << 20

// comparer holds refcount blocks against the references that were counted. Each belongs to one
// goroutine.
type comparer struct {
	*checker
	limit   int64  // first cluster that is not compared
	max     uint64 // highest refcount of this width
	pattern map[uint64]uint64
	one     uint64 // the pattern of refcount 1
	views   uint64 // the active disk and its snapshots: so many references a cluster may have

	leaks, corruptions, checkErrors int64
	unlisted                        int64
	highest                         int64
	overflow                        []span
	suspects                        []Suspect
	copied, shared                  []span
}

// compare holds every refcount on disk against the references.
func (c *checker) compare(ctx context.Context) error {
	if err := c.findOverlaps(); err != nil {
		return err
	}
	if err := c.data.merge(c.meta); err != nil {
		return err
	}
	if c.noRefcounts {
		c.counts.ImageEndOffset = (c.data.highest() + 1) << c.bits
		return ctx.Err()
	}
	limit := int64(max(c.clusters, uint64(c.data.highest()+1)))
	blocks := c.refblocksToCompare(limit)
	var next atomic.Int64
	var mu sync.Mutex
	top := int64(0)
	g, ctx := errgroup.WithContext(ctx)
	for range min(c.opts.Readers, max(1, readBytes>>c.bits), len(blocks)) {
		g.Go(func() error {
			m := &comparer{checker: c, limit: limit, max: c.h.MaxRefcount(), pattern: map[uint64]uint64{}}
			m.views = 1 + uint64(c.snapshots.Len())
			one := refcountPattern(1, c.h.RefcountOrder)
			m.one = binary.NativeEndian.Uint64(one[:])
			buf := c.spare.get(int64(c.cs))
			defer c.spare.put(buf)
			for {
				k := int(next.Add(1)) - 1
				if k >= len(blocks) || ctx.Err() != nil {
					break
				}
				m.block(blocks[k], buf)
				c.progress.add(int64(c.cs))
			}
			mu.Lock()
			defer mu.Unlock()
			c.counts.Leaks += m.leaks
			c.counts.Corruptions += m.corruptions
			c.counts.CheckErrors += m.checkErrors
			c.unlisted += m.unlisted
			c.suspects = append(c.suspects, m.suspects...)
			c.copied = append(c.copied, m.copied...)
			c.shared = append(c.shared, m.shared...)
			c.overflowed(m.overflow)
			top = max(top, m.highest)
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortFunc(c.suspects, func(a, b Suspect) int { return cmp.Compare(a.First, b.First) })
	for _, s := range []*[]span{&c.copied, &c.shared} {
		slices.SortFunc(*s, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	}
	c.compared = limit
	c.counts.ImageEndOffset = (top + 1) << c.bits
	if c.unlisted > 0 {
		c.blindSpot(finding.Blind{What: "places of wrong refcounts", Reason: fmt.Sprintf(
			"%d clusters are counted but not looked at, for the memory allowed (%d bytes)", c.unlisted, c.opts.MemoryBytes)})
	}
	return nil
}

func (c *checker) overflowed(at []span) {
	if len(at) == 0 {
		return
	}
	for i := range c.findings {
		if c.findings[i].Code == finding.QC23.Code {
			c.findings[i].Count += int64(len(at))
			return
		}
	}
	f := c.newFinding(finding.QC23, finding.Sure, "overflow", fmt.Sprintf(
		"clusters have more references than their refcount of %d bits can hold", c.h.RefcountBits()))
	f.Count = int64(len(at))
	f.Host = []finding.Range{c.hostRange(at[0])}
	f.HostCut = int64(len(at) - 1)
	c.findings = append(c.findings, f)
}

// findOverlaps looks for clusters that are guest data and metadata at once.
func (c *checker) findOverlaps() error {
	return c.meta.each(func(no int64, m *chunk) error {
		d := c.data.chunkAt(no)
		if d == nil {
			return nil
		}
		m.words(func(w uint32) {
			if both := m.any(w) & d.any(w); both != 0 {
				c.overlaps = appendMask(c.overlaps, no<<chunkBits|int64(w)<<6, both)
			}
		})
		return nil
	})
}

// words calls fn for every word that may have references, in ascending order.
func (c *chunk) words(fn func(w uint32)) {
	if c.planes != nil {
		for w := range uint32(chunkWords) {
			fn(w)
		}
		return
	}
	next := uint32(0)
	for _, r := range c.runs {
		for w := max(next, uint32(r.first)>>6); w <= uint32(r.last)>>6; w++ {
			fn(w)
			next = w + 1
		}
	}
}

// any gives the clusters of word w that have references.
func (c *chunk) any(w uint32) uint64 {
	if c.planes != nil {
		one, many := c.planes.singles(w)
		return one | many
	}
	var m uint64
	for _, r := range c.runs {
		if uint32(r.last)>>6 >= w && uint32(r.first)>>6 <= w {
			m |= wordMask(uint32(r.first), uint32(r.last), w)
		}
	}
	return m
}

// wordMask is the part of the range [first, last] that falls into word w, which it touches.
func wordMask(first, last, w uint32) uint64 {
	mask := ^uint64(0)
	if first>>6 == w {
		mask <<= first & 63
	}
	if last>>6 == w {
		mask &= ^uint64(0) >> (63 - last&63)
	}
	return mask
}

// appendSpan adds a cluster to ascending spans.
func appendSpan(s []span, cluster int64) []span {
	if n := len(s); n > 0 && s[n-1].last+1 == cluster {
		s[n-1].last = cluster
		return s
	}
	return append(s, span{cluster, cluster})
}

// refblocksToCompare lists the blocks that are there, and those that should be because something
// refers to their clusters.
func (c *checker) refblocksToCompare(limit int64) []int64 {
	per := c.h.RefblockEntries()
	var list []int64
	for i, e := range c.reftable {
		if e&reftableOffMask != 0 && int64(i) <= (limit-1)/per {
			list = append(list, int64(i))
		}
	}
	named := len(list)
	last := int64(-1)
	_ = c.data.each(func(no int64, _ *chunk) error { // fn returns no error
		first := no << chunkBits / per
		end := (no<<chunkBits + chunkClusters - 1) / per
		for i := max(first, last+1); i <= end && i*per < limit; i++ {
			if i >= int64(len(c.reftable)) || c.reftable[i]&reftableOffMask == 0 {
				list = append(list, i)
			}
			last = i
		}
		return nil
	})
	if len(list) > named {
		slices.Sort(list)
	}
	return list
}

// block compares refcount block i.
func (m *comparer) block(i int64, buf []byte) {
	per := m.h.RefblockEntries()
	first := i * per
	n := min(per, m.limit-first)
	absent, err := m.refblock(i, buf)
	if err != nil {
		m.unreadableBlock(i, n, err)
		return
	}
	if absent {
		clear(buf)
	} else if top := m.lastUsed(buf, n); top >= 0 {
		m.highest = max(m.highest, first+top)
	}
	// A block may be part of a chunk of references, or span several.
	for at := int64(0); at < n; {
		no := (first + at) >> chunkBits
		end := min(n, (no+1)<<chunkBits-first)
		if absent && m.data.chunkAt(no) == nil {
			at = end
			continue
		}
		m.chunk(m.data.chunkAt(no), buf, first, at, end)
		at = end
	}
}

func (m *comparer) unreadableBlock(i, n int64, err error) {
	last := i*m.h.RefblockEntries() + n - 1
	for cluster := m.data.next(i*m.h.RefblockEntries(), last); cluster <= last; cluster = m.data.next(cluster+1, last) {
		if refs := m.data.count(cluster); refs > m.max {
			m.overflowAt(cluster, refs)
		}
	}
	m.blindLock.Lock()
	defer m.blindLock.Unlock()
	if m.unread == nil {
		m.unread = map[int64]bool{}
	}
	m.unread[i] = true
	if errors.Is(err, errBlockOffset) { // a finding already; qemu counts each cluster
		m.checkErrors += n
		return
	}
	m.checkErrors += n
	m.blindSpot(finding.Blind{What: fmt.Sprintf("refcount block %d", i), Reason: readReason(err),
		Host: []finding.Range{{Offset: int64(m.reftable[i] & reftableOffMask), Length: int64(m.cs)}}})
}

// lastUsed gives the last of n entries that is not 0, -1 if all are.
func (m *comparer) lastUsed(buf []byte, n int64) int64 {
	end := (n<<m.h.RefcountOrder + 7) >> 3
	for end >= 8 && binary.NativeEndian.Uint64(buf[end-8:]) == 0 {
		end -= 8
	}
	for i := min(n, end<<3>>m.h.RefcountOrder) - 1; i >= 0; i-- {
		if refcountAt(buf, i, m.h.RefcountOrder) != 0 {
			return i
		}
	}
	return -1
}

// chunk compares entries [at, end) of a block whose first cluster is first with their chunk of
// references. In runs and in whole words, refcounts are compared eight bytes at a time.
func (m *comparer) chunk(c *chunk, buf []byte, first, at, end int64) {
	if c == nil {
		m.equal(buf, first, at, end, 0)
		return
	}
	base := (first + at) &^ (chunkClusters - 1) // first cluster of the chunk
	if c.planes == nil {
		for _, r := range c.runs {
			a, b := base+int64(r.first)-first, base+int64(r.last)-first
			if b < at {
				continue
			}
			if a >= end {
				break
			}
			a, b = max(a, at), min(b+1, end)
			m.equal(buf, first, at, a, 0)
			m.run(r, buf, first, a, b)
			at = b
		}
		m.equal(buf, first, at, end, 0)
		return
	}
	for at < end {
		in := uint32(first + at - base)
		stop := min(end, base+int64(in>>6+1)<<6-first)
		m.word(c.planes, in, buf, first, at, stop)
		at = stop
	}
}

// run compares entries [a, b) that all have the references of r.
func (m *comparer) run(r run, buf []byte, first, a, b int64) {
	m.highest = max(m.highest, first+b-1)
	n := uint64(r.count)
	m.equal(buf, first, a, b, n)
	if n == 1 && r.kind == refUnowned || r.multi {
		m.copied = append(m.copied, span{first + a, first + b - 1})
	}
	if n > m.views && r.kind != refPlain {
		m.shared = append(m.shared, span{first + a, first + b - 1})
	}
}

// word compares entries [at, end), which lie in one word of the planes, from bit in on.
func (m *comparer) word(p *planes, in uint32, buf []byte, first, at, end int64) {
	w := in >> 6
	mask := ^uint64(0) >> (64 - uint(end-at)) << (in & 63)
	one, many := p.singles(w)
	any := (one | many) & mask
	switch {
	case any == 0:
		m.equal(buf, first, at, end, 0)
		return
	case many&mask == 0 && one&mask == mask && end-at == 64 && m.allOnes(buf, at):
	case many&mask == 0 && one&mask == mask:
		m.equal(buf, first, at, end, 1)
	default:
		m.mixed(p, w, buf, first, at, end)
	}
	base := first + at - int64(in&63)
	m.highest = max(m.highest, base+int64(bits.Len64(any)-1))
	doubt := one & p.base[2*w+1] & mask
	if p.plain != nil {
		doubt &^= p.plain[w]
	}
	if p.multi != nil {
		doubt |= p.multi[w] & many & mask
	}
	m.copied = appendMask(m.copied, base, doubt)
	if many&mask != 0 {
		flagged := p.base[2*w+1]
		if p.multi != nil {
			flagged |= p.multi[w]
		}
		m.shared = appendMask(m.shared, base, p.above(w, m.views)&mask&flagged)
	}
}

func appendMask(s []span, base int64, mask uint64) []span {
	for mask != 0 {
		s = appendSpan(s, base+int64(bits.TrailingZeros64(mask)))
		mask &= mask - 1
	}
	return s
}

// allOnes reports whether the 64 entries from at on are all 1, for a width of 16 bits.
func (m *comparer) allOnes(buf []byte, at int64) bool {
	if m.h.RefcountOrder != 4 {
		return false
	}
	q := buf[2*at : 2*at+128]
	return samePrefix(q, m.one) == len(q)
}

// mixed compares entries one by one, or at once where all have the same count.
func (m *comparer) mixed(p *planes, w uint32, buf []byte, first, at, end int64) {
	i := uint32((first + at) & (chunkClusters - 1))
	n := p.count(i)
	uniform := end-at == 64
	for d := -1; d < len(p.high) && uniform; d++ {
		word := p.base[2*w]
		if d >= 0 {
			if p.high[d] == nil {
				continue
			}
			word = p.high[d][w]
		}
		uniform = word == 0 || word == math.MaxUint64
	}
	if uniform {
		m.equal(buf, first, at, end, n)
		return
	}
	for ; at < end; at, i = at+1, i+1 {
		m.entry(first+at, refcountAt(buf, at, m.h.RefcountOrder), p.count(i))
	}
}

// equal requires refcount n of entries [a, b).
func (m *comparer) equal(buf []byte, first, a, b int64, n uint64) {
	if a >= b {
		return
	}
	order := m.h.RefcountOrder
	if n <= m.max {
		perWord := int64(64 >> order)
		want := m.patternOf(n)
		for a < b {
			if a%perWord == 0 && b-a >= perWord {
				p := buf[a<<order>>3 : b<<order>>3&^7]
				k := samePrefix(p, want)
				if a += int64(k) << 3 >> order; a >= b {
					return
				}
				if k == len(p) {
					continue
				}
			}
			// Entry by entry through this word.
			for stop := min(b, (a/perWord+1)*perWord); a < stop; a++ {
				m.entry(first+a, refcountAt(buf, a, order), n)
			}
		}
		return
	}
	for ; a < b; a++ {
		m.entry(first+a, refcountAt(buf, a, order), n)
	}
}

// samePrefix gives how many bytes of p repeat the word want.
func samePrefix(p []byte, want uint64) int {
	i := 0
	for ; i+64 <= len(p); i += 64 {
		q := (*[64]byte)(p[i:])
		if (binary.NativeEndian.Uint64(q[0:])^want)|(binary.NativeEndian.Uint64(q[8:])^want)|
			(binary.NativeEndian.Uint64(q[16:])^want)|(binary.NativeEndian.Uint64(q[24:])^want)|
			(binary.NativeEndian.Uint64(q[32:])^want)|(binary.NativeEndian.Uint64(q[40:])^want)|
			(binary.NativeEndian.Uint64(q[48:])^want)|(binary.NativeEndian.Uint64(q[56:])^want) != 0 {
			break
		}
	}
	for ; i+8 <= len(p) && binary.NativeEndian.Uint64(p[i:]) == want; i += 8 {
	}
	return i
}

func (m *comparer) patternOf(n uint64) uint64 {
	switch n {
	case 0:
		return 0
	case 1:
		return m.one
	}
	p, ok := m.pattern[n]
	if !ok {
		b := refcountPattern(n, m.h.RefcountOrder)
		p = binary.NativeEndian.Uint64(b[:])
		m.pattern[n] = p
	}
	return p
}

// entry compares one refcount with its references. References that the width cannot hold are each
// a fault, as in qemu, and the rest is compared with the highest refcount.
func (m *comparer) entry(cluster int64, refcount, refs uint64) {
	if refs > m.max {
		m.overflowAt(cluster, refs)
		refs = m.max
	}
	switch {
	case refcount == refs:
		return
	case refcount > refs:
		m.leaks++
	default:
		m.corruptions++
	}
	if n := len(m.suspects); n > 0 {
		last := &m.suspects[n-1]
		if int64(last.First)+last.N == cluster && last.Refcount == refcount && last.References == refs {
			last.N++
			return
		}
	}
	if most := m.opts.MemoryBytes / suspectShare; m.kept.Load() >= most || m.kept.Add(1) > most {
		m.unlisted++
		return
	}
	m.suspects = append(m.suspects, suspectAt(cluster, refcount, refs))
}

func (m *comparer) overflowAt(cluster int64, refs uint64) {
	m.corruptions += int64(min(refs-m.max, math.MaxInt32))
	m.overflow = appendSpan(m.overflow, cluster)
	// Cut to what the width holds, the count may agree by chance; the flags must be looked at.
	m.copied = appendSpan(m.copied, cluster)
}

func suspectAt(cluster int64, refcount, refs uint64) Suspect {
	return Suspect{First: image.Cluster(cluster), N: 1, Refcount: refcount, References: refs}
}
