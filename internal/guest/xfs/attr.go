// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Extended attributes, by "Extended Attributes" and xfs_da_format.h. A few stand in the inode:
//
//	0 size of all (2)  2 count  then entries: 0 length of the name  1 of the value  2 flags  3 both
//
// More are in the blocks of the attribute fork. Block 0 is a leaf, or a node that leads to leaves:
//
//	leaf   0 next, 4 previous leaf  8 magic  version 5: 12 CRC  16 address  24 LSN  32 UUID  48 inode
//	       count (2) at 12 or 56, entries of 8 bytes from 32 or 80 on: 0 hash  4 position  6 flags
//	       2 behind count: bytes in use, 4 first name, 8 three free pieces (position, length)
//	       position: 0 length of the value (2)  2 of the name  3 both          (local)
//	                 0 block of the value  4 its length  8 of the name  9 name (remote)
//	node   as a leaf to 12 or 56: count (2), level (2); entries of 8 bytes from 16 or 64 on: hash,
//	       block
//	remote version 5: 0 "XARM"  4 position in the value  8 bytes  12 CRC  16 UUID  32 inode
//	       40 address  48 LSN, then the value; version 4: the value alone
const (
	attrLeafMagic, attrLeafMagic5 = 0xfbee, 0x3bee
	attrRemoteMagic               = 0x5841524d
	attrRemoteHead                = 56

	attrLocal, attrRoot, attrSecure = 0x1, 0x2, 0x4
	attrParent, attrIncomplete      = 0x8, 0x80

	maxAttrTwins = 4096 // entries of one hash that are kept in mind: 1 MiB of names

	// maxAttrExtents bounds the extents of one attribute fork: without 64-bit counts it is 65535.
	maxAttrExtents = 1 << 18
	maxAttrLevel   = 5 // the kernel's XFS_DA_NODE_MAXDEPTH
)

// attrWalk is one pass over the extended attributes of an inode.
type attrWalk struct {
	n       *inode
	ctx     context.Context
	fn      func(name string, value []byte) error
	extents []extent
	seen    map[uint32]bool // blocks of the fork that were read as nodes or leaves
	twins   attrTwins
	first   error
}

// attrTwins are the entries of one hash, in leaves of version 4, where no checksum tells whether an
// entry that a kernel hides was written so. The flag that hides it means that it was begun: what a
// change of a value left behind when the machine stopped. Then the value that counts is under the
// same name, or the entry was to have a value of its own in other blocks and none is noted yet.
type attrTwins struct {
	hash  uint32
	whole map[attrTwin]bool
	begun []attrTwin
	offs  []int64 // of the leaves of begun
}

type attrTwin struct {
	space byte // the flags that are part of the name
	name  string
}

// xattrs reads all extended attributes. It reads on after damage, and ends with the first error.
func (n *inode) xattrs(ctx context.Context, fn func(name string, value []byte) error) error {
	k, ok := n.attrFork()
	if !ok {
		return nil
	}
	w := &attrWalk{n: n, ctx: ctx, fn: fn, seen: make(map[uint32]bool)}
	if k.format == formatLocal {
		return w.short(k)
	}
	walk := forkWalk{n: n, fork: k, fn: func(e *extent) error {
		if len(w.extents) == maxAttrExtents {
			return n.f.fail(w.what(), k.off, n.ino, fmt.Errorf("has more than %d extents",
				maxAttrExtents))
		}
		w.extents = append(w.extents, *e)
		return nil
	}}
	err := walk.walk(ctx)
	if err != nil && !damage(err) {
		return err
	}
	w.first = err
	if len(w.extents) == 0 {
		return w.first
	}
	if err := w.block(0, -1, 0); err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	return w.first
}

func (w *attrWalk) what() string { return fmt.Sprintf("extended attributes of inode %d", w.n.ino) }

// bad notes damage and lets the walk go on. Other errors are given back.
func (w *attrWalk) bad(off int64, err error) error {
	if !damage(err) && noted(err) {
		return err
	}
	err = w.n.f.fail(w.what(), off, w.n.ino, err)
	if w.first == nil {
		w.first = err
	}
	return nil
}

// short reads attributes that stand in the inode.
func (w *attrWalk) short(k fork) error {
	b := k.raw
	if len(b) < 4 || int(be16(b, 0)) > len(b) || be16(b, 0) < 4 {
		return w.n.f.fail(w.what(), k.off, w.n.ino, errors.New("in the inode are cut off"))
	}
	b = b[:be16(b, 0)]
	pos := 4
	for i := range int(b[2]) {
		if pos+3 > len(b) || pos+3+int(b[pos])+int(b[pos+1]) > len(b) {
			return w.n.f.fail(w.what(), k.off, w.n.ino, fmt.Errorf("entry %d is cut off", i))
		}
		name := b[pos+3:][:b[pos]]
		value := b[pos+3+len(name):][:b[pos+1]]
		if err := w.give(name, b[pos+2], value, k.off); err != nil {
			return err
		}
		pos += 3 + len(name) + len(value)
	}
	if pos != len(b) {
		return errors.Join(w.bad(k.off, fmt.Errorf("have %d bytes, their entries %d", len(b), pos)),
			w.first)
	}
	return w.first
}

// give hands out an attribute by the names that listxattr(2) gives to root.
func (w *attrWalk) give(name []byte, flags byte, value []byte, off int64) error {
	if flags&attrParent != 0 {
		if w.n.f.in&inParent == 0 {
			return w.bad(off, fmt.Errorf("entry %q has flags 0x%x without the feature", name, flags))
		}
		return nil // tells the directory that the inode is in
	}
	if len(name) == 0 {
		return w.bad(off, errors.New("have an entry without a name"))
	}
	prefix := "user."
	switch {
	case flags&attrRoot != 0:
		prefix = "trusted."
		acl := map[string]string{"SGI_ACL_FILE": "system.posix_acl_access",
			"SGI_ACL_DEFAULT": "system.posix_acl_default"}[string(name)]
		if acl == "" {
			break
		}
		list, err := posixACL(value)
		if err != nil {
			if err := w.bad(off, err); err != nil || list == nil {
				return err
			}
		}
		if err := w.fn(acl, list); err != nil {
			return &halt{err}
		}
	case flags&attrSecure != 0:
		prefix = "security."
	}
	if err := w.fn(prefix+string(name), value); err != nil {
		return &halt{err}
	}
	return nil
}

// posixACL turns a list as XFS keeps it (0 count, then 12 bytes each: tag (4), id (4), permissions
// (2), all big endian) into what getxattr(2) gives: version 2, then tag (2), permissions (2), id (4),
// all little endian; see acl_ea.h and posix_acl_xattr.h of the kernel.
func posixACL(value []byte) ([]byte, error) {
	const user, group, noID = 0x02, 0x08, 0xffffffff
	if len(value) < 4 || int64(be32(value, 0))*12+4 != int64(len(value)) {
		return nil, fmt.Errorf("have an access control list that does not fit its %d bytes", len(value))
	}
	var odd error // which is shown as the kernel shows it
	le := binary.LittleEndian
	list := le.AppendUint32(nil, 2)
	for i := range int(be32(value, 0)) {
		e := value[4+12*i:]
		tag, id := be32(e, 0), be32(e, 4)
		switch tag {
		case 0x01, user, 0x04, group, 0x10, 0x20: // the owner, the group, the mask, others
		default:
			return nil, fmt.Errorf("have an access control list with an entry of tag 0x%x", tag)
		}
		if tag != user && tag != group {
			id = noID
		}
		if be16(e, 8) > 7 {
			odd = fmt.Errorf("have an access control list with permissions 0x%x", be16(e, 8))
		}
		list = le.AppendUint16(list, uint16(tag))
		list = le.AppendUint16(list, be16(e, 8))
		list = le.AppendUint32(list, id)
	}
	return list, odd
}

// locate gives the place of a block of the fork on the volume.
func (w *attrWalk) locate(block uint64) (int64, error) {
	low := behind(w.extents, block)
	if low == len(w.extents) || w.extents[low].file > block {
		return 0, fmt.Errorf("block %d of the fork is not there", block)
	}
	e := &w.extents[low]
	off, ok := w.n.f.extentPlace(e.start+(block-e.file), 1)
	if !ok {
		return 0, fmt.Errorf("block %d of the fork is beyond the end", block)
	}
	return off, nil
}

// block reads a node or a leaf; level is -1 where it is not known.
func (w *attrWalk) block(number uint32, level, depth int) error {
	f := w.n.f
	if err := w.ctx.Err(); err != nil {
		return err
	}
	off, err := w.locate(uint64(number))
	if err != nil {
		return w.bad(-1, err)
	}
	if w.seen[number] || depth > maxAttrLevel {
		return w.bad(off, fmt.Errorf("block %d is reached twice, or too deep", number))
	}
	w.seen[number] = true
	b, err := f.read(off, f.block)
	if err != nil {
		return w.bad(off, err)
	}
	info, leaf, node := 12, uint16(attrLeafMagic), uint16(daNodeMagic)
	if f.v5 {
		info, leaf, node = 56, attrLeafMagic5, daNodeMagic5
	}
	magic := be16(b, 8)
	if magic != leaf && magic != node {
		return w.bad(off, fmt.Errorf("block %d begins with 0x%x", number, magic))
	}
	if err := f.verify(b, daForm(), off, w.n.ino); err != nil {
		return w.bad(off, fmt.Errorf("block %d: %w", number, err))
	}
	if magic == leaf {
		if level > 0 {
			return w.bad(off, fmt.Errorf("block %d is a leaf in level %d", number, level))
		}
		return w.leaf(b, off)
	}
	return w.node(b, off, info, level, depth)
}

// node follows the pointers of a node.
func (w *attrWalk) node(b []byte, off int64, info, level, depth int) error {
	head := info + 4
	if w.n.f.v5 {
		head += 4
	}
	count, own := int(be16(b, info)), int(be16(b, info+2))
	switch {
	case own < 1 || own > maxAttrLevel || level >= 0 && own != level:
		return w.bad(off, fmt.Errorf("has a node of level %d, want %d", own, level))
	case count < 1 || count > (len(b)-head)/8:
		return w.bad(off, fmt.Errorf("has a node of %d entries", count))
	}
	for i := range count {
		if err := w.block(be32(b, head+8*i+4), own-1, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// leaf reads the attributes of a leaf.
func (w *attrWalk) leaf(b []byte, off int64) error {
	at, head := 12, 32
	if w.n.f.v5 {
		at, head = 56, 80
	}
	count := int(be16(b, at))
	if count > (len(b)-head)/8 {
		return w.bad(off, fmt.Errorf("has a leaf of %d entries", count))
	}
	names, err := leafNames(b, at, head+8*count)
	if err != nil {
		return w.bad(off, err)
	}
	hash := uint32(0)
	for i := range count {
		e := b[head+8*i:]
		if be32(e, 0) < hash {
			return w.bad(off, fmt.Errorf("entry %d of a leaf is out of order", i))
		}
		hash = be32(e, 0)
		name, value, err := w.leafEntry(b, int(be16(e, 4)), e[6], names, hash)
		if err == nil && !w.n.f.v5 {
			err = w.twin(hash, e[6], name, off)
		}
		if err == nil && e[6]&attrIncomplete == 0 {
			err = w.give(name, e[6], value, off)
		}
		if err != nil {
			if err := w.bad(off, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// leafNames gives where the names of a leaf begin, which is behind its entries. These and the pieces
// that are free are within the leaf, or the kernel refuses it (xfs_attr3_leaf_verify).
func leafNames(b []byte, at, low int) (int, error) {
	names := int(be16(b, at+4))
	if names == 0 {
		names = maxBlockBytes // which does not fit into two bytes
	}
	if names < low || names > len(b) {
		return 0, fmt.Errorf("has a leaf of %d bytes whose names begin at byte %d", len(b), names)
	}
	for i := range 3 {
		free, length := int(be16(b, at+8+4*i)), int(be16(b, at+10+4*i))
		if free+length > len(b) {
			return 0, fmt.Errorf("has a leaf of %d bytes with %d free ones from byte %d on", len(b), length,
				free)
		}
	}
	return names, nil
}

// twin keeps an entry of version 4 in mind until all of its hash were read.
func (w *attrWalk) twin(hash uint32, flags byte, name []byte, off int64) error {
	if hash != w.twins.hash || w.twins.whole == nil {
		if err := w.settle(); err != nil {
			return err
		}
		w.twins = attrTwins{hash: hash, whole: map[attrTwin]bool{}}
	}
	if flags&(attrIncomplete|attrLocal) == attrIncomplete {
		return nil // leafEntry holds it against its value
	}
	t := attrTwin{flags & (attrRoot | attrSecure), string(name)}
	switch s := &w.twins; {
	case flags&attrIncomplete == 0 && len(s.whole) < maxAttrTwins:
		s.whole[t] = true
	case flags&attrIncomplete != 0 && len(s.begun) < maxAttrTwins:
		s.begun, s.offs = append(s.begun, t), append(s.offs, off)
	case flags&attrIncomplete != 0:
		return fmt.Errorf("more than %d entries of one hash were begun and not ended", maxAttrTwins)
	}
	return nil
}

// settle tells of entries that were begun where none that a kernel shows has their name.
func (w *attrWalk) settle() error {
	for i, t := range w.twins.begun {
		if w.twins.whole[t] {
			continue
		}
		if err := w.bad(w.twins.offs[i], fmt.Errorf("entry %q was begun and not ended, and no other has its name",
			t.name)); err != nil {
			return err
		}
	}
	return nil
}

// leafEntry reads a name and its value, which stands at pos in the leaf b or elsewhere.
func (w *attrWalk) leafEntry(b []byte, pos int, flags byte, low int, hash uint32) (name, value []byte,
	err error) {
	fixed := 3
	if flags&attrLocal == 0 {
		fixed = 9
	}
	if pos < low || pos+fixed > len(b) {
		return nil, nil, fmt.Errorf("entry at byte %d of a leaf is cut off", pos)
	}
	length := 0
	if flags&attrLocal != 0 {
		name, length = b[pos+3:], int(be16(b, pos))
		if int(b[pos+2])+length > len(name) {
			return nil, nil, fmt.Errorf("entry at byte %d of a leaf is cut off", pos)
		}
		name, value = name[:b[pos+2]], name[b[pos+2]:][:length]
	} else {
		if int(b[pos+8]) > len(b)-pos-9 {
			return nil, nil, fmt.Errorf("entry at byte %d of a leaf is cut off", pos)
		}
		name = b[pos+9:][:b[pos+8]]
		// As in the kernel (xfs_attr3_leaf_setflag, xfs_attr3_leaf_verify_entry), which notes where
		// the value is when it is whole. Block 0 of the fork is never one of a value.
		switch none := be32(b, pos) == 0; {
		case none && flags&(attrIncomplete|attrParent) == 0:
			return nil, nil, fmt.Errorf("entry %q has a value in other blocks, and none is noted", name)
		case !none && flags&attrIncomplete != 0 && !w.n.f.v5:
			return nil, nil, fmt.Errorf("entry %q was begun and not ended, but has a value", name)
		}
	}
	// The names of parents are not kept under the hash of their bytes alone.
	if got := nameHash(string(name), false); got != hash && flags&attrParent == 0 {
		return nil, nil, fmt.Errorf("entry %q is kept under 0x%x, want 0x%x", name, hash, got)
	}
	if flags&(attrLocal|attrIncomplete|attrParent) == 0 {
		value, err = w.remote(be32(b, pos), int64(be32(b, pos+4)))
	}
	return name, value, err
}

// remote reads a value that has blocks of its own, from that block of the fork on.
func (w *attrWalk) remote(block uint32, length int64) ([]byte, error) {
	f := w.n.f
	if length > files.MaxXattrBytes {
		return nil, fmt.Errorf("a value has %d bytes", length)
	}
	value := make([]byte, 0, length)
	for ; int64(len(value)) < length; block++ {
		off, err := w.locate(uint64(block))
		if err != nil {
			return nil, err
		}
		b, err := f.read(off, f.block)
		if err != nil {
			return nil, f.fail(w.what(), off, w.n.ino, err)
		}
		want := length - int64(len(value))
		if f.v5 {
			if be32(b, 0) != attrRemoteMagic {
				return nil, f.fail(w.what(), off, w.n.ino, fmt.Errorf("begins with 0x%x, want 0x%x",
					be32(b, 0), attrRemoteMagic))
			}
			if err := f.verify(b, remoteForm(), off, w.n.ino); err != nil {
				return nil, f.fail(w.what(), off, w.n.ino, err)
			}
			want = min(want, f.block-attrRemoteHead)
			if int64(be32(b, 4)) != int64(len(value)) || int64(be32(b, 8)) != want {
				return nil, f.fail(w.what(), off, w.n.ino, fmt.Errorf("holds %d bytes from %d on, want %d "+
					"from %d on", be32(b, 8), be32(b, 4), want, len(value)))
			}
			b = b[attrRemoteHead:]
		}
		value = append(value, b[:min(want, int64(len(b)))]...)
	}
	return value, nil
}
