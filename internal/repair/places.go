// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// seek looks through the file for the L1 table, where what the header says is one does not read so.
func (m *mender) seek(ctx context.Context) error {
	m.sought = true
	f := &fieldMender{r: m.ov, size: m.ov.size, head: make([]byte, plan.SectorBytes)}
	n, err := m.ov.ReadAt(f.head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if f.head = f.head[:n]; n < headerEnd {
		return nil
	}
	if err := f.look(ctx); err != nil {
		return err
	}
	m.search = f
	if f.x.Header != nil && f.x.Header.ClusterBits == m.h.ClusterBits {
		m.soughtL1 = f.x.Header.L1Off
	}
	return nil
}

// mendPlaces puts the places of the L1 table and of the refcount table right in the header, where what
// it names reads as something else, and another table is proved.
func (m *mender) mendPlaces(ctx context.Context) (bool, error) {
	if m.moved || !m.opts.wants(finding.QC01) || m.trust.l1[0] && (m.trust.reftable || len(m.ex.RefcountTable()) == 0) {
		return false, nil
	}
	m.moved = true
	if m.search == nil {
		if err := m.seek(ctx); err != nil || m.search == nil {
			return false, err
		}
	}
	var fixes []fieldFix
	for _, t := range []struct {
		doubt bool
		find  func() *fieldFix
		text  string
	}{
		{!m.trust.l1[0], m.search.l1Offset, "what the header names as the L1 table is none, and another one is proved"},
		{!m.trust.reftable, m.search.reftableOffset, "what the header names as the refcount table is none, and another one is proved"},
	} {
		f := t.find()
		if !t.doubt || len(f.New) == 0 || bytes.Equal(f.Old, f.New) || len(f.Evidence) < minProofs {
			continue
		}
		f.Summary, f.Certainty, f.Proved = t.text, finding.Sure, true
		fixes = append(fixes, *f)
	}
	for len(fixes) > 0 {
		better, err := m.betterWith(ctx, fixes)
		if err != nil {
			return false, err
		}
		if better {
			return m.writeFields(fixes, finding.QC01)
		}
		fixes = fixes[:len(fixes)-1]
	}
	return false, nil
}

// mendL1Table makes a new L1 table where what the header names is none, no other is in the file, and there
// are L2 tables that one should name. It gets the entries that still read as such; mendOrphans puts
// tables back into the others. The cluster of the old one stays as it is.
func (m *mender) mendL1Table(context.Context) (bool, error) {
	if !m.opts.wants(finding.QC13) || m.trust.l1[0] || !m.sought || m.soughtL1 != 0 || !m.tablesLost() ||
		m.h.L1Entries*8 > qcow2.MaxL1Bytes || !m.mayGrow(finding.QC13) {
		return false, nil
	}
	cs := m.h.ClusterSize()
	at, err := m.alloc((m.h.L1Entries*8 + cs - 1) / cs)
	if err != nil {
		return false, err
	}
	m.l1Lost, m.oldL1 = map[int64]bool{}, qcow2.Clusters{First: int64(m.h.L1Off) >> m.h.ClusterBits,
		N: (m.h.L1Entries*8 + cs - 1) / cs}
	kept := int64(0)
	for _, l := range m.l1s {
		c := int64(l.Table()) >> m.h.ClusterBits
		switch {
		case l.L1 != 0 || m.l1Range(l.Index).Length == 0:
			continue
		case l.Word&^(qcow2.FlagCopied|qcow2.OffsetMask) == 0 && int64(l.Table())&(cs-1) == 0 &&
			m.ex.References(c) == 1 && m.leadsToTable(l):
			kept++
			if err := m.put64(plan.New, at+8*l.Index, l.Word); err != nil {
				return false, err
			}
		default:
			m.l1Lost[l.Index] = true
		}
	}
	if err := m.put64(plan.Switch, l1OffsetField, uint64(at)); err != nil {
		return false, err
	}
	st := m.step(plan.New, finding.QC13, "rebuild",
		"make a new L1 table, and point the header to it: what it names is none, and no other is in the file", finding.Sure)
	m.at(st, at, m.h.L1Entries*8)
	m.guest(st, finding.Range{Length: m.h.SizeBytes})
	m.proof(st, "L1 table", int64(m.h.L1Off), "", fmt.Sprintf("%d of its entries lead to no L2 table, %d do and are kept; "+
		"%d L2 tables have no entry", len(m.l1Lost), kept, len(m.ex.Orphans())))
	return true, nil
}

// tablesLost reports whether there are L2 tables that the L1 table of the disk should name: orphans, or
// those of snapshots that are counted once more.
func (m *mender) tablesLost() bool {
	return len(m.ex.Orphans()) > 0 || slices.ContainsFunc(m.l1s, func(l qcow2.L1Entry) bool {
		c := int64(l.Table()) >> m.h.ClusterBits
		n, ok := m.ex.Refcount(c)
		return !l.Active && ok && n > m.ex.References(c)
	})
}

// tellL1Lost remembers the parts of the disk whose L1 entry was no such, and that got no table back. There
// are none where all that is counted is mapped again.
func (m *mender) tellL1Lost() {
	if !slices.ContainsFunc(m.ex.Result().Suspects, func(s qcow2.Suspect) bool {
		return s.References == 0 && (int64(s.First) < m.oldL1.First || int64(s.First)+s.N > m.oldL1.First+m.oldL1.N)
	}) && m.ex.Complete() {
		m.l1Lost = nil
	}
	for _, i := range slices.Sorted(maps.Keys(m.l1Lost)) {
		m.hurtData(plan.Hurt{Code: finding.QC13.Code, Kind: "lost", Guest: []finding.Range{m.l1Range(i)},
			Summary: "the L1 table was overwritten, and which L2 table belongs here is not proved"})
	}
}

// mendL1Size cuts the L1 table to what the disk needs, where it runs over something else. No part of
// the disk depends on what lies behind.
func (m *mender) mendL1Size(context.Context) (bool, error) {
	need := (m.h.SizeBytes + m.h.L2Span() - 1) / m.h.L2Span()
	if need >= m.h.L1Entries || need <= 0 || !m.opts.wants(finding.QC01) || !m.trust.l1[0] {
		return false, nil
	}
	start := int64(m.h.L1Off) >> m.h.ClusterBits
	end := (int64(m.h.L1Off) + 8*m.h.L1Entries - 1) >> m.h.ClusterBits
	over := int64(-1)
	for c := (int64(m.h.L1Off)+8*need-1)>>m.h.ClusterBits + 1; c <= min(end, m.ex.Limit()) && over < 0; c++ {
		if m.ex.References(c) > 1 {
			over = c
		}
	}
	if over < 0 {
		return false, nil
	}
	var field [4]byte
	binary.BigEndian.PutUint32(field[:], uint32(need))
	st := m.step(plan.Switch, finding.QC01, "rewrite", "cut the L1 table to the entries that the disk needs: it runs over something else",
		finding.Sure)
	m.at(st, l1SizeField, 4)
	m.proof(st, "header", l1SizeField, fmt.Sprint(m.h.L1Entries),
		fmt.Sprintf("a disk of %d bytes needs %d entries", m.h.SizeBytes, need))
	m.proof(st, "L1 table", over<<m.h.ClusterBits, "", fmt.Sprintf(
		"cluster %d of the table is used by something else", over-start))
	return true, m.ov.write(plan.Switch, field[:], l1SizeField)
}

// betterWith reports whether a check behind a header with fixes finds no more than half of the faults.
func (m *mender) betterWith(ctx context.Context, fixes []fieldFix) (bool, error) {
	head := bytes.Clone(m.search.head)
	for _, f := range fixes {
		copy(head[f.Offset:], f.New)
	}
	res, err := qcow2.Check(ctx, headed{m.ov, head}, m.ov.size, m.opts.Check)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		return false, nil // with them the image cannot even be opened
	}
	was, is := &m.ex.Result().Counts, &res.Counts
	return (is.Corruptions+is.CheckErrors+is.Leaks)*2 <= was.Corruptions+was.CheckErrors+was.Leaks, nil
}
