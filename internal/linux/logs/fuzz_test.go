// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"strings"
	"testing"
	"time"
)

// FuzzLines reads lines as of every kind of log: no panic, times in order of their years, no text from
// elsewhere.
func FuzzLines(f *testing.F) {
	for _, s := range []string{
		"Nov 22 09:00:00 h kernel: [12345.678901] x", "Feb 29 09:00:00.123 h a[1]: x",
		"<34>1 2026-11-22T09:00:00.1+09:00 h app 1 - [a b=\"c\"] text", "2026-11-22 09:00:00,123 1 INFO nova.virt [req-1] x",
		"2026-01-01 12:00:00.123+0000: 1: error : virFoo:1 : x", "Nov 22 09:00:00 [1] h corosync notice  [TOTEM ] x",
		"Nov 22 09:00:00 h pacemaker-fenced [1] (f)\tnotice: x", "6,1,2,-;x\n K=V\n", "Jan  1 00:00:00 h x",
	} {
		f.Add(s, s)
	}
	zone := time.FixedZone("", 9*3600)
	f.Fuzz(func(t *testing.T, a, b string) {
		var c calendar
		var list []when
		for _, line := range []string{a, b, a} {
			rest, version := priority(line)
			s, rest, ok := parseStamp(rest, zone)
			if !ok {
				continue
			}
			if s.yearless != (s.at.Year() == leapYear) && s.yearless {
				t.Fatalf("%q: year %d", line, s.at.Year())
			}
			list = append(list, c.next(s))
			got, _ := parseSaid(rest)
			if version {
				got, _ = parse5424(rest)
			}
			for _, part := range []string{got.host, got.program, got.text} {
				if !strings.Contains(line, part) {
					t.Fatalf("%q: %q is not in it", line, part)
				}
			}
		}
		if c.any {
			year := c.year(time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC))
			for _, w := range list {
				resolve(w, year-c.roll)
			}
		}
		n := 0
		for r := range records(a) {
			n += len(r)
		}
		if n != len(a) {
			t.Fatalf("records of %q have %d bytes of %d", a, n, len(a))
		}
		logins([]byte(a), time.Time{})
		libvirtText(a)
		clean("pacemakerd", a)
	})
}
