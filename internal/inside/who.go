// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

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
	// maxPathBytes bounds all names of all files together; those beyond are counted.
	maxPathBytes = 16 << 20
	// maxRanges is how many pieces are told apart, over all owners.
	maxRanges = 1 << 20
)

// Who tells what ranges of a disk are for, by the index of the disk. It asks every file system that
// lies there, which may have to read all of its inodes and directories. What could not be told is
// said as such in the result; the error is that of ctx, or of a child that died.
func (g *Guest) Who(ctx context.Context, disk int, ranges []finding.Range) ([]finding.Owner, error) {
	w := &who{g: g, ctx: ctx, hurt: make(map[owner]*finding.Owner)}
	inner := make(map[int][]volume.Hit)
	asked := 0
	for _, r := range ranges {
		if end := g.Layout.Disks[disk].Size; r.End() > end {
			past := finding.Range{Offset: max(r.Offset, end)}
			past.Length = r.End() - past.Offset
			const what = "past the end of the disk"
			w.add(owner{part: -1, use: files.UseOutside, what: what}, past, what)
			if r.Length -= past.Length; r.Length == 0 {
				continue
			}
		}
		hits, err := g.jail.Within(ctx, disk, r.Offset, r.Length)
		if err != nil {
			return nil, err
		}
		if asked += len(hits); asked > maxRanges {
			return nil, fmt.Errorf("more than %d pieces of parts: ask for less at once", maxRanges)
		}
		for _, h := range hits {
			if !g.holds(h.Volume) {
				inner[h.Volume] = append(inner[h.Volume], h)
			}
		}
		w.between(disk, r, hits)
	}
	for _, part := range slices.Sorted(maps.Keys(inner)) {
		if err := w.part(part, inner[part]); err != nil {
			return nil, err
		}
	}
	return w.sorted(), nil
}

// holds tells whether a volume only holds others, which are asked themselves.
func (g *Guest) holds(part int) bool {
	switch g.Layout.Volumes[part].Kind {
	case volume.LVM2Member, volume.RAIDMember, volume.Extended:
		return true
	}
	return slices.ContainsFunc(g.Layout.Volumes, func(v *volume.Volume) bool {
		return slices.Contains(v.In, part)
	})
}

// between notes what of a range lies in no part that could be asked.
func (w *who) between(disk int, r finding.Range, hits []volume.Hit) {
	slices.SortFunc(hits, func(a, b volume.Hit) int { return cmp.Compare(a.At, b.At) })
	at := r.Offset
	gap := func(end int64) {
		if at >= end {
			return
		}
		r := finding.Range{Offset: at, Length: end - at}
		for _, h := range slices.Backward(hits) { // the innermost that holds it
			if h.At <= at && at < h.At+h.Length && w.g.holds(h.Volume) {
				w.add(owner{part: h.Volume, use: files.UseUnknown}, r, "its own tables, or space that is "+
					"free or not read there")
				return
			}
		}
		what, use := w.g.table(disk, r), files.UseOutside
		if what == "" && len(w.g.Layout.Blind) > 0 {
			what, use = "not all that tells how the disk is divided could be read", files.UseUnknown
		}
		what = cmp.Or(what, "no part of the disk")
		w.add(owner{part: -1, use: use, what: what}, r, what)
	}
	for _, h := range hits {
		if !w.g.holds(h.Volume) {
			gap(min(h.At, r.End()))
			at = max(at, h.At+h.Length)
		}
	}
	gap(r.End())
}

// owner is what ranges are put together by.
type owner struct {
	part int
	use  files.Use
	ino  files.Ino
	what string
}

type who struct {
	g      *Guest
	ctx    context.Context
	hurt   map[owner]*finding.Owner
	ranges int // in all of hurt
}

// table says which table lies at a range that belongs to no volume, "" for none.
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
	return ""
}

// add notes a range of a disk for an owner.
func (w *who) add(o owner, r finding.Range, what string) {
	h := w.hurt[o]
	if h == nil {
		if len(w.hurt) >= maxOwners {
			o = owner{part: -1, use: files.UseUnknown, what: "cut"}
			what = fmt.Sprintf("of more than %d files and others: ask for less at once", maxOwners)
			h = w.hurt[o]
		}
	}
	if h == nil {
		h = &finding.Owner{Use: string(o.use), What: what, Paths: []string{}, Codes: []string{},
			Snapshot: w.g.snapshot}
		if o.part >= 0 {
			v := w.g.Layout.Volumes[o.part]
			h.Part, h.Kind = v.Name, string(v.Kind)
		}
		w.hurt[o] = h
	}
	h.Bytes += r.Length
	if n := len(h.Ranges); n > 0 && h.Ranges[n-1].End() == r.Offset {
		h.Ranges[n-1].Length += r.Length
		return
	}
	h.Ranges = append(h.Ranges, r)
	w.ranges++
}

// part asks the file system of one volume.
func (w *who) part(part int, places []volume.Hit) error {
	v := w.g.Layout.Volumes[part]
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
	// All at once: the file system may have to go through its inodes for each time that it is asked.
	ask := make([]files.Range, len(places))
	told := make([]int64, len(places)) // how far each was told of
	for i, p := range places {
		ask[i], told[i] = files.Range{Offset: p.Offset, Length: p.Length}, p.Offset
	}
	silent := func(i int, to int64) {
		if p := places[i]; told[i] < to {
			w.add(owner{part: part, use: files.UseUnknown}, onDisk(p, told[i], to-told[i]),
				"the file system says nothing of it")
		}
		told[i] = max(told[i], to)
	}
	waits := logWaits(fs.View())
	first := 0 // the first place that is not passed
	err := fs.Owners(w.ctx, ask, func(o files.Owner) error {
		end := o.Range.Offset + o.Range.Length
		for first < len(places) && places[first].Offset+places[first].Length <= o.Range.Offset {
			first++
		}
		for i := first; i < len(places) && places[i].Offset < end; i++ {
			// What is said of other places was not asked for.
			p := places[i]
			from, to := max(o.Range.Offset, p.Offset), min(end, p.Offset+p.Length)
			if from >= to {
				continue
			}
			if w.ranges >= maxRanges {
				return fmt.Errorf("more than %d pieces: ask for less at once", maxRanges)
			}
			silent(i, from)
			told[i] = max(told[i], to)
			if o.Use == files.UseJournal && waits {
				o.What = logWaiting
			}
			if o.Ino != 0 && inos.Add(o.Ino) {
				wanted = append(wanted, o.Ino)
			}
			w.add(owner{part: part, use: o.Use, ino: o.Ino, what: o.What}, onDisk(p, from, to-from), o.What)
		}
		return nil
	})
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	for i, p := range places {
		if err == nil {
			silent(i, p.Offset+p.Length)
			continue
		}
		w.add(owner{part: part, use: files.UseUnknown, what: err.Error()}, onDisk(p, p.Offset, p.Length),
			err.Error())
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
		h.Inode = uint64(key.ino)
		if names := paths[key.ino]; names != nil {
			h.Paths, h.PathsCut = append(h.Paths, names.Paths...), names.Cut
		}
		f, err := fs.Open(w.ctx, key.ino)
		if err != nil {
			h.What = cmp.Or(h.What, fmt.Sprint(err))
			continue
		}
		h.Size, h.Mtime = f.Stat().Size, Time(f.Stat().Mtime).Format(time.RFC3339Nano)
	}
	return nil
}

// logWaiting is said of a journal that is hurt and was replayed in memory.
const logWaiting = "it is still to be replayed: changes that are in it alone may be lost"

// logWaits tells whether the journal of a file system holds what is not in its place yet.
func logWaits(v files.View) bool { return v.State == files.Recovered || v.Transactions > 0 }

// Names are the first names of an inode; Cut counts the others.
type Names struct {
	Paths []string
	Cut   int64
}

// Paths gives the names of inodes, the first maxPaths of each. What is not in the result has no name,
// or its directory could not be read; the view of fs says so then. The error is that of ctx, or
// files.ErrMany.
func Paths(ctx context.Context, fs files.FS, inos *files.Set) (map[files.Ino]*Names, error) {
	paths := make(map[files.Ino]*Names)
	left := maxPathBytes
	err := files.Walk(ctx, fs, fs.Info().Root, "/", func(f *files.Found) error {
		if !inos.Has(f.Entry.Ino) || f.Err != nil {
			return nil
		}
		n := paths[f.Entry.Ino]
		if n == nil {
			n = new(Names)
			paths[f.Entry.Ino] = n
		}
		if len(n.Paths) == maxPaths || len(f.Path) > left {
			n.Cut++
			return nil
		}
		left -= len(f.Path)
		n.Paths = append(n.Paths, f.Path)
		return nil
	})
	return paths, err
}

// Unknown counts what could not be told.
func Unknown(hurt []finding.Owner) int64 {
	n := int64(0)
	for _, h := range hurt {
		if h.Use == string(files.UseUnknown) {
			n++
		}
	}
	return n
}

// sorted gives the result: files first, by their place.
func (w *who) sorted() []finding.Owner {
	all := make([]finding.Owner, 0, len(w.hurt))
	for _, h := range w.hurt {
		all = append(all, *h)
	}
	slices.SortFunc(all, func(a, b finding.Owner) int {
		return cmp.Or(cmp.Compare(a.Ranges[0].Offset, b.Ranges[0].Offset),
			cmp.Compare(a.Use, b.Use), cmp.Compare(a.What, b.What))
	})
	return all
}

// NameImage tells what the guest ranges of findings about one image are for, in its present view and
// in those of its snapshots. The note says what the list does not hold, "" if it is whole. The
// errors are those of Open and Who.
func NameImage(ctx context.Context, path string, o Options, fs []finding.Finding) (
	owners []finding.Owner, note string, err error,
) {
	var snapshots []string
	cut := false
	var notes []string
	say := func(text string) {
		if !slices.Contains(notes, text) {
			notes = append(notes, text)
		}
	}
	fs = Hurting(fs)
	for _, f := range fs {
		if !slices.Contains(snapshots, f.Snapshot) {
			snapshots = append(snapshots, f.Snapshot)
		}
		cut = cut || f.GuestCut > 0
	}
	if cut {
		say("the findings do not list all of their ranges (--all does): more may be hurt")
	}
	for i, snapshot := range snapshots {
		if len(owners) > maxOwners {
			say(fmt.Sprintf("more than %d files are hurt: %d snapshots were not looked into", maxOwners, len(snapshots)-i))
			break
		}
		err := func() (err error) {
			g, err := Open(ctx, Name{Disk: path, Snapshot: snapshot}, o)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, g.Close()) }()
			more, err := g.name(ctx, fs)
			owners = append(owners, more...)
			if g.View().State == files.Incomplete {
				say("the guest's file system could not be read wholly: more may be hurt")
			}
			if len(g.Changed()) > 0 {
				say("a program wrote to the image meanwhile: the names may be those of another moment")
			}
			if g.Missing() > 0 {
				say("the image was cut: what lies past its end reads as zeros, and more may be hurt")
			}
			return err
		}()
		if err != nil {
			return owners, strings.Join(notes, "; "), err
		}
	}
	return owners, strings.Join(notes, "; "), nil
}

// Hurting gives the findings that stand for hurt parts of the guest's disk.
func Hurting(fs []finding.Finding) []finding.Finding {
	var some []finding.Finding
	for _, f := range fs {
		if len(f.Guest) > 0 && f.Severity.Rank() < finding.Waste.Rank() {
			some = append(some, f)
		}
	}
	return some
}

// name tells what the guest ranges of findings are for. They are those of the first disk of g, and of
// the view that g was opened for: findings about others are left out.
func (g *Guest) name(ctx context.Context, fs []finding.Finding) ([]finding.Owner, error) {
	var ranges []finding.Range
	for _, f := range fs {
		if f.Snapshot == g.snapshot {
			ranges = append(ranges, f.Guest...)
		}
	}
	owners, err := g.Who(ctx, 0, Join(ranges))
	if err != nil {
		return nil, err
	}
	for i := range owners {
		owners[i].Ranges = Join(owners[i].Ranges)
	}
	for _, f := range fs {
		if f.Snapshot != g.snapshot {
			continue
		}
		hurt := Join(f.Guest)
		for i := range owners {
			o := &owners[i]
			if !slices.Contains(o.Codes, f.Code) && meet(o.Ranges, hurt) {
				o.Codes = append(o.Codes, f.Code)
			}
		}
	}
	return owners, nil
}

// meet tells whether two lists of ranges, each in order and without overlaps, have a byte in common.
func meet(a, b []finding.Range) bool {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].End() <= b[0].Offset:
			a = a[1:]
		case b[0].End() <= a[0].Offset:
			b = b[1:]
		default:
			return true
		}
	}
	return false
}

// Join gives ranges in ascending order, those that touch as one.
func Join(ranges []finding.Range) []finding.Range {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b finding.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	var all []finding.Range
	for _, r := range sorted {
		if n := len(all); n > 0 && r.Offset <= all[n-1].End() {
			all[n-1].Length = max(all[n-1].End(), r.End()) - all[n-1].Offset
			continue
		}
		all = append(all, r)
	}
	return all
}
