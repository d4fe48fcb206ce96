// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// BootsReport is what is told of the boots of some machines (schema shisa.doctor.boots/1).
type BootsReport struct {
	Verdict finding.Verdict `json:"verdict"`
	// Status lists every exit status that applies, the one that is returned first.
	Status   []int   `json:"status"`
	Machines []Boots `json:"machines"`
}

// Course is what a row of boots amounts to.
type Course string

// The courses.
const (
	// Loop: each boot is ended by what the machine itself starts.
	Loop Course = "loop"
	// Churn: the boots are short and end in order, and it is not known that the machine itself is why.
	Churn Course = "churn"
	// Crashes: the boots are short and end without order.
	Crashes Course = "crash"
	// Steady: nothing of that.
	Steady Course = "clean"
	// NotKnown: what is known of boots is not enough to tell.
	NotKnown Course = "unknown"
)

// Boots is what is told of one machine's boots.
type Boots struct {
	Machine string    `json:"machine"`
	Kind    tree.Kind `json:"kind"`
	Now     time.Time `json:"now"`
	Course  Course    `json:"course"`
	// Over: the machine has run longer since.
	Over bool `json:"over"`
	// Why says in a sentence what the course rests on.
	Why   string    `json:"why"`
	Row   BootRow   `json:"row"`
	Boots []BootEnd `json:"boots"`
	// Blame is who ended the boots of the row, nil if that is not known.
	Blame *Blame `json:"blame"`
	// Stop is how the machine is started once without that, nil where nothing is to blame.
	Stop *Stop `json:"stop"`
	// Breaks is what else of the machine does without the units that are masked.
	Breaks []Break `json:"breaks"`
	// Also are other units that take the machine down at its next start, by their files, whether or not they ever did.
	Also []Suspect `json:"also"`
	// NotLookedAt is what could not be read of boots and units.
	NotLookedAt []Missing `json:"not_looked_at"`
}

// BootRow are the numbers of the row of boots that the course was told from. All are 0 where there is none.
type BootRow struct {
	// First and Last are the indexes of its boots.
	First int `json:"first"`
	Last  int `json:"last"`
	Count int `json:"count"`
	// Ordered, Cut and Panicked count how they ended; a watchdog is a cut.
	Ordered  int `json:"ordered"`
	Cut      int `json:"cut"`
	Panicked int `json:"panicked"`
	// Shortest, Median and Longest are how long they ran.
	Shortest float64 `json:"shortest_seconds"`
	Median   float64 `json:"median_seconds"`
	Longest  float64 `json:"longest_seconds"`
	// Period is the time from the beginning of one boot to that of the next, on average.
	Period float64 `json:"period_seconds"`
}

// BootEnd is one boot, and how it ended.
type BootEnd struct {
	ID    string    `json:"id"`
	Began time.Time `json:"began"`
	Last  time.Time `json:"last"`
	// Ran is how long it ran.
	Ran float64 `json:"ran_seconds"`
	// End is "reboot", "poweroff", "halt", "kexec", "soft-reboot", "shutdown" for one in order of which no more is
	// known, "panic", "cut", "watchdog", "running" or "unknown".
	End string `json:"end"`
	By  Asker  `json:"by"`
	// First is the first unit that was started in it of those that take the machine down, "" if there was none.
	First string `json:"first_dangerous"`
	// InRow: it belongs to the row.
	InRow    bool   `json:"in_row"`
	Evidence []Fact `json:"evidence"`
}

// ExamineBoots tells of the boots of some machines.
func ExamineBoots(all []*evidence.Evidence) *BootsReport {
	r := &BootsReport{Verdict: finding.Clean, Machines: []Boots{}}
	for _, e := range all {
		b := bootsOf(e)
		r.Machines = append(r.Machines, *b)
		r.Status = append(r.Status, b.status()...)
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

// status lists what applies to one machine: a row whose end is not explained is found, and cannot be told either.
func (b *Boots) status() (all []int) {
	if b.bad() {
		all = append(all, finding.StatusFound)
	}
	if b.Course == NotKnown || b.bad() && b.Course != Crashes && b.Blame == nil {
		all = append(all, finding.StatusCannotTell)
	}
	return all
}

func (b *Boots) bad() bool {
	return !b.Over && (b.Course == Loop || b.Course == Churn || b.Course == Crashes)
}

// bootsOf tells of the boots of one machine.
func bootsOf(e *evidence.Evidence) *Boots {
	c := newCourts(e)
	b := &Boots{Machine: e.Label, Kind: e.Kind, Now: e.Now, Boots: []BootEnd{}, Breaks: []Break{}, Also: []Suspect{},
		NotLookedAt: []Missing{}}
	for _, gap := range e.Gaps {
		if gap.Part == evidence.PartBoots || gap.Part == evidence.PartLog || gap.Part == evidence.PartUnits {
			b.NotLookedAt = append(b.NotLookedAt, Missing{Machine: e.Label, Gap: gap})
		}
	}
	for i := range e.Boots {
		end := c.end(&e.Boots[i])
		if end.End == "panic" {
			end.Evidence = c.panicked(i)
		}
		b.Boots = append(b.Boots, end)
	}
	v := c.verdict()
	b.Course, b.Over, b.Why, b.Blame = v.course, v.over, v.why, v.blame
	if v.count > 0 {
		b.Row = rowOf(e.Boots, v.from, v.count)
		for i := v.from; i < v.from+v.count; i++ {
			b.Boots[i].InRow = true
		}
	}
	if v.blame != nil && v.blame.Unit != "" {
		b.Stop, b.Breaks = c.stop(v.blame), c.breaks(v.blame.Masks)
	}
	b.Also = c.also(v.blame)
	return b
}

// rowOf gives the numbers of a row of boots.
func rowOf(boots []evidence.Boot, from, count int) BootRow {
	r := BootRow{First: from, Last: from + count - 1, Count: count}
	var ran []float64
	for i := range boots[from : from+count] {
		b := &boots[from+i]
		ran = append(ran, length(b).Seconds())
		switch b.End {
		case "shutdown":
			r.Ordered++
		case "cut":
			r.Cut++
		case "panic":
			r.Panicked++
		}
	}
	slices.Sort(ran)
	r.Shortest, r.Median, r.Longest = ran[0], ran[len(ran)/2], ran[len(ran)-1]
	if count > 1 {
		r.Period = boots[from+count-1].Began.Sub(boots[from].Began).Seconds() / float64(count-1)
	}
	return r
}

// end tells how a boot ended.
func (c *courts) end(b *evidence.Boot) BootEnd {
	out := BootEnd{ID: b.ID, Began: b.Began, Last: b.Last, Ran: length(b).Seconds(), End: b.End, Evidence: []Fact{},
		First: c.first(b), By: Asker{Evidence: []Fact{}}}
	switch {
	case b.End == "shutdown":
		out.End = cmp.Or(b.How, b.End)
		out.By = c.asker(b)
		out.Evidence = out.By.Evidence
	case b.End == "cut" && b.Watchdog != "":
		out.Evidence = []Fact{{Source: b.From, Value: b.Watchdog,
			Text: "a watchdog would have reset it had it stood still: the log cannot tell that from a cut"}}
	}
	if w := c.daemon(b); w != nil {
		out.End = "watchdog"
		out.By = Asker{Kind: ByWatchdog, Who: "the watchdog daemon", Certain: true, Evidence: []Fact{*w}}
		out.Evidence = out.By.Evidence
	}
	return out
}

// panicked gives what the kernel said of its panic in boot i.
func (c *courts) panicked(i int) []Fact {
	out := []Fact{}
	boots := c.e.Boots
	b := &boots[i]
	for j := range c.e.Log.Events {
		x := &c.e.Log.Events[j]
		in := !x.Time.Before(b.Began) && (i+1 == len(boots) || x.Time.Before(boots[i+1].Began))
		if x.Boot != "" && b.ID != "" {
			in = x.Boot == b.ID
		}
		if x.Form == "kernel.panic" && x.Host == "" && in && len(out) < maxFacts {
			out = append(out, Fact{Source: x.From, Value: x.Text})
		}
	}
	return out
}

// daemon gives the line with which the daemon of a watchdog took the machine down.
func (c *courts) daemon(b *evidence.Boot) *Fact {
	for i := range b.Said {
		if w := &b.Said[i]; w.Form == "shutdown.watchdog" {
			return &Fact{Source: w.From, Value: w.Text}
		}
	}
	return nil
}

// judged is what the boots amount to.
type judged struct {
	course      Course
	over        bool
	why         string
	from, count int
	blame       *Blame
}

// verdict tells what the boots amount to.
func (c *courts) verdict() judged {
	e := c.e
	if why, known := e.Known(evidence.PartBoots); !known {
		return judged{course: NotKnown, why: why}
	}
	if row, over := churn(e.Boots); row != nil {
		from := slices.IndexFunc(e.Boots, func(b evidence.Boot) bool { return b.Began.Equal(row[0].Began) && b.ID == row[0].ID })
		return c.short(row, from, over)
	}
	if from, count := c.slow(); count > 0 {
		row := e.Boots[from : from+count]
		blame := c.blame(row)
		return judged{course: Churn, from: from, count: count, blame: blame, why: fmt.Sprintf(
			"%d boots in a row were ended by %s, after %s at most", count, blame.Name(), spell(longest(row)))}
	}
	return c.steady()
}

// steady tells that there is nothing, or why that cannot be told.
func (c *courts) steady() judged {
	e := c.e
	n := len(e.Boots)
	switch why, whole := e.Whole(evidence.PartLog); {
	case n == 1 && e.Boots[0].End == "running" && length(&e.Boots[0]) < shortBoot && !toldBefore(e):
		return judged{course: NotKnown, why: "the machine was started just now, and no log tells what was before"}
	case !whole:
		return judged{course: NotKnown, why: "no row of short boots was seen, but not all logs were read: " + why}
	case n == 1:
		return judged{course: Steady, why: "one boot is known"}
	}
	return judged{course: Steady, why: fmt.Sprintf("of %d boots, no %d in a row were shorter than %s", n, churnBoots, spell(shortBoot))}
}

// short judges a row of short boots.
func (c *courts) short(row []evidence.Boot, from int, over bool) judged {
	j := judged{from: from, count: len(row), over: over}
	r := rowOf(c.e.Boots, from, len(row))
	head := fmt.Sprintf("the machine was started %d times in a row, for %s at most", len(row), briefly(longest(row)))
	ended := r.Ordered + r.Cut + r.Panicked
	if ended == 0 {
		j.course, j.why = Churn, head+"; how the boots ended is not known"
		return j
	}
	if crashed := r.Cut + r.Panicked; crashed*2 > ended {
		j.course = Crashes
		j.why = fmt.Sprintf("%s; %d of %d ended in panics of the kernel, %d were cut off", head, r.Panicked, ended, r.Cut)
		return j
	}
	j.blame = c.blame(row)
	switch b := j.blame; {
	case b == nil:
		j.course, j.why = Churn, head+", and shut down in order each time; who asked for that is not known"
	case b.Kind == ByUnit:
		j.course = Loop
		j.why = fmt.Sprintf("%s, and shut down in order each time; %s asked for that in %d of %d", head, b.Name(), b.Ended, b.Of)
		if b.Ended == 0 {
			j.why = head + ", and shut down in order each time; no log tells who asked for that, but " + b.Name() +
				" would at each start"
		}
	default:
		j.course = Churn
		j.why = fmt.Sprintf("%s; %s asked for the end in %d of %d", head, b.Name(), b.Ended, b.Of)
	}
	return j
}

func longest(row []evidence.Boot) (d time.Duration) {
	for i := range row {
		d = max(d, length(&row[i]))
	}
	return d
}

// briefly writes a time that may be short.
func briefly(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f seconds", d.Seconds())
	}
	return spell(d)
}

// maxSlow is how long boots may be of a row that one unit ends again and again. Machines that are restarted
// once a day, or every 48 hours, are meant to be.
const maxSlow = 12 * time.Hour

// slow gives the newest boots that one unit ended, one after the other, each after less than maxSlow.
func (c *courts) slow() (from, count int) {
	boots := c.e.Boots
	n := len(boots)
	if n > 0 && boots[n-1].End == "running" {
		n--
	}
	unit := ""
	for from = n; from > 0; from-- {
		b := &boots[from-1]
		a := c.asker(b)
		if b.End != "shutdown" || length(b) >= maxSlow || a.Unit == "" || !a.Certain || unit != "" && a.Unit != unit {
			break
		}
		unit = a.Unit
	}
	if n-from < churnBoots {
		return 0, 0
	}
	return from, n - from
}
