// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// mendLinks remembers the guest ranges that share clusters, and gives each a copy of its own where
// that is wanted. Whose data it is, no table tells: it stays hurt.
func (m *mender) mendLinks(ctx context.Context) (changed bool, err error) {
	split := m.opts.Split && (m.opts.wants(finding.QC06) || m.opts.wants(finding.QC07))
	for _, l1s := range m.sharedTables() {
		m.rememberShared(l1s)
		if !split || !m.mayGrow(finding.QC06) {
			m.keep(finding.QC06, "compare the guest ranges with a backup; --split gives each a copy of its own")
			continue
		}
		done, err := m.splitTable(l1s)
		if err != nil {
			return changed, err
		}
		changed = changed || done
	}
	for _, l := range m.ex.Links() {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		m.rememberLink(l)
		if !split || !m.mayGrow(finding.QC06) {
			m.keep(finding.QC06, "compare the guest ranges with a backup; --split gives each a copy of its own")
			m.keep(finding.QC07, "find the second writer; compare the guest ranges with a backup; --split "+
				"gives each a copy of its own")
			continue
		}
		for c := l.First; c < l.First+l.N; c++ {
			done, err := m.split(c)
			if err != nil {
				return changed, err
			}
			changed = changed || done
		}
	}
	return changed, nil
}

// sharedTables gives the entries of the active L1 table that name the same L2 table, by table.
func (m *mender) sharedTables() (list [][]qcow2.L1Entry) {
	for _, tb := range m.tables {
		if tb.Active < 2 || tb.Stray || tb.Used == 0 {
			continue
		}
		var l1s []qcow2.L1Entry
		for _, l := range m.l1sOf(tb.Off) {
			if l.Active && m.l1Range(l.Index).Length > 0 {
				l1s = append(l1s, l)
			}
		}
		if len(l1s) > 1 {
			list = append(list, l1s)
		}
	}
	return list
}

// rememberShared records parts of the disk that share a whole L2 table, and so every cluster.
func (m *mender) rememberShared(l1s []qcow2.L1Entry) {
	h := plan.Hurt{Code: finding.QC06.Code, Kind: "mixed"}
	var at []string
	for _, l := range l1s {
		r := m.l1Range(l.Index)
		h.Guest = append(h.Guest, r)
		at = append(at, fmt.Sprintf("%#x", r.Offset))
	}
	h.Summary = fmt.Sprintf("the parts of the disk at guest offsets %s shared the same L2 table: at most one "+
		"of them holds its own data", strings.Join(at, " and "))
	if key := fmt.Sprint(h.Guest); !m.said[key] {
		m.said[key] = true
		m.mixed = append(m.mixed, h.Guest)
		m.hurtData(h)
	}
}

// splitTable gives each L1 entry but the first that names an L2 table a copy of it. The clusters that
// the copies map are shared then, and are split in their turn.
func (m *mender) splitTable(l1s []qcow2.L1Entry) (changed bool, err error) {
	tb, ok := m.tableAt(l1s[0].Table())
	if !ok || m.shared[tb.Off] || !readsAsTable(tb) || slices.ContainsFunc(l1s, func(l qcow2.L1Entry) bool { return !m.ownL1(l) }) {
		m.keep(finding.QC06, "what these parts of the disk share does not read as an L2 table of their own")
		return false, nil
	}
	buf := make([]byte, m.h.ClusterSize())
	if err := m.readCluster(buf, int64(tb.Off)); err != nil {
		return false, err
	}
	for i := int64(0); i < int64(len(buf)); i += m.h.L2EntryBytes() {
		if w := binary.BigEndian.Uint64(buf[i:]); w&qcow2.FlagCompressed == 0 && !m.h.HasDataFile() {
			binary.BigEndian.PutUint64(buf[i:], w&^uint64(qcow2.FlagCopied))
		}
	}
	for _, l := range l1s[1:] {
		at, err := m.alloc(1)
		if err != nil {
			return changed, err
		}
		if err := m.ov.write(plan.New, buf, at); err != nil {
			return changed, err
		}
		st := m.step(plan.New, finding.QC06, "split", "give each part of the disk that shares an L2 table a copy of its own", finding.Sure)
		if err := m.setL1(st, l, uint64(at)|qcow2.FlagCopied); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// rememberLink records guest ranges that hold the data of one of them, once.
func (m *mender) rememberLink(l qcow2.Link) {
	length := l.N << m.h.ClusterBits
	h := plan.Hurt{Code: finding.QC06.Code, Kind: "mixed", Snapshot: l.Snapshot}
	var at []string
	for _, g := range l.Guests {
		r := finding.Range{Offset: int64(g), Length: min(length, max(0, m.h.SizeBytes-int64(g)))}
		h.Guest = append(h.Guest, r)
		at = append(at, fmt.Sprintf("%#x", r.Offset))
	}
	key := fmt.Sprint(h.Guest)
	if m.said[key] || m.saidMixed(h.Guest) {
		return
	}
	m.said[key] = true
	h.Summary = fmt.Sprintf("%d bytes at guest offsets %s shared the same clusters: at most one of them "+
		"holds its own data", length, strings.Join(at, " and "))
	m.hurtData(h)
}

// saidMixed reports whether ranges lie in parts of the disk that are known to have shared a table.
func (m *mender) saidMixed(list []finding.Range) bool {
	for _, parts := range m.mixed {
		in := func(r finding.Range) bool {
			return slices.ContainsFunc(parts, func(p finding.Range) bool { return p.Offset <= r.Offset && r.End() <= p.End() })
		}
		if !slices.ContainsFunc(list, func(r finding.Range) bool { return !in(r) }) {
			return true
		}
	}
	return false
}

// split gives each entry that refers to a cluster a copy of it, but those for the guest range of the
// first.
func (m *mender) split(c int64) (changed bool, err error) {
	buf := make([]byte, m.h.ClusterSize())
	first := image.GuestOff(-1)
	for _, e := range m.entriesAt(c, 1) {
		if e.Foreign || m.shared[e.Table] || !placed(m.h, e.Word) || int64(e.Word&qcow2.OffsetMask) != c<<m.h.ClusterBits {
			continue
		}
		if first < 0 {
			first = e.Guest
		}
		if e.Guest == first {
			continue
		}
		if err := m.readCluster(buf, c<<m.h.ClusterBits); err != nil {
			return changed, err
		}
		at, err := m.alloc(1)
		if err != nil {
			return changed, err
		}
		if err := m.ov.write(plan.New, buf, at); err != nil {
			return changed, err
		}
		word := e.Word&^uint64(qcow2.OffsetMask|qcow2.FlagCopied) | uint64(at)
		if e.Refs == 1 && e.Active == 1 {
			word |= qcow2.FlagCopied
		}
		st := m.step(plan.New, finding.QC06, "split", "give each guest range that shares a cluster a copy of its own",
			finding.Sure)
		m.tellEntry(st, &e, word)
		if err := m.put64(plan.Point, int64(e.Off), word); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}
