// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package reboots

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shisa-vm/shisa/internal/linux/calendar"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func spec(t testing.TB, text string) *calendar.Spec {
	t.Helper()
	s, err := calendar.Parse(text, calendar.Zones{Local: tokyo})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tokyo is where the clock of the hardware is nine hours off, if it is taken for local time.
var tokyo = time.FixedZone("JST", 9*3600)

// Noon of the day, and the story's timer.
var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, tokyo)

func nightly(t testing.TB, change ...func(*Timer)) []Timer {
	x := Timer{Name: "daily_reboot.timer", Unit: "daily_reboot.service", Calendar: []*calendar.Spec{spec(t, "*-*-* 03:30:00")},
		Persistent: true, Accuracy: time.Minute, Does: "reboot"}
	x.Stamp.At = time.Date(2026, 11, 20, 3, 30, 0, 0, tokyo) // of the night before
	for _, f := range change {
		f(&x)
	}
	return []Timer{x}
}

func stale(t *Timer)         { t.Stamp.At = t.Stamp.At.Add(-48 * time.Hour) }
func noStamp(t *Timer)       { t.Stamp.At = time.Time{} }
func fixed(t *Timer)         { t.Stamp.Fixed = true }
func forgotten(t *Timer)     { t.Stamp.Forgotten = true }
func unsynced(t *Timer)      { t.Stamp.Unsynced = true }
func future(t *Timer)        { t.Stamp.At = t.Stamp.At.Add(48 * time.Hour) }
func notPersistent(t *Timer) { t.Persistent = false }
func once(t *Timer)          { t.Once = true }

// counting is a timer that counts from when its unit ran last.
func counting(how Runs) []Timer {
	return []Timer{{Name: "a.timer", Unit: "a.service", Does: "reboot", UnitActive: []time.Duration{3 * time.Second},
		UnitInactive: []time.Duration{5 * time.Second}, Runs: how}}
}

// rearms has a timer's unit act when it is started the fourth time within a minute.
func rearms(t *Timer) {
	t.Calendar, t.UnitInactive, t.Runs = nil, []time.Duration{time.Second}, Runs{Burst: 3, Within: time.Minute}
}

// soon brings the event to some minutes after noon.
func soon(t testing.TB) func(*Timer) {
	return func(x *Timer) {
		x.Calendar = []*calendar.Spec{spec(t, "*-*-* 12:10:30")}
		x.Stamp.At = noon.Add(-23*time.Hour - 49*time.Minute)
	}
}

func onBoot(spans ...time.Duration) func(*Timer) {
	return func(t *Timer) { t.Calendar, t.Boot = nil, spans }
}

// slow is the clock of a machine in Japan whose hardware's clock is in UTC, and taken for local time.
func slow(sync time.Duration) Clock { return Clock{Name: "slow", Error: -9 * time.Hour, Sync: sync} }

var direct = []Direct{{Unit: "daily_reboot.service", Does: "reboot"}}

// want is the verdict of one row: how many restarts there are in an hour; 99 is a loop.
type want struct {
	restarts int
	loop     bool
	surprise bool
}

const many = 99

// rows are those that were measured with systemd 252, in systemd-nspawn and in guests with kernels of their
// own, by the names that they have there, and those that follow from the source.
func rows(t testing.TB) map[string]struct {
	World
	want
} {
	night := nightly(t, soon(t))
	row := func(w World, restarts int, loop, surprise bool) struct {
		World
		want
	} {
		if w.Start.IsZero() {
			w.Start = noon
		}
		return struct {
			World
			want
		}{w, want{restarts, loop, surprise}}
	}
	right := Clock{Name: "right", Sync: -1}
	floor := slow(3 * time.Second)
	floor.Saves, floor.Saved = true, noon.Add(-time.Hour)
	waits := slow(3 * time.Second)
	waits.Waits = true
	return map[string]struct {
		World
		want
	}{
		"S1: the story's timer, a right clock":           row(World{Timers: night, Clock: right}, 1, false, false),
		"S1b: not persistent":                            row(World{Timers: nightly(t, soon(t), notPersistent), Clock: right}, 1, false, false),
		"S2: the service is enabled":                     row(World{Direct: direct, Clock: right}, many, true, false),
		"S2 with the timer":                              row(World{Direct: direct, Timers: night, Clock: right}, many, true, false),
		"S3: a stale stamp, not writable":                row(World{Timers: nightly(t, stale, fixed), Clock: right}, many, true, false),
		"S3, forgotten":                                  row(World{Timers: nightly(t, stale, forgotten), Clock: right}, many, true, false),
		"S4: no stamp, not writable":                     row(World{Timers: nightly(t, noStamp, fixed), Clock: right}, 0, false, false),
		"S4, forgotten":                                  row(World{Timers: nightly(t, noStamp, forgotten), Clock: right}, 0, false, false),
		"S5: a stale stamp, writable":                    row(World{Timers: nightly(t, stale), Clock: right}, 1, false, true),
		"S6: a stale stamp, not persistent":              row(World{Timers: nightly(t, stale, notPersistent), Clock: right}, 0, false, false),
		"S7: a stamp in the future":                      row(World{Timers: nightly(t, future), Clock: right}, 0, false, false),
		"S7, not writable":                               row(World{Timers: nightly(t, future, fixed), Clock: right}, 0, false, false),
		"S8: S3 with a delay":                            row(World{Timers: nightly(t, stale, fixed, func(t *Timer) { t.Random = 15 * time.Second }), Clock: right, Late: true}, many, true, false),
		"S9: OnBootSec=1s":                               row(World{Timers: nightly(t, onBoot(time.Second), noStamp, notPersistent), Clock: right}, many, true, false),
		"S9, persistent: with a stamp it is spent":       row(World{Timers: nightly(t, onBoot(time.Second)), Clock: right}, 0, false, false),
		"S12: FailureAction= of a unit that fails":       row(World{Direct: []Direct{{Unit: "broken.service", Does: "reboot"}}, Clock: right}, many, true, false),
		"U1: it counts from the unit, which a boot runs": row(World{Timers: counting(Runs{Booted: true, Spares: 1}), Clock: right}, many, true, false),
		"U1, delayed":                                    row(World{Timers: counting(Runs{Booted: true, Spares: 1}), Clock: right, Late: true}, many, true, false),
		"U2: nothing runs it before":                     row(World{Timers: counting(Runs{Spares: 1}), Clock: right}, 0, false, false),
		"U3: it never ends":                              row(World{Timers: counting(Runs{Booted: true, Stays: true, Spares: 1}), Clock: right}, 0, false, false),
		"U4: too often":                                  row(World{Timers: counting(Runs{Booted: true, Burst: 5, Within: time.Minute}), Clock: right}, many, true, false),
		"U4, as often as may be":                         row(World{Timers: counting(Runs{Booted: true, Burst: 5, Within: 10 * time.Second}), Clock: right}, 0, false, false),
		"U4, from OnBootSec= on":                         row(World{Timers: nightly(t, onBoot(time.Second), noStamp, notPersistent, rearms), Clock: right}, many, true, false),
		"U5: long after the start":                       row(World{Timers: counting(Runs{Booted: true, Spares: 400}), Clock: right}, 0, false, false),
		"U6: a clock that is set does not matter to it":  row(World{Timers: counting(Runs{Booted: true, Spares: 9}), Clock: slow(5 * time.Second)}, many, true, false),
		"a unit that runs once":                          row(World{Direct: []Direct{{Unit: "x.service", Does: "reboot", Once: true}}, Clock: right}, 1, false, true),
		"a timer whose unit runs once":                   row(World{Timers: nightly(t, stale, fixed, once), Clock: right}, 1, false, true),
		"A: nine hours slow, set right after the start":  row(World{Timers: night, Clock: slow(3 * time.Second)}, many, true, false),
		"A, not persistent":                              row(World{Timers: nightly(t, soon(t), notPersistent), Clock: slow(3 * time.Second)}, many, true, false),
		"A, never set right":                             row(World{Timers: night, Clock: slow(-1)}, 0, false, false),
		"C: A with a daemon that saves the time":         row(World{Timers: night, Clock: floor}, 1, false, false),
		"A, timers wait for the right time":              row(World{Timers: night, Clock: waits}, 1, false, false),
		"nine hours fast, set right":                     row(World{Timers: night, Clock: Clock{Error: 9 * time.Hour, Sync: 3 * time.Second}}, 2, false, true),
		"a clock that begins in 2021":                    row(World{Timers: nightly(t, soon(t), notPersistent), Clock: Clock{Begins: noon.AddDate(-5, 0, 0), Sync: 3 * time.Second}}, many, true, false),
		"a clock that begins in 2021, with a stamp":      row(World{Timers: night, Clock: Clock{Begins: noon.AddDate(-5, 0, 0), Sync: 3 * time.Second}}, many, true, false),
		"a clock that begins at systemd's build":         row(World{Timers: night, Clock: Clock{Begins: time.Unix(0, 0), Build: noon.AddDate(-1, 0, 0), Sync: 3 * time.Second}}, many, true, false),
		"far in the future":                              row(World{Timers: night, Clock: Clock{Error: 80000 * time.Hour, Sync: -1}}, 1, false, true),
		"the stamp is lost by a hard restart":            row(World{Timers: nightly(t, stale, unsynced), Clock: right}, many, true, false),
		"the service turns the machine off":              row(World{Direct: []Direct{{Unit: "off.service", Does: "poweroff"}}, Clock: right}, many, true, false),
		"stale, but it waits for a time of the day":      row(World{Timers: nightly(t, stale, fixed, func(t *Timer) { t.Scheduled = true }), Clock: right}, 0, false, false),
		"every 48 hours":                                 row(World{Timers: nightly(t, onBoot(48*time.Hour), noStamp, notPersistent), Clock: right}, 0, false, false),
		"every minute":                                   row(World{Timers: nightly(t, func(x *Timer) { x.Calendar = []*calendar.Spec{spec(t, "minutely")} }), Clock: right}, many, true, false),
		"when the clock is set":                          row(World{Timers: nightly(t, func(x *Timer) { x.OnClock = true }), Clock: slow(3 * time.Second)}, many, true, false),
		"in a year":                                      row(World{Timers: nightly(t, func(x *Timer) { x.Calendar = []*calendar.Spec{spec(t, "2027-11-20 03:30")} }), Clock: right}, 0, false, false),
		"never":                                          row(World{Timers: nightly(t, func(x *Timer) { x.Calendar = []*calendar.Spec{spec(t, "2020-11-20 03:30")} }, noStamp), Clock: right}, 0, false, false),
		"a shutdown that waits 48 hours, at each start":  row(World{Direct: []Direct{{Unit: "x.service", Does: "reboot", After: 48 * time.Hour}}, Clock: right}, 0, false, false),
		"stale, with a delay of up to twelve hours":      row(World{Timers: nightly(t, stale, fixed, func(t *Timer) { t.Random = 12 * time.Hour }), Clock: right, Late: true}, 0, true, false),
		"nine hours slow, the next evening":              row(World{Timers: night, Start: noon.Add(20 * time.Hour), Clock: slow(-1)}, 1, false, true),
		"stale, nine hours slow, set right, fixed stamp": row(World{Timers: nightly(t, stale, fixed), Clock: slow(3 * time.Second)}, many, true, false),
		"nothing that acts":                              row(World{Clock: right}, 0, false, false),
	}
}

func TestTable(t *testing.T) {
	for name, r := range rows(t) {
		t.Run(name, func(t *testing.T) {
			got := Simulate(r.World)
			n := got.Restarts(time.Hour)
			if r.loop && n > 3 {
				n = many
			}
			if n != r.restarts || got.Loop != r.loop || (got.Surprise >= 0) != r.surprise {
				t.Errorf("%d restarts in an hour, loop %v, surprise %d; want %d, %v, %v\n%s", n, got.Loop, got.Surprise,
					r.restarts, r.loop, r.surprise, chain(&got))
			}
		})
	}
}

// chain writes down what a run did.
func chain(r *Run) string {
	var s strings.Builder
	for i := range r.Boots {
		b := &r.Boots[i]
		for _, e := range b.Events {
			s.WriteString(strings.Join([]string{"boot", string(rune('0' + i)), e.After.String(), e.True.UTC().Format(time.DateTime),
				e.Clock.UTC().Format(time.DateTime), string(e.Kind), e.Timer, e.Text, "\n"}, " "))
		}
	}
	return s.String()
}

// TestLeft holds that no more is looked for than may be, and that the rest is then not known.
func TestLeft(t *testing.T) {
	w := rows(t)["S3: a stale stamp, not writable"].World
	for _, left := range []int{1 << 20, 3, 0} {
		n := left
		w.Left = &n
		if got := Simulate(w); got.Unfinished != (left < 1<<20) || got.Loop == got.Unfinished || n < 0 {
			t.Errorf("with %d left: unfinished %v, loop %v, %d left after it", left, got.Unfinished, got.Loop, n)
		}
	}
}

// TestSlowClockEnds holds that the loop of a slow clock ends when the clock at the start has passed the event.
func TestSlowClockEnds(t *testing.T) {
	got := Simulate(rows(t)["A: nine hours slow, set right after the start"].World)
	if got.Ends < 8*time.Hour || got.Ends > 9*time.Hour+30*time.Minute || got.Period > time.Minute {
		t.Errorf("period %v, ends after %v, want some seconds and about nine hours", got.Period, got.Ends)
	}
	if got := Simulate(rows(t)["S3: a stale stamp, not writable"].World); got.Ends != 0 {
		t.Errorf("a stamp that cannot be written: ends after %v, want never", got.Ends)
	}
	// It turns every three and a half hours, and now and then just when the timer is due.
	stopped := World{Start: noon, Clock: Clock{Begins: time.Unix(0, 0), Sync: -1},
		Timers: []Timer{{Name: "a.timer", Unit: "a.service", Does: "reboot", Calendar: []*calendar.Spec{spec(t, "03:30 UTC")}}}}
	if slow := Simulate(stopped); !slow.Loop || slow.Ends != 0 || slow.Period < 3*time.Hour || slow.Period > 4*time.Hour {
		t.Errorf("a stopped clock: loop %v, period %v, ends after %v, want one of 3h30m that never ends\n%s", slow.Loop, slow.Period,
			slow.Ends, chain(&slow))
	}
	// The chain of the second boot is what the log of such a machine says.
	var kinds []Kind
	for _, e := range got.Boots[1].Events {
		kinds = append(kinds, e.Kind)
	}
	if want := []Kind{Starts, Stamped, Waits, Set, Waits, Elapsed, Acts}; !slices.Equal(kinds, want) {
		t.Errorf("the second boot: %v, want %v\n%s", kinds, want, chain(&got))
	}
}

// world draws any world.
func world(t *rapid.T, tb testing.TB) World {
	span := func(name string) time.Duration {
		return time.Duration(rapid.SampledFrom([]int64{0, 1, 5, 60, 3600, 86400, 1 << 30}).Draw(t, name)) * time.Second
	}
	bools := rapid.Bool()
	w := World{Start: noon.Add(time.Duration(rapid.Int64Range(0, 86400*400).Draw(t, "start")) * time.Second), Late: bools.Draw(t, "late")}
	for range rapid.IntRange(0, 3).Draw(t, "timers") {
		x := Timer{Name: "a.timer", Unit: "a.service", Does: "reboot", Persistent: bools.Draw(t, "persistent"),
			OnClock: bools.Draw(t, "on clock"), Once: bools.Draw(t, "once"), Random: span("random"), Accuracy: span("accuracy"), After: span("after")}
		for range rapid.IntRange(0, 2).Draw(t, "events") {
			x.Calendar = append(x.Calendar, spec(tb, rapid.SampledFrom([]string{"daily", "*:0/10", "Mon 03:30", "*-*~1 02:00", "2020-1-1",
				"minutely", "Mon *-2-29", "03:30 UTC", "quarterly", "*:*:*"}).Draw(t, "event")))
		}
		if bools.Draw(t, "boot") {
			x.Boot = append(x.Boot, span("OnBootSec"))
		}
		if bools.Draw(t, "active") {
			x.Active = append(x.Active, span("OnActiveSec"))
		}
		if bools.Draw(t, "stamp") {
			x.Stamp.At = w.Start.Add(-span("age") + span("ahead"))
		}
		x.Stamp.Fixed, x.Stamp.Forgotten, x.Stamp.Unsynced = bools.Draw(t, "fixed"), bools.Draw(t, "forgotten"), bools.Draw(t, "lost")
		w.Timers = append(w.Timers, x)
	}
	if rapid.IntRange(0, 4).Draw(t, "direct") == 0 {
		w.Direct = []Direct{{Unit: "b.service", Does: "reboot", After: span("after"), Once: bools.Draw(t, "once")}}
	}
	w.Clock = Clock{Error: span("slow") - span("fast"), Sync: span("sync") - time.Second, Saves: bools.Draw(t, "saves"), Waits: bools.Draw(t, "waits")}
	if bools.Draw(t, "fixed clock") {
		w.Clock.Begins = noon.Add(-span("begins"))
	}
	if bools.Draw(t, "floor") {
		w.Clock.Saved = noon.Add(-span("saved"))
	}
	return w
}

// TestAnyWorld holds what is so of every world: it is played in bounded time and always the same, time goes
// on, and the verdict fits the boots.
func TestAnyWorld(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := world(r, t)
		got := Simulate(w)
		if again := Simulate(w); !reflect.DeepEqual(got, again) {
			r.Fatalf("two runs of one world differ:\n%s\n%s", chain(&got), chain(&again))
		}
		if len(got.Boots) == 0 || len(got.Boots) > maxBoots {
			r.Fatalf("%d boots", len(got.Boots))
		}
		wrong := 0
		for i := range got.Boots {
			b := &got.Boots[i]
			wrong++
			if !b.Wrong {
				wrong = 0
			}
			if i > 0 && b.Began.Sub(got.Boots[i-1].Began) < downTakes {
				r.Fatalf("boot %d begins %v after the one before", i, b.Began.Sub(got.Boots[i-1].Began))
			}
			if (b.Does == "") != (b.Lasted == 0) || b.Does == "" && i != len(got.Boots)-1 {
				r.Fatalf("boot %d of %d does %q after %v", i, len(got.Boots), b.Does, b.Lasted)
			}
			for k := 1; k < len(b.Events); k++ {
				if b.Events[k].After < b.Events[k-1].After {
					r.Fatalf("boot %d goes back in time:\n%s", i, chain(&got))
				}
			}
		}
		if got.Loop != (wrong >= w.inARow()) {
			r.Fatalf("loop %v after %d wrong boots in a row\n%s", got.Loop, wrong, chain(&got))
		}
		if got.Loop && (got.Period <= 0 || got.Surprise >= 0) {
			r.Fatalf("a loop of period %v, surprise %d", got.Period, got.Surprise)
		}
	})
}

// TestPersistentAloneDoesNotLoop holds the answer to the story: whatever the stamp says, if it can be written and
// the clock is right, a timer of hours or days restarts the machine once too often at most.
func TestPersistentAloneDoesNotLoop(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := world(r, t)
		w.Direct, w.Clock = nil, Clock{Sync: -1}
		for i := range w.Timers {
			x := &w.Timers[i]
			x.Stamp.Fixed, x.Stamp.Forgotten, x.Stamp.Unsynced, x.OnClock = false, false, false, false
			x.Boot, x.Active, x.After, x.Persistent = nil, nil, 0, true
			x.Calendar = []*calendar.Spec{spec(t, rapid.SampledFrom([]string{"daily", "hourly", "Mon 03:30", "*-*~1 02:00"}).Draw(r, "calendar"))}
			if x.Random >= 3600*time.Second || x.Accuracy >= 3600*time.Second {
				x.Random, x.Accuracy = time.Minute, time.Second
			}
		}
		if got := Simulate(w); got.Loop {
			r.Fatalf("a loop:\n%s", chain(&got))
		}
	})
}

func FuzzTimer(f *testing.F) {
	f.Add("03:30", int64(0), int64(-9*3600), int64(3), uint8(1))
	f.Add("*:*:*", int64(-1<<40), int64(1<<40), int64(-1), uint8(255))
	f.Add("*:*:0/5", int64(3), int64(1<<33+2), int64(0), uint8(0x42))
	f.Fuzz(func(t *testing.T, text string, stamp, clock, sync int64, bits uint8) {
		s, err := calendar.Parse(text, calendar.Zones{Local: tokyo})
		if err != nil {
			return
		}
		bit := func(n int) bool { return bits&(1<<n) != 0 }
		x := Timer{Name: "a.timer", Unit: "a.service", Does: "reboot", Calendar: []*calendar.Spec{s}, Persistent: bit(0),
			Boot: []time.Duration{time.Duration(sync)}, Random: time.Duration(clock), OnClock: bit(1),
			Stamp: Stamp{At: time.Unix(stamp, 0), Fixed: bit(2), Forgotten: bit(3), Unsynced: bit(4)}}
		if stamp&1 != 0 {
			x.UnitActive, x.UnitInactive = []time.Duration{time.Duration(clock)}, []time.Duration{time.Duration(sync), time.Second}
			x.Runs = Runs{Booted: clock&2 != 0, Stays: clock&4 != 0, Spares: int(uint8(clock >> 8)), Burst: int(uint8(stamp)), Within: time.Duration(stamp)}
		}
		got := Simulate(World{Start: noon, Timers: []Timer{x}, Late: bit(5),
			Clock: Clock{Error: time.Duration(clock) * time.Second, Sync: time.Duration(sync) * time.Second, Waits: bit(6), Saves: bit(7)}})
		if len(got.Boots) == 0 || len(got.Boots) > maxBoots {
			t.Errorf("%d boots", len(got.Boots))
		}
	})
}
