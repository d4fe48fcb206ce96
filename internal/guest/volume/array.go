// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// maxCuts bounds the places where the bad blocks of members divide an array.
const maxCuts = 8192

// array is what the members of one array make up.
type array struct {
	members []*member // all that were given
	best    *member   // of those that can be used, the one with most events
	active  []*member // by place in the array; nil: not given, or not to be used
}

// arrays puts together the arrays of the members that were found since it was last called, and
// tells whether there were any.
func (f *finder) arrays() bool {
	sets := map[string][]*member{}
	for _, m := range f.members {
		sets[m.set] = append(sets[m.set], m)
	}
	f.members = nil
	for _, set := range sortedKeys(sets) {
		f.array(sets[set])
	}
	return len(sets) > 0
}

// array lists the array of some members and looks into it.
func (f *finder) array(members []*member) {
	a := &array{members: members}
	for _, m := range members {
		if m.refused == "" && (a.best == nil || m.events > a.best.events) {
			a.best = m
		}
	}
	if a.best == nil {
		for _, m := range members {
			m.v.NotExamined = "member of an array: not read: " + m.refused
		}
		a.best = members[0]
	}
	v := &Volume{Class: Array, Name: f.arrayName(a.best), Disk: -1, Start: -1, Kind: NotRead,
		Version: a.best.version, UUID: a.best.set, disks: f.layout.Disks, root: true}
	for _, m := range members {
		v.In, v.depth = append(v.In, m.index), max(v.depth, m.v.depth+1)
	}
	if a.best.refused != "" {
		v.NotExamined = levelName(a.best.level) + " array: not read: " + a.best.refused
		f.list(v)
		return
	}
	f.activeMembers(v, a)
	if why := a.lay(v); why != "" {
		v.NotExamined = why
		f.list(v)
		return
	}
	v.place()
	v.Kind, v.UUID, v.Version = Unknown, "", ""
	f.examine(v)
}

// arrayName is the name that the kernel or mdadm gives to an array: /dev/md0, /dev/md/name.
func (f *finder) arrayName(m *member) string {
	name := m.name
	if _, after, ok := strings.Cut(name, ":"); ok {
		name = after
	}
	switch {
	case name == "":
		return f.unique("md/"+m.set, "")
	case strings.Trim(name, "0123456789") == "":
		return f.unique("md"+name, m.set)
	}
	return f.unique("md/"+name, m.set)
}

// unique gives name, with the identity of the thing behind it if another has that name.
func (f *finder) unique(name, id string) string {
	try := name
	taken := func(v *Volume) bool { return v.Name == try }
	for n := 1; slices.ContainsFunc(f.layout.Volumes, taken); n++ {
		try = name + "." + id
		if n > 1 {
			try = fmt.Sprintf("%s.%s.%d", name, id, n)
		}
	}
	return try
}

// levelName names a level as mdadm does.
func levelName(level int32) string {
	switch level {
	case mdLevelLinear:
		return "linear"
	case -4:
		return "multipath"
	case -100000:
		return "container"
	}
	return fmt.Sprintf("RAID %d", level)
}

// activeMembers sorts the members of a by place, and says of each that is not used why. Those that
// are one event behind are as new, as for the kernel: the last one may be only that it was stopped.
func (f *finder) activeMembers(v *Volume, a *array) {
	best := a.best
	a.active = make([]*member, min(max(best.disks, 0), mdMaxMembers))
	say := func(m *member, text string) {
		f.problem(m.v, m.place, mdSuperBytes, "member of the array "+v.Name, text)
		m.v.Note = text
	}
	for _, m := range a.members {
		role, known := m.role(), best.roleOf(m.number)
		switch {
		case m.refused != "":
			say(m, "it is not used: "+m.refused)
		case m.events+1 < best.events:
			say(m, fmt.Sprintf("it is stale (%d events, the newest has %d): it is not used",
				m.events, best.events))
		case known == mdFaulty || role == mdFaulty:
			say(m, "the array has it as faulty: it is not used")
		case role == mdSpare || role == mdJournal || known == mdSpare:
			m.v.Note = "spare or journal of the array " + v.Name
		case m.level != best.level || m.disks != best.disks || m.chunk != best.chunk:
			say(m, "it says other things of the array than the newest: it is not used")
		case role >= len(a.active) || known != role:
			say(m, fmt.Sprintf("its place %d is not in the array: it is not used", role))
		case m.partial:
			say(m, "it was being recovered: it is not used")
		case a.active[role] != nil:
			say(m, fmt.Sprintf("its place %d has another member (a copy of a disk?): it is not used", role))
		default:
			a.active[role], m.v.Note = m, "of the array "+v.Name
		}
	}
	f.absent(v, a)
}

// absent says what of the array is not there.
func (f *finder) absent(v *Volume, a *array) {
	missing, doubt := 0, false
	degraded := 0
	for place, m := range a.active {
		given := func(m *member) bool { return a.best.roleOf(m.number) == place }
		switch {
		case m != nil:
		case slices.Contains(a.best.roles, place):
			missing++
			doubt = doubt || a.best.level == 1 && !slices.ContainsFunc(a.members, given)
		default:
			degraded++
		}
	}
	p := Problem{Disk: -1, In: v.Name, What: "array " + v.Name}
	if missing > 0 {
		p.Text = fmt.Sprintf("%d of %d members are not given or cannot be used", missing, len(a.active))
		if p.Doubt = doubt; doubt {
			p.Text += ": whether one of them is newer cannot be told"
		}
		f.add(p)
		p.Doubt = false
	}
	if degraded > 0 {
		p.Text = fmt.Sprintf("it is degraded: it has no member in %d of its %d places",
			degraded, len(a.active))
		f.add(p)
	}
	if a.best.level == 1 && !a.best.synced && len(a.active) > 1 {
		p.Text = "its members were being made the same, and may differ"
		f.add(p)
	}
}

// lay works out size and segments of the array v, and tells why not if it is not read.
func (a *array) lay(v *Volume) string {
	best := a.best
	n := int64(len(a.active))
	v.Size = a.size(n)
	if n == 0 {
		return fmt.Sprintf("%s array of %d members: not read", levelName(best.level), best.disks)
	}
	switch best.level {
	case 1:
		return a.mirror(v)
	case mdLevelLinear:
		return a.linear(v)
	case 0:
		return a.stripe(v)
	}
	return levelName(best.level) + " array: not read"
}

// size is that of an array of n places with members of one size.
func (a *array) size(n int64) int64 {
	used := min(a.best.used, maxBytes/max(n, 1))
	switch a.best.level {
	case 4, 5:
		return used * max(0, n-1)
	case 6:
		return used * max(0, n-2)
	case 10:
		near, far := max(1, int64(a.best.layout&0xff)), max(1, int64(a.best.layout>>8&0xff))
		return used * n / (near * far)
	case 1:
		return used
	}
	return used * n
}

// mirror lays out a mirror: all members that are in sync hold everything, but for their bad blocks.
func (a *array) mirror(v *Volume) string {
	cuts := []int64{0, v.Size}
	for _, m := range a.active {
		if m == nil {
			continue
		}
		if len(cuts) > maxCuts {
			return "RAID 1 array: not read: its members have too many bad blocks"
		}
		for _, b := range m.bad {
			cuts = append(cuts, min(max(b.Offset-m.data.Offset, 0), v.Size),
				min(max(b.End()-m.data.Offset, 0), v.Size))
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i := 0; i+1 < len(cuts); i++ {
		s := segment{at: cuts[i], length: cuts[i+1] - cuts[i]}
		for _, m := range a.active {
			if m != nil && !m.isBad(m.data.Offset+s.at, s.length) {
				s.legs = append(s.legs, leg{vol: m.v, at: m.data.Offset + s.at})
			}
		}
		if s.legs == nil {
			s.missing = "no member of the array " + v.Name + " that is up to date holds it"
		}
		v.segments = append(v.segments, s)
	}
	return ""
}

// isBad tells whether a part of the member is in its list of bad blocks.
func (m *member) isBad(at, length int64) bool {
	return slices.ContainsFunc(m.bad, func(b finding.Range) bool {
		return at < b.End() && b.Offset < at+length
	})
}

// linear lays out members one after the other, each a multiple of the chunk.
func (a *array) linear(v *Volume) string {
	v.Size = 0
	for place, m := range a.active {
		if m == nil {
			return fmt.Sprintf("linear array: not read: its member %d is missing, so it is not known where "+
				"the others lie", place)
		}
		length := m.data.Length
		if m.chunk > 0 {
			length -= length % m.chunk
		}
		if length > maxBytes-v.Size {
			return "linear array: not read: its members are longer than any disk"
		}
		v.segments = append(v.segments, m.segments(v, v.Size, length)...)
		v.Size += length
	}
	return ""
}

// segments gives a run of m's data from its beginning on, without its bad blocks.
func (m *member) segments(v *Volume, at, length int64) []segment {
	one := array{active: []*member{m}}
	part := &Volume{Name: v.Name, Size: length}
	one.mirror(part)
	for i := range part.segments {
		part.segments[i].at += at
	}
	return part.segments
}

// stripe lays out chunks dealt out to members of one size. Those of different sizes have zones that
// two kinds of kernels lay out in two ways.
func (a *array) stripe(v *Volume) string {
	chunk := a.best.chunk
	if chunk < 512 || chunk%512 != 0 {
		return fmt.Sprintf("RAID 0 array: not read: chunks of %d bytes", chunk)
	}
	s := segment{chunk: chunk}
	var length int64
	for place, m := range a.active {
		switch {
		case m == nil:
			s.missing = fmt.Sprintf("the member %d of the array %s is missing", place, v.Name)
			continue
		case len(m.bad) > 0:
			return "RAID 0 array: not read: a member has bad blocks"
		case length == 0:
			length = m.data.Length &^ 511 / chunk * chunk
		case length != m.data.Length&^511/chunk*chunk:
			return "RAID 0 array: not read: its members are of different sizes"
		}
		s.legs = append(s.legs, leg{vol: m.v, at: m.data.Offset})
	}
	s.length = min(length, maxBytes/int64(len(a.active))) * int64(len(a.active))
	if s.missing != "" {
		return "RAID 0 array: not read: " + s.missing
	}
	v.Size, v.segments = s.length, []segment{s}
	return ""
}

// sortedKeys gives the keys of a map in order, so that results do not change from run to run.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, cmp.Compare)
	return keys
}

// mdMember lists v if it is a member of an array, and keeps it for that.
func (f *finder) mdMember(v *Volume) bool {
	m := f.member(v)
	if m == nil || m.version == "0.90" && f.ofPartition(v, m) {
		return false
	}
	v.Kind, v.Version, v.UUID, v.Label = RAIDMember, m.version, m.set, m.name
	if m.version == "0.90" {
		v.Label = ""
	}
	m.index = len(f.layout.Volumes)
	if f.list(v) {
		f.members = append(f.members, m)
	}
	return true
}

// ofPartition tells whether the superblock of version 0.90 at the end of a disk is that of the
// partition that ends there too: this version does not say where it stands.
func (f *finder) ofPartition(v *Volume, m *member) bool {
	if !v.root {
		return false
	}
	problems := f.layout.Problems
	t, parts := f.table(v, nil)
	f.layout.Problems = problems
	return t != nil && slices.ContainsFunc(parts, func(p entry) bool {
		return !p.extended && p.start+mdPlaces(p.length)["0.90"] == m.place
	})
}
