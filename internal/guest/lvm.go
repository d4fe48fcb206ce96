// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"bytes"
	"cmp"
	"hash/crc32"
	"slices"
	"strings"
)

// LVM2, as lib/format_text/layout.h and lib/label/label.h of LVM 2.03 lay it out: many guests have
// their file systems in logical volumes, whose blocks count from the volume's start. Binary numbers
// are little endian.
//
//	label     in one of the first four sectors: 0 "LABELONE"  8 its sector  16 CRC of 20 to 512
//	          20 where the header begins (32)  24 "LVM2 001"
//	header    0 UUID of the physical volume, 32 letters   32 bytes   40 pairs of offset and size:
//	          data areas, a pair of zeros, metadata areas, a pair of zeros
//	metadata  0 CRC of 4 to 512  4 " LVM2 x[5A%r0N*>"  24 where it begins  32 its size
//	          40 copies of 24 bytes: 0 where the text begins  8 its length  16 CRC
//
// The text goes round at the end of its area, to 512 bytes after the beginning. The CRC is that of
// IEEE with an own seed and not inverted. Only logical volumes of linear segments count: of others
// (thin, mirrored, striped) a block has no one place, and nothing is said.
const (
	lvmLabel       = "LABELONE"
	lvmType        = "LVM2 001"
	lvmMagic       = " LVM2 x[5A%r0N*>"
	lvmSeed        = 0xf597a6cf
	lvmSector      = 512
	maxLVMText     = 4 << 20
	maxLVMAreas    = 8
	maxLVMSegments = 4096 // of one logical volume
	maxLVMDepth    = 8    // of sections in the text
)

// lvmCRC is LVM's checksum of b.
func lvmCRC(b []byte) uint32 { return ^crc32.Update(^uint32(lvmSeed), crc32.IEEETable, b) }

// lvmGroups collects the physical volumes of a disk and the newest description of their groups.
type lvmGroups struct {
	starts map[string]physical // by UUID of the physical volume
	texts  map[string]*section // by name of the group
}

// physical is where a physical volume lies.
type physical struct {
	start     int64
	partition int
}

// add looks for a physical volume at the start of p.
func (g *lvmGroups) add(s *source, p partition) {
	head := s.read(p.start, 4*lvmSector, "head of a volume")
	for i := int64(0); head != nil && i < 4; i++ {
		b := head[i*lvmSector:][:lvmSector]
		if string(b[:8]) != lvmLabel || string(b[24:32]) != lvmType || le64(b, 8) != uint64(i) ||
			lvmCRC(b[20:]) != le32(b, 16) {
			continue
		}
		at := int(le32(b, 20))
		if at < 32 || at > lvmSector-40 {
			continue
		}
		if g.starts == nil {
			g.starts, g.texts = map[string]physical{}, map[string]*section{}
		}
		g.starts[string(b[at:at+32])] = physical{p.start, p.number}
		for _, area := range metadataAreas(b[at+40:]) {
			g.read(s, p.start+area)
		}
		return
	}
}

// metadataAreas gives the places of the metadata areas in a list of pairs.
func metadataAreas(b []byte) []int64 {
	var at []int64
	lists := 0
	for ; len(b) >= 16 && lists < 2 && len(at) < maxLVMAreas; b = b[16:] {
		switch off := le64(b, 0); {
		case off == 0:
			lists++
		case lists == 1 && off < maxBytes:
			at = append(at, int64(off))
		}
	}
	return at
}

// read reads the metadata area at a place of the disk, and keeps what it says of its group if that
// is newer than what is known.
func (g *lvmGroups) read(s *source, at int64) {
	b := s.read(at, lvmSector, "LVM metadata")
	if b == nil || string(b[4:20]) != lvmMagic || lvmCRC(b[4:]) != le32(b, 0) {
		return
	}
	size, from, length := le64(b, 32), le64(b, 40), le64(b, 48)
	if size > maxBytes || size <= lvmSector || from < lvmSector || from >= size ||
		length > maxLVMText || length > size-lvmSector {
		return
	}
	first := min(length, size-from)
	text := s.read(at+int64(from), int(first), "LVM metadata")
	if rest := length - first; rest > 0 && text != nil {
		more := s.read(at+lvmSector, int(rest), "LVM metadata")
		if more == nil {
			return
		}
		text = append(text, more...)
	}
	if text == nil || lvmCRC(text) != le32(b, 56) {
		return
	}
	root := parseLVM(text)
	for name, group := range root.sections {
		if old := g.texts[name]; old == nil || group.number("seqno") > old.number("seqno") {
			g.texts[name] = group
		}
	}
}

// volumes gives the file systems in the logical volumes of the groups.
func (g *lvmGroups) volumes(s *source) []Volume {
	var vols []Volume
	for _, group := range sortedKeys(g.texts) {
		text := g.texts[group]
		logical := text.sections["logical_volumes"]
		if logical == nil {
			continue
		}
		for _, name := range sortedKeys(logical.sections) {
			v := g.logical(text, logical.sections[name])
			if len(v.segments) == 0 || len(vols) >= maxVolumes || s.ctx.Err() != nil {
				continue
			}
			v.Logical = group + "/" + name
			vols = append(vols, s.recogniseIn(v))
		}
	}
	return vols
}

// logical gives a logical volume with those of its segments that lie on this disk in one run each.
func (g *lvmGroups) logical(group, lv *section) Volume {
	v := Volume{Kind: Unknown}
	extent := group.number("extent_size")
	if extent <= 0 || extent > maxBytes/lvmSector {
		return v
	}
	extent *= lvmSector
	for _, name := range sortedKeys(lv.sections) {
		seg := lv.sections[name]
		first, count := seg.number("start_extent"), seg.number("extent_count")
		if len(v.segments) >= maxLVMSegments || first < 0 || count <= 0 ||
			first+count > maxBytes/extent {
			continue
		}
		v.Room = max(v.Room, (first+count)*extent)
		stripe := seg.lists["stripes"] // pairs of a physical volume and an extent of it
		if seg.text("type") != "striped" || seg.number("stripe_count") != 1 || len(stripe) != 2 {
			continue
		}
		where, ok := g.physical(group, stripe[0].text)
		on := stripe[1].number
		if !ok || on < 0 || on > maxBytes/extent-count {
			continue
		}
		v.Partition = where.partition
		v.segments = append(v.segments, segment{inVolume: first * extent,
			onDisk: where.start + on*extent, length: count * extent})
	}
	slices.SortFunc(v.segments, func(a, b segment) int { return cmp.Compare(a.inVolume, b.inVolume) })
	if len(v.segments) > 0 {
		v.Start = v.segments[0].onDisk
	}
	v.Length = v.Room
	return v
}

// physical gives where the extents of a physical volume of a group begin, if it is on this disk.
func (g *lvmGroups) physical(group *section, name string) (physical, bool) {
	all := group.sections["physical_volumes"]
	if all == nil || all.sections[name] == nil {
		return physical{}, false
	}
	pv := all.sections[name]
	where, ok := g.starts[strings.ReplaceAll(pv.text("id"), "-", "")]
	begin := pv.number("pe_start")
	if !ok || begin < 0 || begin > maxBytes/lvmSector {
		return physical{}, false
	}
	where.start += begin * lvmSector
	return where, true
}

// sortedKeys gives the keys of a map in order, so that results do not change from run to run.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// section is a named part of LVM's text: values, lists of values and sections in it.
type section struct {
	sections map[string]*section
	lists    map[string][]lvmValue // a single value is a list of one
}

// lvmValue is a string or an integer.
type lvmValue struct {
	text   string
	number int64
}

func (s *section) number(name string) int64 {
	if l := s.lists[name]; len(l) == 1 {
		return l[0].number
	}
	return -1
}

func (s *section) text(name string) string {
	if l := s.lists[name]; len(l) == 1 {
		return l[0].text
	}
	return ""
}

// parseLVM reads LVM's text as far as it is one. The checksum is right, so what is not understood
// is of another version of LVM: it is left out.
func parseLVM(text []byte) *section {
	newSection := func() *section {
		return &section{sections: map[string]*section{}, lists: map[string][]lvmValue{}}
	}
	root := newSection()
	open := []*section{root}
	var name string
	var list []lvmValue
	assigned, inList := false, false
	for {
		word, value, rest := lvmToken(text)
		if len(rest) >= len(text) {
			return root
		}
		text = rest
		here := open[len(open)-1]
		switch {
		case word == "{" && len(open) < maxLVMDepth:
			inner := newSection()
			here.sections[name] = inner
			open = append(open, inner)
		case word == "{":
			return root
		case word == "}":
			if open = open[:len(open)-1]; len(open) == 0 {
				return root
			}
		case word == "=":
			assigned, list = true, nil
		case word == "[":
			inList = true
		case word == "]":
			here.lists[name] = list
			assigned, inList = false, false
		case word == ",":
		case inList:
			list = append(list, value)
		case assigned:
			here.lists[name] = []lvmValue{value}
			assigned = false
		default:
			name = value.text
		}
	}
}

// lvmToken takes the first word, string or sign off a text. What is left is as long as the text at
// its end.
func lvmToken(text []byte) (word string, value lvmValue, rest []byte) {
	for {
		trimmed := bytes.TrimLeft(text, " \t\r\n\x00")
		if len(trimmed) == 0 {
			return "", lvmValue{}, text
		}
		if trimmed[0] != '#' {
			text = trimmed
			break
		}
		end := bytes.IndexByte(trimmed, '\n')
		if end < 0 {
			return "", lvmValue{}, text
		}
		text = trimmed[end:]
	}
	switch c := text[0]; {
	case bytes.IndexByte([]byte("{}[]=,"), c) >= 0:
		return string(c), lvmValue{}, text[1:]
	case c == '"':
		end := 1
		for end < len(text) && text[end] != '"' {
			if text[end] == '\\' {
				end++
			}
			end++
		}
		end = min(end, len(text))
		return "", lvmValue{text: string(text[1:end])}, text[min(end+1, len(text)):]
	}
	end := bytes.IndexAny(text, " \t\r\n\x00{}[]=,\"#")
	if end < 0 {
		end = len(text)
	}
	v := lvmValue{text: string(text[:end])}
	for _, c := range text[:end] {
		if c < '0' || c > '9' || v.number > maxBytes {
			v.number = -1
			break
		}
		v.number = v.number*10 + int64(c-'0')
	}
	return "", v, text[end:]
}
