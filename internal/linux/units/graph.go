// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"iter"
	"path"
	"slices"
	"strings"
)

// every gives all assignments of a setting that an empty one does not take back, as those that name other
// units.
func (u *Unit) every(section, key string) []Setting {
	var all []Setting
	for _, s := range u.Settings {
		if s.Section == section && s.Key == key && s.Value != "" {
			all = append(all, s)
		}
	}
	return all
}

// named gives the units that assignments of a setting name.
func (u *Unit) named(section, key string) []Start {
	var all []Start
	for _, s := range u.every(section, key) {
		for _, name := range words(s.Value) {
			if isTemplate(name) {
				name = instanceFor(u.Name, name)
			}
			if valid(name) {
				all = append(all, Start{From: u.Name, To: name, By: key + "=", Source: s.From})
			}
		}
	}
	return all
}

// starts gives what the start of a unit has started with it.
func (u *Unit) starts() []Start {
	if u.State != Loaded {
		return nil
	}
	var all []Start
	for _, key := range []string{"Requires", "BindsTo", "Wants", "Upholds"} {
		all = append(all, u.named("Unit", key)...)
	}
	all = append(all, u.named("Service", "Sockets")...)
	return append(append(all, u.Links...), u.byDefault()...)
}

// byDefault gives what most units need without saying so (DefaultDependencies= in systemd.unit(5)).
func (u *Unit) byDefault() []Start {
	switch u.Type() {
	case "service", "socket", "timer", "path":
	default:
		return nil
	}
	if s, ok := u.Last("Unit", "DefaultDependencies"); ok && isFalse(s.Value) {
		return nil
	}
	return []Start{{From: u.Name, To: "sysinit.target", By: "DefaultDependencies=", Source: Source{Path: u.Path}}}
}

// isFalse and isTrue understand booleans (parse_boolean() in src/basic/parse-util.c).
func isFalse(s string) bool {
	return slices.Contains([]string{"0", "no", "n", "false", "f", "off"}, strings.ToLower(s))
}

func isTrue(s string) bool {
	return slices.Contains([]string{"1", "yes", "y", "true", "t", "on"}, strings.ToLower(s))
}

// triggers gives the units that a unit starts when something happens: a timer elapses, a path appears, a
// socket is spoken to, the unit fails or succeeds.
func (u *Unit) triggers() []string {
	if u.State != Loaded {
		return nil
	}
	var all []string
	switch u.Type() {
	case "timer", "path", "automount":
		all = append(all, u.Triggered())
	case "socket":
		all = append(all, u.Triggered())
	}
	for _, key := range []string{"OnFailure", "OnSuccess"} {
		for _, s := range u.named("Unit", key) {
			all = append(all, s.To)
		}
	}
	return all
}

// Triggered gives the unit that a timer, path or socket starts: that of Unit= or Service=, or the one of the same
// name. It is "" for other types.
func (u *Unit) Triggered() string {
	prefix := strings.TrimSuffix(u.Name, path.Ext(u.Name))
	key, kind := "Unit", ".service"
	switch u.Type() {
	case "timer", "path":
	case "socket":
		key = "Service"
		if s, ok := u.Last("Socket", "Accept"); ok && isTrue(s.Value) {
			return ""
		}
	case "automount":
		return prefix + ".mount"
	default:
		return ""
	}
	if s, ok := u.Last(u.Section(), key); ok && valid(s.Value) {
		return s.Value
	}
	return prefix + kind
}

// Reached gives all units that are started when the roots are, without a timer that elapses, each with a
// chain of starts from a root to it, which is empty for the roots. Of the chains to a unit it is one without doubts, if
// there is one, and of those one of the shortest. Units that are masked or missing are not started, and so is no root
// that requires such a one. Systemd before 254 may start such a root all the same, as luck has it: then all chains from
// it begin with a start of the root by itself, that has a doubt and nothing else. Of a unit that is started whatever
// the luck the chain is one of the ways, and has no doubt of that kind.
func (s *Set) Reached(roots ...string) map[string][]Start {
	return s.reach(nil, roots)
}

// ReachedFirst is Reached for the first boot, which enables units by presets before.
func (s *Set) ReachedFirst(roots ...string) map[string][]Start {
	more := map[string][]Start{}
	for _, e := range s.FirstStarts {
		if u := s.Unit(e.From); u != nil {
			more[u.Name] = append(more[u.Name], e)
		}
	}
	return s.reach(more, roots)
}

func (s *Set) reach(more map[string][]Start, roots []string) map[string][]Start {
	w := walk{s: s, reached: map[string][]Start{}, more: more}
	for _, name := range roots {
		if u := s.Unit(name); u != nil {
			w.orders = append(w.orders, order{u, []Start{}})
		}
	}
	for len(w.orders) > 0 || len(w.doubtful) > 0 {
		if len(w.orders) == 0 {
			w.orders, w.doubtful = w.doubtful, nil
		}
		next := w.orders[0]
		w.orders = w.orders[1:]
		w.start(next)
	}
	return w.reached
}

// order is that a unit is to be started, with all that it starts, and the chain that leads to that.
type order struct {
	root  *Unit
	chain []Start
}

// walk goes along starts.
type walk struct {
	s       *Set
	reached map[string][]Start
	more    map[string][]Start // starts that no file has yet
	// orders are to be carried out, those in doubt when no others are left.
	orders, doubtful []order
}

// better tells whether a chain is the first to a unit, or the first without a doubt.
func (w *walk) better(u *Unit, chain []Start) bool {
	old, is := w.reached[u.Name]
	return !is || DoubtOf(old) != "" && DoubtOf(chain) == ""
}

// start goes along all starts that a start of one unit brings: first where there is no luck in it.
func (w *walk) start(o order) {
	if !w.better(o.root, o.chain) {
		return
	}
	c := w.s.outcome(o.root, w.more)
	switch {
	case c.root == No:
		return
	case c.root == Maybe && DoubtOf(o.chain) == "":
		e := Start{From: o.root.Name, To: o.root.Name, Doubt: o.root.Name + " requires " + w.s.Lacks(o.root.Name) +
			", which is not there: systemd before 254 starts it all the same at some starts, and not at others"}
		w.doubtful = append(w.doubtful, order{o.root, append(slices.Clone(o.chain), e)})
		return
	}
	chains := map[*Unit][]Start{o.root: o.chain}
	sure, luck := []*Unit{o.root}, []*Unit{}
	for len(sure) > 0 || len(luck) > 0 {
		if len(sure) == 0 {
			sure, luck = luck, nil
		}
		u := sure[0]
		sure = sure[1:]
		w.met(u, chains[u])
		for e := range w.s.along(u, w.more) {
			to := w.s.Unit(e.To)
			if _, is := chains[to]; is || c.units[to] == "" || w.s.Lacks(u.Name) != "" && !requires(e) && !c.past[u] {
				continue
			}
			chains[to] = append(slices.Clone(chains[u]), e)
			if c.units[to] == Yes && c.units[u] == Yes {
				sure = append(sure, to)
			} else {
				luck = append(luck, to)
			}
			w.doubt(chains[to], len(o.chain), &c)
		}
	}
}

// doubt says of the last start of a chain that it is luck, if it is and no other before it; n of the chain are not of
// this start. A unit that is started in any case has none of these doubts.
func (w *walk) doubt(chain []Start, n int, c *course) {
	e := &chain[len(chain)-1]
	switch to := w.s.Unit(e.To); {
	case c.units[to] == Yes:
		for i := n; i < len(chain); i++ {
			chain[i].Doubt = ""
		}
	case DoubtOf(chain[n:]) != "":
	case w.s.Lacks(e.From) != "":
		e.Doubt = e.From + " requires " + w.s.Lacks(e.From) + ", which is not there: it may be started all the same, or not"
	default:
		e.Doubt = to.Name + " requires " + w.s.Lacks(to.Name) + ", which is not there: systemd before 254 starts it all the same"
	}
}

// met notes a unit that is started, and the starts that come of that later.
func (w *walk) met(u *Unit, chain []Start) {
	if !w.better(u, chain) {
		return
	}
	w.reached[u.Name] = chain
	for _, e := range w.s.triggered(u) {
		to := w.s.Unit(e.To)
		if to == nil || !present(to) {
			continue
		}
		next := order{to, append(slices.Clone(chain), e)}
		if DoubtOf(next.chain) != "" {
			w.doubtful = append(w.doubtful, next)
		} else {
			w.orders = append(w.orders, next)
		}
	}
}

// outcome is what a start of a unit comes to, by the version of systemd.
func (s *Set) outcome(root *Unit, more map[string][]Start) course {
	old, now := course{root: No}, course{root: No}
	if s.Version < 254 && present(root) {
		old = s.course(root, more)
	}
	if s.Version > 0 && s.Version < 254 {
		return old
	}
	// Since 254 nothing is started that lacks something (https://github.com/systemd/systemd/pull/27852).
	if s.lacking[root.Name] == "" {
		now = course{root: Yes, units: map[*Unit]Truth{root: Yes}}
		for all := []*Unit{root}; len(all) > 0; all = all[1:] {
			for e := range s.along(all[0], more) {
				if to := s.Unit(e.To); s.lacking[to.Name] == "" && now.units[to] == "" {
					now.units[to] = Yes
					all = append(all, to)
				}
			}
		}
	}
	if s.Version >= 254 || old.root == No {
		return now
	}
	for u := range old.units { // which of both it is, is not known
		if now.units[u] == "" {
			old.units[u] = Maybe
		}
	}
	if now.root == No {
		old.root = Maybe
	}
	return old
}

// along gives the starts of a unit that a job of its own has besides: of units that are there, but for targets that
// end the system. Systemd drops those, since all that is started conflicts with them.
func (s *Set) along(u *Unit, more map[string][]Start) iter.Seq[Start] {
	return func(yield func(Start) bool) {
		for _, all := range [][]Start{s.edges[u.Name], more[u.Name]} {
			for _, e := range all {
				if to := s.Unit(e.To); to != nil && present(to) && targetOf(to.Name) == "" && !yield(e) {
					return
				}
			}
		}
	}
}

// triggered gives what a path has started as soon as it runs, since what it waits for is there.
func (s *Set) triggered(u *Unit) (all []Start) {
	if u.Type() != "path" {
		return nil
	}
	for _, p := range u.All("Path", "PathExists") {
		there := s.paths[path.Clean(p.Value)]
		if volatile(p.Value) {
			there = Maybe
		}
		switch there {
		case Yes:
			all = append(all, Start{From: u.Name, To: u.Triggered(), By: "PathExists=", Source: p.From})
		case Maybe:
			all = append(all, Start{From: u.Name, To: u.Triggered(), By: "PathExists=", Source: p.From,
				Doubt: "whether there is " + p.Value + " at a start is not known"})
		}
	}
	return all
}

// present tells whether systemd has a unit that it could start.
func present(u *Unit) bool {
	return u.State == Loaded || u.State == Missing && without(u.Name)
}

// Lacks gives the unit for want of which another one cannot be started: itself if it is masked or missing, or one
// that it requires. It is "" if all are there.
func (s *Set) Lacks(name string) string {
	u := s.Unit(name)
	if u == nil {
		return name
	}
	return s.lacking[u.Name]
}

// connect notes what each unit starts, and which cannot be started for want of others.
func (s *Set) connect() {
	needed := map[string][]string{} // by whom
	var queue []string
	lack := func(name, what string) {
		if _, known := s.lacking[name]; !known {
			s.lacking[name] = what
			queue = append(queue, name)
		}
	}
	for _, u := range s.Units {
		s.edges[u.Name] = u.starts()
		if s.absent(u) {
			lack(u.Name, u.Name)
		}
	}
	for _, u := range s.Units {
		for _, e := range s.edges[u.Name] {
			if !requires(e) {
				continue
			}
			if to := s.Unit(e.To); to != nil {
				needed[to.Name] = append(needed[to.Name], u.Name)
			} else {
				lack(u.Name, e.To)
			}
		}
		for _, e := range u.named("Unit", "Requisite") { // has to run already, which needs no more than it itself
			if to := s.Unit(e.To); !s.Flat && (to == nil || s.absent(to)) {
				lack(u.Name, e.To)
			}
		}
	}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		for _, by := range needed[name] {
			lack(by, s.lacking[name])
		}
	}
}
