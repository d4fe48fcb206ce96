// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
)

// How an explanation is weighed. A fault is its own first evidence; it gains by each fault above it
// that it explains. It loses by what failed before it, since that has another cause, and by what rests
// on it and is well. What is harmless by nature hardly counts whatever it might explain.
const (
	earlierCosts = 1.5
	healthyCosts = 0.7
	hintCounts   = 0.1
	// unseenCounts is what an explanation by something that nobody looked at is worth against one that
	// was seen.
	unseenCounts = 0.8
	// clear is the share by which the first has to lead its rivals to be called likely.
	clear = 0.15
	// sameTime is how far apart the times of two machines, and of a fault and its message, may be.
	sameTime = 2 * time.Minute
)

// candidate is an explanation: a finding, or an object that was not looked at.
type candidate struct {
	at       *node
	f        *Finding // nil for an object that was not looked at
	score    float64
	terms    []Term
	explains []*Finding
	affects  []*node
}

// rank gives the causes of what was found.
func rank(g *graph) []Cause {
	r := &ranking{g: g}
	for _, n := range g.sorted() {
		for i := range n.results {
			if f := n.results[i].Finding; f != nil && n.results[i].Outcome == Fail {
				r.all = append(r.all, r.weigh(n, f))
			}
		}
	}
	for _, n := range g.sorted() {
		if n.open() && !slices.ContainsFunc(n.reach(on), (*node).open) {
			if c := r.weigh(n, nil); len(c.explains) > 1 && c.several() {
				r.all = append(r.all, c)
			}
		}
	}
	return r.causes()
}

// open tells of an object that may be the cause of something for all that is known: it was not looked at, or
// rules could not tell. Files and tasks carry nothing, and a share is no more than its server shows.
func (n *node) open() bool {
	switch n.object.Kind {
	case File, Task, Unit, Share:
		return false
	}
	s := n.state()
	return s == Unseen || s == Doubted
}

type ranking struct {
	g   *graph
	all []*candidate
}

// weigh adds up what speaks for an explanation and against it.
func (r *ranking) weigh(n *node, f *Finding) *candidate {
	c := &candidate{at: n, f: f, affects: n.burden()}
	times := 1.0
	upward := true
	if f != nil {
		c.term(f.Confidence*weight(f.Severity), n, "found: "+f.Summary)
		upward = f.Reach == Upward
		if f.Reach == Hint {
			times = hintCounts
		}
	} else {
		times = unseenCounts
	}
	well := []*node{}
	for _, d := range c.affects {
		faults := d.faults()
		if len(faults) == 0 && upward && d.well() && (f == nil || !slices.Contains(f.Affects, d.object)) {
			well = append(well, d)
		}
		for _, x := range faults {
			switch {
			case !upward || x.Reach == Hint || !follows(x, f):
			case f != nil && earlier(x, f):
				c.term(-earlierCosts, d, "failed before: "+x.Summary)
			default:
				c.explains = append(c.explains, x)
				c.term(x.Confidence, d, "explains: "+x.Summary)
			}
		}
	}
	sure := 0.5
	if f != nil {
		sure = f.Confidence
	}
	for _, d := range apart(well, c.explains, r.g) {
		c.term(-healthyCosts*sure, d, "rests on it and is well")
	}
	for i := range c.terms {
		c.terms[i].Value = math.Round(c.terms[i].Value*times*1000) / 1000
		c.score += c.terms[i].Value
	}
	c.score = math.Round(c.score*1000) / 1000
	return c
}

func (c *candidate) term(value float64, n *node, text string) {
	c.terms = append(c.terms, Term{Value: value, Object: n.object, Text: text})
}

// several tells whether what it explains is about several things, neither of which explains the other.
func (c *candidate) several() bool {
	var roots []Object
	for _, f := range c.explains {
		roots = append(roots, f.Object)
	}
	slices.SortFunc(roots, compareObjects)
	roots = slices.Compact(roots)
	n := 0
	for _, o := range roots {
		if !slices.ContainsFunc(c.at.from(o).reach(on), func(x *node) bool {
			return x != c.at && slices.Contains(roots, x.object)
		}) {
			n++
		}
	}
	return n > 1
}

// from gives the node of an object that rests on n.
func (n *node) from(o Object) *node {
	for _, x := range n.reach(above) {
		if x.object == o {
			return x
		}
	}
	return n
}

// follows tells whether a finding may be a sign of another one below it, nil for one that is not known. What was
// set, written, removed or filled is so by itself; a share is full if what it lies on is.
func follows(x, of *Finding) bool {
	if of != nil && restarts(of) {
		return x.Code == "TM08" // nothing else of the machine comes of a unit that restarts it
	}
	switch x.Code {
	case "BL05", "FS08", "FS09", "FS10", "IM02", "IM04", "LC01", "LC02", "ME01", "NF03", "NF04",
		"TM01", "TM02", "TM05", "TM07", "TM08", "TM09":
		return false
	case "NF02":
		return of == nil || of.Code == "FS08" || of.Code == "NF02"
	}
	return true
}

// weight is what a finding is worth by its harm.
func weight(s finding.Severity) float64 {
	return map[finding.Severity]float64{finding.Lost: 1, finding.Danger: 0.9, finding.Warning: 0.6,
		finding.Waste: 0.3, finding.Note: 0.2}[s]
}

// earlier tells whether x was there before f.
func earlier(x, f *Finding) bool {
	return !x.FirstSeen.IsZero() && !f.FirstSeen.IsZero() && x.FirstSeen.Add(sameTime).Before(f.FirstSeen)
}

// faults are the findings about an object that are worse than a note.
func (n *node) faults() []*Finding {
	var fs []*Finding
	for i := range n.results {
		f := n.results[i].Finding
		if n.results[i].Outcome == Fail && f != nil && f.Severity.Rank() < finding.Note.Rank() {
			fs = append(fs, f)
		}
	}
	return fs
}

// well tells whether rules said so of an object, and none else.
func (n *node) well() bool {
	passed := false
	for i := range n.results {
		switch n.results[i].Outcome {
		case Fail, Unknown:
			return false
		case Pass:
			passed = true
		}
	}
	return passed
}

// apart gives of the objects that are well one of each group that hangs together, without those that
// rest on something hurt or carry it: a mount that is well says no more than its file system.
func apart(well []*node, hurt []*Finding, g *graph) []*node {
	bad := map[*node]bool{}
	for _, f := range hurt {
		n := g.node(f.Object)
		bad[n] = true
		for _, x := range append(n.reach(on), n.reach(above)...) {
			bad[x] = true
		}
	}
	group := map[*node]bool{}
	for _, n := range well {
		group[n] = !bad[n]
	}
	var first []*node
	for _, n := range well {
		if !group[n] {
			continue
		}
		first = append(first, n)
		for todo := []*node{n}; len(todo) > 0; {
			at := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if group[at] {
				group[at] = false
				todo = append(append(todo, at.on...), at.above...)
			}
		}
	}
	return first
}

func on(n *node) []*node    { return n.on }
func above(n *node) []*node { return n.above }

// burden gives all that a fault of n may hurt: all above it, but for what rests on something with spares, of
// which n is one.
func (n *node) burden() []*node {
	return n.reach(func(x *node) []*node {
		if x != n && x.spare {
			return nil
		}
		return x.above
	})
}

// reach gives all nodes in one direction, without n, in the order of their names.
func (n *node) reach(way func(*node) []*node) []*node {
	seen := map[*node]bool{n: true}
	var out []*node
	for todo := []*node{n}; len(todo) > 0; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, x := range way(at) {
			if !seen[x] {
				seen[x] = true
				out, todo = append(out, x), append(todo, x)
			}
		}
	}
	slices.SortFunc(out, func(a, b *node) int { return compareObjects(a.object, b.object) })
	return out
}

// sorted gives all nodes in the order of their names.
func (g *graph) sorted() []*node {
	out := make([]*node, 0, len(g.nodes))
	for _, n := range g.nodes {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *node) int { return compareObjects(a.object, b.object) })
	return out
}

func compareObjects(a, b Object) int {
	return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.On, b.On),
		strings.Compare(a.Name, b.Name))
}
