// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package calendar

import "time"

// maxSteps bounds the search for the next time, as in systemd: an event that comes more rarely has none.
const maxSteps = 1000

// maxAfter is the last second after which anything is looked for: the end of 9999, less a day.
const maxAfter = 253402214399

// Next gives the first time of the event after a time, to the microsecond; ok is false if there is none
// until 2199, or systemd finds none. It is in UTC.
func (s *Spec) Next(after time.Time) (next time.Time, ok bool) {
	from := max(after.UnixMicro(), -1) + 1
	if after.Unix() > maxAfter {
		return time.Time{}, false
	}
	w := &search{Spec: s, wall: wall{zone: s.zone}}
	w.begin = w.wall.show(from / second)
	w.beginMicros = int(from % second)
	if !w.run() {
		return time.Time{}, false
	}
	unix, ok := w.wall.normalize(&w.at)
	if !ok {
		return time.Time{}, false
	}
	return time.Unix(unix, int64(w.micros)*1000).UTC(), true
}

// Times gives the next n times after a time, fewer if there are no more.
func (s *Spec) Times(after time.Time, n int) []time.Time {
	var all []time.Time
	for range n {
		next, ok := s.Next(after)
		if !ok {
			break
		}
		all = append(all, next)
		after = next
	}
	return all
}

// search is one for the next time: at goes forward from begin, part by part, until all parts count.
type search struct {
	*Spec
	wall        wall
	begin       civil
	beginMicros int
	at          civil
	micros      int // of the second
	// free: the kind of time of a spec that names one does not count any more, since with it the
	// search came to a stand.
	free bool
}

// run brings at to the next time.
func (w *search) run() bool {
	w.at, w.micros = w.begin, w.beginMicros
	for range maxSteps {
		w.wall.normalize(&w.at)
		if !w.free {
			w.at.summer = w.summer
		}
		again, over := w.step()
		if over {
			return false
		}
		if again {
			continue
		}
		if w.later() {
			return true
		}
		w.free = true
		w.at.hour++
	}
	return false
}

// later tells whether at is after the time that the search began with.
func (w *search) later() bool {
	a, b := &w.at, &w.begin
	for _, d := range [...]int{a.year - b.year, a.month - b.month, a.day - b.day, a.hour - b.hour,
		a.minute - b.minute, a.second - b.second} {
		if d != 0 {
			return d > 0
		}
	}
	return w.micros+1 > w.beginMicros
}

// step brings each part in turn to its next value that counts. again says that a larger part has changed
// by that, so that the search goes on from there; over, that nothing comes any more.
func (w *search) step() (again, over bool) {
	a := &w.at
	if moved, ok := w.parts[year].next(&a.year); !ok {
		return false, true
	} else if moved {
		a.month = 0
		w.zero(month)
	}
	if w.inBounds() != fits {
		return false, true
	}
	for _, p := range [...]struct {
		part    int
		at, up  *int
		already bool
	}{
		{part: month, at: &a.month, up: &a.year}, {part: day, at: &a.day, up: &a.month},
		{part: hour, at: &a.hour, up: &a.day}, {part: minute, at: &a.minute, up: &a.hour},
		{part: micro, at: &a.second, up: &a.minute},
	} {
		moved, ok := w.nextOf(p.part, p.at)
		if ok && moved {
			w.zero(p.part)
		}
		is := beyond
		if ok {
			is = w.inBounds()
		}
		switch is {
		case beyond:
			*p.up++
			w.restart(p.part)
			return true, false
		case carried:
			return true, false
		}
		if p.part == day && !w.weekdayCounts() {
			a.day++
			w.zero(day)
			return true, false
		}
	}
	return false, false
}

// zero sets what is smaller than a part to its first value.
func (w *search) zero(part int) {
	a := &w.at
	switch part {
	case month:
		a.day = 1
		fallthrough
	case day:
		a.hour = 0
		fallthrough
	case hour:
		a.minute = 0
		fallthrough
	case minute:
		a.second, w.micros = 0, 0
	}
}

// restart sets a part and what is smaller to their first values.
func (w *search) restart(part int) {
	switch part {
	case month:
		w.at.month = 0
	case day:
		w.at.day = 1
	case hour:
		w.at.hour = 0
	case minute:
		w.at.minute = 0
	case micro:
		w.at.second, w.micros = 0, 0
	}
	w.zero(part)
}

// nextOf brings a value of a part to its next that counts.
func (w *search) nextOf(part int, value *int) (moved, ok bool) {
	c := w.parts[part]
	switch part {
	case month:
		n := *value + 1
		moved, ok = c.next(&n)
		*value = n - 1
		return moved, ok
	case day:
		if w.fromEnd {
			return w.daysOf(c).next(value)
		}
	case micro:
		n := *value*second + w.micros
		moved, ok = c.next(&n)
		w.micros = n % second
		*value = n / second
		return moved, ok
	}
	return c.next(value)
}

// daysOf turns days that are counted from the end of the month into those of the present one.
func (w *search) daysOf(c chain) chain {
	all := make(chain, len(c))
	for i, x := range c {
		start, stop := w.lastDay(x.start), w.lastDay(x.stop)
		if stop > 0 {
			start, stop = stop, start
		}
		all[i] = component{start, stop, x.repeat}
	}
	return all
}

// lastDay gives the day of the month that is the n-th from its end, -1 if there is none.
func (w *search) lastDay(n int) int {
	c := w.at
	c.month++
	c.day = 1 - n
	if _, ok := w.wall.normalize(&c); !ok || c.month != w.at.month {
		return -1
	}
	return c.day
}

// next brings a value to the next one of a list that is not smaller.
func (c chain) next(value *int) (moved, ok bool) {
	if len(c) == 0 {
		return false, true
	}
	best := 0
	for _, x := range c {
		n := x.start
		if n < *value {
			if x.repeat == 0 {
				continue
			}
			n += (*value - n + x.repeat - 1) / x.repeat * x.repeat
			if x.stop >= 0 && n > x.stop {
				continue
			}
		}
		if !ok || n < best {
			best, ok = n, true
		}
	}
	if !ok {
		return false, false
	}
	moved = *value != best
	*value = best
	return moved, true
}

// bounds is what became of a time when it was normalized.
type bounds int

const (
	fits bounds = iota
	// carried: a part was out of its bounds, or the clock never shows it; the time is now the first
	// after it.
	carried
	// beyond: it is none of 1970 to 2199, or it would go back.
	beyond
)

// inBounds looks whether there is a time as at. If not, at becomes the next one that may count: where a
// part was carried over, those below begin anew.
func (w *search) inBounds() bounds {
	if w.at.year > maxYear {
		return beyond
	}
	c := w.at
	if _, ok := w.wall.normalize(&c); !ok {
		return beyond
	}
	a := &w.at
	for _, p := range [...]struct {
		was, is int
		below   *int
		first   int
	}{
		{a.year, c.year, &c.month, 0}, {a.month, c.month, &c.day, 1}, {a.day, c.day, &c.hour, 0},
		{a.hour, c.hour, &c.minute, 0}, {a.minute, c.minute, &c.second, 0}, {a.second, c.second, nil, 0},
	} {
		switch {
		case p.is < p.was:
			return beyond
		case p.is > p.was:
			if p.below != nil {
				*p.below = p.first
			}
			w.at = c
			return carried
		}
	}
	return fits
}

// weekdayCounts tells whether the event takes place on this day of the week.
func (w *search) weekdayCounts() bool {
	if w.days == 0 {
		return true
	}
	c := w.at
	_, ok := w.wall.normalize(&c)
	return ok && w.days&(1<<c.weekday()) != 0
}
