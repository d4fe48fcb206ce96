// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/mount"
)

// GuestMountSchema is the schema of a GuestMountDocument in JSON.
const GuestMountSchema = "shisa.disk-mount/1"

// GuestMountDocument is what mount prints when a file system can be looked at.
type GuestMountDocument struct {
	GuestHead
	// Directory is where, by its name without symbolic links.
	Directory string `json:"directory"`
	GuestEnd
}

// GuestMount writes the document for people. What is not whole is not part of it: see GuestTrouble.
func GuestMount(w io.Writer, d *GuestMountDocument, s Style) error {
	o := newOut(w, s)
	text := fmt.Sprintf("%s of %s, part %s, is at %s, read-only", Text(d.FileSystem.Kind), Name(d.Disk),
		Name(d.Part), Name(d.Directory))
	if d.View.State == files.Recovered {
		text += fmt.Sprintf("; %s of its journal are replayed in memory",
			Count(d.View.Transactions, "transaction", "transactions"))
	}
	o.prose("", text)
	return o.flush()
}

// GuestUmountSchema is the schema of a GuestUmountDocument in JSON.
const GuestUmountSchema = "shisa.disk-umount/1"

// GuestUmountDocument is what umount prints.
type GuestUmountDocument struct {
	Directory string `json:"directory"`
	// Killed: the process that served it had been killed.
	Killed bool `json:"killed"`
	// Unread is what could not be read while it was mounted, the first 1000, and whether there was
	// more.
	Unread []string `json:"unread"`
	// Crashes say when the reader of the guest's disk crashed, and what became of it; Changed are the
	// images that were changed while they were mounted.
	Crashes []string `json:"crashes"`
	Changed []string `json:"changed"`
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
}

// NewGuestUmount makes the document.
func NewGuestUmount(g *mount.Gone) *GuestUmountDocument {
	d := &GuestUmountDocument{Directory: g.Dir, Killed: g.Killed, Unread: []string{}, Crashes: []string{},
		Changed: []string{}}
	var applies []int
	for _, l := range g.Log {
		switch l.About {
		case mount.Crashed:
			d.Crashes = append(d.Crashes, l.Text)
			applies = append(applies, finding.StatusFound, finding.StatusCannotTell)
		case mount.Changed:
			d.Changed = append(d.Changed, l.Text)
			applies = append(applies, finding.StatusRefused)
		default:
			d.Unread = append(d.Unread, l.Text)
			applies = append(applies, finding.StatusCannotTell)
		}
	}
	d.Status = finding.OrderStatus(applies...)
	return d
}

// MountLine is a line of a mount as text.
func MountLine(l mount.Line) string {
	switch l.About {
	case mount.Crashed:
		return finding.GR01.Code + " " + l.Text
	case mount.Changed:
		return changedText(l.Text)
	}
	return l.Text
}

// GuestUmount writes for people what they would not expect of an unmounted directory.
func GuestUmount(w io.Writer, d *GuestUmountDocument, s Style) error {
	o := newOut(w, s)
	if d.Killed {
		o.prose("", "the process that served "+Name(d.Directory)+" had been killed")
	}
	for _, text := range d.Crashes {
		o.prose(o.paint(red, finding.GR01.Code)+"  ", Text(text))
	}
	for i, text := range d.Unread {
		if i == maxOfAKind && !s.All {
			o.prose("  ", fmt.Sprintf("and %d more (--json lists them)", len(d.Unread)-i))
			break
		}
		o.prose(o.paint(magenta, "could not be read")+"  ", Text(text))
	}
	for _, name := range d.Changed {
		o.prose("", Text(changedText(name)))
	}
	return o.flush()
}
