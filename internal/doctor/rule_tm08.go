// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// Bounds of what is boot churn: boots shorter than shortBoot, so many in a row, none of which waits
// longer than shortBoot for the next one.
const (
	shortBoot  = 10 * time.Minute
	churnBoots = 3
)

// ruleTM08 finds machines that start again and again.
func ruleTM08() Rule {
	r := Rule{Rule: finding.TM08, Needs: []evidence.Part{evidence.PartBoots}, Reach: Upward,
		Guard: "a row of short boots that a longer one followed is over; panics and cuts are told apart from orderly " +
			"restarts; a unit is only blamed if its files or a log say that it takes the machine down",
		Test: "on tables, and on journals of loops that were run in systemd itself"}
	r.Judge = func(e *evidence.Evidence) []Result {
		o := hostObject(e)
		row, over := churn(e.Boots)
		switch n := len(e.Boots); {
		case row != nil:
			f := churned(&r, e, row)
			if over {
				f.over()
			}
			return []Result{fail(f)}
		case n == 1 && e.Boots[0].End == "running" && length(&e.Boots[0]) < shortBoot && !toldBefore(e):
			return []Result{unknown(o, "the machine was started just now, and no log tells what was before")}
		}
		return []Result{pass(o)}
	}
	return r
}

// length is how long a boot ran, by the clock that nobody sets where that is known: a machine whose clock
// is put right by hours at each start runs for minutes all the same.
func length(b *evidence.Boot) time.Duration {
	if b.Ran > 0 {
		return b.Ran
	}
	return b.Last.Sub(b.Began)
}

// toldBefore tells whether some log reaches back before the only boot that is known.
func toldBefore(e *evidence.Evidence) bool {
	return !e.Log.From.IsZero() && e.Log.From.Before(e.Boots[0].Began.Add(-time.Minute))
}

// churn gives the last row of short boots, and whether the machine has run longer since.
func churn(boots []evidence.Boot) (row []evidence.Boot, over bool) {
	from := 0
	for i := range boots {
		if length(&boots[i]) >= shortBoot {
			from = i + 1
			continue
		}
		if i > from && pause(&boots[i-1], &boots[i]) >= shortBoot {
			from = i
		}
		if i-from+1 >= churnBoots {
			row = boots[from : i+1]
			over = i < len(boots)-1
		}
	}
	return row, over
}

// pause is how long a machine was off between two boots. A clock that began wrong and was set right in the second one
// is reckoned with.
func pause(before, b *evidence.Boot) time.Duration {
	gap := b.Began.Sub(before.Last)
	right := gap
	for i := range b.Jumps {
		if !b.Jumps[i].Asleep {
			right += b.Jumps[i].By
		}
	}
	if right.Abs() < gap.Abs() {
		return right
	}
	return gap
}

// churned is the finding of a row of short boots.
func churned(r *Rule, e *evidence.Evidence, row []evidence.Boot) *Finding {
	c := newCourts(e)
	kinds := map[string]int{}
	facts := make([]Fact, 0, len(row))
	for i := range row {
		b := &row[i]
		kinds[b.End]++
		text := fmt.Sprintf("it ran for %s and ended: %s", briefly(length(b)), b.End)
		switch a := c.asker(b); {
		case a.Who != "" && a.Certain:
			text += "; asked by " + a.Who
		case a.Who != "":
			text += "; most likely asked by " + a.Who
		}
		if i < maxFacts/2 || i >= len(row)-maxFacts/2 {
			facts = append(facts, Fact{Source: b.From, Value: b.Began.Format(time.RFC3339), Text: text})
		}
	}
	kind, how := "restarts", "and was shut down in order each time: something asks for that"
	switch {
	case kinds["panic"]*2 > len(row):
		kind, how = "panics", "and ended in panics of the kernel"
	case kinds["shutdown"]*2 < len(row):
		kind, how = "cuts", "and was cut off: by a reset, a watchdog, its power, or a panic that nobody wrote down"
	}
	f := found(r, hostObject(e), 0.9, kind, fmt.Sprintf("the machine was started %d times in a row for less than %s %s",
		len(row), spell(shortBoot), how), facts...)
	if kind != "restarts" {
		f.Remedies = []Remedy{{Text: "look at its console while it starts; the log has only what it could still write"}}
		return f
	}
	c.accuse(f, c.blame(row))
	return f
}

// accuse adds who is to blame to the finding, and what to do.
func (c *courts) accuse(f *Finding, b *Blame) {
	switch {
	case b == nil:
		f.Remedies = []Remedy{{Text: "nobody is known who asks for that; look at its console while it starts"}}
		return
	case b.Unit == "":
		f.Summary += ", by " + b.Who
		f.Severity = finding.Warning
		f.Remedies = []Remedy{{Text: "ask why: no unit of the machine does it by itself"}}
		return
	case b.Certain:
		f.Summary += ", by " + b.Unit
	default:
		f.Summary += ", most likely " + b.Unit
	}
	f.Affects = append(f.Affects, unitObject(c.e, b.Unit))
	arguments := "systemd.mask=" + strings.Join(b.Masks, " systemd.mask=")
	f.Remedies = []Remedy{
		{Text: "in the boot menu, add " + arguments + " to the kernel's command line: it starts once without that, and " +
			"nothing on the disk is changed (shisa doctor boots tells the keys)", Undo: "leave it out at the next start"},
		{Text: "then disable what starts it, and read why it asks for a restart", Command: "systemctl disable " + b.Unit,
			Undo: "systemctl enable " + b.Unit},
	}
}

// maxFacts bounds the observations that one finding lists.
const maxFacts = 12
