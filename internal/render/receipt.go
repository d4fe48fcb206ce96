// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/vault"
)

// ReceiptDocument is the JSON of a receipt as commands print it.
type ReceiptDocument struct {
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
	vault.Receipt
}

// Receipt writes for people what became of a change. name is what the user calls the image.
func Receipt(w io.Writer, r *vault.Receipt, name string, next Commands, s Style) error {
	o := newOut(w, s)
	switch r.State {
	case vault.Committed:
		o.mended(r, name, next)
	case vault.RolledBack:
		o.line(o.paint(yellow, "ROLLED BACK"), "  ", o.paint(bold, Name(name)))
		o.prose("  ", "the image is as it was before: "+Text(r.Failure))
		o.undoFile(r)
	case vault.Undone:
		o.line(o.paint(green, "UNDONE"), "  ", o.paint(bold, Name(name)))
		text := "the image has the bytes again that it had before the change of " + when(r.Created)
		if r.Object.Format == "raw" { // it has no tables
			o.prose("  ", text)
		} else {
			o.prose("  ", text+", and is as hurt as it was then")
			o.prose("  now         ", tallies(r.Before))
		}
		o.undoFile(r)
	case vault.SetAside:
		o.line(o.paint(yellow, "GIVEN UP"), "  ", o.paint(bold, Name(name)))
		o.prose("  ", Text(r.Failure))
		o.undoFile(r)
	default:
		o.line(o.paint(red, "UNFINISHED"), "  ", o.paint(bold, Name(name)))
		o.undoFile(r)
	}
	return o.flush()
}

func when(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// minute is a time to the minute, for what is days old as a rule.
func minute(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func (o *out) undoFile(r *vault.Receipt) {
	o.prose("  undo file   ", Name(r.Undo())+", "+Bytes(r.UndoBytes))
	o.prose("  receipt     ", Text(r.ID))
}

func (o *out) mended(r *vault.Receipt, name string, next Commands) {
	word, color := "MENDED", green
	wrong := finding.Worst(r.Remains) != finding.Note || len(r.Hurt) > 0 && r.Resolved == nil
	if wrong || len(r.Blind) > 0 {
		word, color = "MENDED IN PART", yellow
	}
	o.line(o.paint(color, word), "  ", o.paint(bold, Name(name)))
	if r.Object.Format == "raw" {
		o.prose("  afterwards  ", "it holds what was planned: all that was written was read back")
	} else {
		o.prose("  before      ", tallies(r.Before))
		o.prose("  afterwards  ", tallies(r.After)+", as a full check of the file says")
	}
	o.undoFile(r)
	o.line()
	o.line("  ", o.paint(bold, "what was done:"))
	o.steps(r.Steps, "    ", o.s.All)
	switch {
	case len(r.Hurt) > 0 && r.Resolved != nil:
		o.line()
		o.prose("  ", fmt.Sprintf("%s of guest data that was wrong counts as put right since %s",
			Count(int64(len(r.Hurt)), "place", "places"), when(*r.Resolved)))
	case len(r.Hurt) > 0:
		o.line()
		o.line("  ", o.paint(red, "guest data that is wrong all the same:"))
		o.hurts(r.Hurt, "    ")
	}
	o.left(r.Remains, r.Blind, "what was not repaired, and why:", "what there is to know besides:")
	o.line()
	if len(r.Hurt) > 0 && r.Resolved == nil && next.Resolve != "" {
		o.line("When that guest data is restored:")
		o.line("  ", next.Resolve)
	}
	if next.Undo != "" {
		o.line("To take it back:")
		o.line("  ", next.Undo)
	}
}

// RecoverSchema is the schema of the document of shisa recover.
const RecoverSchema = "shisa.recover/1"

// RecoverDocument is the result of shisa recover.
type RecoverDocument struct {
	Status  []int       `json:"status"`
	Changes []Recovered `json:"changes"`
	// LookedAt says where changes were looked for.
	LookedAt []LookedAt `json:"looked_at"`
	// Errors say what could not be looked at beside those changes.
	Errors []string `json:"errors"`
}

// LookedAt is a directory or image that shisa recover looked at.
type LookedAt struct {
	Path string `json:"path"`
	// Receipts and UndoFiles count what lies there, or is known of the image.
	Receipts  int `json:"receipts"`
	UndoFiles int `json:"undo_files"`
}

// Recovered is one change that shisa recover looked at.
type Recovered struct {
	ID       string `json:"id"` // "" where it was never finished
	Image    string `json:"image"`
	UndoPath string `json:"undo_path"`
	// Files are those of a change of text files; then Image is the first, and UndoPath the receipt.
	Files []string `json:"files"`
	// Did is what was done: "nothing", "removed", "rolled_back", "committed", "undone", "set_aside" or
	// "failed".
	Did   string `json:"did"`
	Error string `json:"error"` // why it is still open
	Next  string `json:"next"`  // what to do about that
}

// Recover writes for people what shisa recover did. host says that no path was named: then only
// what the state directory knows of was looked at.
func Recover(w io.Writer, d *RecoverDocument, host bool, s Style) error {
	o := newOut(w, s)
	open, done := 0, 0
	for _, c := range d.Changes {
		name, of := c.Image, c.Image
		if name == "" {
			name, of = c.UndoPath, "the image"
		}
		word, color, text := "recovered", green, ""
		switch c.Did {
		case "nothing":
			if done++; !o.s.All {
				continue
			}
			word, color, text = "nothing to do", dim, "its change was finished before"
		case "removed":
			text = "the undo file " + Name(c.UndoPath) + " was never finished and is removed; the image " +
				"was never touched"
		case "rolled_back":
			text = "the image has its old bytes again"
		case "committed":
			text = "the change is finished: the image has its new bytes"
		case "set_aside":
			word, color = "given up", yellow
			text = "the change is given up, and the image stays as it is now: shisa check tells what that is, and " +
				"shisa repair plans anew. The undo file is kept, with the old bytes"
		case "undone":
			text = "the undo is finished: the image has its old bytes again"
		default:
			open++
			word, color, text = "STILL OPEN", red, Text(c.Error)
		}
		o.line(o.paint(color, word), "  ", o.paint(bold, Name(name)))
		if len(c.Files) > 0 {
			o.recoveredTexts(c, text)
		} else {
			o.prose("  ", text)
		}
		if len(c.Files) == 0 && c.Did != "removed" && c.UndoPath != "" && of != c.UndoPath {
			o.prose("  ", "undo file "+Name(c.UndoPath))
		}
		if c.Next != "" {
			o.prose("  next: ", Text(c.Next))
		}
	}
	switch {
	case open > 0:
		o.line()
		o.prose("", Count(int64(open), "change is", "changes are")+" still open: do not use these "+openKind(d.Changes))
	case len(d.Changes) == done && len(d.Errors) == 0:
		text := "no change was left in the middle"
		if done > 0 {
			text += "; " + Count(int64(done), "is finished", "are finished")
		}
		o.line(text)
	}
	o.searched(d.LookedAt, host)
	return o.flush()
}

// openKind is what must not be used while changes are open.
func openKind(all []Recovered) string {
	for _, c := range all {
		if len(c.Files) == 0 && c.Did == "failed" {
			return "images"
		}
	}
	return "files"
}

// searched tells where changes were looked for, and where others may be.
func (o *out) searched(places []LookedAt, host bool) {
	for _, p := range places {
		var found []string
		if p.Receipts > 0 {
			found = append(found, Count(int64(p.Receipts), "receipt", "receipts"))
		}
		if p.UndoFiles > 0 {
			found = append(found, Count(int64(p.UndoFiles), "undo file", "undo files"))
		}
		if len(found) == 0 {
			found = []string{"no receipt and no undo file"}
		}
		o.prose("looked at: ", Name(p.Path)+", "+strings.Join(found, " and "))
	}
	if host {
		o.prose("", "Changes that were made on another host, or cut off before their receipt was written, are "+
			"found by their image: shisa recover IMAGE")
	}
}
