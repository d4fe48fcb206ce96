// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package finding holds the words in which every part of shisa reports: what was found, how sure
// it is, what it rests on, and what could not be looked at.
//
// A finding is a value: a broken disk is a finding, failing to look at one is a [Blind] spot, and
// neither is an error of the program.
package finding

import (
	"cmp"
	"slices"
)

// Verdict is how an examination ended.
type Verdict string

// The three verdicts. What could not be read never counts as clean.
const (
	Clean      Verdict = "clean"
	Found      Verdict = "found"
	CannotTell Verdict = "cannot_tell"
)

// Severity orders findings by the harm they stand for.
type Severity string

// The severities, worst first.
const (
	// Lost: guest data is already wrong or cannot be reached.
	Lost Severity = "lost"
	// Danger: nothing is lost yet, but the next write may destroy data.
	Danger Severity = "danger"
	// Warning: wrong, but neither data nor later writes are at stake.
	Warning Severity = "warning"
	// Waste: costs space only.
	Waste Severity = "waste"
	// Note: worth knowing, nothing is wrong.
	Note Severity = "note"
)

// Rank gives the place of s in the order worst first, 0 being the worst.
func (s Severity) Rank() int {
	if i := slices.Index([]Severity{Lost, Danger, Warning, Waste, Note}, s); i >= 0 {
		return i
	}
	return 5
}

// Certainty is how sure a finding is of what it says.
type Certainty string

// The certainties, strongest first.
const (
	Sure     Certainty = "sure"     // follows from bytes that were read
	Likely   Certainty = "likely"   // the evidence has no other known explanation
	Possible Certainty = "possible" // one of several explanations
)

// Range is a range of bytes, in a file (host) or in what the guest sees.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// End is the first byte after r.
func (r Range) End() int64 { return r.Offset + r.Length }

// Evidence is one observation that a finding rests on.
type Evidence struct {
	// Source names what was read, for example "L1 table" or "refcount block".
	Source string `json:"source"`
	// Offset is the place in the file, in bytes; -1 where there is none.
	Offset int64 `json:"offset"`
	// Value is the raw value as it stands there, 64-bit words as hex strings.
	Value string `json:"value"`
	// Text says what follows from it.
	Text string `json:"text"`
}

// Finding is one thing that is wrong, or worth knowing, about one object.
type Finding struct {
	// Code and Name identify the rule; they never change their meaning.
	Code string `json:"code"`
	Name string `json:"name"`
	// Severity and Certainty rank the finding.
	Severity  Severity  `json:"severity"`
	Certainty Certainty `json:"certainty"`
	// Kind is a short word for what the summary says: findings of one code and kind say the same
	// about different places. A kind never changes its meaning.
	Kind string `json:"kind"`
	// Object is the image or file that the finding is about.
	Object string `json:"object"`
	// Summary says in one sentence what it means.
	Summary string `json:"summary"`
	// Count is how many entries or clusters the finding stands for.
	Count int64 `json:"count"`
	// Host are the ranges of the image file, Guest those of the virtual disk that it stands for.
	// The lists may be cut; HostCut and GuestCut count the ranges left out.
	Host     []Range `json:"host"`
	Guest    []Range `json:"guest"`
	HostCut  int64   `json:"host_cut"`
	GuestCut int64   `json:"guest_cut"`
	// Snapshot names the internal snapshot whose view is hurt; empty for the active one.
	Snapshot string `json:"snapshot"`
	// Evidence is what the finding rests on. The list may be cut; EvidenceCut counts what was left
	// out.
	Evidence    []Evidence `json:"evidence"`
	EvidenceCut int64      `json:"evidence_cut"`
	// DependsOn lists codes of findings on the same object that explain this one.
	DependsOn []string `json:"depends_on"`
	// Next says what to do.
	Next string `json:"next"`
}

// Blind is something that could not be examined, and why.
type Blind struct {
	Object string `json:"object"`
	// What was not examined, for example "L2 table".
	What   string `json:"what"`
	Reason string `json:"reason"`
	// Host and Guest are the ranges that it concerns, empty if unknown.
	Host  []Range `json:"host"`
	Guest []Range `json:"guest"`
}

// New returns a finding of rule r and the kind about object, with the rule's severity and no ranges.
func New(r Rule, object string, c Certainty, kind, summary string) Finding {
	return Finding{
		Code: r.Code, Name: r.Name, Severity: r.Severity, Certainty: c, Kind: kind, Object: object,
		Summary: summary, Count: 1, Next: r.Next,
		Host: []Range{}, Guest: []Range{}, Evidence: []Evidence{}, DependsOn: []string{},
	}
}

// Sort puts findings in reporting order: those that explain others first within an object, then by
// harm, certainty, object and place.
func Sort(fs []Finding) {
	first := func(f Finding) int64 {
		if len(f.Host) > 0 {
			return f.Host[0].Offset
		}
		return -1
	}
	slices.SortStableFunc(fs, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(a.Severity.Rank(), b.Severity.Rank()),
			cmp.Compare(certaintyRank(a.Certainty), certaintyRank(b.Certainty)),
			cmp.Compare(a.Object, b.Object),
			cmp.Compare(a.Code, b.Code),
			cmp.Compare(first(a), first(b)),
		)
	})
}

func certaintyRank(c Certainty) int {
	return slices.Index([]Certainty{Sure, Likely, Possible}, c)
}

// Worst gives the worst severity among fs, and Note if there is none.
func Worst(fs []Finding) Severity {
	w := Note
	for _, f := range fs {
		if f.Severity.Rank() < w.Rank() {
			w = f.Severity
		}
	}
	return w
}

// VerdictOf derives the verdict from what was found and what was not seen. Notes are not faults.
func VerdictOf(fs []Finding, blind []Blind) Verdict {
	switch {
	case Worst(fs) != Note:
		return Found
	case len(blind) > 0:
		return CannotTell
	}
	return Clean
}
