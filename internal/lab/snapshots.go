// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// maxSnapshotEntry bounds an entry of the snapshot table as it is written here.
const maxSnapshotEntry = 40 + 24 + 16 + 16

// snapshot is a view of the disk that is kept.
type snapshot struct {
	l1     int64 // cluster
	tables []int64
	kept   [][]byte
	vm     []int64 // L2 tables of the machine state
}

// takeSnapshots makes the snapshots one after the other, and between them what the guest rewrote.
func (b *builder) takeSnapshots() {
	if b.Rewrite > 0 && b.kept == nil {
		b.kept = make([][]byte, len(b.tables))
	}
	for n := range b.Snapshots {
		s := snapshot{tables: b.tables, kept: b.kept}
		if b.VMState > 0 {
			s.vm = b.saveMachine()
		}
		s.l1 = b.extend(ceil(b.l1Len*8, b.clusterSize()))
		b.snaps = append(b.snaps, s)
		if b.Rewrite > 0 {
			b.rewrite(uint64(n))
		}
	}
	if b.Rewrite > 0 {
		b.recount()
	}
	for _, s := range b.snaps {
		b.writeSnapshotL1(s)
	}
	if b.Snapshots > 0 {
		b.writeSnapshotTable()
	}
}

// saveMachine stores the state of the machine: its tables stand in the snapshot's L1 behind those
// of the disk, and nowhere else.
func (b *builder) saveMachine() []int64 {
	var tables []int64
	for left := ceil(b.VMState, b.clusterSize()); left > 0; left -= b.l2Entries() {
		host := b.alloc(1)
		tables = append(tables, host)
		clear(b.l2)
		for i := range min(left, b.l2Entries()) {
			e := b.l2[i*b.entryBytes():]
			binary.BigEndian.PutUint64(e, uint64(b.alloc(1))<<b.ClusterBits)
			if b.ExtendedL2 {
				binary.BigEndian.PutUint64(e[8:], 1<<32-1)
			}
		}
		b.out.put(host<<b.ClusterBits, b.l2)
	}
	return tables
}

// rewrite lets the guest write to clusters that the last snapshot holds: the table is copied once,
// and each cluster gets a new place.
func (b *builder) rewrite(n uint64) {
	b.tables, b.kept = slices.Clone(b.tables), slices.Clone(b.kept)
	for t := range b.tables {
		r := rand.New(rand.NewPCG(b.Seed+2+n, uint64(t)))
		var copied []byte
		for i := range min(b.l2Entries(), b.guestClusters()-int64(t)*b.l2Entries()) {
			if r.Float64() >= b.Rewrite {
				continue
			}
			if copied == nil {
				copied = make([]byte, b.clusterSize())
				copy(copied, b.kept[t])
				b.tables[t] = b.alloc(0)
			}
			e := copied[i*b.entryBytes():]
			host := b.alloc(0)
			binary.BigEndian.PutUint64(e, uint64(host)<<b.ClusterBits)
			if b.ExtendedL2 {
				binary.BigEndian.PutUint64(e[8:], 1<<32-1)
			}
			if b.Data {
				b.writeContent(int64(t)*b.l2Entries()+i, host)
			}
		}
		if copied != nil {
			b.kept[t] = copied
		}
	}
}

// recount counts the references of all views, sets the COPIED flags of the active one and writes
// every table.
func (b *builder) recount() {
	b.countView(b.tables, b.kept)
	for _, s := range b.snaps {
		b.countView(s.tables, s.kept)
	}
	done := map[int64]bool{}
	for t, host := range b.tables {
		if host == 0 {
			continue
		}
		b.setCopied(b.kept[t])
		b.tally(b.kept[t])
		b.out.put(host<<b.ClusterBits, b.kept[t])
		done[host] = true
	}
	for _, s := range b.snaps {
		for t, host := range s.tables {
			if host != 0 && !done[host] {
				b.out.put(host<<b.ClusterBits, s.kept[t])
				done[host] = true
			}
		}
	}
}

func (b *builder) countView(tables []int64, kept [][]byte) {
	h := &qcow2.Header{ClusterBits: uint32(b.ClusterBits)}
	for t, host := range tables {
		if host == 0 {
			continue
		}
		b.counts.add(host, 1)
		for off := int64(0); off < b.clusterSize(); off += b.entryBytes() {
			e := binary.BigEndian.Uint64(kept[t][off:])
			if e&qcow2.FlagCompressed != 0 {
				at, n := h.CompressedRange(e)
				for c := int64(at) >> b.ClusterBits; c <= (int64(at)+n-1)>>b.ClusterBits; c++ {
					b.counts.add(c, 1)
				}
			} else if place := int64(e & qcow2.OffsetMask); place != 0 {
				b.counts.add(place>>b.ClusterBits, 1)
			}
		}
	}
}

// setCopied sets the flag of the clusters that have one reference.
func (b *builder) setCopied(table []byte) {
	for off := int64(0); off < b.clusterSize(); off += b.entryBytes() {
		e := binary.BigEndian.Uint64(table[off:])
		place := int64(e & qcow2.OffsetMask)
		if e&qcow2.FlagCompressed == 0 && place != 0 && b.counts.get(place>>b.ClusterBits) == 1 {
			binary.BigEndian.PutUint64(table[off:], e|qcow2.FlagCopied)
		}
	}
}

func (b *builder) writeSnapshotL1(s snapshot) {
	table := make([]byte, b.l1Len*8)
	for t, host := range s.tables {
		binary.BigEndian.PutUint64(table[t*8:], uint64(host)<<b.ClusterBits)
	}
	for i, host := range s.vm {
		binary.BigEndian.PutUint64(table[(len(s.tables)+i)*8:], uint64(host)<<b.ClusterBits)
	}
	b.out.put(s.l1<<b.ClusterBits, table)
}

func (b *builder) writeSnapshotTable() {
	var table []byte
	be := binary.BigEndian
	for n, s := range b.snaps {
		table = append(table, make([]byte, -len(table)&7)...)
		id, name := fmt.Sprint(n+1), fmt.Sprintf("snap%d", n+1)
		extra := 24
		if b.Version == 2 {
			extra = 0
		}
		e := make([]byte, 40+extra)
		be.PutUint64(e, uint64(s.l1)<<b.ClusterBits)
		be.PutUint32(e[8:], uint32(b.l1Len))
		be.PutUint16(e[12:], uint16(len(id)))
		be.PutUint16(e[14:], uint16(len(name)))
		be.PutUint32(e[16:], uint32(1_700_000_000+86400*n))
		be.PutUint32(e[20:], 123456789)
		be.PutUint64(e[24:], uint64(n)*3_600_000_000_000)
		be.PutUint32(e[32:], uint32(b.VMState))
		be.PutUint32(e[36:], uint32(extra))
		if extra > 0 {
			be.PutUint64(e[40:], uint64(b.VMState))
			be.PutUint64(e[48:], uint64(b.VirtualBytes))
			be.PutUint64(e[56:], ^uint64(0)) // no instruction count
		}
		table = append(table, e...)
		table = append(table, id...)
		table = append(table, name...)
	}
	b.snapTable = b.extend(ceil(int64(len(table)), b.clusterSize()))
	b.out.put(b.snapTable<<b.ClusterBits, table)
}
