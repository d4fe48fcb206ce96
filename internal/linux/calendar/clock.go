// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package calendar

import "time"

// civil is a time as a clock on the wall shows it. Its values may be out of their bounds, as February 30,
// until it is normalized.
type civil struct {
	year, month, day, hour, minute, second int // month is from 0
	// summer is 1 for summer time, 0 for standard time, -1 if that is not said.
	summer int
}

// asUTC gives the second of the world at which a clock in UTC shows c.
func (c *civil) asUTC() int64 {
	days := time.Date(c.year, time.Month(c.month+1), 1, 0, 0, 0, 0, time.UTC).Unix()
	return days + int64(c.day-1)*86400 + int64(c.hour)*3600 + int64(c.minute)*60 + int64(c.second)
}

// weekday is 0 for Monday; c is normalized.
func (c *civil) weekday() int {
	return (int(time.Unix(c.asUTC(), 0).UTC().Weekday()) + 6) % 7
}

// wall is a clock on a wall. It turns times of the day into those of the world as mktime(3) of glibc 2.36
// does, or timegm(3) where zone is nil: where a time of the day comes twice, or never, what is given
// depends on what was asked before.
type wall struct {
	zone *time.Location
	// behind is by how much the clock was behind UTC where it was asked last, in seconds.
	behind int64
}

// Bounds of mktime(3).
const (
	maxProbes  = 6         // of times, until one shows what is wanted
	stride     = 601200    // seconds between two looks for another kind of time: shorter than any of them lasts
	searchSpan = 536454000 // the longest summer time that there was; half of it is looked at in either direction
)

// show gives what the clock shows.
func (w *wall) show(unix int64) civil {
	zone := w.zone
	if zone == nil {
		zone = time.UTC
	}
	t := time.Unix(unix, 0).In(zone)
	c := civil{year: t.Year(), month: int(t.Month()) - 1, day: t.Day(), hour: t.Hour(), minute: t.Minute(),
		second: t.Second()}
	if t.IsDST() {
		c.summer = 1
	}
	return c
}

// offset gives by how much the clock is before UTC, and 1 for summer time.
func (w *wall) offset(unix int64) (seconds int64, summer int) {
	t := time.Unix(unix, 0).In(w.zone)
	_, n := t.Zone()
	if t.IsDST() {
		summer = 1
	}
	return int64(n), summer
}

// normalize puts the values of c into their bounds, and gives the second of the world at which the clock
// shows it. Where it never does, because it is put forward, c becomes a time as long after or before.
// Times before 1970, and those of a kind that the zone does not have, are none: ok is false then.
func (w *wall) normalize(c *civil) (unix int64, ok bool) {
	want := c.asUTC()
	if w.zone == nil {
		*c = w.show(want)
		return want, want >= 0
	}
	t, ok := w.find(want, c.summer)
	if !ok {
		return 0, false
	}
	w.behind = t - want
	*c = w.show(t)
	return t, t >= 0
}

// find looks for the second at which the clock shows what one in UTC shows at want. It begins with the
// offset that there was last, and goes by the error of each look.
func (w *wall) find(want int64, summer int) (unix int64, ok bool) {
	t := want + w.behind
	before, before2, wasSummer := t, t, 0
	for range maxProbes {
		offset, isSummer := w.offset(t)
		miss := want - (t + offset)
		if miss == 0 {
			if summer >= 0 && summer != isSummer {
				return w.other(t, want, summer)
			}
			return t, true
		}
		if t == before2 && t != before {
			// It goes back and forth: the clock is put forward over this time. The one of the two is given
			// whose kind is not that asked for, or else that in summer time.
			if summer < 0 && wasSummer <= isSummer || summer >= 0 && summer != isSummer {
				return t, true
			}
		}
		before2, before, wasSummer = before, t, isSummer
		t += miss
	}
	return 0, false
}

// other goes away from t in both directions until there is the kind of time that is asked for, and takes
// its offset.
func (w *wall) other(t, want int64, summer int) (unix int64, ok bool) {
	for delta := int64(stride); delta < searchSpan/2+stride; delta += stride {
		for _, at := range [2]int64{t - delta, t + delta} {
			if offset, kind := w.offset(at); kind == summer {
				return want - offset, true
			}
		}
	}
	return 0, false
}
