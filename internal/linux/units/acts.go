// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// doing is what running one unit does by itself, and which units it starts.
type doing struct {
	acts     []Act
	starting []started
	guards   []Guard
	// fails tells that it certainly fails, for a reason; done that it certainly succeeds.
	fails string
	done  bool
}

// action is a setting by which a unit acts on the machine (systemd.unit(5)), with when.
type action struct{ key, when string }

func actions() []action {
	return []action{{"FailureAction", ItFails}, {"SuccessAction", ItSucceeds}, {"StartLimitAction", TooOften},
		{"JobTimeoutAction", TooLong}}
}

// allActs finds out what all units do.
func (l *loader) allActs(ctx context.Context) {
	for _, u := range l.Units {
		if ctx.Err() != nil {
			return
		}
		if u.State != Loaded {
			continue
		}
		l.doings[u.Name] = l.doingOf(ctx, u)
		for _, p := range u.All("Path", "PathExists") {
			l.exists(ctx, path.Clean(p.Value)) // which is kept
		}
	}
}

// doingOf goes through a unit.
func (l *loader) doingOf(ctx context.Context, u *Unit) *doing {
	d := &doing{}
	if what := targetOf(u.Name); what != "" {
		d.acts = append(d.acts, Act{What: what, Unit: u.Name, Chain: []Step{{"is started", Source{Path: u.Path}}}})
		return d
	}
	first := l.through(ctx, u, nil, nil)
	fresh := map[string]bool{}
	for name := range first.made {
		if volatile(name) {
			fresh[name] = true
		}
	}
	if len(fresh) > 0 {
		first = l.through(ctx, u, nil, fresh)
	}
	if changes := kept(first.made, true); len(first.did) == 0 && len(changes) > 0 {
		if next := l.through(ctx, u, changes, fresh); next.again() != nil {
			first = next
			for i := range first.did {
				first.did[i].Later = true
			}
		}
	}
	if changes := kept(first.made, false); len(first.did) == 0 && len(changes) > 0 {
		if next := l.through(ctx, u, changes, fresh); next.again() != nil {
			first = next
			for i := range first.did {
				first.did[i].Again = true
			}
		}
	}
	d.starting, d.fails, d.done, d.guards = first.starting, first.failed, first.done, first.guards
	for i := range first.did {
		a := first.did[i]
		if len(a.made) > 0 && i < 8 {
			l.disarms(ctx, u, &a, fresh)
		}
		d.acts = append(d.acts, a.Act)
	}
	d.acts = append(d.acts, l.byAction(u, first)...)
	if len(d.acts) == 0 && len(d.starting) == 0 {
		return d
	}
	for i := range d.acts {
		d.acts[i].Guards = append(d.acts[i].Guards, first.guards...)
		if d.acts[i].Doubt == "" && len(first.doubts) > 0 {
			d.acts[i].Doubt = strings.Join(first.doubts, "; ")
		}
	}
	for i := range d.starting {
		d.starting[i].guards = first.guards
	}
	return d
}

// pass is one way through a unit.
type pass struct {
	*runner
	guards []Guard
	// failed says why it certainly fails; done tells that it certainly succeeds.
	failed string
	done   bool
}

// through goes through the commands of a unit, with files that were made or removed before.
func (l *loader) through(ctx context.Context, u *Unit, made map[string]Truth, fresh map[string]bool) *pass {
	r := &runner{loader: l, u: u, made: map[string]Truth{}, fresh: fresh, tested: map[string]bool{},
		disarmed: map[string]Source{}}
	maps.Copy(r.made, made)
	p := &pass{runner: r}
	p.conditions(ctx)
	if u.Type() == "service" {
		p.commands(ctx)
	} else {
		p.done = true
	}
	if r.cut {
		r.doubt("what it runs is too much to go through")
		l.gap(u.Path, errors.New("what "+u.Name+" runs is too much to go through"))
	}
	return p
}

// conditions asks those of the unit.
func (p *pass) conditions(ctx context.Context) {
	all := p.u.Conditions()
	for _, assert := range []bool{false, true} {
		t, by := decided(assert, all, func(c *Condition) Truth { return p.truth(ctx, c) })
		if t == Yes {
			continue
		}
		kind := NotMet
		if t == Maybe {
			kind = Unsure
		}
		for i := range by {
			g := Guard{Kind: kind, Text: by[i].Setting.Key + "=" + by[i].Setting.Value, From: by[i].Setting.From}
			if asksPath(by[i].Kind) {
				g.Path, g.Lasting = by[i].Of, !volatile(by[i].Of)
			}
			p.guards = append(p.guards, g)
		}
	}
}

// truth answers a condition after what the unit has done itself.
func (p *pass) truth(ctx context.Context, c *Condition) Truth {
	if strings.HasPrefix(c.Kind, "Path") || c.Kind == "FileNotEmpty" || c.Kind == "FileIsExecutable" {
		_, made := p.made[c.Of]
		p.tested[c.Of] = true
		if made || p.fresh[c.Of] {
			t := p.there(ctx, c.Of)
			if c.Not {
				t = opposite(t)
			}
			return t
		}
		if volatile(c.Of) && (strings.HasPrefix(c.Of, "/run") || strings.HasPrefix(c.Of, "/tmp")) {
			return Maybe
		}
	}
	return p.loader.truth(ctx, c)
}

// commands goes through those of a service, in the order in which they run.
func (p *pass) commands(ctx context.Context) {
	last := func(key string) string {
		s, _ := p.u.Last("Service", key)
		return s.Value
	}
	at := place{way: Yes}
	p.done = true
	for _, key := range []string{"ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost"} {
		for _, c := range p.u.commands(key) {
			t := p.one(ctx, at, c, key)
			if c.mayFail {
				continue
			}
			switch {
			case key == "ExecCondition" && t == Maybe:
				p.guards = append(p.guards, Guard{Kind: Unsure, Text: key + "=" + c.from.Value, From: c.from.From})
			case key == "ExecCondition" && t == No:
				p.guards = append(p.guards, Guard{Kind: NotMet, Text: key + "=" + c.from.Value, From: c.from.From})
				at.way, p.done = No, false
			case t == No:
				if at.way == Yes {
					p.failed = fmt.Sprintf("%s=%s fails", key, c.from.Value)
				}
				at.way, p.done = No, false
			case t == Maybe:
				p.done = false
			}
		}
	}
	// What stops a service runs when it is over as well: a oneshot is, unless it remains.
	ends := last("Type") == "oneshot" && !isTrue(last("RemainAfterExit"))
	from := len(p.did)
	began := len(p.starting)
	for _, key := range []string{"ExecStop", "ExecStopPost"} {
		at := place{way: Yes}
		if key == "ExecStop" && p.failed != "" {
			continue // only what was started is stopped
		}
		for _, c := range p.u.commands(key) {
			p.one(ctx, at, c, key)
		}
	}
	for i := from; i < len(p.did) && !ends; i++ {
		p.did[i].If = IsStopped
	}
	if !ends {
		p.starting = p.starting[:began]
	}
	from = len(p.did)
	for _, c := range p.u.commands("ExecReload") {
		p.one(ctx, place{way: Yes}, c, "ExecReload")
	}
	p.did, p.starting = p.did[:from], p.starting[:min(began, len(p.starting))]
}

// one goes through one command of a setting.
func (p *pass) one(ctx context.Context, at place, c command, key string) Truth {
	words := slices.Clone(c.args)
	words[0] = c.program
	if !c.bare {
		words = p.replaced(words)
	}
	at.chain = []Step{{key + "=" + c.from.Value, c.from.From}}
	before := len(p.did)
	t := p.command(ctx, at, words)
	for i := before; i < len(p.did); i++ {
		p.did[i].Setting = c.from
	}
	return t
}

// replaced puts in the variables that the unit sets itself (systemd.service(5), "Command Lines"): $X as words, ${X} as
// a part of one. Others are not known.
func (p *pass) replaced(all []string) []string {
	values := map[string]string{}
	for _, e := range p.environment() {
		if k, v, ok := strings.Cut(e, "="); ok {
			values[k] = v
		}
	}
	out := all[:1:1]
	for _, w := range all[1:] {
		if name, is := strings.CutPrefix(w, "$"); is && isName(name) {
			if v, known := values[name]; known {
				out = append(out, words(v)...)
			} else {
				out = append(out, unknown)
			}
			continue
		}
		out = append(out, embraced(w, values))
	}
	return out
}

// embraced replaces ${X} in a word, and $$.
func embraced(w string, values map[string]string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(w, '$')
		if i < 0 || i+1 == len(w) || b.Len() > maxFileBytes {
			b.WriteString(w)
			return b.String()
		}
		b.WriteString(w[:i])
		rest := w[i+1:]
		name, behind, ends := strings.Cut(strings.TrimPrefix(rest, "{"), "}")
		switch {
		case rest[0] == '$':
			b.WriteByte('$')
			w = rest[1:]
		case rest[0] == '{' && ends && isName(name):
			if v, known := values[name]; known {
				b.WriteString(v)
			} else {
				b.WriteString(unknown)
			}
			w = behind
		default:
			b.WriteByte('$')
			w = rest
		}
	}
}

// maxRounds is how many starts in a row are gone through to see whether a unit acts again.
const maxRounds = 5

// disarms finds out whether the unit acts again at the next starts, after what it changed before an act: first with
// what stays over a restart, then with all, which tells what holds until one.
func (l *loader) disarms(ctx context.Context, u *Unit, a *did, fresh map[string]bool) {
	for _, lasting := range []bool{true, false} {
		by, doubt := l.rounds(ctx, u, a, fresh, lasting)
		if doubt != "" && lasting && a.Doubt == "" {
			a.Doubt = doubt
		}
		if by == nil {
			continue
		}
		g := Guard{Kind: Disarms, Text: "it stops that by itself: " + strings.Join(by, ", ") + " keeps it from it",
			Lasting: lasting, From: a.Setting.From}
		if len(by) > 0 {
			g.Path = by[0]
		}
		a.Guards = append(a.Guards, g)
		return
	}
}

// rounds goes through the starts after an act. by are the files that keep the unit from acting at last, nil if nothing
// does; doubt says why it may act again or not.
func (l *loader) rounds(ctx context.Context, u *Unit, a *did, fresh map[string]bool, lasting bool) (by []string, doubt string) {
	made := kept(a.made, lasting)
	for range maxRounds {
		if len(made) == 0 {
			return nil, ""
		}
		again := l.through(ctx, u, made, fresh)
		next := again.again()
		if next == nil {
			by = []string{}
			for name := range made {
				if again.tested[name] {
					by = append(by, name)
				}
			}
			slices.Sort(by)
			return by, ""
		}
		if next.Doubt != "" {
			return nil, "whether it does so again is not sure: " + next.Doubt
		}
		then := kept(next.made, lasting)
		if maps.Equal(then, made) {
			return nil, ""
		}
		made = then
	}
	return nil, ""
}

// kept gives the changes of files that stay over a restart, or all.
func kept(made map[string]Truth, lasting bool) map[string]Truth {
	made = maps.Clone(made)
	if lasting {
		maps.DeleteFunc(made, func(name string, _ Truth) bool { return volatile(name) })
	}
	return made
}

// again gives an act of a way through a unit, a sure one first; nil if there is none.
func (p *pass) again() *did {
	if slices.ContainsFunc(p.guards, func(g Guard) bool { return g.Kind == NotMet }) {
		return nil
	}
	var found *did
	for i := range p.did {
		switch d := &p.did[i]; {
		case d.Missing != "" || d.If != "":
		case d.Doubt == "":
			return d
		case found == nil:
			found = d
		}
	}
	return found
}

// byAction gives what the settings do by which a unit acts on the machine.
func (l *loader) byAction(u *Unit, p *pass) []Act {
	var all []Act
	last := func(key string) string {
		s, _ := u.Last(u.Section(), key)
		return s.Value
	}
	for _, a := range actions() {
		v, ok := u.Last("Unit", a.key)
		if !ok && (a.key == "FailureAction" || a.key == "StartLimitAction") {
			v, ok = u.Last("Service", a.key)
		}
		what := emergency(v.Value)
		if !ok || what == "" {
			continue
		}
		act := Act{What: what, Unit: u.Name, Setting: v, If: a.when, Chain: []Step{{v.Key + "=" + v.Value, v.From}}}
		switch a.key {
		case "StartLimitAction":
			if r := last("Restart"); u.Type() == "service" && (r == "" || r == "no") {
				if !l.rearmed(u) {
					continue // nobody starts it often
				}
				act.Again = true
			}
		case "JobTimeoutAction":
			if !has(u, "JobTimeoutSec") && !has(u, "JobRunningTimeoutSec") {
				continue
			}
		case "FailureAction":
			if p.failed != "" {
				act.If = ""
				act.Chain = append([]Step{{p.failed + ", and so the unit", v.From}}, act.Chain...)
			}
		case "SuccessAction":
			switch {
			case p.failed != "":
				continue
			case p.done && last("Type") == "oneshot":
				act.If = ""
			}
		}
		all = append(all, act)
	}
	return all
}

// rearmed tells whether a timer starts a unit again and again, by when it ran last.
func (l *loader) rearmed(u *Unit) bool {
	return slices.ContainsFunc(l.Units, func(t *Unit) bool {
		return t.Type() == "timer" && l.byName[t.Triggered()] == u && (t.Counts("OnUnitActiveSec") || t.Counts("OnUnitInactiveSec"))
	})
}

func has(u *Unit, key string) bool {
	s, ok := u.Last("Unit", key)
	return ok && s.Value != "" && s.Value != "0" && s.Value != "infinity"
}

// emergency gives what a value of FailureAction= and its kin does (systemd.unit(5)).
func emergency(value string) string {
	for _, suffix := range []string{"-force", "-immediate", "-irreversible"} {
		value = strings.TrimSuffix(value, suffix)
	}
	switch value {
	case Reboot, PowerOff, Halt, Kexec, SoftReboot, Exits:
		return value
	}
	return ""
}

// maxChain bounds how many units start one another on the way to an act.
const maxChain = 8

// Acts gives what running a unit does to the machine, also by the units that it starts with commands, or when it fails or
// succeeds. What its dependencies do is not among it: they are started with it ([Set.Reached]).
//
// That a unit wants or requires reboot.target is no act: systemd drops that from its transaction, since all that runs
// conflicts with it.
func (s *Set) Acts(name string) []Act {
	if u := s.Unit(name); u != nil {
		return s.acts[u.Name]
	}
	return nil
}

// join gives each unit its acts, with those of the units that it starts.
func (l *loader) join() {
	all := 0
	for _, u := range l.Units {
		v := &visits{seen: map[string]bool{}}
		if acts := l.actsOf(u.Name, v); len(acts) > 0 {
			l.acts[u.Name] = acts
		}
		if all += v.n; v.n > maxVisits || all > maxAllVisits {
			l.gap(u.Path, fmt.Errorf("%s starts too many units to go through", u.Name))
		}
		if all > maxAllVisits {
			return
		}
	}
}

// visits are the units on the way to an act, and how many were gone to.
type visits struct {
	seen map[string]bool
	n    int
}

// maxVisits bounds how many units are gone to for one, by whatever ways; maxAllVisits for all together.
const (
	maxVisits    = 2000
	maxAllVisits = 500000
)

func (s *Set) actsOf(name string, v *visits) []Act {
	u := s.Unit(name)
	v.n++
	if u == nil || u.State != Loaded || v.seen[u.Name] || len(v.seen) > maxChain || v.n > maxVisits {
		return nil
	}
	d := s.doings[u.Name]
	if d == nil {
		return nil
	}
	v.seen[u.Name] = true
	defer delete(v.seen, u.Name)
	all := slices.Clone(d.acts)
	for _, e := range d.starting {
		for _, a := range s.actsOf(e.name, v) {
			a.Unit = u.Name
			a.Chain = append(append(slices.Clone(e.at.chain), Step{"starts " + e.name, Source{}}), a.Chain...)
			a.Guards = append(slices.Clone(e.guards), a.Guards...)
			a.Delay += e.at.delay
			if e.at.way == Maybe && a.Doubt == "" {
				a.Doubt = e.at.why
			}
			all = append(all, a)
		}
	}
	for _, on := range []struct{ key, when string }{{"OnFailure", ItFails}, {"OnSuccess", ItSucceeds}} {
		for _, e := range u.named("Unit", on.key) {
			all = append(all, s.onEnd(u, d, e, on.key, on.when, v)...)
		}
	}
	return all[:min(len(all), maxActs)]
}

// onEnd gives what the unit does that another one's end starts.
func (s *Set) onEnd(u *Unit, d *doing, e Start, key, when string, v *visits) []Act {
	if when == ItSucceeds && d.fails != "" {
		return nil
	}
	if when == ItFails && d.fails != "" || when == ItSucceeds && d.done {
		when = ""
	}
	var all []Act
	for _, a := range s.actsOf(e.To, v) {
		a.Unit = u.Name
		a.Chain = append([]Step{{key + "=" + e.To, e.Source}}, a.Chain...)
		if when != "" {
			a.If = strings.TrimPrefix(a.If+", and "+when, ", and ")
		}
		all = append(all, a)
	}
	return all
}

// Guards gives the conditions of a unit that are not met, or of which that is not known.
func (s *Set) Guards(name string) []Guard {
	if u := s.Unit(name); u != nil && s.doings[u.Name] != nil {
		return s.doings[u.Name].guards
	}
	return nil
}

// Certain tells whether an act happens each time when the unit is run, as far as files tell.
func (a *Act) Certain() bool {
	return a.If == "" && a.Doubt == "" && a.Happens()
}

// Happens tells whether nothing is known that keeps an act from happening again and again: no program is missing,
// no condition is not met, and it does not disarm itself for good.
func (a *Act) Happens() bool {
	return a.Missing == "" && !slices.ContainsFunc(a.Guards, func(g Guard) bool {
		return g.Kind == NotMet || g.Kind == Disarms && g.Lasting
	})
}
