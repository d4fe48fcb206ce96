// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package reboots plays what timers that restart a machine do over one boot after another: whether it
// ends up in a loop, how fast that turns, and what each boot did when by which clock.
//
// It follows systemd 252 (src/core/timer.c; the parts that matter did not change from 246 to 257). Of
// that, in short:
//
//	a timer starts     the stamp of a persistent one is when it elapsed last, if that is in the past; one
//	                   that is missing is made now, and nothing is caught up
//	it waits           for the first time of its calendar after that, or after it was started; what is
//	                   before the boot is moved to the boot, and elapses at once
//	it elapses         the stamp is written, whether or not the unit ever ends; an error is ignored
//	the clock is set   it waits anew, from when it was started by the clock as it was: what was stepped over
//	                   elapses at once, persistent or not
//
// Nothing here is random: where systemd draws a delay, both ends of its range are played.
package reboots

import (
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/calendar"
)

// Timer is a timer whose unit acts on the machine.
type Timer struct {
	Name, Unit string
	// Calendar are the events of OnCalendar=.
	Calendar []*calendar.Spec
	// The spans of OnBootSec=, OnStartupSec= and OnActiveSec=.
	Boot, Startup, Active []time.Duration
	// Those of OnUnitActiveSec= and OnUnitInactiveSec=, which count from when the unit was started last, and ended last, in
	// a boot: they do nothing until it ran, and elapse again and again after that.
	UnitActive, UnitInactive []time.Duration
	Runs                     Runs

	// OnClock: it elapses when the clock is set.
	OnClock    bool
	Persistent bool
	// Random is RandomizedDelaySec=, Accuracy AccuracySec=.
	Random, Accuracy time.Duration
	Stamp            Stamp
	// Does is what its unit does: "reboot", "poweroff" ...; After is how long that waits by itself.
	Does  string
	After time.Duration
	// Scheduled: it waits for a time of the day, as "shutdown -r 03:30", which is played as half a day.
	Scheduled bool
	// Once: the unit takes care, for good, that it does not run again.
	Once bool
}

// Runs is what is known of how a timer's unit runs.
type Runs struct {
	// Booted: each boot starts it besides.
	Booted bool
	// Stays: once it was started it does not end, and nothing comes of further starts.
	Stays bool
	// Spares is how many of its first runs in a boot do not act.
	Spares int
	// Burst: it acts when it is started more often than so within Within, and not else (StartLimitBurst=,
	// StartLimitIntervalSec=). 0: it acts whenever it runs.
	Burst  int
	Within time.Duration
}

// Stamp is the file that remembers when a persistent timer elapsed last.
type Stamp struct {
	// At is its time, zero if there is none.
	At time.Time
	// Fixed: it cannot be written.
	Fixed bool
	// Forgotten: it is as now again at each boot, whatever is written to it.
	Forgotten bool
	// Unsynced: what is written to it just before the machine acts may be lost, since it does so
	// without writing to the disk what is in memory. It is played as lost.
	Unsynced bool
}

// Direct is a unit that acts at each boot without a timer.
type Direct struct {
	Unit, Does string
	After      time.Duration
	Once       bool
}

// Clock is how the clock of the day behaves.
type Clock struct {
	// Name says it for people: "right", "9h0m0s slow, set right 5s after the start".
	Name string
	// Error is by how much it is off when a boot begins; slow is below zero.
	Error time.Duration
	// Begins is what it shows at the start of each boot, if it does not run while the machine is off;
	// zero if it does.
	Begins time.Time
	// Build is the time of systemd's build, before which the clock is never after systemd has started;
	// zero if not known.
	Build time.Time
	// Saved is a time before which the clock is never when timers start, as a daemon remembers it; zero if none
	// does. Saves: it remembers the present one too, once the clock was set right.
	Saved time.Time
	Saves bool
	// Sync is how long after the start the clock is set right; below zero is never.
	Sync time.Duration
	// Waits: timers with a calendar wait until the clock is set right.
	Waits bool
}

// World is a machine as far as its restarts go.
type World struct {
	// Start is when the first boot begins, by a clock that is right.
	Start  time.Time
	Timers []Timer
	Direct []Direct
	Clock  Clock
	// Late has each delay be the longest possible, else the shortest.
	Late bool
	// Left is how often the next time of a calendar may still be looked for, which somebody's units could make
	// take for ever; nil is as often as it takes. It is counted down.
	Left *int
	// none are calendars that have no time after one: to find that out takes long.
	none map[*calendar.Spec]time.Time
}

// How long parts of a boot take, as measured in small guests; nothing rests on the exact values.
const (
	timersAfter = 2 * time.Second // from the start of the kernel until timers run
	unitsAfter  = 4 * time.Second // until the units run that each boot starts
	downTakes   = 4 * time.Second // from the act until the next start of the kernel
)

// Short is how long a boot has to last that is no part of a loop.
const Short = 10 * time.Minute

// Bounds of what is played.
const (
	maxBoots = 16
	inARow   = 4   // boots that end wrongly, after which it is a loop; one more for each timer after the first
	enough   = 3   // boots that end as they should, after which there is none
	maxRuns  = 200 // of a timer's unit in one boot, which then does not act later either
)

// Event is something that happened in a boot.
type Event struct {
	// After is how long after the start of the boot, True the right time, Clock what the machine's
	// clock showed.
	After time.Duration `json:"after"`
	True  time.Time     `json:"time"`
	Clock time.Time     `json:"clock"`
	Kind  Kind          `json:"kind"`
	// Timer is the timer or unit, "" if none is concerned.
	Timer string `json:"unit"`
	Text  string `json:"text"`
	// For is the time of a calendar that a timer waits for, or that it catches up; zero for others.
	For time.Time `json:"for"`
}

// Kind is what an event is.
type Kind string

// The kinds.
const (
	Starts  Kind = "starts"  // the kernel
	Lifted  Kind = "lifted"  // the clock is put forward before timers start
	Stamped Kind = "stamp"   // what became of a stamp
	Waits   Kind = "waits"   // for a time
	Set     Kind = "set"     // the clock is set right
	Elapsed Kind = "elapsed" // a timer
	Ran     Kind = "ran"     // its unit, which does not act
	Acts    Kind = "acts"    // a unit
)

// Boot is one boot.
type Boot struct {
	// Began is the right time at which it did, Shown what its clock showed.
	Began time.Time `json:"began"`
	Shown time.Time `json:"shown"`
	// Lasted is how long, until the unit acted; 0 if it stays.
	Lasted time.Duration `json:"lasted"`
	// Does is what ended it, "" if nothing does; Unit and Timer are who.
	Does  string `json:"does"`
	Unit  string `json:"unit"`
	Timer string `json:"timer"`
	// Due: what ended it was due in it, by the right clock. Wrong: it was not, or the boot lasted for less
	// than Short.
	Due    bool    `json:"due"`
	Wrong  bool    `json:"wrong"`
	Events []Event `json:"events"`
}

// Run is what became of a world.
type Run struct {
	Clock string `json:"clock"`
	// By is that clock.
	By Clock `json:"-"`
	// Unfinished: World.Left was used up, and nothing is known.
	Unfinished bool   `json:"unfinished"`
	Boots      []Boot `json:"boots"`
	// Loop: boots that end wrongly follow one another.
	Loop bool `json:"loop"`
	// Begins is when the first of its boots does. Period is from one start to the next in the loop; Ends how long it
	// goes on until a boot stays up for longer, 0 if it never ends by itself.
	Begins time.Time     `json:"begins"`
	Period time.Duration `json:"period"`
	Ends   time.Duration `json:"ends"`
	// Surprise is the index of the first boot that ended without a loop though nothing was due, -1 if
	// there is none.
	Surprise int `json:"surprise"`
}

// Restarts is how many boots ended within a time from the start of the first.
func (r *Run) Restarts(within time.Duration) (n int) {
	for i := range r.Boots {
		b := &r.Boots[i]
		if b.Does != "" && b.Began.Add(b.Lasted).Sub(r.Boots[0].Began) <= within {
			n++
		}
	}
	return n
}

// Simulate plays a world until it is plain what becomes of it.
func Simulate(w World) Run {
	m := newMachine(w)
	r := Run{Clock: w.Clock.Name, By: w.Clock, Surprise: -1}
	at, wrong, right := w.Start, 0, 0
	for len(r.Boots) < maxBoots && wrong < w.inARow() && right < enough {
		b := m.boot(at)
		r.Boots = append(r.Boots, b)
		switch {
		case b.Does == "":
			right = enough
		case b.Wrong:
			wrong, right = wrong+1, 0
		default:
			wrong, right = 0, right+1
		}
		at = b.Began.Add(b.Lasted + downTakes)
	}
	r.judge(m, wrong)
	if w.Left != nil && *w.Left <= 0 {
		return Run{Clock: w.Clock.Name, By: w.Clock, Boots: r.Boots, Surprise: -1, Unfinished: true}
	}
	return r
}

// inARow is how many boots that end wrongly are a loop: of several timers each may catch up something of its own, one
// in each boot.
func (w *World) inARow() int { return min(inARow+max(len(w.Timers)-1, 0), maxBoots-enough) }

// judge says whether it was a loop, and when it ends.
func (r *Run) judge(m *machine, wrong int) {
	n := len(r.Boots)
	row := m.inARow()
	if wrong < row {
		r.Surprise = slices.IndexFunc(r.Boots, func(b Boot) bool { return b.Does != "" && !b.Due })
		return
	}
	r.Loop = true
	first, last := &r.Boots[n-row], &r.Boots[n-1]
	r.Begins = first.Began
	r.Period = last.Began.Sub(first.Began) / time.Duration(row-1)
	next := last.Began.Add(last.Lasted + downTakes)
	for _, later := range laters() {
		// One that ends when it happens to be due, and lasted no longer than those before, is a turn of the loop all the same.
		if b := m.later(later).boot(next.Add(later)); b.Does == "" || !b.Wrong && b.Lasted > 2*r.Period {
			r.Ends = later
			return
		}
	}
}

// laters are how much later it is looked whether a loop still goes on: each half hour of two days, then days,
// then years.
func laters() (all []time.Duration) {
	for h := time.Duration(1); h <= 96; h++ {
		all = append(all, h*30*time.Minute)
	}
	for _, days := range []time.Duration{3, 5, 8, 32, 100, 366, 800} {
		all = append(all, days*24*time.Hour)
	}
	return all
}
