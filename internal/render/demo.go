// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/stall"
	machine "github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/scan"
)

// DemoSchema is the schema of a DemoDocument.
const DemoSchema = "shisa.demo/1"

// DemoDocument is the result of shisa demo --story.
type DemoDocument struct {
	// Status lists every exit status that applies.
	Status  []int       `json:"status"`
	Stories []DemoStory `json:"stories"`
}

// DemoScanDocument is the result of shisa demo: that of the scan, with the stories.
type DemoScanDocument struct {
	scan.Report
	Stories []DemoStory `json:"stories,omitempty"`
}

// DemoStory is what shisa says in one of the stories that it comes from.
type DemoStory struct {
	Code string `json:"code"`
	// Title is what happened, Did what was done about it then.
	Title string `json:"title"`
	Did   string `json:"did"`
	// Dir is where the files of the story are, "" if they are gone again. Commands name them from there.
	Dir      string   `json:"dir"`
	Commands []string `json:"commands"`
	// Lines are what matters in the reports of the commands, Next what is to be done.
	Lines []DemoLine `json:"lines"`
	Next  string     `json:"next"`
	// NotShown says why the story could not be shown here, "" if it was.
	NotShown string `json:"not_shown"`
}

// DemoLine is one thing that a report says.
type DemoLine struct {
	What string `json:"what"`
	Text string `json:"text"`
}

// DemoStories writes stories for people, each with the two lines that matter.
func DemoStories(w io.Writer, stories []DemoStory, s Style) error {
	o := newOut(w, s)
	for i := range stories {
		if i > 0 {
			o.line()
		}
		o.demoHead(&stories[i])
		for _, c := range stories[i].Commands {
			o.line("    ", o.paint(dim, "$ "), Text(c))
		}
		o.demoLines(&stories[i])
	}
	return o.flush()
}

// DemoStoryHead writes what comes before the reports of a story, DemoStoryEnd what matters in them.
func DemoStoryHead(w io.Writer, d *DemoStory, s Style) error {
	o := newOut(w, s)
	o.demoHead(d)
	o.line()
	return o.flush()
}

// DemoStoryEnd writes what matters in the reports of a story.
func DemoStoryEnd(w io.Writer, d *DemoStory, s Style) error {
	o := newOut(w, s)
	o.line("What matters:")
	o.demoLines(d)
	return o.flush()
}

func (o *out) demoHead(d *DemoStory) {
	o.prose(o.paint(bold, d.Code)+"  ", o.paint(bold, Text(d.Title)))
	o.prose("    ", Text(d.Did))
}

func (o *out) demoLines(d *DemoStory) {
	if d.NotShown != "" {
		o.prose("    "+o.paint(magenta, "NOT SHOWN")+"  ", Text(d.NotShown))
		return
	}
	for i, l := range d.Lines {
		colour := amber
		if i == 0 {
			colour = red
		}
		o.prose("    "+o.paint(colour, l.What)+": ", Text(l.Text))
	}
	if d.Next != "" {
		o.prose("    next: ", Text(d.Next))
	}
}

// errNoLine: a report does not say what a story is about.
var errNoLine = errors.New("the report does not name it")

// DemoCause picks the leading cause of a report, what it explains, and a finding that is none: the last thing
// that is worth knowing. next is the first step.
func DemoCause(r *doctor.Report) (lines []DemoLine, next string, err error) {
	d := diagnose(r, tellAll)
	i := slices.IndexFunc(r.Findings, func(f doctor.Finding) bool { return f.Severity.Rank() >= finding.Waste.Rank() })
	if len(r.Causes) == 0 || d.byID[r.Causes[0].Finding] == nil || i < 0 {
		return nil, "", fmt.Errorf("the cause: %w", errNoLine)
	}
	c, harmless := &r.Causes[0], &r.Findings[i]
	f := d.byID[c.Finding]
	word := map[doctor.Certainty]string{doctor.LikelyCause: "likely cause", doctor.NotCertain: "perhaps the cause"}[c.Certainty]
	if word == "" {
		return nil, "", fmt.Errorf("a cause that explains others: %w", errNoLine)
	}
	all := d.explained(c)
	slices.Sort(all)
	text := d.object(c.Object) + ": " + f.Summary + "; explains " + strings.Join(all[:min(2, len(all))], ", ")
	if more := len(all) - 2; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	if len(f.Remedies) > 0 {
		next = demoStep(&f.Remedies[0])
	}
	return []DemoLine{{word, text}, {"not the cause", d.object(harmless.Object) + ": " + harmless.Summary}}, next, nil
}

func demoStep(r *doctor.Remedy) string {
	if r.Command == "" {
		return r.Text
	}
	return r.Text + ": " + r.Command
}

// DemoMissing picks the base that is needed and missing.
func DemoMissing(c *refs.Census) (DemoLine, error) {
	o := newOut(io.Discard, Style{})
	for i := range c.All {
		if b := &c.All[i]; b.State == refs.Missing {
			return DemoLine{"removed", Name(b.Name) + ": " + o.baseState(b)}, nil
		}
	}
	return DemoLine{}, fmt.Errorf("the base that is missing: %w", errNoLine)
}

// DemoRestored picks a base that is there again, of which it was looked whether it is the file that was removed.
func DemoRestored(c *refs.Census, name string, same bool) (DemoLine, error) {
	o := newOut(io.Discard, Style{})
	for i := range c.All {
		if b := &c.All[i]; b.Name == name && b.State == refs.Live && same {
			return DemoLine{"restored", Name(b.Name) + ": the very same file: " + o.baseState(b)}, nil
		}
	}
	return DemoLine{}, fmt.Errorf("the base that was brought back: %w", errNoLine)
}

// DemoBlame picks the unit that takes a machine down again and again, and what starts it. next is the argument of the
// kernel's command line that stops it.
func DemoBlame(b *doctor.Boots) (line DemoLine, next string, err error) {
	x := b.Blame
	if x == nil || b.Stop == nil || len(x.Chain) == 0 || len(x.Started) == 0 || b.Course != doctor.Loop {
		return line, "", fmt.Errorf("the unit that loops: %w", errNoLine)
	}
	last := x.Started[len(x.Started)-1]
	text := fmt.Sprintf("%s, in %d of %d boots: %s; each start runs it: %s%s", x.Name(), x.Ended, x.Of, x.Chain[0].Text,
		last.Text, inFile(last.Path, last.Line))
	return DemoLine{"to blame", text}, "start it once with " + strings.Join(b.Stop.Arguments, " "), nil
}

// DemoTimer picks the persistent timer that a machine's loop does not come from.
func DemoTimer(t *doctor.Timers) (DemoLine, error) {
	for i := range t.Timers {
		x := &t.Timers[i]
		if x.Persistent && x.Danger == doctor.TimerActs && len(x.Says) > 0 {
			return DemoLine{"not to blame", x.Unit + " with Persistent=true: " + x.Says[0]}, nil
		}
	}
	return DemoLine{}, fmt.Errorf("the timer: %w", errNoLine)
}

// DemoStall picks when a disk that answers tests is set offline, and holds it against all tries of one command that
// the timeout is for.
func DemoStall(d *StallDocument, e *machine.Evidence) (DemoLine, error) {
	for _, m := range d.Machines {
		for _, x := range m.Disks {
			i := slices.IndexFunc(x.Outcomes, func(o StallOutcome) bool {
				return o.Case == stall.Medium && o.Word == stall.GoesOff && o.Worst != nil
			})
			j := slices.IndexFunc(e.Devices, func(d machine.Device) bool { return d.Name == x.Name && d.MaxRetries >= 0 })
			if i < 0 || j < 0 {
				continue
			}
			w, tries := x.Outcomes[i].Worst, int64(e.Devices[j].MaxRetries+1)
			return DemoLine{"offline", fmt.Sprintf("%s: %s; usually at %s, not at %d s x %d, which is %s", Name(w.Object), w.Text,
				afterWords(w.Usual), x.Timeout, tries, afterWords(x.Timeout*tries*1000))}, nil
		}
	}
	return DemoLine{}, fmt.Errorf("the disk that is set offline: %w", errNoLine)
}

// DemoReadOnly picks the file system that takes no writes, with what its mount options say. next is the first step
// about the leading cause.
func DemoReadOnly(r *doctor.Report, e *machine.Evidence) (line DemoLine, next string, err error) {
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Object.Kind != doctor.FileSystem || f.Severity != finding.Lost {
			continue
		}
		for _, x := range e.FSs {
			if x.Device == f.Object.Name && len(x.Mounts) > 0 {
				m := &e.Mounts[x.Mounts[0]]
				line = DemoLine{"read-only", f.Summary + ": those are " + m.Options + " " + m.Super}
			}
		}
	}
	if line.Text == "" || len(r.Causes) == 0 {
		return line, "", fmt.Errorf("the file system that takes no writes: %w", errNoLine)
	}
	if f := diagnose(r, tellAll).byID[r.Causes[0].Finding]; f != nil && len(f.Remedies) > 0 {
		next = demoStep(&f.Remedies[0])
	}
	return line, next, nil
}

// DemoHolder picks who held a mount when its umount failed.
func DemoHolder(d *TraceDocument, tried int) ([]DemoLine, error) {
	for i := range d.Failure.Holders {
		h := &d.Failure.Holders[i]
		word := map[holders.Certainty]string{holders.HeldAtCheck: "held it", holders.Overlap: "may have held it"}[h.Certainty]
		if word == "" || h.Syscall == "" {
			continue
		}
		failed := fmt.Sprintf("umount of %s by %s: %s, at try %d", d.Failure.Mount.Path, Who(d.Failure.Umount.Process),
			d.Failure.Umount.Errno, tried)
		return []DemoLine{{"failed", failed},
			{word, Who(h.Process) + ": " + h.Syscall + "(" + strings.Join(h.Args, ", ") + ")"}}, nil
	}
	return nil, fmt.Errorf("who held the mount: %w", errNoLine)
}
