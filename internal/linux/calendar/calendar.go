// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package calendar reads the times of systemd's timers: calendar events as OnCalendar= has them, and
// spans of time as OnBootSec= has them, and tells when an event is next, as systemd 252 does
// (systemd.time(7)). What systemd refuses is refused.
//
//	Mon..Fri 2026-*-1,15 03:30:00.5/10 Europe/Berlin
//	weekdays year-month-day hour:minute:second zone
//
// Where clocks are put forward or back, systemd's answer comes from how the C library turns a time of
// the day into one of the world (mktime(3)); so does this one, step by step.
package calendar

import (
	"fmt"
	"strings"
	"time"
)

// Zones is what is known of zones where an event is read.
type Zones struct {
	// Local is the zone of the machine; nil is UTC.
	Local *time.Location
	// Load gives a zone by its name in the IANA database, as the machine has it. Its error is one for
	// fs.ErrNotExist if the machine has no such zone; nil is no zones at all. Names have letters,
	// digits, "-", "_", "+" and single slashes that are neither first nor last.
	Load func(name string) (*time.Location, error)
	// Now is the present there: an event may name the local zone as it is called then, CET or CEST.
	Now time.Time
}

// Spec is a calendar event.
type Spec struct {
	// days has a bit for each day of the week that counts, Monday is 1; 0 is all.
	days uint8
	// parts are from the year to the microseconds; one that is empty is all.
	parts [partCount]chain
	// fromEnd: days count from the end of the month, 1 is its last.
	fromEnd bool
	utc     bool
	// summer is 0 or 1 where the event names the local zone's standard or summer time, else -1.
	summer int
	zone   *time.Location
	// suffix is the zone as it is written; "" is the local one.
	suffix string
}

// The parts of an event.
const (
	year = iota
	month
	day
	hour
	minute
	micro // microseconds of the minute
	partCount
)

// component is one item of a list: start, start..stop, start/repeat or start..stop/repeat. stop is -1,
// repeat 0 where there is none.
type component struct{ start, stop, repeat int }

type chain []component

const second = 1_000_000 // in microseconds

// weekdays are the names as they are written.
var weekdays = [7]string{"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}

// String gives the normal form, which is read as the same event.
func (s *Spec) String() string {
	var b strings.Builder
	if s.days != 0 {
		writeDays(&b, s.days)
		b.WriteByte(' ')
	}
	for i, after := range [partCount]string{"-", "-", " ", ":", ":", ""} {
		width := 2
		if i == year {
			width = 4
		}
		s.parts[i].write(&b, width, i == micro)
		if i == month && s.fromEnd {
			after = "~"
		}
		b.WriteString(after)
	}
	if s.suffix != "" {
		b.WriteString(" " + s.suffix)
	}
	return b.String()
}

// writeDays writes weekdays: those that follow one another as a range, two as a list.
func writeDays(b *strings.Builder, days uint8) {
	comma := ""
	for i := 0; i < 7; i++ {
		if days&(1<<i) == 0 {
			continue
		}
		last := i
		for last < 6 && days&(1<<(last+1)) != 0 {
			last++
		}
		b.WriteString(comma + weekdays[i])
		comma = ","
		switch last - i {
		case 0:
		case 1:
			b.WriteString("," + weekdays[last])
		default:
			b.WriteString(".." + weekdays[last])
		}
		i = last
	}
}

// star tells whether all values count.
func (c chain) star(seconds bool) bool {
	for _, x := range c {
		if seconds && x == (component{0, -1, second}) {
			return true
		}
	}
	return len(c) == 0
}

func (c chain) write(b *strings.Builder, width int, seconds bool) {
	if c.star(seconds) {
		b.WriteByte('*')
		return
	}
	unit := 1
	if seconds {
		unit = second
	}
	value := func(n, width int) {
		fmt.Fprintf(b, "%0*d", width, n/unit)
		if n%unit > 0 {
			fmt.Fprintf(b, ".%06d", n%unit)
		}
	}
	for i, x := range c {
		if i > 0 {
			b.WriteByte(',')
		}
		value(x.start, width)
		if x.stop > 0 {
			b.WriteString("..")
			value(x.stop, width)
		}
		if x.repeat > 0 && !(x.stop > 0 && x.repeat == unit) {
			b.WriteByte('/')
			value(x.repeat, 1)
		}
	}
}
