// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// The bounds of naming files.
const (
	// maxOwners is how many different owners of ranges are listed.
	maxOwners = 10_000
	// maxPaths is how many names of one file are listed; a file may have thousands.
	maxPaths = 16
)

// Hurt is what a part of the guest's disk is for: a file, or something else of a file system.
type Hurt struct {
	// Part is the volume's name, "" where the range is in none: before, between or behind them.
	Part string
	Kind volume.Kind
	// Ranges are the parts of the disk, in bytes, in ascending order; Bytes is their sum.
	Ranges []finding.Range
	Bytes  int64
	// Use and What say what it is; see files.Owner.
	Use  files.Use
	What string
	// Stat is of the file, nil where no file is hurt. Paths are its names, PathsCut how many more it
	// has; none if no directory has it.
	Stat     *files.Stat
	Paths    []string
	PathsCut int
}

// Who tells what ranges of a disk are for, by the index of the disk. It asks every file system that
// lies there, which may have to read all of its inodes and directories. What could not be told is
// said as such in the result; the error is that of ctx, or of a child that died.
func (g *Guest) Who(ctx context.Context, disk int, ranges []finding.Range) ([]Hurt, error) {
	w := &who{g: g, ctx: ctx, hurt: make(map[owner]*Hurt)}
	inner := make(map[int][]volume.Hit)
	for _, r := range ranges {
		hits, err := g.jail.Within(ctx, disk, r.Offset, r.Length)
		if err != nil {
			return nil, err
		}
		for _, h := range hits {
			inner[h.Volume] = append(inner[h.Volume], h)
		}
		if len(hits) == 0 {
			w.add(owner{part: -1, use: files.UseOutside}, r, g.table(disk, r))
		}
	}
	for part, places := range inner {
		if err := w.part(part, places); err != nil {
			return nil, err
		}
	}
	return w.sorted(), nil
}

// owner is what ranges are put together by.
type owner struct {
	part int
	use  files.Use
	ino  files.Ino
	what string
}

type who struct {
	g    *Guest
	ctx  context.Context
	hurt map[owner]*Hurt
}

// table says what lies at a range that belongs to no volume.
func (g *Guest) table(disk int, r finding.Range) string {
	for _, t := range g.Layout.Tables {
		if t.Disk != disk || t.In >= 0 {
			continue
		}
		for _, n := range t.Ranges {
			if n.Offset < r.End() && r.Offset < n.End() {
				return n.What
			}
		}
	}
	return "no part of the disk"
}

// add notes a range of a disk for an owner.
func (w *who) add(o owner, r finding.Range, what string) {
	h := w.hurt[o]
	if h == nil {
		if len(w.hurt) >= maxOwners {
			return
		}
		h = &Hurt{Use: o.use, What: what}
		if o.part >= 0 {
			v := w.g.Layout.Volumes[o.part]
			h.Part, h.Kind = v.Name, v.Kind
		}
		w.hurt[o] = h
	}
	h.Ranges = append(h.Ranges, r)
	h.Bytes += r.Length
}

// holds are volumes that only hold others, which are asked themselves.
func holds(k volume.Kind) bool {
	return k == volume.LVM2Member || k == volume.RAIDMember || k == volume.Extended
}

// part asks the file system of one volume.
func (w *who) part(part int, places []volume.Hit) error {
	v := w.g.Layout.Volumes[part]
	if holds(v.Kind) {
		return nil
	}
	slices.SortFunc(places, func(a, b volume.Hit) int { return cmp.Compare(a.Offset, b.Offset) })
	if !readable(v) {
		for _, p := range places {
			w.add(owner{part: part, use: files.UseUnknown}, onDisk(p, p.Offset, p.Length),
				cmp.Or(v.NotExamined, v.Note, string(v.Kind)))
		}
		return nil
	}
	fs, err := w.g.FS(w.ctx, part)
	if err != nil {
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		for _, p := range places {
			w.add(owner{part: part, use: files.UseUnknown}, onDisk(p, p.Offset, p.Length), err.Error())
		}
		return nil
	}
	return w.files(fs, part, places)
}

// onDisk gives where a part of a hit lies on the disk.
func onDisk(h volume.Hit, off, length int64) finding.Range {
	return finding.Range{Offset: h.At + off - h.Offset, Length: length}
}

// files asks one file system whose the places are, and for the names of the files.
func (w *who) files(fs files.FS, part int, places []volume.Hit) error {
	var inos files.Set
	var wanted []files.Ino
	for _, p := range places {
		ask := []files.Range{{Offset: p.Offset, Length: p.Length}}
		err := fs.Owners(w.ctx, ask, func(o files.Owner) error {
			if o.Ino != 0 && inos.Add(o.Ino) {
				wanted = append(wanted, o.Ino)
			}
			key := owner{part: part, use: o.Use, ino: o.Ino, what: o.What}
			w.add(key, onDisk(p, o.Range.Offset, o.Range.Length), o.What)
			return nil
		})
		if err != nil {
			if w.ctx.Err() != nil {
				return w.ctx.Err()
			}
			w.add(owner{part: part, use: files.UseUnknown, what: err.Error()},
				onDisk(p, p.Offset, p.Length), err.Error())
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	paths, err := Paths(w.ctx, fs, &inos)
	if err != nil {
		return err
	}
	for key, h := range w.hurt {
		if key.part != part || key.ino == 0 {
			continue
		}
		h.Paths = paths[key.ino]
		if len(h.Paths) > maxPaths {
			h.PathsCut = len(h.Paths) - maxPaths
			h.Paths = h.Paths[:maxPaths]
		}
		f, err := fs.Open(w.ctx, key.ino)
		if err != nil {
			h.What = cmp.Or(h.What, fmt.Sprint(err))
			continue
		}
		h.Stat = f.Stat()
	}
	return nil
}

// Paths gives the names of inodes. What is not in the result has no name, or its directory could not
// be read; the view of fs says so then. The error is that of ctx.
func Paths(ctx context.Context, fs files.FS, inos *files.Set) (map[files.Ino][]string, error) {
	paths := make(map[files.Ino][]string)
	err := files.Walk(ctx, fs, fs.Info().Root, "/", func(f *files.Found) error {
		if inos.Has(f.Entry.Ino) && f.Err == nil {
			paths[f.Entry.Ino] = append(paths[f.Entry.Ino], f.Path)
		}
		return nil
	})
	return paths, err
}

// Unknown counts what could not be told.
func Unknown(hurt []Hurt) int64 {
	n := int64(0)
	for _, h := range hurt {
		if h.Use == files.UseUnknown {
			n++
		}
	}
	return n
}

// sorted gives the result: files first, by their place.
func (w *who) sorted() []Hurt {
	all := make([]Hurt, 0, len(w.hurt))
	for _, h := range w.hurt {
		all = append(all, *h)
	}
	slices.SortFunc(all, func(a, b Hurt) int {
		return cmp.Or(cmp.Compare(a.Ranges[0].Offset, b.Ranges[0].Offset),
			cmp.Compare(a.Use, b.Use), cmp.Compare(a.What, b.What))
	})
	return all
}
