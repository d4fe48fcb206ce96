// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/reboots"
	machine "github.com/shisa-vm/shisa/internal/evidence"
)

// timersReport is a machine with one timer of each danger, all its words being text.
func timersReport(text string) *doctor.TimersReport {
	at := time.Date(2026, 11, 20, 3, 30, 0, 0, time.UTC)
	m := doctor.Timers{Machine: text, Now: at, Start: at, Systemd: true, Clock: doctor.TimerClock{Zone: text, Offset: 32400, Local: "yes",
		Synced: "yes", Daemon: text, Saves: "unknown", Saver: text, Waits: "no", Writable: "no", Lasts: "unknown", Why: text}}
	for i, d := range []doctor.Danger{doctor.TimerLoops, doctor.TimerMayLoop, doctor.TimerSurprise, doctor.TimerUnknown, doctor.TimerActs,
		doctor.TimerIdle, doctor.TimerHarmless, doctor.TimerHarmless} {
		t := doctor.TimerInfo{Unit: text, Starts: text, From: machine.Source{Path: text}, Reached: i != 7, Danger: d, Says: []string{text},
			Settings: []string{text}, Ignored: []string{text}, Stamp: "known", Last: at.Add(-time.Hour), StampFrom: machine.Source{Path: text},
			Next: []time.Time{at.Add(time.Hour), at.Add(25 * time.Hour)}, Later: []string{text}}
		if d != doctor.TimerHarmless {
			t.Acts = []doctor.TimerAct{{Unit: text, Does: text, If: text, Never: text, Doubt: text, Guards: []string{text},
				Chain: []doctor.BlameStep{{Text: text, Path: text, Line: 3}, {Text: text}, {Text: text}, {Text: text}, {Text: text}}}}
			t.Runs = []doctor.TimerRun{{Stamps: text, Clock: text, Loop: i < 2, Period: 6, Ends: 32400, Cause: text, Boots: []doctor.TimerBoot{
				{Began: at, Clock: at, Lasted: 2, Does: text, Events: []doctor.TimerEvent{{After: 2, Clock: at, Kind: reboots.Acts, Unit: text, Text: text}}}}}}
		}
		m.Timers = append(m.Timers, t)
	}
	m.AtStart = []doctor.TimerAct{{Unit: text, Does: text, Chain: []doctor.BlameStep{{Text: text, Path: text}}}}
	m.NotLookedAt = []doctor.Missing{{Machine: text, Gap: machine.Gap{Part: machine.PartClock, Object: text, Reason: text}}}
	return &doctor.TimersReport{Machines: []doctor.Timers{m, {Machine: text}}}
}

func TestTimers(t *testing.T) {
	for name, s := range map[string]Style{"": {}, "-80": {Width: 80}, "-all": {All: true}, "-color": {Color: true}} {
		var b strings.Builder
		if err := Timers(&b, timersReport("a word"), s); err != nil {
			t.Fatal(err)
		}
		golden(t, "timers"+name+".txt", b.String())
		b.Reset()
		if err := Timers(&b, timersReport(evil), s); err != nil {
			t.Fatal(err)
		}
		if out := b.String(); strings.Contains(out, "\x1b[2J") || strings.Contains(out, "\u202e") || strings.Contains(out, "b\nc") {
			t.Errorf("what a machine says gets out as it came in: %q", out)
		}
	}
}
