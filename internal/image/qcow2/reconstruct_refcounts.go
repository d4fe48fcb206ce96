// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"slices"
)

// refGuess is a refcount table as it may be.
type refGuess struct {
	off  int64
	bits uint32 // cluster size
	// order is the width of a refcount as a power of two.
	order    uint32
	entries  []uint64 // up to the last that is not zero
	clusters int64    // up to the cluster with that entry
	// blocks were looked at, and agree of them count themselves once.
	blocks, agree int64
	// last is the highest cluster that is counted.
	last int64
}

const (
	// maxRefGuesses bounds the refcount tables that are held against the L1 tables.
	maxRefGuesses = 32
	// maxBlocksTried bounds the blocks of a table that are looked at.
	maxBlocksTried = 256
)

// blockEntries is how many clusters a block describes.
func (g *refGuess) blockEntries() int64 { return int64(1) << g.bits * 8 >> g.order }

// refcount is the refcount of a cluster by that table.
func (s *scout) refcount(g *refGuess, cluster int64) uint64 {
	n := g.blockEntries()
	if cluster < 0 || cluster/n >= int64(len(g.entries)) {
		return 0
	}
	block := int64(g.entries[cluster/n])
	if block == 0 {
		return 0
	}
	at := cluster % n << g.order // in bits
	w := s.word(block + at>>6<<3)
	width := uint(1) << g.order
	// Within a byte refcounts begin at its lowest bit, the bytes of one are big-endian.
	var p [8]byte
	binary.BigEndian.PutUint64(p[:], w)
	in := uint(at & 63)
	if width < 8 {
		return uint64(p[in>>3]) >> (in & 7) & (1<<width - 1)
	}
	v := uint64(0)
	for _, b := range p[in>>3 : (in+width)>>3] {
		v = v<<8 | uint64(b)
	}
	return v
}

// findReftables gives the refcount tables that count themselves, for every possible cluster size.
func (s *scout) findReftables(ctx context.Context) ([]*refGuess, error) {
	var found []*refGuess
	add := func(off int64, clusterBits uint32) {
		for order := range uint32(7) {
			if g := s.reftableAt(off, clusterBits, order); g != nil && len(found) < maxRefGuesses {
				found = append(found, g)
			}
		}
	}
	for b := uint32(MaxClusterBits); b >= MinClusterBits; b-- {
		if s.opts.ClusterBits != 0 && s.opts.ClusterBits != b {
			continue
		}
		if s.opts.ReftableOff != 0 {
			add(int64(s.opts.ReftableOff), b)
			continue
		}
		old := int64(s.old64(48)) &^ (1<<b - 1)
		if old > 0 && old < s.size {
			add(old, b)
		}
		err := s.starts(ctx, b, func(c candidate) error {
			if !c.copied && c.first && c.off != old {
				add(c.off, b)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// reftableAt reads what may be a refcount table, and gives it if its blocks count themselves, the
// table and the header.
func (s *scout) reftableAt(off int64, clusterBits, order uint32) *refGuess {
	cs := int64(1) << clusterBits
	valid := func(e uint64) bool {
		return e&uint64(cs-1) == 0 && e>>56 == 0 && e < uint64(s.size)
	}
	first := s.word(off)
	if off&(cs-1) != 0 || off <= 0 || off >= s.size || first == 0 || !valid(first) {
		return nil
	}
	g := &refGuess{off: off, bits: clusterBits, order: order, entries: []uint64{first}}
	if s.refcount(g, 0) != 1 { // the header
		return nil
	}
	g.entries = nil
	seen := map[uint64]bool{}
	most := min(MaxReftableBytes, (s.size-off+cs-1)&^(cs-1))
	for pos := int64(0); pos < most; pos += cs {
		if pos > 0 && s.refcount(g, (off+pos)>>clusterBits) != 1 {
			break
		}
		entries, ok := s.reftableCluster(off+pos, cs, seen, valid)
		if !ok {
			if pos == 0 {
				return nil
			}
			break
		}
		if len(entries) > 0 {
			g.entries = append(g.entries, make([]uint64, pos/8-int64(len(g.entries)))...)
			g.entries = append(g.entries, entries...)
			g.clusters = pos/cs + 1
		}
	}
	return s.judgeReftable(g)
}

// reftableCluster gives the entries of one cluster of a refcount table, up to the last that is not
// zero; false if it is none.
func (s *scout) reftableCluster(off, cs int64, seen map[uint64]bool, valid func(uint64) bool) (
	[]uint64, bool) {
	var list []uint64
	for i := int64(0); i < min(cs, s.size-off); i += 8 {
		e := s.word(off + i)
		if e == 0 {
			continue
		}
		if !valid(e) || seen[e] || int64(e) == off {
			return nil, false
		}
		seen[e] = true
		list = append(list, make([]uint64, i/8-int64(len(list)))...)
		list = append(list, e)
	}
	return list, true
}

// judgeReftable counts how far a table agrees with itself, and gives nil where it does not.
func (s *scout) judgeReftable(g *refGuess) *refGuess {
	if s.refcount(g, g.off>>g.bits) != 1 {
		return nil
	}
	step := max(1, len(g.entries)/maxBlocksTried)
	for i := 0; i < len(g.entries); i += step {
		if e := g.entries[i]; e != 0 {
			g.blocks++
			if s.refcount(g, int64(e)>>g.bits) == 1 {
				g.agree++
			}
		}
	}
	if g.agree*10 < g.blocks*9 {
		return nil
	}
	g.last = s.lastCounted(g)
	return g
}

// lastCounted is the highest cluster with a refcount that is not 0.
func (s *scout) lastCounted(g *refGuess) int64 {
	n, cs := g.blockEntries(), int64(1)<<g.bits
	for i, e := range slices.Backward(g.entries) {
		if e == 0 {
			continue
		}
		for off := min(cs, (s.size-int64(e)+7)&^7) - 8; off >= 0; off -= 8 {
			if s.word(int64(e)+off) == 0 {
				continue
			}
			// The refcounts of this word, from the last one.
			for c := (off+8)*8>>g.order - 1; c >= max(off*8>>g.order, 0); c-- {
				if s.refcount(g, int64(i)*n+c) != 0 {
					return int64(i)*n + c
				}
			}
		}
	}
	return 0
}
