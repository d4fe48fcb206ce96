// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxPresets bounds the rules of all preset files.
const maxPresets = 10000

// presets reads the rules of presets (systemd.preset(5)): files of all directories in the order of their names, of two of
// one name the first directory's; in each "enable PATTERN [INSTANCE...]", "disable PATTERN", "ignore PATTERN".
func (l *loader) presets(ctx context.Context) {
	dirs := []string{"/etc/systemd/system-preset", "/run/systemd/system-preset", "/usr/local/lib/systemd/system-preset",
		"/usr/lib/systemd/system-preset"}
	if !l.MergedUsr {
		dirs = append(dirs, "/lib/systemd/system-preset")
	}
	files := map[string]string{}
	var names []string
	for _, dir := range dirs {
		all, err := l.list(ctx, dir)
		if err != nil {
			continue // list has noted what is not known
		}
		for i := range all {
			e := &all[i]
			if _, seen := files[e.name]; seen || !strings.HasSuffix(e.name, ".preset") {
				continue
			}
			files[e.name] = ""
			if e.link != "/dev/null" {
				files[e.name] = e.path()
				names = append(names, e.name)
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		b, err := l.t.Read(ctx, files[name], maxFileBytes)
		if err != nil && !l.absent(files[name], err) {
			l.gap(files[name], err)
		}
		if err == nil || errors.Is(err, tree.ErrTooLarge) {
			l.presetRules(files[name], string(b))
		}
	}
}

func (l *loader) presetRules(file, text string) {
	n := 0
	for line := range lines(text) {
		n++
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' || len(l.Presets) >= maxPresets {
			continue
		}
		if f[0] == "ignore" && l.Version > 0 && l.Version <= 252 {
			continue // it does not know the word
		}
		switch f[0] {
		case "enable", "disable", "ignore":
			p := Preset{Enable: f[0] == "enable", Ignore: f[0] == "ignore", Pattern: f[1], Instances: f[2:],
				From: Source{file, n}}
			if !p.Enable { // all that is behind it is the pattern, blanks and all
				p.Pattern = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), f[0]))
				p.Instances = nil
			}
			l.Presets = append(l.Presets, p)
		}
	}
}

// preset gives the rule for a name. Without one units are enabled (query_presets()).
func (l *loader) preset(name string) Preset {
	for _, p := range l.Presets {
		if ok, err := path.Match(p.Pattern, name); ok && err == nil {
			return p
		}
	}
	return Preset{Enable: true, Pattern: "*"}
}

// firstBoot finds out what systemd enables at the first boot (manager_preset_all(), unit_file_preset_all()): all units
// with an [Install] section that no preset disables. It disables none.
func (l *loader) firstBoot(ctx context.Context) {
	names := make([]string, 0, len(l.names))
	for name := range l.names {
		names = append(names, name)
	}
	slices.Sort(names)
	seen := map[string]bool{}
	for _, name := range names {
		u := l.byName[name]
		if u == nil || u.Name != name {
			continue
		}
		p := l.preset(name)
		if !p.Enable {
			continue
		}
		if len(p.Instances) > 0 && isTemplate(name) {
			for _, i := range p.Instances {
				if u := l.unit(ctx, withInstance(name, i)); u != nil {
					l.enable(ctx, u, &p, seen)
				}
			}
			continue
		}
		l.enable(ctx, u, &p, seen)
	}
}

// enable notes what enabling a unit links.
func (l *loader) enable(ctx context.Context, u *Unit, p *Preset, seen map[string]bool) {
	if seen[u.Name] || u.State != Loaded && u.State != Template && u.State != Bad {
		return
	}
	seen[u.Name] = true
	for _, e := range l.installs(ctx, u) {
		e.By = "preset"
		if p.From.Path != "" {
			e.Source = p.From
		}
		l.FirstStarts = append(l.FirstStarts, e)
	}
	for _, s := range u.All("Install", "Also") {
		for _, name := range words(s.Value) {
			if also := l.unit(ctx, name); also != nil && also.Name == name { // of an alias systemd does nothing
				l.enable(ctx, also, p, seen)
			}
		}
	}
}

// installs gives what the [Install] section of a unit has it started by (systemd.unit(5)). A template is only
// enabled as its DefaultInstance=.
func (l *loader) installs(ctx context.Context, u *Unit) []Start {
	to, bare := u, false
	if u.State == Template {
		s, ok := u.Last("Install", "DefaultInstance")
		if bare = !ok || s.Value == ""; !bare {
			if to = l.unit(ctx, withInstance(u.Name, s.Value)); to == nil {
				return nil
			}
		}
	}
	var all []Start
	for _, key := range []string{"WantedBy", "RequiredBy", "UpheldBy"} {
		for _, s := range to.All("Install", key) {
			for _, name := range words(s.Value) {
				if !valid(name) || bare && !isTemplate(name) { // only templates want templates
					continue
				}
				all = append(all, Start{From: name, To: to.Name, By: key + "=", Source: s.From})
			}
		}
	}
	return all
}

// Installs gives what the [Install] section of a unit has it started by when it is enabled.
func (s *Set) Installs(name string) []Start {
	u := s.Unit(name)
	if u == nil {
		return nil
	}
	return s.wanted[u.Name]
}

// Enabled gives the links by which a unit is started, as enabling it makes them.
func (s *Set) Enabled(name string) []Start {
	u := s.Unit(name)
	if u == nil {
		return nil
	}
	return s.linked[u.Name]
}
