// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/disk"
)

// InfoSchema is the schema of a disk.Description in JSON.
const InfoSchema = "shisa.info/1"

// Info writes descriptions of disks for people.
func Info(w io.Writer, d *disk.Description, s Style) error {
	o := newOut(w, s)
	first := true
	for i := range d.Disks {
		one := &d.Disks[i]
		if one.Error != "" {
			continue // an error is told apart from the result
		}
		for depth := range one.Chain {
			if !first {
				o.line()
			}
			first = false
			infoLayer(o, &one.Chain[depth], depth)
		}
	}
	return o.flush()
}

// infoName is where the names of facts end and the facts begin.
const infoName = 13

func fact(o *out, name, text string) {
	o.prose("  "+name+strings.Repeat(" ", max(1, infoName-2-columns(name))), text)
}

func infoLayer(o *out, n *disk.Info, depth int) {
	title := Name(n.Path)
	if depth > 0 {
		title = fmt.Sprintf("%s (backing file, layer %d)", title, depth)
	}
	o.line(o.paint(bold, title))
	format := n.Format
	switch {
	case n.FormatFrom == disk.FormatProbed:
		format += ", told by its content"
	case n.FormatFrom == disk.FormatHeader:
		format += ", as the image above says"
	}
	if n.Probed != n.Format {
		format += fmt.Sprintf("; its content looks like %s", n.Probed)
	}
	fact(o, "format", format)
	fact(o, "disk", BytesExact(n.VirtualBytes))
	fact(o, "file", fmt.Sprintf("%s, takes %s", BytesExact(n.FileBytes), Bytes(n.AllocatedBytes)))
	fact(o, "modified", n.Modified.UTC().Format(time.RFC3339))
	switch n.Use {
	case disk.UseWrite:
		fact(o, "in use", "a program may write to it; what is shown may change at any time")
	case disk.UseRead:
		fact(o, "in use", "programs read it")
	}
	if n.Qcow2 != nil {
		infoQcow2(o, n)
	}
	if text := otherFormat(n); text != "" {
		fact(o, "kind", text)
	}
	if n.Encrypted {
		fact(o, "encrypted", encryption(n.Encryption))
	}
	infoLink(o, "backing", n.Backing)
	infoLink(o, "data file", n.DataFile)
	infoExtents(o, n.VMDK)
	infoSnapshots(o, n.Snapshots)
	if n.Qcow2 != nil {
		infoBitmaps(o, n.Qcow2.Bitmaps)
	}
	for _, text := range n.Notes {
		fact(o, "note", Text(text))
	}
	for _, b := range n.Blind {
		fact(o, o.paint(stateBlind.color, "unreadable"), Text(b.What)+": "+Text(b.Reason))
	}
}

func infoQcow2(o *out, n *disk.Info) {
	q := n.Qcow2
	text := fmt.Sprintf("%s; refcounts of %d bits; compression %s; version %d (compat %s)",
		Bytes(n.ClusterBytes), q.RefcountBits, q.Compression, q.Version, q.Compat)
	if q.ExtendedL2 {
		text += "; subclusters of " + Bytes(n.ClusterBytes/32)
	}
	fact(o, "clusters", text)
	var marks []string
	for _, m := range []struct {
		on   bool
		text string
	}{
		{q.Dirty, "not closed cleanly"}, {q.Corrupt, "marked as corrupt"},
		{q.LazyRefcounts, "lazy refcounts"}, {q.DataFileRaw, "the data file reads as a raw image"},
	} {
		if m.on {
			marks = append(marks, m.text)
		}
	}
	if len(marks) > 0 {
		fact(o, "marks", strings.Join(marks, "; "))
	}
}

// otherFormat says in words what only one of the formats beside qcow2 has.
func otherFormat(n *disk.Info) string {
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	kind := func(fixed bool) {
		if fixed {
			add("fixed")
		} else {
			add("dynamic")
		}
		if n.ClusterBytes > 0 {
			add("blocks of %s", Bytes(n.ClusterBytes))
		}
	}
	switch {
	case n.VMDK != nil:
		add("%s", Text(n.VMDK.CreateType))
		if n.ClusterBytes > 0 {
			add("grains of %s", Bytes(n.ClusterBytes))
		}
		add("CID %s", n.VMDK.CID)
		if n.Backing != nil {
			add("rests on CID %s", n.VMDK.ParentCID)
		}
	case n.VHDX != nil:
		kind(n.VHDX.Fixed)
		add("sectors of %s", Bytes(n.VHDX.SectorBytes))
	case n.VPC != nil:
		kind(n.VPC.Fixed)
		add("made by %q", n.VPC.Maker)
	}
	return strings.Join(words, "; ")
}

// infoExtents lists the files of a vmdk image in several.
func infoExtents(o *out, v *disk.VMDKInfo) {
	if v == nil {
		return
	}
	for i, e := range v.Extents {
		if i == maxOfAKind && !o.s.All {
			o.line(fmt.Sprintf("    and %d more (--all lists them)", len(v.Extents)-i))
			return
		}
		if e.File == nil {
			fact(o, "extent", "zeros, "+Bytes(e.VirtualBytes))
			continue
		}
		infoLink(o, "extent", e.File)
	}
}

func encryption(e *disk.Encrypted) string {
	switch {
	case e == nil:
		return "yes"
	case e.LUKS == nil:
		return e.Format
	}
	l := e.LUKS
	active := 0
	for _, s := range l.Slots {
		if s.Active {
			active++
		}
	}
	return fmt.Sprintf("LUKS: %s, %s, %s; %d of %d key slots in use; UUID %s", Text(l.Cipher),
		Text(l.CipherMode), Text(l.Hash), active, len(l.Slots), Text(l.UUID))
}

func infoLink(o *out, what string, l *disk.LinkInfo) {
	if l == nil {
		return
	}
	text := Name(l.Name)
	if l.Path != "" && l.Path != l.Name {
		text += " = " + Name(l.Path)
	}
	if l.Format != "" && what == "backing" {
		text += " (" + Text(l.Format) + ")"
	}
	switch l.State {
	case disk.LinkOK:
	case disk.LinkNotFollowed:
		text += ": not followed"
	case disk.LinkProtocol:
		text += ": not a local file"
	default:
		text += ": " + o.paint(red, strings.ToUpper(strings.ReplaceAll(string(l.State), "_", " ")))
	}
	if l.Reason != "" {
		text += ", " + Text(l.Reason)
	}
	if l.State == disk.LinkNotFollowed {
		text += " (--follow opens it)"
	}
	fact(o, what, text)
}

func infoSnapshots(o *out, ss []disk.Snapshot) {
	if len(ss) == 0 {
		return
	}
	fact(o, "snapshots", strconv.Itoa(len(ss)))
	cut := len(ss)
	if !o.s.All {
		cut = min(cut, maxOfAKind)
	}
	rows, colors := [][]string{}, []string{}
	for _, s := range ss[:cut] {
		state := ""
		if s.VMStateBytes != 0 {
			state = Bytes(s.VMStateBytes)
		}
		rows = append(rows, []string{"", Name(s.ID), Name(s.Name), s.Date.UTC().Format(time.RFC3339),
			Bytes(s.VirtualBytes), state})
		colors = append(colors, "")
	}
	o.table([]string{"", "id", "name", "date", "disk", "machine state"}, rows, colors, nil)
	if cut < len(ss) {
		o.line(fmt.Sprintf("    and %d more (--all lists them)", len(ss)-cut))
	}
}

func infoBitmaps(o *out, bs []disk.Bitmap) {
	for i, b := range bs {
		if i == maxOfAKind && !o.s.All {
			o.line(fmt.Sprintf("    and %d more (--all lists them)", len(bs)-i))
			return
		}
		text := fmt.Sprintf("%s, one bit for %s", Name(b.Name), Bytes(b.GranularityBytes))
		if b.Auto {
			text += ", recording"
		}
		if b.InUse {
			text += ", was not stored: cannot be trusted"
		}
		fact(o, "bitmap", text)
	}
}
