// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"slices"
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

// crons are the services that run the lines of crontabs, those too that are for each start.
func crons() []string {
	return []string{"cron.service", "crond.service", "cronie.service", "fcron.service", "bcron.service"}
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
	acts := slices.Clone(c.e.Units.Acts(name))
	if slices.Contains(crons(), name) {
		for i := range c.e.Units.AtReboot {
			acts = append(acts, c.e.Units.AtReboot[i].Acts...)
		}
	}
	for _, a := range acts {
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
