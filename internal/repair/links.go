// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"context"
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// mendLinks remembers the guest ranges that share clusters, and gives each a copy of its own where
// that is wanted. Whose data it is, no table tells: it stays hurt.
func (m *mender) mendLinks(ctx context.Context) (changed bool, err error) {
	m.rememberSharedTables()
	for _, l := range m.ex.Links() {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		m.rememberLink(l)
		if !m.opts.Split || !m.opts.wants(finding.QC06) && !m.opts.wants(finding.QC07) {
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

// rememberSharedTables records the parts of the disk that share a whole L2 table, and so every
// cluster.
func (m *mender) rememberSharedTables() {
	var byTable map[image.HostOff][]qcow2.L1Entry
	for _, tb := range m.tables {
		if tb.Active < 2 || tb.Stray || tb.Used == 0 {
			continue
		}
		if byTable == nil {
			byTable = m.l1ByTable()
		}
		h := plan.Hurt{Code: finding.QC06.Code, Kind: "mixed"}
		var at []string
		for _, l := range byTable[tb.Off] {
			if r := m.l1Range(l.Index); l.Active && r.Length > 0 {
				h.Guest = append(h.Guest, r)
				at = append(at, fmt.Sprintf("%#x", r.Offset))
			}
		}
		h.Summary = fmt.Sprintf("the parts of the disk at guest offsets %s shared the same L2 table: at most one "+
			"of them holds its own data", strings.Join(at, " and "))
		if key := fmt.Sprint(h.Guest); !m.said[key] && len(h.Guest) > 1 {
			m.said[key] = true
			m.hurtData(h)
		}
	}
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
	if m.said[key] {
		return
	}
	m.said[key] = true
	h.Summary = fmt.Sprintf("%d bytes at guest offsets %s shared the same clusters: at most one of them "+
		"holds its own data", length, strings.Join(at, " and "))
	m.hurtData(h)
}

// split gives each entry but the first that refers to a cluster a copy of it.
func (m *mender) split(c int64) (changed bool, err error) {
	buf := make([]byte, m.h.ClusterSize())
	first := true
	for _, e := range m.entriesAt(c, 1) {
		if e.Foreign || m.shared[e.Table] || !placed(m.h, e.Word) || int64(e.Word&qcow2.OffsetMask) != c<<m.h.ClusterBits {
			continue
		}
		if first {
			first = false
			continue
		}
		if err := m.readCluster(buf, c<<m.h.ClusterBits); err != nil {
			return changed, err
		}
		at := m.alloc(1)
		if err := m.ov.write(plan.New, buf, at); err != nil {
			return changed, err
		}
		word := e.Word&^uint64(qcow2.OffsetMask|qcow2.FlagCopied) | uint64(at)
		if e.Refs == 1 && e.Active == 1 {
			word |= qcow2.FlagCopied
		}
		st := m.step(finding.QC06, "split", "give each guest range that shares a cluster a copy of its own",
			finding.Sure)
		m.tellEntry(st, &e, word)
		if err := m.put64(plan.Point, int64(e.Off), word); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}
