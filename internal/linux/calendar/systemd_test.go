// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package calendar

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// loadZone gives a zone of this machine, as systemd sees it.
func loadZone(name string) (*time.Location, error) {
	b, err := os.ReadFile("/usr/share/zoneinfo/" + name)
	if err != nil {
		return nil, err
	}
	return time.LoadLocationFromTZData(name, b)
}

// zones are some with summer times, without, with odd offsets, with steps of a day, of half an hour, of
// winter times, with rules that ended, and some south of the equator.
var zones = []string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo", "Asia/Kolkata", "Australia/Lord_Howe",
	"Australia/Sydney", "America/St_Johns", "Pacific/Apia", "Africa/Casablanca", "Europe/Dublin", "America/Sao_Paulo",
	"Asia/Kathmandu", "Pacific/Chatham", "Antarctica/Troll", "America/Havana", "Asia/Beirut", "Africa/Cairo",
	"America/Nuuk", "Europe/Moscow", "Asia/Gaza", "America/Santiago", "Etc/GMT+12", "Pacific/Kiritimati"}

// called are the names of zones that had no others since 1970: what systemd-analyze takes others for depends
// on which time it looked at last.
var called = map[string][]string{"Europe/Berlin": {"CET", "CEST"}, "America/New_York": {"EST", "EDT"},
	"Australia/Sydney": {"AEST", "AEDT"}}

// answer is what is said of an event.
type answer struct {
	normal string // "" if it is refused
	times  []string
}

// own gives our answer. Times are to the second, as systemd-analyze prints them.
func own(text string, local *time.Location, base time.Time, n int) answer {
	s, err := Parse(text, Zones{Local: local, Load: loadZone, Now: time.Unix(1_800_000_000, 0)})
	if err != nil {
		return answer{}
	}
	a := answer{normal: s.String()}
	for _, t := range s.Times(base, n) {
		a.times = append(a.times, t.Format(time.DateTime))
	}
	return a
}

// analyze asks systemd about many events at once, in a local zone.
func analyze(t testing.TB, zone string, base time.Time, n int, texts []string) []answer {
	t.Helper()
	c := exec.Command("systemd-analyze", append([]string{"calendar", fmt.Sprintf("--iterations=%d", n),
		"--base-time=" + base.Format("2006-01-02 15:04:05 UTC"), "--"}, texts...)...)
	c.Env = []string{"TZ=" + zone, "LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil && !strings.Contains(said.String(), "Failed to ") {
		t.Fatalf("systemd-analyze: %v: %s", err, said.Bytes())
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	all := make([]answer, len(texts))
	for i := range all {
		for len(lines) > 0 {
			l := lines[0]
			lines = lines[1:]
			if l == "" {
				break
			}
			all[i].take(l)
		}
	}
	if rest := strings.Join(lines, ""); rest != "" {
		t.Fatalf("systemd-analyze printed more than was asked for: %q", rest)
	}
	return all
}

// take reads a line such as "    Next elapse: Mon 2024-04-29 01:30:00 UTC".
func (a *answer) take(line string) {
	key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
	value = strings.TrimSpace(value)
	switch {
	case key == "Normalized form":
		a.normal = value
	case strings.HasSuffix(value, " UTC") && (key == "(in UTC)" || key == "Next elapse" || strings.HasPrefix(key, "Iter. ")):
		if f := strings.Fields(value); len(f) == 4 {
			a.times = append(a.times, f[1]+" "+f[2])
		}
	}
}

// compare holds our answers against systemd's.
func compare(t *testing.T, zone string, base time.Time, texts []string) (refused int) {
	t.Helper()
	const n = 5
	local, err := loadZone(zone)
	if err != nil {
		testenv.Lacks(t, "the zones of tzdata")
	}
	for i, want := range analyze(t, zone, base, n, texts) {
		got := own(texts[i], local, base, n)
		if k := len(got.times); want.normal == "" && got.normal != "" && k < n && stuck(texts[i], zone, base, k+1) {
			want = analyze(t, zone, base, k, texts[i:i+1])[0]
		}
		if want.normal == "" {
			refused++
		}
		if got.normal != want.normal {
			t.Errorf("TZ=%s Parse(%q) = %q, systemd-analyze says %q", zone, texts[i], got.normal, want.normal)
			continue
		}
		if !slices.Equal(got.times, want.times) {
			t.Errorf("TZ=%s %q after %s: %q, systemd-analyze says %q", zone, texts[i], base.Format(time.DateTime),
				got.times, want.times)
		}
	}
	return refused
}

// stuck tells whether systemd takes an event and gives up the search for its n-th time. Nothing at all is
// printed of the event then, not even the times before.
func stuck(text, zone string, base time.Time, n int) bool {
	c := exec.Command("systemd-analyze", "calendar", fmt.Sprintf("--iterations=%d", n),
		"--base-time="+base.Format("2006-01-02 15:04:05 UTC"), "--", text)
	c.Env = []string{"TZ=" + zone, "LC_ALL=C"}
	out, _ := c.CombinedOutput()
	return bytes.Contains(out, []byte("Failed to determine next elapse"))
}

// TestForms holds every form of an event against systemd.
func TestForms(t *testing.T) {
	testenv.Need(t, "systemd-analyze")
	texts := []string{
		"minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly", "annually", "anually",
		"semiannually", "semi-annually", "biannually", "bi-annually", "DAILY", "Daily UTC", "daily utc", "daily  UTC",
		"daily Asia/Tokyo", "weekly Europe/Berlin", "daily ", " daily", "fortnightly", "", " ", "UTC", " UTC", "*", "*:*", "*:*:*",
		"*-*-*", "*-*", "*-*-* *:*:*", "*-*-*-*", "12", "12:30", "12:30:15", "12:30:15.5", "12:30:15.1234567",
		"12:30:15.", "12:30:59.9999999", "12:30:15..20", "12:30:15..15.5", "12:30:15.25..20.75/0.5", "12:30:0/0.1",
		"12:30:0/0.0000001", "12:30:60", "24:00", "00:60", "23:59:59", "3:5", "03:30,04:00", "03,04:00,30", "*:0/15", "*:00/61",
		"*:1/2,3", "*/2:00", "*:*/5", "0/6:00", "0..23/5:00", "22..2:00", "5..5:00", "5..6/3:00", "*:*:0/10", "*:*:0/0",
		"Mon", "mon", "Monday", "MONDAY", "Mo", "Mond", "Mon,", "Mon,,Tue", "Mon..", "Mon..Wed", "Mon-Wed", "Mon..Wed..Fri",
		"Fri..Mon", "Mon..Mon", "Mon.Wed", "Mon-..Wed", "Mon..-Wed", "Mon..Sun", "Mon..Sun 12:00", "Sat,Sun 12:00", "Mon,Wed..Fri,Sun",
		"Sun,Mon", "Mon Tue", "Mon12:00", "Mon   12:00", "Mon,  12:00", "Mon..  12:00", "Sat *-*-1..7 18:00", "Mon..Fri 09..17:*/30",
		"2026-01-01", "2026-1-1 1:2:3", "26-1-1", "70-1-1", "69-1-1", "99-1-1", "100-1-1", "1969-1-1", "2199-12-31", "2200-01-01",
		"*-02-29", "*-02-30", "*-02-31", "*-2-29 Mon", "Mon *-2-29", "*-13-1", "*-0-1", "*-1-0", "*-1-32", "*-*-31",
		"*-*~1", "*-*~01", "*-*~28", "*-*~29", "*-*~0", "*-02~03", "02~1", "02~1..3", "*-*~7..1", "*-*~1..7", "*-*~7/1", "*-*~3/2",
		"*-*~1/2", "*-*~05,01", "Mon *-*~07/1", "Mon *-05~07/1", "*~1", "*~1-1", "*~*~1", "*-*~*", "~1", "2026-02~1 03:00", "*-*~1 UTC",
		"@0", "@1735689600", "@ 5", "@+5", "@-5", "@-0", "@--5", "@5.5", "@", "@x", "@4102444800", "@7258118399", "@7258118400",
		"@18446744073709551615", "@18446744073709551616", "@-18446744073709551615", "@99999999999", "@5 UTC", "@5 Asia/Tokyo", "Mon @5",
		"2027/2-*-*", "2027..2031-1-1", "2027..2031/2-1-1", "2031..2027-1-1", "2100/3-1-1", "*-1/3-1", "*-1..12/5-1", "*-*-1/10",
		"*-*-1,15,31", "*-*-31,31,1", "*-*-1..5,3..9", "2026-*-1,15 03:30:00.5/10 Europe/Berlin", "03:30 Nowhere/Land", "03:30 CET",
		"03:30 CEST", "03:30 cest", "03:30 JST", "03:30 /UTC", "03:30 ../UTC", "03:30 Europe//Berlin", "03:30 Europe/", "03:30 Europe",
		"03:30 posix/Europe/Berlin", "03:30 GMT", "03:30 GMT0", "03:30 Etc/GMT-14", "03:30 +09", "03:30 Asia/Tokyo UTC", "03:30\tUTC",
		"-1:00", "+1:00", "1 :00", "1: 00", "1:00:", "1:00:00:00", "2147483647:00", "2147483648:00", "99999999999999999999:00",
		"*-*-* 03:30:00", "*-*-* 3:30:2147", "*-*-* 3:30:2148", "1,2,:00", ",1:00", "1,,2:00", "*,1:00", "2026-01-01T03:30", "0:0:0,0",
		"Thu,Fri 2012-*-1,5 11:12:13", "Mon *-*-* 00:00:00", "10-15", "10-15 UTC", "hourly:00", "*:*:*.5", "*:*:0..59/1", "*:*:*/2",
	}
	many := make([]string, maxComponents+1)
	for i := range many {
		many[i] = fmt.Sprint(i % 60)
	}
	texts = append(texts, "*:"+strings.Join(many, ","), "*:"+strings.Join(many[1:], ","))
	base := time.Date(2026, 11, 20, 12, 34, 56, 0, time.UTC)
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/Sao_Paulo"} {
		if refused := compare(t, zone, base, texts); refused < 50 || refused > len(texts)-100 {
			t.Errorf("systemd-analyze refuses %d of %d", refused, len(texts))
		}
	}
}

// TestStands holds events at which the search came to a stand in older systemd, or would: a clock that is
// put back where an event is.
func TestStands(t *testing.T) {
	testenv.Need(t, "systemd-analyze")
	texts := []string{"Sun *-*-* 01:00:00", "Sun *-*-* 01:00:00 Europe/Dublin", "01:30", "*:0/30", "02:00", "*-*-* 01:00:00.5/0.5", "hourly", "*:*:*"}
	for _, zone := range []string{"Europe/Dublin", "Africa/Casablanca", "Antarctica/Troll", "Europe/Moscow", "America/Nuuk"} {
		for _, base := range []time.Time{
			time.Date(2021, 3, 21, 0, 0, 0, 0, time.UTC), time.Date(2021, 3, 28, 0, 59, 59, 0, time.UTC),
			time.Date(2021, 10, 31, 0, 0, 0, 0, time.UTC), time.Date(2021, 10, 31, 0, 59, 59, 0, time.UTC),
			time.Date(2014, 10, 25, 21, 59, 59, 0, time.UTC), time.Date(2014, 10, 25, 22, 30, 0, 0, time.UTC),
			time.Date(2026, 2, 15, 1, 59, 59, 0, time.UTC), time.Date(2026, 3, 22, 1, 59, 59, 0, time.UTC),
		} {
			for _, text := range texts { // one by one: what mktime(3) says depends on what it was asked before
				compare(t, zone, base, []string{text})
			}
		}
	}
	// Three times, and the search for the fourth comes to a stand at the midnight that the clock leaves out.
	compare(t, "Asia/Beirut", time.Date(2049, 3, 27, 9, 33, 34, 0, time.UTC), []string{"*-03-4/1,8..18,16 2/5:11"})
}

// TestAgainstSystemd holds random events against systemd: 10,000 of them in the sweeps.
func TestAgainstSystemd(t *testing.T) {
	testenv.Need(t, "systemd-analyze")
	r := rand.New(rand.NewPCG(1, uint64(testenv.Rounds(1, 2, 3))))
	const batch = 50
	all, refused := 0, 0
	for range testenv.Rounds(8, 200, 1000) {
		zone := zones[r.IntN(len(zones))]
		base := time.Unix(int64(r.Uint32N(2_500_000_000)), 0)
		if r.IntN(3) == 0 {
			zone = []string{"Europe/Berlin", "America/New_York", "Australia/Sydney"}[r.IntN(3)]
		}
		if r.IntN(2) == 0 {
			base = nearStep(r, zone)
		}
		texts := make([]string, batch)
		for i := range texts {
			texts[i] = randomSpec(r, zone)
		}
		all += batch
		refused += compare(t, zone, base.UTC(), texts)
	}
	t.Logf("%d events, of which %d are refused", all, refused)
	if refused*2 > all || refused*50 < all {
		t.Errorf("%d of %d events are refused: the test does not try what it should", refused, all)
	}
}

// nearStep gives a time within two days before the clock of a zone is put forward or back, if it is.
func nearStep(r *rand.Rand, zone string) time.Time {
	local, _ := loadZone(zone)
	at := time.Unix(int64(r.Uint32N(2_500_000_000)), 0).In(local)
	for range 400 {
		_, before := at.Zone()
		next := at.Add(24 * time.Hour)
		if _, after := next.Zone(); after != before {
			break
		}
		at = next
	}
	return at.Add(-time.Duration(r.Int64N(int64(48 * time.Hour)))).Truncate(time.Second)
}

// randomSpec makes an event, about one in four of which is no good.
func randomSpec(r *rand.Rand, zone string) string {
	var b strings.Builder
	if r.IntN(3) == 0 {
		b.WriteString(randomDays(r) + " ")
	}
	if r.IntN(4) > 0 {
		if r.IntN(2) == 0 {
			b.WriteString(randomChain(r, 2024, 2040, 3) + "-")
		}
		end := "-"
		if r.IntN(4) == 0 {
			end = "~"
		}
		b.WriteString(randomChain(r, 1, 12, 3) + end)
		b.WriteString(randomChain(r, 1, 28+r.IntN(5), 3) + " ")
	}
	b.WriteString(randomChain(r, 0, 23, 3) + ":" + randomChain(r, 0, 59, 2))
	switch r.IntN(5) {
	case 0, 1:
	case 2:
		fmt.Fprintf(&b, ":%d.%d/%d.%d", r.IntN(60), r.IntN(1000), 1+r.IntN(20), r.IntN(100))
	default:
		b.WriteString(":" + randomChain(r, 0, 59, 2))
	}
	switch r.IntN(6) {
	case 0, 1:
		b.WriteString(" " + zones[r.IntN(len(zones))])
	case 2, 3: // the local standard or summer time
		if names := called[zone]; names != nil {
			b.WriteString(" " + names[r.IntN(2)])
		}
	}
	s := b.String()
	if r.IntN(10) == 0 { // one character less, or one more
		i := r.IntN(len(s))
		s = s[:i] + string("*-~:/., @0"[r.IntN(10)]) + s[i+r.IntN(2):]
	}
	return strings.TrimSpace(s)
}

func randomDays(r *rand.Rand) string {
	a, b := r.IntN(7), r.IntN(7)
	switch r.IntN(4) {
	case 0:
		return weekdays[a]
	case 1:
		return weekdays[a] + "," + weekdays[b]
	case 2:
		return weekdays[a] + ".." + weekdays[b]
	}
	return weekdays[min(a, b)] + ".." + weekdays[max(a, b)]
}

// randomChain makes a list; one in "stars" is "*".
func randomChain(r *rand.Rand, from, to, stars int) string {
	if r.IntN(stars) == 0 {
		return "*"
	}
	var all []string
	for range 1 + r.IntN(3)*r.IntN(2) {
		a, b := from+r.IntN(to-from+1), from+r.IntN(to-from+1)
		if r.IntN(10) > 0 && a > b {
			a, b = b, a
		}
		step := 1 + r.IntN(5)
		all = append(all, []string{fmt.Sprint(a), fmt.Sprintf("%02d", b), fmt.Sprintf("%d..%d", a, b),
			fmt.Sprintf("%d/%d", a, step), fmt.Sprintf("%d..%d/%d", a, b, step)}[r.IntN(5)])
	}
	return strings.Join(all, ",")
}
