// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// The refcount structure is mended in new space: blocks that cannot be used, or are missing, are
// made anew behind the end of the file, and the refcount table as well where it has no room for
// them, is itself unusable, or the refcounts have to become wider. Nothing refers to the new ones
// until the table's entries, or the header's pointer to the table, are written.
//
// What a new block says of a cluster:
//
//	it is referred to                     its references
//	nothing refers to it, it reads as 0   0
//	nothing refers to it, it holds data   1: nothing explains it, so nothing may take it

// structure is a refcount structure in the making.
type structure struct {
	m     *mender
	order uint32
	// table has the blocks that stay; fresh are the indexes of those that are made, ascending, and
	// dropped those of entries that are cleared.
	table          []uint64
	fresh, dropped []int64
	// tableOff is where the new refcount table lies, 0 if the old one stays. tableClusters is its
	// length then.
	tableOff, tableClusters int64
	// first is the first new cluster of the file; blocks begin there.
	first int64
	// superseded are clusters of the old structure, which the new one counts as free.
	superseded map[int64]bool
}

// mendStructure makes a new refcount structure where the old one cannot be used.
func (m *mender) mendStructure(ctx context.Context) (bool, error) {
	if !m.opts.wants(finding.QC15) && !m.opts.wants(finding.QC23) && !m.grown() {
		return false, nil
	}
	s := m.newStructure()
	if s == nil {
		return false, nil
	}
	if !m.ex.ReferencesKnown() {
		m.keep(finding.QC15, "free space is told from data only where all tables can be read; see what could not be")
		return false, nil
	}
	if f, err := m.forgotten(ctx); f != nil || err != nil {
		m.keep(finding.QC15, "the references of snapshots that may be lost are not counted: use --forgotten-snapshots, "+
			"or copy the file and look at it by hand")
		return false, err
	}
	if (m.stuck || m.noZeros() && len(m.dangling) > 0) && !m.mayGrow(finding.QC15) {
		return false, nil
	}
	if err := s.layOut(ctx); err != nil {
		return false, err
	}
	if err := s.write(ctx); err != nil {
		return false, err
	}
	s.tell()
	return true, nil
}

// newStructure says what has to be made anew, nil if nothing.
func (m *mender) newStructure() *structure {
	s := &structure{m: m, order: m.h.RefcountOrder, table: slices.Clone(m.ex.RefcountTable()),
		superseded: map[int64]bool{}}
	wide := m.widerOrder()
	if wide > s.order && m.opts.wants(finding.QC23) {
		s.order = wide
		for b := range s.table {
			s.retire(int64(b))
		}
		s.table = nil
		return s
	}
	if !m.opts.wants(finding.QC15) {
		return s.onlyGrown()
	}
	per := m.h.RefblockEntries()
	needed := (m.ex.Limit() + per - 1) / per
	for b, fault := range m.bad {
		if b < int64(len(s.table)) {
			if fault != blockUnusable {
				s.retire(b)
			}
			s.table[b] = 0
		}
		if b < needed {
			s.fresh = append(s.fresh, b)
		} else { // it covers nothing that the file has
			s.dropped = append(s.dropped, b)
		}
	}
	s.table = trimZeros(s.table)
	if !m.ex.RefcountsKnown() { // nothing of the old structure can be found
		s.table = nil
		for i := range (m.ex.Clusters() + per - 1) / per {
			s.fresh = append(s.fresh, i)
		}
	}
	// Clusters in use that no block covers.
	for _, x := range m.ex.Result().Suspects {
		s.cover(x)
	}
	return s.orNone()
}

// onlyGrown makes blocks for clusters that were added to the file, and leaves the rest as it is.
func (s *structure) onlyGrown() *structure {
	for _, x := range s.m.ex.Result().Suspects {
		s.cover(s.m.newPart(x))
	}
	return s.orNone()
}

// cover makes the blocks that are missing for clusters in use.
func (s *structure) cover(x qcow2.Suspect) {
	per := s.m.h.RefblockEntries()
	if x.References == 0 || x.N <= 0 {
		return
	}
	for i := int64(x.First) / per; i <= (int64(x.First)+x.N-1)/per; i++ {
		if i >= int64(len(s.table)) || qcow2.RefblockOffset(s.table[i]) == 0 {
			s.fresh = append(s.fresh, i)
		}
	}
}

// orNone gives the structure, or nil if nothing has to be made.
func (s *structure) orNone() *structure {
	slices.Sort(s.fresh)
	s.fresh = slices.Compact(s.fresh)
	slices.Sort(s.dropped)
	if len(s.fresh)+len(s.dropped) == 0 {
		return nil
	}
	return s
}

// trimZeros cuts the zeros off the end of a table.
func trimZeros(table []uint64) []uint64 {
	for len(table) > 0 && table[len(table)-1] == 0 {
		table = table[:len(table)-1]
	}
	return table
}

// retire marks the cluster of old block no as free in the new structure, if nothing but the old
// structure refers to it and it reads as refcounts. What else it may hold is somebody's data.
func (s *structure) retire(no int64) {
	m := s.m
	off := int64(qcow2.RefblockOffset(s.table[no]))
	c := off >> m.h.ClusterBits
	if off <= 0 || off&(m.h.ClusterSize()-1) != 0 || off >= m.ov.size || m.ex.References(c) != 1 ||
		!m.readsAsBlock(no) {
		return
	}
	s.superseded[c] = true
}

// widerOrder is the width, as an exponent of 2, that holds the references that there are.
func (m *mender) widerOrder() uint32 {
	order := m.h.RefcountOrder
	if m.h.Version < 3 || !slices.ContainsFunc(m.ex.Result().Findings, func(f finding.Finding) bool {
		return f.Code == finding.QC23.Code
	}) {
		return order
	}
	most := uint64(0)
	_ = m.ex.EachReferenced(context.Background(), func(_, _ int64, refs uint64) error { // returns no error
		most = max(most, refs)
		return nil
	})
	for order < 6 && most > 1<<(1<<order)-1 {
		order++
	}
	return order
}

// entries is how many clusters a block of the new structure covers.
func (s *structure) entries() int64 { return s.m.h.ClusterSize() * 8 >> s.order }

// layOut decides which blocks are made and where everything lies. Each new cluster has to be counted
// itself, which may take one more block.
func (s *structure) layOut(ctx context.Context) error {
	m, cs := s.m, s.m.h.ClusterSize()
	per := s.entries()
	s.first = (m.ov.size + cs - 1) >> m.h.ClusterBits
	if s.order != m.h.RefcountOrder {
		for i := range (s.first + per - 1) / per {
			s.fresh = append(s.fresh, i)
		}
	}
	for len(s.fresh)+int(s.newTableClusters()) > 0 {
		last := s.first + int64(len(s.fresh)) + s.newTableClusters() - 1
		grew := false
		for i := s.first / per; i <= last/per; i++ {
			if i < int64(len(s.table)) && qcow2.RefblockOffset(s.table[i]) != 0 {
				continue
			}
			if at, ok := slices.BinarySearch(s.fresh, i); !ok {
				s.fresh, grew = slices.Insert(s.fresh, at, i), true
			}
		}
		if !grew {
			break
		}
	}
	s.tableClusters = s.newTableClusters()
	if s.tableClusters<<m.h.ClusterBits > qcow2.MaxReftableBytes {
		return fmt.Errorf("a refcount table of %d bytes would be needed, %d at most: the file is too long "+
			"for clusters of this size", s.tableClusters<<m.h.ClusterBits, qcow2.MaxReftableBytes)
	}
	if int64(len(s.fresh))+s.tableClusters == 0 {
		return nil
	}
	off, err := m.alloc(int64(len(s.fresh)) + s.tableClusters)
	if err != nil {
		return err
	}
	if s.tableClusters > 0 {
		s.tableOff = off + int64(len(s.fresh))<<m.h.ClusterBits
		for c := int64(m.h.ReftableOff) >> m.h.ClusterBits; c < int64(m.h.ReftableOff)>>m.h.ClusterBits+
			m.h.ReftableClusters; c++ {
			zero, err := m.readsZero(ctx, c, make([]byte, cs))
			if err != nil {
				return err
			}
			if m.ex.References(c) == 1 && (m.trust.reftable || zero) {
				s.superseded[c] = true
			}
		}
	}
	for i, b := range s.fresh {
		for int64(len(s.table)) <= b {
			s.table = append(s.table, 0)
		}
		s.table[b] = uint64(off + int64(i)<<m.h.ClusterBits)
	}
	return nil
}

// newTableClusters is the length of a new refcount table, 0 where the old one can stay.
func (s *structure) newTableClusters() int64 {
	h := s.m.h
	most := int64(len(s.table))
	if n := len(s.fresh); n > 0 {
		most = max(most, s.fresh[n-1]+1)
	}
	sound := s.order == h.RefcountOrder && h.ReftableOff != 0 && s.m.trust.reftable && most <= h.ReftableEntries() &&
		int64(h.ReftableOff)+h.ReftableEntries()*8 <= s.m.ov.baseSize && s.m.ownsReftable()
	if sound {
		return 0
	}
	perCluster := h.ClusterSize() / 8
	// The table's own clusters may need a block more.
	return (most + 1 + perCluster - 1) / perCluster
}

// write puts the new blocks and the table into the overlay.
func (s *structure) write(ctx context.Context) error {
	m := s.m
	block := make([]byte, m.h.ClusterSize())
	for _, b := range s.fresh {
		if err := ctx.Err(); err != nil {
			return err
		}
		clear(block)
		if err := s.fill(ctx, block, b); err != nil {
			return err
		}
		if err := m.ov.write(plan.New, block, int64(s.table[b])); err != nil {
			return err
		}
	}
	if err := s.countNew(); err != nil {
		return err
	}
	if s.tableOff == 0 {
		for _, b := range s.dropped {
			if err := m.put64(plan.Point, int64(m.h.ReftableOff)+8*b, 0); err != nil {
				return err
			}
		}
		for _, b := range s.fresh {
			if err := m.put64(plan.Point, int64(m.h.ReftableOff)+8*b, s.table[b]); err != nil {
				return err
			}
		}
		return nil
	}
	raw := make([]byte, s.tableClusters<<m.h.ClusterBits)
	for i, e := range s.table {
		binary.BigEndian.PutUint64(raw[8*i:], e)
	}
	if err := m.ov.write(plan.New, raw, s.tableOff); err != nil {
		return err
	}
	var field [12]byte
	binary.BigEndian.PutUint64(field[:], uint64(s.tableOff))
	binary.BigEndian.PutUint32(field[8:], uint32(s.tableClusters))
	if err := m.ov.write(plan.Switch, field[:], 48); err != nil {
		return err
	}
	if s.order == m.h.RefcountOrder {
		return nil
	}
	var order [4]byte
	binary.BigEndian.PutUint32(order[:], s.order)
	return m.ov.write(plan.Switch, order[:], 96)
}

// fill sets the refcounts of block b for the clusters that the file has had.
func (s *structure) fill(ctx context.Context, block []byte, b int64) error {
	m, per := s.m, s.entries()
	first := b * per
	end := min(first+per, s.first)
	limit := uint64(1)<<(1<<s.order) - 1
	if s.order == 6 {
		limit = ^uint64(0)
	}
	buf := make([]byte, m.h.ClusterSize())
	var unclear []int64
	for c := first; c < end; c++ {
		if c&0xfff == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		n := m.ex.References(c)
		switch {
		case s.superseded[c]:
			n = 0
		case n == 0:
			old, err := s.unreferenced(ctx, c, buf)
			if err != nil {
				return err
			}
			if n = old; n == 1 {
				unclear = append(unclear, c)
			}
		}
		qcow2.PutRefcount(block, c-first, s.order, min(n, limit))
	}
	return s.forgetOldBlock(block, first, unclear)
}

// forgetOldBlock counts a cluster as free that nothing refers to and that holds what the new block
// would hold, but that it counts itself: it is the old block, of which the refcount table lost sight.
func (s *structure) forgetOldBlock(block []byte, first int64, unclear []int64) error {
	m := s.m
	const maxUnclear = 1 << 10
	if s.order != m.h.RefcountOrder || len(unclear) > maxUnclear {
		return nil
	}
	buf := make([]byte, len(block))
	for _, c := range unclear {
		if err := m.readCluster(buf, c<<m.h.ClusterBits); err != nil {
			return err
		}
		if bytes.Equal(buf, block) {
			qcow2.PutRefcount(block, c-first, s.order, 0)
			return nil
		}
	}
	return nil
}

// unreferenced is the refcount of a cluster that nothing refers to: what it had where the old block
// can be trusted, else 1 if it holds anything.
func (s *structure) unreferenced(ctx context.Context, c int64, buf []byte) (uint64, error) {
	m := s.m
	if s.order != m.h.RefcountOrder {
		if n, ok := m.ex.Refcount(c); ok && m.bad[c/m.h.RefblockEntries()] == blockSound {
			return n, nil
		}
	}
	off := c << m.h.ClusterBits
	hole := true
	err := m.ov.Data(ctx, off, min(m.h.ClusterSize(), m.ov.size-off), func(int64, int64) error {
		hole = false
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("look for holes at %#x: %w", off, err)
	}
	if hole {
		return 0, nil
	}
	if err := m.readCluster(buf, off); err != nil {
		return 0, err
	}
	if len(bytes.TrimLeft(buf, "\x00")) == 0 {
		return 0, nil
	}
	return 1, nil
}

// countNew counts the new clusters themselves, in new blocks and in those that stay.
func (s *structure) countNew() error {
	m, per := s.m, s.entries()
	for c := s.first; c < s.first+int64(len(s.fresh))+s.tableClusters; c++ {
		b := c / per
		ph := plan.Count
		if _, fresh := slices.BinarySearch(s.fresh, b); fresh {
			ph = plan.New
		}
		cell := make([]byte, max(1, 1<<s.order>>3))
		bit := (c % per) << s.order
		off := int64(s.table[b]) + bit>>3
		if _, err := m.ov.ReadAt(cell, off); err != nil {
			return fmt.Errorf("read the refcount block at %#x: %w", s.table[b], err)
		}
		qcow2.PutRefcount(cell, (bit&7)>>s.order, s.order, 1)
		if err := m.ov.write(ph, cell, off); err != nil {
			return err
		}
	}
	return nil
}

// tell adds the steps of a new structure.
func (s *structure) tell() {
	m := s.m
	m.rebuilt = true
	rule, text := finding.QC15, "make refcount blocks that cannot be used anew, behind the end of the file"
	if s.order != m.h.RefcountOrder {
		rule = finding.QC23
		text = fmt.Sprintf("widen refcounts from %d to %d bits, in blocks behind the end of the file",
			1<<m.h.RefcountOrder, 1<<s.order)
	}
	if len(s.fresh) > 0 {
		st := m.step(plan.New, rule, "rebuild", text, finding.Sure)
		st.Count += int64(len(s.fresh)) - 1
		for _, b := range s.fresh {
			m.at(st, int64(s.table[b]), m.h.ClusterSize())
		}
	}
	if len(s.dropped) > 0 && s.tableOff == 0 {
		st := m.step(plan.Point, rule, "clear", "clear entries of the refcount table that are wrong, for clusters that the file does not have",
			finding.Sure)
		st.Count += int64(len(s.dropped)) - 1
		for _, b := range s.dropped {
			m.at(st, int64(m.h.ReftableOff)+8*b, 8)
		}
	}
	if s.tableOff != 0 {
		st := m.step(plan.New, rule, "rebuild", "make the refcount table anew, and point the header to it", finding.Sure)
		m.at(st, s.tableOff, s.tableClusters<<m.h.ClusterBits)
	}
}
