// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"context"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// maxCopyScan bounds how far a copy of the superblock is looked for.
const maxCopyScan = 16 << 30

// findCopy looks for a copy of the superblock, which each allocation group begins with. b is what
// was read at the beginning, broken is what is wrong with it.
func (f *FS) findCopy(ctx context.Context, b []byte, broken error) error {
	// The broken one may still say how long a group is; otherwise mkfs.xfs made four groups.
	var guesses []int64
	if length := int64(be32(b, 84)) * int64(be32(b, 4)); length > 0 && length <= maxAGBytes {
		guesses = append(guesses, length)
	}
	for _, unit := range []int64{4096, 1024, 2048, 512, 8192, 16384, 32768, 65536} {
		guesses = append(guesses, (f.size/unit+3)/4*unit, f.size/unit/4*unit)
	}
	for _, off := range guesses {
		if f.tryCopy(off, broken) {
			return nil
		}
	}
	for off := int64(windowBytes); off < min(f.size, maxCopyScan); off += windowBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		// A part that cannot be read has no copy; if there is none elsewhere, broken says it all.
		w, err := f.read(off, min(windowBytes, f.size-off))
		for i := 0; err == nil && i+basicBlock <= len(w); i += basicBlock {
			if be32(w, i) == superMagic && f.tryCopy(off+int64(i), broken) {
				return nil
			}
		}
	}
	return broken
}

// tryCopy takes the superblock at off if it is a copy that stands in its place.
func (f *FS) tryCopy(off int64, broken error) bool {
	if off <= 0 || off >= f.size {
		return false
	}
	s, _, err := f.superAt(off)
	if err != nil || off%(s.groupBlocks*s.block) != 0 || off/(s.groupBlocks*s.block) >= s.groups {
		return false
	}
	f.super = s
	f.copied = true
	f.inProgress = false // mkfs.xfs leaves it set in the copies
	f.notes.Note(files.Problem{What: fmt.Sprintf("superblock: %v; the copy of group %d is used", broken,
		off/(s.groupBlocks*s.block)), Length: s.sector})
	return true
}

// firstInode finds the root directory where the superblock is a copy that does not name it: mkfs.xfs
// makes it as the first inode of the first group, and the two of the realtime device behind it.
func (f *FS) firstInode(ctx context.Context) error {
	if !f.copied {
		return nil
	}
	none := func(ino uint64) bool { return ino == nullInode || ino == 0 }
	if none(f.root) {
		a, err := f.agi(0)
		if err != nil {
			return err
		}
		w := treeWalk{f: f, kind: inodeTree(), fn: func(b []byte) error {
			f.root = uint64(f.parseInodeRecord(b).first)
			return errEnough
		}}
		if err := given(w.walk(ctx, a.tree)); err != nil {
			return err
		}
	}
	if none(f.special[0]) {
		f.special[0], f.special[1] = f.root+1, f.root+2
	}
	return nil
}
