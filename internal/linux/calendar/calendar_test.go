// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package calendar

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"
)

// zonesOf are those of this machine.
func zonesOf(t *testing.T, local string) Zones {
	t.Helper()
	zone, err := loadZone(local)
	if err != nil {
		t.Fatal(err)
	}
	return Zones{Local: zone, Load: loadZone, Now: time.Unix(1_800_000_000, 0)}
}

// TestClockChanges holds what happens to times of the day that come twice or never.
func TestClockChanges(t *testing.T) {
	for _, c := range []struct{ name, zone, text, after, want string }{
		{"put forward over it", "Europe/Berlin", "02:30", "2026-03-28 00:00:00", "2026-03-28 01:30, 2026-03-30 00:30, 2026-03-31 00:30"},
		{"put back over it", "Europe/Berlin", "02:30", "2026-10-24 12:00:00", "2026-10-25 00:30, 2026-10-26 01:30, 2026-10-27 01:30"},
		{"every hour, put back", "Europe/Berlin", "hourly", "2026-10-24 23:30:00", "2026-10-25 00:00, 2026-10-25 02:00, 2026-10-25 03:00"},
		{"half an hour", "Australia/Lord_Howe", "02:15", "2026-10-03 00:00:00", "2026-10-04 15:15, 2026-10-05 15:15, 2026-10-06 15:15"},
		{"a day that was not", "Pacific/Apia", "2011-12-30 12:00", "2011-12-01 00:00:00", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Parse(c.text, zonesOf(t, c.zone))
			if err != nil {
				t.Fatal(err)
			}
			after, _ := time.Parse(time.DateTime, c.after)
			var got []string
			for _, x := range s.Times(after, 3) {
				got = append(got, x.Format("2006-01-02 15:04"))
			}
			if g := strings.Join(got, ", "); g != c.want {
				t.Errorf("%q after %s in %s: %s, want %s", c.text, c.after, c.zone, g, c.want)
			}
			// The judge, for each row.
			for _, a := range [][]answer{analyze(t, c.zone, after, 3, []string{c.text})} {
				if want := own(c.text, zonesOf(t, c.zone).Local, after, 3); !slices.Equal(a[0].times, want.times) {
					t.Errorf("systemd-analyze says %q", a[0].times)
				}
			}
		})
	}
}

func TestMicroseconds(t *testing.T) {
	s, err := Parse("*:*:0.25/0.5", Zones{})
	if err != nil {
		t.Fatal(err)
	}
	next, ok := s.Next(time.Date(2026, 1, 1, 0, 0, 0, 250_000_000, time.UTC))
	if want := time.Date(2026, 1, 1, 0, 0, 0, 750_000_000, time.UTC); !ok || !next.Equal(want) {
		t.Errorf("Next = %v, %v, want %v", next, ok, want)
	}
}

func TestBounds(t *testing.T) {
	s, err := Parse("*-*-* 23:59:59", Zones{})
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Time{time.Date(2199, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
		time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if next, ok := s.Next(after); ok {
			t.Errorf("Next(%v) = %v, want none", after, next)
		}
	}
	if next, ok := s.Next(time.Date(1901, 1, 1, 0, 0, 0, 0, time.UTC)); !ok || next.Unix() != 86399 {
		t.Errorf("Next(1901) = %v, %v, want the end of 1970-01-01", next, ok)
	}
}

func TestZones(t *testing.T) {
	failed := errors.New("may not be read")
	for name, c := range map[string]struct {
		load error
		want error
	}{"not there": {fs.ErrNotExist, errForm}, "not readable": {failed, failed}} {
		z := Zones{Load: func(string) (*time.Location, error) { return nil, c.load }}
		if _, err := Parse("03:30 Asia/Tokyo", z); !errors.Is(err, c.want) {
			t.Errorf("Parse with a zone that is %s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := Parse("03:30 right/UTC", Zones{Load: loadZone}); err == nil || errors.Is(err, errForm) {
		t.Errorf("Parse with a zone of leap seconds: %v, want that it is not understood", err)
	}
	if _, err := Parse("03:30 Asia/Tokyo", Zones{}); !errors.Is(err, errForm) {
		t.Errorf("Parse without zones: %v, want %v", err, errForm)
	}
}

// FuzzCalendar holds that no text does harm, that the normal form is read as the same event, and that the
// next time is later.
func FuzzCalendar(f *testing.F) {
	for _, s := range []string{"daily", "Mon..Fri *-*~1..3/2 *:0/7:0.5/3 Europe/Berlin", "@0", "Sat,Sun 2026-1,2/3-* 1:2", "1..3,5:*:*", "*-2-29 UTC",
		"02:30 CEST"} {
		f.Add(s, int64(1_800_000_000), true)
	}
	berlin, err := loadZone("Europe/Berlin")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string, unix int64, local bool) {
		z := Zones{Load: loadZone, Now: time.Unix(1_800_000_000, 0)}
		if local {
			z.Local = berlin
		}
		if _, err := ParseSpan(text); err == nil && text == "" {
			t.Error("ParseSpan of nothing is no error")
		}
		s, err := Parse(text, z)
		if err != nil {
			return
		}
		normal := s.String()
		again, err := Parse(normal, z)
		if err != nil || again.String() != normal {
			t.Fatalf("Parse(%q) = %q, which is read as %v, %v", text, normal, again, err)
		}
		after := time.Unix(unix%9_000_000_000, 0)
		next, ok := s.Next(after)
		if ok && !next.After(after) {
			t.Errorf("%q after %v is %v", text, after, next)
		}
		if same, also := again.Next(after); also != ok || !same.Equal(next) {
			t.Errorf("%q after %v is %v, its normal form %q is %v", text, after, next, normal, same)
		}
	})
}
