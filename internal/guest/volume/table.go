// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// entry is a partition as a table names it.
type entry struct {
	number           int
	start, length    int64 // bytes
	kind, uuid, name string
	extended         bool // it holds the chain of further ones
}

// add adds a range that the table takes.
func (t *Table) add(what string, off, length int64) {
	t.Ranges = append(t.Ranges, Named{what, finding.Range{Offset: off, Length: length}})
}

// sectors gives the sizes of a sector that v may have.
func (f *finder) sectors(v *Volume) []int64 {
	if s := f.layout.Disks[max(v.Disk, 0)].Sector; v.onDisk() && (s == 512 || s == 4096) {
		return []int64{s}
	}
	return []int64{512, 4096}
}

// table reads the partition table of v, nil if there is none. found is what else begins on v: it
// may have a boot sector, which ends like an MBR.
func (f *finder) table(v *Volume, found []match) (*Table, []entry) {
	first := f.bytesAt(v, 0, mbrSector, "first sector")
	entries, isMBR := ParseMBR(first)
	if isMBR && len(found) > 0 && found[0].kind.boot() {
		isMBR = false
		f.inBootSector(v, first, &entries)
	}
	sectors := f.sectors(v)
	guard := protected(entries)
	switch {
	case guard > 0:
		if t, parts := f.gpt(v, sectors, guard); t != nil {
			t.add("protective MBR", 0, mbrSector)
			return t, parts
		}
		t, parts := f.mbr(v, first, entries, sectors[0])
		t.NotRead = "GPT: neither header can be read"
		return t, parts
	case isMBR:
		f.besideMBR(v, sectors)
		return f.mbr(v, first, entries, f.mbrSector(v, entries, sectors))
	}
	if t := f.foreign(v, first); t != nil {
		return t, nil
	}
	if len(found) == 0 && first != nil && likeMBR(first, v.Size) {
		f.problem(v, 0, mbrSector, "MBR", "its signature or a status is wrong: what looks like its "+
			"partitions is not listed, as by Linux")
	}
	return f.unguarded(v, first, len(found) == 0, sectors)
}

// besideMBR notes a GPT that an MBR hides, for Linux reads the MBR then.
func (f *finder) besideMBR(v *Volume, sectors []int64) {
	for _, sector := range sectors {
		b := f.bytesAt(v, sector, sector, "primary GPT header")
		if h := ParseGPT(b); h != nil && h.Mine == 1 {
			f.problem(v, sector, sector, "primary GPT header",
				"the MBR has partitions and none that stands for a GPT; the MBR is used")
		}
	}
}

// inBootSector notes what looks like an MBR in the boot sector of a file system, and takes it away.
func (f *finder) inBootSector(v *Volume, first []byte, entries *[4]MBREntry) {
	if likeMBR(first, v.Size) {
		f.problem(v, mbrEntries, 64, "boot sector", "there is what looks like a partition table in "+
			"the boot sector of a file system: it is not read")
	}
	*entries = [4]MBREntry{}
}

// unguarded reads a GPT whose protective MBR is missing. Linux does not read such a one. If the first
// sector may have held one, for nothing else begins there, the backup alone is enough.
func (f *finder) unguarded(v *Volume, first []byte, free bool, sectors []int64) (*Table, []entry) {
	lost, how := free && first != nil && zero(first), "is missing"
	if first == nil {
		lost, how = true, "cannot be read"
	}
	sound := func(sector, lba int64) bool {
		b := f.bytesAt(v, lba*sector, sector, "GPT header")
		h := ParseGPT(b)
		return h != nil && h.Mine == lba
	}
	for _, sector := range sectors {
		last := v.Size/sector - 1
		primary, backup := sound(sector, 1), last > 1 && sound(sector, last)
		switch {
		case primary || backup && lost:
			f.problem(v, 0, mbrSector, "protective MBR", "it "+how+", and a GPT is there: that is read "+
				"here, and not by Linux")
			return f.gpt(v, []int64{sector}, 0)
		case backup:
			f.problem(v, last*sector, sector, "backup GPT header",
				"it is left over: something else begins on this disk; it is not used")
		}
	}
	return nil, nil
}

// parts makes volumes of the partitions of t on v and examines them.
func (f *finder) parts(v *Volume, in int, t *Table, parts []entry) {
	t.In = in
	f.layout.Tables = append(f.layout.Tables, *t)
	f.checkParts(v, parts)
	for _, p := range parts {
		child := &Volume{Class: Partition, Name: f.nameOn(v.Disk, p.number), Disk: v.Disk, Start: v.Start,
			Size: p.length, Part: p.number, PartName: p.name, PartType: p.kind, PartUUID: p.uuid,
			Kind: Unknown, disks: v.disks, depth: v.depth + 1}
		if v.onDisk() && in < 0 {
			child.Start = p.start
			child.segments = []segment{{length: p.length, legs: []leg{{disk: v.Disk, at: p.start}}}}
		} else {
			child.Name = fmt.Sprintf("%sp%d", v.Name, p.number)
			child.In = []int{in}
			child.segments = []segment{{length: p.length, legs: []leg{{vol: v, at: p.start}}}}
			child.place()
		}
		if p.extended {
			child.Kind = Extended
			if !f.list(child) {
				return
			}
			continue
		}
		f.examine(child)
	}
}

// place works out on which disk v lies and where it begins there.
func (v *Volume) place() {
	v.Disk, v.Start = v.oneDisk(), -1
	for p := range v.Pieces(0, 1) {
		if p.Disk >= 0 && v.Disk >= 0 && p.Copy == 0 {
			v.Start = p.At
		}
	}
}

// oneDisk gives the disk that v lies on, -1 for several or none.
func (v *Volume) oneDisk() int {
	disk := -1
	for _, s := range v.segments {
		for _, l := range s.legs {
			on := l.disk
			if l.vol != nil {
				on = l.vol.Disk
			}
			if l.missing != "" || on < 0 || disk >= 0 && on != disk {
				return -1
			}
			disk = on
		}
	}
	return disk
}

// checkParts notes partitions that lie on one another or are not on v.
func (f *finder) checkParts(v *Volume, parts []entry) {
	sorted := slices.Clone(parts)
	slices.SortStableFunc(sorted, func(a, b entry) int {
		return int(min(1, max(-1, a.start-b.start)))
	})
	var last *entry // the one that goes farthest so far
	for i := range sorted {
		p := &sorted[i]
		name := fmt.Sprintf("partition %d", p.number)
		if end := p.start + p.length; end > v.Size {
			f.problem(v, p.start, p.length, name, fmt.Sprintf(
				"it ends %d bytes past the end of the disk (%d bytes)", end-v.Size, v.Size))
		}
		if p.start == 0 {
			f.problem(v, 0, p.length, name, "it holds the table itself")
		}
		if p.extended {
			continue // the logical ones lie in it
		}
		if last != nil && p.start < last.start+last.length {
			f.problem(v, p.start, min(p.length, last.start+last.length-p.start), name,
				fmt.Sprintf("it overlaps with partition %d", last.number))
		}
		if last == nil || p.start+p.length > last.start+last.length {
			last = p
		}
	}
	f.checkExtended(v, parts)
}

// checkExtended notes primary partitions that lie on an extended one.
func (f *finder) checkExtended(v *Volume, parts []entry) {
	for _, x := range parts {
		for _, p := range parts {
			if x.extended && p.number < firstLogical && p.number != x.number &&
				p.start < x.start+x.length && x.start < p.start+p.length {
				f.problem(v, p.start, p.length, fmt.Sprintf("partition %d", p.number),
					fmt.Sprintf("it overlaps with the extended partition %d", x.number))
			}
		}
	}
}
