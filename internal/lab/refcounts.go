// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"encoding/binary"
	"math"
)

// counts are the references to each host cluster: a byte each, and the few high ones aside.
type counts struct {
	small []uint8
	large map[int64]uint64
}

func (c *counts) add(cluster, n int64) {
	// The estimate of the size may fall short of what rewriting draws.
	if missing := cluster + 1 - int64(len(c.small)); missing > 0 {
		c.small = append(c.small, make([]uint8, missing)...)
	}
	v := int64(c.small[cluster]) + n
	switch {
	case v < math.MaxUint8:
		c.small[cluster] = uint8(v)
	case c.small[cluster] == math.MaxUint8:
		c.large[cluster] += uint64(n)
	default:
		if c.large == nil {
			c.large = map[int64]uint64{}
		}
		c.small[cluster] = math.MaxUint8
		c.large[cluster] = uint64(v)
	}
}

func (c *counts) get(cluster int64) uint64 {
	if v := c.small[cluster]; v < math.MaxUint8 {
		return uint64(v)
	}
	return c.large[cluster]
}

// writeRefcounts writes the refcount blocks and the table that names them.
func (b *builder) writeRefcounts() {
	block := make([]byte, b.clusterSize())
	table := make([]byte, b.reftableClusters<<b.ClusterBits)
	n := b.refblockEntries()
	wrong := spread{n: int64(b.WrongPercent / 100 * float64(b.next)), over: b.next}
	for k, host := range b.refblocks {
		first := int64(k) * n
		clear(block)
		for i := range min(n, b.next-first) {
			v := b.counts.get(first + i)
			if wrong.due(first+i) > 0 {
				v = b.misstate(v)
			}
			putRefcount(block, i, b.RefcountBits, v)
		}
		b.out.put(host<<b.ClusterBits, block)
		binary.BigEndian.PutUint64(table[k*8:], uint64(host)<<b.ClusterBits)
	}
	b.out.put(b.reftable<<b.ClusterBits, table)
}

// misstate gives a refcount that is not v: lower and higher by turns, as far as there is room.
func (b *builder) misstate(v uint64) uint64 {
	high := b.info.Wrong%2 == 1
	b.info.Wrong++
	if v == 0 || high && v < qcow2MaxRefcount(b.RefcountBits) {
		return v + 1
	}
	return v - 1
}

// putRefcount sets entry i of a refcount block; the lowest bits of a byte come first.
func putRefcount(block []byte, i int64, bits int, v uint64) {
	switch bits {
	case 8:
		block[i] = uint8(v)
	case 16:
		binary.BigEndian.PutUint16(block[i*2:], uint16(v))
	case 32:
		binary.BigEndian.PutUint32(block[i*4:], uint32(v))
	case 64:
		binary.BigEndian.PutUint64(block[i*8:], v)
	default:
		per := 8 / int64(bits)
		shift, mask := i%per*int64(bits), uint8(1<<bits-1)
		block[i/per] = block[i/per]&^(mask<<shift) | uint8(v)&mask<<shift
	}
}

// refcountAt reads entry i of a refcount block.
func refcountAt(block []byte, i int64, bits int) uint64 {
	switch bits {
	case 8:
		return uint64(block[i])
	case 16:
		return uint64(binary.BigEndian.Uint16(block[i*2:]))
	case 32:
		return uint64(binary.BigEndian.Uint32(block[i*4:]))
	case 64:
		return binary.BigEndian.Uint64(block[i*8:])
	}
	per := 8 / int64(bits)
	return uint64(block[i/per] >> (i % per * int64(bits)) & (1<<bits - 1))
}

func (b *builder) writeL1() {
	table := make([]byte, b.l1Len*8)
	for t, host := range b.tables {
		if host == 0 {
			continue
		}
		e := uint64(host) << b.ClusterBits
		if b.counts.get(host) == 1 {
			e |= 1 << 63
		}
		binary.BigEndian.PutUint64(table[t*8:], e)
	}
	b.out.put(b.l1<<b.ClusterBits, table)
}
