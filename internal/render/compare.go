// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"errors"
	"io"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
)

// CompareSchema is the schema of a CompareDocument in JSON.
const CompareSchema = "shisa.compare/1"

// CompareResult is how a comparison ended, in one word.
type CompareResult string

// The results; the first four are those of disk.Outcome.
const (
	ResultIdentical         CompareResult = "identical"
	ResultContentDiffers    CompareResult = "content_differs"
	ResultAllocationDiffers CompareResult = "allocation_differs"
	ResultSizeDiffers       CompareResult = "size_differs"
	// ResultCannotTell: one of the disks could not be read, or its file was cut.
	ResultCannotTell CompareResult = "cannot_tell"
)

// CompareDocument is the result of comparing two disks.
type CompareDocument struct {
	// Status lists every exit status that applies, the one that is returned first.
	Status []int          `json:"status"`
	Strict bool           `json:"strict"`
	Disks  []ComparedDisk `json:"disks"` // the two, in the order that they were named
	Result CompareResult  `json:"result"`
	// Offset is the first place that differs or could not be read, -1 if there is none.
	Offset int64 `json:"offset"`
	// CommonIdentical: the part that both disks have is the same.
	CommonIdentical bool `json:"common_identical"`
	// Changed are the files that a program changed meanwhile.
	Changed []string `json:"changed"`
	Error   string   `json:"error"`
}

// ComparedDisk is one of the disks.
type ComparedDisk struct {
	Path         string `json:"path"`
	Format       string `json:"format"`
	Layers       int    `json:"layers"`
	VirtualBytes int64  `json:"virtual_bytes"`
	// MissingBytes lie past the end of their file, which was cut; they counted as zeros.
	MissingBytes int64 `json:"missing_bytes"`
	// Notes say what is not as it should be with its images, and did not hinder the comparison.
	Notes []string `json:"notes"`
}

// NewCompareDocument makes the document of the comparison of a and b. err is the *disk.CompareError
// that ended it, or nil.
func NewCompareDocument(a, b *disk.Chain, strict bool, r disk.Comparison, err error) *CompareDocument {
	d := &CompareDocument{Strict: strict, Result: CompareResult(r.Outcome), Offset: r.Offset, CommonIdentical: r.Passed}
	missing := int64(0)
	for _, c := range []*disk.Chain{a, b} {
		top, changed := &c.Layers[0], c.Changed()
		one := ComparedDisk{Path: top.Path, Format: top.Format, Layers: len(c.Layers), VirtualBytes: c.Size(),
			Notes: c.Notes()}
		if len(changed) == 0 { // else what seems to be missing may have been written meanwhile
			one.MissingBytes = c.Missing()
		}
		d.Disks = append(d.Disks, one)
		missing += one.MissingBytes
		d.Changed = append(d.Changed, changed...)
	}
	var ce *disk.CompareError
	status := finding.StatusFound
	switch {
	case errors.As(err, &ce):
		d.Result, d.Offset, d.CommonIdentical, d.Error = ResultCannotTell, ce.Offset, ce.Passed, err.Error()
		status = finding.StatusCannotTell
	case r.Outcome == disk.Identical && missing > 0:
		// What a cut file lost reads as zeros; that they are the same proves nothing.
		d.Result, status = ResultCannotTell, finding.StatusCannotTell
		d.Error = "a file was cut: what lay behind its end counted as zeros"
	case r.Outcome == disk.Identical:
		status = finding.StatusClean
	}
	d.Status = finding.OrderStatus(status)
	if len(d.Changed) > 0 {
		// Nothing can be said of disks that were never still.
		d.Status = finding.OrderStatus(status, finding.StatusRefused)
		if d.Result != ResultCannotTell {
			d.Result, d.Error = ResultCannotTell, "a program wrote to the disks while they were compared"
			d.Status = finding.OrderStatus(finding.StatusRefused)
		}
	}
	return d
}

// Compare writes the result of a comparison for people.
func Compare(w io.Writer, d *CompareDocument, s Style) error {
	o := newOut(w, s)
	a, b := &d.Disks[0], &d.Disks[1]
	sizes := Name(a.Path) + " has " + BytesExact(a.VirtualBytes) + ", " + Name(b.Path) + " has " + BytesExact(b.VirtualBytes)
	switch d.Result {
	case ResultIdentical:
		o.prose("", o.paint(green, "identical")+": "+Name(a.Path)+" and "+Name(b.Path)+" hold the same")
		if a.VirtualBytes != b.VirtualBytes {
			o.prose("  ", sizes+"; what the longer one has more reads as zeros")
		}
	case ResultContentDiffers:
		o.prose("", o.paint(red, "different")+": the first difference is at "+Place(d.Offset))
		if d.CommonIdentical {
			o.prose("  ", "the part that both have is the same; "+sizes)
		}
	case ResultAllocationDiffers:
		o.prose("", o.paint(red, "different")+": the range at "+Place(d.Offset)+" is not stored in the same way")
		o.prose("  ", "all before it holds the same; without --strict only the content counts")
	case ResultSizeDiffers:
		o.prose("", o.paint(red, "different")+": "+sizes)
		o.prose("  ", "without --strict the content would have been compared")
	default:
		o.prose("", o.paint(stateBlind.color, "cannot tell")+": "+Text(d.Error))
	}
	for _, path := range d.Changed {
		o.prose("  ", Name(path)+" was written to meanwhile")
	}
	for i := range d.Disks {
		if m := d.Disks[i].MissingBytes; m > 0 {
			o.prose("  ", Bytes(m)+" of "+Name(d.Disks[i].Path)+" lie past the end of a file, which was cut")
		}
		for _, note := range d.Disks[i].Notes {
			o.prose("  ", "note: "+Text(note))
		}
	}
	return o.flush()
}
