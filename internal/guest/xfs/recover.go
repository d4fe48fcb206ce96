// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// What the records of the log hold, by xfs_log_format.h and xfs_log_recover.c. Their data is a row of
// operations, each a head of 12 bytes (big endian) and a region:
//
//	0 transaction  4 bytes of the region  8 client  9 flags: 1 start, 2 commit, 4 goes on in the next
//	record, 8 goes on from the record before, 0x10 and that ends it, 0x20 unmount
//
// The regions of a transaction are its head (16 bytes, "TRAN") and its items. The first region of an
// item begins with its type (2) and how many regions it has (2); all that is in the byte order of
// the machine that wrote it, here little endian.
const (
	opStart, opCommit, opContinues, opContinued, opEnds = 1, 2, 4, 8, 0x10

	clientTransaction, clientLog = 0x69, 0xaa

	transactionMagic     = 0x5452414e
	transactionHeadBytes = 16

	itemEFI, itemEFD               = 0x1236, 0x1237
	itemUnlink, itemInode, itemBuf = 0x1238, 0x123b, 0x123c
	itemDquot, itemQuotaOff        = 0x123d, 0x123e
	itemCreate                     = 0x123f
	itemRUI, itemCUI, itemBUI      = 0x1240, 0x1242, 0x1244
	itemATTRI, itemXMI             = 0x1246, 0x1248
	itemLast                       = 0x124f

	// maxRegions is more than an item of the kernel can have.
	maxRegions = 4096
	// maxOpenBytes bounds the memory of transactions that are not committed yet. The kernel writes
	// none of more than 64 MiB. What one takes besides its regions, and a region besides its bytes, is
	// transactionCost and regionCost.
	maxOpenBytes    = 72 << 20
	transactionCost = 256
	regionCost      = 64
	// maxIntentBytes bounds the memory of what was begun and is not done yet.
	maxIntentBytes = 16 << 20
	intentCost     = 256
	// maxOverlayBytes bounds what is replayed in memory.
	maxOverlayBytes = 96 << 20
	// maxCancelled bounds how many freed buffers are kept in mind: 20 MiB.
	maxCancelled = 1 << 19
)

// logUnknown are features of the log that are not known here; 1: attributes are logged as intents.
const logKnown = 1

var errUnsupported = errors.New("is not known")

// item is one change of a transaction.
type item struct {
	kind    uint16
	total   int
	regions [][]byte
}

// transaction is one that was not committed yet.
type transaction struct {
	lsn   uint64
	head  []byte
	items []item
	bytes int
}

// bufferKey names a buffer: its first basic block and how many it has.
type bufferKey struct {
	block  int64
	length uint16
}

// replay is one pass over the log.
type replay struct {
	j         *journal
	overlay   *files.Overlay
	open      map[uint32]*transaction
	bytes     int // of memory that open transactions take
	cancelled map[bufferKey]int
	second    bool // the first pass only looks for what was cancelled
	intents   map[uint64]item
	begun     int // bytes of memory that intents take
	committed int64
	written   int64
}

// recover replays the log over the volume. What keeps it from that is noted; the error is that of
// ctx, or says that there is no superblock after it.
func (f *FS) recover(ctx context.Context) error {
	j := &journal{f: f, blocks: f.logBlocks << f.blockLog / basicBlock}
	what := "the log was not replayed"
	if f.logStart == 0 {
		f.notes.Note(files.Problem{What: what + ": it is on another device", Offset: -1, Hides: true})
		return nil
	}
	off, ok := f.extentPlace(f.logStart, f.logBlocks)
	if !ok {
		f.notes.Note(files.Problem{What: fmt.Sprintf("%s: %d blocks at 0x%x are beyond the end", what,
			f.logBlocks, f.logStart), Offset: -1, Hides: true})
		return nil
	}
	j.off = off
	err := j.replay(ctx)
	f.cache.drop()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.notes.Note(files.Problem{What: fmt.Sprintf("%s to its end: %v", what, err), Offset: off,
			Length: f.logBlocks * f.block, Hides: true})
	}
	return nil
}

// replay finds what there is to replay, and lays it over the volume.
func (j *journal) replay(ctx context.Context) error {
	f := j.f
	empty, err := j.findHead()
	if err != nil || empty {
		return err
	}
	clean, err := j.findTail(ctx)
	if err != nil {
		return err
	}
	lost := j.lost()
	if clean {
		return lost
	}
	f.dirty = true
	if unknown := f.logIn &^ logKnown; f.v5 && unknown != 0 {
		return fmt.Errorf("it has features that are not known: 0x%x", unknown)
	}
	under := &source{f: f, volume: f.volume, pieces: true}
	r := &replay{j: j, overlay: files.NewOverlay(under, basicBlock, maxOverlayBytes),
		cancelled: make(map[bufferKey]int), intents: make(map[uint64]item)}
	for _, r.second = range []bool{false, true} {
		r.open, r.bytes = make(map[uint32]*transaction), 0
		if _, err = j.each(ctx, j.tail, r.record); err != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.notes.Replayed(r.committed, r.written)
	under.pieces = false
	f.volume = r.overlay
	f.cache.drop()
	r.pending()
	return cmp.Or(err, f.readAgain(), lost)
}

// source is the volume under what is replayed. What is changed lies together mostly, so that during
// the replay it is read in pieces.
type source struct {
	f      *FS
	volume io.ReaderAt
	pieces bool
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if !s.pieces {
		return s.volume.ReadAt(p, off)
	}
	b, err := s.f.read(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	return copy(p, b), nil
}

// readAgain reads the superblock after the log was replayed over it.
func (f *FS) readAgain() error {
	if f.copied {
		return nil // the one in its place was broken before
	}
	s, _, err := f.superAt(0)
	if err != nil {
		return fmt.Errorf("superblock after that: %w", err)
	}
	f.super = s
	return nil
}

// drop forgets all pieces.
func (c *cache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.windows = nil
}

// record takes the operations of a record, in order.
func (r *replay) record(rec *record) error {
	b := rec.data
	for i := range rec.operations {
		if len(b) < operationBytes {
			return fmt.Errorf("%w: record at block %d ends in operation %d", errLog, rec.start, i)
		}
		length := int(be32(b, 4))
		if length < 0 || length > len(b)-operationBytes {
			return fmt.Errorf("%w: operation %d of the record at block %d has %d bytes", errLog, i,
				rec.start, length)
		}
		region := b[operationBytes:][:length:length]
		if err := r.operation(rec, be32(b, 0), b[8], b[9], region); err != nil {
			return err
		}
		b = b[operationBytes+length:]
	}
	return nil
}

// operation takes one operation of a transaction.
func (r *replay) operation(rec *record, id uint32, client, flags byte, region []byte) error {
	if client != clientTransaction && client != clientLog {
		return fmt.Errorf("%w: client 0x%x in the record at block %d", errLog, client, rec.start)
	}
	t := r.open[id]
	if t == nil {
		if flags&opStart != 0 {
			t = &transaction{lsn: rec.lsn}
			r.open[id] = t
			return r.charge(t, transactionCost)
		}
		return nil // of a transaction that began before the tail: it is in its place
	}
	flags &^= opEnds
	if flags&opContinued != 0 {
		flags &^= opContinues
	}
	switch flags {
	case 0, opContinues, opContinued:
		if err := r.charge(t, regionCost+len(region)); err != nil {
			return err
		}
		// A copy, since it may stay for long: the record that it is a part of is let go.
		return t.add(bytes.Clone(region), flags == opContinued)
	case opCommit:
		delete(r.open, id)
		r.bytes -= t.bytes
		return r.commit(t)
	case operationEnds:
		delete(r.open, id)
		r.bytes -= t.bytes
		return nil
	}
	return fmt.Errorf("%w: flags 0x%x in the record at block %d", errLog, flags, rec.start)
}

// charge counts memory that a transaction takes until it is committed.
func (r *replay) charge(t *transaction, n int) error {
	t.bytes += n
	if r.bytes += n; r.bytes > maxOpenBytes {
		return fmt.Errorf("%w: open transactions of more than %d bytes", errLog, maxOpenBytes)
	}
	return nil
}

// add takes a region, or the rest of the one before.
func (t *transaction) add(region []byte, rest bool) error {
	if len(region) == 0 {
		return nil
	}
	if len(t.head) < transactionHeadBytes {
		if len(t.head)+len(region) > transactionHeadBytes {
			return fmt.Errorf("%w: the head of a transaction has %d bytes", errLog,
				len(t.head)+len(region))
		}
		t.head = append(t.head, region...)
		if len(t.head) >= 4 && binary.LittleEndian.Uint32(t.head) != transactionMagic {
			return fmt.Errorf("%w: a transaction begins with 0x%x", errLog,
				binary.LittleEndian.Uint32(t.head))
		}
		return nil
	}
	if rest {
		if len(t.items) == 0 {
			return fmt.Errorf("%w: a transaction begins in the middle of an item", errLog)
		}
		last := &t.items[len(t.items)-1]
		if len(last.regions) == 0 {
			return errLog
		}
		region = append(last.regions[len(last.regions)-1], region...)
		last.regions[len(last.regions)-1] = region
		return nil
	}
	if n := len(t.items); n > 0 && len(t.items[n-1].regions) < t.items[n-1].total {
		t.items[n-1].regions = append(t.items[n-1].regions, region)
		return nil
	}
	if len(region) < 4 {
		return fmt.Errorf("%w: an item begins with %d bytes", errLog, len(region))
	}
	le := binary.LittleEndian
	it := item{kind: le.Uint16(region), total: int(le.Uint16(region[2:])), regions: [][]byte{region}}
	if it.total < 1 || it.total > maxRegions {
		return fmt.Errorf("%w: an item 0x%x has %d regions", errLog, it.kind, it.total)
	}
	t.items = append(t.items, it)
	return nil
}

// commit carries out the items of a transaction in the order that the kernel does: buffers, then the
// rest, then what links unlinked inodes, then what was cancelled.
func (r *replay) commit(t *transaction) error {
	for i := range t.items {
		if it := &t.items[i]; len(it.regions) < it.total {
			return fmt.Errorf("%w: an item 0x%x has %d regions of %d", errLog, it.kind, len(it.regions),
				it.total)
		}
	}
	if !r.second {
		return r.noteCancelled(t)
	}
	r.committed++
	for turn := range 4 {
		for i := range t.items {
			it := &t.items[i]
			own, err := it.turn()
			if err == nil && own == turn {
				err = r.item(it, t.lsn)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// turn says when in its transaction an item is carried out.
func (it *item) turn() (int, error) {
	switch it.kind {
	case itemBuf:
		b, err := parseBuffer(it)
		switch {
		case err != nil:
			return 0, err
		case b.flags&bufferCancel != 0:
			return 3, nil
		case b.flags&bufferInodes != 0:
			return 2, nil
		}
		return 0, nil
	case itemCreate:
		return 0, nil
	}
	return 1, nil
}

// noteCancelled counts the buffers of a transaction that are freed by it: nothing of before is
// replayed into them.
func (r *replay) noteCancelled(t *transaction) error {
	for i := range t.items {
		if t.items[i].kind != itemBuf {
			continue
		}
		b, err := parseBuffer(&t.items[i])
		if err != nil {
			return err
		}
		if b.flags&bufferCancel == 0 {
			continue
		}
		if len(r.cancelled) >= maxCancelled {
			return fmt.Errorf("%w: more than %d freed buffers", errLog, maxCancelled)
		}
		r.cancelled[b.key]++
	}
	return nil
}

// item carries out one change.
func (r *replay) item(it *item, lsn uint64) error {
	switch it.kind {
	case itemBuf:
		return r.buffer(it, lsn)
	case itemInode:
		return r.inode(it, lsn)
	case itemCreate:
		return r.create(it)
	case itemDquot, itemQuotaOff, itemUnlink:
		return nil // quotas are not shown; the last one was never written by any kernel
	}
	if it.kind < itemEFI || it.kind > itemLast {
		return fmt.Errorf("an item of type 0x%x %w", it.kind, errUnsupported)
	}
	return r.intent(it)
}

// intent takes what was to be done after its transaction (even types, and EFI), or that it was done.
// Both have their number at byte 8.
func (r *replay) intent(it *item) error {
	b := it.regions[0]
	if len(b) < 16 {
		return fmt.Errorf("%w: an intent of %d bytes", errLog, len(b))
	}
	number := binary.LittleEndian.Uint64(b[8:])
	if old, is := r.intents[number]; is {
		delete(r.intents, number)
		r.begun -= old.cost()
	}
	if it.kind&1 != 0 {
		return nil
	}
	if r.begun+it.cost() > maxIntentBytes {
		return fmt.Errorf("%w: intents of more than %d bytes", errLog, maxIntentBytes)
	}
	r.begun += it.cost()
	r.intents[number] = *it
	return nil
}

// cost is the memory that an intent takes.
func (it *item) cost() int {
	n := intentCost
	for _, region := range it.regions {
		n += regionCost + len(region)
	}
	return n
}

// pending notes what was to be done and was not, as far as names, attributes or content depend on
// it. A mount does it. Of the others an EFI frees space that no file has any more, an RUI changes
// the reverse map, and a CUI the counts of who shares what: neither changes what a file holds.
func (r *replay) pending() {
	le := binary.LittleEndian
	for _, it := range r.intents {
		b := it.regions[0]
		switch it.kind {
		case itemEFI:
			r.free(b)
		case itemRUI:
			r.j.f.staleMap = true
		case itemBUI:
			for at := 16; at+32 <= len(b); at += 32 {
				r.hurt(le.Uint64(b[at:]), "a change of its extents")
			}
		case itemXMI:
			if len(b) >= 32 {
				r.hurt(le.Uint64(b[16:]), "an exchange of its content")
				r.hurt(le.Uint64(b[24:]), "an exchange of its content")
			}
		case itemATTRI:
			// From 4 on these are the names of parents, which nobody is shown.
			if len(b) >= 32 && le.Uint32(b[24:])&0xff < 4 {
				r.hurt(le.Uint64(b[16:]), "a change of its extended attributes")
			}
		}
	}
}

// free keeps what an EFI was to free: 4 how many extents, from 16 on first block (8) and blocks (4),
// with 4 bytes of fill but on 32-bit machines.
func (r *replay) free(b []byte) {
	le := binary.LittleEndian
	n := int(le.Uint32(b[4:]))
	size := 16
	if len(b) < 16+16*n {
		size = 12
	}
	for i := 0; i < n && 16+size*(i+1) <= len(b); i++ {
		e := b[16+size*i:]
		r.j.f.freed = append(r.j.f.freed, extent{start: le.Uint64(e), count: int64(le.Uint32(e[8:]))})
	}
}

func (r *replay) hurt(ino uint64, what string) {
	off, ok := r.j.f.inodePlace(ino)
	if !ok {
		off = -1
	}
	r.j.f.notes.Note(files.Problem{What: fmt.Sprintf("inode %d: the log has %s that was begun and is "+
		"not replayed", ino, what), Offset: off, Length: r.j.f.super.inode, Ino: files.Ino(ino),
		Hides: true})
}
