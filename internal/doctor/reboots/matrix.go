// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package reboots

import (
	"strconv"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/calendar"
)

// Truth is what is known of something.
type Truth string

// The truths.
const (
	Yes     Truth = "yes"
	No      Truth = "no"
	Unknown Truth = "unknown"
)

// Known is what is known of a machine's clock.
type Known struct {
	// Offset is by how much local time is before UTC.
	Offset time.Duration
	// Local: systemd takes the clock of the hardware for local time (/etc/adjtime).
	Local Truth
	// Right: the clock of the hardware is known to be what systemd takes it for; No: it is known to be off by
	// Error.
	Right Truth
	Error time.Duration
	// Synced: a daemon is there that sets the clock right.
	Synced Truth
	// Saves: a daemon keeps the clock from starting before Saved, the last time that it knows of.
	Saves Truth
	Saved time.Time
	// Waits: timers with a calendar wait for the right time.
	Waits Truth
	// Build is the time of systemd's build, zero if not known.
	Build time.Time
}

// soon and late are how long after the start the clock is set right, if it is.
const (
	soonSet = 5 * time.Second
	lateSet = 20 * time.Minute
)

// farAhead is how far a clock is off that somebody set to another year.
const farAhead = 10 * 365 * 24 * time.Hour

// Clocks gives the clocks that the machine may have at its next starts, the likeliest first: what is not
// known is there both ways.
func Clocks(k Known) []Clock {
	var all []Clock
	for _, saves := range ways(k.Saves) {
		for _, c := range k.errors() {
			c.Build, c.Waits = k.Build, k.Waits == Yes // what does not wait is worse
			if saves {
				c.Saves, c.Saved = true, k.Saved
				c.Name += ", no earlier than the last time that was saved"
			}
			all = append(all, k.syncs(c)...)
		}
	}
	return all
}

// ways gives what is to be played of something that may not be known.
func ways(t Truth) []bool {
	switch t {
	case Yes:
		return []bool{true}
	case No:
		return []bool{false}
	}
	return []bool{true, false}
}

// errors gives the clocks at the start of a boot.
func (k Known) errors() []Clock {
	right := Clock{Name: "the clock is right"}
	off := -k.Offset // UTC in the hardware, taken for local time
	if k.Local == No {
		off = k.Offset // local time in the hardware, taken for UTC
	}
	var zone []Clock
	if off != 0 {
		c := Clock{Name: "the clock is " + by(off) + " at the start", Error: off}
		other := Clock{Name: "the clock is " + by(-off) + " at the start", Error: -off}
		zone = []Clock{c, other}
	}
	all := append([]Clock{right}, zone...)
	if k.Right == No && k.Error != 0 {
		all = append([]Clock{{Name: "the clock is " + by(k.Error) + " at the start, as it is now", Error: k.Error}}, all...)
	}
	epoch := time.Unix(0, 0)
	return append(all, Clock{Name: "the clock of the hardware has stopped, and begins in 1970", Begins: epoch},
		Clock{Name: "the clock is ten years ahead", Error: farAhead})
}

// by says how a clock is off.
func by(d time.Duration) string {
	if d < 0 {
		return spell(-d) + " slow"
	}
	return spell(d) + " fast"
}

// spell writes hours and minutes: "9h", "5h30m", "5s".
func spell(d time.Duration) string {
	hours, minutes, seconds := int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60
	s := ""
	for _, p := range []struct {
		n    int
		unit string
	}{{hours, "h"}, {minutes, "m"}, {seconds, "s"}} {
		if p.n > 0 {
			s += strconv.Itoa(p.n) + p.unit
		}
	}
	return s
}

// syncs gives a clock with what sets it right.
func (k Known) syncs(c Clock) []Clock {
	never := c
	never.Sync = -1
	if c.Error == 0 && c.Begins.IsZero() {
		if k.Synced == Yes || k.Waits == Yes {
			never.Sync = soonSet
		}
		return []Clock{never}
	}
	never.Name += ", and never set right"
	var all []Clock
	if k.Synced != No {
		for _, after := range []time.Duration{soonSet, lateSet} {
			x := c
			x.Sync = after
			x.Name += ", and set right " + spell(after) + " later"
			all = append(all, x)
		}
	}
	return append(all, never)
}

// Matrix plays a world with every clock that it may have, and with the shortest and the longest delays. Runs are
// in the order of the clocks; of two that differ by the delays only, the worse is kept.
func Matrix(w World, k Known) []Run {
	var all []Run
	w.none = map[*calendar.Spec]time.Time{}
	for _, c := range Clocks(k) {
		w.Clock, w.Late = c, false
		r := Simulate(w)
		w.Late = true
		if late := Simulate(w); late.worse(&r) {
			r = late
		}
		all = append(all, r)
	}
	return all
}

// worse tells whether a run is worse than another.
func (r *Run) worse(than *Run) bool {
	grade := func(r *Run) int {
		switch {
		case r.Loop:
			return 2
		case r.Surprise >= 0:
			return 1
		}
		return 0
	}
	return grade(r) > grade(than)
}
