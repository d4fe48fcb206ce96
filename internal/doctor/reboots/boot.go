// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package reboots

import (
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/calendar"
)

// machine is what lasts from one boot to the next.
type machine struct {
	World
	stamps []lasting // of the timers
	spent  []bool    // of the timers, then of the direct units: they run no more
	saved  lasting   // the clock's floor
}

// lasting is a time that a file remembers. fresh: it was written since the first boot.
type lasting struct {
	at    time.Time
	fresh bool
}

func newMachine(w World) *machine {
	if w.none == nil {
		w.none = map[*calendar.Spec]time.Time{}
	}
	m := &machine{World: w, spent: make([]bool, len(w.Timers)+len(w.Direct)), saved: lasting{at: w.Clock.Saved}}
	for i := range w.Timers {
		m.stamps = append(m.stamps, lasting{at: w.Timers[i].Stamp.At})
	}
	return m
}

// later gives a machine to which the same happened so much later.
func (m *machine) later(by time.Duration) *machine {
	c := *m
	c.spent = slices.Clone(m.spent)
	c.stamps = slices.Clone(m.stamps)
	for i := range c.stamps {
		if c.stamps[i].fresh {
			c.stamps[i].at = c.stamps[i].at.Add(by)
		}
	}
	if c.saved.fresh {
		c.saved.at = c.saved.at.Add(by)
	}
	return &c
}

// boot is a boot that is played.
type boot struct {
	*machine
	now time.Duration // since the kernel's start
	// zero is what the clock would have shown then, as it goes now.
	zero   time.Time
	synced bool
	timers []*timer
	// plain and calendars tell whether timers of that kind were started.
	plain, calendars bool
	out              Boot
}

// timer is one in a boot.
type timer struct {
	*Timer
	index int
	// last is when it elapsed last as far as the stamp tells; zero if not known.
	last time.Time
	// since and began are when it was started, by both clocks.
	since time.Duration
	began time.Time
	// runs is how often its unit ran in this boot, ran when that was last. limited is since when its starts are counted for
	// systemd's limit, num how many.
	runs    int
	ran     time.Duration
	limited time.Duration
	num     int
	// elapsed is when it elapsed last in this boot; never if it did not.
	elapsed time.Duration
	// passed are spans that were over when it started; they elapse no more.
	passed map[time.Duration]bool
	wait
}

// wait is what a timer waits for.
type wait struct {
	on bool
	// at is by the clock of the day if day is set, else since the kernel's start.
	day   bool
	clock time.Time
	mono  time.Duration
	// moved: what it waits for was before the boot, and moved to its start. due is what it was.
	moved bool
	due   time.Time
	why   string
}

const never = time.Duration(1<<63 - 1)

// boot plays one boot that begins at a time.
func (m *machine) boot(began time.Time) Boot {
	b := &boot{machine: m, zero: began.Add(m.Clock.Error)}
	if !m.Clock.Begins.IsZero() {
		b.zero = m.Clock.Begins
	}
	b.out = Boot{Began: began, Shown: b.zero, Events: []Event{}}
	b.note(Starts, "", "the kernel starts")
	b.lift(m.Clock.Build, "systemd puts the clock forward to the time of its own build")
	for !b.next() {
	}
	return b.out
}

// clock is what the clock of the day shows.
func (b *boot) clock() time.Time { return b.zero.Add(b.now) }

// trueTime is the right time.
func (b *boot) trueTime() time.Time { return b.out.Began.Add(b.now) }

func (b *boot) note(k Kind, who, text string) {
	b.out.Events = append(b.out.Events, Event{After: b.now, True: b.trueTime(), Clock: b.clock(), Kind: k, Timer: who, Text: text})
}

// lift puts the clock forward to a time, if it is before that.
func (b *boot) lift(to time.Time, why string) {
	if to.After(b.clock()) {
		b.zero = to.Add(-b.now)
		b.note(Lifted, "", why)
	}
}

// next goes to what happens next; over is set when nothing more does.
func (b *boot) next() (over bool) {
	c := &b.Clock
	starts, sync, unit := never, never, never
	switch {
	case !b.plain:
		starts = timersAfter
	case !b.calendars && !c.Waits:
		starts = b.now
	case !b.calendars && c.Sync >= 0: // what waits for a time that never comes never runs
		starts = max(c.Sync, b.now)
	}
	if !b.synced && c.Sync >= 0 {
		sync = max(c.Sync, b.now)
	}
	direct := b.direct()
	if direct != nil {
		unit = max(unitsAfter, b.now)
	}
	t, elapses := b.first()
	booted, runs := b.booted()
	switch first := min(starts, sync, unit, runs, elapses); first {
	case never:
		return true
	case sync:
		b.now = sync
		b.set()
	case starts:
		b.now = starts
		b.startTimers()
	case unit:
		b.now = unit
		return b.act(direct.Unit, "", direct.Does, direct.After, direct.After >= Short)
	case runs:
		b.now = runs
		return b.run(booted, "", b.now >= Short)
	default:
		b.now = elapses
		return b.elapse(t)
	}
	return false
}

// direct gives the unit that this boot starts by itself.
func (b *boot) direct() *Direct {
	for i := range b.Direct {
		if n := len(b.Timers) + i; !b.spent[n] {
			return &b.Direct[i]
		}
	}
	return nil
}

// booted gives a timer whose unit this boot starts besides and has not yet, and when it does.
func (b *boot) booted() (*timer, time.Duration) {
	for _, t := range b.timers {
		if t.Runs.Booted && t.runs == 0 {
			return t, max(unitsAfter, b.now)
		}
	}
	return nil, never
}

// run has a timer's unit run: it acts, or the timer waits anew.
func (b *boot) run(t *timer, timer string, due bool) (over bool) {
	if t.runs > 0 && t.Runs.Stays {
		return false // it runs still, and until it ends its timer waits for nothing
	}
	if t.runs == 0 || b.now-t.limited >= t.Runs.Within {
		t.limited, t.num = b.now, 0
	}
	t.num++
	t.runs++
	t.ran = b.now
	if acts := t.runs > t.Runs.Spares; acts && (t.Runs.Burst == 0 || t.num > t.Runs.Burst) {
		if t.Once {
			b.spent[t.index] = true
		}
		after := t.After
		if t.Scheduled {
			after, due = 12*time.Hour, true
		}
		return b.act(t.Unit, timer, t.Does, after, due)
	}
	b.note(Ran, t.Unit, "it runs, and does nothing to the machine")
	t.wait = wait{mono: never}
	if t.runs < maxRuns && (timer == "" || !t.Runs.Stays) { // else the timer waits for its unit's end
		b.wait(t, false)
	}
	return false
}

// first gives the timer that elapses first, and when.
func (b *boot) first() (first *timer, after time.Duration) {
	after = never
	for _, t := range b.timers {
		if !t.on {
			continue
		}
		at := t.mono
		if t.day {
			at = t.clock.Sub(b.zero) // saturates far away, which is never
		}
		if at = max(at, b.now); at < after {
			first, after = t, at
		}
	}
	return first, after
}

// set sets the clock right, and has timers wait anew.
func (b *boot) set() {
	b.synced = true
	by := b.out.Began.Sub(b.zero)
	b.zero = b.out.Began
	if b.Clock.Saves {
		b.saved = lasting{b.clock(), true}
	}
	if by == 0 {
		return
	}
	b.note(Set, "", "the clock is set right, by "+signed(by))
	for _, t := range b.timers {
		if !t.on {
			continue
		}
		if t.last.After(b.clock()) {
			t.last = b.clock()
		}
		if t.OnClock {
			t.wait = wait{on: true, mono: b.now, why: "the clock was set"}
			continue
		}
		b.wait(t, true)
	}
}

// signed says in which direction a clock is set.
func signed(by time.Duration) string {
	if by < 0 {
		return "-" + (-by).Round(time.Second).String()
	}
	return "+" + by.Round(time.Second).String()
}

// startTimers starts all timers that are left: first those without a calendar.
func (b *boot) startTimers() {
	calendars := b.plain
	if !b.plain {
		b.lift(b.saved.at, "the time daemon puts the clock forward to the last time that it saved")
	}
	b.plain, b.calendars = true, calendars
	for i := range b.Timers {
		if b.spent[i] || calendars != (len(b.Timers[i].Calendar) > 0) {
			continue
		}
		t := &timer{Timer: &b.Timers[i], index: i, since: b.now, began: b.clock(), elapsed: never, passed: map[time.Duration]bool{}}
		b.timers = append(b.timers, t)
		if t.Persistent {
			b.readStamp(t)
		}
		b.wait(t, false)
	}
}

// readStamp takes the time of a stamp, if it is in the past. One that is missing is made.
func (b *boot) readStamp(t *timer) {
	at := b.stamps[t.index].at
	if t.Stamp.Forgotten {
		at = t.Stamp.At
	}
	switch {
	case at.IsZero():
		b.note(Stamped, t.Name, "there is no stamp: nothing is caught up")
		b.writeStamp(t)
	case at.Before(b.clock()):
		t.last = at
		b.note(Stamped, t.Name, "its stamp says that it elapsed last at "+show(at))
	default:
		b.note(Stamped, t.Name, "its stamp, "+show(at)+", is in the future by this clock, and does not count")
	}
}

func (b *boot) writeStamp(t *timer) {
	if !t.Stamp.Fixed {
		b.stamps[t.index] = lasting{b.clock(), true}
	}
}

func show(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

// wait finds what a timer waits for. stepped: the clock was just set.
func (b *boot) wait(t *timer, stepped bool) {
	t.wait = wait{mono: never}
	for _, spec := range t.Calendar {
		base := t.last
		if base.IsZero() {
			base = t.began
		}
		next, ok := b.after(spec, base)
		if !ok {
			continue
		}
		why := "the next " + spec.String() + " after " + show(base)
		moved, due := next.Before(b.zero), next
		if moved {
			next, why = b.zero, why+" was "+show(next)+", before this boot: it is moved to its start"
		}
		if !t.on || next.Before(t.clock) {
			t.wait = wait{on: true, day: true, clock: next, mono: never, moved: moved, due: due, why: why}
		}
	}
	day := t.wait
	for _, s := range []struct {
		from  time.Duration
		spans []time.Duration
		name  string
	}{{0, t.Boot, "OnBootSec"}, {0, t.Startup, "OnStartupSec"}, {t.since, t.Active, "OnActiveSec"}} {
		for _, span := range s.spans {
			at := s.from + span
			if span == calendar.Infinity || t.passed[at] {
				continue
			}
			// Spans that are over before a timer with a stamp starts are taken for having elapsed, and so are those that did.
			if !t.last.IsZero() && !stepped && (at < b.now || at == b.now && t.elapsed == b.now) {
				t.passed[at] = true
				continue
			}
			if at < t.mono {
				t.wait = wait{on: true, mono: at, why: s.name + "=" + span.String()}
			}
		}
	}
	b.waitRuns(t)
	if b.Late {
		t.delay(&day)
		t.delay(&t.wait)
	}
	// Both may run: the one that is over first counts.
	if day.on && !t.day && day.clock.Sub(b.zero) < t.mono {
		t.wait = day
	}
	if t.on {
		b.note(Waits, t.Name, "it waits for "+t.why)
		b.out.Events[len(b.out.Events)-1].For = t.wait.due
	}
}

// waitRuns adds what counts from the runs of the timer's unit.
func (b *boot) waitRuns(t *timer) {
	since := time.Duration(-1)
	if t.elapsed != never {
		since = t.elapsed
	}
	for _, s := range []struct {
		ran   bool
		spans []time.Duration
		name  string
	}{{t.runs > 0, t.UnitActive, "OnUnitActiveSec"}, {t.runs > 0 && !t.Runs.Stays, t.UnitInactive, "OnUnitInactiveSec"}} {
		base := since
		if s.ran {
			base = max(base, t.ran)
		}
		for _, span := range s.spans {
			if base < 0 || span == calendar.Infinity || span >= never-base || base+span >= t.mono {
				continue
			}
			t.wait = wait{on: true, mono: base + span, why: s.name + "=" + span.String() + " after " + t.Unit + " ran"}
		}
	}
}

// after gives the next time of a calendar, none if it may not be looked for any more.
func (m *machine) after(spec *calendar.Spec, base time.Time) (time.Time, bool) {
	if m.Left != nil {
		if *m.Left <= 0 {
			return time.Time{}, false
		}
		*m.Left--
	}
	if since, none := m.none[spec]; none && !base.Before(since) {
		return time.Time{}, false
	}
	next, ok := spec.Next(base)
	if !ok {
		m.none[spec] = base
	}
	return next, ok
}

// delay adds the longest delay that may be drawn.
func (t *timer) delay(w *wait) {
	d := t.Random
	if t.Accuracy > 0 {
		d += t.Accuracy
	}
	switch {
	case !w.on || d <= 0 || d > 100*366*24*time.Hour:
	case w.day:
		w.clock = w.clock.Add(d)
	case w.mono < never-d:
		w.mono += d
	}
}

// elapse has a timer elapse: the stamp is written, and its unit runs.
func (b *boot) elapse(t *timer) (over bool) {
	b.note(Elapsed, t.Name, "it elapses: "+t.why)
	before := b.stamps[t.index]
	if t.Persistent {
		b.writeStamp(t)
		switch {
		case t.Stamp.Fixed:
			b.note(Stamped, t.Name, "its stamp cannot be written")
		case t.Stamp.Forgotten:
			b.note(Stamped, t.Name, "its stamp is written where the next boot does not find it")
		case t.Stamp.Unsynced:
			b.stamps[t.index] = before
			b.note(Stamped, t.Name, "its stamp is written, but not yet to the disk, and is lost")
		}
	}
	due := b.due(t)
	t.last, t.elapsed, t.wait = b.clock(), b.now, wait{mono: never}
	return b.run(t, t.Name, due)
}

// due tells whether a timer elapses for what it was made for: a time of its calendar, by the right clock,
// was in this boot, and it is no earlier one that it catches up. Spans are due if they are long enough.
func (b *boot) due(t *timer) bool {
	if !t.day {
		return b.now >= Short
	}
	if t.moved {
		return false
	}
	for _, spec := range t.Calendar {
		if next, ok := b.after(spec, b.out.Began.Add(-time.Second)); ok && !next.After(b.trueTime()) {
			return true
		}
	}
	return false
}

// act ends a boot.
func (b *boot) act(unit, timer, does string, after time.Duration, due bool) (over bool) {
	if timer == "" {
		for i := range b.Direct {
			if d := &b.Direct[i]; d.Unit == unit && d.Once {
				b.spent[len(b.Timers)+i] = true
			}
		}
	}
	text := "it does: " + does
	if after > 0 {
		text += fmt.Sprintf(", after %s", after)
	}
	b.note(Acts, unit, text)
	b.now += after
	b.out.Lasted, b.out.Does, b.out.Unit, b.out.Timer = b.now, does, unit, timer
	b.out.Due, b.out.Wrong = due, !due || b.now < Short
	if b.Clock.Saves && b.synced {
		b.saved = lasting{b.clock(), true}
	}
	return true
}
