// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// What is made anew lies behind the end of the file. In a file that was cut, entries point there: they
// would show what comes there now, so they are taken away, as far as the file grows.

// alloc gives n clusters behind the end of the file.
func (m *mender) alloc(n int64) (int64, error) {
	cs := m.h.ClusterSize()
	off := (m.ov.size + cs - 1) &^ (cs - 1)
	m.ov.grow(off + n*cs)
	return off, m.letGo()
}

// dangling are entries that point past the end of the file, and where they do.
type dangling struct {
	off   int64
	entry *qcow2.Entry
	l1    *qcow2.L1Entry
}

// growRoom is more than a repair makes a file longer by, but for the largest ones.
const growRoom = 1 << 30

// findDangling lists what points past the end of the file, in order of the places.
func (m *mender) findDangling() {
	m.dangling, m.gone, m.stuck = nil, map[image.HostOff]bool{}, false
	for i := range m.entries {
		e := &m.entries[i]
		if e.Fault != qcow2.FaultPastEnd || e.Foreign {
			continue
		}
		off := int64(e.Word & qcow2.OffsetMask)
		if m.h.TypeOf(e.Word) == qcow2.EntryCompressed {
			at, _ := m.h.CompressedRange(e.Word)
			off = int64(at)
		}
		if m.shared[e.Table] {
			m.stuck = m.stuck || off < m.ov.size+growRoom
			continue
		}
		m.dangling = append(m.dangling, dangling{off: off, entry: e})
	}
	for i := range m.l1s {
		l := &m.l1s[i]
		switch off := int64(l.Table()); {
		case off < m.ov.size:
		case m.ownL1(*l):
			m.dangling = append(m.dangling, dangling{off: off, l1: l})
		case m.trusted(*l):
			m.stuck = m.stuck || off < m.ov.size+growRoom
		}
	}
	slices.SortFunc(m.dangling, func(a, b dangling) int { return cmp.Compare(a.off, b.off) })
}

// letGo takes away what points to where the file has grown.
func (m *mender) letGo() error {
	const why = "it lay past the end of the file, where something else is stored now"
	for len(m.dangling) > 0 && m.dangling[0].off < m.ov.size {
		d := m.dangling[0]
		m.dangling = m.dangling[1:]
		if d.entry != nil {
			if err := m.takeAway(finding.QC11, "let what pointed past the end of the file read as zeros, where the file grows",
				why, d.entry); err != nil {
				return err
			}
			continue
		}
		st := m.step(plan.Point, finding.QC11, "quarantine", "clear L1 entries that pointed past the end of the file, where it grows",
			finding.Sure)
		if err := m.setL1(st, *d.l1, 0); err != nil {
			return err
		}
		m.hurtData(plan.Hurt{Code: finding.QC11.Code, Kind: "lost", Snapshot: d.l1.Snapshot,
			Guest: []finding.Range{m.l1Range(d.l1.Index)}, Summary: "its L2 table lay past the end of the file"})
	}
	return nil
}

// grown reports whether clusters were added to the file. They are counted whatever is to be mended.
func (m *mender) grown() bool { return m.ov.size > m.ov.baseSize }

// newPart gives the part of a range of clusters that was added to the file.
func (m *mender) newPart(s qcow2.Suspect) qcow2.Suspect {
	cut := (m.ov.baseSize+m.h.ClusterSize()-1)>>m.h.ClusterBits - int64(s.First)
	if cut > 0 {
		s.First += image.Cluster(cut)
		s.N -= cut
	}
	return s
}

// mayGrow reports whether the file may become longer for what is mended of a rule: new clusters must be
// counted, and what points there must be able to read as zeros.
func (m *mender) mayGrow(r finding.Rule) bool {
	if m.noZeros() && len(m.dangling) > 0 {
		m.keep(r, fmt.Sprintf("this needs space at the end of the file, but %d entries point there, and version 2 "+
			"has none that read as zeros: find a complete copy, or use --zero-lost", len(m.dangling)))
		return false
	}
	if m.stuck {
		m.keep(r, "this needs space at the end of the file, but entries point there of tables that something else "+
			"claims, so that they cannot be taken away: mend these first")
		return false
	}
	return m.countable(r)
}

// countable reports whether new clusters can be counted.
func (m *mender) countable(r finding.Rule) bool {
	if m.opts.wants(finding.QC15) || len(m.bad) == 0 && m.trust.reftable {
		return true
	}
	m.keep(r, "this needs space at the end of the file, which cannot be counted before QC15 is mended")
	return false
}

// noZeros reports whether there is no entry that reads as zeros: version 2 has none, and without one the
// backing file would show.
func (m *mender) noZeros() bool { return m.h.Version < 3 && m.h.HasBacking }
