// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"fmt"

	"github.com/shisa-vm/shisa/internal/finding"
)

// crossLinks gathers clusters that several guest ranges use.
type crossLinks struct {
	clusters int64
	ranges   []linkedRange
	longest  int64 // clusters in the longest range
	settled  int64 // clusters whose refcount admits the sharing
}

// linkedRange is a range of host clusters that the same guest ranges share in the same order.
type linkedRange struct {
	span
	guests []int64
	hits   []hit
}

// add adds one cluster, in ascending order, with the entries that refer to it.
func (l *crossLinks) add(hits []hit) {
	cluster := hits[0].cluster
	l.clusters++
	if n := len(l.ranges); n > 0 {
		if r := &l.ranges[n-1]; r.last+1 == cluster && r.continues(hits) {
			r.last = cluster
			l.longest = max(l.longest, r.last-r.first+1)
			return
		}
	}
	r := linkedRange{span: span{cluster, cluster}, hits: hits}
	for _, h := range hits {
		r.guests = append(r.guests, h.guest)
	}
	l.ranges = append(l.ranges, r)
	l.longest = max(l.longest, 1)
}

// continues reports whether hits are the next clusters of the same guest ranges.
func (r *linkedRange) continues(hits []hit) bool {
	if len(hits) != len(r.guests) {
		return false
	}
	n := r.last - r.first + 1
	for i, h := range hits {
		// Entries of one table are as far apart as what they map; tables are told by the guest
		// offset itself.
		if step := h.guest - r.guests[i]; step <= 0 || step%n != 0 {
			return false
		}
	}
	step := (hits[0].guest - r.guests[0]) / n
	for i, h := range hits {
		if h.guest-r.guests[i] != step*n {
			return false
		}
	}
	return true
}

// explainShared looks at clusters with several references and a refcount that agrees. Without
// snapshots qemu shares no plain cluster, so two programs or a repair made this.
func (c *checker) explainShared(ev *evidence, links *crossLinks, s span) {
	for cluster := s.first; cluster <= s.last; cluster++ {
		hits := ev.hitsAt(cluster, cluster)
		guests := map[int64]bool{}
		for _, h := range hits {
			if _, foreign := ev.foreign[h.table]; !foreign && c.h.TypeOf(h.entry) != EntryCompressed {
				guests[h.guest] = true
			}
		}
		if _, suspect := c.suspectOf(cluster); !suspect && len(guests) > 1 {
			links.add(hits)
			if c.data.count(cluster) <= c.h.MaxRefcount() {
				links.settled++
			}
		}
	}
}

// explainLinks reports clusters that several guest ranges use: as the work of two writers where
// whole ranges are shared in order, else one by one.
func (c *checker) explainLinks(l *crossLinks) {
	if l.clusters == 0 {
		return
	}
	f := c.newFinding(finding.QC06, finding.Sure, "shared_clusters", fmt.Sprintf(
		"%s the data of two guest ranges at once: at most one of them is right",
		plural(l.clusters, "cluster holds", "clusters hold")))
	if l.clusters >= minWriterClusters && l.longest >= minWriterRun {
		f = c.newFinding(finding.QC07, finding.Likely, "shared_runs", fmt.Sprintf(
			"two programs wrote to this image at the same time: %d clusters, up to %d in a row, hold the data of two guest ranges",
			l.clusters, l.longest))
	}
	if l.settled == l.clusters {
		f.Certainty = finding.Likely // some other program may share clusters on purpose
	}
	f.Count = l.clusters
	for _, r := range l.ranges {
		f.Host, f.HostCut = c.addRange(f.Host, f.HostCut, c.hostRange(r.span))
		for i, g := range r.guests {
			length := min((r.last-r.first+1)<<c.bits, max(0, c.h.SizeBytes-g))
			f.Guest, f.GuestCut = c.addRange(f.Guest, f.GuestCut, finding.Range{Offset: g, Length: length})
			c.show(&f, entryEvidence(r.hits[i], g))
		}
	}
	if l.settled > 0 {
		f.Evidence = append(f.Evidence, finding.Evidence{Source: "refcount", Offset: -1,
			Value: fmt.Sprint(l.settled),
			Text:  "clusters whose refcount admits the sharing, as after qemu-img check -r all, which does not undo it"})
	}
	c.findings = append(c.findings, f)
}
