// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

// lzma unpacks files of xz (xz-file-format.txt 1.2.1) with one filter, LZMA2, as systemd writes
// them. What was unpacked so far is the dictionary: none is allocated, whatever size the file
// claims. The checks behind blocks are passed over, as is the index: the hash of the value says
// whether it is right.
type lzma struct {
	probabilities
	// The range decoder, and what it reads.
	in          []byte
	at          int
	span, code  uint32
	out         []byte
	base        int // where the dictionary begins in out
	state       int
	rep         [4]uint32 // distances of the last matches, less one
	lc, lp, pb  int
	needs       byte // what the next chunk must reset
	chunkEndsAt int  // in out
}

// probabilities are those of bits being 0, in 1/2048 (lzma-specification.txt of LZMA SDK 9.20).
type probabilities struct {
	isMatch, isRep0Long        [states << maxPB]uint16
	isRep, isRepG0, isG1, isG2 [states]uint16
	slots                      [4][64]uint16
	special                    [1 + 128 - 14]uint16
	align                      [16]uint16
	length, repLength          lengths
	literals                   [0x300 << maxLC]uint16
}

type lengths struct {
	choice, choice2 uint16
	low, mid        [1 << maxPB][8]uint16
	high            [256]uint16
}

const (
	states      = 12
	maxPB       = 4
	maxLC       = 4 // LZMA2 allows lc + lp up to 4
	half        = 1 << 10
	probBits    = 11
	moveBits    = 5
	topSpan     = 1 << 24
	matchMin    = 2
	needsAll    = 0xe0 // the dictionary, too
	needsProps  = 0xc0
	needsNone   = 0x80
	filterLZMA2 = 0x21
)

// unpack appends to dst what src holds.
func (z *lzma) unpack(dst, src []byte) ([]byte, error) {
	start := len(dst)
	if len(src) < 12 || string(src[:6]) != "\xfd7zXZ\x00" || src[6] != 0 || src[7] > 15 ||
		crc32.ChecksumIEEE(src[6:8]) != le.Uint32(src[8:]) {
		return dst, errPacked
	}
	check := [...]int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}[src[7]]
	z.out, z.base = dst, start
	defer func() { z.in, z.out = nil, nil }()
	for at := 12; ; {
		if at >= len(src) {
			return dst, errPacked
		}
		if src[at] == 0 { // the index
			return z.out, nil
		}
		size := (int(src[at]) + 1) * 4
		if size > len(src)-at {
			return dst, errPacked
		}
		claim, ok := plainBlock(src[at : at+size])
		if !ok {
			return dst, errPacked
		}
		z.out = slices.Grow(z.out, int(min(claim, maxValue, uint64(len(src))*maxXZRatio)))
		used, err := z.block(src[at+size:], start)
		if err != nil {
			return dst, err
		}
		at += size + (used+3)&^3 + check
	}
}

// maxXZRatio bounds how much of a claimed size is allocated at once.
const maxXZRatio = 1 << 10

// plainBlock tells whether a block's header is one of LZMA2 alone, and the size that it claims, 0
// for none.
func plainBlock(h []byte) (claim uint64, ok bool) {
	end := len(h) - 4
	if h[1]&0x3f != 0 || crc32.ChecksumIEEE(h[:end]) != le.Uint32(h[end:]) {
		return 0, false
	}
	at := 2
	for _, sized := range []byte{0x40, 0x80} { // the packed and the unpacked size
		if h[1]&sized == 0 {
			continue
		}
		v, n := binary.Uvarint(h[at:end])
		if n <= 0 {
			return 0, false
		}
		at += n
		if sized == 0x80 {
			claim = v
		}
	}
	return claim, end-at >= 3 && h[at] == filterLZMA2 && h[at+1] == 1
}

// block unpacks the chunks of a block and gives the length of what it read.
func (z *lzma) block(src []byte, start int) (used int, err error) {
	z.needs = needsAll
	for at := 0; at < len(src); {
		control := src[at]
		if control == 0 {
			return at + 1, nil
		}
		head := 3
		if control >= needsNone {
			head = 5
		}
		if len(src)-at < head {
			return 0, errPacked
		}
		size := int(binary.BigEndian.Uint16(src[at+1:])) + 1
		if control >= needsNone {
			size += int(control&0x1f) << 16
		}
		if len(z.out)-start+size > maxValue {
			return 0, errTooLarge
		}
		if control < needsNone {
			at += head
			if at+size > len(src) || !z.literally(control, src[at:at+size]) {
				return 0, errPacked
			}
			at += size
			continue
		}
		packed := int(binary.BigEndian.Uint16(src[at+3:])) + 1
		at += head
		if control >= needsProps {
			packed++ // the byte of properties counts to neither
		}
		if at+packed > len(src) || !z.chunk(control, size, src[at:at+packed]) {
			return 0, errPacked
		}
		at += packed
	}
	return 0, errPacked
}

// literally is a chunk that is not packed: 1 resets the dictionary, 2 does not.
func (z *lzma) literally(control byte, b []byte) bool {
	switch {
	case control > 2, control == 2 && z.needs == needsAll:
		return false
	case control == 1:
		z.base, z.needs = len(z.out), needsProps
	}
	z.out = append(z.out, b...)
	return true
}

// chunk is one that is packed.
func (z *lzma) chunk(control byte, size int, b []byte) bool {
	if control&0xe0 < z.needs {
		return false
	}
	if control >= needsAll {
		z.base = len(z.out)
	}
	if control >= needsProps {
		p := int(b[0])
		b = b[1:]
		z.lc, z.lp, z.pb = p%9, p/9%5, p/45
		if z.pb > maxPB || z.lc+z.lp > maxLC {
			return false
		}
	}
	if control >= 0xa0 {
		z.reset()
	}
	z.needs = needsNone
	if len(b) < 5 || b[0] != 0 {
		return false
	}
	z.in, z.at, z.span, z.code = b, 5, 1<<32-1, binary.BigEndian.Uint32(b[1:])
	z.chunkEndsAt = len(z.out) + size
	for len(z.out) < z.chunkEndsAt {
		if !z.next() || z.at > len(z.in) {
			return false
		}
	}
	z.normalize()
	return z.at == len(z.in) && z.code == 0
}

func (z *lzma) reset() {
	z.state, z.rep = 0, [4]uint32{}
	p := &z.probabilities
	for _, s := range [][]uint16{p.isMatch[:], p.isRep0Long[:], p.isRep[:], p.isRepG0[:], p.isG1[:],
		p.isG2[:], p.slots[0][:], p.slots[1][:], p.slots[2][:], p.slots[3][:], p.special[:], p.align[:],
		p.literals[:0x300<<(z.lc+z.lp)]} {
		even(s)
	}
	for _, l := range []*lengths{&p.length, &p.repLength} {
		l.choice, l.choice2 = half, half
		for i := range l.low {
			even(l.low[i][:])
			even(l.mid[i][:])
		}
		even(l.high[:])
	}
}

func even(s []uint16) {
	for i := range s {
		s[i] = half
	}
}

func (z *lzma) normalize() {
	if z.span < topSpan {
		var c byte
		if z.at < len(z.in) {
			c = z.in[z.at]
		}
		z.at++ // beyond the end it is an error, which chunk finds
		z.span, z.code = z.span<<8, z.code<<8|uint32(c)
	}
}

func (z *lzma) bit(p *uint16) int {
	z.normalize()
	bound := (z.span >> probBits) * uint32(*p)
	if z.code < bound {
		z.span = bound
		*p += (1<<probBits - *p) >> moveBits
		return 0
	}
	z.span -= bound
	z.code -= bound
	*p -= *p >> moveBits
	return 1
}

// tree reads a number of n bits, the highest first.
func (z *lzma) tree(p []uint16, n int) int {
	m := 1
	for range n {
		m = m<<1 | z.bit(&p[m])
	}
	return m - 1<<n
}

// reverse reads a number of n bits, the lowest first.
func (z *lzma) reverse(p []uint16, n int) (v uint32) {
	m := 1
	for i := range n {
		b := z.bit(&p[m])
		m = m<<1 | b
		v |= uint32(b) << i
	}
	return v
}

// next unpacks a literal or a match.
func (z *lzma) next() bool {
	pos := (len(z.out) - z.base) & (1<<z.pb - 1)
	at := z.state<<maxPB + pos
	if z.bit(&z.isMatch[at]) == 0 {
		return z.literal()
	}
	var n int
	if z.bit(&z.isRep[z.state]) == 0 {
		z.rep[3], z.rep[2], z.rep[1] = z.rep[2], z.rep[1], z.rep[0]
		n = z.matchLength(&z.length, pos)
		z.state = pick(z.state, 7, 10)
		z.rep[0] = z.distance(n)
	} else {
		if z.bit(&z.isRepG0[z.state]) == 0 {
			if z.bit(&z.isRep0Long[at]) == 0 {
				z.state = pick(z.state, 9, 11)
				return z.match(1)
			}
		} else {
			z.again()
		}
		n = z.matchLength(&z.repLength, pos)
		z.state = pick(z.state, 8, 11)
	}
	return z.match(n + matchMin)
}

func pick(state, afterLiteral, afterMatch int) int {
	if state < 7 {
		return afterLiteral
	}
	return afterMatch
}

// again takes one of the older distances and puts it first.
func (z *lzma) again() {
	k := 1
	if z.bit(&z.isG1[z.state]) == 1 {
		k = 2 + z.bit(&z.isG2[z.state])
	}
	d := z.rep[k]
	copy(z.rep[1:k+1], z.rep[:k])
	z.rep[0] = d
}

func (z *lzma) match(n int) bool {
	if int64(z.rep[0]) >= int64(len(z.out)-z.base) || n > z.chunkEndsAt-len(z.out) {
		return false
	}
	z.out = repeat(z.out, int(z.rep[0])+1, n)
	return true
}

func (z *lzma) literal() bool {
	done := z.out[z.base:]
	prev := 0
	if len(done) > 0 {
		prev = int(done[len(done)-1])
	}
	context := (len(done)&(1<<z.lp-1))<<z.lc + prev>>(8-z.lc)
	p := z.literals[0x300*context:][:0x300]
	m := 1
	if z.state >= 7 {
		if int64(z.rep[0]) >= int64(len(done)) {
			return false
		}
		like := int(done[len(done)-1-int(z.rep[0])])
		for m < 0x100 {
			b := like >> 7 & 1
			like <<= 1
			got := z.bit(&p[(1+b)<<8+m])
			m = m<<1 | got
			if got != b {
				break
			}
		}
	}
	for m < 0x100 {
		m = m<<1 | z.bit(&p[m])
	}
	z.out = append(z.out, byte(m))
	switch {
	case z.state < 4:
		z.state = 0
	case z.state < 10:
		z.state -= 3
	default:
		z.state -= 6
	}
	return true
}

func (z *lzma) matchLength(l *lengths, pos int) int {
	switch {
	case z.bit(&l.choice) == 0:
		return z.tree(l.low[pos][:], 3)
	case z.bit(&l.choice2) == 0:
		return 8 + z.tree(l.mid[pos][:], 3)
	}
	return 16 + z.tree(l.high[:], 8)
}

// distance is that of a match of length n, both less what is added to them.
func (z *lzma) distance(n int) uint32 {
	slot := z.tree(z.slots[min(n, 3)][:], 6)
	if slot < 4 {
		return uint32(slot)
	}
	low := slot>>1 - 1
	d := uint32(2|slot&1) << low
	if slot < 14 {
		return d + z.reverse(z.special[int(d)-slot:], low)
	}
	for i := low - 1; i >= 4; i-- { // these are all as likely
		z.normalize()
		z.span >>= 1
		if z.code >= z.span {
			z.code -= z.span
			d += 1 << i
		}
	}
	return d + z.reverse(z.align[:], 4)
}
