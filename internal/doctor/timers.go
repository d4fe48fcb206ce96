// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/reboots"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// TimersReport is what is told of the timers of some machines (schema shisa.doctor.timers/1).
type TimersReport struct {
	Verdict finding.Verdict `json:"verdict"`
	// Status lists every exit status that applies, the one that is returned first.
	Status   []int    `json:"status"`
	Machines []Timers `json:"machines"`
}

// Timers is what is told of one machine's timers.
type Timers struct {
	Machine string    `json:"machine"`
	Kind    tree.Kind `json:"kind"`
	Now     time.Time `json:"now"`
	// Start is when the machine is taken to be started next.
	Start time.Time `json:"start"`
	// Systemd: its units are known; without any there is another init, or NotLookedAt says more.
	Systemd bool       `json:"systemd"`
	Clock   TimerClock `json:"clock"`
	// Timers are in the order of what they do: those that act on the machine first.
	Timers []TimerInfo `json:"timers"`
	// AtStart are units that act on the machine at each start without a timer.
	AtStart []TimerAct `json:"at_start"`
	// NotLookedAt is what could not be read of units and of what timers rest on.
	NotLookedAt []Missing `json:"not_looked_at"`
}

// TimerClock is what timers rest on.
type TimerClock struct {
	Zone string `json:"zone"`
	// Offset is by how much local time is before UTC at the next start.
	Offset int64 `json:"offset_seconds"`
	// Local: the clock of the hardware is taken for local time. Error is by how much the clock is off at the start,
	// as far as the hardware's could be read; ErrorKnown tells whether it could.
	Local      string `json:"local"`
	Error      int64  `json:"error_seconds"`
	ErrorKnown bool   `json:"error_known"`
	// Synced, Saves and Waits are "yes", "no" or "unknown"; the units are who does it, "" for nobody. With "unknown" they
	// are those that a boot may start, or not.
	Synced string    `json:"synced"`
	Daemon string    `json:"daemon"`
	Saves  string    `json:"saves"`
	Saver  string    `json:"saver"`
	Saved  time.Time `json:"saved,omitempty"`
	Waits  string    `json:"waits"`
	Waiter string    `json:"waiter"`
	Build  time.Time `json:"build,omitempty"`
	// Writable and Lasts are about the stamps; Why says what is in the way.
	Writable string `json:"stamps_writable"`
	Lasts    string `json:"stamps_last"`
	Why      string `json:"why"`
}

// Danger is what a timer will do to the machine.
type Danger string

// The dangers, the worst first.
const (
	// TimerLoops: the machine restarts again and again.
	TimerLoops Danger = "loop"
	// TimerMayLoop: it does if what is not known is so, or with a clock that it may well have.
	TimerMayLoop Danger = "may_loop"
	// TimerSurprise: it restarts the machine once when nobody expects it.
	TimerSurprise Danger = "surprise"
	// TimerUnknown: what is known does not tell.
	TimerUnknown Danger = "unknown"
	// TimerActs: it acts on the machine as it was made for.
	TimerActs Danger = "acts"
	// TimerIdle: it would, but does not: it is not started, or what it would run is missing.
	TimerIdle Danger = "idle"
	// TimerHarmless: what it starts does nothing to the machine.
	TimerHarmless Danger = "harmless"
)

func dangers() []Danger {
	return []Danger{TimerLoops, TimerMayLoop, TimerSurprise, TimerUnknown, TimerActs, TimerIdle, TimerHarmless}
}

// TimerInfo is what is told of one timer.
type TimerInfo struct {
	Unit   string          `json:"unit"`
	Starts string          `json:"starts"`
	From   evidence.Source `json:"from"`
	// Reached: each boot starts it.
	Reached bool `json:"reached"`
	// Settings are those by which it elapses, calendars in their normal form; Ignored those that systemd
	// does not take.
	Settings   []string `json:"settings"`
	Ignored    []string `json:"ignored"`
	Persistent bool     `json:"persistent"`
	// Next are its next times; Later says when it elapses besides, where no clock tells.
	Next  []time.Time `json:"next"`
	Later []string    `json:"later"`
	// Stamp is "none" where it keeps none, "missing", "known" or "unknown"; Last is when it elapsed last, as that
	// says.
	Stamp     string          `json:"stamp"`
	Last      time.Time       `json:"last,omitempty"`
	StampFrom evidence.Source `json:"stamp_from"`
	Acts      []TimerAct      `json:"acts"`
	Danger    Danger          `json:"danger"`
	// Says are the verdict's sentences.
	Says []string `json:"says"`
	// Unsure says why it is not known what the timer will do, "" if it is.
	Unsure string `json:"unsure"`
	// Runs are what becomes of the machine by each clock that it may have, the likeliest first; empty for
	// timers that do nothing to it.
	Runs []TimerRun `json:"runs"`

	played *played
}

// TimerRun is one run of what was played.
type TimerRun struct {
	// Stamps says what is supposed of the stamp, where that is not known; "" if it is.
	Stamps string      `json:"stamps"`
	Clock  string      `json:"clock"`
	Loop   bool        `json:"loop"`
	Begins time.Time   `json:"begins,omitempty"`
	Period float64     `json:"period_seconds"`
	Ends   float64     `json:"ends_seconds"`
	Cause  string      `json:"cause"`
	Boots  []TimerBoot `json:"boots"`
}

// TimerBoot is one boot of a run.
type TimerBoot struct {
	Began  time.Time    `json:"began"`
	Clock  time.Time    `json:"clock"`
	Lasted float64      `json:"lasted_seconds"`
	Does   string       `json:"does"`
	Due    bool         `json:"due"`
	Events []TimerEvent `json:"events"`
}

// TimerEvent is something that happens in a boot.
type TimerEvent struct {
	After float64      `json:"after_seconds"`
	Clock time.Time    `json:"clock"`
	Kind  reboots.Kind `json:"kind"`
	Unit  string       `json:"unit"`
	Text  string       `json:"text"`
	// For is the time of a calendar that a timer waits for, or that it catches up.
	For time.Time `json:"for,omitempty"`
}

// TimerAct is what a unit does to the machine.
type TimerAct struct {
	Unit string `json:"unit"`
	Does string `json:"does"`
	If   string `json:"if"`
	// Delay is how long it waits by itself, as shutdown +5.
	Delay float64     `json:"delay_seconds"`
	Chain []BlameStep `json:"chain"`
	// Never says why it does not happen, "" if it does; Guards what keeps it from happening again; Doubt
	// why it may not be so.
	Never  string   `json:"never"`
	Guards []string `json:"guards"`
	Doubt  string   `json:"doubt"`

	act *units.Act
}

// ExamineTimers tells of the timers of some machines.
func ExamineTimers(all []*evidence.Evidence) *TimersReport {
	r := &TimersReport{Verdict: finding.Clean, Machines: []Timers{}}
	for _, e := range all {
		t := timersOf(e)
		r.Machines = append(r.Machines, *t)
		r.Status = append(r.Status, t.status()...)
	}
	r.Status = finding.OrderStatus(r.Status...)
	switch r.Status[0] {
	case finding.StatusFound:
		r.Verdict = finding.Found
	case finding.StatusCannotTell:
		r.Verdict = finding.CannotTell
	}
	return r
}

func (t *Timers) status() (all []int) {
	worst, unsure := t.Worst()
	switch worst {
	case TimerLoops, TimerMayLoop, TimerSurprise:
		all = append(all, finding.StatusFound)
	}
	if unsure {
		all = append(all, finding.StatusCannotTell)
	}
	return all
}

// Worst is the worst that a timer, or a unit that each start runs, does to the machine; unsure tells whether
// something that it rests on is not known.
func (t *Timers) Worst() (worst Danger, unsure bool) {
	order := dangers()
	worst = TimerHarmless
	for i := range t.Timers {
		if d := t.Timers[i].Danger; slices.Index(order, d) < slices.Index(order, worst) {
			worst = d
		}
	}
	for i := range t.AtStart {
		switch a := &t.AtStart[i]; {
		case a.If != "" || len(a.Guards) > 0 || a.Delay >= reboots.Short.Seconds():
		case a.Doubt == "":
			worst = TimerLoops
		case slices.Index(order, TimerMayLoop) < slices.Index(order, worst):
			worst = TimerMayLoop
		}
	}
	unsure = len(t.NotLookedAt) > 0 || slices.ContainsFunc(t.Timers, func(x TimerInfo) bool { return x.Unsure != "" })
	return worst, unsure
}

// Dangerous are the timers that act on the machine, or would.
func (t *Timers) Dangerous() (all []*TimerInfo) {
	for i := range t.Timers {
		if t.Timers[i].Danger != TimerHarmless {
			all = append(all, &t.Timers[i])
		}
	}
	return all
}

// timersOf tells of the timers of one machine.
func timersOf(e *evidence.Evidence) *Timers {
	c := &e.Clock
	t := &Timers{Machine: e.Label, Kind: e.Kind, Now: e.Now, Start: c.Present, Timers: []TimerInfo{}, AtStart: []TimerAct{},
		NotLookedAt: []Missing{}}
	for _, gap := range e.Gaps {
		if gap.Part == evidence.PartUnits || gap.Part == evidence.PartClock {
			t.NotLookedAt = append(t.NotLookedAt, Missing{Machine: e.Label, Gap: gap})
		}
	}
	if e.Units == nil {
		return t
	}
	t.Systemd, t.Clock = true, clockInfo(e)
	reached, left := bootStarts(e), maxPlayed
	for _, u := range e.Units.Units {
		if u.State != units.Loaded {
			continue
		}
		if u.Type() == "timer" {
			t.Timers = append(t.Timers, *timerOf(e, u, reached, &left))
		} else if reached[u.Name] != nil {
			t.AtStart = append(t.AtStart, actsAtStart(e, u, reached[u.Name])...)
		}
	}
	order := dangers()
	slices.SortStableFunc(t.Timers, func(a, b TimerInfo) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Danger), slices.Index(order, b.Danger)), a.first().Compare(b.first()),
			strings.Compare(a.Unit, b.Unit))
	})
	return t
}

// first is the first of a timer's next times; the far future if there is none.
func (t *TimerInfo) first() time.Time {
	if len(t.Next) == 0 {
		return time.Unix(1<<40, 0)
	}
	return t.Next[0]
}

// bootStarts gives the units that the next boot starts without a timer that elapses.
func bootStarts(e *evidence.Evidence) map[string][]units.Start {
	if e.Units.FirstBoot {
		return e.Units.ReachedFirst("default.target")
	}
	return e.Units.Reached("default.target")
}

// pulledActs gives what a timer does to the machine when it elapses: by the unit that it starts, and by those that
// this one has started with it, but for those that run since the boot.
func pulledActs(e *evidence.Evidence, unit string, running map[string][]units.Start) []TimerAct {
	all := timerActs(e, unit)
	then := e.Units.Reached(unit)
	for _, name := range slices.Sorted(maps.Keys(then)) {
		if u := e.Units.Unit(unit); running[name] != nil || u != nil && u.Name == name {
			continue
		}
		for _, a := range timerActs(e, name) {
			a.Doubt = cmp.Or(a.Doubt, units.DoubtOf(then[name]))
			all = append(all, a)
		}
	}
	return all
}

// actsAtStart gives what a unit that each boot starts does to the machine by being started, without those acts that
// never happen.
func actsAtStart(e *evidence.Evidence, u *units.Unit, chain []units.Start) (all []TimerAct) {
	for _, a := range timerActs(e, u.Name) {
		if a.Never == "" && !a.act.Again && a.act.Unit == u.Name && (a.If == "" || a.If == units.ItSucceeds) {
			a.Doubt = cmp.Or(a.Doubt, units.DoubtOf(chain))
			all = append(all, a)
		}
	}
	return all
}

// timerActs gives what starting a unit does to the machine.
func timerActs(e *evidence.Evidence, unit string) []TimerAct {
	all := []TimerAct{}
	acts := e.Units.Acts(unit)
	for i := range acts {
		a := &acts[i]
		if a.If == units.IsStopped {
			continue // it is when the machine goes down anyway
		}
		x := TimerAct{Unit: a.Unit, Does: a.What, If: a.If, Delay: a.Delay.Seconds(), Chain: steps(a.Chain), Guards: []string{}, Doubt: a.Doubt, act: a}
		if a.Missing != "" {
			x.Never = "there is no " + a.Missing
		}
		for _, g := range a.Guards {
			x.Guards = append(x.Guards, g.Text)
			if g.Kind == units.NotMet {
				x.Never = g.Text
			}
		}
		all = append(all, x)
	}
	return all
}

// clockInfo is the clock, for the report.
func clockInfo(e *evidence.Evidence) TimerClock {
	c := &e.Clock
	k := known(e)
	zone := c.ZoneName
	if zone == "" {
		zone, _ = c.Present.In(c.Zone).Zone()
	}
	return TimerClock{Zone: zone, Offset: int64(k.Offset.Seconds()), Local: string(c.Local), Error: int64(k.Error.Seconds()),
		ErrorKnown: k.Right != reboots.Unknown, Synced: string(c.Synced), Daemon: c.Daemon, Saves: string(c.Saves), Saver: c.Saver,
		Saved: c.Saved, Waits: string(c.Waits), Waiter: c.Waiter, Build: c.Build, Writable: string(c.Keeps.Writable),
		Lasts: string(c.Keeps.Lasts), Why: c.Keeps.Why}
}
