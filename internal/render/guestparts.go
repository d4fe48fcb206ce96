// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/inside"
)

// The schemas of the documents about a guest's disks.
const (
	GuestPartsSchema = "shisa.disk-parts/1"
	GuestSpaceSchema = "shisa.disk-df/1"
	GuestWhoSchema   = "shisa.disk-who/1"
	GuestCopySchema  = "shisa.disk-copy/1"
)

// GuestPartsDocument tells what the disks of a guest are divided into.
type GuestPartsDocument struct {
	Disks    []GuestDisk     `json:"disks"`
	Tables   []GuestTable    `json:"tables"`
	Parts    []GuestPart     `json:"parts"`
	Problems []GuestProblem  `json:"problems"`
	Blind    []finding.Blind `json:"blind"`
	// MissingBytes and Changed are as in shisa.disk-list/1.
	MissingBytes int64    `json:"missing_bytes"`
	Changed      []string `json:"changed"`
	Notes        []string `json:"notes"`
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
}

// GuestDisk is a disk that was given.
type GuestDisk struct {
	Path string `json:"path"`
	// Name is what the names of its parts begin with where there are several disks, "" where not.
	Name  string `json:"name"`
	Bytes int64  `json:"virtual_bytes"`
}

// GuestTable is a partition table.
type GuestTable struct {
	Kind string `json:"kind"`
	// Disk is the path of the disk, In the name of the part that is divided, "" for the disk itself.
	Disk   string `json:"disk"`
	In     string `json:"in"`
	UUID   string `json:"uuid"`
	Sector int64  `json:"sector_bytes"`
	// FromBackup: the first table could not be used.
	FromBackup bool `json:"from_backup"`
	// NotRead says why its partitions are not listed, "" if they are.
	NotRead string `json:"not_read"`
}

// GuestPart is a partition, a logical volume, an array, or a disk that is not divided.
type GuestPart struct {
	// Name is how commands name it, Disk the path of the disk, "" for several.
	Name string `json:"name"`
	Disk string `json:"disk"`
	// Start is -1 where it has no one place.
	Start int64  `json:"start"`
	Size  int64  `json:"size_bytes"`
	Kind  string `json:"kind"`
	Label string `json:"label"`
	UUID  string `json:"uuid"`
	// PartName, PartType and PartUUID are what the table says.
	PartName string `json:"part_name"`
	PartType string `json:"part_type"`
	PartUUID string `json:"part_uuid"`
	// In are the names of the parts that it lies in.
	In []string `json:"in"`
	// NotExamined says why what is in it cannot be read, "" if it can; Note says more of it.
	NotExamined string `json:"not_examined"`
	Note        string `json:"note"`
}

// GuestProblem is something broken in a table or in what joins disks.
type GuestProblem struct {
	Disk   string `json:"disk"`
	Offset int64  `json:"offset"` // -1 where there is no place
	Text   string `json:"text"`
}

// NewGuestParts makes the document.
func NewGuestParts(g *inside.Guest) *GuestPartsDocument {
	l := g.Layout
	d := &GuestPartsDocument{Disks: []GuestDisk{}, Tables: []GuestTable{}, Parts: []GuestPart{},
		Problems: []GuestProblem{}, Blind: l.Blind, MissingBytes: g.Missing(), Changed: g.Changed(),
		Notes: g.Notes()}
	if d.Blind == nil {
		d.Blind = []finding.Blind{}
	}
	disk := func(i int) string {
		if i < 0 {
			return ""
		}
		return l.Disks[i].Name
	}
	for i, x := range l.Disks {
		n := GuestDisk{Path: x.Name, Bytes: x.Size}
		if len(l.Disks) > 1 {
			n.Name = volume.DiskName(i)
		}
		d.Disks = append(d.Disks, n)
	}
	for _, t := range l.Tables {
		in := ""
		if t.In >= 0 {
			in = l.Volumes[t.In].Name
		}
		d.Tables = append(d.Tables, GuestTable{Kind: string(t.Kind), Disk: disk(t.Disk), In: in,
			UUID: t.UUID, Sector: t.Sector, FromBackup: t.FromBackup, NotRead: t.NotRead})
	}
	for _, v := range l.Volumes {
		p := GuestPart{Name: v.Name, Disk: disk(v.Disk), Start: v.Start, Size: v.Size, Kind: string(v.Kind),
			Label: v.Label, UUID: v.UUID, PartName: v.PartName, PartType: v.PartType,
			PartUUID: v.PartUUID, In: []string{}, NotExamined: v.NotExamined, Note: v.Note}
		for _, i := range v.In {
			p.In = append(p.In, l.Volumes[i].Name)
		}
		d.Parts = append(d.Parts, p)
	}
	for _, p := range l.Problems {
		offset := p.Offset
		if p.Length == 0 && offset == 0 {
			offset = -1
		}
		d.Problems = append(d.Problems, GuestProblem{disk(p.Disk), offset, p.String()})
	}
	var applies []int
	if len(d.Problems) > 0 {
		applies = append(applies, finding.StatusFound)
	}
	if len(d.Blind) > 0 || d.MissingBytes > 0 {
		applies = append(applies, finding.StatusCannotTell)
	}
	if len(d.Changed) > 0 {
		applies = append(applies, finding.StatusRefused)
	}
	d.Status = finding.OrderStatus(applies...)
	return d
}

// GuestParts writes the document for people.
func GuestParts(w io.Writer, d *GuestPartsDocument, s Style) error {
	o := newOut(w, s)
	if len(d.Disks) > 1 {
		for _, x := range d.Disks {
			o.prose(x.Name+"  ", fmt.Sprintf("%s, %s", Text(x.Path), Bytes(x.Bytes)))
		}
	}
	for _, t := range d.Tables {
		text := fmt.Sprintf("%s: partition table %s, sectors of %d bytes", Text(t.Disk), Text(t.Kind), t.Sector)
		if t.In != "" {
			text = "in " + Text(t.In) + " of " + text
		}
		if t.FromBackup {
			text += ", read from its backup"
		}
		if t.NotRead != "" {
			text += ": " + Text(t.NotRead)
		}
		o.prose("", text)
	}
	head := []string{"part", "kind", "size", "start", "label", "uuid", "name", "note"}
	var rows [][]string
	for _, p := range d.Parts {
		start := ""
		if p.Start >= 0 {
			start = Place(p.Start)
		}
		rows = append(rows, []string{Text(p.Name), Text(p.Kind), Bytes(p.Size), start, Text(p.Label), Text(p.UUID),
			Text(p.PartName), Text(cmp.Or(p.NotExamined, p.Note))})
	}
	o.noted(head, rows, []string{"uuid", "name", "start"})
	for _, p := range d.Problems {
		text := p.Text
		if p.Disk != "" && len(d.Disks) > 1 {
			text = p.Disk + ": " + text
		}
		o.prose(o.paint(yellow, "broken")+"  ", Text(text))
	}
	o.blind(d.Blind, "", true)
	for _, n := range d.Notes {
		o.prose(o.paint(dim, "note")+"  ", Text(n))
	}
	return o.flush()
}

// noted writes a table whose last column are notes, which may be whole sentences. Where they make a
// line too long for the page they stand below the table, each behind the first cell of its row.
func (o *out) noted(head []string, rows [][]string, drop []string) {
	last := len(head) - 1
	widths := make([]int, len(head))
	for i, h := range head {
		if !emptyColumn(rows, i) {
			widths[i] = columns(h) + 2
		}
	}
	for _, r := range rows {
		for i, c := range r {
			if c != "" {
				widths[i] = max(widths[i], columns(c)+2)
			}
		}
	}
	total := -2
	for _, w := range widths {
		total += w
	}
	colors := make([]string, len(rows))
	if o.s.Width == 0 || total <= o.s.Width {
		o.table(head, rows, colors, drop)
		return
	}
	var notes [][2]string
	short := make([][]string, len(rows))
	for i, r := range rows {
		short[i] = r[:last]
		if r[last] != "" {
			notes = append(notes, [2]string{r[0], r[last]})
		}
	}
	o.table(head[:last], short, colors, drop)
	for _, n := range notes {
		o.prose(o.paint(dim, "part "+n[0])+"  ", n[1])
	}
}

// GuestSpaceDocument tells how full the file systems are.
type GuestSpaceDocument struct {
	FileSystems []GuestSpace `json:"file_systems"`
	GuestEnd
}

// GuestSpace is one file system.
type GuestSpace struct {
	Part string `json:"part"`
	// FileSystem is all zeros but for its kind if it could not be opened, or has no reader, as Error
	// says.
	FileSystem GuestFileSystem `json:"file_system"`
	// State is that of the view, "" if it could not be opened.
	State string `json:"state"`
	Error string `json:"error"`
}

// GuestSpaces writes the document for people.
func GuestSpaces(w io.Writer, d *GuestSpaceDocument, s Style) error {
	o := newOut(w, s)
	head := []string{"part", "kind", "size", "used", "free", "use", "inodes", "free", "label", "state", "note"}
	var rows [][]string
	for _, f := range d.FileSystems {
		i := f.FileSystem
		if f.Error != "" {
			rows = append(rows, []string{Text(f.Part), Text(i.Kind), "", "", "", "", "", "", "", "", Text(f.Error)})
			continue
		}
		use := "0 %"
		if i.SizeBytes > 0 {
			use = fmt.Sprintf("%d %%", (100*(i.SizeBytes-i.FreeBytes)+i.SizeBytes-1)/i.SizeBytes)
		}
		rows = append(rows, []string{Text(f.Part), Text(i.Kind), Bytes(i.SizeBytes), Bytes(i.SizeBytes - i.FreeBytes),
			Bytes(i.FreeBytes), use, fmt.Sprint(i.Inodes), fmt.Sprint(i.FreeInodes), Text(i.Label), f.State, ""})
	}
	o.noted(head, rows, []string{"label"})
	return o.flush()
}

// GuestWhoDocument tells what ranges of a disk are for.
type GuestWhoDocument struct {
	Disk   string          `json:"disk"`
	Ranges []finding.Range `json:"ranges"`
	Owners []finding.Owner `json:"owners"`
	GuestEnd
}

// GuestWho writes the document for people.
func GuestWho(w io.Writer, d *GuestWhoDocument, s Style) error {
	o := newOut(w, s)
	for _, x := range d.Owners {
		head, text := ownerLine(x)
		o.prose(o.paint(bold, head)+"  ", text)
		for _, p := range x.Paths[min(1, len(x.Paths)):] {
			o.line("    also ", Text(p))
		}
		if x.PathsCut > 0 {
			o.line(fmt.Sprintf("    and %d more names", x.PathsCut))
		}
		o.line("    ", strings.Join(o.ranges(x.Ranges, 0), ", "))
	}
	return o.flush()
}

// GuestCopyDocument tells what was copied out of a guest.
type GuestCopyDocument struct {
	GuestHead
	To          string `json:"to"`
	Files       int64  `json:"files"`
	Directories int64  `json:"directories"`
	Links       int64  `json:"links"`
	Nodes       int64  `json:"nodes"`
	Bytes       int64  `json:"bytes"` // read and written; holes are not
	Kept        int64  `json:"kept"`  // were there already
	// Problems are the first of what is not as in the guest: Lost counts names of which something is
	// missing, Unset attributes that could not be set.
	Problems []string `json:"problems"`
	Lost     int64    `json:"lost"`
	Unset    int64    `json:"unset"`
	GuestEnd
}

// NewGuestCopy makes the document.
func NewGuestCopy(head GuestHead, to string, c *inside.Copied, end GuestEnd) *GuestCopyDocument {
	d := &GuestCopyDocument{GuestHead: head, To: to, Files: c.Files, Directories: c.Directories,
		Links: c.Links, Nodes: c.Nodes, Bytes: c.Bytes, Kept: c.Kept, Problems: c.Problems, Lost: c.Lost,
		Unset: c.Unset, GuestEnd: end}
	if d.Problems == nil {
		d.Problems = []string{}
	}
	return d
}

// GuestCopy writes the document for people: one line, and what is not as in the guest.
func GuestCopy(w io.Writer, d *GuestCopyDocument, s Style) error {
	o := newOut(w, s)
	var parts []string
	add := func(n int64, one, many string) {
		if n > 0 {
			parts = append(parts, Count(n, one, many))
		}
	}
	add(d.Files, "file", "files")
	add(d.Directories, "directory", "directories")
	add(d.Links, "link", "links")
	add(d.Nodes, "device or pipe", "devices and pipes")
	add(d.Kept, "was there already", "were there already")
	if len(parts) == 0 {
		parts = []string{"nothing"}
	}
	o.prose("", fmt.Sprintf("copied to %s: %s; %s", Text(d.To), strings.Join(parts, ", "), Bytes(d.Bytes)))
	if d.Lost > 0 {
		o.prose(o.paint(red, "LOST")+"  ", fmt.Sprintf("%s could not be read, not wholly, or not be made:",
			Count(d.Lost, "name", "names")))
	}
	if d.Unset > 0 {
		o.prose(o.paint(yellow, "unset")+"  ", fmt.Sprintf("%s could not be set:",
			Count(d.Unset, "attribute", "attributes")))
	}
	for i, p := range d.Problems {
		if i == maxOfAKind && !s.All {
			o.prose("  ", fmt.Sprintf("and %d more (--json lists more)", d.Lost+d.Unset-int64(i)))
			break
		}
		o.prose("  - ", Text(p))
	}
	return o.flush()
}
