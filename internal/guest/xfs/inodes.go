// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"context"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Inodes calls fn for each inode in use, those that no directory names included, but those of the
// quotas and of the realtime device.
func (f *FS) Inodes(ctx context.Context, fn func(*files.Stat) error) error {
	return given(f.eachInode(ctx, func(n *inode) error {
		if f.isSpecial(n.ino) {
			return nil
		}
		if err := fn(&n.stat); err != nil {
			return &halt{err}
		}
		return nil
	}))
}

// eachInode reads all inodes in use, in order. It reads on after damage, and ends with the first
// error in that case.
func (f *FS) eachInode(ctx context.Context, fn func(*inode) error) error {
	var first error
	there := f.groupsThere()
	for group := range there {
		err := f.groupInodes(ctx, group, fn)
		if err != nil && !damage(err) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	if there < f.groups && first == nil {
		first = f.fail(fmt.Sprintf("inodes of group %d and those behind it", there), f.size, 0, errCut)
	}
	return first
}

// groupsThere is how many groups begin within the volume, which may be cut off.
func (f *FS) groupsThere() int64 {
	length := f.groupBlocks * f.block
	return min(f.groups, (f.size+length-1)/length)
}

// groupInodes reads the inodes of one group.
func (f *FS) groupInodes(ctx context.Context, group int64, fn func(*inode) error) error {
	a, err := f.agi(group)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("inode btree of group %d", group)
	var first error
	var inodes, free, last int64
	w := treeWalk{f: f, kind: inodeTree(), group: group}
	w.fn = func(b []byte) error {
		r := f.parseInodeRecord(b)
		err := r.check()
		if int64(r.first) < last {
			err = fmt.Errorf("record of inode %d begins before the end of the one before", r.first)
		}
		last = int64(r.first) + chunk
		inodes, free = inodes+int64(r.count), free+int64(r.free)
		if err != nil {
			err = f.fail(what, f.place(group, 0), 0, err)
		} else {
			err = f.chunkInodes(ctx, group, &r, fn)
		}
		if err != nil && !damage(err) {
			return err
		}
		if first == nil {
			first = err
		}
		return nil
	}
	if err := w.walk(ctx, a.tree); err != nil {
		return err
	}
	if first == nil && (inodes != a.inodes || free != a.free) {
		first = f.fail(what, f.place(group, 0)+2*f.sector, 0, fmt.Errorf("has %d inodes with %d free, "+
			"the AGI says %d and %d", inodes, free, a.inodes, a.free))
	}
	return first
}

// chunkInodes reads the inodes of one record.
func (f *FS) chunkInodes(ctx context.Context, group int64, r *inodeRecord,
	fn func(*inode) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var first error
	base := uint64(group)<<f.aginLog | uint64(r.first)
	for i := range chunk {
		if !r.inUse(i) {
			continue
		}
		ino := base + uint64(i)
		err := f.oneInode(ino, fn)
		if err != nil && !damage(err) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// oneInode reads an inode that is in use by its record.
func (f *FS) oneInode(ino uint64, fn func(*inode) error) error {
	what := fmt.Sprintf("inode %d", ino)
	off, ok := f.inodePlace(ino)
	if !ok {
		return f.fail(what, -1, ino, fmt.Errorf("is beyond the end of the file system"))
	}
	b, err := f.read(off, f.super.inode)
	if err != nil {
		return f.fail(what, off, ino, err)
	}
	n, err := f.parseInode(b, ino, off)
	if err != nil {
		return err
	}
	return fn(n)
}
