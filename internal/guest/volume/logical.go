// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxLVMSegments bounds the segments of one logical volume.
const maxLVMSegments = 65536

// logicals lists the logical volumes of the groups that were found since it was last called, and
// tells whether there were any. A group waits while physical volumes of it may still turn up in
// other groups; last: none will.
func (f *finder) logicals(last bool) bool {
	found := false
	for _, id := range sortedKeys(f.groups) {
		g := f.groups[id]
		if !last && !f.complete(g) {
			continue
		}
		delete(f.groups, id)
		f.done[id] = true
		f.group(g)
		found = true
	}
	return found
}

// complete tells whether all physical volumes of g were found.
func (f *finder) complete(g *lvmGroup) bool {
	all := g.text.sections["physical_volumes"].sections
	for _, name := range sortedKeys(all) {
		if f.byID(all[name]) == nil {
			return false
		}
	}
	return true
}

// byID gives the physical volume of a section of a group's text, nil if it was not found.
func (f *finder) byID(pv *section) *physical {
	return f.physicals[strings.ReplaceAll(pv.text("id"), "-", "")]
}

// group lists the logical volumes of g.
func (f *finder) group(g *lvmGroup) {
	all := g.text.sections["physical_volumes"].sections
	for _, name := range sortedKeys(all) {
		pv, p := all[name], f.byID(all[name])
		switch {
		case p == nil:
			f.add(Problem{Disk: -1, In: g.name, What: "group " + g.name, Text: fmt.Sprintf("the physical "+
				"volume %s (%s, last seen as %s) is not given: what lies on it cannot be read",
				name, pv.text("id"), pv.text("device"))})
		case pv.has("flags", "MISSING"):
			f.problem(p.v, 0, 0, "physical volume "+name, "the group "+g.name+
				" was changed while it was away: it is taken for missing")
		}
		if p != nil {
			p.group = g.text.text("id")
			p.v.Note = "of the group " + g.name
		}
	}
	logical := g.text.sections["logical_volumes"]
	if logical == nil {
		return // a group without any
	}
	stores := snapshots(logical)
	for _, name := range sortedKeys(logical.sections) {
		lv := logical.sections[name]
		// The store of a snapshot is hidden, and what users see by its name.
		if stores[name] != "" || visible(lv) && segmentType(lv) != "snapshot" {
			f.logical(g, name, lv, stores[name])
		}
	}
}

// visible tells whether lv is a volume of its own, and not a part of another one.
func visible(lv *section) bool {
	return lv.has("status", "VISIBLE")
}

// snapshots gives what the logical volumes that a snapshot of the old kind uses are to it: a volume
// that has data of its own only together with another one.
func snapshots(logical *section) map[string]string {
	stores := map[string]string{}
	for _, lv := range logical.sections {
		for _, seg := range lv.sections {
			if seg.text("type") == "snapshot" {
				stores[seg.text("cow_store")] = "snapshot of " + seg.text("origin")
				if store := seg.text("merging_store"); store != "" {
					stores[store] = "snapshot that is being merged"
					stores[seg.text("origin")] = "volume that a snapshot is being merged into"
				}
			}
		}
	}
	return stores
}

// segmentType is the type of the segments of lv, the first that is not plain where they differ.
func segmentType(lv *section) string {
	kind := "striped"
	for _, name := range sortedKeys(lv.sections) {
		t, _, _ := strings.Cut(lv.sections[name].text("type"), "+") // what follows are flags
		if t != "striped" && t != "linear" {
			return t
		}
	}
	return kind
}

// logical lists a logical volume of g and looks into it. role: what it is to a snapshot, "" if
// nothing.
func (f *finder) logical(g *lvmGroup, name string, lv *section, role string) {
	v := &Volume{Class: Logical, Name: f.unique(g.name+"/"+name, lv.text("id")), Kind: NotRead,
		disks: f.layout.Disks, root: true}
	reason := ""
	switch kind := segmentType(lv); {
	case role != "":
		reason = role + ": not read"
	case kind == "":
		reason = "segments of no type: not read"
	case kind != "striped":
		reason = kind + " volume: not read"
	}
	f.lay(v, g, lv, reason)
	v.place()
	if reason == "" && len(v.segments) == 0 {
		reason = "no segment of it makes sense: not read"
	}
	v.UUID, v.NotExamined = lv.text("id"), reason
	if reason != "" {
		f.list(v)
		return
	}
	v.UUID, v.Kind = "", Unknown
	f.examine(v)
}

// lay works out size and segments of v. With a reason it is not read, and only its size is known.
func (f *finder) lay(v *Volume, g *lvmGroup, lv *section, reason string) {
	extent := g.text.number("extent_size")
	if extent <= 0 || extent > maxBytes/lvmSector {
		f.add(Problem{Disk: -1, In: v.Name, What: "group " + g.name,
			Text: "the size of its extents makes no sense"})
		return
	}
	extent *= lvmSector
	for _, name := range sortedKeys(lv.sections) {
		seg := lv.sections[name]
		first, count := seg.number("start_extent"), seg.number("extent_count")
		if len(v.segments) >= maxLVMSegments || first < 0 || count <= 0 || first > maxBytes/extent-count {
			f.add(Problem{Disk: -1, In: v.Name, What: "volume " + v.Name,
				Text: fmt.Sprintf("its %s makes no sense, or is one of too many: it cannot be read", name)})
			continue
		}
		s := segment{at: first * extent, length: count * extent, missing: reason}
		if reason == "" {
			f.stripes(v, g, seg, &s, extent)
		}
		v.Size = max(v.Size, s.at+s.length)
		v.segments = append(v.segments, s)
	}
	slices.SortFunc(v.segments, func(a, b segment) int { return cmp.Compare(a.at, b.at) })
	f.checkSegments(v)
}

// checkSegments notes segments of v that lie on one another, of which the first counts, and gaps.
func (f *finder) checkSegments(v *Volume) {
	end := int64(0)
	v.segments = slices.DeleteFunc(v.segments, func(s segment) bool {
		p := Problem{Disk: -1, In: v.Name, What: "volume " + v.Name}
		switch {
		case s.at < end:
			p.Text = fmt.Sprintf("its segment from %#x on overlaps with the one before: it is not used",
				s.at)
			f.add(p)
			return true
		case s.at > end:
			p.Text = fmt.Sprintf("no segment holds its bytes from %#x to %#x", end, s.at)
			f.add(p)
		}
		end = s.at + s.length
		return false
	})
}

// stripes fills in where the segment s of v lies.
func (f *finder) stripes(v *Volume, g *lvmGroup, seg *section, s *segment, extent int64) {
	areas := seg.lists["stripes"] // pairs of a physical volume and an extent of it
	n := int64(len(areas) / 2)
	if n == 0 || len(areas)%2 != 0 || seg.number("stripe_count") != n || s.length%n != 0 {
		s.missing = "its stripes make no sense"
		return
	}
	if n > 1 {
		if s.chunk = seg.number("stripe_size"); s.chunk <= 0 || s.chunk > maxBytes/lvmSector ||
			s.length/n%(s.chunk*lvmSector) != 0 {
			s.chunk, s.missing = 0, "the size of its stripes makes no sense"
			return
		}
		s.chunk *= lvmSector
	}
	for i := range n {
		l := f.area(v, g, areas[2*i].text, areas[2*i+1].number, s.length/n, extent)
		if l.missing != "" && n == 1 {
			s.missing = l.missing
			return
		}
		s.legs = append(s.legs, l)
	}
}

// area gives where length bytes from an extent of a physical volume on lie.
func (f *finder) area(v *Volume, g *lvmGroup, name string, first, length, extent int64) leg {
	pv := g.text.sections["physical_volumes"].sections[name]
	if pv == nil {
		return leg{missing: "it lies in the logical volume " + name + ", which is not read"}
	}
	p := f.byID(pv)
	begin := pv.number("pe_start")
	physical := fmt.Sprintf("the physical volume %s of the group %s", name, g.name)
	switch {
	case p == nil:
		return leg{missing: physical + " is not given"}
	case pv.has("flags", "MISSING"):
		return leg{missing: physical + " is out of date"}
	case begin < 0 || begin > maxBytes/lvmSector || first < 0 || first > (maxBytes-length)/extent:
		return leg{missing: fmt.Sprintf("its place on the physical volume %s makes no sense", name)}
	}
	at := begin*lvmSector + first*extent
	if at+length > p.v.Size {
		f.add(Problem{Disk: p.v.Disk, In: v.Name, What: "volume " + v.Name, Text: fmt.Sprintf(
			"it goes past the end of the physical volume %s (%s)", name, p.v.Name)})
	}
	if !slices.Contains(v.In, p.index) {
		v.In = append(v.In, p.index)
		slices.Sort(v.In)
		v.depth = max(v.depth, p.v.depth+1)
	}
	return leg{vol: p.v, at: at}
}

// loose says of the physical volumes that no group was found for why that is.
func (f *finder) loose() {
	for _, id := range sortedKeys(f.physicals) {
		p := f.physicals[id]
		switch {
		case p.group != "":
		case p.areas == 0:
			p.v.NotExamined = "a physical volume that says nothing of its group: what is in it is not known"
		case p.broken > 0:
			p.v.NotExamined = "a physical volume whose metadata cannot be read: what is in it is not known"
		case p.unused == p.areas:
			p.v.Note = "of no group, or of one that is described elsewhere"
		}
	}
}
