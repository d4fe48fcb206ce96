// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package calendar

import (
	"cmp"
	"fmt"
	"slices"
)

// The years of events, and the last second of them.
const (
	minYear = 1970
	maxYear = 2199
	maxUnix = 7258118399
)

// normalize brings an event into the form that String shows.
func (s *Spec) normalize() {
	if s.days == 1<<7-1 {
		s.days = 0
	}
	if s.utc {
		s.suffix, s.zone = "UTC", nil
	}
	if len(s.parts[day]) == 0 {
		s.fromEnd = false
	}
	for i := range s.parts[year] {
		c := &s.parts[year][i]
		c.start, c.stop = fullYear(c.start), fullYear(c.stop)
	}
	for i := range s.parts {
		s.parts[i].normalize()
	}
}

// fullYear makes 2012 of 12, and 1989 of 89.
func fullYear(y int) int {
	switch {
	case y >= 0 && y < 70:
		return y + 2000
	case y >= 70 && y < 100:
		return y + 1900
	}
	return y
}

// normalize has each range end at a value that counts, makes a single value of a range without a
// second one, and sorts.
func (c *chain) normalize() {
	for i := range *c {
		x := &(*c)[i]
		if x.stop > x.start && x.repeat > 0 {
			x.stop -= (x.stop - x.start) % x.repeat
		}
		if x.stop > x.start && x.repeat > 0 && x.start+x.repeat > x.stop || x.start == x.stop {
			x.stop, x.repeat = -1, 0
		}
	}
	slices.SortFunc(*c, func(a, b component) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.stop, b.stop), cmp.Compare(a.repeat, b.repeat))
	})
	*c = slices.Compact(*c)
}

// valid gives an error for an event with a value that no time has.
func (s *Spec) valid() error {
	for i, b := range [partCount]struct {
		name     string
		from, to int
	}{
		{"year", minYear, maxYear}, {"month", 1, 12}, {"day", 1, 31}, {"hour", 0, 23}, {"minute", 0, 59},
		{"second", 0, 60*second - 1},
	} {
		end := i == day && s.fromEnd
		for _, c := range s.parts[i] {
			if end {
				// Three less, so that each month has it. systemd 252 takes off three more for each further item
				// of the list, which cannot be meant; but what it refuses does not run.
				b.to -= 3
			}
			if !c.valid(b.from, b.to, end) {
				return fmt.Errorf("%w: there is no such %s", errForm, b.name)
			}
		}
	}
	return nil
}

// valid tells whether a component lies in its bounds and repeats at least once.
func (c component) valid(from, to int, end bool) bool {
	switch {
	case c.start < from || c.start > to || c.repeat > to-from:
		return false
	case c.stop >= 0:
		return c.stop >= from && c.stop <= to && c.start+c.repeat <= c.stop
	case end: // repeated towards the end of the month
		return c.start-c.repeat >= from
	}
	return c.start+c.repeat <= to
}
