// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
)

// BootsSchema is the schema of a doctor.BootsReport in JSON.
const BootsSchema = "shisa.doctor.boots/1"

// What one screen has room for; Style.All shows the rest.
const (
	maxBootRows  = 15
	maxBootFacts = 4
	maxBootGaps  = 4
)

// Boots writes a report for people: each machine's boots, what they amount to, who is to blame, and how the machine
// is started without that.
func Boots(w io.Writer, r *doctor.BootsReport, s Style) error {
	o := &bootsOut{newOut(w, s)}
	for i := range r.Machines {
		if i > 0 {
			o.line()
		}
		o.machine(&r.Machines[i])
	}
	return o.flush()
}

type bootsOut struct{ *out }

func (o *bootsOut) machine(b *doctor.Boots) {
	o.rows(b)
	o.blame(b)
	o.stop(b)
	o.rest(b)
	o.prose(o.courseWord(b)+"  ", Text(b.Machine)+": "+Text(b.Why)+o.over(b))
}

func (o *bootsOut) over(b *doctor.Boots) string {
	if b.Over {
		return "; it has run longer since"
	}
	return ""
}

func (o *bootsOut) courseWord(b *doctor.Boots) string {
	switch {
	case b.Course == doctor.NotKnown:
		return o.paint(magenta, "CANNOT TELL")
	case b.Course == doctor.Steady:
		return o.paint(green, "CLEAN")
	case b.Over:
		return o.paint(green, "OVER")
	}
	return o.paint(red, strings.ToUpper(Text(string(b.Course))))
}

// rows lists the boots, the newest last.
func (o *bootsOut) rows(b *doctor.Boots) {
	if len(b.Boots) == 0 {
		return
	}
	from := 0
	if !o.s.All {
		from = max(0, len(b.Boots)-maxBootRows)
	}
	if from > 0 {
		o.line(strconv.Itoa(from), " earlier ", plural(from, "boot", "boots"), ": --verbose lists all")
	}
	var rows [][]string
	for i := range b.Boots[from:] {
		x := &b.Boots[from+i]
		by := Text(x.By.Who)
		if by == "" {
			by = "-"
		} else if !x.By.Certain {
			by += "?"
		}
		rows = append(rows, []string{x.Began.UTC().Format("2006-01-02 15:04:05"), ran(x.Ran), Text(x.End), by,
			cmp.Or(Text(x.First), "-")})
	}
	o.table([]string{"BEGAN (UTC)", "RAN", "ENDED", "ASKED BY", "FIRST DANGEROUS UNIT"}, rows, make([]string, len(rows)), nil)
	o.line()
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// ran writes how long a boot ran.
func ran(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", seconds)
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", seconds)
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.1f h", d.Hours())
	}
	return fmt.Sprintf("%.0f d", d.Hours()/24)
}

// inFile names a place in a file.
func inFile(path string, line int) string {
	switch {
	case path == "":
		return ""
	case line > 0:
		return " (" + Text(path) + ":" + strconv.Itoa(line) + ")"
	}
	return " (" + Text(path) + ")"
}

func (o *bootsOut) blame(b *doctor.Boots) {
	x := b.Blame
	if x == nil {
		return
	}
	sure := "not certain"
	if x.Certain {
		sure = "certain"
	}
	if x.Ended == 0 {
		o.prose("to blame: ", Text(x.Name())+", by its own files: no log tells who asked ("+sure+")")
	} else {
		o.prose("to blame: ", fmt.Sprintf("%s, in %d of %d boots that ended in order (%s)", Text(x.Name()), x.Ended, x.Of, sure))
	}
	for i, s := range x.Chain {
		head := "            "
		if i == 0 {
			head = "  it does:  "
		}
		o.prose(head, Text(s.Text)+inFile(s.Path, s.Line))
	}
	if x.If != "" {
		o.prose("  when:     ", Text(x.If))
	}
	for i, s := range x.Started {
		head := "            "
		if i == 0 {
			head = "  started:  "
		}
		o.prose(head, Text(s.Text)+inFile(s.Path, s.Line))
	}
	shown := len(x.Evidence)
	if !o.s.All {
		shown = min(shown, maxBootFacts)
	}
	for i, f := range x.Evidence[:shown] {
		head := "            "
		if i == 0 {
			head = "  seen:     "
		}
		at := ""
		if !f.Source.Time.IsZero() {
			at = f.Source.Time.UTC().Format("15:04:05 ")
		}
		o.prose(head, at+Text(f.Value)+": "+Text(f.Text)+inFile(f.Source.Path, f.Source.Line))
	}
	o.line()
}

func (o *bootsOut) stop(b *doctor.Boots) {
	if b.Stop == nil {
		return
	}
	o.line("start it once without that, by these arguments at the end of the kernel's command line:")
	o.line("  ", Text(strings.Join(b.Stop.Arguments, " ")))
	for i, s := range b.Stop.Menu {
		o.prose("  "+strconv.Itoa(i+1)+". ", Text(s))
	}
	o.line()
}

// rest tells what does without masked units, what else is dangerous, and what was not looked at.
func (o *bootsOut) rest(b *doctor.Boots) {
	if b.Stop != nil {
		o.breaks(b)
	}
	if len(b.Also) > 0 {
		o.line("by their files, these take it down at its next start:")
		for _, s := range b.Also {
			how := ""
			if len(s.Chain) > 0 {
				how = ": " + Text(s.Chain[0].Text) + inFile(s.Chain[0].Path, s.Chain[0].Line)
			}
			o.prose("  ", Text(s.Unit)+how)
		}
		o.line()
	}
	o.gaps(b.NotLookedAt)
}

func (o *bootsOut) breaks(b *doctor.Boots) {
	if len(b.Breaks) == 0 {
		o.line("nothing else in it needs ", Text(strings.Join(b.Blame.Masks, " or ")))
		o.line()
		return
	}
	o.line("what else does without ", Text(strings.Join(b.Blame.Masks, " and ")), ":")
	for _, x := range b.Breaks {
		o.prose("  ", Text(x.Unit)+": "+Text(x.Effect)+", by "+Text(x.By)+" "+Text(x.Masked)+inFile(x.Path, x.Line))
	}
	o.line()
}

func (o *bootsOut) gaps(all []doctor.Missing) {
	if len(all) == 0 {
		return
	}
	o.line("not looked at:")
	for i, g := range all {
		if i == maxBootGaps && !o.s.All {
			o.line("  and ", strconv.Itoa(len(all)-i), " more: --verbose lists all")
			break
		}
		o.prose("  ", strings.TrimPrefix(Text(g.Object)+": ", ": ")+Text(g.Reason))
	}
	o.line()
}
