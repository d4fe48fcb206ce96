// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"strings"
	"time"
)

// leapYear stands for a year that is not known yet: it has a 29th of February.
const leapYear = 2000

// stamp is the time of a line as it stands there.
type stamp struct {
	at time.Time
	// yearless: the year of at is leapYear. Zoneless: at is in the machine's zone as far as is known.
	yearless, zoneless bool
}

// parseStamp reads the time at the beginning of a line, in any of the forms that logs have:
//
//	Nov 22 09:00:00 ...           RFC 3164, without year and zone; also with a fraction
//	2026-11-22T09:00:00.12+09:00  RFC 5424, journalctl -o short-iso, syslog daemons; Z for UTC
//	2026-11-22 09:00:00.123+0000: libvirt
//	2026-11-22 09:00:00.123 ...   OpenStack, without zone; also with a comma
func parseStamp(line string, zone *time.Location) (s stamp, rest string, ok bool) {
	if len(line) < 15 {
		return stamp{}, "", false
	}
	if c := line[0]; c >= '0' && c <= '9' {
		return parseISO(line, zone)
	}
	month := monthOf(line[:3])
	day, ok1 := two(line[4:6])
	hour, minute, second, ok2 := clock(line[7:])
	if month == 0 || !ok1 || !ok2 || line[3] != ' ' || line[6] != ' ' || day < 1 || day > 31 {
		return stamp{}, "", false
	}
	nanos, rest := fraction(line[15:])
	at := time.Date(leapYear, month, day, hour, minute, second, nanos, zone)
	if at.Month() != month {
		return stamp{}, "", false // the 30th of February
	}
	return stamp{at: at, yearless: true, zoneless: true}, strings.TrimPrefix(rest, " "), true
}

func monthOf(s string) time.Month {
	const names = "JanFebMarAprMayJunJulAugSepOctNovDec"
	if i := strings.Index(names, s); i >= 0 && i%3 == 0 {
		return time.Month(i/3 + 1)
	}
	return 0
}

// two reads two digits, the first perhaps a space.
func two(s string) (int, bool) {
	a, b := s[0], s[1]
	if a == ' ' {
		a = '0'
	}
	if a < '0' || a > '9' || b < '0' || b > '9' {
		return 0, false
	}
	return int(a-'0')*10 + int(b-'0'), true
}

// clock reads "09:00:00".
func clock(s string) (hour, minute, second int, ok bool) {
	if len(s) < 8 || s[2] != ':' || s[5] != ':' {
		return 0, 0, 0, false
	}
	hour, ok1 := two(s[:2])
	minute, ok2 := two(s[3:5])
	second, ok3 := two(s[6:8])
	return hour, minute, second, ok1 && ok2 && ok3 && hour < 24 && minute < 60 && second < 61
}

// fraction reads ".123456" or ",123", if there is one.
func fraction(s string) (nanos int, rest string) {
	if s == "" || s[0] != '.' && s[0] != ',' {
		return 0, s
	}
	i, scale := 1, 100_000_000
	for ; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		nanos += int(s[i]-'0') * scale
		scale /= 10
	}
	return nanos, s[i:]
}

func parseISO(line string, zone *time.Location) (stamp, string, bool) {
	if len(line) < 19 || line[4] != '-' || line[7] != '-' || line[10] != 'T' && line[10] != ' ' {
		return stamp{}, "", false
	}
	century, ok1 := two(line[:2])
	year, ok2 := two(line[2:4])
	month, ok3 := two(line[5:7])
	day, ok4 := two(line[8:10])
	hour, minute, second, ok5 := clock(line[11:])
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || month < 1 || month > 12 || day < 1 || day > 31 {
		return stamp{}, "", false
	}
	nanos, rest := fraction(line[19:])
	s := stamp{zoneless: true}
	if offset, after, ok := zoneOffset(rest); ok {
		zone, s.zoneless, rest = time.FixedZone("", offset), false, after
	}
	s.at = time.Date(century*100+year, time.Month(month), day, hour, minute, second, nanos, zone)
	return s, strings.TrimPrefix(rest, " "), true
}

// zoneOffset reads "Z", "+09:00", "+0900" or "+09", in seconds.
func zoneOffset(s string) (offset int, rest string, ok bool) {
	if strings.HasPrefix(s, "Z") {
		return 0, s[1:], true
	}
	if len(s) < 3 || s[0] != '+' && s[0] != '-' {
		return 0, s, false
	}
	hours, ok := two(s[1:3])
	rest = s[3:]
	minutes := 0
	if after := strings.TrimPrefix(rest, ":"); len(after) >= 2 {
		if m, is := two(after[:2]); is {
			minutes, rest = m, after[2:]
		}
	}
	offset = hours*3600 + minutes*60
	if s[0] == '-' {
		offset = -offset
	}
	return offset, rest, ok && hours < 24 && minutes < 60
}

// calendar finds out the years of a log that has none: each time that the months begin anew is the next
// year, and the last line is no later than the last change of the file.
type calendar struct {
	last time.Time
	roll int
	// rolledAt is where the year last changed.
	rolledAt time.Time
	leaps    []int // rolls that have a 29th of February
	any      bool
}

// when is a time whose year is that of the end of the file, less the changes of the year since.
type when struct {
	stamp
	roll int
}

// maxLeaps bounds the leap days of a log that are looked at: each further one tells nothing new.
const maxLeaps = 64

// halfYear is how far back a clock is never set while a log goes on.
const halfYear = 183 * 24 * time.Hour

// next takes the time of the next line.
func (c *calendar) next(s stamp) when {
	if !s.yearless {
		return when{s, 0}
	}
	if c.any {
		switch d := s.at.Sub(c.last); {
		case d < -halfYear:
			c.roll++
			c.rolledAt = s.at
		case d > halfYear && c.roll > 0 && c.last.YearDay() == 1 && c.last.Sub(c.rolledAt) < 24*time.Hour:
			// A machine without a clock began in January until it learned the time.
			c.roll--
		}
	}
	c.any, c.last = true, s.at
	if s.at.Month() == time.February && s.at.Day() == 29 && len(c.leaps) < maxLeaps && (len(c.leaps) == 0 || c.leaps[len(c.leaps)-1] != c.roll) {
		c.leaps = append(c.leaps, c.roll)
	}
	return when{s, c.roll}
}

// year is that of the last line, which is not later than bound but for a day of slack.
func (c *calendar) year(bound time.Time) int {
	y := bound.In(c.last.Location()).Year()
	if in(y, c.last).After(bound.Add(24 * time.Hour)) {
		y--
	}
	for range 8 {
		fits := true
		for _, roll := range c.leaps {
			fits = fits && isLeap(y-c.roll+roll)
		}
		if fits {
			break
		}
		y--
	}
	return y
}

func isLeap(y int) bool { return y%4 == 0 && (y%100 != 0 || y%400 == 0) }

// in puts a time into a year.
func in(year int, t time.Time) time.Time {
	return time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), t.Location())
}

// resolve gives the time; year is that before the first change.
func resolve(w when, year int) time.Time {
	if !w.yearless {
		return w.at.UTC()
	}
	return in(year+w.roll, w.at).UTC()
}
