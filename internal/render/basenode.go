// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/fleet"
	"github.com/shisa-vm/shisa/internal/refs/roll"
)

// BaseNodesSchema is the schema of a roll.List in JSON, BaseFleetSchema that of a fleet.Report.
const (
	BaseNodesSchema = "shisa.base-nodes/1"
	BaseFleetSchema = "shisa.base-fleet/1"
)

// BaseNodes writes the nodes that use a pool.
func BaseNodes(w io.Writer, l *roll.List, s Style) error {
	o := newOut(w, s)
	count := l.Standings()
	text := Count(int64(len(l.All))-count[roll.Stranger], "node", "nodes")
	for _, of := range []roll.Standing{roll.Silent, roll.Never, roll.Away} {
		if n := count[of]; n > 0 {
			text += fmt.Sprintf(", %d %s", n, map[roll.Standing]string{roll.Silent: "silent", roll.Never: "never heard",
				roll.Away: "retired"}[of])
		}
	}
	if n := count[roll.Stranger]; n > 0 {
		text += ", " + o.paint(yellow, Count(n, "stranger", "strangers"))
	}
	o.prose(Name(l.Bases)+": ", text)
	for i := range l.All {
		o.prose("  ", Text(l.All[i].Node)+": "+o.standing(&l.All[i], s))
	}
	for _, why := range l.Unread {
		o.prose("", o.paint(yellow, "not read")+": "+Text(why))
	}
	switch {
	case len(l.All) == 0 && len(l.Unread) == 0:
		o.prose("", "Nobody has said what it needs: nothing may be removed. shisa base node join makes this host a member.")
	case count[roll.Stranger] > 0:
		o.prose("", "A stranger may need any base: nothing may be removed until it has joined, or the configuration names it "+
			"among others.")
	}
	o.receipt(l.Receipt, l.Undo)
	return o.flush()
}

// standing says in words how a node stands to the pool.
func (o *out) standing(n *roll.Peer, s Style) string {
	text := ""
	switch n.Standing {
	case roll.Stranger:
		return o.paint(yellow, "stranger") + ", named by " + Text(n.From)
	case roll.Never:
		text = o.paint(yellow, "has never said what it needs")
	case roll.Away:
		text = "retired"
	case roll.Silent:
		text = o.paint(yellow, "silent") + " since " + when(n.Reported)
	case roll.Heard:
		text = "heard " + when(n.Reported)
	}
	if n.Seq > 0 {
		text += fmt.Sprintf(", report %d with %s", n.Seq, Count(n.Uses, "use", "uses"))
		if n.Held > 0 {
			text += fmt.Sprintf(", has looked since for %d of %d in quarantine", n.Seen, n.Held)
		}
	}
	if len(n.Only) > 0 {
		text += "; only it needs " + some(n.Only, s)
	}
	if len(n.Gaps) > 0 {
		text += "; " + o.paint(yellow, "could not read everything") + ": " + Text(n.Gaps[0])
		if more := len(n.Gaps) - 1; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
	}
	if r := n.Retired; r != nil {
		word := "retired"
		if n.Standing != roll.Away {
			word = "it is back, and was retired"
		}
		text += fmt.Sprintf("; %s on %s by %s: %s (%s)", word, r.Time.Format("2006-01-02"), Text(r.By), Text(r.Reason),
			Count(r.Pins, "pin", "pins"))
	}
	return text
}

// some gives the first of some names.
func some(names []string, s Style) string {
	more := ""
	if len(names) > maxOfAKind && !s.All {
		more = fmt.Sprintf(" and %d more", len(names)-maxOfAKind)
		names = names[:maxOfAKind]
	}
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = Name(n)
	}
	return strings.Join(list, ", ") + more
}

// BaseFleet writes what the nodes of a fleet need and have: what is missing first.
func BaseFleet(w io.Writer, r *fleet.Report, s Style) error {
	o := newOut(w, s)
	o.prose("", Count(int64(len(r.Nodes)), "report", "reports")+", "+Count(int64(len(r.All)), "base", "bases"))
	shown := 0
	for _, missing := range []bool{true, false} {
		for i := range r.All {
			b := &r.All[i]
			if miss := len(missingOn(b)) > 0; miss != missing {
				continue
			}
			if shown++; shown > maxOfAKind && !missing && !s.All {
				continue
			}
			o.fleetBase(b, s)
		}
	}
	if n := shown - maxOfAKind; n > 0 && !s.All {
		o.line(fmt.Sprintf("  at most %d further ones (--all lists them)", n))
	}
	for i, g := range r.Gaps {
		if i == maxOfAKind && !s.All {
			o.line(fmt.Sprintf("and %d more that are not known (--all lists them)", len(r.Gaps)-i))
			break
		}
		o.prose("", o.paint(yellow, "not known")+": "+Text(g))
	}
	if len(r.Gaps) > 0 {
		o.prose("", "Any of that may need any base: nothing may be removed.")
	}
	return o.flush()
}

func missingOn(b *fleet.Named) (nodes []string) {
	for _, c := range b.Copies {
		if c.State == string(refs.Missing) {
			nodes = append(nodes, c.Node)
		}
	}
	return nodes
}

func (o *out) fleetBase(b *fleet.Named, s Style) {
	var on, needs, sums []string
	for _, c := range b.Copies {
		if c.State != string(refs.Missing) {
			on = append(on, c.Node)
			sums = appendNew(sums, c.SHA256)
		}
	}
	for _, n := range b.Needs {
		needs = appendNew(needs, n.Node)
	}
	text := Name(b.Name) + ": "
	if miss := missingOn(b); len(miss) > 0 {
		text += o.paint(red, "MISSING") + " on " + some(miss, s) + "; "
	}
	text += "on " + orNobody(some(on, s), "no node") + ", needed by " + orNobody(some(needs, s), "nobody that reported")
	if len(sums) > 1 {
		text += "; " + o.paint(yellow, fmt.Sprintf("%d different files have that name", len(sums)))
	}
	o.prose("  ", text)
	for _, w := range b.Ways {
		how := "has the name, and has to be proved: shisa base adopt"
		if w.Exact {
			how = "is the same by its SHA-256"
		}
		o.prose("    - ", "for "+Text(w.For)+": "+Name(w.Path)+" of "+Text(w.From)+" "+how)
	}
}

// appendNew appends a text that is not empty and not there yet.
func appendNew(all []string, text string) []string {
	for _, a := range all {
		if a == text {
			return all
		}
	}
	if text == "" {
		return all
	}
	return append(all, text)
}

func orNobody(text, none string) string {
	if text == "" {
		return none
	}
	return text
}
