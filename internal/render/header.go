// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/repair"
)

// HeaderSchema is the schema of the document of shisa repair --rebuild-header.
const HeaderSchema = "shisa.header/1"

// HeaderDocument is what a new header of an image is, or would be.
type HeaderDocument struct {
	Status []int  `json:"status"`
	Image  string `json:"image"`
	// NewFile is the copy that gets the header; Made says that it is there.
	NewFile string `json:"new_file"`
	Made    bool   `json:"made"`
	repair.HeaderPlan
}

// Header writes for people what a new header is, and what each field rests on. give are flags with
// which fields that are missing can be given, next the command line that makes the new file, or
// that goes on with it.
func Header(w io.Writer, d *HeaderDocument, give map[string]string, next string, s Style) error {
	o := newOut(w, s)
	word, color := "PLAN", yellow
	switch {
	case d.Made:
		word, color = "MADE", green
	case len(d.Missing) > 0:
		word, color = "CANNOT TELL", magenta
	}
	o.line(o.paint(color, word), "  ", o.paint(bold, Name(d.NewFile)))
	if d.Made {
		o.prose("  ", "a copy of "+Name(d.Image)+" with a new header; the image itself was not touched")
	} else {
		o.prose("  ", "would be a copy of "+Name(d.Image)+" with a new header, and was not made; the image "+
			"itself is never touched")
	}
	if d.Counts != nil {
		o.prose("  ", "behind this header a check finds: "+strings.Join(counts(d.Counts), ", "))
	}
	o.line()
	for i := range d.Fields {
		o.headerField(&d.Fields[i], !d.Made)
	}
	for _, n := range d.Notes {
		o.prose("  also: ", Text(n))
	}
	if len(d.Blind) > 0 {
		o.line()
		o.blind(d.Blind, "  ", false)
	}
	o.line()
	if len(d.Missing) > 0 {
		o.prose("", "Nothing was made: for this the file has no evidence, or not enough, and it has to "+
			"be said.")
		for _, name := range d.Missing {
			flag := give[name]
			if flag == "" {
				flag = "(it cannot be given)"
			}
			text := flag
			if name == qcow2.FieldSize && d.SizeHighBytes > 0 {
				text += fmt.Sprintf("; it was no less than %s and no more than %s. One that is too large "+
					"loses nothing, one that is too small cuts off what lies behind",
					BytesExact(d.SizeLowBytes), BytesExact(d.SizeHighBytes))
			}
			o.prose(fmt.Sprintf("  %-24s", Text(name)), text)
		}
		return o.flush()
	}
	if d.Made {
		o.line("Look at it and mend the rest:")
	} else {
		o.line("Nothing was made. To make it:")
	}
	o.line("  ", next)
	return o.flush()
}

// plainFields are told in full also where they hold what most images have: they decide what the
// guest sees.
var plainFields = []string{qcow2.FieldSize, qcow2.FieldClusterBits, qcow2.FieldL1Off,
	qcow2.FieldBacking}

func (o *out) headerField(f *qcow2.Field, why bool) {
	value := Text(f.Value)
	switch {
	case f.Missing:
		value = o.paint(magenta, "missing")
	case f.Given:
		value += ", as you said"
	case f.Certainty != finding.Sure:
		value += ", " + o.paint(yellow, Text(string(f.Certainty)))
	}
	if value == "" {
		value = "none"
	}
	o.prose(fmt.Sprintf("  %-24s", Text(f.Name)), value)
	weighed := f.Missing || len(f.Alternatives) > 0 || slices.Contains(plainFields, f.Name)
	if !o.s.All && !(why && weighed) {
		return
	}
	in := strings.Repeat(" ", 26)
	for _, e := range f.Evidence {
		text := evidence(e)
		if !o.s.All {
			text = Text(e.Source) + ": " + Text(e.Text)
		}
		o.prose(in+"because ", text)
	}
	for _, a := range f.Alternatives {
		o.prose(in+"or      ", Text(a.Value)+": "+Text(a.Text))
	}
}
