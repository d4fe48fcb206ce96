// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// causes takes the best explanation, with all that it explains, then the best of the rest, and so on.
func (r *ranking) causes() []Cause {
	slices.SortStableFunc(r.all, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(b.score, a.score), compareObjects(a.at.object, b.at.object),
			cmp.Compare(codeOf(a.f), codeOf(b.f)))
	})
	explained := map[*Finding]bool{}
	out := []Cause{}
	for _, harmless := range []bool{false, true} {
		for _, c := range r.all {
			if explained[c.f] || c.harmless() != harmless || c.f == nil && !c.news(explained) {
				continue
			}
			if c.f != nil {
				explained[c.f] = true
				c.alsoThere(explained)
			}
			out = append(out, r.cause(c, explained))
			for _, f := range c.explains {
				explained[f] = true
			}
		}
	}
	return out
}

func codeOf(f *Finding) string {
	if f == nil {
		return ""
	}
	return f.Code
}

// alsoThere takes in what else was found about the same object, and about the spares that it has lost: it is
// one fault with several signs.
func (c *candidate) alsoThere(explained map[*Finding]bool) {
	signs := c.at.faults()
	if c.at.spare {
		for _, low := range c.at.on {
			signs = append(signs, low.faults()...)
		}
	}
	for _, f := range signs {
		if f != c.f && !explained[f] && f.Reach != Hint && !c.harmless() {
			c.explains = append(c.explains, f)
		}
	}
}

// harmless explanations come last, whatever their score.
func (c *candidate) harmless() bool {
	return c.f != nil && (c.f.Reach == Hint || c.f.Severity.Rank() >= finding.Waste.Rank())
}

// news tells whether it explains at least two findings that nothing better does.
func (c *candidate) news(explained map[*Finding]bool) bool {
	n := 0
	for _, f := range c.explains {
		if !explained[f] {
			n++
		}
	}
	return n > 1
}

// cause says how sure an explanation is, given those before it.
func (r *ranking) cause(c *candidate, explained map[*Finding]bool) Cause {
	out := Cause{Certainty: LikelyCause, Object: c.at.object, Score: c.score, Terms: c.terms,
		Explains: []string{}, Affects: []Object{}, Rivals: []Rival{}}
	for _, n := range c.affects {
		out.Affects = append(out.Affects, n.object)
	}
	for _, f := range c.explains {
		if !explained[f] {
			out.Explains = append(out.Explains, f.ID)
		}
	}
	for _, x := range r.all {
		if r.rival(c, x) && x.score > 0 && x.score > c.score*(1-clear) && !explained[x.f] {
			rival := Rival{Object: x.at.object, Score: x.score}
			if x.f != nil {
				rival.Finding = x.f.ID
			}
			out.Rivals = append(out.Rivals, rival)
		}
	}
	if c.f != nil {
		out.Finding = c.f.ID
	}
	switch {
	case len(out.Rivals) > 0:
	case c.f == nil:
		out.Rivals = append(out.Rivals, r.between(c)...)
	case follows(c.f, nil):
		out.Rivals = append(out.Rivals, c.below()...)
	}
	switch {
	case !slices.ContainsFunc(c.explains, func(f *Finding) bool { return f.Object != c.at.object }):
		out.Certainty, out.Rivals = Alone, []Rival{}
	case len(out.Rivals) > 0:
		out.Certainty = NotCertain
	case c.f == nil:
		out.Certainty = NotLookedAt
	}
	return out
}

// below gives the deepest objects that a fault may come from, if they were not looked at: it can be no more than
// a sign of those.
func (c *candidate) below() []Rival {
	var out []Rival
	for _, n := range c.at.reach(on) {
		if c.at.object.Kind == Mount && n.object.Kind == FileSystem && slices.Contains(c.at.on, n) {
			continue // of one that does not answer nothing can be told either
		}
		if n.open() && !slices.ContainsFunc(n.reach(on), (*node).open) {
			out = append(out, Rival{Object: n.object})
		}
	}
	return out
}

// between gives what rests on an object that was not looked at, was not looked at either, and explains as much.
func (r *ranking) between(c *candidate) []Rival {
	var out []Rival
	for _, n := range c.affects {
		if !n.open() {
			continue
		}
		if x := r.weigh(n, nil); len(x.explains) >= len(c.explains) {
			out = append(out, Rival{Object: n.object, Score: x.score})
		}
	}
	return out
}

// rival tells whether x explains something that c explains, and neither explains the other.
func (r *ranking) rival(c, x *candidate) bool {
	if x.at == c.at || x.harmless() {
		return false
	}
	if x.f != nil && slices.Contains(c.explains, x.f) || c.f != nil && slices.Contains(x.explains, c.f) {
		return false
	}
	return slices.ContainsFunc(x.explains, func(f *Finding) bool { return slices.Contains(c.explains, f) })
}
