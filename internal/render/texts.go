// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// maxTextLines bounds what is shown of a text file without Style.All.
const maxTextLines = 20

// TextReceiptDocument is the JSON of a receipt of a text change as commands print it.
type TextReceiptDocument struct {
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
	vault.TextReceipt
}

// Texts writes a plan for text files: what is put where, and how to go on. saved is the file that holds the
// plan, if any, and next the command line that carries it out.
func Texts(w io.Writer, p *plan.Texts, saved, next string, s Style) error {
	o := newOut(w, s)
	if p.Empty() {
		o.line(o.paint(green, "DONE BEFORE"), "  ", Text(p.Why))
		for i := range p.Files {
			o.prose("  ", Name(p.Files[i].Path)+" is as it should be")
		}
		o.line()
		o.line("Nothing was changed.")
		return o.flush()
	}
	o.line(o.paint(yellow, "PLAN"), "  ", Text(p.Why))
	for i := range p.Files {
		o.line()
		o.textFile(&p.Files[i])
	}
	o.live(p)
	o.line()
	if saved != "" {
		o.prose("", "The plan is in "+Name(saved)+".")
	}
	o.line("Nothing was changed. To carry it out:")
	o.line("  ", next)
	o.told(p.Then, "Afterwards, by hand:")
	return o.flush()
}

// live shows the settings of a plan, and what it costs.
func (o *out) live(p *plan.Texts) {
	if len(p.Live) > 0 {
		o.line()
	}
	for i := range p.Live {
		l := &p.Live[i]
		if l.Same() {
			o.prose("  ", fmt.Sprintf("in force: %s is %s", Text(l.What), Text(l.Value)))
			continue
		}
		o.prose("  ", fmt.Sprintf("set at once: %s from %s to %s", Text(l.What), Text(l.Before), Text(l.Value)))
		o.line("    ", Name(l.Path))
	}
	if len(p.Costs) > 0 {
		o.line()
		o.line(o.paint(yellow, "What it costs:"))
	}
	for _, c := range p.Costs {
		o.prose("  - ", Text(c))
	}
}

// textFile shows one file of a plan.
func (o *out) textFile(f *plan.Text) {
	what := "new file"
	switch {
	case f.Same():
		o.prose("  ", "unchanged: "+Name(f.Path))
		return
	case f.Gone && f.Before != nil && f.Before.Link:
		o.prose("  ", "link that is taken away: "+Name(f.Path))
		return
	case f.Gone:
		o.prose("  ", "file that is taken away: "+Name(f.Path))
		return
	case f.Link:
		what = "new link"
		if f.Before != nil && f.Before.Link {
			what = "link that is replaced"
		} else if f.Before != nil {
			what = "file that becomes a link"
		}
		o.prose("  ", fmt.Sprintf("%s: %s -> %s", what, Name(f.Path), Name(f.Content)))
		return
	case f.Before != nil:
		what = "file that is replaced"
	}
	o.prose("  ", fmt.Sprintf("%s (mode %s): %s", what, Text(string(f.Mode)), Name(f.Path)))
	lines := strings.Split(strings.TrimSuffix(f.Content, "\n"), "\n")
	for i, l := range lines {
		if i == maxTextLines && !o.s.All {
			o.line(fmt.Sprintf("    ... %s, --all shows them", Count(int64(len(lines)-i), "more line", "more lines")))
			return
		}
		o.line("    ", Text(l))
	}
}

// told lists commands that are for people to run.
func (o *out) told(all []plan.Told, head string) {
	if len(all) == 0 {
		return
	}
	o.line(head)
	for _, t := range all {
		o.line("  ", Text(t.Command), "    ", o.paint(dim, "# "+Text(t.Why)))
	}
}

// TextReceipt writes for people what became of a change of text files; undo is the command line that takes
// it back.
func TextReceipt(w io.Writer, r *vault.TextReceipt, undo string, s Style) error {
	o := newOut(w, s)
	then := ""
	switch r.State {
	case vault.Committed:
		o.line(o.paint(green, "CHANGED"), "  ", Text(r.Plan.Why))
		then = "To put it into force:"
	case vault.RolledBack:
		o.line(o.paint(yellow, "ROLLED BACK"), "  ", Text(r.Plan.Why))
		o.prose("  ", "the files are as they were: "+Text(r.Failure))
	case vault.Undone:
		o.line(o.paint(green, "UNDONE"), "  ", Text(r.Plan.Why))
		then = "To put it into force:"
	case vault.SetAside:
		o.line(o.paint(yellow, "GIVEN UP"), "  ", Text(r.Plan.Why))
		o.prose("  ", Text(r.Failure))
	default:
		o.line(o.paint(red, "UNFINISHED"), "  ", Text(r.Plan.Why))
	}
	for i := range r.Plan.Files {
		f := &r.Plan.Files[i]
		word := "  file      "
		switch {
		case f.Same():
			word = "  unchanged "
		case r.State == vault.Committed && f.Gone:
			word = "  taken away  "
		case r.State == vault.Committed && f.Before == nil:
			word = "  made      "
		case r.State == vault.Committed:
			word = "  replaced  "
		case r.State == vault.Undone && f.Before == nil:
			word = "  taken away  "
		case r.State == vault.Undone:
			word = "  put back  "
		}
		o.prose(word, Name(f.Path))
	}
	for i := range r.Plan.Live {
		l := &r.Plan.Live[i]
		switch {
		case r.State == vault.Committed && !l.Same():
			o.prose("  set       ", fmt.Sprintf("%s to %s (it was %s), and read back", Text(l.What), Text(l.Value), Text(l.Before)))
		case r.State == vault.Undone && !l.Same():
			o.prose("  set back  ", fmt.Sprintf("%s to %s", Text(l.What), Text(l.Before)))
		}
	}
	o.prose("  receipt   ", Text(r.ID))
	if then != "" {
		o.told(r.Plan.Then, then)
	}
	if r.State == vault.Committed {
		o.line("To take it back:")
		o.line("  ", undo)
	}
	return o.flush()
}

// recoveredTexts says what a recovery did to a change of text files. text is what is said of one that is
// finished, or still open.
func (o *out) recoveredTexts(c Recovered, text string) {
	switch c.Did {
	case "rolled_back":
		text = "the files are as they were before the change"
	case "committed":
		text = "the change is finished: the files hold what was planned"
	case "undone":
		text = "the undo is finished: the files are as they were before the change"
	case "set_aside":
		text = "the change is given up, and the files stay as they are now. The receipt keeps what was there before"
	}
	o.prose("  ", text)
	for _, path := range c.Files[1:] {
		o.prose("  also ", Name(path))
	}
	o.prose("  ", "receipt "+Name(c.UndoPath))
}
