// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
)

// useWords say what a use means for whoever lost it.
var useWords = map[string]string{
	string(files.UseData): "content of", string(files.UseReserved): "never written: harmless",
	string(files.UseInode): "what tells where the content lies of", string(files.UseMetadata): "metadata",
	string(files.UseJournal): "the journal", string(files.UseFree): "free space: no file is hurt",
	string(files.UseOutside): "outside of every part", string(files.UseUnknown): "not known",
}

// files tells which files of the guest are hurt, and what note says of that.
func (o *out) files(all []finding.Owner, note string) {
	owners := worstOwners(all)
	if !slices.ContainsFunc(owners, func(x finding.Owner) bool { return x.Use != string(files.UseUnknown) }) {
		owners = nil // the disk holds nothing that is read: there is no file to name
	}
	if len(owners) == 0 && note == "" {
		return
	}
	o.line()
	o.line("  ", o.paint(bold, "in the guest"))
	for i, x := range owners {
		if i == maxOfAKind && !o.s.All {
			o.line(fmt.Sprintf("    and %d more (--all lists them)", len(owners)-i))
			break
		}
		head, text := ownerLine(x)
		color := red
		if x.Harmless() {
			color = green
		}
		o.prose("    "+o.paint(color, head)+"  ", text)
	}
	if note != "" {
		o.prose("    ", Text(note))
	}
}

// hurtFiles tells the same on a page.
func (p *page) hurtFiles(all []finding.Owner, note string) {
	owners := worstOwners(all)
	if len(owners) == 0 && note == "" {
		return
	}
	p.el("p", "", "In the guest:")
	list := func(some []finding.Owner) {
		p.start("dl", "class", "files")
		for _, x := range some {
			head, text := ownerLine(x)
			p.el("dt", "mono", head)
			p.el("dd", "", text)
		}
		p.end()
	}
	if some := owners[:min(len(owners), maxOfAKind)]; len(some) > 0 {
		list(some)
	}
	if rest := owners[min(len(owners), maxOfAKind):]; len(rest) > 0 {
		p.start("details")
		p.el("summary", "", strconv.Itoa(len(rest))+" more")
		list(rest[:min(len(rest), maxRows)])
		if n := len(rest) - maxRows; n > 0 {
			p.el("p", "soft", fmt.Sprintf("and %d more, which --json lists", n))
		}
		p.end()
	}
	if note != "" {
		p.el("p", "soft", sentence(note))
	}
}

// worstOwners puts files first, and what is harmless last.
func worstOwners(all []finding.Owner) []finding.Owner {
	sorted := slices.Clone(all)
	rank := func(x finding.Owner) int {
		switch {
		case x.Harmless():
			return 2
		case x.Inode == 0:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(sorted, func(a, b finding.Owner) int { return cmp.Compare(rank(a), rank(b)) })
	return sorted
}

// ownerLine says what is hurt, and how much of it for which reason.
func ownerLine(x finding.Owner) (head, text string) {
	word := cmp.Or(useWords[x.Use], Text(x.Use))
	if x.Use == string(files.UseJournal) && len(x.Paths) == 0 {
		x.Inode, x.What = 0, strings.TrimPrefix(x.What, "journal") // its inode is nobody's file
	}
	switch {
	case len(x.Paths) > 0:
		head = Text(x.Paths[0])
	case x.PathsCut > 0:
		head = fmt.Sprintf("inode %d (its names are too many to list)", x.Inode)
	case x.Inode != 0:
		head = fmt.Sprintf("inode %d (no name found)", x.Inode)
	default:
		head = word
	}
	parts := []string{Bytes(x.Bytes)}
	if x.Inode != 0 {
		parts[0] += " " + strings.TrimSuffix(word, " of")
	}
	if x.What != "" {
		parts = append(parts, Text(x.What))
	}
	if x.Part != "" {
		parts = append(parts, "part "+Text(x.Part)+" ("+Text(x.Kind)+")")
	}
	if x.Inode != 0 {
		parts = append(parts, fmt.Sprintf("inode %d, %s, modified %s", x.Inode, Bytes(x.Size), cmp.Or(x.Mtime, "?")))
	}
	if n := int64(len(x.Paths)) + x.PathsCut; n > 1 {
		parts = append(parts, fmt.Sprintf("%d names", n))
	}
	if x.Snapshot != "" {
		parts = append(parts, "snapshot "+Text(x.Snapshot))
	}
	if len(x.Codes) > 0 {
		parts = append(parts, strings.Join(x.Codes, " "))
	}
	return head, strings.Join(parts, ", ")
}
