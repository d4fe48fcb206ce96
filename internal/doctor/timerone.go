// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/reboots"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/calendar"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// nextTimes is how many of a timer's next times are told. maxCalendars bounds the events of one timer, and
// maxPlayed how often next times are looked for to play all timers of a machine: some hundred for each that makes no
// loop.
const (
	nextTimes    = 5
	maxCalendars = 32
	maxPlayed    = 150_000
)

// tooMany says why not all was played.
const tooMany = "the machine has more timers and calendar events than are played"

// timerOf tells of one timer. running are the units that each boot starts; left is how much may still be played.
func timerOf(e *evidence.Evidence, u *units.Unit, running map[string][]units.Start, left *int) *TimerInfo {
	t := &TimerInfo{Unit: u.Name, Starts: u.Triggered(), From: evidence.Source{Path: u.Path}, Reached: running[u.Name] != nil,
		Settings: []string{}, Ignored: []string{}, Next: []time.Time{}, Later: []string{}, Stamp: "none",
		Acts:   pulledActs(e, u.Triggered(), running),
		Danger: TimerHarmless, Says: []string{}, Runs: []TimerRun{}}
	x := &reboots.Timer{Name: u.Name, Unit: t.Starts, Accuracy: time.Minute}
	t.read(e, u, x)
	t.stamp(e, x)
	t.times(e, u, x, left)
	if len(t.Acts) > 0 {
		t.judge(e, u, x, running, left)
	}
	return t
}

// read reads the settings of a timer.
func (t *TimerInfo) read(e *evidence.Evidence, u *units.Unit, x *reboots.Timer) {
	zones := calendar.Zones{Local: e.Clock.Zone, Load: e.Clock.Load, Now: e.Now}
	for _, s := range u.Elapses() {
		if s.Key == "OnClockChange" || s.Key == "OnTimezoneChange" {
			continue
		}
		text := s.Key + "=" + s.Value
		if s.Key == "OnCalendar" && len(x.Calendar) == maxCalendars {
			t.Unsure = fmt.Sprintf("it has more than %d calendar events", maxCalendars)
			continue
		}
		if s.Key == "OnCalendar" {
			spec, err := calendar.Parse(s.Value, zones)
			if err != nil {
				t.ignore(s, err)
				continue
			}
			x.Calendar = append(x.Calendar, spec)
			t.Settings = append(t.Settings, s.Key+"="+spec.String())
			continue
		}
		span, err := calendar.ParseSpan(s.Value)
		if err != nil {
			t.ignore(s, err)
			continue
		}
		t.Settings = append(t.Settings, text)
		switch s.Key {
		case "OnBootSec":
			x.Boot = append(x.Boot, span)
		case "OnStartupSec":
			x.Startup = append(x.Startup, span)
		case "OnActiveSec":
			x.Active = append(x.Active, span)
		case "OnUnitActiveSec":
			x.UnitActive = append(x.UnitActive, span)
		case "OnUnitInactiveSec":
			x.UnitInactive = append(x.UnitInactive, span)
		}
	}
	x.OnClock = isSet(u, "OnClockChange")
	for _, key := range []string{"OnClockChange", "OnTimezoneChange"} {
		if isSet(u, key) {
			t.Settings = append(t.Settings, key+"=yes")
		}
	}
	x.Persistent = isSet(u, "Persistent")
	t.Persistent = x.Persistent
	x.Random = spanOf(u, "RandomizedDelaySec", 0)
	x.Accuracy = spanOf(u, "AccuracySec", time.Minute)
}

// runs says how the unit of a timer runs, as far as that matters for what it does.
func runs(e *evidence.Evidence, unit string, a *TimerAct, running map[string][]units.Start) (x reboots.Runs) {
	u := e.Units.Unit(unit)
	if u == nil {
		return x
	}
	remains, _ := u.Last("Service", "RemainAfterExit")
	x.Stays = u.Type() != "service" || isTrue(remains.Value)
	if a.act.Again {
		x.Spares = 1
	}
	if a.limited(u) {
		x.Burst, x.Within = startLimit(u)
	}
	// That it acts when a boot starts it is no matter of its timer.
	x.Booted = running[u.Name] != nil && x.Spares+x.Burst > 0
	return x
}

// limited tells of an act that happens when the unit is started too often, which nothing but its timer does.
func (a *TimerAct) limited(u *units.Unit) bool {
	restart, _ := u.Last("Service", "Restart")
	return a.If == units.TooOften && a.Unit == u.Name && (restart.Value == "" || restart.Value == "no")
}

// startLimit gives how often a unit may be started in which time (systemd.unit(5)): five times in ten seconds, if it does
// not say otherwise. 0 is no limit.
func startLimit(u *units.Unit) (burst int, within time.Duration) {
	burst, within = 5, 10*time.Second
	for _, section := range []string{"Service", "Unit"} { // where it stood before 229, and where it belongs
		for _, key := range []string{"StartLimitInterval", "StartLimitIntervalSec"} {
			if s, ok := u.Last(section, key); ok {
				if d, err := calendar.ParseSpan(s.Value); err == nil {
					within = d
				}
			}
		}
		if s, ok := u.Last(section, "StartLimitBurst"); ok {
			if n, err := strconv.Atoi(s.Value); err == nil && n >= 0 {
				burst = n
			}
		}
	}
	if burst == 0 || within == 0 {
		burst = math.MaxInt
	}
	return burst, within
}

// isTrue understands booleans of settings.
func isTrue(s string) bool {
	return slices.Contains([]string{"1", "yes", "y", "true", "t", "on"}, strings.ToLower(s))
}

// ignore notes a setting that systemd does not take; one whose zone is not known may be taken.
func (t *TimerInfo) ignore(s units.Setting, err error) {
	t.Ignored = append(t.Ignored, s.Key+"="+err.Error())
	if strings.Contains(err.Error(), tree.ErrNotCollected.Error()) {
		t.Unsure = s.Key + "=" + err.Error()
	}
}

// isSet tells whether a setting of a timer is true.
func isSet(u *units.Unit, key string) bool {
	s, _ := u.Last("Timer", key)
	return isTrue(s.Value)
}

// spanOf gives a span among the settings of a timer, or the default.
func spanOf(u *units.Unit, key string, def time.Duration) time.Duration {
	s, ok := u.Last("Timer", key)
	if d, err := calendar.ParseSpan(s.Value); ok && err == nil {
		return d
	}
	return def
}

// stamp looks for the stamp of a persistent timer.
func (t *TimerInfo) stamp(e *evidence.Evidence, x *reboots.Timer) {
	if !x.Persistent {
		return
	}
	c := &e.Clock
	s, there := c.Stamps[t.Unit]
	switch {
	case there:
		t.Stamp, t.Last, t.StampFrom = "known", s.At, s.From
		x.Stamp.At, x.Stamp.Fixed = s.At, s.Fixed
	case c.Keeps.Known:
		t.Stamp = "missing"
	default:
		t.Stamp = "unknown"
	}
	x.Stamp.Fixed = x.Stamp.Fixed || c.Keeps.Writable == units.No
	x.Stamp.Forgotten = c.Keeps.Lasts == units.No
}

// times finds the next times of a timer, of its calendars and, of a machine that runs, of what counts from
// its start.
func (t *TimerInfo) times(e *evidence.Evidence, u *units.Unit, x *reboots.Timer, left *int) {
	for _, spec := range x.Calendar {
		if *left -= nextTimes; *left < 0 {
			*left, t.Unsure = 0, tooMany
			break
		}
		t.Next = append(t.Next, spec.Times(e.Now, nextTimes)...)
	}
	for _, s := range u.Elapses() {
		span, err := calendar.ParseSpan(s.Value)
		if err != nil || span == calendar.Infinity {
			continue
		}
		words := map[string]string{"OnBootSec": "after the start of the kernel", "OnStartupSec": "after the start of systemd",
			"OnActiveSec": "after the timer is started", "OnUnitActiveSec": "after " + t.Starts + " was started last",
			"OnUnitInactiveSec": "after " + t.Starts + " ended last"}[s.Key]
		if words == "" {
			continue
		}
		t.Later = append(t.Later, span.String()+" "+words)
		booted := e.Host.Booted
		if live := e.Kind == tree.Live || e.Kind == tree.Bundle; live && !booted.IsZero() && s.Key == "OnBootSec" {
			if at := booted.Add(span); at.After(e.Now) {
				t.Next = append(t.Next, at)
			}
		}
	}
	slices.SortFunc(t.Next, time.Time.Compare)
	t.Next = slices.CompactFunc(t.Next, time.Time.Equal)
	t.Next = t.Next[:min(len(t.Next), nextTimes)]
}
