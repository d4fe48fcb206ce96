// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// The items that change blocks, by xfs_log_format.h, xfs_buf_item_recover.c,
// xfs_inode_item_recover.c and xfs_icreate_item.c; little endian where not said otherwise.
//
//	buffer  0 type  2 regions  4 flags  6 basic blocks  8 first one  16 words of the map  20 map of
//	        what was changed, a bit for 128 bytes; then a region for each row of bits
//	inode   0 type  2 regions  4 fields  8 bytes of the attribute fork  10 of the data fork
//	        16 inode  24 device  40 basic block of its buffer  48 length  52 position in the buffer;
//	        32-bit machines leave out 4 bytes at 12. Then the inode, the data fork, the attribute fork
//	create  0 type  2 regions, then big endian: 4 group  8 block  12 inodes  16 size  20 blocks
//	        24 generation
const (
	bufferInodes, bufferCancel = 0x1, 0x2
	bufferQuotas               = 0x4 | 0x8 | 0x10
	bufferChunk                = 128
	bufferKindShift            = 11
	maxBufferBlocks            = 256 // basic blocks: the largest buffer of inodes has 64 KiB

	kindRealtimeBitmap, kindRealtimeSummary = 19, 20

	inodeItemBytes, inodeItemOld  = 56, 52
	logInodeBytes, logInodeBytes2 = 176, 96 // versions 3 and 2
	maxFlushes                    = math.MaxUint16

	fieldDataLocal, fieldDataExtents, fieldDataBtree = 0x2, 0x4, 0x8
	fieldDevice                                      = 0x10
	fieldAttrLocal, fieldAttrExtents, fieldAttrBtree = 0x40, 0x80, 0x100
	fieldDataOwner, fieldAttrOwner                   = 0x200, 0x400
	fieldsData                                       = 0x2 | 0x4 | 0x8
	fieldsAttr                                       = 0x40 | 0x80 | 0x100

	nextUnlinked = 96 // position in an inode
	noLSN        = math.MaxUint64
)

// buffer is the first region of a buffer item.
type buffer struct {
	key   bufferKey
	flags uint16
	words []byte // the map
}

func parseBuffer(it *item) (buffer, error) {
	le, b := binary.LittleEndian, it.regions[0]
	if len(b) < 20 {
		return buffer{}, fmt.Errorf("%w: a buffer item of %d bytes", errLog, len(b))
	}
	words := int64(le.Uint32(b[16:])) * 4
	if words > int64(len(b)-20) {
		return buffer{}, fmt.Errorf("%w: a buffer item with a map of %d bytes", errLog, words)
	}
	return buffer{bufferKey{int64(le.Uint64(b[8:])), le.Uint16(b[6:])}, le.Uint16(b[4:]),
		b[20 : 20+words]}, nil
}

// row gives the next row of bits that are set, from bit on.
func (b *buffer) row(bit int) (first, n int) {
	isSet := func(i int) bool { return b.words[i/8]>>(i%8)&1 != 0 }
	for first = bit; first < len(b.words)*8 && !isSet(first); first++ {
	}
	for first+n < len(b.words)*8 && isSet(first+n) {
		n++
	}
	return first, n
}

// load reads a buffer as it is after what was replayed so far.
func (r *replay) load(block, length int64) ([]byte, error) {
	f := r.j.f
	end := f.blocks * f.block / basicBlock
	if block < 0 || length < 1 || length > maxBufferBlocks || block > end-length {
		return nil, fmt.Errorf("%w: a buffer of %d basic blocks at %d", errLog, length, block)
	}
	b := make([]byte, length*basicBlock)
	if n, err := r.overlay.ReadAt(b, block*basicBlock); n < len(b) {
		return nil, fmt.Errorf("block at 0x%x: %w", block*basicBlock, err)
	}
	return b, nil
}

func (r *replay) store(b []byte, block int64) error {
	r.written++
	_, err := r.overlay.WriteAt(b, block*basicBlock)
	return err
}

// buffer replays a buffer item.
func (r *replay) buffer(it *item, lsn uint64) error {
	f := r.j.f
	k, err := parseBuffer(it)
	if err != nil {
		return err
	}
	if k.flags&bufferCancel != 0 {
		if r.cancelled[k.key]--; r.cancelled[k.key] <= 0 {
			delete(r.cancelled, k.key)
		}
		return nil
	}
	if r.cancelled[k.key] > 0 || k.flags&bufferQuotas != 0 {
		return nil
	}
	b, err := r.load(k.key.block, int64(k.key.length))
	if err != nil {
		return err
	}
	kind := k.flags >> bufferKindShift
	if kind != kindRealtimeBitmap && kind != kindRealtimeSummary {
		// What is on the disk may be newer than the log.
		if have := f.lsnOf(b); have != 0 && have != noLSN && have >= lsn {
			return nil
		}
	}
	if k.flags&bufferInodes != 0 {
		err = r.unlinked(it, &k, b)
	} else {
		err = r.regions(it, &k, b)
		f.reseal(b)
	}
	if err != nil {
		return err
	}
	if k.key.block == 0 {
		f.grow(b)
	}
	return r.store(b, k.key.block)
}

// grow takes over a superblock that the log brings: the file system may have grown, and what follows
// may lie in groups that the one on the disk does not know.
func (f *FS) grow(b []byte) {
	if s, err := parseSuper(b, f.size); err == nil && s.sameGeometry(f.super) && s.blocks >= f.blocks {
		f.super = s
	}
}

// regions copies what was changed into the buffer.
func (r *replay) regions(it *item, k *buffer, b []byte) error {
	i := 1
	for bit := 0; ; i++ {
		first, n := k.row(bit)
		if n == 0 {
			return nil
		}
		if i >= len(it.regions) {
			return fmt.Errorf("%w: a buffer item has %d regions, its map more", errLog, len(it.regions))
		}
		region := it.regions[i]
		if len(region) < n*bufferChunk {
			n = len(region) / bufferChunk // a row may be cut into several regions
		}
		if n == 0 || (first+n)*bufferChunk > len(b) {
			return fmt.Errorf("%w: a buffer item changes bytes %d to %d of %d", errLog, first*bufferChunk,
				(first+n)*bufferChunk, len(b))
		}
		copy(b[first*bufferChunk:], region[:n*bufferChunk])
		bit = first + n
	}
}

// unlinked takes over from a buffer of inodes what links the unlinked ones, and nothing else: all
// else comes with inode items.
func (r *replay) unlinked(it *item, k *buffer, b []byte) error {
	changed := make([]byte, len(b))
	copy(changed, b)
	if err := r.regions(it, k, changed); err != nil {
		return err
	}
	size := int(r.j.f.super.inode)
	for at := 0; at+size <= len(b); at += size {
		next := b[at+nextUnlinked:][:4]
		if bytes.Equal(next, changed[at+nextUnlinked:][:4]) {
			continue
		}
		copy(next, changed[at+nextUnlinked:][:4])
		if r.j.f.v5 {
			setChecksum(b[at:][:size], 100)
		}
	}
	return nil
}

// formOf tells by its magic where a block of version 5 has its LSN and checksum. Blocks without an
// LSN of their own, such as those of inodes, have none.
func (f *FS) formOf(b []byte) (form, bool) {
	switch be32(b, 0) {
	case 0x41423342, 0x41423343, 0x49414233, 0x46494233, 0x524d4233, 0x52334643:
		return shortForm(), true
	case bmapMagic5:
		return longForm(), true
	case agfMagic:
		return agfForm(), true
	case agflMagic:
		return agflForm(), true
	case agiMagic:
		return agiForm(), true
	case linkMagic:
		return remoteForm(), true
	case dirBlockMagic5, dirDataMagic5, dirFreeMagic5:
		return dirForm(), true
	case superMagic:
		k := form{224, 0, 240, 32, 0, 0}
		if f.in&inMetaUUID != 0 {
			k.uuid = 248
		}
		return k, true
	}
	switch be16(b, 8) {
	case leaf1Magic5, leafNMagic5, daNodeMagic5, attrLeafMagic5:
		return daForm(), true
	}
	return form{}, false
}

// lsnOf gives the LSN of a block, noLSN if it has none or is not of this file system.
func (f *FS) lsnOf(b []byte) uint64 {
	if !f.v5 {
		return noLSN
	}
	k, ok := f.formOf(b)
	if !ok || !bytes.Equal(b[k.uuid:][:16], f.meta[:]) {
		return noLSN
	}
	return be64(b, k.lsn)
}

// reseal makes the checksums of a block right after it was changed. Its LSN stays: the kernel gives
// it the new one only when all transactions of that LSN were replayed, since there can be several.
func (f *FS) reseal(b []byte) {
	if !f.v5 {
		return
	}
	if k, ok := f.formOf(b); ok {
		setChecksum(b, k.crc)
		return
	}
	size := int(f.super.inode)
	for at := 0; be16(b, 0) == inodeMagic && at+size <= len(b); at += size {
		setChecksum(b[at:][:size], 100)
	}
}

// create replays the making of inodes.
func (r *replay) create(it *item) error {
	f, b := r.j.f, it.regions[0]
	if len(b) < 28 {
		return fmt.Errorf("%w: a create item of %d bytes", errLog, len(b))
	}
	group, block, count := int64(be32(b, 4)), int64(be32(b, 8)), int64(be32(b, 12))
	size, blocks := int64(be32(b, 16)), int64(be32(b, 20))
	if group >= f.groups || size != f.super.inode || count < 1 || blocks < 1 ||
		count*size != blocks*f.block || count > maxCreated ||
		block+blocks > f.groupLength(group) {
		return fmt.Errorf("%w: %d inodes of %d bytes in %d blocks at %d of group %d", errLog, count, size,
			blocks, block, group)
	}
	off := f.place(group, block)
	for at := int64(0); at < blocks*f.block; at += f.block {
		if r.freed((off + at) / basicBlock) {
			return nil
		}
	}
	chunk := make([]byte, blocks*f.block)
	for i := range count {
		n := chunk[i*size:][:size]
		binary.BigEndian.PutUint16(n, inodeMagic)
		n[4] = 2
		copy(n[92:96], b[24:28])
		binary.BigEndian.PutUint32(n[nextUnlinked:], nullBlock)
		if f.v5 {
			n[4] = 3
			number := uint64(group)<<f.aginLog | uint64(block<<f.inopLog+i)
			binary.BigEndian.PutUint64(n[152:], number)
			copy(n[160:176], f.meta[:])
			setChecksum(n, 100)
		}
	}
	return r.store(chunk, off/basicBlock)
}

// maxCreated is more than the inodes of one create item: a block of 64 KiB has 256.
const maxCreated = 1024

// freed tells whether a buffer that begins with that basic block is freed later in the log.
func (r *replay) freed(block int64) bool {
	for length := uint16(1); length <= maxBufferBlocks; length *= 2 {
		if r.cancelled[bufferKey{block, length}] > 0 {
			return true
		}
	}
	return false
}

// inodeItem is the first region of an inode item.
type inodeItem struct {
	fields           uint32
	ino              uint64
	device           uint32
	block            int64
	length, position int32
}

func parseInodeItem(b []byte) (inodeItem, error) {
	le, at := binary.LittleEndian, 16
	switch len(b) {
	case inodeItemBytes:
	case inodeItemOld:
		at = 12
	default:
		return inodeItem{}, fmt.Errorf("%w: an inode item of %d bytes", errLog, len(b))
	}
	return inodeItem{
		fields: le.Uint32(b[4:]), ino: le.Uint64(b[at:]), device: le.Uint32(b[at+8:]),
		block:  int64(le.Uint64(b[at+24:])),
		length: int32(le.Uint32(b[at+32:])), position: int32(le.Uint32(b[at+36:])),
	}, nil
}

// inode replays an inode item.
func (r *replay) inode(it *item, lsn uint64) error {
	f := r.j.f
	k, err := parseInodeItem(it.regions[0])
	if err != nil {
		return err
	}
	if k.length < 1 || k.length > maxBufferBlocks || k.position < 0 || len(it.regions) < 2 {
		return fmt.Errorf("%w: item of inode %d with %d regions at byte %d", errLog, k.ino,
			len(it.regions), k.position)
	}
	if r.cancelled[bufferKey{k.block, uint16(k.length)}] > 0 {
		return nil
	}
	at := k.block*basicBlock + int64(k.position)
	if want, ok := f.inodePlace(k.ino); !ok || at != want {
		return fmt.Errorf("%w: item of inode %d is for byte %d", errLog, k.ino, at)
	}
	// It is laid over whole sectors.
	block := at / basicBlock
	n := max(f.super.inode/basicBlock, 1)
	b, err := r.load(block, n)
	if err != nil {
		return err
	}
	raw := b[at%basicBlock:][:f.super.inode]
	if be16(raw, 0) != inodeMagic {
		return fmt.Errorf("%w: there is no inode where inode %d is to be", errLog, k.ino)
	}
	if f.newer(raw, it.regions[1], lsn) {
		return r.owner(&k, raw)
	}
	if err := f.setInode(raw, it, &k, lsn); err != nil {
		return err
	}
	if err := r.store(b, block); err != nil {
		return err
	}
	return r.owner(&k, raw)
}

// newer tells whether the inode on the disk is newer than the one in the log: in version 5 by its
// LSN, before that by how often it was written.
func (f *FS) newer(raw, logged []byte, lsn uint64) bool {
	if f.v5 {
		have := be64(raw, 112)
		return have != 0 && have != noLSN && have > lsn
	}
	if len(logged) < logInodeBytes2 {
		return false // refused by setInode
	}
	have, here := be16(raw, 30), binary.LittleEndian.Uint16(logged[30:])
	return here < have && (have != maxFlushes || here >= maxFlushes/2)
}

// setInode writes the logged inode and its forks over the one on the disk.
func (f *FS) setInode(raw []byte, it *item, k *inodeItem, lsn uint64) error {
	logged := it.regions[1]
	size := logInodeBytes2
	if f.v5 {
		size = logInodeBytes
	}
	if len(logged) < size || binary.LittleEndian.Uint16(logged) != inodeMagic {
		return fmt.Errorf("%w: inode %d in the log has %d bytes", errLog, k.ino, len(logged))
	}
	if f.v5 != (logged[4] == 3) {
		return fmt.Errorf("%w: inode %d in the log has version %d", errLog, k.ino, logged[4])
	}
	swapInode(raw, logged, f.v5)
	head := 100
	if f.v5 {
		binary.BigEndian.PutUint64(raw[112:], lsn)
		head = logInodeBytes
	}
	if k.fields&fieldDevice != 0 {
		binary.BigEndian.PutUint32(raw[head:], k.device)
	}
	split := head + int(raw[82])*8
	if split >= len(raw) {
		return fmt.Errorf("%w: inode %d in the log has its attribute fork at byte %d", errLog, k.ino,
			split)
	}
	data, attr := raw[head:], []byte(nil)
	if split > head {
		data, attr = raw[head:split], raw[split:]
	}
	next := 2
	for _, part := range []struct {
		fields, btree uint32
		room          []byte
	}{{k.fields & fieldsData, fieldDataBtree, data}, {k.fields & fieldsAttr, fieldAttrBtree, attr}} {
		if part.fields == 0 {
			continue
		}
		if next >= len(it.regions) || bits.OnesCount32(part.fields) != 1 {
			return fmt.Errorf("%w: item of inode %d has fields 0x%x and %d regions", errLog, k.ino,
				k.fields, len(it.regions))
		}
		if err := f.setFork(part.room, it.regions[next], part.fields == part.btree); err != nil {
			return fmt.Errorf("fork of inode %d: %w", k.ino, err)
		}
		next++
	}
	if f.v5 {
		setChecksum(raw, 100)
	}
	return nil
}

// swapInode turns the numbers of a logged inode around, but the checksum and what links unlinked
// inodes, which are not taken from there.
func swapInode(raw, logged []byte, v5 bool) {
	// The widths of the fields, in order.
	widths := []int{2, 2, 1, 1, 2, 4, 4, 4, 2, 2, 8, 8, 8, 8, 8, 8, 4, 4, 2, 1, 1, 4, 2, 2, 4}
	counts64 := v5 && binary.LittleEndian.Uint64(logged[120:])&flag2Nrext64 != 0
	big := v5 && binary.LittleEndian.Uint64(logged[120:])&flag2Bigtime != 0
	swapFields(raw, logged, 0, widths)
	if !counts64 {
		clear(raw[24:32]) // in version 2 how often it was written, which begins again
	}
	times := []int{32, 40, 48}
	if v5 {
		swapFields(raw, logged, 104, []int{8, 8, 8, 4})
		clear(raw[132:144])
		swapFields(raw, logged, 144, []int{8, 8})
		copy(raw[160:176], logged[160:176])
		times = append(times, 144)
	}
	for _, t := range times {
		if !big {
			swapFields(raw, logged, t, []int{4, 4})
		}
	}
	clear(raw[6:8])
}

// swapFields turns a row of fields around.
func swapFields(to, from []byte, at int, widths []int) {
	for _, w := range widths {
		for i := range w {
			to[at+i] = from[at+w-1-i]
		}
		at += w
	}
}

// setFork writes a logged fork. The root of a btree is logged as it is in memory: with the head of a
// block and its own room between keys and pointers.
func (f *FS) setFork(room, logged []byte, btree bool) error {
	if !btree {
		if len(logged) > len(room) {
			return fmt.Errorf("%w: %d bytes for a room of %d", errLog, len(logged), len(room))
		}
		copy(room, logged)
		return nil
	}
	head := 24
	if f.v5 {
		head = 72
	}
	if len(logged) < head || len(room) < 4 {
		return fmt.Errorf("%w: the root of a btree in %d bytes", errLog, len(logged))
	}
	from, to := (len(logged)-head)/16, (len(room)-4)/16
	records := int(be16(logged, 6))
	if records > from || records > to {
		return fmt.Errorf("%w: the root of a btree with %d records", errLog, records)
	}
	copy(room[:4], logged[4:8])
	copy(room[4:], logged[head:][:8*records])
	copy(room[4+8*to:], logged[head+8*from:][:8*records])
	return nil
}

// owner gives the blocks of the btrees of a fork another owner, where two files exchanged them.
func (r *replay) owner(k *inodeItem, raw []byte) error {
	f := r.j.f
	if !f.v5 || be16(raw, 2) == 0 {
		return nil
	}
	split := logInodeBytes + int(raw[82])*8
	if k.fields&fieldDataOwner != 0 && raw[5] == formatBtree {
		end := split
		if split == logInodeBytes {
			end = len(raw)
		}
		if end > len(raw) {
			return errLog
		}
		if err := r.ownerRoot(k.ino, raw[logInodeBytes:end]); err != nil {
			return err
		}
	}
	if k.fields&fieldAttrOwner != 0 && raw[83] == formatBtree && split < len(raw) {
		return r.ownerRoot(k.ino, raw[split:])
	}
	return nil
}

func (r *replay) ownerRoot(ino uint64, room []byte) error {
	if len(room) < 4 {
		return errLog
	}
	level, records, most := int(be16(room, 0)), int(be16(room, 2)), (len(room)-4)/16
	if level < 1 || level > maxBmapLevel || records > most {
		return fmt.Errorf("%w: btree of inode %d with %d levels", errLog, ino, level)
	}
	left := r.j.f.blocks
	for i := range records {
		if err := r.ownerBlock(ino, be64(room, 4+8*most+8*i), level-1, &left); err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) ownerBlock(ino, block uint64, level int, left *int64) error {
	f := r.j.f
	off, ok := f.extentPlace(block, 1)
	if *left--; !ok || *left < 0 {
		return fmt.Errorf("%w: btree of inode %d leads to block 0x%x", errLog, ino, block)
	}
	b, err := r.load(off/basicBlock, f.block/basicBlock)
	if err != nil {
		return err
	}
	records, most := int(be16(b, 6)), (int(f.block)-72)/16
	if be32(b, 0) != bmapMagic5 || int(be16(b, 4)) != level || records > most {
		return fmt.Errorf("%w: btree of inode %d has no block at 0x%x", errLog, ino, off)
	}
	if be64(b, 56) != ino {
		binary.BigEndian.PutUint64(b[56:], ino)
		setChecksum(b, 64)
		if err := r.store(b, off/basicBlock); err != nil {
			return err
		}
	}
	for i := range records {
		if level == 0 {
			break
		}
		if err := r.ownerBlock(ino, be64(b, 72+8*most+8*i), level-1, left); err != nil {
			return err
		}
	}
	return nil
}
