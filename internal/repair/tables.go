// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// mendTables takes L2 tables out of use that were overwritten by something else. What they still
// prove is kept in a new table; the cluster itself stays as it is, for it is somebody's data.
func (m *mender) mendTables(ctx context.Context) (changed bool, err error) {
	if !m.opts.wants(finding.QC12) {
		return false, nil
	}
	for _, tb := range m.tables {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		bogus, why := m.bogus(tb)
		if !bogus {
			continue
		}
		refs := m.l1sOf(tb.Off)
		if slices.ContainsFunc(refs, func(l qcow2.L1Entry) bool { return !m.ownL1(l) }) {
			m.keep(finding.QC12, "the L1 table that names it does not read as one, or something else claims it")
			continue
		}
		if !m.mayGrow(finding.QC12) {
			continue
		}
		if err := m.mendTable(tb, refs, why); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// bogus reports whether what L1 entries name as an L2 table is none, and why: it was overwritten, or
// its cluster belongs to something else.
func (m *mender) bogus(tb qcow2.Table) (bool, string) {
	c := int64(tb.Off) >> m.h.ClusterBits
	switch {
	case tb.Stray || tb.Off == 0 || int64(tb.Off)&(m.h.ClusterSize()-1) != 0 || int64(tb.Off) >= m.ov.size:
		return false, ""
	case tb.Foreign:
		return true, "was overwritten"
	case !m.shared[tb.Off]:
		return false, ""
	}
	who := m.metadataIn(c)
	switch {
	case tb.Used == 0 && who == "": // an empty one is told with the guest data in its cluster
		return false, ""
	case who == "header" || who == "L1 table" || who == refcountTable:
		return true, "is the image's " + who
	case readsAsTable(tb):
		return false, ""
	case who != "":
		return true, "is the image's " + who
	case len(m.ex.OwnersOf(c)) > 1:
		return false, "" // two claim it, and it reads as neither
	}
	return true, "is guest data"
}

// l1sOf gives the entries of all L1 tables that name the L2 table at off.
func (m *mender) l1sOf(off image.HostOff) []qcow2.L1Entry {
	i, ok := slices.BinarySearchFunc(m.l1s, off, func(l qcow2.L1Entry, off image.HostOff) int { return cmp.Compare(l.Table(), off) })
	end := i
	for ok && end < len(m.l1s) && m.l1s[end].Table() == off {
		end++
	}
	return m.l1s[i:end]
}

// mendTable puts a new table in the place of an overwritten one, or none where nothing is left.
func (m *mender) mendTable(tb qcow2.Table, refs []qcow2.L1Entry, why string) error {
	fresh, kept, err := m.provedEntries(tb)
	if err != nil {
		return err
	}
	word := uint64(0)
	if kept > 0 {
		at, err := m.alloc(1)
		if err != nil {
			return err
		}
		if err := m.ov.write(plan.New, fresh, at); err != nil {
			return err
		}
		word = uint64(at)
	}
	st := m.step(plan.Point, finding.QC12, "quarantine",
		"take L2 tables out of use that are none, and keep the entries that are proved", finding.Sure)
	m.at(st, int64(tb.Off), m.h.ClusterSize())
	m.proof(st, "L2 table", int64(tb.Off), fmt.Sprint(tb.Bad),
		fmt.Sprintf("it %s; %d of its %d entries cannot be right; %d are proved and kept",
			why, tb.Bad, tb.Used, kept))
	for _, l := range refs {
		w := word
		if w != 0 && l.Active && len(refs) == 1 {
			w |= qcow2.FlagCopied
		}
		if err := m.put64(plan.Point, int64(l.Off), w); err != nil {
			return err
		}
		r := m.l1Range(l.Index)
		m.guest(st, r)
		m.hurtData(plan.Hurt{Code: finding.QC12.Code, Kind: "lost", Snapshot: l.Snapshot,
			Guest: []finding.Range{r}, Summary: fmt.Sprintf(
				"the L2 table at %#x %s: what it mapped is lost%s", int64(tb.Off), why, but(kept))})
	}
	m.proof(st, "leaked clusters", int64(tb.Off), "", "the cluster itself and what it mapped stay counted as used")
	return nil
}

// but says what of a lost table is not lost.
func but(kept int64) string {
	switch kept {
	case 0:
		return ""
	case 1:
		return " but for 1 cluster"
	}
	return fmt.Sprintf(" but for %d clusters", kept)
}

// provedEntries gives a table with those entries of an overwritten one that are proved: they lead to
// clusters whose refcounts agree with all references, and so with the COPIED flag.
func (m *mender) provedEntries(tb qcow2.Table) (fresh []byte, kept int64, err error) {
	cs := m.h.ClusterSize()
	old := make([]byte, cs)
	if err := m.readCluster(old, int64(tb.Off)); err != nil {
		return nil, 0, err
	}
	fresh = make([]byte, cs)
	if m.h.HasDataFile() || !tb.Foreign {
		return fresh, 0, nil
	}
	step := m.h.L2EntryBytes()
	for i := int64(0); i+step <= cs; i += step {
		if m.proved(old[i:i+step], tb.Active > 0) {
			copy(fresh[i:i+step], old[i:i+step])
			kept++
		}
	}
	return fresh, kept, nil
}

// proved reports whether an entry of an overwritten table is right.
func (m *mender) proved(entry []byte, active bool) bool {
	cs := m.h.ClusterSize()
	w := binary.BigEndian.Uint64(entry)
	bitmap := uint64(0)
	if len(entry) > 8 {
		bitmap = binary.BigEndian.Uint64(entry[8:])
	}
	off, length := int64(w&qcow2.OffsetMask), cs
	switch m.h.TypeOf(w) {
	case qcow2.EntryNormal:
		if w&^(qcow2.FlagCopied|qcow2.OffsetMask) != 0 || off&(cs-1) != 0 || uint32(bitmap)&uint32(bitmap>>32) != 0 ||
			len(entry) > 8 && uint32(bitmap) == 0 {
			return false
		}
	case qcow2.EntryCompressed:
		o, n := m.h.CompressedRange(w)
		off, length = int64(o), min(n, m.ov.size-int64(o))
		if w&qcow2.FlagCopied != 0 || bitmap != 0 {
			return false
		}
	default:
		return false // zeros say nothing
	}
	if off <= 0 || length <= 0 || off+length > m.ov.size {
		return false
	}
	for c := off >> m.h.ClusterBits; c <= (off+length-1)>>m.h.ClusterBits; c++ {
		n, ok := m.ex.Refcount(c)
		if !ok || n == 0 || n != m.ex.References(c) || len(m.ex.OwnersOf(c)) > 0 {
			return false
		}
		if m.h.TypeOf(w) == qcow2.EntryNormal && (w&qcow2.FlagCopied != 0) != (n == 1 && active) {
			return false
		}
	}
	return true
}

// readCluster fills p from off; what lies behind the end of the file is zeros.
func (m *mender) readCluster(p []byte, off int64) error {
	n := max(0, min(int64(len(p)), m.ov.size-off))
	if _, err := m.ov.ReadAt(p[:n], off); err != nil {
		return fmt.Errorf("read the cluster at %#x: %w", off, err)
	}
	clear(p[n:])
	return nil
}
