// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"io"

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
	o.prose("", Name(d.File)+" has the evidence of "+Name(d.Label))
	for _, l := range d.LeftOut {
		o.prose("left out: ", Name(l.Name)+": "+Count(int64(l.Count), Text(l.What), Text(l.What)+" (each)"))
	}
	r := &doctor.Report{NotLookedAt: d.NotLookedAt}
	(&doctorOut{o, diagnose(r, tellAll)}).unread()
	o.prose("next: ", "shisa doctor --bundle "+Word(d.File))
	return o.flush()
}
