// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
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
// it begin with a start of the root by itself, that has a doubt and nothing else.
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
		u := s.Unit(name)
		if u == nil || w.reached[u.Name] != nil {
			continue
		}
		if lacks := s.Lacks(u.Name); lacks == "" {
			w.reached[u.Name] = []Start{}
			w.queue = append(w.queue, u)
		} else if s.mayStart(u, more) {
			w.doubtful = append(w.doubtful, Start{From: u.Name, To: u.Name, Doubt: u.Name + " requires " + lacks +
				", which is not there: systemd before 254 starts it all the same at some starts, and not at others"})
		}
	}
	w.run()
	return w.reached
}

// walk goes along starts.
type walk struct {
	s       *Set
	reached map[string][]Start
	queue   []*Unit
	more    map[string][]Start // starts that no file has yet
	// doubtful are starts that are gone along when no others are left.
	doubtful []Start
}

func (w *walk) run() {
	for {
		for len(w.queue) > 0 {
			u := w.queue[0]
			w.queue = w.queue[1:]
			lacks := w.s.Lacks(u.Name)
			for _, e := range w.s.pulled(u) {
				w.take(e, lacks)
			}
			for _, e := range w.more[u.Name] {
				w.take(e, lacks)
			}
		}
		if len(w.doubtful) == 0 {
			return
		}
		e := w.doubtful[0]
		w.doubtful = w.doubtful[1:]
		if to := w.s.Unit(e.To); w.reached[to.Name] == nil {
			w.add(e, to)
		}
	}
}

// take goes along a start. lacks is what its unit lacks itself.
func (w *walk) take(e Start, lacks string) {
	to := w.s.Unit(e.To)
	if to == nil || w.reached[to.Name] != nil || !present(to) {
		return
	}
	// Before systemd 254 a unit that is wanted is started even if what it requires cannot be; what it pulls in
	// besides may be or may not (https://github.com/systemd/systemd/pull/27852).
	gone, old := w.s.Lacks(to.Name), w.s.Version > 0 && w.s.Version < 254
	if targetOf(to.Name) != "" && e.By != "PathExists=" {
		return // systemd drops it from the transaction: all that is started conflicts with it
	}
	switch {
	case gone != "" && w.s.Version >= 254:
		return
	case lacks != "":
		e.Doubt = e.From + " requires " + lacks + ", which is not there: it may be started all the same, or not"
	case gone != "" && !old:
		e.Doubt = to.Name + " requires " + gone + ", which is not there: systemd before 254 starts it all the same"
	}
	if e.Doubt != "" {
		w.doubtful = append(w.doubtful, e)
		return
	}
	w.add(e, to)
}

func (w *walk) add(e Start, to *Unit) {
	from := w.s.Unit(e.From)
	w.reached[to.Name] = append(slices.Clone(w.reached[from.Name]), e)
	w.queue = append(w.queue, to)
}

// pulled gives all starts of a unit, those of paths that exist already among them.
func (s *Set) pulled(u *Unit) []Start {
	all := s.edges[u.Name]
	if u.Type() != "path" {
		return all
	}
	all = slices.Clone(all)
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
		if !present(u) && !(s.Flat && u.State == Missing) { // a plain directory's system will have it
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
			if to := s.Unit(e.To); (to == nil || !present(to)) && !s.Flat {
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
