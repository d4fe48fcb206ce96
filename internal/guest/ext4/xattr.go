// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Extended attributes, by Documentation/filesystems/ext4/attributes.rst. They stand behind the
// extra fields of the inode, after a magic of 4 bytes, and in a block with a header of 32:
//
//	header 0 0xea020000   4 references   8 blocks   12 hash   16 checksum
//	entry  0 length of the name   1 index of the prefix   2 offset of the value
//	       4 inode of the value   8 length of the value   12 hash   16 name, to a multiple of 4
//
// A row of entries ends with 4 zero bytes. Values of the inode are counted from its first entry,
// those of a block from its start.
const (
	attrMagic  = 0xea020000
	attrHeader = 32
	attrEntry  = 16

	attrUser       = 1
	attrACL        = 2
	attrDefaultACL = 3
	attrSystem     = 7
	attrEncryption = 9
)

// attrPrefixes are the beginnings of names by their index, as the kernel and e2fsprogs have them.
var attrPrefixes = [...]string{attrUser: "user.", attrACL: "system.posix_acl_access",
	attrDefaultACL: "system.posix_acl_default", 4: "trusted.", 5: "lustre.", 6: "security.",
	attrSystem: "system.", 8: "system.richacl", 10: "gnu."}

// attr is an extended attribute as it is stored.
type attr struct {
	index byte
	name  []byte
	value []byte // empty if it is in an inode of its own
	at    int64  // of the value, in bytes
	inum  files.Ino
	size  int64
	hash  uint32
}

// inodeAttrs calls fn for the attributes that are kept in the inode.
func (n *inode) inodeAttrs(fn func(attr) error) error {
	start := oldInodeBytes + n.extra
	if start+8 > int64(len(n.raw)) {
		return nil
	}
	switch magic := le32(n.raw, int(start)); {
	case magic == attrMagic:
	case magic != 0 && !n.fs.super.sums:
		// The kernel makes nothing of it, but writes either the magic or zeros there.
		return fmt.Errorf("magic in the inode is 0x%x", magic)
	default:
		return nil
	}
	return attrs(n.raw[start+4:], 0, n.at+start+4, fn)
}

// attrs calls fn for the attributes of a row: its entries begin at first, and values count from the
// beginning of b, which is at a place in bytes.
func attrs(b []byte, first int, at int64, fn func(attr) error) error {
	for pos := first; ; {
		if pos+4 > len(b) {
			return errors.New("extended attributes without an end")
		}
		if le32(b, pos) == 0 {
			return nil
		}
		if pos+attrEntry+int(b[pos]) > len(b) {
			return errors.New("an extended attribute reaches beyond the end")
		}
		a := attr{index: b[pos+1], name: b[pos+attrEntry : pos+attrEntry+int(b[pos])],
			inum: files.Ino(le32(b, pos+4)), size: int64(le32(b, pos+8)), hash: le32(b, pos+12)}
		if a.inum == 0 {
			from := int64(le16(b, pos+2))
			if a.size > int64(len(b)) || from > int64(len(b))-a.size {
				return fmt.Errorf("the value of an extended attribute is at %d to %d, of %d", from,
					from+a.size, len(b))
			}
			a.value, a.at = b[from:from+a.size], at+from
		} else if a.size > files.MaxXattrBytes {
			return fmt.Errorf("the value of an extended attribute has %d bytes", a.size)
		}
		if err := fn(a); err != nil {
			return err
		}
		pos += (attrEntry + len(a.name) + 3) &^ 3
	}
}

// attrBlock is the block of extended attributes, 0 for none.
func (n *inode) attrBlock() int64 {
	block := int64(le32(n.raw, 104))
	if n.fs.super.incompat&incompat64bit != 0 {
		block |= int64(le16(n.raw, 118)) << 32
	}
	return block
}

// readAttrBlock gives the block of extended attributes after its header was verified, nil if there
// is none.
func (n *inode) readAttrBlock(ctx context.Context) ([]byte, error) {
	block := n.attrBlock()
	if block == 0 {
		return nil, nil
	}
	s := n.fs.super
	if !s.hasBlock(block, 1) {
		return nil, fmt.Errorf("block %d, of %d", block, s.blocks)
	}
	b, err := n.fs.block(ctx, block)
	if err != nil {
		return nil, err
	}
	if le32(b, 0) != attrMagic || le32(b, 8) != 1 {
		return nil, fmt.Errorf("magic is 0x%x, %d blocks", le32(b, 0), le32(b, 8))
	}
	if s.sums {
		crc := sum32le(s.seed, uint32(block), uint32(block>>32))
		crc = sum32(crc, b[:16])
		crc = sum32(crc, []byte{0, 0, 0, 0})
		if crc = sum32(crc, b[20:]); crc != le32(b, 16) {
			return nil, fmt.Errorf("checksum is 0x%x, want 0x%x", le32(b, 16), crc)
		}
	}
	return b, nil
}

// Xattrs gives the extended attributes, as listxattr(2) and getxattr(2) do for root.
func (n *inode) Xattrs(ctx context.Context, fn func(name string, value []byte) error) error {
	what := "extended attributes of " + n.name()
	var first, stop error
	each := func(a attr) error {
		value, err := n.attrValue(ctx, a)
		if err != nil {
			if err = n.fs.note(what, n.at, n.stat.Ino, err); ctx.Err() != nil {
				stop = err
			}
			if first == nil {
				first = err
			}
			return stop
		}
		name, ok := a.fullName()
		if !ok {
			return nil
		}
		stop = fn(name, value)
		return stop
	}
	if err := n.inodeAttrs(each); stop != nil {
		return stop
	} else if err != nil {
		first = n.fs.note(what, n.at, n.stat.Ino, err)
	}
	b, err := n.readAttrBlock(ctx)
	if err == nil && b != nil {
		err = attrs(b, attrHeader, n.attrBlock()*n.fs.super.blockBytes, each)
	}
	if stop != nil {
		return stop
	}
	if err != nil {
		err = n.fs.note(what, n.attrBlock()*n.fs.super.blockBytes, n.stat.Ino, err)
		if first == nil {
			first = err
		}
	}
	return first
}

// fullName gives the name that the kernel lists, and whether it does: inline data and the keys of
// encryption are not shown.
func (a *attr) fullName() (string, bool) {
	switch {
	case a.isInline(), a.index == attrEncryption && string(a.name) == "c":
		return "", false
	case int(a.index) >= len(attrPrefixes) || attrPrefixes[a.index] == "":
		return fmt.Sprintf("index%d.%s", a.index, a.name), true
	}
	return attrPrefixes[a.index] + string(a.name), true
}

// isInline tells whether it holds content of the file.
func (a *attr) isInline() bool { return a.index == attrSystem && string(a.name) == "data" }

// fits verifies the hash of an attribute where there is no other checksum (fs/ext4/xattr.c,
// ext4_xattr_hash_entry). Old kernels wrote none in inodes, those of some machines took bytes for
// signed, and content in an inode changes without it.
func (a *attr) fits(value []byte) bool {
	if a.hash == 0 || a.isInline() {
		return true
	}
	hash, signed := uint32(0), uint32(0)
	for _, c := range a.name {
		hash = hash<<5 ^ hash>>27 ^ uint32(c)
		signed = signed<<5 ^ signed>>27 ^ uint32(int32(int8(c)))
	}
	for ; len(value) > 0; value = value[min(4, len(value)):] {
		var word [4]byte
		copy(word[:], value)
		hash = hash<<16 ^ hash>>16 ^ le32(word[:], 0)
		signed = signed<<16 ^ signed>>16 ^ le32(word[:], 0)
	}
	return hash == a.hash || signed == a.hash
}

// attrValue gives the value of an attribute in the form of getxattr(2).
func (n *inode) attrValue(ctx context.Context, a attr) ([]byte, error) {
	value := a.value
	if a.inum != 0 {
		var err error
		if value, err = n.farValue(ctx, a); err != nil {
			return nil, err
		}
	} else if !n.fs.super.sums && !a.fits(value) {
		return nil, fmt.Errorf("an attribute of %d bytes does not fit its hash", a.size)
	}
	if a.index == attrACL || a.index == attrDefaultACL {
		return aclValue(value)
	}
	return value, nil
}

// farValue reads a value from an inode of its own (fs/ext4/xattr.c, ext4_xattr_inode_get). That
// inode keeps a checksum of the value as its atime; those of Lustre point back to their file.
func (n *inode) farValue(ctx context.Context, a attr) ([]byte, error) {
	far, err := n.fs.load(ctx, a.inum)
	if err != nil {
		return nil, err
	}
	if far.flags&flagEAInode == 0 || far.typ() != files.TypeRegular || far.stat.Size != a.size {
		return nil, fmt.Errorf("inode %d is not the value of an attribute of %d bytes", a.inum, a.size)
	}
	value := make([]byte, a.size)
	if _, err := far.readAt(ctx, value, 0); err != nil && a.size > 0 {
		return nil, err
	}
	lustre := uint32(far.stat.Mtime.Seconds) == uint32(n.stat.Ino) &&
		far.stat.Generation == n.stat.Generation
	have, want := le32(far.raw, 8), sum32(n.fs.super.seed, value)
	if have != want && !lustre {
		return nil, fmt.Errorf("value in inode %d: checksum is 0x%x, want 0x%x", a.inum, have, want)
	}
	return value, nil
}

// aclValue converts an ACL from the form of the disk (fs/ext4/acl.h) to that of getxattr(2)
// (include/uapi/linux/posix_acl_xattr.h), where each entry has an id.
func aclValue(b []byte) ([]byte, error) {
	const user, group, none = 0x02, 0x08, 0xffffffff
	if len(b) < 4 || le32(b, 0) != 1 {
		return nil, errors.New("ACL of another version")
	}
	out := binary.LittleEndian.AppendUint32(nil, 2)
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, errors.New("ACL ends within an entry")
		}
		tag, id := le16(b, 0), uint32(none)
		out = append(out, b[:4]...)
		b = b[4:]
		if tag == user || tag == group {
			if len(b) < 4 {
				return nil, errors.New("ACL ends within an entry")
			}
			id = le32(b, 0)
			b = b[4:]
		}
		out = binary.LittleEndian.AppendUint32(out, id)
	}
	return out, nil
}
