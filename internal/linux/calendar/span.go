// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package calendar

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Infinity is a span without end, and any that is longer than 292 years.
const Infinity = time.Duration(math.MaxInt64)

// errSpan: the text is no span of time.
var errSpan = errors.New("is no span of time")

// units are the units of spans in microseconds, in the order in which they are tried: what begins with a
// shorter name comes before that.
var units = [...]struct {
	name   string
	micros uint64
}{
	{"seconds", second},
	{"second", second},
	{"sec", second},
	{"s", second},
	{"minutes", 60 * second},
	{"minute", 60 * second},
	{"min", 60 * second},
	{"months", 2629800 * second},
	{"month", 2629800 * second},
	{"M", 2629800 * second},
	{"msec", 1000},
	{"ms", 1000},
	{"m", 60 * second},
	{"hours", 3600 * second},
	{"hour", 3600 * second},
	{"hr", 3600 * second},
	{"h", 3600 * second},
	{"days", 86400 * second},
	{"day", 86400 * second},
	{"d", 86400 * second},
	{"weeks", 604800 * second},
	{"week", 604800 * second},
	{"w", 604800 * second},
	{"years", 31557600 * second},
	{"year", 31557600 * second},
	{"y", 31557600 * second},
	{"usec", 1},
	{"us", 1},
	{"\u03bcs", 1}, // the Greek letter
	{"\u00b5s", 1}, // the sign for micro
}

const white = " \t\n\r"

// ParseSpan reads a span of time as systemd does: "1h 30min", "1.5h", "90" for seconds, "infinity". The
// error says that it is none.
func ParseSpan(text string) (time.Duration, error) {
	rest := strings.TrimLeft(text, white)
	if after, ok := strings.CutPrefix(rest, "infinity"); ok && strings.TrimLeft(after, white) == "" {
		return Infinity, nil
	}
	total, some := uint64(0), false
	for rest = strings.TrimLeft(rest, white); rest != ""; rest = strings.TrimLeft(rest, white) {
		micros, after, ok := spanItem(rest)
		if !ok || micros >= math.MaxUint64-total {
			return 0, fmt.Errorf("%q: %w", text, errSpan)
		}
		total, rest, some = total+micros, after, true
	}
	switch {
	case !some:
		return 0, fmt.Errorf("%q: %w", text, errSpan)
	case total > math.MaxInt64/1000:
		return Infinity, nil
	}
	return time.Duration(total) * time.Microsecond, nil
}

// spanItem reads a number and its unit, which is the second where none follows.
func spanItem(s string) (micros uint64, rest string, ok bool) {
	digits := func() string {
		n := 0
		for n < len(s) && isDigit(s[n]) {
			n++
		}
		d := s[:n]
		s = s[n:]
		return d
	}
	signed := s
	s = strings.TrimPrefix(s, "+")
	whole := digits()
	fraction, dot := "", strings.HasPrefix(s, ".")
	if dot {
		s = s[1:]
		fraction = digits()
	}
	if whole == "" && (!dot || signed[0] == '+') || dot && fraction == "" {
		return 0, "", false
	}
	n := uint64(0)
	if whole != "" {
		var err error
		if n, err = strconv.ParseUint(whole, 10, 63); err != nil {
			return 0, "", false
		}
	}
	unit, rest := spanUnit(strings.TrimLeft(s, white))
	if rest == s && s != "" || n >= math.MaxUint64/unit {
		return 0, "", false
	}
	n *= unit
	for i := range fraction {
		if unit /= 10; unit == 0 {
			break
		}
		more := uint64(fraction[i]-'0') * unit
		if more >= math.MaxUint64-n {
			return 0, "", false
		}
		n += more
	}
	return n, rest, true
}

// spanUnit takes a unit off, if there is one.
func spanUnit(s string) (micros uint64, rest string) {
	for _, u := range units {
		if rest, ok := strings.CutPrefix(s, u.name); ok {
			return u.micros, rest
		}
	}
	return second, s
}
