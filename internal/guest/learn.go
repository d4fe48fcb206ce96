// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// sameSuper tells whether two superblocks are of one volume.
func (c *Claim) sameSuper(o Claim) bool {
	switch {
	case c.ext != nil && o.ext != nil:
		return c.ext.same(o.ext) && c.ext.blocks == o.ext.blocks
	case c.xfs != nil && o.xfs != nil:
		return *c.xfs == *o.xfs
	case c.btrfs != nil && o.btrfs != nil:
		a, b := c.btrfs, o.btrfs
		return a.uuid == b.uuid && a.length == b.length && a.device == b.device
	}
	return false
}

// become gives v as the volume of the superblock c. ok: that one is as long as v has room for.
func (v Volume) become(c *Claim) (Volume, bool) {
	switch {
	case c.ext != nil:
		e := *c.ext
		v.takeExt(&e)
	case c.xfs != nil:
		v.takeXFS(c.xfs)
	case c.btrfs != nil:
		b := *c.btrfs
		v.takeBtrfs(&b)
	}
	return v, v.Length <= v.Room && v.Length > v.Room-learnedSlack && v.Length > learnedSlack
}

// learn looks at the claims that are of no known volume once more, with the volumes whose
// superblocks are in the piece itself, put where a head is missing on the disk.
func (e *examiner) learn() {
	var vols []Volume
	for i := range e.vols {
		u := &e.vols[i]
		if u.Kind != Unknown {
			continue
		}
		for j := range e.learned {
			if v, ok := u.become(&e.learned[j]); ok && len(vols) < maxLearned {
				vols = append(vols, v)
			}
		}
	}
	for i := range e.pending {
		p := &e.pending[i]
		if !e.resolve(p.at, &p.c, vols, true) && !e.gptOfThisSize(p) {
			e.ev.Foreign++
		}
	}
	e.mbr()
}

// gptOfThisSize counts a GPT header that no other knows, if it says that the disk is as large as it
// is. One of an image inside of the disk says that of a smaller one.
func (e *examiner) gptOfThisSize(p *pendingClaim) bool {
	h := p.c.gpt
	if h == nil || slices.ContainsFunc(e.vols, func(v Volume) bool { return v.Kind == GPT }) {
		return false
	}
	for _, sector := range []int64{512, 4096} {
		if (last(h)+1)*sector != e.p.DiskBytes {
			continue
		}
		v := Volume{Kind: GPT, UUID: h.GUID, Length: e.p.DiskBytes, Room: e.p.DiskBytes,
			BlockSize: sector, gpt: h}
		if base, ok := e.base(p.at, h.Mine*sector, sector); ok {
			e.count(tallyKey{base, GPT, h.GUID, false}, &v, p.at, p.c.What)
			return true
		}
	}
	return false
}

// mbr counts an MBR at the beginning of the piece, where the disk has nothing at its start, if it
// is of a disk of this size and one of its partitions begins in the piece with a superblock that
// fills it.
func (e *examiner) mbr() {
	if !slices.ContainsFunc(e.vols, func(v Volume) bool {
		return v.Kind == Unknown && v.Partition == 0 && v.Logical == ""
	}) {
		return
	}
	entries, ok := volume.ParseMBR(e.read(0, mbrSector))
	if !ok {
		return
	}
	var end int64
	for _, p := range entries {
		if p.Type != 0 {
			end = max(end, (p.First+p.Sectors)*mbrSector)
		}
	}
	if _, ok := e.base(0, 0, mbrSector); !ok {
		return
	}
	if end > e.p.DiskBytes || end <= e.p.DiskBytes-learnedSlack {
		return
	}
	for i, p := range entries {
		start := p.First * mbrSector
		if p.Type == 0 || p.Extended() || p.Type == 0xee || p.Sectors == 0 || start >= e.p.SpanBytes {
			continue
		}
		room := p.Sectors * mbrSector
		v := Volume{Kind: Unknown, Partition: i + 1, Start: start, Length: room, Room: room}
		b := e.read(start, headBytes)
		head := make([]byte, headBytes)
		copy(head, b)
		if !v.take(head) || v.Length > v.Room || v.Length <= v.Room-learnedSlack {
			continue
		}
		table := Volume{Kind: MBR, Room: e.p.DiskBytes, Length: e.p.DiskBytes}
		k := tallyKey{0, MBR, UUID{}, true}
		e.count(k, &table, 0, "MBR")
		e.count(k, &table, start, fmt.Sprintf("%s superblock of partition %d", v.Kind, i+1))
	}
}
