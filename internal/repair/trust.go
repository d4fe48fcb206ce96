// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// What the header and the tables call metadata may be a guest's data: an offset that is wrong leads
// anywhere, and what lies there passes for a table then. So before anything is written into a table,
// and before guest data makes way for one, it must read as what it is called.
//
//	L1 table        no more of its entries are wrong than lead to L2 tables
//	L2 table        no more than half of its entries are wrong; see readsAsTable
//	refcount table  no more of its entries are wrong than lead to refcount blocks, or none stands
//	                behind those that the file needs
//	refcount block  three of four refcounts of clusters in use are right; see readsAsBlock
type trust struct {
	l1       []bool // by L1 table, the active one first
	reftable bool
	// low and high are how many clusters of a refcount block are counted too low and too high, and zero
	// how many of those that are in use are not counted at all.
	low, high, zero map[int64]int64
	// What was asked for once: the refcount blocks by cluster, those that read as such by index, and where
	// the L1 tables of snapshots lie.
	blocks  map[int64]int64
	sound   map[int64]bool
	l1Parts []qcow2.Clusters
}

// weighTables decides which tables are to be trusted, and which of them nothing is written into.
func (m *mender) weighTables() {
	m.trust = trust{low: map[int64]int64{}, high: map[int64]int64{}, zero: map[int64]int64{}}
	m.shared, m.bad = map[image.HostOff]bool{}, map[int64]blockFault{}
	m.weighL1s()
	m.weighBlocks()
	cs := m.h.ClusterSize()
	at := 0
	for i := range m.tables {
		tb := &m.tables[i]
		named := false
		for ; at < len(m.l1s) && m.l1s[at].Table() == tb.Off; at++ {
			named = named || m.trusted(m.l1s[at])
		}
		if !named || int64(tb.Off)&(cs-1) != 0 || int64(tb.Off) >= m.ov.size || tb.Off == 0 ||
			m.ex.References(int64(tb.Off)>>m.h.ClusterBits)-m.selfRefs(*tb) != tb.Refs {
			m.shared[tb.Off] = true
		}
	}
}

// selfRefs is how many references to its cluster a table that reads as one makes itself: entries that
// are wrong, and no other owner.
func (m *mender) selfRefs(tb qcow2.Table) (refs uint64) {
	c := int64(tb.Off) >> m.h.ClusterBits
	if m.ex.References(c) == tb.Refs || !readsAsTable(tb) {
		return 0
	}
	for _, e := range m.entriesAt(c, 1) {
		if e.Table == tb.Off && placed(m.h, e.Word) && int64(e.Word&qcow2.OffsetMask) == int64(tb.Off) {
			refs += e.Refs
		}
	}
	return refs
}

// trusted reports whether an entry is of an L1 table that reads as one, and maps something.
func (m *mender) trusted(l qcow2.L1Entry) bool { return !l.Behind && m.trust.l1[l.L1] }

func (m *mender) weighL1s() {
	type score struct{ good, bad, odd int }
	scores := []score{{}}
	for i, l := range m.l1s { // ordered by table, L1 table and index
		for len(scores) <= l.L1 {
			scores = append(scores, score{})
		}
		if l.Behind {
			continue
		}
		s := &scores[l.L1]
		off := int64(l.Table())
		tb, _ := m.tableAt(l.Table())
		again := i > 0 && m.l1s[i-1].Table() == l.Table() && m.l1s[i-1].L1 == l.L1
		switch {
		case l.Word&^(qcow2.FlagCopied|qcow2.OffsetMask) != 0 || off&(m.h.ClusterSize()-1) != 0 || off == 0:
			s.odd++
			if s.odd <= maxOddProbes && m.leadsToTable(l) {
				s.good++
			} else {
				s.bad++
			}
		case again || tb.Foreign || !m.possible(off):
			s.bad++
		case off >= m.ov.size || tb.Used == 0: // says nothing about the entry
		default:
			s.good++
		}
	}
	for _, s := range scores {
		m.trust.l1 = append(m.trust.l1, s.good >= s.bad && s.good > 0)
	}
	if s := scores[0]; !m.trust.l1[0] {
		// It may be empty, or what it leads to was overwritten: then nothing in the file looks like
		// tables that another one should name.
		m.trust.l1[0] = s.odd == 0 && (!m.found(finding.QC13) || m.sought && m.soughtL1 == 0) ||
			m.sought && m.soughtL1 == m.h.L1Off
	}
}

// maxOddProbes bounds the entries whose targets are looked at because of their other bits.
const maxOddProbes = 64

// leadsToTable reports whether an entry leads to an L2 table but for bits that should not be set.
func (m *mender) leadsToTable(l qcow2.L1Entry) bool {
	c := int64(l.Table()) >> m.h.ClusterBits
	if c == 0 || c<<m.h.ClusterBits >= m.ov.size {
		return false
	}
	if slices.ContainsFunc(m.ex.OwnersOf(c), func(who string) bool { return who != "L2 table" }) {
		return false
	}
	table, err := m.ex.LooksLikeTable(c)
	return table && err == nil
}

// possible reports whether the file can have been so long that it had something at an offset.
func (m *mender) possible(off int64) bool {
	const slack = 1 << 30 // metadata, leaks, the state of machines
	views := int64(min(m.h.Snapshots, qcow2.MaxSnapshots)) + 2
	return off < m.ov.size || off/views < m.h.SizeBytes || off/views-m.h.SizeBytes < slack
}

// tableAt gives the table at a place of the file.
func (m *mender) tableAt(off image.HostOff) (qcow2.Table, bool) {
	i, ok := slices.BinarySearchFunc(m.tables, off,
		func(tb qcow2.Table, off image.HostOff) int { return cmp.Compare(tb.Off, off) })
	if !ok {
		return qcow2.Table{}, false
	}
	return m.tables[i], true
}

// readsAsTable reports whether what is called an L2 table reads as one.
func readsAsTable(tb qcow2.Table) bool {
	return !tb.Foreign && tb.Used > 0 && (tb.Bad-tb.Past)*2 <= tb.Used
}

// weighBlocks finds refcount blocks that cannot be used, beside those that the check names, and
// whether the refcount table reads as one.
func (m *mender) weighBlocks() {
	per := m.h.RefblockEntries()
	for _, s := range m.ex.Result().Suspects {
		for c, end := int64(s.First), int64(s.First)+s.N; c < end; {
			n := min(end, (c/per+1)*per) - c
			switch {
			case s.Refcount > s.References:
				m.trust.high[c/per] += n
			case s.Refcount == 0:
				m.trust.zero[c/per] += n
				fallthrough
			default:
				m.trust.low[c/per] += n
			}
			c += n
		}
	}
	for _, b := range m.ex.BadBlocks() {
		m.bad[b.Index] = blockGarbage
		if b.Unusable {
			m.bad[b.Index] = blockUnusable
		}
	}
	good, bad := 0, 0
	for i, e := range m.ex.RefcountTable() {
		no, off := int64(i), int64(qcow2.RefblockOffset(e))
		in := max(0, min(per, m.ex.Clusters()-no*per))
		zero, high := m.trust.zero[no], m.trust.high[no]
		switch {
		case e == 0:
			continue
		case off != int64(e) || off&(m.h.ClusterSize()-1) != 0 || off <= 0 || off >= m.ov.size,
			m.ex.References(off>>m.h.ClusterBits) != 1:
			m.bad[no] = blockUnusable
		case m.h.RefcountOrder <= 1 && zero >= minGarbage && high*4 >= zero && (zero+high)*3 >= in:
			// Narrow refcounts always make some sense; but not so many of them are wrong both ways.
			m.bad[no] = max(m.bad[no], blockGarbage)
		}
		if m.bad[no] == blockUnusable {
			bad++
		} else {
			good++
		}
	}
	// A table of a few entries, all of which are wrong, still is nothing else where it ends with the
	// blocks that the file needs.
	m.trust.reftable = good > 0 && good >= bad ||
		int64(len(m.ex.RefcountTable())) <= (m.ex.Clusters()+per-1)/per && m.ownsReftable()
}

// ownsReftable reports whether nothing else claims the clusters of the refcount table.
func (m *mender) ownsReftable() bool {
	first := int64(m.h.ReftableOff) >> m.h.ClusterBits
	for c := first; c < first+m.h.ReftableClusters; c++ {
		if m.ex.References(c) != 1 {
			return false
		}
	}
	return true
}

// blockFault says why a refcount block cannot be used.
type blockFault uint8

const (
	blockSound blockFault = iota
	// blockGarbage: what it holds makes no sense, or it is not there.
	blockGarbage
	// blockUnusable: its entry in the refcount table is wrong, or something else uses its cluster.
	blockUnusable
)

// minGarbage is from how many clusters on that are in use and not counted a block may hold something
// else.
const minGarbage = 16

// readsAsBlock reports whether refcount block no holds the refcounts that it should.
func (m *mender) readsAsBlock(no int64) bool {
	if m.trust.sound == nil {
		m.trust.sound = map[int64]bool{}
	}
	reads, known := m.trust.sound[no]
	if !known {
		reads = m.weighBlock(no)
		m.trust.sound[no] = reads
	}
	return reads
}

func (m *mender) weighBlock(no int64) bool {
	per := m.h.RefblockEntries()
	used := int64(0)
	for c := no * per; c < min((no+1)*per, m.ex.Limit()); c++ {
		if m.ex.References(c) > 0 {
			used++
		}
	}
	wrong := m.trust.low[no] // of those too high, some are in use
	list := m.ex.Result().Suspects
	i, _ := slices.BinarySearchFunc(list, no*per, func(s qcow2.Suspect, c int64) int {
		return cmp.Compare(int64(s.First)+s.N-1, c)
	})
	for ; i < len(list) && int64(list[i].First) < (no+1)*per; i++ {
		if s := list[i]; s.References > 0 && s.Refcount > s.References {
			a, b := max(int64(s.First), no*per), min(int64(s.First)+s.N, (no+1)*per)
			wrong += max(0, b-a)
		}
	}
	return used > 0 && wrong*4 <= used
}

// metadataIn says which metadata in a cluster reads as what it is called, "" if none does. A bitmap
// can be told from nothing.
func (m *mender) metadataIn(c int64) string {
	for _, who := range m.ex.OwnersOf(c) {
		reads := false
		switch {
		case who == "header":
			reads = true
		case who == "L1 table":
			reads = m.trust.l1[0]
		case strings.HasPrefix(who, "L1 table of "):
			reads = m.inSnapshotL1(c)
		case who == "L2 table":
			tb, _ := m.tableAt(image.HostOff(c << m.h.ClusterBits))
			reads = readsAsTable(tb)
		case who == refcountTable:
			reads = m.trust.reftable
		case who == refcountBlock:
			no, ok := m.blockIn(c)
			reads = ok && m.readsAsBlock(no)
		case who == "snapshot table":
			reads = m.namedSnapshots()
		case who == "encryption header":
			var magic [6]byte
			_, err := m.ov.ReadAt(magic[:], int64(m.h.CryptOff))
			reads = err == nil && string(magic[:]) == "LUKS\xba\xbe"
		}
		if reads {
			return who
		}
	}
	return ""
}

// Names of the refcount structure among owners of clusters.
const (
	refcountTable = "refcount table"
	refcountBlock = "refcount block"
)

// blockIn gives the index of the refcount block in a cluster. Of several, which cannot be used, it gives
// the last.
func (m *mender) blockIn(c int64) (int64, bool) {
	t := &m.trust
	if t.blocks == nil {
		t.blocks = map[int64]int64{}
		for i, e := range m.ex.RefcountTable() {
			if e != 0 {
				t.blocks[int64(qcow2.RefblockOffset(e))>>m.h.ClusterBits] = int64(i)
			}
		}
	}
	no, ok := t.blocks[c]
	return no, ok
}

// inSnapshotL1 reports whether a cluster is of an L1 table of a snapshot that reads as one, as far as its
// entries go.
func (m *mender) inSnapshotL1(c int64) bool {
	t := &m.trust
	if t.l1Parts == nil {
		parts := map[int]qcow2.Clusters{} // by L1 table
		for _, l := range m.l1s {
			if !l.Active && t.l1[l.L1] {
				first, last := (int64(l.Off)-8*l.Index)>>m.h.ClusterBits, int64(l.Off)>>m.h.ClusterBits+1
				parts[l.L1] = qcow2.Clusters{First: first, N: max(parts[l.L1].N, last-first+1)}
			}
		}
		t.l1Parts = merged(slices.Collect(maps.Values(parts)))
	}
	i, ok := slices.BinarySearchFunc(t.l1Parts, c, func(p qcow2.Clusters, c int64) int { return cmp.Compare(p.First+p.N-1, c) })
	return (ok || i < len(t.l1Parts)) && t.l1Parts[i].First <= c
}

// merged gives ranges in order, those joined that overlap; never nil.
func merged(list []qcow2.Clusters) []qcow2.Clusters {
	slices.SortFunc(list, func(a, b qcow2.Clusters) int { return cmp.Compare(a.First, b.First) })
	all := []qcow2.Clusters{}
	for _, x := range list {
		if n := len(all); n > 0 && x.First <= all[n-1].First+all[n-1].N {
			all[n-1].N = max(all[n-1].N, x.First+x.N-all[n-1].First)
		} else {
			all = append(all, x)
		}
	}
	return all
}
