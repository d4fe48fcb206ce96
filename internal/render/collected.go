// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor"
	machine "github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// CollectedSchema is the schema of a CollectedDocument.
const CollectedSchema = "shisa.doctor-collect/1"

// CollectedDocument says what a bundle has, and what it has not.
type CollectedDocument struct {
	Status []int  `json:"status"`
	File   string `json:"file"`
	Label  string `json:"label"`
	// LeftOut is what was taken out before it was written, NotLookedAt what could not be read.
	LeftOut     []tree.LeftOut   `json:"left_out"`
	NotLookedAt []doctor.Missing `json:"not_looked_at"`
}

// NewCollected makes the document of a bundle.
func NewCollected(file string, e *machine.Evidence, left []tree.LeftOut) *CollectedDocument {
	d := &CollectedDocument{Status: []int{finding.StatusClean}, File: file, Label: e.Label,
		LeftOut: append([]tree.LeftOut{}, left...), NotLookedAt: []doctor.Missing{}}
	for _, g := range e.Gaps {
		d.NotLookedAt = append(d.NotLookedAt, doctor.Missing{Machine: e.Label, Gap: g})
		d.Status[0] = finding.StatusCannotTell
	}
	return d
}

// Collected writes the document for people.
func Collected(w io.Writer, d *CollectedDocument, s Style) error {
	o := newOut(w, s)
	file, next := Name(d.File), Word(d.File)
	if d.File == "-" {
		file, next = "standard output", "FILE"
	}
	o.prose("", file+" has the evidence of "+Name(d.Label))
	for _, l := range d.LeftOut {
		one, many := numbers(Text(l.What))
		o.prose("left out: ", Name(l.Name)+": "+Count(int64(l.Count), one, many))
	}
	r := &doctor.Report{NotLookedAt: d.NotLookedAt}
	(&doctorOut{o, diagnose(r, tellAll)}).unread()
	o.prose("next: ", "shisa doctor --bundle "+next)
	return o.flush()
}

// numbers gives the words for one and for several of what was left out, as "setting of a secret".
func numbers(what string) (one, many string) {
	head, rest := what, ""
	for _, cut := range []string{" of ", " in ", " that "} {
		if at := strings.Index(head, cut); at >= 0 {
			head, rest = what[:at], what[at:]
		}
	}
	switch {
	case strings.HasSuffix(head, "data"):
		return what, what
	case strings.HasSuffix(head, "s") && !strings.HasSuffix(head, "ss"):
		return strings.TrimSuffix(head, "s") + rest, what
	case strings.HasSuffix(head, "h"), strings.HasSuffix(head, "ss"):
		return what, head + "es" + rest
	}
	return what, head + "s" + rest
}
