// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// mendPointers mends single entries of L1 and L2 tables.
func (m *mender) mendPointers(ctx context.Context) (changed bool, err error) {
	for i, l := range m.l1s {
		if i&0xfff == 0 && ctx.Err() != nil {
			return changed, ctx.Err()
		}
		done, err := m.mendL1Entry(l)
		if err != nil {
			return changed, err
		}
		changed = changed || done
	}
	seen := map[int64]bool{} // an entry may be there for several clusters
	for i := range m.entries {
		e := &m.entries[i]
		if i&0xfff == 0 && ctx.Err() != nil {
			return changed, ctx.Err()
		}
		if e.Fault == qcow2.Sound || e.Foreign || m.shared[e.Table] || seen[int64(e.Off)] {
			continue
		}
		seen[int64(e.Off)] = true
		done, err := m.mendEntry(e)
		if err != nil {
			return changed, err
		}
		changed = changed || done
	}
	return changed, nil
}

// mendL1Entry mends an L1 entry where its bits tell what it was.
func (m *mender) mendL1Entry(l qcow2.L1Entry) (bool, error) {
	cs := m.h.ClusterSize()
	off := int64(l.Table())
	reserved := l.Word &^ (qcow2.FlagCopied | qcow2.OffsetMask)
	down := off &^ (cs - 1)
	switch {
	case !m.ownL1(l):
		return false, nil
	case off == 0:
		if !m.opts.wants(finding.QC09) {
			return false, nil
		}
		st := m.step(plan.Point, finding.QC09, "clear", "clear L1 entries that have flags but no table", finding.Sure)
		return true, m.setL1(st, l, 0)
	case off >= m.ov.size:
		m.keep(finding.QC11, "find a complete copy; where the missing part is gone for good, --zero-lost "+
			"makes entries of L2 tables read as zeros")
		return false, nil
	case reserved == 0 && off == down:
		return false, nil
	}
	rule, what := finding.QC09, "clear reserved bits of L1 entries that lead to an L2 table without them"
	if off != down {
		rule = finding.QC10
		what = "align L1 entries: the cluster that they point into is an L2 table that nothing else names"
	}
	if !m.opts.wants(rule) {
		return false, nil
	}
	table, err := m.ex.LooksLikeTable(down >> m.h.ClusterBits)
	if err != nil {
		return false, err
	}
	if !table || off != down && !m.onlyCounted(down>>m.h.ClusterBits) {
		m.keep(rule, "what the entry points to does not read as an L2 table; restore this range from a backup")
		return false, nil
	}
	st := m.step(plan.Point, rule, "clear", what, finding.Sure)
	return true, m.setL1(st, l, uint64(down)|l.Word&qcow2.FlagCopied)
}

// onlyCounted reports whether a cluster is counted once more than L1 entries name it as a table: the
// one more is then an entry that was misaligned.
func (m *mender) onlyCounted(c int64) bool {
	n, ok := m.ex.Refcount(c)
	owners := m.ex.OwnersOf(c)
	return ok && n == m.tableRefs(c)+1 &&
		!slices.ContainsFunc(owners, func(who string) bool { return who != "L2 table" })
}

// setL1 writes an L1 entry and adds it to a step.
func (m *mender) setL1(st *plan.Step, l qcow2.L1Entry, word uint64) error {
	m.at(st, int64(l.Off), 8)
	m.guest(st, m.l1Range(l.Index))
	m.proof(st, "L1 entry", int64(l.Off), hex64(l.Word), fmt.Sprintf("entry %d becomes %s", l.Index, hex64(word)))
	return m.put64(plan.Point, int64(l.Off), word)
}

// mendEntry mends an L2 entry that is wrong by itself, where its bits tell what it was.
func (m *mender) mendEntry(e *qcow2.Entry) (bool, error) {
	const reservedL2 = 0x3f000000000001fe
	if tb, ok := m.tableAt(e.Table); ok && !readsAsTable(tb) && !m.countedFor(e, e.Word&^uint64(reservedL2)) {
		m.keep(finding.QC12, "most of what this table holds cannot be right, so nothing is written into it")
		return false, nil
	}
	switch e.Fault {
	case qcow2.FaultReserved:
		return m.setEntry(finding.QC09, "clear", "clear reserved bits of L2 entries", finding.Sure, e,
			e.Word&^uint64(reservedL2))
	case qcow2.FaultCompressedCopied:
		return m.setEntry(finding.QC18, "clear",
			"clear the COPIED flag of compressed clusters, which never have one", finding.Sure, e,
			e.Word&^uint64(qcow2.FlagCopied))
	case qcow2.FaultDataFileCopied:
		return m.setEntry(finding.QC05, "set-copied",
			"set the COPIED flag of entries into the external data file, which always have it",
			finding.Sure, e, e.Word|qcow2.FlagCopied)
	case qcow2.FaultMisaligned:
		return m.mendMisaligned(e)
	case qcow2.FaultPastEnd:
		return m.mendPastEnd(e)
	case qcow2.FaultCompressed:
		return m.mendCompressed(e)
	case qcow2.FaultSubclusters:
		return m.mendSubclusters(e)
	}
	return false, nil
}

// countedFor reports whether the refcount of what an entry names, as it would be, counts it and no more.
func (m *mender) countedFor(e *qcow2.Entry, word uint64) bool {
	c := int64(word&qcow2.OffsetMask) >> m.h.ClusterBits
	if m.h.HasDataFile() {
		return int64(word&qcow2.OffsetMask) == int64(e.Guest)
	}
	n, ok := m.ex.Refcount(c)
	return ok && word&qcow2.OffsetMask != 0 && word&qcow2.FlagCompressed == 0 && n > 0 && n == m.ex.References(c)
}

// setEntry writes an L2 entry and tells of it, if findings of the rule are to be mended.
func (m *mender) setEntry(r finding.Rule, action, what string, sure finding.Certainty, e *qcow2.Entry,
	word uint64) (bool, error) {
	if !m.opts.wants(r) {
		return false, nil
	}
	st := m.step(plan.Point, r, action, what, sure)
	m.tellEntry(st, e, word)
	return true, m.put64(plan.Point, int64(e.Off), word)
}

func (m *mender) tellEntry(st *plan.Step, e *qcow2.Entry, word uint64) {
	m.at(st, int64(e.Off), 8)
	m.guest(st, m.clusterRange(e.Guest))
	m.proof(st, "L2 entry", int64(e.Off), hex64(e.Word), "becomes "+hex64(word))
}

func (m *mender) mendMisaligned(e *qcow2.Entry) (bool, error) {
	cs := m.h.ClusterSize()
	off := int64(e.Word & qcow2.OffsetMask)
	down := off &^ (cs - 1)
	if m.h.TypeOf(e.Word) == qcow2.EntryZeroAlloc {
		// The cluster holds nothing that anybody reads.
		return m.setEntry(finding.QC10, "quarantine",
			"let misaligned zero clusters do without the space that was kept for them", finding.Sure, e,
			qcow2.FlagZero)
	}
	c := down >> m.h.ClusterBits
	n, ok := m.ex.Refcount(c)
	next, ok2 := m.ex.Refcount(c + 1)
	// The entry refers to two clusters. The first is counted for it, the second is not.
	if m.h.HasDataFile() || !ok || !ok2 || n != m.ex.References(c) || len(m.ex.OwnersOf(c)) > 0 ||
		m.ex.References(c+1) != next+e.Refs {
		m.keep(finding.QC10, "which cluster the entry named is not proved; restore this range from a backup")
		return false, nil
	}
	return m.setEntry(finding.QC10, "clear",
		"align L2 entries: the cluster that they point into is counted for them, the next one is not",
		finding.Likely, e, e.Word&^uint64(qcow2.OffsetMask)|uint64(down))
}

// mendPastEnd makes an entry that leads past the end of the file read as zeros, if that is wanted.
func (m *mender) mendPastEnd(e *qcow2.Entry) (bool, error) {
	if !m.opts.ZeroLost {
		m.keep(finding.QC11, "find a complete copy; where the missing part is gone for good, --zero-lost "+
			"makes it read as zeros and remembers which parts of the disk that is")
		return false, nil
	}
	return m.quarantine(finding.QC11,
		"let what pointed past the end of the file read as zeros", "it lay past the end of the file", e)
}

// quarantine takes away what an entry points to: its part of the disk reads as zeros, and is
// remembered as lost.
func (m *mender) quarantine(r finding.Rule, what, why string, e *qcow2.Entry) (bool, error) {
	if !m.opts.wants(r) || m.noZeros() && !m.countable(r) {
		return false, nil
	}
	return true, m.takeAway(r, what, why, e)
}

// takeAway is quarantine whatever is to be mended.
func (m *mender) takeAway(r finding.Rule, what, why string, e *qcow2.Entry) error {
	if m.gone[e.Off] {
		return nil // when the file grew
	}
	m.gone[e.Off] = true
	word := uint64(qcow2.FlagZero)
	switch {
	case m.h.ExtendedL2():
		word = 0
		if err := m.put64(plan.Point, int64(e.Off)+8, 0xffffffff<<32); err != nil {
			return err
		}
	case m.noZeros():
		at, err := m.alloc(1) // a cluster of zeros
		if err != nil {
			return err
		}
		word = uint64(at) | qcow2.FlagCopied
	case m.h.Version < 3:
		word = 0
	}
	st := m.step(plan.Point, r, "quarantine", what, finding.Sure)
	m.tellEntry(st, e, word)
	m.hurtData(plan.Hurt{Code: r.Code, Kind: "lost", Snapshot: m.ex.SnapshotOf(e.Table),
		Guest: []finding.Range{m.clusterRange(e.Guest)}, Summary: why})
	return m.put64(plan.Point, int64(e.Off), word)
}

func (m *mender) mendCompressed(e *qcow2.Entry) (bool, error) {
	if m.h.HasDataFile() || !m.h.ExtendedL2() {
		m.keep(finding.QC18, "an external data file holds no compressed clusters; restore this range from a backup")
		return false, nil
	}
	if !m.opts.wants(finding.QC18) {
		return false, nil
	}
	st := m.step(plan.Point, finding.QC18, "clear",
		"clear the bitmaps of compressed clusters, which have no subclusters", finding.Likely)
	bitmap, err := m.get64(int64(e.Off) + 8)
	if err != nil {
		return false, err
	}
	m.at(st, int64(e.Off)+8, 8)
	m.guest(st, m.clusterRange(e.Guest))
	m.proof(st, "subcluster bitmap", int64(e.Off)+8, hex64(bitmap), "becomes "+hex64(0))
	return true, m.put64(plan.Point, int64(e.Off)+8, 0)
}

// mendSubclusters settles a bitmap that says of subclusters that they are stored and zero, if it was
// said how.
func (m *mender) mendSubclusters(e *qcow2.Entry) (bool, error) {
	bitmap, err := m.get64(int64(e.Off) + 8)
	if err != nil {
		return false, err
	}
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	if m.h.TypeOf(e.Word) == qcow2.EntryUnallocated {
		if !m.opts.ZeroLost {
			m.keep(finding.QC19, "the bitmap says that data is stored, but names no cluster; --zero-lost makes it read as zeros")
			return false, nil
		}
		return m.quarantine(finding.QC19, "let subclusters without a cluster read as zeros",
			"its bitmap said that data is stored, but there was no cluster", e)
	}
	switch m.opts.Subclusters {
	case "data":
		zero &^= alloc
	case "zero":
		alloc &^= zero
	default:
		m.keep(finding.QC19, "compare with a backup whether these subclusters are zero; then use "+
			"--subclusters data or --subclusters zero")
		return false, nil
	}
	if !m.opts.wants(finding.QC19) {
		return false, nil
	}
	now := uint64(zero)<<32 | uint64(alloc)
	st := m.step(plan.Point, finding.QC19, "clear",
		"settle bitmaps that say of subclusters that they are stored and zero, as was asked for", finding.Possible)
	m.at(st, int64(e.Off)+8, 8)
	m.guest(st, m.clusterRange(e.Guest))
	m.proof(st, "subcluster bitmap", int64(e.Off)+8, hex64(bitmap), "becomes "+hex64(now))
	return true, m.put64(plan.Point, int64(e.Off)+8, now)
}

// mendOverlaps takes guest data out of the image's own metadata. A write of the guest there would
// destroy it.
func (m *mender) mendOverlaps(ctx context.Context) (changed bool, err error) {
	if !m.opts.wants(finding.QC08) {
		return false, nil
	}
	for _, o := range m.ex.Overlaps() {
		for c := o.First; c < o.First+o.N; c++ {
			if err := ctx.Err(); err != nil {
				return changed, err
			}
			done, err := m.mendOverlap(c)
			if err != nil {
				return changed, err
			}
			changed = changed || done
		}
	}
	return changed, nil
}

func (m *mender) mendOverlap(c int64) (changed bool, err error) {
	empty, err := m.clearEmptyTables(c)
	if empty || err != nil {
		return empty, err
	}
	owner := m.metadataIn(c)
	if owner == "" {
		m.keep(finding.QC08, "what is called metadata there does not read as such, so the guest data stays; "+
			"its refcount is raised, so that a write goes elsewhere")
		return false, nil
	}
	for i := range m.entriesAt(c, 1) {
		e := &m.entriesAt(c, 1)[i]
		if e.Foreign || m.shared[e.Table] || int64(e.Word&qcow2.OffsetMask)>>m.h.ClusterBits != c || !placed(m.h, e.Word) {
			continue
		}
		done, err := m.quarantine(finding.QC08,
			"take guest data out of the image's metadata: its part of the disk reads as zeros",
			fmt.Sprintf("it pointed into the %s at %#x", owner, c<<m.h.ClusterBits), e)
		if err != nil {
			return changed, err
		}
		changed = changed || done
	}
	if !changed {
		m.keep(finding.QC08, "what lies in this cluster is not told apart by rules; copy the file and look at it by hand")
	}
	return changed, nil
}

// clearEmptyTables takes an L2 table without entries away where guest data lies in its cluster: the
// L1 entry is the wrong one then, and nothing is lost with it.
func (m *mender) clearEmptyTables(c int64) (changed bool, err error) {
	buf := make([]byte, m.h.ClusterSize())
	for _, l := range m.l1sOf(image.HostOff(c << m.h.ClusterBits)) {
		if !m.ownL1(l) {
			continue
		}
		if err := m.readCluster(buf, c<<m.h.ClusterBits); err != nil {
			return changed, err
		}
		for i := 0; i+8 <= len(buf); i += 8 {
			if binary.BigEndian.Uint64(buf[i:]) != 0 {
				return changed, nil
			}
		}
		st := m.step(plan.Point, finding.QC08, "clear",
			"clear L1 entries that name a cluster of guest data as a table: it reads as an empty one",
			finding.Likely)
		if err := m.setL1(st, l, 0); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}
