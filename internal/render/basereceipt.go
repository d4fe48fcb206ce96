// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/vault"
)

// BaseReceiptDocument is the JSON of the receipt of an act on base images as commands print it.
type BaseReceiptDocument struct {
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
	vault.BaseReceipt
}

// BaseReceipt writes for people what became of an act on base images that was taken back. left are its steps that are
// still in force, and risk the flag before the path of a base by which its name is taken away all the same.
func BaseReceipt(w io.Writer, r *vault.BaseReceipt, left []vault.BaseStep, risk string, s Style) error {
	o := newOut(w, s)
	head := o.paint(green, "UNDONE")
	// A step with a reason is one of which nothing was to be taken back any more.
	undone := slices.ContainsFunc(r.Steps, func(st vault.BaseStep) bool { return st.Undone && st.Why == "" })
	switch {
	case len(left) > 0 && !undone:
		head = o.paint(yellow, "NOT UNDONE")
	case len(left) > 0:
		head = o.paint(yellow, "UNDONE IN PART")
	case !undone:
		head = o.paint(yellow, "NOTHING LEFT TO UNDO")
	}
	o.line(head, "  ", Text(r.Act), " of ", r.Created.Format("2006-01-02 15:04:05Z"), " in ", Name(r.Dir()))
	shown := 0
	for i := range r.Steps {
		st := &r.Steps[i]
		if !st.Undone {
			continue
		}
		if shown++; shown > maxOfAKind && !s.All {
			continue
		}
		text := baseUndone(st)
		if st.Why != "" { // nothing was done, or something else
			text = Name(st.Name) + " (" + string(st.What) + "): " + Text(st.Why)
		}
		o.prose("  ", text)
	}
	if shown > maxOfAKind && !s.All {
		o.line(fmt.Sprintf("  and %d more (--all lists them)", shown-maxOfAKind))
	}
	needed := false
	for i := range left {
		o.prose("  "+o.paint(yellow, "left")+": ", Name(left[i].At())+": "+Text(left[i].Why))
		needed = needed || left[i].What == vault.BaseRestore || left[i].What == vault.BaseAdopt
	}
	if count(r, vault.BaseRecord, vault.BasePolicy) > 0 {
		o.prose("  ", "what was recorded, and the pool's own documents, stay: they take nothing from anybody")
	}
	if n := count(r, vault.BaseForget); n > 0 {
		o.prose("  ", Count(n, "record that was taken away stays", "records that were taken away stay")+
			" away: shisa base protect makes them anew of bases that are in their place")
	}
	o.prose("  receipt ", Text(r.ID))
	if needed {
		o.prose("", "the name of a base that is needed is taken away all the same with "+risk+"PATH")
	}
	return o.flush()
}

// count gives how many steps of some kinds were done.
func count(r *vault.BaseReceipt, what ...vault.BaseWhat) (n int64) {
	for i := range r.Steps {
		if r.Steps[i].Done && slices.Contains(what, r.Steps[i].What) {
			n++
		}
	}
	return n
}

// baseUndone says in words what was taken back.
func baseUndone(s *vault.BaseStep) string {
	name := Name(s.Name)
	switch s.What {
	case vault.BaseShield:
		return name + " lost its shield"
	case vault.BaseUnshield:
		return name + " has its shield again"
	case vault.BaseTouch:
		return name + " has the time of its last change again"
	case vault.BaseRestore, vault.BaseAdopt:
		if s.ID != "" {
			return name + " is in quarantine again"
		}
		return name + " lost its name again; its shield keeps it"
	case vault.BasePin:
		return name + " is pinned no more"
	case vault.BaseUnpin:
		return name + " is pinned again"
	case vault.BaseQuarantine:
		return name + " is in its place again"
	case vault.BaseMember:
		return name + " is no member any more"
	case vault.BaseRetire:
		return name + " is waited for again, and what it said last counts"
	case vault.BaseUnretire:
		return name + " is retired again"
	}
	return name + ": " + string(s.What)
}
