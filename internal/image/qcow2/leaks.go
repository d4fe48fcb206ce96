// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// Leaked clusters are the most misread message of a check: they are called harmless, and mostly
// are. But when an L1 entry or an L2 table is wiped, everything that it mapped looks leaked too,
// and freeing it destroys the only copy. So before a leak is called a leak:
//
//	bitmap   part of a bitmap that is invalid: nothing reads it any more
//	orphan   its content is an L2 table whose entries lead to leaked clusters: a wiped L1 entry
//	wiped    an L2 table in use is empty, and leaked clusters with data lie where its data would be
//	gap      leaked clusters fit exactly between two neighbours on the host that are neighbours of
//	         an unmapped range of the disk: some sectors of an L2 table were wiped
//	tail     behind everything in use: left by a crash before the map was written
//	plain    none of these

import (
	"context"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

const (
	// maxProbes bounds the leaked clusters whose content is looked at.
	maxProbes = 1 << 20
	// probeBytes is read at four places of a leaked cluster; a cluster that is no table shows it.
	probeBytes = 512
	// maxWholeBytes bounds what is read of clusters that show nothing at the four places.
	maxWholeBytes = 4 << 30
	// An orphan's entries must lead to leaked clusters, nine of ten. Where there are fewer than
	// minOrphanEntries, all must, each with the COPIED flag.
	minOrphanEntries = 4
	// maxSlots is how many empty L1 entries a guess lists.
	maxSlots = 20
	// minGap is from how many clusters on a gap is likely a wiped part of a table: fewer may be a
	// discard that a crash cut short. Where there are more than maxSmallGaps leaked ranges, smaller
	// gaps are not looked for.
	minGap       = 16
	maxSmallGaps = 1024
)

// leak is a range of leaked clusters that nothing refers to.
type leak struct {
	span
}

// explainLeaks turns refcounts that are too high into findings.
func (c *checker) explainLeaks(ctx context.Context, ev *evidence) error {
	var leaks []leak
	var high int64
	for _, s := range c.suspects {
		switch {
		case s.Refcount <= s.References:
		case c.inBadBlock(int64(s.First)):
			// told with the block
		case s.References > 0:
			high += s.N
		default:
			first := int64(s.First)
			if n := len(leaks); n > 0 && leaks[n-1].last+1 == first {
				leaks[n-1].last += s.N
			} else {
				leaks = append(leaks, leak{span: span{first, first + s.N - 1}})
			}
		}
	}
	if why := c.undecidable(); why != "" && high+int64(len(leaks)) > 0 {
		f := c.newFinding(finding.QC03, finding.Possible, "undecided", fmt.Sprintf(
			"%s be leaked; that cannot be told %s", plural(c.counts.Leaks, "cluster may", "clusters may"), why))
		f.Count, f.Severity = c.counts.Leaks, finding.Note
		if c.unlisted > 0 { // what they are worth cannot be told, but there are some
			f.Severity, f.Next = finding.Waste, "copy the file before anything frees them"
		}
		c.findings = append(c.findings, f)
		return nil
	}
	if high+int64(len(leaks)) == 0 {
		return nil
	}
	leaks, err := c.takeBitmaps(ctx, leaks)
	if err != nil {
		return err
	}
	probed, err := c.findOrphans(ctx, ev, leaks)
	if err != nil {
		return err
	}
	if err := c.findWiped(ev, leaks); err != nil {
		return c.tooMuch(ctx, err)
	}
	if err := c.findGaps(ev, leaks); err != nil {
		return c.tooMuch(ctx, err)
	}
	if high > 0 {
		if err := c.explainHigh(ctx, ev); err != nil {
			return c.tooMuch(ctx, err)
		}
	}
	c.plainLeaks(ev, leaks, probed)
	c.explainBitmapLeaks()
	return nil
}

// undecidable says why leaks cannot be told, "" if they can.
func (c *checker) undecidable() string {
	switch {
	case c.opts.Running:
		return "while a program writes to the image"
	case c.unreadable > 0:
		return "because parts of the metadata could not be read"
	case c.unlisted > 0:
		return "because there are more than the memory allowed can list"
	}
	return ""
}

// isLeaked reports whether a cluster is counted as used more often than anything refers to it.
func (c *checker) isLeaked(cluster int64) bool {
	s, ok := c.suspectOf(cluster)
	return ok && s.Refcount > s.References
}

// plainLeaks reports what is left: tail leaks apart from others.
func (c *checker) plainLeaks(ev *evidence, leaks []leak, probed int64) {
	var lost []string
	for _, f := range c.findings {
		if f.Severity == finding.Lost && !slices.Contains(lost, f.Code) {
			lost = append(lost, f.Code)
		}
	}
	slices.Sort(lost)
	top := c.data.highest()
	tail := c.newFinding(finding.QC14, finding.Likely, "tail", "")
	plain := c.newFinding(finding.QC03, finding.Sure, "leaked", "")
	tail.Count, plain.Count = 0, 0
	if len(lost) > 0 {
		const wait = "do not free them before the lost mapping is understood: they may hold what it mapped"
		tail.Next, plain.Next, tail.DependsOn, plain.DependsOn = wait, wait, lost, lost
		tail.Certainty = finding.Possible
	}
	for _, l := range leaks {
		for a := l.first; a <= l.last; {
			b := ev.covered.next(a, l.last)
			if b > a {
				f := &plain
				if a > top {
					f = &tail
				}
				f.Count += b - a
				f.Host, f.HostCut = c.addRange(f.Host, f.HostCut, c.hostRange(span{a, b - 1}))
			}
			a = b + 1
		}
	}
	if tail.Count > 0 {
		text := "%s at the end, behind everything in use: as left by a crash that came before they were mapped, or where the last entries of a table were wiped"
		if len(lost) > 0 {
			text = "%s at the end, behind everything in use: left by a crash, or part of what was lost"
		} else if c.invalidBitmaps() {
			text = "%s at the end, behind everything in use: part of the bitmaps that are invalid, or left by a crash"
		}
		tail.Summary = fmt.Sprintf(text, plural(tail.Count, "leaked cluster", "leaked clusters"))
		c.findings = append(c.findings, tail)
	}
	if plain.Count == 0 {
		return
	}
	plain.Certainty = finding.Likely // a single wiped entry in a scattered image leaves no trace
	text := "%s: nothing shows that it holds more than lost space"
	if plain.Count > 1 {
		text = "%s only cost space: nothing shows that data is lost"
	}
	if len(lost) > 0 {
		text = "%s may cost space only, or be part of what was lost"
	}
	plain.Summary = fmt.Sprintf(text, plural(plain.Count, "leaked cluster", "leaked clusters"))
	if probed >= maxProbes || c.unprobed > 0 {
		plain.Evidence = append(plain.Evidence, finding.Evidence{Source: "content", Offset: -1,
			Value: fmt.Sprint(probed - c.unprobed), Text: "leaked clusters were looked at for lost tables; the rest was not"})
	}
	c.findings = append(c.findings, plain)
}
