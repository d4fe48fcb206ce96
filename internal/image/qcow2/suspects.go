// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

const (
	// Two writers leave many clusters that two guest ranges share in the same order; a single bad
	// entry leaves one.
	minWriterClusters = 8
	minWriterRun      = 4
)

// alike says which findings of a kind are one, and how they are told together.
type alike struct {
	about string // what they name, where they name something
	many  string // the summary of several, with %d for how many; "": that of the first
}

// merge adds a finding to one of the same kind, joining ranges that continue each other.
// It returns the place of that one in c.findings.
func (c *checker) merge(f finding.Finding, a alike) int {
	key := mergeKey{f.Code, f.Kind, a.about, f.Snapshot, f.Severity, f.Certainty}
	i, ok := c.merged[key]
	if !ok {
		if c.merged == nil {
			c.merged = map[mergeKey]int{}
		}
		i = len(c.findings)
		c.merged[key] = i
		c.findings = append(c.findings, f)
		return i
	}
	g := &c.findings[i]
	g.Count += f.Count
	for _, r := range f.Host {
		g.Host, g.HostCut = c.addRange(g.Host, g.HostCut, r)
	}
	for _, r := range f.Guest {
		g.Guest, g.GuestCut = c.addRange(g.Guest, g.GuestCut, r)
	}
	c.show(g, f.Evidence...)
	g.EvidenceCut += f.EvidenceCut
	if a.many != "" {
		g.Summary = fmt.Sprintf(a.many, g.Count)
	}
	return i
}

// maxTold bounds the findings of one rule that stand for one place each.
const maxTold = 4096

// tell adds a finding that stands for one place; beyond maxTold of a rule, they become one.
func (c *checker) tell(f finding.Finding) {
	if c.told == nil {
		c.told = map[string]int{}
	}
	if c.told[f.Code]++; c.told[f.Code] <= maxTold {
		c.findings = append(c.findings, f)
		return
	}
	f.Kind, f.Summary = "further_places", "further places like those, which are not listed one by one"
	f.Snapshot = ""
	if !c.opts.AllEvidence {
		f.EvidenceCut += int64(len(f.Evidence))
		f.Evidence = []finding.Evidence{}
	}
	c.merge(f, alike{})
}

// mergeKey tells which findings are one.
type mergeKey struct {
	code, kind, about, snapshot string
	severity                    finding.Severity
	certainty                   finding.Certainty
}

const (
	// maxEvidence is how many raw values a finding shows.
	maxEvidence = 4
	// maxAllEvidence is how many it shows if all are asked for, 100 bytes each.
	maxAllEvidence = 1 << 20
)

// shows reports whether a finding has room for one more observation.
func (c *checker) shows(f *finding.Finding) bool {
	if c.opts.AllEvidence {
		return len(f.Evidence) < maxAllEvidence
	}
	return len(f.Evidence) < maxEvidence
}

// show adds what a finding rests on, or counts it where there is enough.
func (c *checker) show(f *finding.Finding, es ...finding.Evidence) {
	most := maxEvidence
	if c.opts.AllEvidence {
		most = maxAllEvidence
	}
	n := min(len(es), max(0, most-len(f.Evidence)))
	f.Evidence = append(f.Evidence, es[:n]...)
	f.EvidenceCut += int64(len(es) - n)
}

// entryEvidence is an L2 entry that maps an offset of the disk.
func entryEvidence(h hit, guest int64) finding.Evidence {
	return finding.Evidence{Source: "L2 entry", Offset: h.off, Value: hex64(h.entry),
		Text: fmt.Sprintf("maps guest offset %#x", guest)}
}

// maxGrowing is how many ranges of a list may grow at once: those that share clusters take turns.
const maxGrowing = 4

// addRange adds r to ranges, joined to one of the last where it continues it, within the bound.
func (c *checker) addRange(list []finding.Range, cut int64, r finding.Range) ([]finding.Range, int64) {
	if r.Length <= 0 { // behind the end of the disk
		return list, cut
	}
	for i := len(list) - 1; i >= max(0, len(list)-maxGrowing); i-- {
		if list[i].Offset <= r.Offset && r.Offset <= list[i].End() {
			list[i].Length = max(list[i].Length, r.End()-list[i].Offset)
			return list, cut
		}
	}
	if c.opts.MaxRanges > 0 && len(list) >= c.opts.MaxRanges {
		return list, cut + 1
	}
	return append(list, r), cut
}

// explainTables reports L2 tables that hold foreign content, and L1 entries that cannot be right.
func (c *checker) explainTables(ctx context.Context, ev *evidence) error {
	nos := make([]int32, 0, len(ev.foreign))
	for no := range ev.foreign {
		nos = append(nos, no)
	}
	slices.Sort(nos)
	for _, no := range nos {
		tb := &c.tables[no]
		if ev.foreign[no] == strayTable {
			continue
		}
		f := c.newFinding(finding.QC12, finding.Sure, "overwritten", fmt.Sprintf(
			"the L2 table at %#x was overwritten by foreign content: %d of its %d entries cannot be right%s",
			int64(tb.off), tb.bad, tb.used, ev.foreign[no]))
		f.Count = int64(tb.bad)
		f.Host = []finding.Range{{Offset: int64(tb.off), Length: int64(c.cs)}}
		c.reachedThrough(&f, int(no))
		c.tell(f)
	}
	for i := range c.tables {
		if i%ctxSteps == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		tb := &c.tables[i]
		if tb.active > 1 && ev.foreign[int32(i)] != strayTable {
			f := c.newFinding(finding.QC06, finding.Sure, "shared_table", fmt.Sprintf(
				"%d L1 entries point to the same L2 table at %#x, so these parts of the disk share every cluster",
				tb.active, int64(tb.off)))
			f.Count = int64(tb.active)
			f.Host = []finding.Range{{Offset: int64(tb.off), Length: int64(c.cs)}}
			c.reachedThrough(&f, i)
			c.tell(f)
		}
	}
	stray := int64(0)
	for i, r := range c.l1refs {
		if i%ctxSteps == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if c.l1s[r.l1].active && c.behindDisk(r) {
			stray++
			continue
		}
		c.explainL1Entry(r)
	}
	if stray > 0 {
		f := c.newFinding(finding.QC09, finding.Sure, "behind_disk", fmt.Sprintf(
			"%s behind the end of the disk in use: nothing of the disk depends on them; the header may claim too long a table",
			plural(stray, "L1 entry is", "L1 entries are")))
		f.Severity, f.Count = finding.Warning, stray
		f.Host = []finding.Range{{Offset: int64(c.h.L1Off), Length: c.h.L1Entries * 8}}
		c.findings = append(c.findings, f)
	}
	return nil
}

// strayTable stands for the shape of a table that only entries behind the end of the disk name.
const strayTable = "stray"

// behindDisk reports whether an L1 entry maps nothing of the disk. The saved state of a machine lies
// there, but only in snapshots.
func (c *checker) behindDisk(r l1ref) bool { return int64(r.index)*c.h.L2Span() >= c.h.SizeBytes }

// plural is a number with its noun.
func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// reachedThrough names the guest ranges and L1 entries through which a table is reached.
func (c *checker) reachedThrough(f *finding.Finding, no int) {
	for _, r := range c.refsOf(no) {
		if c.l1s[r.l1].active {
			f.Guest, f.GuestCut = c.addRange(f.Guest, f.GuestCut, c.l1GuestRange(r.index))
		} else if f.Snapshot == "" && c.tables[no].active == 0 {
			f.Snapshot = c.snapshots.Snapshots[c.l1s[r.l1].snapshots[0]].Name
			f.Guest, f.GuestCut = c.addRange(f.Guest, f.GuestCut, c.l1GuestRange(r.index))
		}
		c.show(f, c.l1Evidence(r, "L1 entry"))
	}
}

func (c *checker) explainL1Entry(r l1ref) {
	off := r.table()
	var rule finding.Rule
	var kind, one, many string
	switch {
	case beyond(off, c.cs, c.fileBytes, c.cs):
		rule, kind, one, many = finding.QC11, "l1_entry",
			"L1 entry %d points past the end of the file", "%d L1 entries point past the end of the file"
	case off&(c.cs-1) != 0:
		rule, kind, one, many = finding.QC10, "l1_entry",
			"L1 entry %d is not cluster aligned", "%d L1 entries are not cluster aligned"
	case r.entry&l1ReservedMask != 0:
		rule, kind, one, many = finding.QC09, "l1_reserved_bits",
			"L1 entry %d has reserved bits set", "%d L1 entries have reserved bits set"
	case off == 0:
		rule, kind, one, many = finding.QC09, "l1_flags_only",
			"L1 entry %d has flags but no table", "%d L1 entries have flags but no table"
	default:
		return
	}
	f := c.newFinding(rule, finding.Sure, kind, fmt.Sprintf(one, r.index))
	f.Host = []finding.Range{c.l1EntryRange(r)}
	f.Guest = []finding.Range{c.l1GuestRange(r.index)}
	if t := &c.l1s[r.l1]; !t.active {
		f.Snapshot = c.snapshots.Snapshots[t.snapshots[0]].Name
	}
	f.Evidence = []finding.Evidence{c.l1Evidence(r, "L1 entry")}
	c.merge(f, alike{many: many})
}

// explainEntries reports what is wrong with L2 entries themselves.
func (c *checker) explainEntries(ev *evidence) {
	text := map[fault]struct {
		rule       finding.Rule
		kind, text string
	}{
		faultReserved:         {finding.QC09, "l2_reserved_bits", "L2 entries have reserved bits set"},
		faultMisaligned:       {finding.QC10, "l2_entry", "L2 entries are not cluster aligned: what they map is lost"},
		faultPastEnd:          {finding.QC11, "l2_entry", "L2 entries point past the end of the file: what they map is lost"},
		faultCompressedCopied: {finding.QC18, "copied_flag", "compressed clusters have the COPIED flag, which they never may"},
		faultCompressed:       {finding.QC18, "not_allowed", "compressed clusters where there can be none"},
		faultSubclusters:      {finding.QC19, "bitmap", "subcluster bitmaps contradict their entries"},
		faultDataFileCopied:   {finding.QC05, "data_file_flag", "entries into the external data file lack the COPIED flag"},
	}
	var byPlace []hit
	for _, h := range ev.hits {
		if h.fault != faultNone {
			byPlace = append(byPlace, h)
		}
	}
	slices.SortFunc(byPlace, func(a, b hit) int { return cmp.Compare(a.guest, b.guest) })
	for _, h := range byPlace {
		t, ok := text[h.fault]
		if _, foreign := ev.foreign[h.table]; !ok || foreign {
			continue
		}
		f := c.newFinding(t.rule, finding.Sure, t.kind, t.text)
		if h.fault == faultCompressedCopied || h.fault == faultDataFileCopied {
			f.Severity = finding.Danger
		}
		c.locate(&f, h)
		f.Count = 1
		c.merge(f, alike{})
	}
	if ev.dropped > 0 && len(c.findings) > 0 {
		c.blindSpot(finding.Blind{What: "guest ranges of the findings", Reason: fmt.Sprintf(
			"%d entries beyond the first %d are counted but not listed", ev.dropped, maxHits)})
	}
}

// locate gives a finding the place of an entry and what it stands for.
func (c *checker) locate(f *finding.Finding, h hit) {
	f.Host, f.HostCut = c.addRange(f.Host, f.HostCut, finding.Range{Offset: h.off, Length: c.h.L2EntryBytes()})
	f.Guest, f.GuestCut = c.addRange(f.Guest, f.GuestCut, c.guestRange(h))
	if c.tables[h.table].active == 0 {
		r := c.refsOf(int(h.table))[0]
		f.Snapshot = c.snapshots.Snapshots[c.l1s[r.l1].snapshots[0]].Name
	}
	if c.shows(f) {
		c.show(f, entryEvidence(h, h.guest))
	} else {
		f.EvidenceCut++
	}
}

func (c *checker) guestRange(h hit) finding.Range {
	return finding.Range{Offset: h.guest, Length: max(0, min(int64(c.cs), c.diskOf(int(h.table))-h.guest))}
}

// diskOf is the size of the disk that table no maps: that of a snapshot may differ.
func (c *checker) diskOf(no int) int64 {
	size := c.h.SizeBytes
	if c.tables[no].active > 0 {
		return size
	}
	for _, r := range c.refsOf(no)[:1] {
		for _, s := range c.l1s[r.l1].snapshots {
			size = max(size, c.snapshots.Snapshots[s].DiskBytes)
		}
	}
	return size
}

// explainSuspects turns clusters whose refcounts are too low, or whose flags are wrong, into
// findings. Leaks come afterwards.
func (c *checker) explainSuspects(ctx context.Context, ev *evidence) error {
	links := &crossLinks{}
	c.links = links
	for _, s := range c.suspects {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.References <= s.Refcount || c.inBadBlock(int64(s.First)) {
			continue
		}
		c.explainLow(ev, links, s)
	}
	c.explainOverlaps(ev)
	for _, s := range c.shared {
		c.explainShared(ev, links, s)
	}
	c.explainLinks(links)
	c.explainFlags(ev)
	return nil
}

// maxSteps is how far a list is walked before it is searched.
const maxSteps = 16

// hitsAt gives the entries that refer to clusters [first, last]. It begins where it was the last time:
// most who ask go through the file in order.
func (ev *evidence) hitsAt(first, last int64) []hit {
	a := ev.near
	for end := min(a+maxSteps, len(ev.hits)); a < end && ev.hits[a].cluster < first; {
		a++
	}
	if a > 0 && ev.hits[a-1].cluster >= first || a < len(ev.hits) && ev.hits[a].cluster < first {
		a = sort.Search(len(ev.hits), func(i int) bool { return ev.hits[i].cluster >= first })
	}
	b := a
	for b < len(ev.hits) && ev.hits[b].cluster <= last {
		b++
	}
	ev.near = a
	return ev.hits[a:b]
}

// explainLow explains a range of clusters with the same, too low, refcount.
func (c *checker) explainLow(ev *evidence, links *crossLinks, s Suspect) {
	first, last := int64(s.First), int64(s.First)+s.N-1
	hits := ev.hitsAt(first, last)
	rule, text := finding.QC02, "clusters have a lower refcount than references"
	if s.Refcount == 0 {
		rule, text = finding.QC04, "clusters in use have the refcount 0"
	}
	if c.lateRefcounts() {
		text += ", which were to be written later"
	}
	seen := int64(0) // clusters of the range that table entries explain
	for len(hits) > 0 {
		n := 1
		for n < len(hits) && hits[n].cluster == hits[0].cluster {
			n++
		}
		here := hits[:n]
		hits = hits[n:]
		seen++
		switch c.reasonFor(ev, here, s) {
		case lowForeign, lowSharedTable, lowMetadata:
			continue // told by another finding
		case lowLinked:
			links.add(here)
			continue
		}
		i, ok := c.low[rule.Code]
		if !ok {
			f := c.newFinding(rule, finding.Sure, "guest_data", text)
			f.Count = 0
			c.followsDirty(&f)
			if c.low == nil {
				c.low = map[string]int{}
			}
			i = c.merge(f, alike{})
			c.low[rule.Code] = i
		}
		f := &c.findings[i]
		f.Count++
		f.Host, f.HostCut = c.addRange(f.Host, f.HostCut, c.hostRange(span{here[0].cluster, here[0].cluster}))
		for _, h := range here {
			f.Guest, f.GuestCut = c.addRange(f.Guest, f.GuestCut, c.guestRange(h))
		}
		if c.shows(f) {
			c.show(f, c.refcountEvidence(s, here[0].cluster))
		} else {
			f.EvidenceCut++
		}
	}
	if rest := s.N - seen; rest > 0 && ev.dropped == 0 {
		c.explainLowMetadata(ev, s, rule)
	}
}

// lateRefcounts reports whether the header admits that refcounts lag behind ("Incompatible features",
// bit 0): qemu then counts anew before it writes.
func (c *checker) lateRefcounts() bool { return c.h.Incompatible&IncompatDirty != 0 }

// followsDirty marks a refcount that is too low as what the dirty bit announces.
func (c *checker) followsDirty(f *finding.Finding) {
	if c.lateRefcounts() {
		f.Severity, f.DependsOn = finding.Warning, []string{finding.QC21.Code}
		f.Next = "qemu counts anew when it opens the image for writing; no other program may write to it before"
	}
}

func (c *checker) refcountEvidence(s Suspect, cluster int64) finding.Evidence {
	return finding.Evidence{Source: "refcount", Offset: cluster << c.bits,
		Value: fmt.Sprint(s.Refcount), Text: plural(int64(min(s.References, math.MaxInt64)), "reference", "references")}
}

// explainLowMetadata reports clusters of metadata with a refcount that is too low.
func (c *checker) explainLowMetadata(ev *evidence, s Suspect, rule finding.Rule) {
	for cluster := int64(s.First); cluster < int64(s.First)+s.N; cluster++ {
		if len(ev.hitsAt(cluster, cluster)) > 0 {
			continue
		}
		who := c.ownersOf(cluster)
		if len(who) == 0 {
			who = []string{"an L2 table that is not aligned"}
		}
		f := c.newFinding(rule, finding.Sure, "metadata", fmt.Sprintf("the refcount of metadata is too low (%s)", who[0]))
		if len(who) > 1 {
			f = c.newFinding(finding.QC08, finding.Sure, "metadata_twice",
				fmt.Sprintf("two pieces of metadata claim the same cluster (%s, %s)", who[0], who[1]))
		}
		f.Host = []finding.Range{c.hostRange(span{cluster, cluster})}
		f.Evidence = []finding.Evidence{c.refcountEvidence(s, cluster)}
		if len(who) == 1 {
			c.followsDirty(&f)
		}
		c.merge(f, alike{about: strings.Join(who, ", ")})
	}
}

// sortOwners brings the pieces of metadata into the order of the file. ownerEnds has for each the
// highest cluster that it or one before it reaches.
func (c *checker) sortOwners() {
	slices.SortStableFunc(c.owners, func(a, b region) int { return cmp.Compare(a.first, b.first) })
	c.ownerEnds = make([]int64, 0, len(c.owners))
	end := int64(-1)
	for _, o := range c.owners {
		end = max(end, o.last)
		c.ownerEnds = append(c.ownerEnds, end)
	}
}

// ownersOf names the metadata that lies in a cluster, two pieces at most of those with a name.
func (c *checker) ownersOf(cluster int64) []string {
	if c.ownerEnds == nil {
		c.sortOwners()
	}
	var who []string
	i, _ := slices.BinarySearchFunc(c.owners, cluster+1, func(o region, x int64) int { return cmp.Compare(o.first, x) })
	for i--; i >= 0 && c.ownerEnds[i] >= cluster && len(who) < 2; i-- {
		if c.owners[i].last >= cluster {
			who = append(who, c.owners[i].what)
		}
	}
	slices.Reverse(who)
	if i := c.tableAt(cluster); i >= 0 && c.tables[i].off != 0 {
		who = append(who, "L2 table")
	}
	return who
}

type lowReason int

const (
	lowPlain       lowReason = iota
	lowForeign               // references out of an overwritten table
	lowSharedTable           // the whole table is shared
	lowMetadata              // metadata lies there as well
	lowLinked                // several guest ranges
)

// reasonFor says why the cluster of hits has more references than its refcount.
func (c *checker) reasonFor(ev *evidence, hits []hit, s Suspect) lowReason {
	if len(c.ownersOf(hits[0].cluster)) > 0 {
		return lowMetadata
	}
	var sound, doubled uint64
	guests := map[int64]bool{}
	for _, h := range hits {
		if _, foreign := ev.foreign[h.table]; foreign {
			continue
		}
		tb := &c.tables[h.table]
		sound += tb.refs
		if tb.active > 1 {
			doubled += uint64(tb.active - 1)
		}
		if c.h.TypeOf(h.entry) != EntryCompressed {
			guests[h.guest] = true
		}
	}
	switch {
	case sound <= s.Refcount && sound < s.References:
		return lowForeign
	case doubled > 0 && sound-doubled <= s.Refcount:
		return lowSharedTable
	case len(guests) > 1:
		return lowLinked
	}
	return lowPlain
}

// explainOverlaps reports guest data that points into metadata.
func (c *checker) explainOverlaps(ev *evidence) {
	for _, s := range c.overlaps {
		for cluster := s.first; cluster <= s.last; cluster++ {
			who := c.ownersOf(cluster)
			into := append(who, "metadata")[0]
			for _, h := range ev.hitsAt(cluster, cluster) {
				if _, foreign := ev.foreign[h.table]; foreign {
					continue
				}
				f := c.newFinding(finding.QC08, finding.Sure, "data_in_metadata", fmt.Sprintf(
					"guest data points into the %s", into))
				f.Host = []finding.Range{c.hostRange(span{cluster, cluster})}
				f.Guest = []finding.Range{c.guestRange(h)}
				f.Evidence = []finding.Evidence{entryEvidence(h, h.guest)}
				c.merge(f, alike{about: into})
			}
		}
	}
}

// explainFlags reports COPIED flags that are wrong although the refcount is right.
func (c *checker) explainFlags(ev *evidence) {
	derived := ev.copied - ev.pureHits
	var causes []string
	for _, f := range c.findings {
		switch f.Code {
		case "QC02", "QC03", "QC04", "QC12", "QC15", "QC23":
			if !slices.Contains(causes, f.Code) {
				causes = append(causes, f.Code)
			}
		}
	}
	if c.counts.Leaks > 0 { // reported later
		causes = append(causes, finding.QC03.Code)
	}
	slices.Sort(causes)
	causes = slices.Compact(causes)
	note := c.newFinding(finding.QC05, finding.Sure, "follows_refcounts", "COPIED flags are wrong where refcounts are wrong too")
	for _, r := range ev.flagsL1 {
		note.Host, note.HostCut = c.addRange(note.Host, note.HostCut, c.l1EntryRange(r))
		note.Guest, note.GuestCut = c.addRange(note.Guest, note.GuestCut, c.l1GuestRange(r.index))
	}
	near := 0
	for i := range ev.hits {
		h := &ev.hits[i]
		if h.fault == faultDataFileCopied {
			derived -= int64(c.tables[h.table].active) // told with the entries
		}
		if !h.copied {
			continue
		}
		_, suspect := c.suspectNear(h.cluster, &near)
		_, foreign := ev.foreign[h.table]
		if suspect || foreign || h.fault != faultNone {
			c.locate(&note, *h)
			continue
		}
		derived -= int64(c.tables[h.table].active)
		f := c.newFinding(finding.QC05, finding.Sure, "l2_flag", "COPIED flags contradict refcounts that are right")
		if h.entry&FlagCopied == 0 {
			f = c.newFinding(finding.QC05, finding.Sure, "l2_flag_missing", "clusters that are used once lack the COPIED flag")
			needlessCopy(&f)
		}
		c.locate(&f, *h)
		f.Guest = []finding.Range{c.guestRange(*h)}
		c.merge(f, alike{})
	}
	if derived > 0 {
		note.Severity, note.Count, note.DependsOn = finding.Note, derived, append(note.DependsOn, causes...)
		c.findings = append(c.findings, note)
	}
}
