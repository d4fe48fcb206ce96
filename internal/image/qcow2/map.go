// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/shisa-vm/shisa/internal/image"
)

// mapPieceBytes is how much of an L2 table is read at once where much of it is needed. It stays in
// the processor's cache while it is decoded.
const mapPieceBytes = 64 << 10

// Map gives the extents of [off, off+length), clipped to the disk. Neighbours that continue each
// other are one extent; so are compressed clusters next to each other, Host being where the first
// of them begins. Where an entry cannot be right it ends with an *EntryError, after all that comes
// before; it can be started again behind the range that the error names.
func (d *Disk) Map(ctx context.Context, off image.GuestOff, length int64,
	fn func(image.Extent) error) error {
	if off < 0 || length < 0 {
		return fmt.Errorf("map %d bytes of the disk at %d: %w", length, int64(off), image.ErrOffset)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m := mapper{d: d, ctx: ctx, join: joiner{fn: fn}, end: d.bytes}
	if length < d.bytes-int64(off) {
		m.end = int64(off) + length
	}
	for pos := int64(off); pos < m.end; {
		next, err := m.span(pos)
		if err != nil {
			if !m.join.failed && ctx.Err() == nil {
				if err := m.join.flush(); err != nil {
					return err
				}
			}
			return err
		}
		pos = next
	}
	return m.join.flush()
}

// joiner puts extents together before it gives them to fn.
type joiner struct {
	fn     func(image.Extent) error
	cur    image.Extent
	failed bool // fn returned an error
}

func (j *joiner) add(e image.Extent) error {
	if c := &j.cur; c.Kind == e.Kind && c.HasHost == e.HasHost && c.Length > 0 &&
		(!c.HasHost || int64(c.Host)+c.Length == int64(e.Host)) {
		c.Length += e.Length
		return nil
	}
	err := j.flush()
	j.cur = e
	return err
}

func (j *joiner) flush() error {
	if j.cur.Length == 0 {
		return nil
	}
	err := j.fn(j.cur)
	j.cur.Length = 0
	j.failed = err != nil
	return err
}

// mapper walks the tables for one call of Map.
type mapper struct {
	d    *Disk
	ctx  context.Context
	join joiner
	end  int64 // of the range, on the virtual disk
	l1   *part // of the L1 table, the last that was needed
	buf  []byte
}

// span maps the disk from pos up to the end of what one L2 table maps, and says where that is.
// Where no more tables follow, it maps all that is left.
func (m *mapper) span(pos int64) (int64, error) {
	d := m.d
	width := d.h.L2Span()
	index := pos / width
	to := min((index+1)*width, m.end)
	at := d.l1Off + 8*index
	if index >= d.l1Entries {
		return m.end, m.unallocated(pos, m.end)
	}
	if at >= d.size {
		d.miss(at, min(m.end, d.l1Entries*width)-pos, d.size)
		return m.end, m.unallocated(pos, m.end)
	}
	if !m.l1.holds(at) {
		if err := m.ctx.Err(); err != nil {
			return 0, err
		}
		p, err := d.tables.get(at)
		if err != nil {
			return 0, fmt.Errorf("read L1 table at %#x, for %#x of the disk: %w", at, pos, err)
		}
		m.l1 = p
	}
	l2, err := d.l1Entry(m.l1.entry(at), index)
	if err != nil {
		return 0, err
	}
	if l2 == 0 {
		return to, m.unallocated(pos, to)
	}
	return to, m.table(l2, pos, to)
}

// unallocated maps [from, to): no table says anything about it.
func (m *mapper) unallocated(from, to int64) error {
	return m.join.add(image.Extent{Guest: image.GuestOff(from), Length: to - from})
}

// table maps [from, to) by the L2 table at l2.
func (m *mapper) table(l2, from, to int64) error {
	h, cs := m.d.h, m.d.h.ClusterSize()
	width, inside := h.L2EntryBytes(), from%h.L2Span()
	first := inside >> h.ClusterBits
	last := first + (inside&(cs-1)+to-from+cs-1)>>h.ClusterBits
	guest := from &^ (cs - 1)
	for i := first; i < last; {
		at := l2 + i*width
		if at >= m.d.size {
			m.d.miss(at, to-max(from, guest), m.d.size)
			return m.unallocated(max(from, guest), to)
		}
		buf, err := m.entries(at, (last-i)*width)
		if err != nil {
			return fmt.Errorf("read L2 table at %#x, for %#x of the disk: %w", at, guest, err)
		}
		s := entryScan{d: m.d, table: l2, index: i, guest: guest, buf: buf}
		for s.more() {
			if err := m.plain(&s, from, to); err != nil {
				return err
			}
			if !s.more() {
				break
			}
			e, err := s.next()
			if err != nil {
				return err
			}
			if int64(e.Guest) < from || int64(e.Guest)+e.Length > to {
				if int64(e.Guest)+e.Length <= from || int64(e.Guest) >= to {
					continue // a subcluster outside the range
				}
				e = e.clip(from, to)
			}
			if e.HasHost && e.Kind == image.Data && m.d.data != nil {
				m.d.miss(int64(e.Host), e.Length, m.d.dataBytes)
			}
			if err := m.join.add(e.Extent); err != nil {
				return err
			}
		}
		i, guest = s.index, s.guest
	}
	return nil
}

// plain maps the entries at the front of s that are clusters with plain data within [from, to):
// what most entries of most images are. It does what next and add do for them, in half the time.
func (m *mapper) plain(s *entryScan, from, to int64) error {
	h, cs := m.d.h, m.d.h.ClusterSize()
	if h.ExtendedL2() || h.HasDataFile() || s.guest < from {
		return nil
	}
	// Any other bit makes it something else, and what is missing must be counted.
	other := ^(OffsetMask &^ uint64(cs-1))
	last := uint64(max((m.d.size+cs-1)&^(cs-1)-cs, 0))
	c, guest, n := &m.join.cur, s.guest, int64(0)
	for ; guest+cs <= to && 8*n+8 <= int64(len(s.buf)); n++ {
		host := binary.BigEndian.Uint64(s.buf[8*n:]) &^ FlagCopied
		if host&other != 0 || host == 0 || host > last {
			break
		}
		if c.Kind == image.Data && c.HasHost && c.Length > 0 &&
			uint64(c.Host)+uint64(c.Length) == host {
			c.Length += cs
		} else {
			if err := m.join.flush(); err != nil {
				return err
			}
			*c = image.Extent{Guest: image.GuestOff(guest), Length: cs, Kind: image.Data,
				Host: image.HostOff(host), HasHost: true}
		}
		guest += cs
	}
	s.advance(n)
	return nil
}

// entries gives n bytes of an L2 table at off, or fewer: up to a part of it.
func (m *mapper) entries(off, n int64) ([]byte, error) {
	if err := m.ctx.Err(); err != nil {
		return nil, err
	}
	// A small range is one of many: what is read for it serves the next one too.
	if n <= partBytes {
		p, err := m.d.tables.get(off)
		if err != nil {
			return nil, err
		}
		buf := p.from(off)
		return buf[:min(n, int64(len(buf)))], nil
	}
	if m.buf == nil {
		m.buf = make([]byte, min(mapPieceBytes, m.d.h.ClusterSize()))
	}
	buf := m.buf[:min(n, int64(len(m.buf)))]
	_, err := readPadded(m.d.r, buf, off, m.d.size)
	return buf, err
}
