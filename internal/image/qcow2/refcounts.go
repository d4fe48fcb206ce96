// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// The refcount structure ("Host cluster management"): the refcount table is an array of offsets of
// refcount blocks; a block is one cluster of refcounts, 1 to 64 bits wide, big-endian, those below
// a byte filling it from its lowest bit. A block that the table does not name has refcounts of 0.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
)

// badBlock is a refcount block that cannot be used as it is.
type badBlock struct {
	index int64
	why   string
}

// readReftable reads the refcount table, up to its last entry that is not zero.
func (c *checker) readReftable() {
	end := min(c.h.ReftableEntries()*8, max(int64(c.fileBytes)-int64(c.h.ReftableOff), 0))
	buf := c.spare.get(min((end+7)&^7, l1StepBytes))
	defer c.spare.put(buf)
	for pos := int64(0); pos < end; pos += l1StepBytes {
		p := buf[:min((end-pos+7)&^7, l1StepBytes)]
		if _, err := readPadded(c.r, p, int64(c.h.ReftableOff)+pos, int64(c.fileBytes)); err != nil {
			c.counts.CheckErrors++
			c.blindSpot(finding.Blind{What: "refcount table", Reason: readReason(err),
				Host: []finding.Range{{Offset: int64(c.h.ReftableOff), Length: end}}})
			c.reftable, c.noRefcounts = nil, true
			return
		}
		for i := 0; i < len(p); i += 8 {
			e := binary.BigEndian.Uint64(p[i:])
			if e == 0 {
				continue
			}
			for no := (pos + int64(i)) / 8; int64(len(c.reftable)) <= no; {
				c.reftable = append(c.reftable, 0)
			}
			c.reftable[len(c.reftable)-1] = e
		}
	}
}

// countMetadata counts the image's references to itself, in qemu's order, for it decides which of
// two claims to a cluster is the fault. Afterwards data holds all references.
func (c *checker) countMetadata(ctx context.Context) error {
	cs := int64(c.cs)
	if err := c.inc(0, cs, 1, "header", finding.QC11); err != nil {
		return err
	}
	for i := range c.l1s {
		t := &c.l1s[i]
		if err := c.inc(int64(t.off), t.entries*8, uint64(t.weight()), c.l1Name(i), finding.QC11); err != nil {
			return err
		}
	}
	if err := c.countL2Tables(); err != nil {
		return err
	}
	if n := c.snapshots.Bytes; n > 0 {
		if err := c.inc(int64(c.h.SnapshotsOff), n, 1, "snapshot table", finding.QC11); err != nil {
			return err
		}
	}
	if err := c.inc(int64(c.h.ReftableOff), c.h.ReftableEntries()*8, 1, refcountTable, finding.QC11); err != nil {
		return err
	}
	if err := c.countCryptHeader(); err != nil {
		return err
	}
	if err := c.countBitmaps(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.countRefblocks()
}

// countL2Tables counts the tables themselves, which L1 entries refer to.
func (c *checker) countL2Tables() error {
	for i := range c.tables {
		tb := &c.tables[i]
		off := uint64(tb.off)
		if beyond(off, c.cs, c.fileBytes, c.cs) {
			c.counts.Corruptions += int64(tb.refs)
			c.past = c.past || tb.active > 0
			continue
		}
		s := span{int64(off >> c.bits), int64((off + c.cs - 1) >> c.bits)}
		for _, r := range c.refsOf(i) {
			kind := refPlain
			if c.l1s[r.l1].active && off != 0 {
				kind = tb.kind(r.entry)
			}
			w := uint64(c.l1s[r.l1].weight())
			if err := c.meta.add(s.first, s.first, w, kind); err != nil {
				return err
			}
			if s.last > s.first {
				if err := c.meta.add(s.last, s.last, w, refPlain); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *checker) countCryptHeader() error {
	if c.h.CryptLen == 0 {
		return nil
	}
	return c.inc(int64(c.h.CryptOff), c.h.CryptLen, 1, "encryption header", finding.QC24)
}

// countBitmaps counts the clusters of persistent bitmaps. Where qemu gives the whole check up, this
// one goes on without the bitmap that is broken.
func (c *checker) countBitmaps() error {
	if c.h.Bitmaps == nil {
		return nil
	}
	if !c.h.Bitmaps.Trusted {
		f := c.newFinding(finding.QC17, finding.Sure, "untrusted",
			"all bitmaps of the image are marked as invalid, as by a program that wrote to it and does not know them")
		f.Next = "make the next backup a full one; qemu drops the bitmaps when it next opens the image for writing"
		c.findings = append(c.findings, f)
		return nil
	}
	if err := c.inc(int64(c.h.Bitmaps.DirOff), c.h.Bitmaps.DirSize, 1, "bitmap directory", finding.QC17); err != nil {
		return err
	}
	bitmaps, err := ReadBitmaps(c.r, int64(c.fileBytes), c.h)
	if err != nil {
		if c.brokenBitmap("the bitmap directory", err) {
			c.refusedBitmaps("the bitmap directory", err)
		}
		return nil
	}
	// What cannot be read is a blind spot, below: a bitmap is not given up for it.
	for _, err := range LoadBitmaps(c.r, int64(c.fileBytes), c.h, bitmaps) {
		if err != nil && !errors.Is(err, ErrRead) {
			c.refusedBitmaps("a bitmap", err)
		}
	}
	for i := range bitmaps {
		b := &bitmaps[i]
		name := fmt.Sprintf("bitmap %q", b.Name)
		if b.InUse {
			f := c.newFinding(finding.QC17, finding.Sure, "not_saved", name+" was not saved when the image was last closed")
			f.Next = fmt.Sprintf("make the next backup that uses it a full one; qemu does not use it any more, and takes it away with "+
				"qemu-img bitmap --remove IMAGE %q", b.Name)
			if c.opts.Running {
				f.Severity = finding.Note // a running machine keeps it in memory
			}
			c.findings = append(c.findings, f)
		}
		if err := c.inc(int64(b.TableOff), b.TableEntries*8, 1, "table of "+name, finding.QC17); err != nil {
			return err
		}
		// The error of counting ends the check; that of the table is about the table.
		var countErr error
		err := ReadBitmapTable(c.r, int64(c.fileBytes), c.h, b, func(_ int64, entries []uint64) error {
			for _, e := range entries {
				if e&OffsetMask == 0 {
					continue
				}
				if countErr = c.inc(int64(e&OffsetMask), int64(c.cs), 1, name, finding.QC17); countErr != nil {
					return countErr
				}
			}
			return nil
		})
		if countErr != nil {
			return countErr
		}
		if err != nil && c.brokenBitmap(name, err) {
			c.findings = append(c.findings, c.bitmapFinding("unusable", name+" cannot be used", err))
		}
	}
	return nil
}

// brokenBitmap counts what cannot be used of bitmaps. It reports whether that is wrong, which is to be a
// finding; what cannot be read is a blind spot.
func (c *checker) brokenBitmap(name string, err error) bool {
	c.unreadable++ // its clusters would look leaked
	var open *OpenError
	if errors.As(err, &open) && open.Kind == ErrRead {
		c.counts.CheckErrors++
		c.blindSpot(finding.Blind{What: name, Reason: readReason(err),
			Host: []finding.Range{{Offset: int64(open.Off), Length: 1}}})
		return false
	}
	c.counts.Corruptions++
	return true
}

// refusedBitmaps reports that qemu refuses the whole image for its bitmaps (qcow2_load_dirty_bitmaps in
// block/qcow2-bitmap.c, QEMU 7.2): no machine starts from it.
func (c *checker) refusedBitmaps(what string, err error) {
	f := c.bitmapFinding("refused", "qemu refuses to open the image because of "+what, err)
	f.Severity = finding.Danger
	f.Next = "shisa repair marks all bitmaps as invalid, so that qemu opens the image; make the next backup a full one"
	c.findings = append(c.findings, f)
}

func (c *checker) bitmapFinding(kind, what string, err error) finding.Finding {
	f := c.newFinding(finding.QC17, finding.Sure, kind, fmt.Sprintf("%s: %v", what, err))
	var open *OpenError
	if errors.As(err, &open) {
		f.Host = []finding.Range{{Offset: int64(open.Off), Length: 8}}
	}
	return f
}

// countRefblocks counts the refcount blocks. Each must be nobody else's: a second reference is a
// fault of its own, whatever its refcount says.
func (c *checker) countRefblocks() error {
	limit := c.limit()
	var seen map[uint64]int // the first entry with this offset
	for i, e := range c.reftable {
		off := e & reftableOffMask
		switch {
		case e == 0:
			continue
		case e&reftableReserved != 0:
			c.counts.Corruptions++
			c.badBlocks = append(c.badBlocks, badBlock{int64(i), fmt.Sprintf("its entry %#x has reserved bits set", e)})
			continue
		case off&(c.cs-1) != 0:
			c.counts.Corruptions++
			c.badBlocks = append(c.badBlocks, badBlock{int64(i), fmt.Sprintf("its offset %#x is not cluster aligned", off)})
			continue
		case off>>c.bits >= limit:
			c.counts.Corruptions++
			c.badBlocks = append(c.badBlocks, badBlock{int64(i), fmt.Sprintf("it lies at %#x, past the end of the file", off)})
			continue
		}
		cluster := int64(off >> c.bits)
		if err := c.inc(int64(off), int64(c.cs), 1, "refcount block", finding.QC11); err != nil {
			return err
		}
		if n := c.data.count(cluster) + c.meta.count(cluster); min(n, c.h.MaxRefcount()) != 1 {
			c.counts.Corruptions++
			c.badBlocks = append(c.badBlocks, badBlock{int64(i), fmt.Sprintf("something else uses its cluster at %#x too", off)})
			if seen == nil { // only where something is wrong
				seen = map[uint64]int{}
				for k, e := range slices.Backward(c.reftable) {
					seen[e] = k
				}
			}
			if first := seen[e]; first < i {
				c.badBlocks = append(c.badBlocks, badBlock{int64(first), fmt.Sprintf("entry %d of the refcount table names the same cluster", i)})
			}
		}
	}
	return nil
}

// limit is the first cluster that is not compared: what the file has, and what a reference that
// ends in the cut last cluster adds.
func (c *checker) limit() uint64 {
	return max(c.clusters, uint64(max(c.data.highest(), c.meta.highest())+1))
}

// refblock reads the refcounts of block i. absent: all are 0 because there is none.
func (c *checker) refblock(i int64, buf []byte) (absent bool, err error) {
	if i >= int64(len(c.reftable)) || c.reftable[i]&reftableOffMask == 0 {
		return true, nil
	}
	off := c.reftable[i] & reftableOffMask
	if off&(c.cs-1) != 0 || off > math.MaxInt64-c.cs {
		return false, errBlockOffset
	}
	if off >= c.fileBytes {
		return true, nil
	}
	_, err = readPadded(c.r, buf, int64(off), int64(c.fileBytes))
	return false, err
}

// errBlockOffset: a refcount block where there can be none. One that lies past the end of the file
// at a place that could be, reads as zeros.
var errBlockOffset = errors.New("the offset of the refcount block is impossible")

// refcountAt decodes entry i of a refcount block.
func refcountAt(block []byte, i int64, order uint32) uint64 {
	switch order {
	case 0, 1, 2:
		width := uint(1) << order
		bit := uint(i) << order
		return uint64(block[bit>>3]>>(bit&7)) & (1<<width - 1)
	case 3:
		return uint64(block[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(block[2*i:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(block[4*i:]))
	}
	return binary.BigEndian.Uint64(block[8*i:])
}

// refcountPattern is eight bytes full of the refcount n, which must fit into its width.
func refcountPattern(n uint64, order uint32) (p [8]byte) {
	for bit := uint(0); bit < 64; bit += 1 << order {
		switch {
		case order < 3:
			p[bit>>3] |= byte(n << (bit & 7))
		default:
			for b := range uint(1) << (order - 3) {
				p[bit>>3+b] = byte(n >> (8 * (1<<(order-3) - 1 - b)))
			}
		}
	}
	return p
}
