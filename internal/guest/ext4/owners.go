// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// maxClaims bounds the memory of one pass over the inodes, some 40 MiB. Where the ranges that are
// asked for have more, they are halved and looked at one after the other.
const maxClaims = 1 << 19

// claim is a part of the volume and what it is for.
type claim struct {
	offset, length int64 // bytes
	file           int64 // position in the file, -1 for none
	what           string
	number         int64 // of the group that what is for, -1 for none
	ino            files.Ino
	use            files.Use
}

// owner gives a part of the claim as others see it.
func (c *claim) owner(from, to int64) files.Owner {
	o := files.Owner{Range: files.Range{Offset: from, Length: to - from}, Use: c.use, Ino: c.ino,
		File: c.file, What: c.what}
	if c.file >= 0 {
		o.File += from - c.offset
	}
	if c.number >= 0 {
		o.What = fmt.Sprintf(c.what, c.number)
	}
	return o
}

// ownerSearch finds what ranges are for.
type ownerSearch struct {
	fs     *FS
	ctx    context.Context
	ranges []files.Range // ascending, apart from one another
	wide   []files.Range // the same, rounded to clusters
	claims []claim
	limit  int  // of claims
	over   bool // there were more
	damage error

	group     int64 // whose block bitmap is at hand, +1
	bitmap    []byte
	bitmapErr error
	// free has, by group, the blocks that inodes have and that are free in the block bitmap.
	free map[int64]*freeInUse
}

// freeInUse counts blocks that are in use and free at once.
type freeInUse struct {
	first, count int64
	ino          files.Ino // that has the first one
}

// Owners calls fn with what each part of the ranges is for.
func (fs *FS) Owners(ctx context.Context, ranges []files.Range,
	fn func(files.Owner) error) error {
	tidy, err := tidyRanges(ranges)
	if err != nil {
		return err
	}
	if len(tidy) == 0 {
		return nil
	}
	damage, err := fs.owners(ctx, tidy, maxClaims, fn)
	if err != nil {
		return err
	}
	return damage
}

// tidyRanges sorts ranges and joins those that touch.
func tidyRanges(ranges []files.Range) ([]files.Range, error) {
	var out []files.Range
	for _, r := range ranges {
		switch {
		case r.Offset < 0 || r.Length < 0 || r.Offset > math.MaxInt64-r.Length:
			return nil, &files.Error{What: "owners", Offset: r.Offset, Err: errors.New("no such range")}
		case r.Length > 0:
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b files.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	n := 0
	for _, r := range out {
		if n > 0 && r.Offset <= out[n-1].Offset+out[n-1].Length {
			last := &out[n-1]
			last.Length = max(last.Length, r.Offset+r.Length-last.Offset)
			continue
		}
		out[n] = r
		n++
	}
	return out[:n], nil
}

// owners looks ranges up in one pass over the inodes, or in two halves. The first error is what was
// damaged on the way, the second one ends the search.
func (fs *FS) owners(ctx context.Context, ranges []files.Range, limit int,
	fn func(files.Owner) error) (damage, err error) {
	w := &ownerSearch{fs: fs, ctx: ctx, ranges: ranges, limit: limit,
		free: make(map[int64]*freeInUse)}
	unit := fs.super.blockBytes * fs.super.clusterBlocks
	total := int64(0)
	for _, r := range ranges {
		total += r.Length
		end := r.Offset + r.Length
		wide := files.Range{Offset: r.Offset - r.Offset%unit}
		wide.Length = end + (unit-end%unit)%unit - wide.Offset
		w.wide = append(w.wide, wide)
	}
	w.metadata()
	w.sort()
	need := false
	if err := w.emit(func(o files.Owner) error {
		need = need || o.Use == files.UseUnknown
		return nil
	}); err != nil {
		return w.damage, err
	}
	if need {
		if err := fs.eachInode(ctx, w.inode); errors.Is(err, errEnough) {
			left, right := halve(ranges, total)
			first, err := fs.owners(ctx, left, limit, fn)
			if err != nil {
				return first, err
			}
			second, err := fs.owners(ctx, right, limit, fn)
			return firstOf(first, second), err
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		} else if w.damage == nil {
			w.damage = err
		}
		w.sort()
	}
	if err := w.emit(fn); err != nil {
		return w.damage, err
	}
	for _, number := range slices.Sorted(maps.Keys(w.free)) {
		f := w.free[number]
		fs.notes.Note(files.Problem{What: fmt.Sprintf("group %d: %d blocks that inodes have are free in its "+
			"block bitmap, the first is %d of inode %d", number, f.count, f.first, f.ino),
			Offset: f.first * fs.super.blockBytes, Ino: f.ino, Hides: true})
	}
	return w.damage, nil
}

// holdFree holds a part that an inode has against the block bitmap: a map that was changed leads to
// blocks that are free. What cannot be read of the bitmap, was noted.
func (w *ownerSearch) holdFree(ino files.Ino, from, to int64) error {
	s := w.fs.super
	for pos := from - from%s.blockBytes; pos < to; pos += s.blockBytes {
		block := pos / s.blockBytes
		number := (block - s.firstData) / s.perGroup
		if err := w.readBitmap(number); err != nil {
			return err
		}
		if w.bitmapErr != nil || bit(w.bitmap, (block-s.firstBlock(number))/s.clusterBlocks) {
			continue
		}
		if w.free[number] == nil {
			w.free[number] = &freeInUse{first: block, ino: ino}
		}
		w.free[number].count++
	}
	return nil
}

// readBitmap has the block bitmap of a group at hand, or the reason why it cannot be read. The error
// is that of ctx.
func (w *ownerSearch) readBitmap(number int64) error {
	if w.group != number+1 {
		w.bitmap, w.bitmapErr = w.fs.blockBitmap(w.ctx, number)
		w.group = number + 1
	}
	return w.ctx.Err()
}

// firstOf gives the first error that is one.
func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// halve cuts ranges into two of about the same length.
func halve(ranges []files.Range, total int64) (left, right []files.Range) {
	for _, r := range ranges {
		half := total/2 - sumOf(left)
		switch {
		case half >= r.Length:
			left = append(left, r)
		case half <= 0:
			right = append(right, r)
		default:
			left = append(left, files.Range{Offset: r.Offset, Length: half})
			right = append(right, files.Range{Offset: r.Offset + half, Length: r.Length - half})
		}
	}
	return left, right
}

func sumOf(ranges []files.Range) int64 {
	n := int64(0)
	for _, r := range ranges {
		n += r.Length
	}
	return n
}

// sort puts the claims in ascending order.
func (w *ownerSearch) sort() {
	slices.SortFunc(w.claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.ino, b.ino))
	})
}

// add adds the parts of a claim that were asked for.
func (w *ownerSearch) add(c claim) error {
	end := c.offset + c.length
	i := sort.Search(len(w.wide), func(i int) bool {
		return w.wide[i].Offset+w.wide[i].Length > c.offset
	})
	for ; i < len(w.wide) && w.wide[i].Offset < end; i++ {
		part := c
		part.offset = max(c.offset, w.wide[i].Offset)
		part.length = min(end, w.wide[i].Offset+w.wide[i].Length) - part.offset
		if c.file >= 0 {
			part.file += part.offset - c.offset
		}
		if len(w.claims) >= w.limit {
			if sumOf(w.wide) > w.fs.super.blockBytes*w.fs.super.clusterBlocks {
				w.over = true
				return errEnough
			}
			return nil // many claim one cluster: enough is known of it
		}
		w.claims = append(w.claims, part)
	}
	return nil
}

// blocks adds blocks of metadata.
func (w *ownerSearch) blocks(block, count int64, what string, group int64) {
	size := w.fs.super.blockBytes
	// Metadata of more parts than maxClaims is not there: each has its place in maxGroups.
	_ = w.add(claim{offset: block * size, length: count * size, use: files.UseMetadata, what: what,
		number: group, file: -1})
}

// metadata adds what belongs to the file system as a whole.
func (w *ownerSearch) metadata() {
	s := w.fs.super
	if s.firstData > 0 {
		w.blocks(0, s.firstData, "boot block", -1)
	} else if s.superOf(0) > 0 {
		w.blocks(0, s.superOf(0), "boot block", -1)
	}
	w.blocks(s.superOf(0), 1, "superblock", -1)
	flat := s.descBlocks()
	if s.incompat&incompatMetaGroups != 0 {
		flat = min(flat, s.metaFrom)
		for n := flat; n < s.descBlocks(); n++ {
			for _, place := range s.descPlaces(n) {
				w.blocks(place, 1, "group descriptors from group %d on", n*s.perDescBlock())
			}
		}
	}
	for number := range s.groups {
		if s.hasSuper(number) {
			if number > 0 {
				w.blocks(s.superOf(number), 1, "superblock, copy of group %d", number)
			}
			w.blocks(s.superOf(number)+1, flat, "group descriptors in group %d", number)
		}
		if number < int64(len(w.fs.groups)) && w.fs.groups[number].state != groupLost {
			g := &w.fs.groups[number]
			w.blocks(g.blockBitmap, 1, "block bitmap of group %d", number)
			w.blocks(g.inodeBitmap, 1, "inode bitmap of group %d", number)
			w.blocks(g.table, s.tableBlocks(), "inode table of group %d", number)
		}
	}
	if mmp := s.mmpBlock(); mmp > 0 {
		w.blocks(mmp, 1, "multiple mount protection", -1)
	}
}

// inode adds what an inode has.
func (w *ownerSearch) inode(n *inode) error {
	size := n.fs.super.blockBytes
	base := claim{use: files.UseData, ino: n.stat.Ino, number: -1, length: size}
	tree := base
	tree.use, tree.what, tree.file = files.UseInode, "map", -1
	n.use(&base, &tree)
	walk := &mapWalk{ctx: w.ctx, n: n, to: maxLogical, each: func(r run) error {
		c := base
		c.offset, c.length, c.file = r.physical*size, r.count*size, r.logical*size
		if c.use != files.UseData {
			return w.add(c)
		}
		if r.unwritten {
			c.use = files.UseReserved
			return w.add(c)
		}
		// What lies beyond the end of the file is reserved.
		within := (n.stat.Size + size - 1) / size * size
		if inside := min(max(within-c.file, 0), c.length); inside < c.length {
			rest := c
			rest.use = files.UseReserved
			rest.offset, rest.file, rest.length = c.offset+inside, c.file+inside, c.length-inside
			if err := w.add(rest); err != nil {
				return err
			}
			c.length = inside
		}
		if c.length == 0 {
			return nil
		}
		return w.add(c)
	}, tree: func(block int64) error {
		c := tree
		c.offset = block * size
		return w.add(c)
	}}
	err := walk.walk()
	if w.over {
		return errEnough
	}
	if err != nil && w.damage == nil {
		w.damage = err
	}
	if block := n.attrBlock(); n.fs.super.hasBlock(block, 1) {
		c := tree
		c.use, c.what, c.offset = files.UseInode, attrBlockUse, block*size
		return w.add(c)
	}
	return w.ctx.Err()
}

// use says what the content and the map of an inode are for, where that is not data.
func (n *inode) use(content, tree *claim) {
	own := func(use files.Use, what string) {
		content.use, content.what = use, what
		tree.use, tree.what = use, what
	}
	ino, s := n.stat.Ino, n.fs.super
	switch {
	case ino == s.journal():
		own(files.UseJournal, "journal")
	case ino == badIno:
		own(files.UseMetadata, "bad blocks")
	case ino == resizeIno:
		own(files.UseMetadata, "reserved group descriptors")
	case n.fs.own(ino) && ino == files.Ino(le32(s.raw, 640)):
		own(files.UseMetadata, "orphan file")
	case n.fs.own(ino):
		own(files.UseMetadata, "quota file")
	case n.flags&flagEAInode != 0:
		own(files.UseInode, "value of an extended attribute")
	case n.typ() == files.TypeDir:
		content.use, content.what = files.UseInode, "directory"
	}
}

// emit calls fn for all parts of the ranges.
func (w *ownerSearch) emit(fn func(files.Owner) error) error {
	var active []*claim
	next := 0
	for _, r := range w.ranges {
		for pos, end := r.Offset, r.Offset+r.Length; pos < end; {
			for ; next < len(w.claims) && w.claims[next].offset <= pos; next++ {
				active = append(active, &w.claims[next])
			}
			active = slices.DeleteFunc(active, func(c *claim) bool { return c.offset+c.length <= pos })
			until := end
			for _, c := range active {
				until = min(until, c.offset+c.length)
			}
			if next < len(w.claims) {
				until = min(until, w.claims[next].offset)
			}
			if err := w.part(active, pos, until, fn); err != nil {
				return err
			}
			pos = until
		}
	}
	return nil
}

// part calls fn for a part that the same claims are for.
func (w *ownerSearch) part(active []*claim, from, to int64, fn func(files.Owner) error) error {
	if len(active) == 0 {
		return w.unclaimed(from, to, fn)
	}
	for _, c := range active {
		if !w.may(active[0], c) {
			w.fs.notes.Note(files.Problem{What: fmt.Sprintf("claimed by %s and by %s",
				active[0].claimant(), c.claimant()), Offset: from, Length: to - from, Ino: c.ino,
				Hides: true})
		}
		if err := fn(c.owner(from, to)); err != nil {
			return err
		}
	}
	for _, c := range active {
		if c.ino != 0 {
			return w.holdFree(c.ino, from, to)
		}
	}
	return nil
}

// may tells whether two may have the same part.
func (w *ownerSearch) may(a, b *claim) bool {
	switch {
	case a == b:
		return true
	case a.what == attrBlockUse && b.what == attrBlockUse:
		return true // files with the same attributes share their block
	}
	return a.use == files.UseData && b.use == a.use && w.fs.super.ro&roShared != 0
}

// attrBlockUse is what a block of extended attributes is for.
const attrBlockUse = "extended attributes"

// claimant names who has a claim.
func (c *claim) claimant() string {
	if c.ino != 0 {
		return fmt.Sprintf("inode %d", c.ino)
	}
	o := c.owner(0, 0)
	return o.What
}

// unclaimed calls fn for a part that no inode has: free, by the block bitmap, or not.
func (w *ownerSearch) unclaimed(from, to int64, fn func(files.Owner) error) error {
	var last claim
	for pos := from; pos < to; {
		c, until, err := w.bitmapSays(pos, to)
		if err != nil {
			return err
		}
		c.file, c.number, c.offset = -1, -1, pos
		if pos > from && (c.use != last.use || c.what != last.what || c.ino != last.ino) {
			if err := fn(last.owner(last.offset, pos)); err != nil {
				return err
			}
			last = c
		} else if pos == from {
			last = c
		}
		pos = until
	}
	return fn(last.owner(last.offset, to))
}

// bitmapSays tells what the block bitmap knows of the part from pos on, and how far that holds.
func (w *ownerSearch) bitmapSays(pos, to int64) (claim, int64, error) {
	s := w.fs.super
	base, end := s.firstData*s.blockBytes, s.blocks*s.blockBytes
	if pos >= end || pos < base {
		return claim{use: files.UseOutside}, to, nil
	}
	number := (pos - base) / (s.perGroup * s.blockBytes)
	groupAt := s.firstBlock(number) * s.blockBytes
	until := min(to, end, groupAt+s.perGroup*s.blockBytes)
	if err := w.readBitmap(number); err != nil {
		return claim{}, 0, err
	}
	if w.bitmapErr != nil {
		if w.damage == nil {
			w.damage = w.bitmapErr
		}
		return claim{use: files.UseUnknown, what: "the block bitmap of its group could not be read"},
			until, nil
	}
	cluster := s.blockBytes * s.clusterBlocks
	used := bit(w.bitmap, (pos-groupAt)/cluster)
	if used && s.clusterBlocks > 1 {
		start := pos - (pos-groupAt)%cluster
		return w.restOfCluster(start, start+cluster), min(until, start+cluster), nil
	}
	at := pos
	for at < until && bit(w.bitmap, (at-groupAt)/cluster) == used {
		at += cluster - (at-groupAt)%cluster
	}
	if used {
		return claim{use: files.UseUnknown, what: unclaimedUse}, min(until, at), nil
	}
	return claim{use: files.UseFree}, min(until, at), nil
}

const unclaimedUse = "in use, and no inode has it"

// restOfCluster tells who has a cluster by who has a part of it.
func (w *ownerSearch) restOfCluster(from, to int64) claim {
	i := sort.Search(len(w.claims), func(i int) bool { return w.claims[i].offset >= from })
	for _, k := range [...]int{i, i - 1} {
		if k < 0 || k >= len(w.claims) {
			continue
		}
		if c := &w.claims[k]; c.offset < to && c.offset+c.length > from {
			if c.use == files.UseMetadata || c.use == files.UseJournal {
				return claim{use: c.use, ino: c.ino, what: "rest of a cluster"}
			}
			return claim{use: files.UseReserved, ino: c.ino, what: "rest of a cluster"}
		}
	}
	return claim{use: files.UseUnknown, what: unclaimedUse}
}
