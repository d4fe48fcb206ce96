// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"encoding/binary"
	"math"
	"math/rand/v2"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// kind is what a guest cluster is.
type kind uint8

const (
	kindNone kind = iota
	kindData
	kindZeroPlain
	kindZeroAlloc
	kindCompressed
)

// census counts what all tables hold.
type census struct{ tables, data, zeroAlloc, compressed int64 }

func (b *builder) survey() census {
	var n census
	for t := range b.tables {
		ks := b.kindsOf(int64(t))
		if ks == nil {
			continue
		}
		n.tables++
		if b.plain() {
			n.data += int64(len(ks))
			continue
		}
		for _, k := range ks {
			switch k {
			case kindData:
				n.data++
			case kindZeroAlloc:
				n.zeroAlloc++
			case kindCompressed:
				n.compressed++
			}
		}
	}
	return n
}

// plain: every guest cluster is data.
func (b *builder) plain() bool {
	return b.Fill == 1 && b.EmptyTables == 0 && b.ZeroPlain == 0 && b.ZeroAlloc == 0 && b.Compressed == 0
}

// kindsOf decides what the guest clusters of a table are, the same at each call; nil where the
// table does not exist. The next call overwrites the result.
func (b *builder) kindsOf(t int64) []kind {
	ks := b.kinds[:min(b.l2Entries(), b.guestClusters()-t*b.l2Entries())]
	if b.Fill < 0 {
		return nil
	}
	if b.plain() {
		if ks[0] != kindData || ks[len(ks)-1] != kindData {
			for i := range ks {
				ks[i] = kindData
			}
		}
		return ks
	}
	r := rand.New(rand.NewPCG(b.Seed, uint64(t)))
	if r.Float64() < b.EmptyTables {
		return nil
	}
	some := false
	for i := range ks {
		ks[i] = kindNone
		x := r.Float64()
		if b.Front {
			x = float64(i) / float64(b.l2Entries())
		}
		if x >= b.Fill {
			continue
		}
		some = true
		switch x := r.Float64(); {
		case x < b.Compressed:
			ks[i] = kindCompressed
		case x < b.Compressed+b.ZeroPlain:
			ks[i] = kindZeroPlain
		case x < b.Compressed+b.ZeroPlain+b.ZeroAlloc:
			ks[i] = kindZeroAlloc
		default:
			ks[i] = kindData
		}
	}
	if !some {
		return nil
	}
	return ks
}

// placeAll gives each table and each of its clusters a place. In sequential order the table can be
// written at once; otherwise only when all places are known.
func (b *builder) placeAll() {
	for t := range b.tables {
		ks := b.kindsOf(int64(t))
		if ks == nil {
			continue
		}
		b.tables[t] = b.alloc(b.weight)
		if b.Layout == Sequential {
			b.hosts, b.comp = b.hosts[:0], b.comp[:0]
		}
		b.place(int64(t), ks)
		if b.Layout == Sequential {
			b.fill(int64(t), ks, &cursor{hosts: b.hosts, comp: b.comp})
		}
	}
}

func (b *builder) place(t int64, ks []kind) {
	for i, k := range ks {
		switch k {
		case kindCompressed:
			b.comp = append(b.comp, b.pack(t*b.l2Entries()+int64(i)))
		case kindData, kindZeroAlloc:
			if k == kindData && b.shares.skip() {
				continue
			}
			if b.DataFile == "" {
				b.hosts = append(b.hosts, uint32(b.alloc(b.weight)))
			}
			for range b.leaks.due(b.slot) {
				b.alloc(1)
			}
			b.slot++
		}
	}
}

func (b *builder) fillAll() {
	c := &cursor{hosts: b.hosts, comp: b.comp}
	for t, host := range b.tables {
		if host != 0 {
			b.fill(int64(t), b.kindsOf(int64(t)), c)
		}
	}
}

// cursor walks the places in the order in which guest clusters ask for them.
type cursor struct {
	hosts []uint32
	comp  []uint64
}

func (c *cursor) host() int64 {
	h := c.hosts[0]
	c.hosts = c.hosts[1:]
	return int64(h)
}

func (c *cursor) stream() uint64 {
	e := c.comp[0]
	c.comp = c.comp[1:]
	return e
}

// fill makes the table's entries and writes them.
func (b *builder) fill(t int64, ks []kind, c *cursor) {
	clear(b.l2)
	var r *rand.Rand
	if b.Partial > 0 {
		r = rand.New(rand.NewPCG(b.Seed+1, uint64(t)))
	}
	step := b.entryBytes()
	for i, k := range ks {
		e := b.l2[int64(i)*step:]
		guest := t*b.l2Entries() + int64(i)
		switch k {
		case kindData, kindZeroAlloc:
			word, host := b.standard(guest, k, c)
			if k == kindZeroAlloc && !b.ExtendedL2 {
				word |= qcow2.FlagZero
			}
			binary.BigEndian.PutUint64(e, word)
			if b.Data && k == kindData {
				b.writeContent(guest, host)
			}
		case kindCompressed:
			binary.BigEndian.PutUint64(e, c.stream())
		case kindZeroPlain:
			if !b.ExtendedL2 {
				binary.BigEndian.PutUint64(e, qcow2.FlagZero)
			}
		}
		if b.ExtendedL2 {
			binary.BigEndian.PutUint64(e[8:], b.subclusters(k, r))
		}
	}
	if b.Rewrite > 0 {
		if b.kept == nil {
			b.kept = make([][]byte, len(b.tables))
		}
		b.kept[t] = append([]byte(nil), b.l2...)
		return
	}
	b.tally(b.l2)
	b.out.put(b.tables[t]<<b.ClusterBits, b.l2)
}

// standard gives the entry of a cluster that has a place, and the place.
func (b *builder) standard(guest int64, k kind, c *cursor) (word uint64, host int64) {
	if b.DataFile != "" {
		return uint64(guest)<<b.ClusterBits | qcow2.FlagCopied, guest
	}
	shared := false
	if k == kindData {
		var source int64
		source, shared = b.shares.at(c)
		host = source
	} else {
		host = c.host()
	}
	if k == kindData && shared && b.shares.isCopy {
		b.counts.add(host, b.weight)
	}
	word = uint64(host) << b.ClusterBits
	if b.weight == 1 && !shared {
		word |= qcow2.FlagCopied
	}
	return word, host
}

// subclusters gives the bitmap of an entry. r is nil if all clusters are whole.
func (b *builder) subclusters(k kind, r *rand.Rand) uint64 {
	part := r != nil && r.Float64() < b.Partial
	switch k {
	case kindNone:
		if part { // some subclusters of an unallocated cluster read as zeros
			return r.Uint64() << 32
		}
	case kindZeroPlain, kindZeroAlloc:
		return math.MaxUint32 << 32
	case kindData:
		if part {
			data := uint64(r.Uint32()) | 1
			return data | uint64(r.Uint32()&^uint32(data))<<32
		}
		return math.MaxUint32
	}
	return 0
}

// tally counts an active table as qemu-img check does.
func (b *builder) tally(table []byte) {
	next := uint64(0)
	for off := int64(0); off < int64(len(table)); off += b.entryBytes() {
		e := binary.BigEndian.Uint64(table[off:])
		place := e & qcow2.OffsetMask
		switch {
		case e&qcow2.FlagCompressed != 0:
			b.info.Allocated++
			b.info.Compressed++
			b.info.Fragmented++
		case place != 0 || e&(qcow2.FlagCopied|qcow2.FlagZero) == qcow2.FlagCopied: // 0: a data file
			b.info.Allocated++
			if next != 0 && place != next {
				b.info.Fragmented++
			}
			next = place + uint64(b.clusterSize())
		}
	}
}
