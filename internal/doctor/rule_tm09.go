// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// Bounds of steps of the clock: smaller ones are no finding; one forward soon after a start, and not a
// long one, is what a machine does that learns the time.
const (
	jumpSeconds = 60
	settling    = 10 * time.Minute
	longJump    = time.Hour
)

// ruleTM09 finds steps of the clock of the day.
func ruleTM09() Rule {
	r := Rule{Rule: finding.TM09, Needs: []evidence.Part{evidence.PartBoots}, Reach: Local,
		Guard: "what sleep explains is no step; a step forward of less than an hour soon after a start is a note; " +
			"nothing is said where there is no journal and no program tells of a step",
		Test: "on tables, and on journals with steps in them"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var facts []Fact
		worst, settles, journals := time.Duration(0), true, false
		for i := range e.Boots {
			b := &e.Boots[i]
			journals = journals || b.ID != "" && b.From.Path != "/proc/stat"
			for _, j := range b.Jumps {
				if j.Asleep || j.By.Abs() <= jumpSeconds*time.Second {
					continue
				}
				worst, settles = larger(worst, j.By), settles && settlesAt(b, j)
				facts = append(facts, Fact{Source: sourceAt(j.From, j.At), Value: j.By.String(),
					Text: "the clock of the day left that of the kernel by " + signed(j.By)})
			}
		}
		for i := range e.Log.Events {
			ev := &e.Log.Events[i]
			by, ok := stepOf(ev)
			if !ok {
				continue
			}
			worst, settles = larger(worst, by), settles && by > 0 && by < longJump
			facts = append(facts, said(ev))
		}
		if len(facts) == 0 {
			if !journals {
				return nil
			}
			return []Result{pass(hostObject(e))}
		}
		return []Result{fail(jumped(&r, e, facts, worst, settles))}
	}
	return r
}

// larger gives the longer of two steps.
func larger(a, b time.Duration) time.Duration {
	if b.Abs() > a.Abs() {
		return b
	}
	return a
}

// settlesAt tells of a step by which a machine that was just started learns the time.
func settlesAt(b *evidence.Boot, j evidence.Jump) bool {
	return j.By > 0 && j.By < longJump && j.At.Add(-j.By).Sub(b.Began) < settling
}

func sourceAt(s evidence.Source, at time.Time) evidence.Source {
	s.Time = at
	return s
}

// stepOf gives the step that a program told of.
func stepOf(e *evidence.Event) (time.Duration, bool) {
	if e.Form != "clock.step" && e.Form != "clock.wrong" || e.Host != "" {
		return 0, false
	}
	s, err := strconv.ParseFloat(e.Fields["seconds"], 64)
	if err != nil || math.Abs(s) <= jumpSeconds || math.Abs(s) > math.MaxInt32 {
		return 0, false
	}
	return time.Duration(s * float64(time.Second)), true
}

func jumped(r *Rule, e *evidence.Evidence, facts []Fact, worst time.Duration, settles bool) *Finding {
	if len(facts) > maxFacts {
		facts = append(facts[:maxFacts/2:maxFacts/2], facts[len(facts)-maxFacts/2:]...)
	}
	f := found(r, hostObject(e), 0.8, "step", fmt.Sprintf("the clock was set %s at once: times before and after do not "+
		"compare, and timers may fire for that alone", signed(worst)), facts...)
	if settles {
		f.Severity, f.Reach = finding.Note, Hint
	}
	f.Remedies = []Remedy{
		{Text: "see whether the clock of the hardware is in local time, or off", Command: "timedatectl"},
		{Text: "have the time kept by one daemon, and taken from the host for a guest"},
	}
	return f
}

// signed says how far and where to a clock was set.
func signed(d time.Duration) string {
	if d < 0 {
		return spell(-d) + " back"
	}
	return spell(d) + " forward"
}
