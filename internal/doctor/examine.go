// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"slices"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// Examine asks all rules about the evidence of one or more machines, and ranks what they find as one
// picture. Further rules are those of the user. No two machines may have the same label.
func Examine(all []*evidence.Evidence, further []Rule) *Report {
	g, joined := picture(all), neighbours(all)
	rep := &Report{Verdict: finding.Clean, Machines: []Patient{}, Findings: []Finding{}, Rules: []Asked{},
		Shared: []Common{}, Objects: []Seen{}, Edges: []Edge{}, NotLookedAt: []Missing{}}
	for _, rule := range append(Rules(), further...) {
		asked := Asked{Code: rule.Code, Name: rule.Name, Reasons: []Doubt{}}
		for _, e := range joined {
			for _, r := range rule.judge(e) {
				if g.node(r.Object).take(r) {
					asked.count(r)
				}
			}
		}
		rep.Rules = append(rep.Rules, asked)
	}
	g.files()
	g.loops()
	rep.Causes = rank(g)
	rep.take(g, all)
	rep.conclude()
	return rep
}

// take adds a result. One that another machine gave of the same object says no more: it is joined to that, and
// false is returned.
func (n *node) take(r Result) bool {
	if r.Finding != nil {
		for i := range n.results {
			if f := n.results[i].Finding; f != nil && f.ID == r.Finding.ID {
				f.join(r.Finding)
				return false
			}
		}
	}
	n.results = append(n.results, r)
	return true
}

// join adds what another machine shows of the same.
func (f *Finding) join(x *Finding) {
	for _, fact := range x.Evidence {
		if !slices.Contains(f.Evidence, fact) {
			f.Evidence = append(f.Evidence, fact)
		}
	}
	f.seen(x.Evidence)
	for _, o := range x.Affects {
		if !slices.Contains(f.Affects, o) {
			f.Affects = append(f.Affects, o)
		}
	}
	if x.Confidence > f.Confidence {
		f.Confidence = x.Confidence
	}
	if x.Severity.Rank() < f.Severity.Rank() { // the worse one counts, with its words
		f.Severity, f.Reach, f.Over, f.Summary, f.Remedies = x.Severity, x.Reach, x.Over, x.Summary, x.Remedies
	}
}

func (a *Asked) count(r Result) {
	switch r.Outcome {
	case Fail:
		a.Failed++
	case Pass:
		a.Passed++
	default:
		a.Unknown++
		a.Reasons = append(a.Reasons, Doubt{Object: r.Object, Why: r.Why})
	}
}

// take takes the picture over.
func (rep *Report) take(g *graph, all []*evidence.Evidence) {
	findings := map[string]*Finding{}
	for _, n := range g.sorted() {
		s := Seen{Object: n.object, State: n.state(), Findings: []string{}}
		for i := range n.results {
			if f := n.results[i].Finding; f != nil {
				findings[f.ID] = f
				s.Findings = append(s.Findings, f.ID)
			}
		}
		rep.Objects = append(rep.Objects, s)
		for _, low := range n.on {
			rep.Edges = append(rep.Edges, Edge{From: n.object, To: low.object})
		}
	}
	slices.SortFunc(rep.Edges, func(a, b Edge) int {
		return cmp.Or(compareObjects(a.From, b.From), compareObjects(a.To, b.To))
	})
	rep.join(findings)
	for _, e := range all {
		for _, gap := range e.Gaps {
			rep.NotLookedAt = append(rep.NotLookedAt, Missing{Machine: e.Label, Gap: gap})
		}
		rep.Machines = append(rep.Machines, Patient{Label: e.Label, Kind: e.Kind, Kernel: e.Host.Kernel,
			OS: e.Host.OS, Now: e.Now, Sick: rep.sick(e.Label)})
	}
	if len(all) > 1 {
		rep.Shared = shared(g, rep.Machines)
	}
}

// join says of each finding what explains it, and puts them in order: cause by cause.
func (rep *Report) join(findings map[string]*Finding) {
	told := map[string]bool{}
	tell := func(id string) {
		if f := findings[id]; f != nil && !told[id] {
			told[id] = true
			rep.Findings = append(rep.Findings, *f)
		}
	}
	for i := range rep.Causes {
		c := &rep.Causes[i]
		for _, id := range c.Explains {
			if f := findings[id]; f != nil && c.Certainty != NotCertain {
				f.Because = append(f.Because, Reason{Finding: c.Finding,
					Text: "rests on " + c.Object.String()})
			}
		}
	}
	for i := range rep.Causes {
		tell(rep.Causes[i].Finding)
		for _, id := range rep.Causes[i].Explains {
			tell(id)
		}
	}
}

// sick tells whether something worse than a note was found on a machine.
func (rep *Report) sick(label string) bool {
	return slices.ContainsFunc(rep.Findings, func(f Finding) bool {
		return f.Object.On == label && f.Severity.Rank() < finding.Waste.Rank()
	})
}

// conclude gives the verdict.
func (rep *Report) conclude() {
	var applies []int
	for i := range rep.Findings {
		if rep.Findings[i].Severity.Rank() < finding.Note.Rank() {
			applies, rep.Verdict = append(applies, finding.StatusFound), finding.Found
		}
	}
	doubt := len(rep.NotLookedAt) > 0 || slices.ContainsFunc(rep.Rules, func(a Asked) bool {
		return a.Unknown > 0
	})
	if doubt {
		applies = append(applies, finding.StatusCannotTell)
		if rep.Verdict == finding.Clean {
			rep.Verdict = finding.CannotTell
		}
	}
	rep.Status = finding.OrderStatus(applies...)
}

// state sums up what rules said of an object.
func (n *node) state() State {
	state := Plain
	if !n.seen {
		state = Unseen
	}
	for i := range n.results {
		switch r := &n.results[i]; {
		case r.Outcome == Fail && r.Finding.Severity.Rank() < finding.Note.Rank():
			return Hurt
		case r.Outcome == Unknown:
			state = Doubted
		case state != Doubted:
			state = Healthy
		}
	}
	return state
}

// shared gives what at least two machines rest on and one of them is sick: first what parts the sick from the
// healthy best, then that on which most of what is hurt rests, then what is hurt itself or was not looked at.
func shared(g *graph, machines []Patient) []Common {
	sick := map[string]bool{}
	for _, m := range machines {
		sick[m.Label] = m.Sick
	}
	type weighed struct {
		Common
		parts, hurt, state int
	}
	var all []weighed
	for _, n := range g.sorted() {
		w := weighed{Common: Common{Object: n.object, Sick: []string{}, Healthy: []string{}, Seen: n.seen}}
		for _, x := range n.reach(above) {
			label := x.object.On
			switch ill, known := sick[label]; {
			case !known || label == n.object.On:
			case ill:
				w.Sick = append(w.Sick, label)
			default:
				w.Healthy = append(w.Healthy, label)
			}
			if x.state() == Hurt {
				w.hurt++
			}
		}
		slices.Sort(w.Sick)
		slices.Sort(w.Healthy)
		w.Sick, w.Healthy = slices.Compact(w.Sick), slices.Compact(w.Healthy)
		w.parts = len(w.Sick) - len(w.Healthy)
		w.state = slices.Index([]State{Hurt, Unseen, Doubted, Plain, Healthy}, n.state())
		if len(w.Sick) > 0 && len(w.Sick)+len(w.Healthy) > 1 {
			all = append(all, w)
		}
	}
	slices.SortStableFunc(all, func(a, b weighed) int {
		return cmp.Or(cmp.Compare(b.parts, a.parts), cmp.Compare(b.hurt, a.hurt), cmp.Compare(a.state, b.state))
	})
	out := make([]Common, len(all))
	for i := range all {
		out[i] = all[i].Common
	}
	return out
}
