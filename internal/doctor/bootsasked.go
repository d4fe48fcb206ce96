// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// ofAction is how PID 1 names the unit for which it takes the machine down: src/core/emergency-action.c, and its callers in
// unit.c, job.c and service.c.
var ofAction = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\bunit (\S+\.[a-z]+) (?:failed|succeeded|timed out)|\bunit (\S+\.[a-z]+)$`)
})

// named takes whom a log names: systemd since 256 tells who asked, and any tells for which unit it acts itself.
func (c *courts) named(b *evidence.Boot) (Asker, bool) {
	for i := range b.Said {
		w := &b.Said[i]
		fact := Fact{Source: w.From, Value: w.Text, Text: "the log names who asked"}
		switch w.Form {
		case "shutdown.caller":
			return c.caller(b, w, fact)
		case "shutdown.forced":
			if m := ofAction().FindStringSubmatch(w.Text); m != nil {
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

var ofUser = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`of user '?([^ '.]+)`) })

// userOf gives the user of a session, or of any that was open if id is "".
func userOf(b *evidence.Boot, id string) (name string) {
	for i := range b.Said {
		w := &b.Said[i]
		if m := ofUser().FindStringSubmatch(w.Text); m != nil && w.Form == "machine.session" && (id == "" || w.Unit == id) {
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
		case within(gap-act.Delay, atOnce):
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
		later := a.If != "" && a.If != units.ItSucceeds
		switch {
		case later != failed || strings.Contains(a.If, units.IsStopped):
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

// unread takes the unit that the log hints at where its file is not there to say what it does.
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
		case u.State == units.Masked:
			why = "it is masked now"
		default:
			return Asker{}, false // it is known, and does nothing of the kind
		}
	}
	return Asker{Kind: ByUnit, Unit: unit, Who: unit, Evidence: append([]Fact{{Source: b.From, Value: unit,
		Text: "it was the first to end then, or about to start; " + why}}, askedFact(b)...)}, true
}
