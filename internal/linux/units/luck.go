// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import "maps"

// maxLuck bounds the units that are looked at to tell whether a root may be started; beyond, it is said to.
const maxLuck = 200000

// luck tells whether systemd before 254 may start a root that requires what is not there.
//
// It goes from a unit to what that one requires, then to what it wants, and then asks for what has to run
// already (transaction_add_job_and_dependencies() in src/core/transaction.c). What it met before it takes as it
// is. So it does not see that such a one cannot be started, if that was first met below something that is
// only wanted, whose failure is let pass. In which order it takes what one unit requires is that of a hash
// table, which is another one at each start: multi-user.target that requires basic.target and timers.target,
// of which the first wants the second, is now started and now not, if timers.target lacks something.
type luck struct {
	s    *Set
	more map[string][]Start
	on   map[string]bool // units that are being gone through
	left int
}

// mayStart tells whether there may be an order in which a root is started that lacks something. What it
// denies is sure.
func (s *Set) mayStart(u *Unit, more map[string][]Start) bool {
	if s.Version >= 254 || !present(u) {
		return false
	}
	l := luck{s: s, more: more, on: map[string]bool{}, left: maxLuck}
	return l.may(u, map[string]bool{})
}

// may goes through a unit that is met for the first time, and is required. before are the units that may have
// been met, below something that is only wanted.
func (l *luck) may(u *Unit, before map[string]bool) bool {
	if l.s.lacksDirectly(u) {
		return false
	}
	l.on[u.Name] = true
	defer delete(l.on, u.Name)
	var hard []*Unit
	for _, e := range l.starts(u) {
		if to := l.s.Unit(e.To); requires(e) && to != nil && present(to) {
			hard = append(hard, to)
		}
	}
	done := map[*Unit]bool{}
	for _, to := range hard {
		if done[to] || l.on[to.Name] || before[to.Name] || l.s.lacking[to.Name] == "" {
			continue
		}
		done[to] = true
		met := maps.Clone(before)
		l.left -= len(met)
		l.below(hard, to, met)
		if l.left > 0 && !met[to.Name] && !l.may(to, met) {
			return false
		}
	}
	return true
}

// below adds the units that lie below something that is wanted by units, or by what these require, but for those below
// one of them.
func (l *luck) below(from []*Unit, but *Unit, met map[string]bool) {
	type step struct {
		u    *Unit
		soft bool
	}
	var queue []step
	seen := map[step]bool{}
	add := func(x step) {
		if seen[x] || l.on[x.u.Name] || l.left <= 0 {
			return
		}
		seen[x] = true
		if x.soft {
			met[x.u.Name] = true
		}
		queue = append(queue, x)
	}
	for _, u := range from {
		if u != but {
			add(step{u, false})
		}
	}
	for len(queue) > 0 && l.left > 0 {
		x := queue[0]
		queue = queue[1:]
		for _, e := range l.starts(x.u) {
			l.left--
			if to := l.s.Unit(e.To); to != nil && present(to) {
				add(step{to, x.soft || !requires(e)})
			}
		}
	}
}

// DoubtOf gives the first doubt of a chain of starts, "" if there is none.
func DoubtOf(chain []Start) string {
	for _, e := range chain {
		if e.Doubt != "" {
			return e.Doubt
		}
	}
	return ""
}

// starts gives what a unit has started with it, and what presets add to that.
func (l *luck) starts(u *Unit) []Start {
	all, more := l.s.edges[u.Name], l.more[u.Name]
	if len(more) == 0 {
		return all
	}
	return append(all[:len(all):len(all)], more...)
}

// requires tells whether a unit cannot be started where what it starts cannot be.
func requires(e Start) bool {
	switch e.By {
	case "Requires=", "BindsTo=", "requires link", "DefaultDependencies=":
		return true
	}
	return false
}

// lacksDirectly tells whether a unit itself requires one that is not there, or has it run already.
func (s *Set) lacksDirectly(u *Unit) bool {
	gone := func(name string) bool {
		to := s.Unit(name)
		return to == nil || !present(to) && !(s.Flat && to.State == Missing)
	}
	for _, e := range s.edges[u.Name] {
		if requires(e) && gone(e.To) {
			return true
		}
	}
	for _, e := range u.named("Unit", "Requisite") {
		if !s.Flat && gone(e.To) {
			return true
		}
	}
	return false
}
