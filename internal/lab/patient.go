// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// maxTablesLooked bounds the L2 tables that are read to find a place for a fault.
const maxTablesLooked = 1 << 13

// patient is a sound image that is about to be broken.
type patient struct {
	f    *os.File
	size int64
	h    *qcow2.Header
	r    *rand.Rand
	l1   []uint64
	reft []uint64
	hit  Hit
}

func openPatient(path string, seed uint64) (*patient, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	p := &patient{f: f, r: rand.New(rand.NewPCG(seed, 0xbad))}
	if err := p.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("break %s: %w", path, err)
	}
	return p, nil
}

func (p *patient) load() (err error) {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	p.size = st.Size()
	if p.h, err = qcow2.ReadHeader(p.f, p.size); err != nil {
		return err
	}
	if p.l1, err = p.words(int64(p.h.L1Off), p.h.L1Entries); err != nil {
		return err
	}
	p.reft, err = p.words(int64(p.h.ReftableOff), p.h.ReftableEntries())
	return err
}

// words reads n numbers of 64 bits. A sound image has them all.
func (p *patient) words(off, n int64) ([]uint64, error) {
	raw, err := p.bytes(off, n*8)
	if err != nil {
		return nil, err
	}
	w := make([]uint64, n)
	for i := range w {
		w[i] = binary.BigEndian.Uint64(raw[i*8:])
	}
	return w, nil
}

// bytes reads so many bytes; what lies past the end of the file reads as zeros.
func (p *patient) bytes(off, n int64) ([]byte, error) {
	raw := make([]byte, n)
	if _, err := p.f.ReadAt(raw, off); err != nil && err != io.EOF {
		return nil, err
	}
	return raw, nil
}

// write changes the image and notes what was there.
func (p *patient) write(off int64, b []byte) error {
	old, err := p.bytes(off, int64(len(b)))
	if err != nil {
		return err
	}
	if _, err := p.f.WriteAt(b, off); err != nil {
		return err
	}
	p.hit.Changes = append(p.hit.Changes, Change{Offset: off, Old: old, New: b})
	p.hit.Host = append(p.hit.Host, finding.Range{Offset: off, Length: int64(len(b))})
	return nil
}

func (p *patient) put32(off int64, v uint32) error {
	return p.write(off, binary.BigEndian.AppendUint32(nil, v))
}

func (p *patient) put64(off int64, v uint64) error {
	return p.write(off, binary.BigEndian.AppendUint64(nil, v))
}

func (p *patient) cs() int64 { return p.h.ClusterSize() }

// guest adds a range of the virtual disk to what is hurt.
func (p *patient) guest(off, n int64) {
	p.hit.Guest = append(p.hit.Guest, finding.Range{Offset: off, Length: min(n, p.h.SizeBytes-off)})
}

// table is an L2 table of the active view.
type table struct {
	l1   int64 // its index
	host int64
	raw  []byte
}

// entry is an entry of an L2 table.
type entry struct {
	t      *table
	i      int64
	word   uint64
	bitmap uint64
	typ    qcow2.EntryType
	// outside: its cluster is in the external data file.
	outside bool
}

// at is the place of the entry in the file.
func (p *patient) at(e entry) int64 { return e.t.host + e.i*p.h.L2EntryBytes() }

// guestOf is the place of what the entry maps.
func (p *patient) guestOf(e entry) int64 {
	return (e.t.l1*p.h.L2Entries() + e.i) << p.h.ClusterBits
}

func (e entry) host() int64 { return int64(e.word & qcow2.OffsetMask) }

// placed: the entry has a cluster, in this file or in the data file.
func (e entry) placed() bool {
	return e.host() != 0 && (e.typ == qcow2.EntryNormal || e.typ == qcow2.EntryZeroAlloc)
}

// stored: the entry has a cluster in this file, so that there is a refcount to hold against it.
func (e entry) stored() bool { return e.placed() && !e.outside }

func (p *patient) table(l1 int64) (*table, error) {
	host := int64(p.l1[l1] & qcow2.OffsetMask)
	raw, err := p.bytes(host, p.cs())
	return &table{l1: l1, host: host, raw: raw}, err
}

func (p *patient) entry(t *table, i int64) entry {
	raw := t.raw[i*p.h.L2EntryBytes():]
	e := entry{t: t, i: i, word: binary.BigEndian.Uint64(raw)}
	if p.h.ExtendedL2() {
		e.bitmap = binary.BigEndian.Uint64(raw[8:])
	}
	e.typ, e.outside = p.h.TypeOf(e.word), p.h.HasDataFile()
	return e
}

// l1Order gives the indexes of the active L1 entries of the disk in a random order.
func (p *patient) l1Order(want func(entry uint64) bool) []int64 {
	var at []int64
	for i, e := range p.l1 {
		if int64(i)*p.h.L2Span() < p.h.SizeBytes && want(e) {
			at = append(at, int64(i))
		}
	}
	p.r.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
	return at[:min(len(at), maxTablesLooked)]
}

func mapped(e uint64) bool { return e&qcow2.OffsetMask != 0 }

// entriesOf gives the entries of a table that lie on the disk and are wanted.
func (p *patient) entriesOf(t *table, want func(entry) bool) []entry {
	var es []entry
	for i := range p.h.L2Entries() {
		e := p.entry(t, i)
		if p.guestOf(e) < p.h.SizeBytes && want(e) {
			es = append(es, e)
		}
	}
	return es
}

// pick draws an entry that is wanted.
func (p *patient) pick(want func(entry) bool) (entry, error) {
	for _, i := range p.l1Order(mapped) {
		t, err := p.table(i)
		if err != nil {
			return entry{}, err
		}
		if es := p.entriesOf(t, want); len(es) > 0 {
			return es[p.r.IntN(len(es))], nil
		}
	}
	return entry{}, ErrNotApplicable
}

// pickTable draws a table with an entry that is wanted.
func (p *patient) pickTable(want func(entry) bool) (*table, error) {
	for _, i := range p.l1Order(mapped) {
		t, err := p.table(i)
		if err != nil {
			return nil, err
		}
		if len(p.entriesOf(t, want)) > 0 {
			return t, nil
		}
	}
	return nil, ErrNotApplicable
}

// refcount reads the refcount of a cluster and where it stands.
func (p *patient) refcount(cluster int64) (v uint64, err error) {
	block, i := p.refblock(cluster)
	if block == 0 {
		return 0, nil
	}
	raw, err := p.bytes(block, p.cs())
	if err != nil {
		return 0, err
	}
	return refcountAt(raw, i, p.h.RefcountBits()), nil
}

// refblock is where the refcount block of a cluster lies, and the cluster's index in it.
func (p *patient) refblock(cluster int64) (host, index int64) {
	n := p.h.RefblockEntries()
	if cluster/n >= int64(len(p.reft)) {
		return 0, 0
	}
	return int64(p.reft[cluster/n] &^ 0x1ff), cluster % n
}

// setRefcount changes the bytes that hold the refcount of a cluster.
func (p *patient) setRefcount(cluster int64, v uint64) error {
	block, i := p.refblock(cluster)
	if block == 0 {
		return ErrNotApplicable
	}
	bits := int64(p.h.RefcountBits())
	off, n := i*bits/8, max(1, bits/8)
	raw, err := p.bytes(block, p.cs())
	if err != nil {
		return err
	}
	putRefcount(raw, i, int(bits), v)
	return p.write(block+off, raw[off:off+n])
}

// metadata lists the clusters that hold metadata of the active view, by their kind.
func (p *patient) metadata() map[string][]int64 {
	m := map[string][]int64{}
	add := func(kind string, off, n int64) {
		for c := off; c < off+n; c += p.cs() {
			m[kind] = append(m[kind], c)
		}
	}
	add("header", 0, 1)
	add("L1 table", int64(p.h.L1Off), p.h.L1Entries*8)
	add("refcount table", int64(p.h.ReftableOff), p.h.ReftableClusters<<p.h.ClusterBits)
	for _, e := range p.reft {
		if e != 0 {
			add("refcount block", int64(e&^0x1ff), 1)
		}
	}
	for _, e := range p.l1 {
		if mapped(e) {
			add("L2 table", int64(e&qcow2.OffsetMask), 1)
		}
	}
	return m
}
