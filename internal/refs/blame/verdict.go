// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package blame

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/logs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

const (
	// together is how far apart two events are that tell of the same removal.
	together = 2 * time.Minute
	// zones is how far a time may be off that has no zone: from -12 to +14 hours.
	zones = 26 * time.Hour
	// atOnce is how soon a watch has a base back, and Nova says that it could not remove one.
	atOnce = 10 * time.Second
)

// judge finds out who removed the base last.
func (h *History) judge(o *Options) {
	i := h.last()
	if i < 0 {
		h.nobody(o, "no line was found that tells of its removal")
		return
	}
	by := h.Events[i]
	v := &h.Blame
	v.By = &by
	switch there := filepath.Clean(by.Path) == h.Path; {
	case by.From == Kernel:
		v.Sure, v.Why = Certain, "the kernel told of it"
	case by.From == Audit:
		v.Sure, v.Why = Certain, "shisa did it and noted it"
	case there:
		v.Sure, v.Why = Likely, "the program wrote that it removes this file, and nothing says that it could not"
	default:
		v.Sure = Possible
		v.Why = "the line names the file in another directory: another machine's name for this one, or another pool"
	}
	h.others(i)
	if h.State != Missing {
		return
	}
	if e := h.purged(i); e != nil { // of this name: which of several files had it last cannot be told from lines
		v.Why += "; a file of that name was removed for good at " + clock(e.Time) + " on " + e.Node + ": " + e.Text
	}
	alive := h.alive(i)
	switch {
	case alive == nil:
	case by.Exact || alive.Time.Sub(by.Time) > zones:
		v.By, v.Also = nil, []Deed{}
		h.nobody(o, "the last removal that is told of was before "+clock(alive.Time)+
			", and it was there again then ("+alive.Act+")")
	default:
		v.Sure = Possible
		v.Why += "; it was there at " + clock(alive.Time) + " (" + alive.Act +
			"), which may be later: the line has no zone or year"
	}
}

// purged is the last event after a removal by which shisa removed a file of that name for good, nil if there is none.
func (h *History) purged(by int) (last *Deed) {
	for i := range h.Events {
		if e := &h.Events[i]; e.From == Audit && e.Act == pool.ActPurge && e.Time.After(h.Events[by].Time) {
			last = e
		}
	}
	return last
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// nobody says that no one is known.
func (h *History) nobody(o *Options, why string) {
	h.Blame.Sure = Nobody
	if !o.Collected {
		why += "; the logs of other machines were not read (--logs)"
	}
	h.Blame.Why = why
}

// last is the index of the last removal, the kernel's where it tells of the same; -1 if there is none.
func (h *History) last() int {
	last := -1
	for i := range h.Events {
		if h.removal(i) {
			last = i
		}
	}
	if last < 0 {
		return -1
	}
	for i := range h.Events {
		if h.Events[i].From == Kernel && h.same(i, last) {
			return i
		}
	}
	return last
}

// failed has those lines tell of no removal behind which Nova says that it could not.
func (h *History) failed() {
	for k := range h.Events {
		f := &h.Events[k]
		if f.Act != actNotRemoved {
			continue
		}
		for i := range h.Events {
			e := &h.Events[i]
			d := f.Time.Sub(e.Time)
			if e.From == Log && e.Act == actRemoved && e.Node == f.Node && e.Path == f.Path && d >= 0 && d <= atOnce {
				e.Act = actNotRemoved
			}
		}
	}
}

// removal tells whether an event took the name of the base away: also by us, and then it can come back. What is removed
// for good had lost its name before.
func (h *History) removal(i int) bool {
	switch e := &h.Events[i]; e.Act {
	case actRemoved:
		return true
	case pool.ActQuarantine, pool.ActUndo:
		return e.From == Audit
	}
	return false
}

// same tells whether two removals are one. Where a time has no zone, it may be off by whole quarters of hours.
func (h *History) same(i, k int) bool {
	a, b := &h.Events[i], &h.Events[k]
	if a.Act != b.Act || a.Node != b.Node && !logs.SameHost(a.Node, b.Node) {
		return false
	}
	d := a.Time.Sub(b.Time).Abs()
	if (!a.Exact || !b.Exact) && d <= zones {
		d %= 15 * time.Minute
		d = min(d, 15*time.Minute-d)
	}
	return d <= together
}

// others takes what tells of the same removal, and what cannot be told apart from it by its time.
func (h *History) others(by int) {
	v, rivals := &h.Blame, []string{}
	for i := range h.Events {
		e := &h.Events[i]
		if i == by || !h.removal(i) {
			continue
		}
		d := v.By.Time.Sub(e.Time).Abs()
		near := d <= together || d <= zones && (!e.Exact || !v.By.Exact)
		switch {
		case h.same(by, i):
			v.Also = append(v.Also, *e)
		case near && e.Node != v.By.Node:
			v.Also = append(v.Also, *e)
			rivals = append(rivals, e.Node)
		}
	}
	if len(rivals) > 0 && v.Sure != Certain {
		v.Sure = Possible
		v.Why += "; others wrote so near that time: " + strings.Join(rivals[:min(len(rivals), 5)], ", ")
	}
}

// alive is the last event after a removal by which the base was there again, nil if there is none.
func (h *History) alive(by int) (last *Deed) {
	removed := &h.Events[by]
	for i := range h.Events {
		e := &h.Events[i]
		if e.From != Audit {
			continue
		}
		back := e.Act == "restore" || e.Act == "adopt"
		if !back && !(e.Act == "shield" && e.Text == "protect") {
			continue
		}
		after := e.Time.After(removed.Time)
		// A watch notes that it restored a base before it notes who removed it.
		watched := removed.From == Kernel && back && e.Node == removed.Node && removed.Time.Sub(e.Time) <= atOnce
		if after || watched {
			last = e
		}
	}
	return last
}
