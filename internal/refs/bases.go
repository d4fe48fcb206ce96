// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"cmp"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// bases makes the list of bases of what was found, each with the images that rest on it. A file with several names is a base
// under each of them, with all that rests on the file: who removes one of the names takes it from those that go by it.
func (t *taking) bases() {
	at := map[diskio.ID][]int{}
	byName, gone := map[string]int{}, map[string]int{}
	for _, f := range t.files {
		if t.plain {
			// Any image may be a base there; those that are one are rested on.
			if _, rested := t.byID[f.stat.ID]; !rested {
				continue
			}
		}
		at[f.stat.ID], byName[f.name] = append(at[f.stat.ID], len(t.c.All)), len(t.c.All)
		t.c.All = append(t.c.All, Base{Name: f.name, Path: f.path, State: Live, File: f.stat.ID,
			SizeBytes: f.stat.SizeBytes, AllocatedBytes: f.stat.AllocatedBytes, Format: f.format,
			Modified: f.stat.ModTime, Changed: f.stat.ChangeTime, Uses: []Reference{}})
	}
	for i := range t.targets {
		g := &t.targets[i]
		uses := t.uses(i)
		if k, ok := at[g.stat.ID]; ok && g.there {
			for n, one := range k {
				if n < len(k)-1 {
					t.c.All[one].Uses = append(t.c.All[one].Uses, uses...)
				} else {
					t.c.All[one].Uses = joined(t.c.All[one].Uses, uses)
				}
			}
			continue
		}
		// The image may be another node's, which knows the directory by another name.
		if k, ok := byName[filepath.Base(g.path)]; ok && t.alike(filepath.Dir(g.path)) {
			for j := range uses {
				uses[j].How = ByName
			}
			t.c.All[k].Uses = append(t.c.All[k].Uses, uses...)
			continue
		}
		// A disk of a machine that is gone is no base, unless it should be among them.
		if !g.there && (len(g.above) > 0 || filepath.Dir(g.path) == t.c.Bases && !t.plain) {
			for j := range uses {
				if g.byName {
					uses[j].How = ByName
				}
			}
			if k, ok := gone[g.path]; ok {
				t.c.All[k].Uses = append(t.c.All[k].Uses, uses...)
				continue
			}
			gone[g.path] = len(t.c.All)
			t.c.All = append(t.c.All, Base{Name: filepath.Base(g.path), Path: g.path, State: Missing, Uses: uses})
		} else if base := filepath.Base(g.path); !g.there && filepath.Dir(g.path) == t.c.Bases {
			t.wanted[base] = append(t.wanted[base], uses...)
		}
	}
}

// joined is append that takes a list as it is where there is none yet.
func joined(to, uses []Reference) []Reference {
	if len(to) == 0 {
		return uses
	}
	return append(to, uses...)
}

// alike tells whether a directory is called like that of the bases, or like what leads to it.
func (t *taking) alike(dir string) bool {
	name := filepath.Base(dir)
	return !t.plain && (name == filepath.Base(t.c.Bases) || name == cmp.Or(t.o.BaseName, novaBase))
}

// uses gives all images that rest on a target, those that rest on others that do included.
func (t *taking) uses(i int) []Reference {
	as := t.targets[i].as
	next := t.targets[i].above
	all := append(make([]Reference, 0, len(t.targets[i].named)+len(next)), t.targets[i].named...)
	if t.telling++; len(t.toldIn) < len(t.images) {
		t.toldIn = make([]int32, len(t.images))
	}
	for depth := 1; len(next) > 0; depth++ {
		var further []int32
		// Most of them are then where they belong: see ordered.
		slices.SortFunc(next, func(i, k int32) int { return strings.Compare(t.images[i].path, t.images[k].path) })
		for _, k := range next {
			if t.toldIn[k] == t.telling {
				continue
			}
			t.toldIn[k] = t.telling
			m := &t.images[k]
			u := Reference{How: Header, Holder: m.path, Machine: machineOf(m.dir()), Depth: depth, As: as, Since: sinceTime(m.since)}
			if up, ok := t.byID[m.id]; ok {
				g := &t.targets[up]
				further = append(further, g.above...)
				if len(g.named) > 0 {
					u.Machine = g.named[0].Machine
				}
			}
			all = append(all, u)
		}
		next = further
	}
	return all
}

// sinceTime is img.since as a time.
func sinceTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// machineOf tells which machine an image belongs to by its directory: Nova calls that by the machine's UUID.
func machineOf(dir string) string {
	name := dir[strings.LastIndexByte(dir, '/')+1:]
	if len(name) < 36 {
		return ""
	}
	for i, c := range name[:36] {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F') {
			return ""
		}
	}
	return name[:36]
}
