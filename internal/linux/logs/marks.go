// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Bounds of marks. What units do every day is most of a log, and of it only that matters which was last
// before the machine was told to go down, or first after: the others are dropped when thinMarks of one boot,
// or allMarks of all boots, have come together.
const (
	thinMarks = 1024
	allMarks  = 32 << 10
	// keptDaily is how many of what units do every day are kept between two marks that tell more, fewDaily
	// where boots are so many that this is too much.
	keptDaily, fewDaily = maxStarting, 8
	// manyMarks of one boot, or of all boots of logs in text, are so many; maxMarks is how many are kept.
	manyMarks, maxMarks = 6 << 10, 20 << 10
)

// mark is a message that tells of the course of a boot.
type mark struct {
	at, before time.Time
	form, unit string
	path       string
	exact      bool
	said       string // the message, cut
	line       int
}

// newMark makes a mark of a message; unit is the unit that the log itself has beside it, if any.
func newMark(m *Message, unit string) mark {
	switch m.Form.Name {
	case "machine.session", "machine.sessionend":
		unit = m.Field("session")
	default:
		unit = cmp.Or(unit, unitOf(m.Field("unit")))
	}
	return mark{at: m.Time, form: m.Form.Name, unit: unit, path: m.Path, exact: m.Exact, said: m.Text, line: m.Line}
}

// marks are those of one boot, or of all logs in text.
type marks struct {
	list []mark
	next int  // how many have it thinned
	few  bool // they are so many
	lost bool // the oldest were left out
}

func (m *marks) add(x mark) {
	x.unit = strings.Clone(x.unit) // not the whole line with it
	x.said = strings.Clone(x.said[:min(len(x.said), maxSaid)])
	m.list = append(m.list, x)
	if len(m.list) >= max(m.next, thinMarks) {
		m.thin(keptDaily)
	}
}

// thin drops what cannot matter; keep is how many daily ones are kept between two others.
func (m *marks) thin(keep int) {
	if m.few = m.few || len(m.list) > manyMarks; m.few {
		keep = fewDaily
	}
	slices.SortStableFunc(m.list, byTime)
	out, from := m.list[:0], 0
	for i := range m.list {
		if !m.list[i].daily() {
			x := m.list[i]
			out, from = thinRun(out, m.list[from:i], keep), i+1
			if n := len(out); n > 1 && x.again(&out[n-1]) && x.again(&out[n-2]) {
				out = out[:n-1] // the first and the last of them do
			}
			out = append(out, x)
		}
	}
	out = thinRun(out, m.list[from:], keep)
	if n := len(out) - maxMarks; n > 0 {
		out, m.lost = slices.Delete(out, 0, n+maxMarks/2), true
	}
	clear(m.list[len(out):])
	m.list, m.next = out, len(out)+min(len(out), manyMarks)
	if cap(out) > 2*len(out)+thinMarks {
		m.list = slices.Clone(out)
	}
}

func byTime(a, b mark) int { return a.at.Compare(b.at) }

// again tells of what says nothing more than a mark right before it.
func (m *mark) again(before *mark) bool {
	once := m.form == "kernel.boot" || m.form == "kernel.suspend" || m.form == "kernel.resume" || m.form == "machine.suspended"
	return !once && m.form == before.form && m.unit == before.unit
}

// daily tells of what only matters next to the end of a boot: all but what judge takes as a step of the
// machine itself.
func (m *mark) daily() bool {
	switch m.form {
	case "unit.starting", "unit.started", "unit.stopping", "unit.failed", "machine.session", "machine.sessionend",
		"machine.sudo":
		return true
	case "unit.stopped":
		return !goesDown(m.unit)
	case "unit.reached":
		return !ends(m.unit) && !goesUp(m.unit)
	case "kernel.boot", "kernel.panic", "kernel.reboot", "kernel.suspend", "kernel.resume":
		return false
	}
	return strings.HasPrefix(m.form, "kernel.") || m.form == "journal.unclean"
}

// thinRun appends what matters of daily marks between two others: of what was started that which was last
// said of each service, the last of them; of what ended the first; and the last of all for its time. What
// it appends to may begin in the run.
func thinRun(out, run []mark, keep int) []mark {
	if len(run) == 0 {
		return out
	}
	kept := make([]bool, len(run))
	kept[len(run)-1] = true
	keepLate(run, kept, keep)
	said, up, coming := map[string]bool{}, 0, 0
	for i := len(run) - 1; i >= 0 && up+coming < 2*keep; i-- {
		m, n := &run[i], &up
		switch {
		case m.form == "unit.starting":
			n = &coming
		case m.form != "unit.started":
			continue
		}
		if *n < keep && !said[m.unit] && m.unit != "" && !aside(m.unit) {
			said[m.unit], kept[i] = true, true
			*n++
		}
	}
	ended, n := map[string]bool{}, 0
	for i := 0; i < len(run) && n < keep; i++ {
		m := &run[i]
		end := m.form == "unit.failed" || m.form == "unit.stopped"
		if end && !ended[m.unit] && !aside(m.unit) {
			ended[m.unit], kept[i] = true, true
			n++
		}
	}
	for i := range run {
		if kept[i] {
			out = append(out, run[i])
		}
	}
	return out
}
