// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"time"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/umount"
)

// UmountSchema is the schema of an umount.Result in JSON.
const UmountSchema = "shisa.umount/1"

// Umount writes the result for people. With stacks it says what those were doing who were in the way.
func Umount(w io.Writer, r *umount.Result, stacks bool, s Style) error {
	o := newOut(w, s)
	path := Name(r.Path)
	tries := fmt.Sprintf("%s in %s", Count(int64(r.Tries), "try", "tries"), took(r.TookNS))
	switch r.State {
	case umount.Done:
		o.prose("", fmt.Sprintf("%s is unmounted (%s)", path, tries))
	case umount.Detached:
		o.prose("", fmt.Sprintf("%s is detached: the file system lives until the last one lets go of it", path))
	case umount.Held:
		o.prose("", fmt.Sprintf("%s is mounted as before: it was held at each of %s", path, tries))
	case umount.Pinned:
		o.prose("", fmt.Sprintf("%s is unmounted (%s), and its file system lives on", path, tries))
	case umount.Unknown:
		o.prose("", fmt.Sprintf("%s is unmounted (%s); whether its file system is gone cannot be told", path, tries))
	}
	if r.Frozen != "" {
		o.prose("", fmt.Sprintf("%s was stopped at each try, and runs again", Name(r.Frozen)))
	}
	o.inTheWay(r, stacks)
	if r.Report != nil {
		o.stay(r)
		if n := r.Report.Audit.Unexplained; n != 0 {
			o.prose("", fmt.Sprintf("the kernel counts %s more than was found: shisa holders %s tells more",
				Count(n, "reference", "references"), Word(r.Path)))
		}
	}
	for _, n := range r.Notes {
		o.prose("note: ", Text(n))
	}
	if r.Undo != "" && r.State != umount.Held {
		o.prose("undo: ", Text(r.Undo))
	}
	return o.flush()
}

// stay lists who was there to stay: what keeps it mounted, or its device in use.
func (o *out) stay(r *umount.Result) {
	var of []holders.Holder
	for _, h := range r.Report.Holders {
		if r.State != umount.Held || h.Blocks == holders.BlocksUmount {
			of = append(of, h)
		}
	}
	if len(of) > 0 {
		o.line("held by:")
		o.holderList(r.Report, of)
	}
}

// inTheWay lists who made tries fail, each once, with how often.
func (o *out) inTheWay(r *umount.Result, stacks bool) {
	type culprit struct {
		holder *holders.Holder
		times  int
	}
	var all []*culprit
	known := map[string]*culprit{}
	for i := range r.Failed {
		for j := range r.Failed[i].Holders {
			h := &r.Failed[i].Holders[j]
			key := fmt.Sprintf("%d %s %s %s", h.Process.PID, h.Process.Comm, h.Kind, h.Syscall)
			if known[key] == nil {
				known[key] = &culprit{holder: h}
				all = append(all, known[key])
			}
			known[key].times++
		}
	}
	for _, c := range all {
		o.line(fmt.Sprintf("in the way %s:", Count(int64(c.times), "time", "times")))
		items := append(words(Who(c.holder.Process)+":"), words(KindWords(c.holder))...)
		if c.holder.Path != "" {
			items = append(items, Name(c.holder.Path))
		}
		o.flow("  ", items, " ")
		if stacks {
			o.stack("kernel: ", c.holder.KernelStack)
			o.stack("program: ", c.holder.UserStack)
		}
	}
	if r.FailedCut > 0 {
		o.line(fmt.Sprintf("and %s not listed", Count(int64(r.FailedCut), "failed try", "failed tries")))
	}
	if r.NotWatched != "" && r.Tries > 1 {
		o.prose("note: ", "who was in the way is not known: "+Text(r.NotWatched))
	}
}

// stack is one stack, the innermost function first.
func (o *out) stack(name string, frames []holders.Frame) {
	if len(frames) == 0 {
		return
	}
	items := make([]string, len(frames))
	for i, f := range frames {
		items[i] = Text(f.String())
	}
	o.flow("    "+name, items, " <")
}

// took is a duration as people say it.
func took(ns int64) string {
	d := time.Duration(ns)
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%d s", int64(d.Seconds()))
}
