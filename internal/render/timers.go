// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
)

// TimersSchema is the schema of a doctor.TimersReport in JSON.
const TimersSchema = "shisa.doctor.timers/1"

// What one screen has room for; Style.All shows the rest.
const (
	maxTimerRows  = 20
	maxTimerGaps  = 4
	maxTimerSteps = 4
)

const timerForm = "2006-01-02 15:04:05"

// Timers writes a report for people: of each machine first the timers that act on it, then all others.
func Timers(w io.Writer, r *doctor.TimersReport, s Style) error {
	o := &timersOut{newOut(w, s)}
	for i := range r.Machines {
		if i > 0 {
			o.line()
		}
		o.machine(&r.Machines[i])
	}
	return o.flush()
}

type timersOut struct{ *out }

func (o *timersOut) machine(m *doctor.Timers) {
	dangerous := m.Dangerous()
	for _, t := range dangerous {
		o.dangerous(t)
	}
	o.atStart(m.AtStart)
	o.rest(m, len(dangerous))
	o.clock(m)
	o.gaps(m.NotLookedAt)
	o.prose(o.word(m)+"  ", Text(m.Machine)+": "+timerSummary(m))
}

// dangerWord is what stands before a timer.
func (o *timersOut) dangerWord(t *doctor.TimerInfo) string {
	switch t.Danger {
	case doctor.TimerLoops:
		return o.paint(red, "LOOP")
	case doctor.TimerMayLoop:
		return o.paint(red, "MAY LOOP")
	case doctor.TimerSurprise:
		return o.paint(yellow, "ONCE")
	case doctor.TimerUnknown:
		return o.paint(magenta, "CANNOT TELL")
	case doctor.TimerIdle:
		return "IDLE"
	}
	return o.paint(green, "AS MADE")
}

func (o *timersOut) dangerous(t *doctor.TimerInfo) {
	o.prose(o.dangerWord(t)+"  ", Text(t.Unit)+" starts "+Text(t.Starts)+inFile(t.From.Path, t.From.Line))
	for _, s := range t.Says {
		o.prose("  ", Text(s))
	}
	o.acts(t.Acts)
	o.prose("  elapses:  ", Text(strings.Join(t.Settings, ", "))+o.persistent(t))
	for _, s := range t.Ignored {
		o.prose("  ignored:  ", Text(s))
	}
	if len(t.Next) > 0 {
		o.prose("  next:     ", timesOf(t.Next)+" (UTC)")
	}
	for _, s := range t.Later {
		o.prose("  elapses:  ", Text(s))
	}
	if o.s.All {
		o.runs(t)
	}
	o.line()
}

// persistent says what a persistent timer remembers.
func (o *timersOut) persistent(t *doctor.TimerInfo) string {
	switch t.Stamp {
	case "known":
		return ", persistent: last at " + t.Last.UTC().Format(timerForm) + inFile(t.StampFrom.Path, 0)
	case "missing":
		return ", persistent: it has no stamp"
	case "unknown":
		return ", persistent: its stamp is not known"
	}
	return ""
}

func (o *timersOut) acts(all []doctor.TimerAct) {
	for i := range all {
		a := &all[i]
		for n, s := range a.Chain {
			if n == maxTimerSteps && !o.s.All {
				o.prose("            ", strconv.Itoa(len(a.Chain)-n)+" more steps: --verbose lists all")
				break
			}
			head := "            "
			if n == 0 {
				head = "  it does:  "
			}
			o.prose(head, Text(s.Text)+inFile(s.Path, s.Line))
		}
		for _, s := range []struct{ head, text string }{{"  when:     ", a.If}, {"  but:      ", a.Never}, {"  unsure:   ", a.Doubt}} {
			if s.text != "" {
				o.prose(s.head, Text(s.text))
			}
		}
	}
}

func timesOf(all []time.Time) string {
	var words []string
	for _, t := range all {
		words = append(words, t.UTC().Format(timerForm))
	}
	return strings.Join(words, ", ")
}

// runs tells each boot by each clock.
func (o *timersOut) runs(t *doctor.TimerInfo) {
	for i := range t.Runs {
		r := &t.Runs[i]
		head := r.Clock
		if r.Stamps != "" {
			head += ", if " + r.Stamps
		}
		o.prose("  if ", Text(head)+": "+runVerdict(r))
		for n := range r.Boots {
			b := &r.Boots[n]
			for _, e := range b.Events {
				who := ""
				if e.Unit != "" {
					who = Text(e.Unit) + ": "
				}
				o.prose(fmt.Sprintf("    boot %d %9s  %s  ", n+1, after(e.After), e.Clock.UTC().Format(timerForm)), who+Text(e.Text))
			}
		}
	}
}

// after writes the time in a boot.
func after(seconds float64) string {
	return "+" + time.Duration(seconds*float64(time.Second)).Round(time.Second).String()
}

func runVerdict(r *doctor.TimerRun) string {
	switch {
	case r.Loop:
		s := "again and again, every " + time.Duration(r.Period*float64(time.Second)).Round(time.Second).String()
		if r.Ends > 0 {
			s += ", for about " + time.Duration(r.Ends*float64(time.Second)).String()
		}
		return s
	case len(r.Boots) > 0 && r.Boots[len(r.Boots)-1].Does == "":
		return "quiet in the end"
	}
	return "as it was made for in the end"
}

func (o *timersOut) atStart(all []doctor.TimerAct) {
	if len(all) == 0 {
		return
	}
	o.line("at each start, without a timer:")
	for i := range all {
		o.prose("  ", Text(all[i].Unit)+" does: "+Text(all[i].Does))
		o.acts(all[i : i+1])
	}
	o.line()
}

// rest lists the timers that do nothing to the machine.
func (o *timersOut) rest(m *doctor.Timers, from int) {
	var rows [][]string
	more := 0
	for i := range m.Timers[from:] {
		t := &m.Timers[from+i]
		if !o.s.All && (!t.Reached || len(rows) == maxTimerRows) {
			more++
			continue
		}
		next, last := "-", "-"
		switch {
		case !t.Reached:
			next = "not started"
		case len(t.Next) > 0:
			next = t.Next[0].UTC().Format(timerForm)
		case len(t.Later) > 0:
			next = "later"
		}
		if !t.Last.IsZero() {
			last = t.Last.UTC().Format(timerForm)
		}
		rows = append(rows, []string{Text(t.Unit), next, last, Text(t.Starts)})
		if o.s.All && len(t.Next) > 1 {
			for _, at := range t.Next[1:] {
				rows = append(rows, []string{"", at.UTC().Format(timerForm), "", ""})
			}
		}
	}
	if len(rows) > 0 {
		o.table([]string{"TIMER", "NEXT (UTC)", "LAST (UTC)", "STARTS"}, rows, make([]string, len(rows)), nil)
	}
	if more > 0 {
		o.line("and ", strconv.Itoa(more), " more, of which most are started by no boot: --verbose lists all")
	}
	if len(rows) > 0 || more > 0 {
		o.line()
	}
}

// clock tells what timers rest on, where one of them acts on the machine.
func (o *timersOut) clock(m *doctor.Timers) {
	c := &m.Clock
	if len(m.Dangerous()) == 0 {
		return
	}
	words := []string{"zone " + Text(c.Zone)}
	switch {
	case c.ErrorKnown && c.Error != 0:
		words = append(words, fmt.Sprintf("the hardware's clock is off by %s", time.Duration(c.Error)*time.Second))
	case c.ErrorKnown:
		words = append(words, "the hardware's clock is right")
	case c.Local == "yes":
		words = append(words, "the hardware's clock is taken for local time")
	}
	for _, p := range []struct{ truth, who, yes, no string }{
		{c.Synced, c.Daemon, "set right by ", "set right by nobody"}, {c.Saves, c.Saver, "never before the last time that was kept by ", "nothing keeps it from starting too early"},
		{c.Waits, c.Waiter, "timers wait for ", ""}} {
		switch {
		case p.truth == "yes":
			words = append(words, p.yes+Text(p.who))
		case p.truth == "no" && p.no != "":
			words = append(words, p.no)
		case p.truth == "unknown" && p.who != "":
			words = append(words, "perhaps "+p.yes+Text(p.who)+", which a boot may start, or not")
		}
	}
	o.prose("clock: ", strings.Join(words, ", "))
	if c.Writable != "yes" || c.Lasts != "yes" {
		o.prose("stamps: ", "writable: "+c.Writable+", last over a restart: "+c.Lasts+strings.TrimSuffix(" ("+Text(c.Why)+")", " ()"))
	}
	o.line()
}

func (o *timersOut) gaps(all []doctor.Missing) {
	if len(all) == 0 {
		return
	}
	o.line("not looked at:")
	for i, g := range all {
		if i == maxTimerGaps && !o.s.All {
			o.line("  and ", strconv.Itoa(len(all)-i), " more: --verbose lists all")
			break
		}
		o.prose("  ", strings.TrimPrefix(Text(g.Object)+": ", ": ")+Text(g.Reason))
	}
	o.line()
}

func (o *timersOut) word(m *doctor.Timers) string {
	worst, unsure := m.Worst()
	switch {
	case worst == doctor.TimerLoops || worst == doctor.TimerMayLoop:
		return o.paint(red, "DANGER")
	case worst == doctor.TimerSurprise:
		return o.paint(yellow, "WARNING")
	case unsure:
		return o.paint(magenta, "CANNOT TELL")
	}
	return o.paint(green, "CLEAN")
}

// timerSummary says in a line what the timers of a machine amount to.
func timerSummary(m *doctor.Timers) string {
	worst, unsure := m.Worst()
	names := []string{}
	for _, t := range m.Dangerous() {
		if t.Danger == worst {
			names = append(names, Text(t.Unit))
		}
	}
	who := strings.Join(names, ", ")
	if len(names) == 0 {
		who = "a unit that each start runs"
	}
	switch {
	case worst == doctor.TimerLoops:
		return who + " takes it down again and again"
	case worst == doctor.TimerMayLoop:
		return who + " may take it down again and again"
	case worst == doctor.TimerSurprise:
		return who + " takes it down once, right after its next start"
	case unsure:
		return "not all that its timers rest on is known"
	case worst == doctor.TimerActs:
		return who + " takes it down at the times that it was made for, and never twice"
	}
	if !m.Systemd {
		return "it has no units of systemd"
	}
	return Count(int64(len(m.Timers)), "timer", "timers") + ", none takes it down"
}
