// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/reboots"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// played is what was played of a timer.
type played struct {
	timer reboots.Timer
	// act is what its unit does, as it is played.
	act *TimerAct
	// doubt says why it is not sure that the timer is started, or that its unit acts; "" if it is.
	doubt string
	// ways are what may be so of the stamp, each with its runs.
	ways []way
}

// way is one of the things that may be so of a stamp.
type way struct {
	text  string // "" if it is known to be so
	stamp reboots.Stamp
	runs  []reboots.Run
}

// rtcSlack is by how much the hardware's clock may be off that is taken for right.
const rtcSlack = 2 * time.Minute

// known gives what is known of a machine's clock, for what is played.
func known(e *evidence.Evidence) reboots.Known {
	c := &e.Clock
	_, offset := c.Present.In(c.Zone).Zone()
	k := reboots.Known{Offset: time.Duration(offset) * time.Second, Local: reboots.Truth(c.Local), Right: reboots.Unknown,
		Synced: reboots.Truth(c.Synced), Saves: reboots.Truth(c.Saves), Saved: c.Saved, Waits: reboots.Truth(c.Waits), Build: c.Build}
	if c.HasRTC && c.Local != units.Maybe {
		k.Right, k.Error = reboots.Yes, c.Ahead
		if c.Local == units.Yes {
			k.Error -= k.Offset
		}
		if k.Error.Abs() <= rtcSlack {
			k.Error = 0
		} else {
			k.Right = reboots.No
		}
	}
	return k
}

// playable gives the act of a unit that is played: one that happens always before one that happens at times;
// nil if none happens.
func (t *TimerInfo) playable() *TimerAct {
	var best *TimerAct
	for i := range t.Acts {
		a := &t.Acts[i]
		if a.Never == "" && (best == nil || best.If != "" && a.If == "") {
			best = a
		}
	}
	return best
}

// judge says what a timer will do to the machine.
func (t *TimerInfo) judge(e *evidence.Evidence, u *units.Unit, x *reboots.Timer, running map[string][]units.Start, left *int) {
	a := t.playable()
	switch {
	case a == nil:
		t.Danger = TimerIdle
		t.say("%s would %s the machine, but does not: %s", t.Starts, verb(t.Acts[0].Does), t.Acts[0].Never)
		return
	case !t.Reached:
		t.Danger = TimerIdle
		t.say("%s would %s the machine; no boot starts this timer", t.Starts, verb(a.Does))
		return
	case notMet(u, e.Units):
		t.Danger = TimerIdle
		t.say("%s would %s the machine; a condition of this timer is not met", t.Starts, verb(a.Does))
		return
	}
	x.Runs = runs(e, t.Starts, a, running)
	starts := e.Units.Unit(t.Starts)
	begins := len(x.Calendar) + len(x.Boot) + len(x.Startup) + len(x.Active)
	if begins == 0 && !x.OnClock && (starts == nil || running[starts.Name] == nil) {
		t.Danger = TimerIdle
		t.say("%s would %s the machine; this timer counts from when that ran last, and no boot runs it before", t.Starts, verb(a.Does))
		return
	}
	x.Does, x.After, x.Scheduled = a.Does, a.act.Delay, a.act.At != ""
	x.Once = slices.ContainsFunc(a.act.Guards, func(g units.Guard) bool { return g.Kind == units.Disarms && g.Lasting })
	x.Stamp.Unsynced = a.Does == units.Crash
	j := &played{timer: *x, act: a, ways: stampWays(e, t, x), doubt: doubtOf(e, u, a, running)}
	k := known(e)
	for i := range j.ways {
		w := &j.ways[i]
		one := *x
		one.Stamp = w.stamp
		w.runs = reboots.Matrix(reboots.World{Start: e.Clock.Present, Timers: []reboots.Timer{one}, Left: left}, k)
		for n := range w.runs {
			t.Runs = append(t.Runs, timerRun(w.text, &w.runs[n], e.Clock.Zone))
		}
	}
	t.played = j
	if *left <= 0 {
		t.Danger, t.Unsure = TimerUnknown, tooMany
		t.say("what becomes of the machine is not known: %s", t.Unsure)
		return
	}
	t.conclude(e)
}

// doubtOf says why it is not sure that each boot starts a timer, or that its unit acts then: since the start itself is
// not, or a condition is not known.
func doubtOf(e *evidence.Evidence, u *units.Unit, a *TimerAct, running map[string][]units.Start) string {
	for _, g := range slices.Concat(e.Units.Guards(u.Name), a.act.Guards) {
		if g.Kind == units.Unsure {
			return "whether " + g.Text + " is met is not known"
		}
	}
	return cmp.Or(units.DoubtOf(running[u.Name]), a.Doubt)
}

// stampWays gives what may be so of a stamp: what is not known is there both ways.
func stampWays(e *evidence.Evidence, t *TimerInfo, x *reboots.Timer) []way {
	all := []way{{"", x.Stamp, nil}}
	if !x.Persistent {
		return all
	}
	if t.Stamp == "unknown" {
		old, missing := x.Stamp, x.Stamp
		old.At = e.Clock.Present.AddDate(-1, 0, 0)
		all = []way{{"the stamp is old", old, nil}, {"there is no stamp", missing, nil}}
	}
	split := func(truth units.Truth, text string, change func(*reboots.Stamp)) {
		if truth != units.Maybe {
			return
		}
		for _, w := range slices.Clone(all) {
			change(&w.stamp)
			w.text = strings.TrimPrefix(w.text+", "+text, ", ")
			all = append(all, w)
		}
	}
	writable, text := e.Clock.Keeps.Writable, "stamps cannot be written"
	if writable != units.No && stampsFailed(e) != nil {
		writable, text = units.Maybe, "their file system, which failed, takes no writes at the next start either"
	}
	split(writable, text, func(s *reboots.Stamp) { s.Fixed = true })
	split(e.Clock.Keeps.Lasts, "stamps do not last", func(s *reboots.Stamp) { s.Forgotten = true })
	return all
}

// stampsFailed gives what is found about the file system of stamps that takes no writes any more, nil if
// nothing is.
func stampsFailed(e *evidence.Evidence) *Finding {
	i := e.Clock.Keeps.FS
	if i < 0 || i >= len(e.FSs) {
		return nil
	}
	o := fsObject(e, i)
	for _, rule := range []Rule{ruleFS01(), ruleFS02(), ruleFS03()} {
		for _, r := range rule.judge(e) {
			if r.Outcome == Fail && r.Object == o && !r.Finding.Over {
				return r.Finding
			}
		}
	}
	return nil
}

// say adds a sentence to the verdict.
func (t *TimerInfo) say(form string, args ...any) {
	t.Says = append(t.Says, fmt.Sprintf(form, args...))
}

// verb says what an act does.
func verb(does string) string {
	switch does {
	case units.Reboot:
		return "restart"
	case units.PowerOff:
		return "power off"
	case units.Kexec:
		return "restart the kernel of"
	case units.SoftReboot:
		return "restart the userspace of"
	}
	return does
}

// verbs is the same of somebody who does it.
func verbs(does string) string {
	head, rest, cut := strings.Cut(verb(does), " ")
	if strings.HasSuffix(head, "sh") {
		head += "e"
	}
	if head += "s"; cut {
		head += " " + rest
	}
	return head
}

// conclude draws the verdict out of what was played.
func (t *TimerInfo) conclude(e *evidence.Evidence) {
	j := t.played
	loops, first := 0, &j.ways[0]
	for i := range j.ways {
		if j.ways[i].runs[0].Loop {
			loops++
			if !first.runs[0].Loop {
				first = &j.ways[i]
			}
		}
	}
	r := &first.runs[0]
	does := verbs(j.act.Does)
	if !j.always() {
		t.say("%s %s the machine if %s, which is taken for so here", j.act.Unit, does, j.act.If)
	}
	switch {
	case loops == len(j.ways) && j.always() && j.doubt == "" && len(j.act.Guards) == 0:
		t.Danger = TimerLoops
		t.say("%s the machine again and again, %s: %s", does, pace(r, e.Clock.Zone), causeOf(r, e.Clock.Zone))
	case loops > 0:
		t.Danger = TimerMayLoop
		t.say("may %s the machine again and again, %s: %s", verb(j.act.Does), pace(r, e.Clock.Zone), causeOf(r, e.Clock.Zone))
		if first.text != "" {
			t.Unsure = "whether " + first.text + " is not known"
			t.say("that is so if %s, which is not known", first.text)
		}
	case !j.always():
		t.Danger = TimerActs // what fails once, and at no time that matters, is no surprise worth a warning
		t.say("then %s the machine%s", does, t.when(e.Clock.Zone))
	case j.differ():
		t.Danger = TimerUnknown
		t.Unsure = "whether its stamp is old, can be written and lasts is not known"
		t.say("may %s the machine once, right after its next start: %s", verb(j.act.Does), t.Unsure)
	case r.Surprise >= 0 && j.doubt != "":
		t.Danger = TimerUnknown
		t.say("may %s the machine once, %s after its next start: %s", verb(j.act.Does), spell(r.Boots[r.Surprise].Lasted),
			missed(&r.Boots[r.Surprise], e.Clock.Zone))
	case r.Surprise >= 0:
		t.Danger = TimerSurprise
		b := &r.Boots[r.Surprise]
		t.say("%s the machine once, %s after its next start: %s", does, spell(b.Lasted), missed(b, e.Clock.Zone))
	default:
		t.Danger = TimerActs
		t.say("%s the machine as it was made for%s", does, t.when(e.Clock.Zone))
	}
	for _, g := range j.act.Guards {
		t.say("%s", g)
	}
	if j.doubt != "" {
		t.Unsure = j.doubt
		t.say("%s", j.doubt)
	}
	t.supposing(e)
	if e.Kind == tree.Directory && t.Stamp == "known" && t.Danger == TimerSurprise {
		t.say("this rests on the time of %s, which a copy has to have kept", t.StampFrom.Path)
	}
}

// exactly is by how much a timer may be late that starts its unit as often as it says.
const exactly = time.Second

// always tells whether the unit acts each time when it is run, or when it succeeds, or as was played.
func (j *played) always() bool {
	return j.act.If == "" || j.act.If == units.ItSucceeds || j.timer.Runs.Burst > 0 && j.timer.Accuracy+j.timer.Random <= exactly
}

// differ tells whether it depends on what is not known whether there is a restart that nobody expects.
func (j *played) differ() bool {
	_, is := j.ways[0].surprise()
	return slices.ContainsFunc(j.ways, func(w way) bool {
		_, also := w.surprise()
		return also != is
	})
}

// when says when a timer acts next.
func (t *TimerInfo) when(zone *time.Location) string {
	switch {
	case len(t.Next) > 0:
		return ", next at " + localTime(t.Next[0], zone)
	case len(t.Later) > 0:
		return ", " + strings.Join(t.Later, " and ")
	}
	return ""
}

// localTime writes a time as the machine's clock on the wall shows it.
func localTime(t time.Time, zone *time.Location) string {
	t = t.In(zone)
	if t.Second() != 0 {
		return t.Format("2006-01-02 15:04:05 MST")
	}
	return t.Format("2006-01-02 15:04 MST")
}

// pace says how fast a loop turns, and for how long.
func pace(r *reboots.Run, zone *time.Location) string {
	s := "every " + turns(max(r.Period.Round(time.Second), time.Second))
	if r.Begins.Sub(r.Boots[0].Began) >= reboots.Short {
		s = "from " + localTime(r.Begins, zone) + " on " + s
	}
	if r.Ends > 0 {
		s += " for about " + spell(r.Ends)
	}
	return s
}

// turns says how long a turn of a loop takes: of hours the minutes too.
func turns(d time.Duration) string {
	if minutes := int(d.Round(time.Minute).Minutes()); minutes >= 120 && minutes%60 != 0 {
		return fmt.Sprintf("%d hours %d minutes", minutes/60, minutes%60)
	}
	return spell(d)
}

// risk tells whether the clock may well start slow by the zone's offset: nothing keeps it from that, and there is a
// sign that it does. why says what the sign is.
func (t *TimerInfo) risk(e *evidence.Evidence) (why string, at bool) {
	c := &e.Clock
	if c.Saves == units.Yes || c.Waits == units.Yes || len(t.played.timer.Calendar) == 0 {
		return "", false
	}
	k := known(e)
	switch {
	case futureSaid(e, t.Unit) != nil:
		return "its log says that a stamp was in the future", true
	case k.Right == reboots.No && k.Error < 0:
		return "the clock of the hardware is " + spell(-k.Error) + " behind what systemd takes it for", true
	case c.Local == units.Yes && k.Offset > 0 && k.Right != reboots.Yes:
		return "/etc/adjtime says that the clock of the hardware is in local time, and hypervisors give guests UTC", true
	}
	return "", false
}

// futureSaid gives the message that a timer's stamp was in the future, nil if there is none.
func futureSaid(e *evidence.Evidence, timer string) *evidence.Event {
	for i := range e.Log.Events {
		if ev := &e.Log.Events[i]; ev.Form == "timer.future" && ev.Host == "" && ev.Fields["unit"] == timer {
			return ev
		}
	}
	return nil
}

// clockLoop gives a run that loops with another clock than the likeliest, of those that fit; nil if none does.
func (t *TimerInfo) clockLoop(fits func(c *reboots.Clock) bool) *reboots.Run {
	for i := range t.played.ways {
		runs := t.played.ways[i].runs
		for n := range runs {
			if r := &runs[n]; n > 0 && r.Loop && fits(&r.By) {
				return r
			}
		}
	}
	return nil
}

// slowLoop gives one with a clock that begins slow and is then set right; nil if none does. One that has stopped is
// slow too, but of it only the log is a sign.
func (t *TimerInfo) slowLoop(e *evidence.Evidence) *reboots.Run {
	r := t.clockLoop(func(c *reboots.Clock) bool { return c.Sync >= 0 && c.Error < 0 })
	if r == nil && futureSaid(e, t.Unit) != nil {
		r = t.clockLoop(func(c *reboots.Clock) bool { return c.Sync >= 0 && !c.Begins.IsZero() })
	}
	return r
}

// supposing tells of loops that other clocks would make.
func (t *TimerInfo) supposing(e *evidence.Evidence) {
	if t.Danger == TimerLoops || t.Danger == TimerMayLoop {
		return
	}
	why, at := t.risk(e)
	r := t.slowLoop(e)
	if r == nil {
		at, r = false, t.clockLoop(func(*reboots.Clock) bool { return true })
	}
	if r == nil {
		return
	}
	if at {
		t.Danger = TimerMayLoop
		t.say("may %s the machine again and again, %s, if %s: %s", verb(t.played.act.Does), pace(r, e.Clock.Zone), r.Clock, why)
	} else {
		t.say("would do so again and again, %s, if %s", pace(r, e.Clock.Zone), r.Clock)
	}
	if e.Clock.Saves == units.No {
		t.say("nothing keeps the clock from starting before the last shutdown: no daemon remembers the time")
	}
}

// causeOf says why a loop turns, from its last boot.
func causeOf(r *reboots.Run, zone *time.Location) string {
	b := &r.Boots[len(r.Boots)-1]
	var waits, stamp string
	var due time.Time
	set := false
	for _, e := range b.Events {
		switch e.Kind {
		case reboots.Waits:
			waits, due = strings.TrimPrefix(e.Text, "it waits for "), e.For
		case reboots.Stamped:
			stamp = e.Text
		case reboots.Set:
			set = true
		}
	}
	switch {
	case set && !due.IsZero():
		return "each boot begins at " + localTime(b.Shown, zone) + " by its clock, which is then set right past " + localTime(due, zone)
	case due.IsZero() && b.Timer == "":
		return "each boot starts " + b.Unit
	case due.IsZero():
		return waits
	case strings.HasPrefix(stamp, "its stamp cannot"), strings.HasPrefix(stamp, "its stamp is written"):
		return stamp + ", so each start catches up what was due at " + localTime(due, zone) + " once more"
	}
	return "it is due at " + localTime(due, zone) + ", again and again"
}

// missed says why a boot ends once when nothing is due.
func missed(b *reboots.Boot, zone *time.Location) string {
	for _, e := range slices.Backward(b.Events) {
		switch {
		case e.Kind != reboots.Waits:
		case e.For.IsZero():
			return strings.TrimPrefix(e.Text, "it waits for ")
		case e.For.Before(b.Shown):
			return "it missed " + localTime(e.For, zone) + ", and systemd catches that up; after that it is quiet until its next time"
		default:
			return "by the machine's clock it is then " + localTime(e.For, zone)
		}
	}
	return ""
}

// timerRun is a run for the report.
func timerRun(stamps string, r *reboots.Run, zone *time.Location) TimerRun {
	x := TimerRun{Stamps: stamps, Clock: r.Clock, Loop: r.Loop, Begins: r.Begins, Period: r.Period.Seconds(), Ends: r.Ends.Seconds(), Boots: []TimerBoot{}}
	if r.Loop {
		x.Cause = causeOf(r, zone)
	}
	for i := range r.Boots {
		b := &r.Boots[i]
		y := TimerBoot{Began: b.Began.UTC(), Clock: b.Shown.UTC(), Lasted: b.Lasted.Seconds(), Does: b.Does, Due: b.Due,
			Events: []TimerEvent{}}
		for _, e := range b.Events {
			y.Events = append(y.Events, TimerEvent{e.After.Seconds(), e.Clock.UTC(), e.Kind, e.Timer, e.Text, e.For.UTC()})
		}
		x.Boots = append(x.Boots, y)
	}
	return x
}
