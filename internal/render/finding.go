// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// causesFirst gives fs in the order of telling: worst first, but what explains another finding of
// the same object stands before it.
func causesFirst(fs []finding.Finding) []finding.Finding {
	sorted := slices.Clone(fs)
	finding.Sort(sorted)
	type key struct{ object, code string }
	byKey := map[key][]int{}
	for i, f := range sorted {
		k := key{f.Object, f.Code}
		byKey[k] = append(byKey[k], i)
	}
	told := make([]bool, len(sorted))
	result := make([]finding.Finding, 0, len(sorted))
	// A chain of causes is as long as there are rules at most; told ends a circle.
	var tell func(i int)
	tell = func(i int) {
		if told[i] {
			return
		}
		told[i] = true
		for _, code := range sorted[i].DependsOn {
			for _, cause := range byKey[key{sorted[i].Object, code}] {
				tell(cause)
			}
		}
		result = append(result, sorted[i])
	}
	for i := range sorted {
		tell(i)
	}
	return result
}

// findings lists what was found, at most maxOfAKind of a kind, with blanks before each line.
func (o *out) findings(fs []finding.Finding, indent string) {
	listed, left := map[string]int{}, map[string]int{}
	codes := []string{}
	told := map[string]bool{}
	here, worst := codesOf(fs), finding.Worst(fs)
	for _, f := range causesFirst(fs) {
		if listed[f.Code] == 0 {
			codes = append(codes, f.Code)
		}
		if listed[f.Code] == maxOfAKind && !o.s.All {
			left[f.Code]++
			continue
		}
		listed[f.Code]++
		follows := present(f.DependsOn, here)
		next := advice(f, follows, worst)
		if told[next] {
			next = ""
		}
		told[next] = true
		o.finding(f, indent, follows, next)
	}
	for _, code := range codes {
		if left[code] > 0 {
			o.prose(indent+"... and ", Count(int64(left[code]), "more finding", "more findings")+
				" of "+Text(code)+" (--all lists them)")
		}
	}
}

// finding tells one finding: word, rule and sentence, where, why, and what to do.
func (o *out) finding(f finding.Finding, indent string, follows []string, next string) {
	o.line(indent, o.headOf(f.Severity, f.Certainty, f.Code, f.Name), times(f))
	in := indent + "  "
	o.prose(in, sentence(f.Summary))
	o.details(f, in)
	if len(follows) > 0 {
		o.prose(label(in, "follows"), "from "+Text(strings.Join(follows, ", ")))
	}
	if next != "" {
		o.prose(label(in, "next"), Text(next))
	}
}

// advice gives what to do about a finding that follows from others, on an image whose worst finding
// is of severity worst. To mend a symptom may destroy what is left of its cause, so symptoms have
// none, and waste is not called harmless beside something that is not.
func advice(f finding.Finding, follows []string, worst finding.Severity) string {
	switch {
	case len(follows) > 0:
		return ""
	case f.Severity == finding.Waste && worst.Rank() <= finding.Danger.Rank():
		return "do not free these clusters before what stands above is understood: they may hold what was lost"
	case f.Severity == finding.Note && severityOf(f.Code) != finding.Note:
		return ""
	}
	return f.Next
}

// severityOf gives the usual severity of a rule, that of a note if it is not known.
func severityOf(code string) finding.Severity {
	for _, r := range finding.Rules() {
		if r.Code == code {
			return r.Severity
		}
	}
	return finding.Note
}

// headOf gives the first line of a finding or cause.
func (o *out) headOf(s finding.Severity, c finding.Certainty, code, name string) string {
	st := stateOf(s)
	word := st.word
	if c != finding.Sure {
		word += " (" + Text(string(c)) + ")"
	}
	return o.paint(st.color, word) + "  " + Text(code) + " " + o.paint(dim, Text(name))
}

// times says how many entries or clusters a finding stands for, if its sentence does not.
func times(f finding.Finding) string {
	n := strconv.FormatInt(f.Count, 10)
	if f.Count < 2 || slices.Contains(strings.FieldsFunc(f.Summary, notDigit), n) {
		return ""
	}
	return ", " + n + " times"
}

func notDigit(r rune) bool { return r < '0' || r > '9' }

// codesOf gives the rules of findings.
func codesOf(fs []finding.Finding) map[string]bool {
	codes := map[string]bool{}
	for _, f := range fs {
		codes[f.Code] = true
	}
	return codes
}

// present gives the causes that were really found: a finding names all that it could follow from.
func present(causes []string, codes map[string]bool) []string {
	return slices.DeleteFunc(slices.Clone(causes), func(c string) bool { return !codes[c] })
}

// label begins a line that says one thing about a finding.
func label(indent, word string) string { return indent + fmt.Sprintf("%-9s", word) }

// details says where a finding is and what it rests on.
func (o *out) details(f finding.Finding, in string) {
	if f.Snapshot != "" {
		o.prose(label(in, "snapshot"), Text(f.Snapshot))
	}
	if len(f.Guest) > 0 {
		o.flow(label(in, "guest"), o.ranges(f.Guest, f.GuestCut), ", ")
	}
	if len(f.Host) > 0 {
		o.flow(label(in, "in file"), o.ranges(f.Host, f.HostCut), ", ")
	}
	shown := len(f.Evidence)
	if !o.s.All {
		shown = min(shown, maxEvidence)
	}
	for i, e := range f.Evidence[:shown] {
		first := label(in, "")
		if i == 0 {
			first = label(in, "because")
		}
		o.prose(first, evidence(e))
	}
	if n := int64(len(f.Evidence)-shown) + f.EvidenceCut; n > 0 {
		more := "... and " + Count(n, "more observation", "more observations")
		if !o.s.All {
			more += " (--all)"
		}
		o.prose(label(in, ""), more)
	}
}

// ranges gives the ranges as texts, cut to the number that is listed.
func (o *out) ranges(rs []finding.Range, cut int64) []string {
	shown := len(rs)
	if !o.s.All {
		shown = min(shown, maxRanges)
	}
	items := make([]string, 0, shown+1)
	for _, r := range rs[:shown] {
		items = append(items, Range(r))
	}
	if cut += int64(len(rs) - shown); cut > 0 {
		items = append(items, "and "+strconv.FormatInt(cut, 10)+" more")
	}
	return items
}

// evidence gives an observation as one sentence: what was read, where, what stood there, and what
// follows.
func evidence(e finding.Evidence) string {
	s := Text(e.Source)
	if e.Offset >= 0 {
		s += " at " + Offset(e.Offset)
	}
	if e.Value != "" && !strings.HasPrefix(e.Text, e.Value+" ") {
		s += " is " + Text(e.Value)
	}
	if e.Text != "" {
		s += ": " + Text(e.Text)
	}
	return s
}

// sentence gives a text from a finding with a capital letter.
func sentence(s string) string {
	s = Text(s)
	if s == "" || s[0] < 'a' || s[0] > 'z' || strings.HasPrefix(s, "qemu") || strings.HasPrefix(s, "qcow") {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}

// blind lists what could not be looked at.
func (o *out) blind(bs []finding.Blind, indent string, object bool) {
	if len(bs) == 0 {
		return
	}
	o.line(indent, o.paint(magenta, "not looked at:"))
	for i, b := range bs {
		if i == maxOfAKind && !o.s.All {
			o.prose(indent+"  ", "... and "+Count(int64(len(bs)-i), "more place", "more places")+
				" (--all lists them)")
			return
		}
		text := Text(b.What)
		if object && b.Object != "" {
			text = Name(b.Object)
			if b.What != "" {
				text += " (" + Text(b.What) + ")"
			}
		}
		if len(b.Host) > 0 {
			text += ", " + strings.Join(o.ranges(b.Host, 0), ", ") + " of the file"
		}
		text += ": " + Text(b.Reason)
		if len(b.Guest) > 0 {
			text += "; it stands for guest " + strings.Join(o.ranges(b.Guest, 0), ", ")
		}
		o.prose(indent+"  - ", text)
	}
}
