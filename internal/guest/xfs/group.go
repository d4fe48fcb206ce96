// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// An allocation group begins with four sectors, by "Allocation Groups":
//
//	1 superblock copy | 2 AGF: free space | 3 AGI: inodes | 4 AGFL: blocks kept for the btrees
//
//	AGF   0 "XAGF"  4 version 1  8 group  12 blocks  16 roots: free by block, by size, rmap
//	     28 levels of the same  40 first, 44 last, 48 count of AGFL  52 free blocks  60 btree blocks
//	     64 UUID  80 rmap blocks  84 refcount blocks  88 refcount root  92 its levels  208 LSN  216 CRC
//	AGI   0 "XAGI"  4 version 1  8 group  12 blocks  16 inodes  20 root  24 levels  28 free inodes
//	     40 lists of unlinked inodes (64)  296 UUID  312 CRC  320 LSN  328 free root  332 its levels
//	AGFL  version 5: 0 "XAFL"  4 group  8 UUID  24 LSN  32 CRC  36 blocks;  version 4: blocks alone
const (
	agfMagic      = 0x58414746
	agiMagic      = 0x58414749
	agflMagic     = 0x5841464c
	nullBlock     = math.MaxUint32 // of a group, and "no inode" in its lists
	unlinkedLists = 64
	maxLevels     = 12 // of a btree; the kernel's own bound for the largest group is 9
)

func agfForm() form  { return form{216, 0, 208, 64, 8, 0} }
func agiForm() form  { return form{312, 0, 320, 296, 8, 0} }
func agflForm() form { return form{32, 0, 24, 8, 4, 0} }

// root is where a btree begins.
type root struct {
	block  int64
	levels int
}

// agf is what the second sector of a group says.
type agf struct {
	byBlock, bySize, rmap, refcount   root
	first, last, count                int64 // in AGFL
	free, btree, rmapCount, refcount2 int64
}

// agi is what the third sector of a group says.
type agi struct {
	inodes, free int64
	tree, fino   root
	unlinked     [unlinkedLists]uint32
}

// header reads one of the sectors at the beginning of a group, and verifies it.
func (f *FS) header(group, sector int64, magic uint32, name string, k form) ([]byte, error) {
	off := f.place(group, 0) + sector*f.sector
	what := fmt.Sprintf("%s of group %d", name, group)
	b, err := f.read(off, f.sector)
	if err != nil {
		return nil, f.fail(what, off, 0, err)
	}
	if err := f.headerError(b, group, magic, k); err != nil {
		return nil, f.fail(what, off, 0, err)
	}
	return b, nil
}

func (f *FS) headerError(b []byte, group int64, magic uint32, k form) error {
	if be32(b, 0) != magic {
		return fmt.Errorf("begins with 0x%x, want 0x%x", be32(b, 0), magic)
	}
	if f.v5 {
		if got, want := binary.LittleEndian.Uint32(b[k.crc:]), checksum(b, k.crc); got != want {
			return fmt.Errorf("checksum is 0x%x, want 0x%x", got, want)
		}
		if !bytes.Equal(b[k.uuid:k.uuid+16], f.meta[:]) {
			return errors.New("belongs to another file system by its UUID")
		}
	}
	if got := be32(b, 4); magic != agflMagic && got != 1 {
		return fmt.Errorf("has version %d", got)
	}
	if got := int64(be32(b, k.owner)); got != group {
		return fmt.Errorf("belongs to group %d", got)
	}
	if got, want := int64(be32(b, 12)), f.groupLength(group); magic != agflMagic && got != want {
		return fmt.Errorf("says that the group has %d blocks, want %d", got, want)
	}
	return nil
}

// agf reads what a group says about its free space.
func (f *FS) agf(group int64) (*agf, error) {
	b, err := f.header(group, 1, agfMagic, "AGF", agfForm())
	if err != nil {
		return nil, err
	}
	at := func(block, levels int) root { return root{int64(be32(b, block)), int(be32(b, levels))} }
	a := &agf{
		byBlock: at(16, 28), bySize: at(20, 32),
		first: int64(be32(b, 40)), last: int64(be32(b, 44)), count: int64(be32(b, 48)),
		free: int64(be32(b, 52)), btree: int64(be32(b, 60)),
	}
	if f.ro&roRmapbt != 0 {
		a.rmap, a.rmapCount = at(24, 36), int64(be32(b, 80))
	}
	if f.ro&roReflink != 0 {
		a.refcount, a.refcount2 = at(88, 92), int64(be32(b, 84))
	}
	return a, nil
}

// agi reads what a group says about its inodes.
func (f *FS) agi(group int64) (*agi, error) {
	b, err := f.header(group, 2, agiMagic, "AGI", agiForm())
	if err != nil {
		return nil, err
	}
	a := &agi{
		inodes: int64(be32(b, 16)), free: int64(be32(b, 28)),
		tree: root{int64(be32(b, 20)), int(be32(b, 24))},
	}
	if f.ro&roFinobt != 0 {
		a.fino = root{int64(be32(b, 328)), int(be32(b, 332))}
	}
	for i := range a.unlinked {
		a.unlinked[i] = be32(b, 40+4*i)
		if !f.listed(uint64(group), a.unlinked[i]) {
			return nil, f.fail(fmt.Sprintf("AGI of group %d", group), f.place(group, 0)+2*f.sector, 0,
				fmt.Errorf("list %d of unlinked inodes begins with 0x%x", i, a.unlinked[i]))
		}
	}
	return a, nil
}

// agfl gives the blocks of a group that are kept for its btrees.
func (f *FS) agfl(group int64, a *agf) ([]int64, error) {
	off := f.place(group, 0) + 3*f.sector
	what := fmt.Sprintf("AGFL of group %d", group)
	from := 0
	var b []byte
	var err error
	if f.v5 {
		from = 36
		b, err = f.header(group, 3, agflMagic, "AGFL", agflForm())
	} else if b, err = f.read(off, f.sector); err != nil {
		err = f.fail(what, off, 0, err)
	}
	if err != nil {
		return nil, err
	}
	slots := int64(len(b)-from) / 4
	if a.first >= slots || a.last >= slots || a.count > slots {
		return nil, f.fail(what, off, 0, fmt.Errorf("%d blocks from slot %d to %d of %d", a.count,
			a.first, a.last, slots))
	}
	blocks := make([]int64, 0, a.count)
	for i := range a.count {
		n := int64(be32(b, from+4*int((a.first+i)%slots)))
		if n >= f.groupLength(group) {
			return blocks, f.fail(what, off, 0, fmt.Errorf("block %d is beyond the group", n))
		}
		blocks = append(blocks, n)
	}
	return blocks, nil
}

// A btree of a group, by "AG Free Space B+trees" and xfs_btree_block:
//
//	0 magic  4 level (0: leaf)  6 records  8 left, 12 right neighbour
//	version 5: 16 address  24 LSN  32 UUID  48 group  52 CRC
//	leaf: records | node: keys, behind room for all keys the blocks that they lead to
type treeKind struct {
	name        string
	magic       [2]uint32 // versions 4 and 5
	record, key int       // bytes
	overlapping bool      // keys are pairs of the lowest and highest, and records may overlap
}

func inodeTree() treeKind {
	return treeKind{name: "inode btree", magic: [2]uint32{0x49414254, 0x49414233}, record: 16, key: 4}
}

func freeInodeTree() treeKind {
	return treeKind{name: "free inode btree", magic: [2]uint32{0x46494254, 0x46494233}, record: 16,
		key: 4}
}

func byBlockTree() treeKind {
	return treeKind{name: "free space btree by block", magic: [2]uint32{0x41425442, 0x41423342},
		record: 8, key: 8}
}

func bySizeTree() treeKind {
	return treeKind{name: "free space btree by size", magic: [2]uint32{0x41425443, 0x41423343},
		record: 8, key: 8}
}

func rmapTree() treeKind {
	return treeKind{name: "reverse map btree", magic: [2]uint32{0, 0x524d4233}, record: 24, key: 40,
		overlapping: true}
}

func refcountTree() treeKind {
	return treeKind{name: "reference count btree", magic: [2]uint32{0, 0x52334643}, record: 12, key: 4}
}

// treeWalk is one pass over a btree of a group.
type treeWalk struct {
	f     *FS
	kind  treeKind
	group int64
	from  uint32             // records that end before this need not be given
	block func(int64) error  // is told each block of the btree, if not nil
	fn    func([]byte) error // gets the records in order
	max   int64              // blocks that may still be read
	top   int                // level of the root, which alone may be empty
}

// walk reads the records of a btree in order, without those of blocks that end before the key
// from; the last record before from is among them. It reads on after a block that cannot be read,
// and ends with the first error in that case.
func (w *treeWalk) walk(ctx context.Context, r root) error {
	w.max, w.top = min(w.f.groupLength(w.group), w.f.size/w.f.block), r.levels-1
	if r.levels < 1 || r.levels > maxLevels {
		off := w.f.place(w.group, 0)
		return w.f.fail(fmt.Sprintf("%s of group %d", w.kind.name, w.group), off, 0,
			fmt.Errorf("has %d levels", r.levels))
	}
	return w.node(ctx, r.block, r.levels-1, 0, math.MaxUint32+1)
}

// loose tells whether the first 32 bits are not all that a btree is sorted by.
func (k *treeKind) loose() bool { return k.overlapping || k.name == bySizeTree().name }

// order is what a btree is sorted by, its first 32 bits; the tree by size is sorted by those of the
// size and is only ever walked for its blocks.
func (w *treeWalk) order(key []byte) int64 {
	if w.kind.name == bySizeTree().name {
		return int64(be32(key, 4))
	}
	return int64(be32(key, 0))
}

// node reads one block and what it leads to, whose keys are to be from low up to high.
func (w *treeWalk) node(ctx context.Context, block int64, level int, low, high int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	what := fmt.Sprintf("%s of group %d", w.kind.name, w.group)
	b, records, err := w.load(block, level)
	if err != nil {
		return w.f.fail(what, w.f.place(w.group, block), 0, err)
	}
	if w.block != nil {
		if err := w.block(block); err != nil {
			return err
		}
	}
	head := w.headBytes()
	size := w.kind.record
	if level > 0 {
		size = w.kind.key
	}
	last := low
	for i := range records {
		key := w.order(b[head+i*size:])
		// Equal ones are possible where that is not all that the tree is sorted by.
		if key < last || key > high || !w.kind.loose() && (key == high || i > 0 && key == last) {
			return w.f.fail(what, w.f.place(w.group, block), 0, fmt.Errorf(
				"key %d of %d in level %d is %d, which is not from %d to %d", i, records, level, key,
				last, high))
		}
		last = key
	}
	if level == 0 {
		for i := range records {
			if w.fn == nil {
				break
			}
			if err := w.fn(b[head+i*size:][:size]); err != nil {
				return err
			}
		}
		return nil
	}
	return w.children(ctx, b, records, level, high)
}

// children follows the pointers of a node.
func (w *treeWalk) children(ctx context.Context, b []byte, records, level int, high int64) error {
	head, size := w.headBytes(), w.kind.key
	room := (int(w.f.block) - head) / (size + 4)
	var first error
	for i := range records {
		low, end := w.order(b[head+i*size:]), high
		if i+1 < records {
			end = w.order(b[head+(i+1)*size:])
		}
		if w.kind.overlapping {
			if be32(b, head+i*size+20) < w.from {
				continue // its highest key
			}
		} else if end <= int64(w.from) {
			continue
		}
		child := int64(be32(b, head+room*size+4*i))
		err := w.node(ctx, child, level-1, low, end)
		if err != nil && !damage(err) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (w *treeWalk) headBytes() int {
	if w.f.v5 {
		return 56
	}
	return 16
}

// load reads a block of the btree and gives how many records it has.
func (w *treeWalk) load(block int64, level int) (b []byte, records int, err error) {
	f := w.f
	if block < 1 || block >= f.groupLength(w.group) {
		return nil, 0, fmt.Errorf("block %d is beyond the group", block)
	}
	if w.max--; w.max < 0 {
		return nil, 0, errors.New("has more blocks than the group")
	}
	off := f.place(w.group, block)
	if b, err = f.read(off, f.block); err != nil {
		return nil, 0, err
	}
	magic := w.kind.magic[0]
	if f.v5 {
		magic = w.kind.magic[1]
	}
	if be32(b, 0) != magic {
		return nil, 0, fmt.Errorf("begins with 0x%x, want 0x%x", be32(b, 0), magic)
	}
	if err := f.verify(b, shortForm(), off, uint64(w.group)); err != nil {
		return nil, 0, err
	}
	size := w.kind.record
	if level > 0 {
		size = w.kind.key + 4
	}
	records = int(be16(b, 6))
	if got := int(be16(b, 4)); got != level {
		return nil, 0, fmt.Errorf("has level %d, want %d", got, level)
	}
	most := (int(f.block) - w.headBytes()) / size
	if records > most || records == 0 && (level > 0 || w.top > 0) {
		return nil, 0, fmt.Errorf("has %d records, at most %d fit", records, most)
	}
	return b, records, nil
}
