// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// Who asks a machine to go down.
const (
	ByUnit     = "unit"
	ByPerson   = "person"
	ByButton   = "button"
	ByWatchdog = "watchdog"
)

// Asker is who asked for the end of a boot. The zero value is that this is not known.
type Asker struct {
	// Kind is ByUnit, ByPerson, ByButton, ByWatchdog, or "".
	Kind string `json:"kind"`
	// Unit is set for ByUnit, Who says it in words.
	Unit string `json:"unit"`
	Who  string `json:"who"`
	// Certain: a log says so, or the unit was at it right then.
	Certain  bool   `json:"certain"`
	Evidence []Fact `json:"evidence"`
	// act is what the unit does, as its files say; nil if they do not.
	act *units.Act
}

// Blame is who ended the boots of a row.
type Blame struct {
	Kind string `json:"kind"`
	// Unit is the unit to blame, "" if it is none; Who says it in words.
	Unit string `json:"unit"`
	Who  string `json:"who"`
	// Ended is in how many boots it asked for the end, Of how many ended in order.
	Ended int `json:"ended"`
	Of    int `json:"of"`
	// Certain: it was at it right then in more than half of them.
	Certain bool `json:"certain"`
	// Does is what it does, "reboot" for one; If when, "" for always; Chain how, as its files say.
	Does  string      `json:"does"`
	If    string      `json:"if"`
	Chain []BlameStep `json:"chain"`
	// Started is what has it started at each start, from the default target to it; empty where a timer or something else
	// does.
	Started []BlameStep `json:"started"`
	// Masks are the units without which the machine does not go down: it, and what starts it.
	Masks    []string `json:"masks"`
	Evidence []Fact   `json:"evidence"`
}

// BlameStep is one step of a chain.
type BlameStep struct {
	Text string `json:"text"`
	Path string `json:"path"`
	Line int    `json:"line"`
}

// Name is who is to blame, in words.
func (b *Blame) Name() string { return cmp.Or(b.Unit, b.Who) }

// BlameBoots gives who ended the last row of short boots in order, nil where there is no such row or that is not
// known. Over tells that the machine has run longer since.
func BlameBoots(e *evidence.Evidence) (blame *Blame, over bool) {
	v := newCourts(e).verdict()
	return v.blame, v.over
}

// courts judges boots; what units do is looked up once.
type courts struct {
	e     *evidence.Evidence
	acts  map[string][]units.Act
	names map[string]string // what logs call units -> their names
	// starters are the timers, paths and sockets that start a unit.
	starters map[string][]string
}

func newCourts(e *evidence.Evidence) *courts {
	c := &courts{e: e, acts: map[string][]units.Act{}, names: map[string]string{}, starters: map[string][]string{}}
	if e.Units == nil {
		return c
	}
	for _, u := range e.Units.Units {
		switch u.Type() {
		case "timer", "path", "socket":
			if to := u.Triggered(); to != "" && u.State == units.Loaded {
				name := c.canonical(to)
				c.starters[name] = append(c.starters[name], u.Name)
			}
		}
	}
	return c
}

// canonical gives the own name of a unit that another one names.
func (c *courts) canonical(name string) string {
	if u := c.e.Units.Unit(name); u != nil {
		return u.Name
	}
	return name
}

// actsOf is what a unit does to the machine, as far as it can.
func (c *courts) actsOf(name string) []units.Act {
	if c.e.Units == nil || name == "" {
		return nil
	}
	if all, known := c.acts[name]; known {
		return all
	}
	var can []units.Act
	for _, a := range c.e.Units.Acts(name) {
		if a.Missing == "" {
			can = append(can, a)
		}
	}
	c.acts[name] = can
	return can
}

// unitNamed gives the unit that a log means: older logs have its description. Of several it is one that can take the
// machine down.
func (c *courts) unitNamed(said string) string {
	if c.e.Units == nil || said == "" {
		return said
	}
	if u := c.e.Units.Unit(said); u != nil {
		return u.Name
	}
	if name, known := c.names[said]; known {
		return name
	}
	c.names[said] = c.described(said)
	return c.names[said]
}

// described gives the service of a description, which is what it gets if there is none.
func (c *courts) described(said string) string {
	name := ""
	for _, u := range c.e.Units.Units {
		if d, ok := u.Last("Unit", "Description"); ok && d.Value == said && u.Type() == "service" {
			if len(c.actsOf(u.Name)) > 0 {
				return u.Name
			}
			name = cmp.Or(name, u.Name)
		}
	}
	return cmp.Or(name, said)
}

// first is the first unit that was started in a boot of those that take the machine down.
func (c *courts) first(b *evidence.Boot) string {
	for i := range b.Said {
		w := &b.Said[i]
		if w.Form == "unit.starting" || w.Form == "unit.started" {
			if u := c.unitNamed(w.Unit); len(c.actsOf(u)) > 0 {
				return u
			}
		}
	}
	return ""
}

// atOnce is how long after its start, or its failure, a unit is taken for the one who asked without more.
const atOnce = time.Minute

// asker tells who asked for the end of a boot that ended in order: who a log names, or a unit that was at it, or a
// person. Nobody is named only for having been started last.
func (c *courts) asker(b *evidence.Boot) Asker {
	if b.End != "shutdown" {
		return Asker{}
	}
	for _, look := range []func(*evidence.Boot) (Asker, bool){c.named, c.sudo, c.atIt, c.person, c.unread} {
		if a, ok := look(b); ok {
			return a
		}
	}
	return Asker{Evidence: askedFact(b)}
}

// askedFact is the first sign that the machine was asked to go down.
func askedFact(b *evidence.Boot) []Fact {
	if b.Asked == nil {
		return []Fact{}
	}
	return []Fact{{Source: b.Asked.From, Value: b.Asked.Text, Text: "then it was asked to go down"}}
}

// ofAction is how PID 1 names the unit for which it takes the machine down: src/core/emergency-action.c, and its callers in
// unit.c, job.c and service.c.
var ofAction = regexp.MustCompile(`\bunit (\S+\.[a-z]+) (?:failed|succeeded|timed out)|\bunit (\S+\.[a-z]+)$`)

// named takes whom a log names: systemd since 256 tells who asked, and any tells for which unit it acts itself.
func (c *courts) named(b *evidence.Boot) (Asker, bool) {
	for i := range b.Said {
		w := &b.Said[i]
		fact := Fact{Source: w.From, Value: w.Text, Text: "the log names who asked"}
		switch w.Form {
		case "shutdown.caller":
			return c.caller(b, w, fact)
		case "shutdown.forced":
			if m := ofAction.FindStringSubmatch(w.Text); m != nil {
				unit := c.unitNamed(cmp.Or(m[1], m[2]))
				return Asker{Kind: ByUnit, Unit: unit, Who: unit, Certain: true, Evidence: []Fact{fact}, act: c.act(unit, true)}, true
			}
		case "shutdown.request":
			if strings.HasPrefix(w.Text, "Power key pressed") || strings.Contains(w.Text, "hypervisor initiated") {
				fact.Text = "somebody pressed the power button, or the hypervisor did"
				return Asker{Kind: ByButton, Who: "the power button, or the hypervisor", Certain: true, Evidence: []Fact{fact}}, true
			}
		}
	}
	return Asker{}, false
}

// caller takes the unit whose process asked. That of a session is a person.
func (c *courts) caller(b *evidence.Boot, w *evidence.Word, fact Fact) (Asker, bool) {
	id, session := strings.CutPrefix(strings.TrimSuffix(w.Unit, ".scope"), "session-")
	switch {
	case w.Unit == "":
		return Asker{}, false
	case session || strings.HasPrefix(w.Unit, "user@"):
		return Asker{Kind: ByPerson, Who: "a person, " + cmp.Or(userOf(b, id), "in a session"), Certain: true,
			Evidence: []Fact{fact}}, true
	}
	unit := c.unitNamed(w.Unit)
	return Asker{Kind: ByUnit, Unit: unit, Who: unit, Certain: true, Evidence: []Fact{fact}, act: c.act(unit, false)}, true
}

var ofUser = regexp.MustCompile(`of user '?([^ '.]+)`)

// userOf gives the user of a session, or of any that was open if id is "".
func userOf(b *evidence.Boot, id string) (name string) {
	for i := range b.Said {
		w := &b.Said[i]
		if m := ofUser.FindStringSubmatch(w.Text); m != nil && w.Form == "machine.session" && (id == "" || w.Unit == id) {
			name = m[1]
		}
	}
	return name
}

// sudo takes a person who asked by sudo right before.
func (c *courts) sudo(b *evidence.Boot) (Asker, bool) {
	for i := range slices.Backward(b.Said) {
		w := &b.Said[i]
		if w.Form == "machine.sudo" && b.Asked != nil && within(b.Asked.From.Time.Sub(w.From.Time), atOnce) {
			user, _, _ := strings.Cut(w.Text, " : ")
			return Asker{Kind: ByPerson, Who: "a person, " + strings.TrimSpace(user), Certain: true,
				Evidence: []Fact{{Source: w.From, Value: w.Text, Text: "a person asked"}}}, true
		}
	}
	return Asker{}, false
}

func within(d, limit time.Duration) bool { return d >= 0 && d <= limit }

// atIt takes a unit that takes the machine down by its own files, and was started, or failed where that is when it
// does, last before the machine was asked to go down. One that was being started then goes before one that was up.
func (c *courts) atIt(b *evidence.Boot) (Asker, bool) {
	if b.Asked == nil {
		return Asker{}, false
	}
	var best Asker
	bestRank, at := 0, b.Asked.From.Time
	for i := range b.Said {
		w := &b.Said[i]
		unit := c.unitNamed(w.Unit)
		failed := w.Form == "unit.failed"
		if !failed && w.Form != "unit.starting" && w.Form != "unit.started" {
			continue
		}
		act := c.act(unit, failed)
		gap := at.Sub(w.From.Time)
		if act == nil || gap < 0 {
			continue
		}
		rank, text := 1, fmt.Sprintf("it was started %s before the machine was asked to go down", briefly(gap))
		switch {
		case failed:
			rank, text = 2, "it takes the machine down when it fails"
			if !within(gap, atOnce) {
				continue
			}
		case w.Form == "unit.starting":
			rank, text = 3, "it was being started when the machine was asked to go down"
		case within(gap, atOnce):
			rank = 2
		}
		if rank >= bestRank {
			bestRank = rank
			best = Asker{Kind: ByUnit, Unit: unit, Who: unit, Certain: rank > 1 && act.Doubt == "", act: act,
				Evidence: append([]Fact{{Source: w.From, Value: w.Text, Text: text}}, askedFact(b)...)}
		}
	}
	if _, open := sessionOpen(b); open && bestRank == 1 {
		return Asker{}, false // a person may as well have
	}
	return best, bestRank > 0
}

// act is what a unit does that takes the machine down at its start, or when it failed; nil if it does not.
func (c *courts) act(unit string, failed bool) *units.Act {
	var doubted *units.Act
	for i := range c.actsOf(unit) {
		a := &c.actsOf(unit)[i]
		later := a.If != "" && a.If != "it succeeds" && a.If != "it is stopped"
		switch {
		case later != failed || a.If == "it is stopped":
		case a.Doubt == "":
			return a
		default:
			doubted = a
		}
	}
	return doubted
}

// sessionOpen gives the newest session that was open when the machine was asked to go down.
func sessionOpen(b *evidence.Boot) (w *evidence.Word, open bool) {
	sessions := map[string]*evidence.Word{}
	last := ""
	for i := range b.Said {
		switch w := &b.Said[i]; w.Form {
		case "machine.session":
			sessions[w.Unit], last = w, w.Unit
		case "machine.sessionend":
			delete(sessions, w.Unit)
		}
	}
	if w := sessions[last]; w != nil {
		return w, true
	}
	for _, w := range sessions {
		return w, true
	}
	return nil, false
}

// person takes a person who was logged in when no unit asked.
func (c *courts) person(b *evidence.Boot) (Asker, bool) {
	w, open := sessionOpen(b)
	if !open {
		return Asker{}, false
	}
	return Asker{Kind: ByPerson, Who: "a person, " + cmp.Or(userOf(b, w.Unit), "in a session"),
		Evidence: append([]Fact{{Source: w.From, Value: w.Text, Text: "somebody was logged in"}}, askedFact(b)...)}, true
}

// unread takes the unit that the log hints at where its file could not be read: what it does is not known then.
func (c *courts) unread(b *evidence.Boot) (Asker, bool) {
	unit := c.unitNamed(b.LastUnit)
	if unit == "" {
		return Asker{}, false
	}
	why := "units were not read"
	if c.e.Units != nil {
		u := c.e.Units.Unit(unit)
		switch {
		case u == nil, u.State == units.Missing:
			why = "there is no such unit now"
		case u.State == units.Unreadable:
			why = "its file could not be read"
		default:
			return Asker{}, false // it is known, and does nothing of the kind
		}
	}
	return Asker{Kind: ByUnit, Unit: unit, Who: unit, Evidence: append([]Fact{{Source: b.From, Value: unit,
		Text: "it was the first to end then, or about to start; " + why}}, askedFact(b)...)}, true
}

// blame gives who ended most of a row of boots.
func (c *courts) blame(row []evidence.Boot) *Blame {
	count, certain := map[string]int{}, map[string]int{}
	var order []Asker
	of := 0
	for i := range row {
		if row[i].End != "shutdown" {
			continue
		}
		of++
		a := c.asker(&row[i])
		if a.Kind == "" {
			continue
		}
		key := a.Kind + " " + a.Who
		if count[key]++; count[key] == 1 {
			order = append(order, a)
		} else if n := slices.IndexFunc(order, func(x Asker) bool { return x.Kind+" "+x.Who == key }); len(order[n].Evidence) < maxFacts {
			order[n].Evidence = append(order[n].Evidence, a.Evidence...)
		}
		if a.Certain {
			certain[key]++
		}
	}
	var best *Blame
	for _, a := range order {
		key := a.Kind + " " + a.Who
		if n := count[key]; n*2 > of && (best == nil || n > best.Ended) {
			best = &Blame{Kind: a.Kind, Unit: a.Unit, Who: a.Who, Ended: n, Of: of, Certain: certain[key]*2 > of,
				Evidence: a.Evidence[:min(len(a.Evidence), maxFacts)]}
			c.explain(best, a.act)
		}
	}
	if best == nil {
		best = c.byFiles(of)
	}
	return best
}
