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
				all = append(all, Start{u.Name, name, key + "=", s.From})
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
	return []Start{{u.Name, "sysinit.target", "DefaultDependencies=", Source{Path: u.Path}}}
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
// chain of starts from a root to it, which is empty for the roots. Units that do not start are left out: those
// that are masked or missing, and those that require such a one.
func (s *Set) Reached(roots ...string) map[string][]Start {
	reached := map[string][]Start{}
	var queue []string
	for _, name := range roots {
		if u := s.Unit(name); u != nil && s.startable(u) && reached[u.Name] == nil {
			reached[u.Name] = []Start{}
			queue = append(queue, u.Name)
		}
	}
	for len(queue) > 0 {
		u := s.Unit(queue[0])
		chain := reached[u.Name]
		queue = queue[1:]
		for _, e := range s.pulled(u) {
			to := s.Unit(e.To)
			if to == nil || reached[to.Name] != nil || !s.startable(to) {
				continue
			}
			reached[to.Name] = append(slices.Clone(chain), e)
			queue = append(queue, to.Name)
		}
	}
	return reached
}

// pulled gives all starts of a unit, those of paths that exist already among them.
func (s *Set) pulled(u *Unit) []Start { return u.starts() }

// startable tells whether systemd would take a unit into a transaction: it is loaded, and so is all that
// it requires (transaction_add_job_and_dependencies()).
func (s *Set) startable(u *Unit) bool {
	return s.lacks(u, map[string]bool{}) == ""
}

// lacks gives the unit for want of which another one is not started, "" if there is none.
func (s *Set) lacks(u *Unit, seen map[string]bool) string {
	if seen[u.Name] {
		return ""
	}
	seen[u.Name] = true
	if u.State != Loaded && !(u.State == Missing && without(u.Name)) {
		return u.Name
	}
	for _, e := range u.starts() {
		switch e.By {
		case "Requires=", "BindsTo=", "requires link", "DefaultDependencies=":
		default:
			continue
		}
		if to := s.Unit(e.To); to == nil {
			return e.To
		} else if name := s.lacks(to, seen); name != "" {
			return name
		}
	}
	return ""
}
