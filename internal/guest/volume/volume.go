// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package volume tells what the disks of a guest are divided into, and makes it readable:
// partitions, logical volumes of LVM, arrays of md, and disks that have no table at all. It reads
// nothing of file systems but what names them.
//
//	disk ── table ── partition ──────────────────────────── file system, swap, ...
//	   │                 ├── member of an array ── array ──┤
//	   └── no table ─────┴── physical volume ── logical volume
//
// What is found nests, as arrays of partitions do that hold physical volumes. What is recognised
// and not read (thin volumes, arrays with parity, encryption) is listed with the reason, never left
// out and never called empty.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Disk is one disk of the guest.
type Disk struct {
	Name string // for messages
	Data io.ReaderAt
	Size int64 // bytes
	// Sector is the size of a logical sector in bytes where that is known, 512 or 4096; 0: the
	// tables tell.
	Sector int64
}

// Layout is what was found on disks that were given together.
type Layout struct {
	Disks  []Disk
	Tables []Table
	// Volumes are in the order of disks and tables; a volume comes after those that it lies in.
	Volumes []*Volume
	// Problems are what is broken, or not as the system that wrote it leaves it.
	Problems []Problem
	// Blind are the parts that could not be read. The list may be cut, which its last entry says.
	Blind []finding.Blind
}

// Table is a partition table.
type Table struct {
	Kind Kind // GPT, MBR, or one whose partitions are not read
	Disk int  // index of the disk
	// In is the index of the volume (an array, a logical volume) that is divided, -1 for the disk.
	In   int
	UUID string
	// Sector is its unit in bytes.
	Sector int64
	// FromBackup: the primary table could not be used.
	FromBackup bool
	// Ranges are where it lies on the disk or the volume, each with a name.
	Ranges []Named
	// Sound: what was used of it has right checksums, or its kind has none.
	Sound bool
	// GPT is the header that was used, nil of other tables and if its own checksum is wrong.
	GPT *GPTHeader
	// NotRead says why its partitions are not listed, "" if they are.
	NotRead string
}

// Named is a range of bytes with a name.
type Named struct {
	What string
	finding.Range
}

// Problem is something broken.
type Problem struct {
	// Disk is the index of the disk, -1 if it concerns several or one that is not there. In names
	// the volume if it is in one that is not just a part of the disk: an array, a logical volume.
	Disk int
	In   string
	// Range is the place there, in bytes; of no length where there is none to tell.
	finding.Range
	// What is what is broken, as "primary GPT header", and Text what is wrong and what follows.
	What, Text string
	// Doubt: whether what is read is the present cannot be told.
	Doubt bool
}

// String gives the problem as one line.
func (p Problem) String() string { return p.What + ": " + p.Text }

// Class says what a volume is to the disks.
type Class string

// The classes of volumes.
const (
	Whole     Class = "disk"      // a disk
	Partition Class = "partition" // of a disk, an array or a logical volume
	Array     Class = "array"     // of md
	Logical   Class = "logical"   // volume of LVM
)

// Volume is something that a file system may fill: a partition, a logical volume, an array, or a
// disk without a table.
type Volume struct {
	Class Class
	// Name is the number of a partition as Linux counts, "0" for a whole disk; of several disks that
	// are taken together "disk2p1" and "disk2", counted from 1. It is "vg/lv" for a logical volume,
	// "md0" or "md/name" for an array, "md0p1" and "vg/lvp1" for a partition of these.
	Name string
	// Disk is the index of the disk that it lies on, -1 for several. Start is where it begins there,
	// -1 for several or if its beginning cannot be read. Size is its length; all in bytes.
	Disk        int
	Start, Size int64
	// In are the indexes of the volumes that it lies in: members, physical volumes.
	In []int
	// Kind is what fills it, with the label and UUID that that bears.
	Kind        Kind
	Label, UUID string
	// Version tells forms of a kind apart: "1.2" of an array's member, "2" of LUKS.
	Version string
	// Part is its number in a table, 0 if it is no partition. The others are what the table says:
	// PartType is a GUID, or the byte of an MBR as "0x83".
	Part                         int
	PartName, PartType, PartUUID string
	// NotExamined says why what is in it is not read, as "encrypted (LUKS2): not read"; "" if it can
	// be, or there is nothing in it to read.
	NotExamined string
	// Note says more of it, as "hibernated".
	Note string

	segments []segment // by place in the volume
	disks    []Disk
	depth    int
	root     bool // no partition: may have a table
}

// The bounds of Find. What lies beyond them is in Problems or Blind.
const (
	// maxDisks are taken together. Hypervisors give a guest a few dozen.
	maxDisks = 256
	// maxVolumes bounds all volumes of a Layout; a GPT of usual size has 128 partitions.
	maxVolumes = 4096
	// maxDepth bounds what lies in what: partition, array, partition, logical volume are four.
	maxDepth = 8
	// maxProblems and maxBlind bound the lists. One more says that there is more.
	maxProblems = 256
	maxBlind    = 64
	// maxReadBytes bounds what is read in all; a volume costs one or two MiB at the most.
	maxReadBytes = 256 << 20
	// maxBytes bounds every size and offset, so that sums of a few stay in 63 bits.
	maxBytes = 1 << 59
)

// ErrMissing is in the errors of [Volume.ReadAt] for parts that no disk given holds, or that are
// not read; the text says which.
var ErrMissing = errors.New("that part of the volume is not to be had")

// Find tells what disks are divided into. Disks that belong together (the physical volumes of a
// group, the members of an array) have to be given together. Parts that cannot be read are in the
// Layout; the error is that of ctx alone, or says that there are too many disks. It may block as
// long as reading the disks does.
func Find(ctx context.Context, disks []Disk) (*Layout, error) {
	if len(disks) > maxDisks {
		return nil, fmt.Errorf("look at the volumes of %d disks: at most %d are taken together",
			len(disks), maxDisks)
	}
	f := &finder{ctx: ctx, layout: &Layout{Disks: disks}, groups: map[string]*lvmGroup{},
		done: map[string]bool{}, physicals: map[string]*physical{}, texts: map[[32]byte]*section{},
		lvmParts: maxLVMParts}
	for i := range disks {
		size := min(max(disks[i].Size, 0), maxBytes)
		f.examine(&Volume{Class: Whole, Name: f.nameOn(i, 0), Disk: i, Size: size, Kind: Unknown, disks: disks,
			root: true, segments: []segment{{length: size, legs: []leg{{disk: i}}}}})
	}
	f.build()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("look at the volumes of the guest: %w", err)
	}
	return f.layout, nil
}

// DiskName is what the names of the volumes on a disk begin with, by its index, where several are
// taken together.
func DiskName(disk int) string { return fmt.Sprintf("disk%d", disk+1) }

// nameOn names a partition of a disk by its number, and the disk itself by 0.
func (f *finder) nameOn(disk, number int) string {
	switch {
	case len(f.layout.Disks) == 1:
		return fmt.Sprint(number)
	case number == 0:
		return DiskName(disk)
	}
	return fmt.Sprintf("%sp%d", DiskName(disk), number)
}

// Short is what the volume is called where its disk is the only one, "" for what lies on no one disk
// by its own number.
func (v *Volume) Short() string {
	number, of := strings.CutPrefix(v.Name, DiskName(v.Disk))
	switch {
	case v.Disk < 0 || !of:
		return ""
	case number == "":
		return "0"
	}
	return strings.TrimPrefix(number, "p")
}

// finder does the work of Find.
type finder struct {
	ctx    context.Context
	layout *Layout
	read   int64 // bytes so far
	// members and physical wait to be put together.
	members   []*member
	groups    map[string]*lvmGroup // by UUID
	done      map[string]bool      // groups that are listed
	physicals map[string]*physical // by UUID
	// texts are those of groups, by their sum, and lvmParts is how many parts more they may have.
	texts    map[[32]byte]*section
	lvmParts int
}

// build puts together arrays and groups of what was found, and what is found in those, until
// there is no more.
func (f *finder) build() {
	for range 2 * maxDepth {
		if f.arrays() || f.logicals(false) || f.logicals(true) {
			continue
		}
		break
	}
	f.loose()
}

// examine tells what is in v, which is set up but for that, and lists it and its partitions.
func (f *finder) examine(v *Volume) {
	if f.ctx.Err() != nil {
		return
	}
	if v.depth > maxDepth {
		v.Kind, v.NotExamined = NotRead, fmt.Sprintf("it lies in more than %d others: not read", maxDepth)
		f.list(v)
		return
	}
	if f.mdMember(v) {
		return
	}
	found := f.recognise(v, quick)
	pv, lvm := f.physical(v)
	if lvm.kind != "" {
		found = append([]match{lvm}, found...)
	}
	var t *Table
	var parts []entry
	if v.root {
		t, parts = f.table(v, found)
		found = withoutEnd(v, parts, found)
	}
	undivided := t == nil || len(parts) == 0 && t.NotRead == ""
	if undivided && len(found) == 0 {
		found = f.recognise(v, thorough)
		if t != nil && len(found) > 0 && found[0].kind == Empty {
			found = nil // but for the table
		}
	}
	if t == nil || undivided && len(found) > 0 {
		// No table, or an empty one in a boot sector that something else begins with.
		f.undivided(v, pv, found)
		return
	}
	f.divided(v, pv, t, parts, found)
}

// undivided lists v, which has no table, with what was found on it.
func (f *finder) undivided(v *Volume, pv *physical, found []match) {
	f.take(v, found)
	switch {
	case pv != nil:
		f.physicalVolume(v, pv)
		return
	case v.Kind == LVM2Member:
		v.NotExamined = "a physical volume whose label is broken: what is in it is not known"
	case v.Kind == Unknown && !v.root:
		f.inner(v)
	}
	if (v.Kind == Unknown || v.Kind == Empty) && v.PartType == biosBootType {
		v.Kind, v.NotExamined = BIOSBoot, ""
	}
	f.list(v)
}

// withoutEnd takes away what is recognised by the last bytes of v, if a partition ends there too: it
// is that one's.
func withoutEnd(v *Volume, parts []entry, found []match) []match {
	if !slices.ContainsFunc(parts, func(p entry) bool { return p.start+p.length == v.Size }) {
		return found
	}
	return slices.DeleteFunc(found, func(m match) bool { return m.end })
}

// divided lists v, which has a table, and its partitions. A disk is not a volume of its own then,
// unless something else begins on it too or the table cannot be read.
func (f *finder) divided(v *Volume, pv *physical, t *Table, parts []entry, found []match) {
	in := -1
	if !v.onDisk() || len(found) > 0 || t.NotRead != "" {
		f.take(v, found)
		switch {
		case t.NotRead != "":
			v.NotExamined = t.NotRead
		case len(found) > 0:
			f.problem(v, 0, 0, "volume "+v.Name, fmt.Sprintf("it has a partition table and a signature "+
				"of %s: both are listed", v.Kind))
		}
		if len(found) == 0 {
			v.Kind = t.Kind
			if t.NotRead == "" {
				v.NotExamined = ""
			}
		}
		if !v.onDisk() {
			in = len(f.layout.Volumes)
		}
		switch {
		case pv != nil:
			f.physicalVolume(v, pv)
		case !f.list(v):
			return
		}
	}
	f.parts(v, in, t, parts)
}

// list adds v to the layout, unless there are too many.
func (f *finder) list(v *Volume) bool {
	if len(f.layout.Volumes) >= maxVolumes {
		f.problem(v, 0, 0, "volumes", fmt.Sprintf("only the first %d are listed", maxVolumes))
		return false
	}
	f.layout.Volumes = append(f.layout.Volumes, v)
	return true
}
