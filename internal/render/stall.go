// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/finding"
)

// StallSchema is the schema of a StallDocument.
const StallSchema = "shisa.doctor.stall/1"

// StallDocument tells what machines do when their storage stops answering.
type StallDocument struct {
	Status []int `json:"status"`
	// For is how long it does not answer.
	For      int64          `json:"for_seconds"`
	Machines []StallMachine `json:"machines"`
}

// StallMachine is one of them.
type StallMachine struct {
	Label    string      `json:"label"`
	Disks    []StallDisk `json:"disks"`
	NotKnown []string    `json:"not_known"`
}

// StallDisk is a disk, or a mount of a server.
type StallDisk struct {
	Name    string `json:"name"`
	Model   string `json:"model"`
	Driver  string `json:"driver"`
	Adapter string `json:"adapter"`
	// Timeout is what is in force, AtBoot what rules of udev give at the next start, Policy what the platform asks
	// for; 0 where there is none, or it is not known.
	Timeout  int64  `json:"timeout_seconds"`
	AtBoot   int64  `json:"at_boot_seconds"`
	Policy   int64  `json:"policy_seconds"`
	PolicyBy string `json:"policy_by"`
	// Effective: the timeout does something. Reason says why, or why not.
	Effective bool           `json:"effective"`
	Reason    string         `json:"reason"`
	Outcomes  []StallOutcome `json:"outcomes"`
	Events    []StallEvent   `json:"events"`
	Assumed   []string       `json:"assumed"`
	Rules     []StallRule    `json:"rules"`
}

// StallOutcome is what comes of the stall in one case.
type StallOutcome struct {
	Case stall.Case `json:"case"`
	Word stall.Word `json:"word"`
	// Certain: it has happened by then at the latest. Otherwise it may have, or nothing is known of the disk.
	Certain bool        `json:"certain"`
	Worst   *StallEvent `json:"worst"`
	// Before and May are the kinds of other events that come in the time.
	Before []string `json:"before"`
	May    []string `json:"may"`
}

// StallEvent is one thing that happens. Times are in milliseconds after the first request that is not
// answered; -1 is never, or that nobody can tell.
type StallEvent struct {
	Kind     string `json:"kind"`
	Object   string `json:"object"`
	Case     string `json:"case"`
	Earliest int64  `json:"earliest_ms"`
	Latest   int64  `json:"latest_ms"`
	Usual    int64  `json:"usual_ms"`
	Harm     string `json:"harm"`
	If       string `json:"if"`
	Text     string `json:"text"`
	Why      string `json:"why"`
}

// StallRule is a rule of udev that sets the timeout.
type StallRule struct {
	Path    string `json:"path"`
	Line    int    `json:"line"`
	Seconds int64  `json:"seconds"`
	// Broken says why it sets nothing, "" if it does.
	Broken string `json:"broken"`
}

// NewStall makes the document of what machines do.
func NewStall(all []*doctor.Stall, stalled time.Duration) *StallDocument {
	d := &StallDocument{For: int64(stalled.Seconds()), Machines: []StallMachine{}}
	applies := []int{finding.StatusClean}
	for _, m := range all {
		one := StallMachine{m.Label, []StallDisk{}, m.NotKnown}
		for i := range m.Disks {
			x := newStallDisk(&m.Disks[i])
			one.Disks = append(one.Disks, x)
			for _, o := range x.Outcomes {
				applies = append(applies, o.status())
			}
			if !x.Effective && stall.Classify(x.Driver, x.Adapter) == stall.Unknown && m.Disks[i].Disk.NFS == nil {
				applies = append(applies, finding.StatusCannotTell)
			}
		}
		d.Machines = append(d.Machines, one)
	}
	d.Status = finding.OrderStatus(applies...)
	return d
}

// status is the exit status for an outcome: what goes on when storage is back is clean.
func (o StallOutcome) status() int {
	switch o.Word {
	case stall.Survives, stall.Recovers:
		return finding.StatusClean
	}
	return finding.StatusFound
}

func newStallDisk(d *doctor.StalledDisk) StallDisk {
	x := StallDisk{Name: d.Disk.Name, Model: d.Disk.Model, Driver: d.Disk.Driver, Adapter: d.Disk.HostDriver,
		Timeout: int64(d.Disk.Timeout.Seconds()), AtBoot: int64(d.AtBoot.Seconds()), Policy: int64(d.Policy.Seconds()),
		PolicyBy: d.By, Effective: d.Effective, Reason: d.Reason, Outcomes: []StallOutcome{}, Events: []StallEvent{},
		Assumed: d.Assumed, Rules: []StallRule{}}
	if x.Adapter == doctor.AdapterNotKnown {
		x.Adapter = ""
	}
	for i := range d.Events {
		x.Events = append(x.Events, newStallEvent(&d.Events[i]))
	}
	for _, o := range d.Outcomes {
		y := StallOutcome{Case: o.Case, Word: o.Word, Certain: o.Certain, Before: kindsOf(o.Before), May: kindsOf(o.May)}
		if o.Worst != nil {
			e := newStallEvent(o.Worst)
			y.Worst = &e
		}
		x.Outcomes = append(x.Outcomes, y)
	}
	for _, u := range d.Rules {
		x.Rules = append(x.Rules, StallRule{u.From.Path, u.From.Line, int64(u.Seconds), ""})
	}
	for _, u := range d.Silent {
		x.Rules = append(x.Rules, StallRule{u.From.Path, u.From.Line, int64(u.Seconds), u.Broken})
	}
	return x
}

func kindsOf(events []stall.Event) []string {
	all := []string{}
	for _, e := range events {
		all = append(all, e.Kind)
	}
	return all
}

func newStallEvent(e *stall.Event) StallEvent {
	ms := func(d time.Duration) int64 {
		if d == stall.Never {
			return -1
		}
		return d.Milliseconds()
	}
	return StallEvent{e.Kind, e.Object, string(e.Case), ms(e.At.Low), ms(e.At.High), ms(e.Usual), e.Harm.String(), e.If, e.Text, e.Why}
}

// Stall writes the document for people.
func Stall(w io.Writer, d *StallDocument, s Style) error {
	o := newOut(w, s)
	for i := range d.Machines {
		m := &d.Machines[i]
		if len(d.Machines) > 1 {
			o.line(o.paint(bold, Name(m.Label)))
			o.line()
		}
		for j := range m.Disks {
			o.stallDisk(&m.Disks[j], d.For)
			o.line()
		}
		if len(m.Disks) == 0 {
			o.line("No disk of which something could be said.")
			o.line()
		}
		o.line("not known:")
		for _, n := range m.NotKnown {
			o.prose("  - ", Text(n))
		}
	}
	return o.flush()
}

func (o *out) stallDisk(d *StallDisk, stalled int64) {
	o.line(o.paint(bold, Name(d.Name)), "  ", d.about())
	o.prose("  ", d.timeout())
	for _, text := range d.silent() {
		o.prose("  ", text)
	}
	for _, a := range d.Assumed {
		o.prose("  assumed: ", Text(a))
	}
	o.line()
	o.line("  ", afterWords(stalled*1000), " without an answer:")
	for _, c := range d.told() {
		o.prose("    "+o.paint(c.colour(), fmt.Sprintf("%-12s", c.title()))+" ", c.in+c.words())
	}
	if first := d.first(stalled); first != "" {
		o.prose("    "+o.paint(yellow, fmt.Sprintf("%-12s", "PERHAPS"))+" ", "others are faster: "+first)
	}
	shown := d.shown(stalled, o.s.All)
	if len(shown) == 0 {
		return
	}
	o.line()
	o.line("  what fires, in this order, after the first request without an answer:")
	rows := [][]string{}
	for _, e := range shown {
		rows = append(rows, []string{"    " + afterWords(e.Earliest), latestWords(e), usualWords(e), Name(e.Object),
			caseShort(e.Case), Text(e.Text)})
	}
	o.stallRows(rows, shown)
	if hidden := len(d.Events) - len(shown); hidden > 0 {
		o.line("    ... ", Count(int64(hidden), "more event", "more events"), " (--verbose tells them)")
	}
}

// stallRows writes events, each with its text in lines below one another.
func (o *out) stallRows(rows [][]string, events []StallEvent) {
	for i, r := range rows {
		head := fmt.Sprintf("%-12s %-12s %-9s ", r[0], "- "+r[1], r[2])
		text := r[3] + ": " + r[5]
		if r[4] != "" {
			text += " (if it " + r[4] + ")"
		}
		if events[i].If != "" {
			text += "; only if " + Text(events[i].If)
		}
		o.prose(head, text)
		if o.s.All {
			o.prose(strings.Repeat(" ", 12), o.paint(dim, "why: "+Text(events[i].Why)))
		}
	}
}

// shown are the events that matter for a stall: those that it reaches, of those that need something
// more only the bad ones.
func (d *StallDisk) shown(stalled int64, all bool) []StallEvent {
	if all {
		return d.Events
	}
	var shown []StallEvent
	for _, e := range d.Events {
		if e.Earliest <= stalled*1000 && (e.If == "" || e.Harm != "kills") {
			shown = append(shown, e)
		}
	}
	return shown
}

func (d *StallDisk) about() string {
	parts := []string{}
	for _, p := range []string{d.Model, d.Driver, d.Adapter} {
		if p != "" && (len(parts) == 0 || parts[len(parts)-1] != p) {
			parts = append(parts, Text(p))
		}
	}
	return strings.Join(parts, ", ")
}

// timeout says what the timeout is, and whether it does anything.
func (d *StallDisk) timeout() string {
	text := "timeout "
	switch {
	case d.Timeout == 0:
		text += "not known"
	default:
		text += fmt.Sprintf("%d s", d.Timeout)
	}
	if by := d.setBy(); by != "" && d.AtBoot > 0 && d.AtBoot != d.Timeout {
		text += fmt.Sprintf(", %d s after the next start by %s", d.AtBoot, by)
	}
	if d.Effective && d.Timeout > 0 && d.Timeout < d.Policy {
		text += fmt.Sprintf(", too short: %s asks for %d s", Text(d.PolicyBy), d.Policy)
	}
	if !d.Effective && d.Timeout == 0 {
		return sentence(Text(d.Reason)) + "."
	}
	if !d.Effective {
		text += ", without effect"
	}
	return text + ": " + Text(d.Reason) + "."
}

// setBy is the file of the rule whose value counts at the next start, "" if there is none.
func (d *StallDisk) setBy() string {
	for _, u := range slices.Backward(d.Rules) {
		if u.Broken == "" && u.Seconds == d.AtBoot {
			return Name(u.Path)
		}
	}
	return ""
}

// silent says of rules why they do nothing.
func (d *StallDisk) silent() []string {
	var all []string
	for _, u := range d.Rules {
		if u.Broken != "" {
			all = append(all, fmt.Sprintf("the rule in %s was to set %d s, and sets nothing: %s", Name(u.Path), u.Seconds, Text(u.Broken)))
		}
	}
	return all
}

func caseWords(c stall.Case) string {
	if c == stall.Dead {
		return "if the disk answers nothing"
	}
	return "if the disk answers tests, and no reads and writes"
}

func caseShort(c string) string {
	switch stall.Case(c) {
	case stall.Dead:
		return "answers nothing"
	case stall.Medium:
		return "answers tests"
	}
	return ""
}

// title is the word for people.
func (c *StallOutcome) title() string {
	if !c.Certain && c.Worst == nil {
		return "CANNOT TELL"
	}
	return map[stall.Word]string{stall.Survives: "SURVIVES", stall.Recovers: "RECOVERS", stall.Disturbed: "DISTURBED",
		stall.SwitchesO: "FAILS OVER", stall.Fails: "ERRORS", stall.GoesRO: "READ-ONLY", stall.GoesOff: "OFFLINE",
		stall.Reboots: "RESETS"}[c.Word]
}

func (c *StallOutcome) colour() string {
	switch {
	case c.status() != finding.StatusClean:
		return red
	case !c.Certain && c.Worst == nil:
		return magenta
	case c.Word == stall.Survives:
		return green
	}
	return yellow
}

// words say what happens.
func (c *StallOutcome) words() string {
	switch {
	case c.Worst == nil && !c.Certain:
		return "what its driver does then is not known"
	case c.Word == stall.Survives:
		return "no timer fires; who writes waits, and goes on"
	case c.Word == stall.Recovers:
		return "who writes waits, and goes on when storage is back"
	}
	e := c.Worst
	when := "at " + afterWords(e.Earliest) + " at the earliest, " + latestText(e.Latest)
	if e.Usual > 0 {
		when += ", usually at " + afterWords(e.Usual)
	}
	may := ""
	if !c.Certain {
		may = "it may come to this: "
	}
	text := may + Name(e.Object) + ": " + Text(e.Text) + ", " + when
	if len(c.Before) > 0 {
		text += "; also: " + strings.ReplaceAll(strings.Join(c.Before, ", "), "_", " ")
	}
	return text
}

// toldOutcome is an outcome, and in which case it comes.
type toldOutcome struct {
	StallOutcome
	in string
}

// told are the outcomes, one where both cases come to the same.
func (d *StallDisk) told() []toldOutcome {
	var all []toldOutcome
	for _, c := range d.Outcomes {
		if len(all) > 0 && all[0].words() == c.words() && all[0].title() == c.title() {
			all[0].in = ""
			continue
		}
		all = append(all, toldOutcome{c, caseWords(c.Case) + ": "})
	}
	return all
}

// first are those who may take over, or reset the machine, before the worst comes.
func (d *StallDisk) first(stalled int64) string {
	var all []string
	for _, e := range d.Events {
		if e.If != "" && (e.Harm == "fails_over" || e.Harm == "resets") && e.Earliest <= stalled*1000 {
			all = append(all, Name(e.Object)+" from "+afterWords(e.Earliest)+" on")
		}
	}
	return strings.Join(all, ", ")
}

func latestText(ms int64) string {
	if ms < 0 {
		return "when at the latest nobody can tell"
	}
	return afterWords(ms) + " at the latest"
}

func latestWords(e StallEvent) string {
	if e.Latest < 0 {
		return "?"
	}
	return afterWords(e.Latest)
}

func usualWords(e StallEvent) string {
	if e.Usual <= 0 {
		return ""
	}
	return "~" + afterWords(e.Usual)
}

// afterWords is a time in few characters: "9m0s", "12.4s".
func afterWords(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	if d >= 30*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
