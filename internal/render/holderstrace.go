// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
)

// Schemas of what tracing tells.
const (
	TraceSchema   = "shisa.holders-trace/1"
	PollersSchema = "shisa.holders-pollers/1"
	EnginesSchema = "shisa.holders-engines/1"
)

// maxFrames is how many frames of a stack are shown.
const maxFrames = 12

// TraceDocument is a umount that failed, with who held it then.
type TraceDocument struct {
	// Status lists every exit status that applies.
	Status []int `json:"status"`
	trace.Failure
	// Evidence is the directory where what was so then is kept, "" if it is not.
	Evidence string `json:"evidence"`
}

// PollersDocument says who looks at mounts again and again.
type PollersDocument struct {
	Status  []int           `json:"status"`
	Pollers []TracedPoller  `json:"pollers"`
	Watched TracedPollWatch `json:"watched"`
}

// TracedPollWatch says how long was watched, and what could not be.
type TracedPollWatch struct {
	WatchedNS int64      `json:"watched_ns"`
	Mounts    int        `json:"mounts"`
	Lost      trace.Lost `json:"lost"`
}

// TracedPoller is a process that looks at mounts on a period, or one whose children do.
type TracedPoller struct {
	Process  holders.Process `json:"process"`
	Children string          `json:"children"`
	Calls    []string        `json:"calls"`
	PeriodNS int64           `json:"period_ns"`
	// IrregularPercent is the standard deviation of the period as a share of it.
	IrregularPercent int64    `json:"irregular_percent"`
	Polls            int64    `json:"polls"`
	Paths            []string `json:"paths"`
}

// NewPollers makes the document.
func NewPollers(r *trace.PollReport, status []int) *PollersDocument {
	d := &PollersDocument{Status: status, Pollers: []TracedPoller{},
		Watched: TracedPollWatch{WatchedNS: r.WatchedNS, Mounts: r.Mounts, Lost: r.Lost}}
	for _, p := range r.Pollers {
		d.Pollers = append(d.Pollers, TracedPoller{Process: p.Process, Children: p.Children, Calls: p.Calls,
			PeriodNS: p.PeriodNS, IrregularPercent: int64(p.CV*100 + 0.5), Polls: p.Polls, Paths: p.Paths})
	}
	return d
}

// EnginesDocument says which engines work here.
type EnginesDocument struct {
	Status  []int               `json:"status"`
	Engines []trace.EngineState `json:"engines"`
	// Auto is the one that is taken where none is named, "" if none works.
	Auto string `json:"auto"`
}

// Trace writes a failed umount for people.
func Trace(w io.Writer, d *TraceDocument, s Style) error {
	o := newOut(w, s)
	f := &d.Failure
	o.prose("", fmt.Sprintf("%s  umount of %s by %s: %s", f.At.UTC().Format(time.RFC3339), Name(f.Mount.Path),
		Who(f.Umount.Process), o.paint(red, Text(f.Umount.Errno))))
	for i := range f.Holders {
		o.traced(&f.Holders[i])
	}
	switch {
	case f.References < 0 && len(f.Holders) == 0:
		o.prose("  ", o.paint(magenta, "nobody was seen")+": "+strings.Join(f.Missing, ", ")+" is not seen by "+f.Engine)
	case f.Unexplained > 0:
		o.prose("  ", o.paint(magenta, Count(f.Unexplained, "reference", "references")+" unexplained"))
	}
	if f.Lost.Drops+f.Lost.Tables+f.Lost.Programs > 0 {
		o.prose("  ", LostWords(f.Lost))
	}
	for _, n := range f.Notes {
		o.prose("  note: ", Text(n))
	}
	if d.Evidence != "" {
		o.prose("  kept in ", Name(d.Evidence))
	}
	return o.flush()
}

// traced is one holder of a failed umount: who, what it did, for how long, and where in its program.
func (o *out) traced(h *holders.Holder) {
	text := Who(h.Process)
	if h.Process.Parent != "" {
		text += ", started by " + Text(h.Process.Parent)
	}
	text += ": "
	switch {
	case h.Syscall != "":
		text += Text(h.Syscall) + "(" + Text(strings.Join(h.Args, ", ")) + ")"
	default:
		text += KindWords(h)
	}
	if h.Path != "" {
		text += " " + Name(h.Path)
	}
	if h.HeldNS > 0 {
		text += ", for " + took(h.HeldNS)
	}
	word := map[holders.Certainty]string{holders.HeldAtCheck: "held it: ", holders.Overlap: "may have held it: "}[h.Certainty]
	if word == "" {
		word = "holds it: "
	}
	o.prose("  "+word, text)
	o.stack("kernel: ", o.top(h.KernelStack))
	o.stack("program: ", o.top(h.UserStack))
}

// top are the frames of a stack that are shown: the innermost say what it did.
func (o *out) top(frames []holders.Frame) []holders.Frame {
	if o.s.All {
		return frames
	}
	return frames[:min(len(frames), maxFrames)]
}

// Pollers writes who looks at mounts again and again.
func Pollers(w io.Writer, d *PollersDocument, s Style) error {
	o := newOut(w, s)
	if len(d.Pollers) == 0 {
		o.prose("", fmt.Sprintf("nobody looked at any of %s on a period within %s",
			Count(int64(d.Watched.Mounts), "mount", "mounts"), took(d.Watched.WatchedNS)))
	}
	for _, p := range d.Pollers {
		who := Who(p.Process)
		if p.Children != "" {
			who += " by " + Text(p.Children)
		}
		o.prose("", fmt.Sprintf("%s: %s of %s every %s, %d %% irregular, %s seen", who, strings.Join(p.Calls, " and "),
			Count(int64(len(p.Paths)), "mount", "mounts"), took(p.PeriodNS), p.IrregularPercent,
			Count(p.Polls, "time", "times")))
		for i, path := range p.Paths {
			if i == maxRanges && !s.All {
				o.line(fmt.Sprintf("  and %d more", len(p.Paths)-i))
				break
			}
			o.line("  ", Name(path))
		}
	}
	if n := d.Watched.Lost.Tables + d.Watched.Lost.Compat; n > 0 {
		o.prose("not looked at: ", Count(n, "call", "calls")+" for which the kernel's tables were full or that are of 32-bit programs")
	}
	return o.flush()
}

// Engines writes which engines work here.
func Engines(w io.Writer, d *EnginesDocument, s Style) error {
	o := newOut(w, s)
	for _, e := range d.Engines {
		switch {
		case !e.Usable:
			o.prose(fmt.Sprintf("%-8s", e.Name)+" ", o.paint(dim, "does not work here")+": "+Text(e.Reason))
		default:
			o.prose(fmt.Sprintf("%-8s", e.Name)+" ", o.paint(green, "works")+": "+EngineWords(e))
		}
	}
	if d.Auto != "" {
		o.prose("", "taken where none is named: "+Text(d.Auto))
	}
	return o.flush()
}

// EngineWords says what an engine sees and misses, and what it costs as it was measured here.
func EngineWords(e trace.EngineState) string {
	text := "sees " + strings.Join(e.Coverage, ", ")
	if len(e.Missing) > 0 {
		text += "; misses " + strings.Join(e.Missing, ", ")
	}
	if e.ObserverNS > 0 {
		text += "; a look at a watched mount takes " + brief(e.ObserverNS) + " longer"
	}
	if x := e.Slows(); x > 1 {
		text += fmt.Sprintf("; reading out of memory takes all programs %.0f times as long meanwhile", x)
	}
	return text
}

// LostWords says what could not be told of.
func LostWords(l trace.Lost) string {
	var parts []string
	for _, x := range []struct {
		n    int64
		what string
	}{{l.Drops, "did not fit into buffers"}, {l.Tables, "did not fit into tables"}, {l.Compat, "of 32-bit programs"},
		{l.Programs, "of what programs have mapped, without which their stacks may have no names"}} {
		if x.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	return Count(l.Count(), "event was", "events were") + " lost: " + strings.Join(parts, "; ")
}

// brief is a time that may be below a microsecond.
func brief(ns int64) string {
	if ns < 1000 {
		return fmt.Sprintf("%d ns", ns)
	}
	return took(ns)
}
