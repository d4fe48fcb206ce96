// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// mendCounts brings refcounts in line with the references that there are, and the COPIED flags in line
// with them. It lowers a refcount only where nothing can depend on it.
func (m *mender) mendCounts(ctx context.Context) (bool, error) {
	split, err := m.mendLinks(ctx)
	if split || err != nil {
		return split, err
	}
	if rebuilt, err := m.mendStructure(ctx); rebuilt || err != nil {
		return rebuilt, err
	}
	raised, err := m.raise(ctx)
	if err != nil {
		return false, err
	}
	lowered, err := m.lowerExcess(ctx)
	if err != nil {
		return false, err
	}
	flagged, err := m.mendFlags(ctx)
	return raised || lowered || flagged, err
}

// lowerExcess lowers refcounts of clusters that have one reference to 1. Only snapshots and compressed
// data share clusters: without a snapshot, the one entry that maps a plain cluster, or the one piece
// of metadata in it, is all that there can be. No space is given back by it.
func (m *mender) lowerExcess(ctx context.Context) (changed bool, err error) {
	if !m.opts.wants(finding.QC03) || m.h.HasDataFile() {
		return false, nil
	}
	if f, err := m.forgotten(ctx); f != nil || err != nil {
		return false, err
	}
	lost := finding.Worst(m.ex.Result().Findings) == finding.Lost // then their advice is that of the check
	sound := m.ex.Complete() && m.ex.Unlisted() == 0 && m.ex.Snapshots().Len() == 0 && m.h.Snapshots == 0 &&
		!lost && !m.lostHere()
	// Metadata comes first: whether data is used once depends on the refcount of its table.
	for _, data := range []bool{false, true} {
		done, err := m.lowerAll(ctx, data, sound, lost)
		changed = changed || done
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// lowerAll lowers the refcounts of clusters of guest data, or of those of metadata.
func (m *mender) lowerAll(ctx context.Context, data, sound, lost bool) (changed bool, err error) {
	var once tablesOnce
	for _, s := range m.ex.Result().Suspects {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		if s.References == 0 || s.Refcount <= s.References {
			continue
		}
		if lost {
			continue
		}
		if !sound || s.References != 1 {
			m.keep(finding.QC03, "a refcount that is too high may be all that is left of a lost mapping, so it stays")
			continue
		}
		limit := int64(maxLeakBytes)
		if m.opts.reclaims() {
			limit = 0 // they are all read anyway
		}
		names, err := m.namedByLeaks(ctx, limit)
		if err != nil {
			return changed, err
		}
		for c := int64(s.First); c < int64(s.First)+s.N; c++ {
			hits := m.entriesAt(c, 1)
			if data != (len(hits) > 0) {
				continue
			}
			if names.has(c) {
				m.keep(finding.QC03, "a leaked cluster may be a table that refers to it too, so its refcount stays")
				continue
			}
			done, err := m.lowerOne(c, s.Refcount, hits, &once)
			if err != nil {
				return changed, err
			}
			changed = changed || done
		}
	}
	return changed, nil
}

// maxLeakBytes bounds what is read of leaked clusters to find out whether one refers to others.
const maxLeakBytes = 1 << 30

// tablesOnce remembers of the table that was asked for last whether nothing but its L1 entries is
// counted as using it.
type tablesOnce struct {
	table image.HostOff
	ok    bool
}

func (t *tablesOnce) of(m *mender, e *qcow2.Entry) bool {
	if t.table != e.Table || t.table == 0 {
		n, ok := m.refcountNow(int64(e.Table) >> m.h.ClusterBits)
		t.table, t.ok = e.Table, ok && n == e.Refs
	}
	return t.ok
}

// lowerOne lowers the refcount of one cluster to 1, if one plain entry or piece of metadata uses it;
// hits are the entries that do.
func (m *mender) lowerOne(c int64, refcount uint64, hits []qcow2.Entry, once *tablesOnce) (bool, error) {
	metadata := len(hits) == 0 && len(m.ex.OwnersOf(c)) == 1
	plain := len(hits) == 1 && placed(m.h, hits[0].Word) && !hits[0].Foreign && hits[0].Fault == qcow2.Sound
	plain = plain && once.of(m, &hits[0]) // what shares the table shares the cluster
	if !metadata && !plain {
		m.keep(finding.QC03, "a refcount that is too high may be all that is left of a lost mapping, so it stays")
		return false, nil
	}
	done, err := m.setRefcounts(plan.Count, c, 1, 1)
	if !done || err != nil {
		return false, err
	}
	st := m.step(plan.Count, finding.QC03, "lower", "lower refcounts of clusters that are used once: no snapshot shares them",
		finding.Sure)
	m.at(st, c<<m.h.ClusterBits, m.h.ClusterSize())
	if m.roomFor(st) {
		m.proof(st, "refcount", c<<m.h.ClusterBits, fmt.Sprint(refcount), "one reference was counted, and there are no snapshots")
	}
	return true, nil
}

// raise puts refcounts that are too low where they belong, in their blocks.
func (m *mender) raise(ctx context.Context) (changed bool, err error) {
	if !m.opts.wants(finding.QC02) && !m.opts.wants(finding.QC04) && !m.grown() {
		return false, nil
	}
	for _, s := range m.ex.Result().Suspects {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		want := min(s.References, m.h.MaxRefcount())
		rule := finding.QC02
		if s.Refcount == 0 {
			rule = finding.QC04
		}
		if !m.opts.wants(rule) {
			s = m.newPart(s)
		}
		if s.Refcount >= want || s.N <= 0 {
			continue
		}
		done, err := m.setRefcounts(plan.Count, int64(s.First), s.N, want)
		if err != nil {
			return changed, err
		}
		if !done {
			m.keep(rule, "their refcount block cannot be written: mend QC15 first")
			continue
		}
		changed = true
		if int64(s.First)<<m.h.ClusterBits >= m.ov.baseSize {
			continue // part of what was made anew, and told there
		}
		text := "raise refcounts to the references that there are"
		if s.Refcount == 0 {
			text = "count clusters in use that are counted as free, before a write takes them"
		}
		st := m.step(plan.Count, rule, "raise", text, finding.Sure)
		st.Count += s.N - 1
		m.at(st, int64(s.First)<<m.h.ClusterBits, s.N<<m.h.ClusterBits)
		if m.roomFor(st) {
			m.proof(st, "refcount", int64(s.First)<<m.h.ClusterBits, fmt.Sprint(s.Refcount),
				counted(int64(s.References)))
		}
		m.guestsOf(st, int64(s.First), s.N)
	}
	return changed, nil
}

// guestsOf adds the guest ranges that clusters stand for to a step.
func (m *mender) guestsOf(st *plan.Step, first, n int64) {
	for _, e := range m.entriesAt(first, n) {
		if !e.Foreign {
			m.guest(st, m.clusterRange(e.Guest))
		}
	}
}

// maxSteps is how far entriesAt walks before it searches.
const maxSteps = 16

// entriesAt gives the entries that refer to n clusters from first on. It begins where it was the last
// time: most who ask go through the file in order.
func (m *mender) entriesAt(first, n int64) []qcow2.Entry {
	list, from := m.entries, m.near
	last := min(from+maxSteps, len(list))
	for from < last && list[from].Cluster < first {
		from++
	}
	if from > len(list) || from > 0 && list[from-1].Cluster >= first || from < len(list) && list[from].Cluster < first {
		from = sort.Search(len(list), func(i int) bool { return list[i].Cluster >= first })
	}
	to := from
	for to < len(list) && list[to].Cluster < first+n {
		to++
	}
	m.near = from
	return list[from:to]
}

// setRefcounts sets the refcounts of n clusters in their blocks; false where a block is not there.
func (m *mender) setRefcounts(ph plan.Phase, first, n int64, v uint64) (bool, error) {
	per, cs := m.h.RefblockEntries(), m.h.ClusterSize()
	table := m.ex.RefcountTable()
	for n > 0 {
		block := first / per
		in := first % per
		k := min(n, per-in)
		var at image.HostOff
		if block < int64(len(table)) {
			at = qcow2.RefblockOffset(table[block])
		}
		if m.bad[block] != blockSound || at <= 0 || int64(at)&(cs-1) != 0 || int64(at)+cs > m.ov.size {
			return false, nil
		}
		if err := m.putRefcounts(ph, int64(at), in, k, v); err != nil {
			return false, err
		}
		for c := first; c < first+k && !m.opts.wants(finding.QC05); c++ {
			m.counted[c] = true
		}
		first, n = first+k, n-k
	}
	return true, nil
}

// putRefcounts sets entries [in, in+n) of the refcount block at off.
func (m *mender) putRefcounts(ph plan.Phase, off, in, n int64, v uint64) error {
	b, err := m.block(off)
	if err != nil {
		return err
	}
	order := m.h.RefcountOrder
	from := in << order >> 3 &^ (wordBytes - 1)
	to := ((in+n)<<order + 63) >> 3 &^ (wordBytes - 1)
	old := slices.Clone(b[from:to])
	for i := in; i < in+n; i++ {
		qcow2.PutRefcount(b, i, order, v)
	}
	return m.ov.replace(ph, off+from, old, b[from:to])
}

// block gives the refcount block at off, a cluster of the file, as it is now. It is kept until
// another one is asked for, and what putRefcounts writes goes into it as well.
func (m *mender) block(off int64) ([]byte, error) {
	if m.blockOff == off {
		return m.blockBuf, nil
	}
	if int64(len(m.blockBuf)) != m.h.ClusterSize() {
		m.blockBuf = make([]byte, m.h.ClusterSize())
	}
	m.blockOff = 0
	if err := m.readCluster(m.blockBuf, off); err != nil {
		return nil, err
	}
	m.blockOff = off
	return m.blockBuf, nil
}

// mendFlags sets and clears COPIED flags: one says that a cluster has this one reference, so that it
// may be written in place. To clear one is always safe; to set one only if nothing was left unread.
func (m *mender) mendFlags(ctx context.Context) (changed bool, err error) {
	// Where flags are not to be mended, those follow whose refcounts were changed.
	all := m.opts.wants(finding.QC05)
	if !all && len(m.counted) == 0 {
		return false, nil
	}
	for i, l := range m.l1s {
		if i&0xfff == 0 && ctx.Err() != nil {
			return changed, ctx.Err()
		}
		if !all && !m.counted[int64(l.Table())>>m.h.ClusterBits] || !l.Active || m.shared[l.Table()] || !m.ownL1(l) {
			continue
		}
		done, err := m.flag(int64(l.Off), l.Word, int64(l.Table())>>m.h.ClusterBits)
		if err != nil {
			return changed, err
		}
		if done != nil {
			changed = true
			m.guest(done, m.l1Range(l.Index))
		}
	}
	for i, e := range m.entries {
		if i&0xfff == 0 && ctx.Err() != nil {
			return changed, ctx.Err()
		}
		off := int64(e.Word & qcow2.OffsetMask)
		if !all && !m.counted[e.Cluster] || e.Foreign || m.shared[e.Table] || e.Active == 0 || m.h.HasDataFile() || !placed(m.h, e.Word) ||
			e.Cluster != off>>m.h.ClusterBits || off&(m.h.ClusterSize()-1) != 0 {
			continue
		}
		done, err := m.flag(int64(e.Off), e.Word, e.Cluster)
		if err != nil {
			return changed, err
		}
		if done != nil {
			changed = true
			m.guest(done, m.clusterRange(e.Guest))
		}
	}
	return changed, nil
}

// flag brings the COPIED flag of one entry in line with the refcount that its cluster has by now. It
// returns the step that it is part of, nil if nothing was done.
func (m *mender) flag(off int64, word uint64, cluster int64) (*plan.Step, error) {
	n, ok := m.refcountNow(cluster)
	if !ok {
		return nil, nil
	}
	copied := n == 1
	switch {
	case copied == (word&qcow2.FlagCopied != 0):
		return nil, nil
	case copied && !m.ex.Complete():
		m.keep(finding.QC05, "a COPIED flag is set only where all tables could be read")
		return nil, nil
	case copied && m.ex.References(cluster) > 1:
		// A refcount that is too low and was not to be raised: a write in place would hit the others.
		m.keep(finding.QC05, "a COPIED flag is set only where the refcount is right: mend QC02 too")
		return nil, nil
	}
	action, text := "drop-copied", "clear COPIED flags of clusters that are used more than once, so that a write copies them first"
	switch {
	case copied:
		action, text = "set-copied", "set the COPIED flags of clusters that are used once"
	case n == 0:
		text = "clear COPIED flags of clusters that are counted as free, or lie past the end of the file"
	}
	if err := m.put64(plan.Point, off, word^qcow2.FlagCopied); err != nil {
		return nil, err
	}
	st := m.step(plan.Point, finding.QC05, action, text, finding.Sure)
	m.at(st, off, 8)
	if m.roomFor(st) {
		m.proof(st, "table entry", off, hex64(word), fmt.Sprintf("the refcount is %d", n))
	}
	return st, nil
}

// refcountNow is the refcount of a cluster with what was written to its block; false where there is no
// block that can be used.
func (m *mender) refcountNow(cluster int64) (uint64, bool) {
	per, cs := m.h.RefblockEntries(), m.h.ClusterSize()
	table := m.ex.RefcountTable()
	block := cluster / per
	if block >= int64(len(table)) || m.bad[block] != blockSound {
		return 0, false
	}
	at := int64(qcow2.RefblockOffset(table[block]))
	if at <= 0 || at&(cs-1) != 0 || at >= m.ov.size {
		return 0, false
	}
	b, err := m.block(at)
	if err != nil {
		return 0, false
	}
	return qcow2.RefcountAt(b, cluster%per, m.h.RefcountOrder), true
}

// counted says how many references there are to a cluster.
func counted(references int64) string {
	if references == 1 {
		return "1 reference was counted"
	}
	return fmt.Sprintf("%d references were counted", references)
}
