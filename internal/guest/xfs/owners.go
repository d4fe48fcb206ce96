// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// maxClaims bounds what is kept of one pass over the inodes to some 60 MiB. Where there is more, the
// ranges are taken in several passes.
const maxClaims = 1 << 19

// claim is what a part of the volume is for, by somebody.
type claim struct {
	off, end int64
	file     int64 // -1 where it has no position
	ino      uint64
	what     string
	use      files.Use
	shares   bool // others may claim the same
}

// claims collects what is claimed within the ranges, in one pass.
type claims struct {
	f      *FS
	ranges []files.Range // sorted, not overlapping
	limit  int64         // nothing is kept from here on: there is too much
	most   int           // that may be kept
	crowd  bool          // more claim one place than may be kept
	list   []claim
	broken string // why something may be missing
	next   int    // of the list, when it is given
	active []claim
}

// Owners calls fn with what each part of the ranges is for, in ascending order. All inodes are read
// once, or several times if there is much in the ranges. What could not be read is noted, and makes
// parts unknown.
func (f *FS) Owners(ctx context.Context, ranges []files.Range, fn func(files.Owner) error) error {
	return f.owners(ctx, tidy(ranges), maxClaims, fn)
}

// owners is Owners, with at most so many claims in one pass.
func (f *FS) owners(ctx context.Context, ranges []files.Range, most int,
	fn func(files.Owner) error) error {
	for len(ranges) > 0 {
		c, err := f.claims(ctx, ranges, most)
		if err != nil {
			return err
		}
		for _, r := range ranges {
			end := min(r.Offset+r.Length, c.limit)
			if r.Offset >= end {
				break
			}
			if err := c.give(r.Offset, end, fn); err != nil {
				return given(err)
			}
		}
		ranges = from(ranges, c.limit)
	}
	return nil
}

// claims collects what is claimed within the ranges, in order. Where the reverse map is whole, only
// the inodes that it names are read.
func (f *FS) claims(ctx context.Context, ranges []files.Range, most int) (*claims, error) {
	c := &claims{f: f, ranges: ranges, limit: math.MaxInt64, most: most}
	inodes, err := f.mapped(ctx, ranges)
	if err == nil && inodes != nil {
		if err = c.collect(ctx, inodes); err == nil && c.limit == math.MaxInt64 {
			c.sort()
			if c.covered() {
				return c, nil
			}
		}
		c = &claims{f: f, ranges: ranges, limit: math.MaxInt64, most: most}
	}
	if err != nil && !damage(err) {
		return nil, err
	}
	if err := c.collect(ctx, nil); err != nil {
		return nil, err
	}
	c.sort()
	return c, nil
}

func (c *claims) sort() {
	slices.SortFunc(c.list, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.end, b.end),
			cmp.Compare(a.ino, b.ino), cmp.Compare(a.what, b.what))
	})
}

// covered tells whether somebody claims each part of the ranges.
func (c *claims) covered() bool {
	i, reach := 0, int64(0)
	for _, r := range c.ranges {
		reach = max(reach, r.Offset)
		for ; i < len(c.list) && c.list[i].off <= reach; i++ {
			reach = max(reach, c.list[i].end)
		}
		if reach < r.Offset+r.Length {
			return false
		}
	}
	return true
}

// maxMapped is how many inodes are read one by one; beyond, reading all in order is faster.
const maxMapped = 16 << 10

// mapped gives the inodes that the reverse map btrees name in the ranges; nil if there is
// no such map, or it names too many. Its records have 0 first block  4 blocks  8 owner (negative:
// the file system itself)  16 position.
func (f *FS) mapped(ctx context.Context, ranges []files.Range) ([]uint64, error) {
	if f.ro&roRmapbt == 0 || f.staleMap {
		return nil, nil
	}
	found := map[uint64]bool{}
	for _, r := range ranges {
		first := r.Offset / f.block
		last := min((r.Offset+r.Length-1)/f.block, f.blocks-1)
		for group := first / f.groupBlocks; group <= last/f.groupBlocks && first <= last; group++ {
			a, err := f.agf(group)
			if err != nil {
				return nil, err
			}
			low := max(first-group*f.groupBlocks, 0)
			high := min(last-group*f.groupBlocks, f.groupBlocks-1)
			w := treeWalk{f: f, kind: rmapTree(), group: group, from: uint32(low)}
			w.fn = func(b []byte) error {
				start, owner := int64(be32(b, 0)), be64(b, 8)
				if start > high || len(found) > maxMapped {
					return errEnough
				}
				if start+int64(be32(b, 4)) > low && owner>>63 == 0 {
					found[owner] = true
				}
				return nil
			}
			if err := given(w.walk(ctx, a.rmap)); err != nil {
				return nil, err
			}
			if len(found) > maxMapped {
				return nil, nil
			}
		}
	}
	return slices.AppendSeq(make([]uint64, 0, len(found)), maps.Keys(found)), nil
}

// tidy sorts ranges and joins those that overlap or touch.
func tidy(ranges []files.Range) []files.Range {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b files.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	var out []files.Range
	for _, r := range ranges {
		if r.Offset < 0 {
			r.Length, r.Offset = r.Length+r.Offset, 0
		}
		r.Length = min(r.Length, math.MaxInt64-r.Offset)
		if r.Length <= 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length >= r.Offset {
			end := max(out[n-1].Offset+out[n-1].Length, r.Offset+r.Length)
			out[n-1].Length = end - out[n-1].Offset
			continue
		}
		out = append(out, r)
	}
	return out
}

// from gives what of the ranges is behind a position.
func from(ranges []files.Range, at int64) []files.Range {
	var out []files.Range
	for _, r := range ranges {
		if end := r.Offset + r.Length; end > at {
			begin := max(r.Offset, at)
			out = append(out, files.Range{Offset: begin, Length: end - begin})
		}
	}
	return out
}

// touches tells whether anything from off to end is asked for.
func (c *claims) touches(off, end int64) bool {
	end = min(end, c.limit)
	i, found := slices.BinarySearchFunc(c.ranges, off, func(r files.Range, off int64) int {
		return cmp.Compare(r.Offset, off)
	})
	if !found && i > 0 && c.ranges[i-1].Offset+c.ranges[i-1].Length > off {
		return off < end
	}
	return i < len(c.ranges) && c.ranges[i].Offset < end
}

// add keeps a claim if it is within the ranges.
func (c *claims) add(n claim) {
	if n.off >= n.end || !c.touches(n.off, n.end) {
		return
	}
	if len(c.list) >= c.most {
		c.halve()
		if n.off >= c.limit {
			return
		}
	}
	if len(c.list) < c.most {
		c.list = append(c.list, n)
	}
}

// halve leaves the later half of what was collected to another pass.
func (c *claims) halve() {
	if c.crowd {
		return
	}
	slices.SortFunc(c.list, func(a, b claim) int { return cmp.Compare(a.off, b.off) })
	// A pass must come to an end behind the beginning of the first range.
	c.limit = min(c.limit, max(c.list[c.most/2].off, c.ranges[0].Offset+1))
	c.list = slices.DeleteFunc(c.list, func(n claim) bool { return n.off >= c.limit })
	if len(c.list) > c.most*3/4 {
		c.crowd = true
		c.broken = fmt.Sprintf("more than %d owners of one place", c.most*3/4)
		c.f.notes.Note(files.Problem{What: c.broken, Offset: c.ranges[0].Offset, Length: 1, Hides: true})
	}
}

// failed keeps why something may be missing. Errors that end everything are given back.
func (c *claims) failed(err error) error {
	if err == nil || !damage(err) {
		return err
	}
	if c.broken == "" {
		c.broken = err.Error()
	}
	return nil
}

// collect makes one pass over the groups and over some inodes; nil stands for all.
func (c *claims) collect(ctx context.Context, inodes []uint64) error {
	f := c.f
	end := f.blocks * f.block
	c.add(claim{off: end, end: math.MaxInt64, use: files.UseOutside, file: -1,
		what: "beyond the end of the file system"})
	if f.logStart != 0 {
		if off, ok := f.extentPlace(f.logStart, f.logBlocks); ok {
			c.add(claim{off: off, end: off + f.logBlocks*f.block, use: files.UseJournal, file: -1,
				what: "log"})
		}
	}
	if !c.touches(0, end) {
		return ctx.Err()
	}
	for group := range f.groupsThere() {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := f.place(group, 0)
		if !c.touches(off, off+f.groupLength(group)*f.block) {
			continue
		}
		if err := c.group(ctx, group); err != nil {
			return err
		}
	}
	for _, e := range f.freed {
		if off, ok := f.extentPlace(e.start, e.count); ok {
			c.add(claim{off: off, end: off + e.count<<f.blockLog, use: files.UseFree, file: -1,
				what: "freed by the log"})
		}
	}
	if inodes == nil {
		return c.failed(f.eachInode(ctx, func(n *inode) error { return c.forks(ctx, n) }))
	}
	slices.Sort(inodes)
	for _, ino := range inodes {
		n, err := f.inode(ctx, ino)
		if err == nil {
			err = c.forks(ctx, n)
		}
		if err := c.failed(err); err != nil {
			return err
		}
	}
	return nil
}

// forks collects what an inode has.
func (c *claims) forks(ctx context.Context, n *inode) error {
	if err := c.fork(ctx, n, n.dataFork()); err != nil {
		return err
	}
	if k, ok := n.attrFork(); ok {
		return c.fork(ctx, n, k)
	}
	return nil
}

// group collects what a group needs for itself, and what is free in it.
func (c *claims) group(ctx context.Context, group int64) error {
	f := c.f
	at := f.place(group, 0)
	meta := func(off, length int64, what string) {
		c.add(claim{off: off, end: off + length, use: files.UseMetadata, file: -1, what: what})
	}
	super := "superblock"
	if group > 0 {
		super = fmt.Sprintf("superblock copy of group %d", group)
	}
	meta(at, f.sector, super)
	for i, name := range []string{"AGF", "AGI", "AGFL"} {
		meta(at+int64(i+1)*f.sector, f.sector, fmt.Sprintf("%s of group %d", name, group))
	}
	heads := (4*f.sector + f.block - 1) / f.block * f.block
	c.add(claim{off: at + 4*f.sector, end: at + heads, use: files.UseFree, file: -1,
		what: fmt.Sprintf("unused, behind the head of group %d", group)})
	if err := c.failed(c.space(ctx, group)); err != nil {
		return err
	}
	return c.failed(c.inodeTrees(ctx, group))
}

// tree collects the blocks of a btree.
func (c *claims) tree(ctx context.Context, group int64, kind treeKind, r root,
	fn func([]byte) error) error {
	f := c.f
	w := treeWalk{f: f, kind: kind, group: group, fn: fn, block: func(block int64) error {
		off := f.place(group, block)
		c.add(claim{off: off, end: off + f.block, use: files.UseMetadata, file: -1,
			what: fmt.Sprintf("%s of group %d", kind.name, group)})
		return nil
	}}
	return c.failed(w.walk(ctx, r))
}

// space collects what is free in a group, and the btrees that say so.
func (c *claims) space(ctx context.Context, group int64) error {
	f := c.f
	a, err := f.agf(group)
	if err != nil {
		return err
	}
	blocks := func(b []byte, kind treeKind, use files.Use, what string) error {
		first, count, length := int64(be32(b, 0)&^(1<<31)), int64(be32(b, 4)), f.groupLength(group)
		off, end := f.place(group, first), f.place(group, min(first+count, length))
		c.add(claim{off: off, end: end, use: use, file: -1, what: what})
		if count > 0 && first+count <= length {
			return nil
		}
		return c.failed(f.fail(fmt.Sprintf("%s of group %d", kind.name, group), f.place(group, 0), 0,
			fmt.Errorf("has a record of %d blocks from block %d on, of %d", count, first, length)))
	}
	err = c.tree(ctx, group, byBlockTree(), a.byBlock, func(b []byte) error {
		return blocks(b, byBlockTree(), files.UseFree, "")
	})
	if err == nil {
		err = c.tree(ctx, group, bySizeTree(), a.bySize, nil)
	}
	if err == nil && f.ro&roRmapbt != 0 {
		err = c.tree(ctx, group, rmapTree(), a.rmap, nil)
	}
	if err == nil && f.ro&roReflink != 0 {
		err = c.tree(ctx, group, refcountTree(), a.refcount, func(b []byte) error {
			if be32(b, 0)>>31 == 0 {
				return nil
			}
			return blocks(b, refcountTree(), files.UseReserved,
				"set aside for copy on write, which a mount gives back")
		})
	}
	if err != nil {
		return err
	}
	list, err := f.agfl(group, a)
	for _, block := range list {
		off := f.place(group, block)
		c.add(claim{off: off, end: off + f.block, use: files.UseFree, file: -1,
			what: fmt.Sprintf("kept for the btrees of group %d", group)})
	}
	return err
}

// inodeTrees collects the inodes of a group and the btrees that list them.
func (c *claims) inodeTrees(ctx context.Context, group int64) error {
	f := c.f
	a, err := f.agi(group)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("inode chunk of group %d", group)
	base := uint64(group) << f.aginLog
	err = c.tree(ctx, group, inodeTree(), a.tree, func(b []byte) error {
		r := f.parseInodeRecord(b)
		for i := 0; i < chunk; i += 4 {
			off, ok := f.inodePlace(base | uint64(r.first) + uint64(i))
			if !r.there(i) || !ok {
				continue
			}
			n := len(c.list)
			if n > 0 && c.list[n-1].end == off && c.list[n-1].what == what {
				c.list[n-1].end += 4 * f.super.inode
				continue
			}
			c.add(claim{off: off, end: off + 4*f.super.inode, use: files.UseMetadata, file: -1,
				what: what})
		}
		return nil
	})
	if err == nil && f.ro&roFinobt != 0 {
		err = c.tree(ctx, group, freeInodeTree(), a.fino, nil)
	}
	return err
}

// fork collects what a fork of an inode has.
func (c *claims) fork(ctx context.Context, n *inode, k fork) error {
	f := c.f
	if k.format != formatExtents && k.format != formatBtree {
		return nil
	}
	base := claim{use: files.UseInode, ino: n.ino, file: -1, what: "extended attributes"}
	switch {
	case f.isSpecial(n.ino):
		base.use, base.ino, base.what = files.UseMetadata, 0, "quotas, or bitmap of the realtime device"
	case !k.data:
	case n.stat.IsDir():
		base.what = "directory"
	case n.stat.Mode&files.TypeMask == files.TypeLink:
		base.what = "target of the symbolic link"
	default:
		base.use, base.what = files.UseData, ""
		base.shares = n.flags2&flag2Reflink != 0
	}
	w := forkWalk{n: n, fork: k}
	w.block = func(block uint64) error {
		off, _ := f.extentPlace(block, 1)
		c.add(claim{off: off, end: off + f.block, use: files.UseInode, ino: n.ino, file: -1,
			what: "extents of the " + k.name + " fork"})
		return nil
	}
	w.fn = func(e *extent) error {
		if n.onRealtime(k) {
			return nil
		}
		off, _ := f.extentPlace(e.start, e.count)
		one := base
		one.off, one.end = off, off+e.count<<f.blockLog
		if base.use == files.UseData {
			c.content(n, e, one)
			return nil
		}
		c.add(one)
		return nil
	}
	return c.failed(w.walk(ctx))
}

// content collects an extent of a regular file, in what is content and what is only reserved.
func (c *claims) content(n *inode, e *extent, one claim) {
	f := c.f
	at, length, ok := f.bytes(e)
	one.file = at
	size := min(n.stat.Size, math.MaxInt64-f.block)
	written := min(length, max(0, (size+f.block-1)&^(f.block-1)-at))
	if e.unwritten || !ok {
		written = 0
	}
	rest := one
	one.end = one.off + written
	c.add(one)
	rest.off += written
	rest.file += written
	rest.use, rest.what = files.UseReserved, "never written"
	if !e.unwritten {
		rest.what = "beyond the end of the file"
	}
	c.add(rest)
}

// give hands out what was collected from off to end, which is behind what was given before.
func (c *claims) give(off, end int64, fn func(files.Owner) error) error {
	for off < end {
		for ; c.next < len(c.list) && c.list[c.next].off <= off; c.next++ {
			c.active = append(c.active, c.list[c.next])
		}
		c.active = slices.DeleteFunc(c.active, func(n claim) bool { return n.end <= off })
		to := end
		for _, n := range c.active {
			to = min(to, n.end)
		}
		if c.next < len(c.list) {
			to = min(to, c.list[c.next].off)
		}
		if err := c.part(off, to, fn); err != nil {
			return err
		}
		off = to
	}
	return nil
}

// part hands out one part, as often as it has owners.
func (c *claims) part(off, end int64, fn func(files.Owner) error) error {
	r := files.Range{Offset: off, Length: end - off}
	give := func(o files.Owner) error {
		if err := fn(o); err != nil {
			return &halt{err}
		}
		return nil
	}
	if len(c.active) == 0 {
		what := "nothing says what it is for"
		if c.broken != "" {
			what = "something could not be read: " + c.broken
		} else {
			c.f.notes.Note(files.Problem{What: what, Offset: off, Length: r.Length})
		}
		return give(files.Owner{Range: r, Use: files.UseUnknown, File: -1, What: what})
	}
	for i, n := range c.active {
		if i > 0 && !(n.shares && c.active[i-1].shares) {
			c.f.fail(fmt.Sprintf("%d bytes", r.Length), off, n.ino, errors.New("are claimed twice: "+
				c.active[i-1].name()+" and "+n.name()))
		}
		o := files.Owner{Range: r, Use: n.use, Ino: files.Ino(n.ino), File: n.file, What: n.what}
		if n.file >= 0 {
			o.File += off - n.off
		}
		if err := give(o); err != nil {
			return err
		}
	}
	return nil
}

// name says who claims.
func (n *claim) name() string {
	switch {
	case n.use == files.UseFree:
		return "free space"
	case n.ino != 0:
		return fmt.Sprintf("inode %d", n.ino)
	}
	return n.what
}
