// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import "slices"

// maxLuck bounds what is looked at of the orders of one start; beyond it all that may hang on them is doubted.
const maxLuck = 500_000

// course is what one start of a root comes to.
type course struct {
	// root tells whether the root is started: Maybe if that is luck.
	root Truth
	// units are those that are started with it, if it is: Yes, or Maybe if that is luck.
	units map[*Unit]Truth
	// past are units that lack something, and have what they want started all the same, at least at times.
	past map[*Unit]bool
}

// luck finds out what systemd before 254 makes of units that require what is not there.
//
// For a unit that it meets for the first time it notes a job, and then goes to all that the unit requires, then to
// what it wants, then asks for what has to run already (transaction_add_job_and_dependencies() in
// src/core/transaction.c). What it met before it takes as it is. If something that is required cannot be started
// it leaves the unit at once, to whoever required that; if something that is wanted cannot, it goes on. The jobs
// that were noted stay. In which order it takes what one unit requires, or wants, is that of a hash table, another one at each
// start. So there is luck only where a unit is met that lacks something, and only in this:
//
//	what it requires besides     is started if it is met before that which fails
//	what it wants                is not started, but if all that it requires and that fails was met before, below
//	                             something that is only wanted
//	a root that lacks something  is started in that case, and in no other
//
// Here all orders are gone through, of those units only from which one leads to a unit that lacks something: no others
// can make a difference.
type luck struct {
	nodes []crossing
	of    map[*Unit]int
	known map[visit][]end
	left  int
}

// crossing is a unit from which one leads to a unit that lacks something.
type crossing struct {
	u *Unit
	// hard and soft are the nodes that it requires, and that it wants.
	hard, soft []int
	// gone: it requires one that is not there. late: it is to have one run already that is not there.
	gone, late bool
	lacks      bool
}

// met is which nodes were met: a bit for each, and after those a bit for each that lacks something and had no failure
// of what it requires.
type met string

func (m met) has(i int) bool { return m[i/8]&(1<<(i%8)) != 0 }

func (m met) with(i int) met {
	b := []byte(m)
	b[i/8] |= 1 << (i % 8)
	return met(b)
}

// visit is that systemd comes to a node.
type visit struct {
	node   int
	before met
}

// end is one way in which a visit ends.
type end struct {
	met met
	ok  bool
}

// course finds out what becomes of a start of a root by systemd before 254.
func (s *Set) course(root *Unit, more map[string][]Start) course {
	below := s.below(root, more)
	c := course{root: Yes, units: map[*Unit]Truth{}, past: map[*Unit]bool{}}
	if !slices.ContainsFunc(below, func(u *Unit) bool { return s.lacking[u.Name] != "" }) {
		for _, u := range below {
			c.units[u] = Yes
		}
		return c
	}
	l := s.newLuck(below, more)
	ends := l.visit(visit{l.of[root], met(make([]byte, (2*len(l.nodes)+7)/8))})
	if l.left <= 0 {
		return s.unsettled(root, below, more)
	}
	failed := len(ends)
	ends = slices.DeleteFunc(slices.Clone(ends), func(e end) bool { return !e.ok })
	if failed -= len(ends); failed > 0 {
		c.root = Maybe
	}
	if len(ends) == 0 {
		return course{root: No}
	}
	counts := map[*Unit]int{}
	for _, e := range ends {
		for u, t := range l.started(s, e.met, more) {
			if c.units[u] = Maybe; t == Yes {
				counts[u]++
			}
		}
		for i := range l.nodes {
			if e.met.has(len(l.nodes) + i) {
				c.past[l.nodes[i].u] = true
			}
		}
	}
	for u, n := range counts {
		if n == len(ends) {
			c.units[u] = Yes
		}
	}
	return c
}

// below gives all units to which one comes from a root, in the order in which one does.
func (s *Set) below(root *Unit, more map[string][]Start) []*Unit {
	all, seen := []*Unit{root}, map[*Unit]bool{root: true}
	for i := 0; i < len(all); i++ {
		for e := range s.along(all[i], more) {
			if to := s.Unit(e.To); !seen[to] {
				seen[to] = true
				all = append(all, to)
			}
		}
	}
	return all
}

// newLuck makes nodes of the units from which one comes to one that lacks something.
func (s *Set) newLuck(below []*Unit, more map[string][]Start) *luck {
	l := &luck{of: map[*Unit]int{}, known: map[visit][]end{}, left: maxLuck}
	by := map[*Unit][]*Unit{}
	var queue []*Unit
	for _, u := range below {
		for e := range s.along(u, more) {
			by[s.Unit(e.To)] = append(by[s.Unit(e.To)], u)
		}
		if s.lacking[u.Name] != "" {
			l.of[u] = len(l.nodes)
			l.nodes = append(l.nodes, crossing{u: u})
			queue = append(queue, u)
		}
	}
	for len(queue) > 0 {
		u := queue[0]
		queue = queue[1:]
		for _, from := range by[u] {
			if _, known := l.of[from]; !known {
				l.of[from] = len(l.nodes)
				l.nodes = append(l.nodes, crossing{u: from})
				queue = append(queue, from)
			}
		}
	}
	for i := range l.nodes {
		n := &l.nodes[i]
		n.lacks = s.lacking[n.u.Name] != ""
		n.gone, n.late = s.lacksDirectly(n.u)
		for e := range s.along(n.u, more) {
			to, is := l.of[s.Unit(e.To)]
			switch {
			case is && requires(e):
				n.hard = append(n.hard, to)
			case is:
				n.soft = append(n.soft, to)
			}
		}
		n.hard, n.soft = sorted(n.hard), sorted(n.soft)
	}
	return l
}

func sorted(all []int) []int {
	slices.Sort(all)
	return slices.Compact(all)
}

// visit gives all ways in which a visit ends.
func (l *luck) visit(v visit) []end {
	if v.before.has(v.node) {
		return []end{{v.before, true}}
	}
	if all, known := l.known[v]; known || l.left <= 0 {
		return all
	}
	l.left -= 1 + len(v.before)/64 // which is kept
	n := &l.nodes[v.node]
	all := map[end]bool{}
	for m := range l.each(n.hard, v.before.with(v.node), n.lacks, n.gone, all) {
		if n.lacks {
			m = m.with(len(l.nodes) + v.node)
		}
		for m := range l.each(n.soft, m, false, false, nil) {
			all[end{m, !n.late}] = true
		}
	}
	ends := make([]end, 0, len(all))
	for e := range all {
		ends = append(ends, e)
	}
	l.known[v] = ends
	return ends
}

// each goes to some nodes in each order, and gives what was met if none failed. fails: they are required, and one of
// them may fail; gone: one that is not there is among them. Then the ways in which that ends are added to ends. Without
// that it makes no difference in which order nodes are taken that have nothing in common.
func (l *luck) each(to []int, from met, fails, gone bool, ends map[end]bool) map[met]bool {
	done := map[met]bool{}
	seen, queue := map[met]bool{from: true}, []met{from}
	for len(queue) > 0 && l.left > 0 {
		m := queue[0]
		queue = queue[1:]
		l.left -= len(to) / 16
		rest := slices.DeleteFunc(slices.Clone(to), m.has)
		if gone {
			ends[end{m, false}] = true
		}
		if len(rest) == 0 && !gone {
			done[m] = true
		}
		if !fails {
			rest = l.together(rest, m)
		}
		for _, i := range rest {
			for _, e := range l.visit(visit{i, m}) {
				l.left -= 1 + len(m)/64
				if fails && !e.ok {
					ends[end{e.met, false}] = true
					continue
				}
				if !fails {
					e.met = l.settled(to, e.met)
				}
				if !seen[e.met] {
					seen[e.met] = true
					queue = append(queue, e.met)
				}
			}
		}
	}
	return done
}

// started gives the units that have jobs where some nodes were met, Maybe those that hang on the order besides: what a
// unit requires that no failure can come from, and whose turn is before or after that which fails.
func (l *luck) started(s *Set, m met, more map[string][]Start) map[*Unit]Truth {
	all := map[*Unit]Truth{}
	var sure, perhaps []*Unit
	for i := range l.nodes {
		if m.has(i) {
			all[l.nodes[i].u] = Yes
			sure = append(sure, l.nodes[i].u)
		}
	}
	for i := 0; i < len(sure); i++ {
		at, is := l.of[sure[i]]
		failed := is && l.nodes[at].lacks && !m.has(len(l.nodes)+at)
		for e := range s.along(sure[i], more) {
			to := s.Unit(e.To)
			if _, is := l.of[to]; is || all[to] == Yes || failed && !requires(e) {
				continue
			}
			if failed {
				perhaps = append(perhaps, to)
				continue
			}
			all[to] = Yes
			sure = append(sure, to)
		}
	}
	for i := 0; i < len(perhaps); i++ {
		if all[perhaps[i]] != "" {
			continue
		}
		all[perhaps[i]] = Maybe
		for e := range s.along(perhaps[i], more) {
			perhaps = append(perhaps, s.Unit(e.To))
		}
	}
	return all
}

// unsettled is the course of a start that has too many orders: what does not hang on any is sure, the rest is doubted.
func (s *Set) unsettled(root *Unit, below []*Unit, more map[string][]Start) course {
	c := course{root: Yes, units: map[*Unit]Truth{}, past: map[*Unit]bool{}}
	for _, u := range below {
		c.units[u] = Maybe
		c.past[u] = true
	}
	sure := []*Unit{root}
	for i := 0; i < len(sure); i++ {
		if c.units[sure[i]] = Yes; s.lacking[sure[i].Name] != "" {
			continue
		}
		for e := range s.along(sure[i], more) {
			if to := s.Unit(e.To); c.units[to] == Maybe {
				c.units[to] = Yes
				sure = append(sure, to)
			}
		}
	}
	if s.lacking[root.Name] != "" {
		c.root = Maybe
		if gone, late := s.lacksDirectly(root); gone || late {
			c.root = No
		}
	}
	return c
}

// requires tells whether a unit cannot be started where what it starts cannot be.
func requires(e Start) bool {
	switch e.By {
	case "Requires=", "BindsTo=", "requires link", "DefaultDependencies=":
		return true
	}
	return false
}

// lacksDirectly tells whether a unit itself requires one that is not there, and whether it is to have such a one
// run already.
func (s *Set) lacksDirectly(u *Unit) (gone, late bool) {
	for _, e := range s.edges[u.Name] {
		if to := s.Unit(e.To); requires(e) && (to == nil || s.absent(to)) {
			gone = true
		}
	}
	for _, e := range u.named("Unit", "Requisite") {
		if to := s.Unit(e.To); !s.Flat && (to == nil || s.absent(to)) {
			late = true
		}
	}
	return gone, late
}

// absent tells of a unit that it is not there. The system that a plain directory is meant for is taken to have it.
func (s *Set) absent(u *Unit) bool { return !present(u) && !(s.Flat && u.State == Missing) }

// DoubtOf gives the first doubt of a chain of starts, "" if there is none.
func DoubtOf(chain []Start) string {
	for _, e := range chain {
		if e.Doubt != "" {
			return e.Doubt
		}
	}
	return ""
}
