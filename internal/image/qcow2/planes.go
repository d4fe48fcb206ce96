// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// planes are bit vectors over a chunk. The two that every reference touches share a cache line.
type planes struct {
	base  *basePlanes           // ones digit, and "the single reference is refUnowned", in turn
	plain *[chunkWords]uint64   // there is a refPlain reference; nil: none
	multi *[chunkWords]uint64   // several references, one with COPIED; nil: none
	high  []*[chunkWords]uint64 // twos, fours, ... digits
}

// basePlanes are two pages without pointers.
type basePlanes [2 * chunkWords]uint64

// newBase gives an empty pair of planes. It writes to each page at once: memory that is read first
// is mapped twice by the kernel, the second time with every processor interrupted.
func (t *tally) newBase() *basePlanes {
	if len(t.spare) == 0 {
		t.spare = make([]basePlanes, slabBases)
	}
	b := &t.spare[0]
	t.spare = t.spare[1:]
	for w := 0; w < len(b); w += 4096 / 8 {
		b[w] = 0
	}
	return b
}

// spill turns the runs of a chunk into planes.
func (c *chunk) spill(t *tally) error {
	if err := t.take(16 * chunkWords); err != nil {
		return err
	}
	c.planes = &planes{base: t.newBase()}
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
		if weight == 1 && p.addFirst(w, mask, kind) {
			continue
		}
		if err := p.addWord(t, w, mask, weight, kind); err != nil {
			return err
		}
	}
	return nil
}

// addFirst adds one reference of guest data to the clusters of mask in word w, if none of them has
// any: what nearly all additions are. It reports whether it did.
func (p *planes) addFirst(w uint32, mask uint64, kind refKind) bool {
	if p.base[2*w]&mask != 0 || p.high != nil || kind == refPlain {
		return false
	}
	p.base[2*w] |= mask
	if kind == refUnowned {
		p.base[2*w+1] |= mask
	}
	return true
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
