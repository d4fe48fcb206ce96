// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// build makes the units of their files, and of the names that they name.
func (l *loader) build(ctx context.Context) {
	names := make([]string, 0, len(l.names))
	for name := range l.names {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if at := l.fileOf(name); at != "" && !l.read(ctx, at).masked {
			l.aliases[at] = append(l.aliases[at], name)
		}
	}
	for _, name := range append(names, "default.target") {
		l.unit(ctx, name)
	}
	for name := range l.usual {
		l.unit(ctx, name)
	}
	if l.Flat {
		l.enableAll(ctx)
	} else {
		l.rcLocal(ctx)
		l.firstBoot(ctx)
	}
	for i := 0; i < len(l.Units) && ctx.Err() == nil; i++ {
		for _, e := range append(l.Units[i].starts(), l.Units[i].named("Unit", "Requisite")...) {
			l.unit(ctx, e.To)
		}
		for _, name := range l.Units[i].triggers() {
			l.unit(ctx, name)
		}
	}
	for _, u := range l.Units {
		if all := l.installs(ctx, u); len(all) > 0 {
			l.wanted[u.Name] = all
		}
		for _, e := range u.Links {
			if to := l.byName[e.To]; to != nil {
				l.linked[to.Name] = append(l.linked[to.Name], e)
			}
		}
	}
	slices.SortFunc(l.Units, func(a, b *Unit) int { return strings.Compare(a.Name, b.Name) })
	l.connect()
	if u := l.byName["default.target"]; u != nil && u.State == Loaded {
		l.Default = u.Name
	}
}

// rcLocal starts rc-local.service where there is an /etc/rc.local, as systemd-rc-local-generator does at each
// start. What it makes is in /run, which a copy does not have.
func (l *loader) rcLocal(ctx context.Context) {
	u, by := l.byName["rc-local.service"], l.byName["multi-user.target"]
	if u == nil || by == nil || l.exists(ctx, "/etc/rc.local") != Yes ||
		slices.ContainsFunc(by.Links, func(e Start) bool { return e.To == u.Name }) {
		return
	}
	by.Links = append(by.Links, Start{From: by.Name, To: u.Name, By: "systemd-rc-local-generator",
		Source: Source{Path: "/etc/rc.local"}, Doubt: "/etc/rc.local runs only if it is executable"})
}

// fileOf gives the file of a name, along names that lead to names; "" if there is none.
func (l *loader) fileOf(name string) string {
	for range maxAlias {
		to := l.names[name]
		if to == "" || to[0] == '/' {
			return to
		}
		name = to
	}
	return ""
}

// unit gives the unit of a name, and makes it where it is new (unit_file_find_fragment() and
// unit_load_fragment()).
func (l *loader) unit(ctx context.Context, name string) *Unit {
	if u := l.byName[name]; u != nil || !valid(name) {
		return u
	}
	if len(l.byName) >= maxNames {
		l.gap(name, fmt.Errorf("there are more than %d names of units, the rest is not read", maxNames))
		return nil
	}
	at := l.fileOf(name)
	if at == "" {
		if template := templateOf(name); template != "" {
			at = l.fileOf(template)
		}
	}
	u := &Unit{Name: name, Path: at, State: Missing}
	if text := l.usual[name]; at == "" && text != "" {
		u.State = Loaded
		u.Settings, _, _ = parse(name, text)
	}
	if at != "" {
		u.Name = path.Base(at)
		if isTemplate(u.Name) && !isTemplate(name) {
			_, instance, _, _ := parts(name)
			u.Name = withInstance(u.Name, instance)
		}
	}
	if known := l.byName[u.Name]; known != nil {
		l.alias(known, name)
		return known
	}
	l.byName[u.Name] = u
	l.Units = append(l.Units, u)
	l.alias(u, name)
	l.otherNames(u)
	l.fill(ctx, u)
	return u
}

// alias gives a unit one more name.
func (l *loader) alias(u *Unit, name string) {
	if l.byName[name] == nil {
		l.byName[name] = u
	}
	if name != u.Name && l.byName[name] == u && !slices.Contains(u.Aliases, name) {
		u.Aliases = append(u.Aliases, name)
	}
}

// otherNames gives a unit the names that lead to its file.
func (l *loader) otherNames(u *Unit) {
	_, instance, _, _ := parts(u.Name)
	for _, n := range l.aliases[u.Path] {
		switch {
		case isTemplate(n) && isInstance(u.Name):
			l.alias(u, withInstance(n, instance))
		case isInstance(n) && isInstance(u.Name):
			if _, other, _, _ := parts(n); other == instance {
				l.alias(u, n)
			}
		case isTemplate(n) == isTemplate(u.Name) && isInstance(n) == isInstance(u.Name):
			l.alias(u, n)
		}
	}
}

// fill reads the settings of a unit: its file, then what adds to it.
func (l *loader) fill(ctx context.Context, u *Unit) {
	if u.State == Loaded {
		l.links(u)
		return
	}
	if u.Path != "" {
		f := l.read(ctx, u.Path)
		u.State = Loaded
		switch {
		case f.masked:
			u.State = Masked
			return
		case f.missing: // a link that leads nowhere
			u.State, u.Path = Missing, ""
		case f.bad != "":
			u.State, u.Why = Bad, f.bad
		case f.unread != "":
			u.State, u.Why = Unreadable, f.unread
		case isTemplate(u.Name):
			u.State = Template
		}
		u.Settings = append(u.Settings, f.settings...)
		if i := broken(u, f.settings); i >= 0 && u.State == Loaded {
			u.State, u.Why = Bad, f.settings[i].Key+"= is not understood"
			return
		}
	}
	if u.State == Missing && !without(u.Name) {
		return
	}
	for _, name := range l.dropIns(u) {
		f := l.read(ctx, name)
		switch {
		case f.missing:
			continue
		case f.bad != "" && u.State == Loaded: // systemd goes on without the rest of that file
		case f.unread != "" && u.State == Loaded:
			u.State, u.Why = Unreadable, name+": "+f.unread
		}
		u.DropIns = append(u.DropIns, name)
		more := f.settings
		if i := broken(u, more); i >= 0 {
			more = more[:i]
		}
		u.Settings = append(u.Settings, more...)
	}
	if u.State != Template {
		l.replace(u)
	}
	if u.State == Loaded {
		if why := refused(u); why != "" {
			u.State, u.Why = Bad, why
		}
	}
	l.links(u)
}

// without tells of types whose units need no file: what is mounted, plugged in, or a slice.
func without(name string) bool {
	switch typeOf(name) {
	case "device", "mount", "swap", "slice", "scope":
		return true
	}
	return false
}

// dropIns gives the files that add to a unit, in the order of their names; of two files of one name the
// first counts (unit_file_find_dropin_paths() in src/shared/dropin.c).
func (l *loader) dropIns(u *Unit) []string {
	var all []entry
	for _, e := range l.beside(u, ".d") {
		if strings.HasSuffix(e.name, ".conf") && !e.kind.IsDir() {
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	var names []string
	for i := range all {
		if all[i].link != "/dev/null" && len(names) < maxDropIn {
			names = append(names, all[i].path())
		}
	}
	return names
}

// beside gives what is in the directories of a unit with an ending, of each name that which wins.
func (l *loader) beside(u *Unit, ending string) []entry {
	var all []entry
	seen := map[string]bool{}
	take := func(dir string) {
		for _, e := range l.sub[dir] {
			if !seen[e.name] {
				seen[e.name] = true
				all = append(all, e)
			}
		}
	}
	for _, name := range append([]string{u.Name}, u.Aliases...) {
		for _, dir := range l.dirs {
			for _, n := range general(name) {
				take(path.Join(dir, n+ending))
			}
		}
	}
	for _, dir := range l.dirs {
		take(path.Join(dir, u.Type()+ending))
	}
	return all
}

// general gives the names by which settings are added to a unit, the nearest first: its own, that of its
// template, and those that "-" ends (unit_file_process_dir()): foo-bar.service, foo-.service.
func general(name string) []string {
	all := []string{name}
	if t := templateOf(name); t != "" {
		name = t
		all = append(all, name)
	}
	prefix, _, kind, _ := parts(name)
	for {
		i := strings.LastIndexByte(strings.TrimSuffix(prefix, "-"), '-')
		if i <= 0 {
			return all
		}
		prefix = prefix[:i+1]
		all = append(all, prefix+"."+kind)
	}
}

// links reads what directories like NAME.wants start (process_deps() in src/core/load-dropin.c).
func (l *loader) links(u *Unit) {
	for _, kind := range []string{"wants", "requires", "upholds"} {
		all := l.beside(u, "."+kind)
		slices.SortStableFunc(all, func(a, b entry) int { return strings.Compare(a.name, b.name) })
		for i := range all {
			e := &all[i]
			if e.kind&fs.ModeSymlink == 0 || e.link == "/dev/null" || !valid(e.name) {
				continue // a mask, or no link at all
			}
			to := e.name
			if isTemplate(to) {
				to = instanceFor(u.Name, to)
			}
			u.Links = append(u.Links, Start{From: u.Name, To: to, By: kind + " link", Source: Source{Path: e.path()}})
		}
	}
}

// instanceFor makes of a template that a unit names an instance (resolve_template() in
// src/core/load-fragment.c): with the unit's own instance, or else its name.
func instanceFor(unit, template string) string {
	prefix, instance, _, _ := parts(unit)
	if instance == "" {
		instance = prefix
	}
	return withInstance(template, instance)
}
