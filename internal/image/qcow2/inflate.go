// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

// inflateAll unpacks every compressed cluster. A stream that gives no cluster is lost data that no
// table shows.
func (c *checker) inflateAll(ctx context.Context) error {
	if !c.opts.Inflate || c.counts.CompressedClusters == 0 && c.snapshots.Len() == 0 {
		return nil
	}
	if c.h.Crypt != CryptNone {
		c.blindSpot(finding.Blind{What: "compressed clusters", Reason: "the image is encrypted"})
		return nil
	}
	d, err := NewDisk(c.r, int64(c.fileBytes), c.h, DiskOptions{})
	if err != nil {
		c.blindSpot(finding.Blind{What: "compressed clusters", Reason: err.Error()})
		return ctx.Err()
	}
	c.progress.total += int64(len(c.tables)) << c.bits
	outs := sync.Pool{New: func() any { p := make([]byte, c.cs); return &p }}
	var mu sync.Mutex
	blind, cut, unreadable, errs := len(c.blind), c.blindCut, c.unreadable, c.counts.CheckErrors
	var missed []finding.Blind
	err = c.readTables(ctx, func(tb *table, off int64, piece []byte, _ *uint64) error {
		out := outs.Get().(*[]byte)
		defer outs.Put(out)
		step := int(c.h.L2EntryBytes())
		ref := c.refsOf(c.tableIndex(tb))[0]
		for at := 0; at+step <= len(piece); at += step {
			entry := binary.BigEndian.Uint64(piece[at:])
			if entry&FlagCompressed == 0 || c.faultOf(entry, 0) == faultPastEnd {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			guest := c.guestOf(int64(ref.index), (off+int64(at))/int64(step))
			err := d.unpack(*out, extent{Extent: image.Extent{Guest: guest, Length: int64(c.cs)}, entry: entry})
			if err == nil {
				continue
			}
			mu.Lock()
			missed = append(missed, c.notUnpacked(tb, int64(tb.off)+off+int64(at), int64(guest), entry, err)...)
			mu.Unlock()
		}
		return nil
	})
	// What could not be read of the tables was said before.
	c.blind, c.blindCut, c.unreadable, c.counts.CheckErrors = c.blind[:blind], cut, unreadable, errs
	for _, b := range missed {
		c.blindSpot(b)
	}
	return err
}

// notUnpacked reports a compressed cluster that cannot be unpacked: as a finding if its data is
// wrong, as a blind spot if it could not be read.
func (c *checker) notUnpacked(tb *table, at, guest int64, entry uint64, err error) []finding.Blind {
	off, length := c.h.CompressedRange(entry)
	host := finding.Range{Offset: int64(off), Length: length}
	g := finding.Range{Offset: guest, Length: max(0, min(int64(c.cs), c.h.SizeBytes-guest))}
	if !errors.Is(err, ErrEntry) {
		return []finding.Blind{{What: "compressed cluster", Reason: readReason(err),
			Host: []finding.Range{host}, Guest: []finding.Range{g}}}
	}
	f := c.newFinding(finding.QC18, finding.Sure, "does_not_unpack", "compressed clusters do not unpack: what they held is lost")
	f.Host, f.Guest = []finding.Range{host}, []finding.Range{g}
	if tb.active == 0 {
		r := c.refsOf(c.tableIndex(tb))[0]
		f.Snapshot = c.snapshots.Snapshots[c.l1s[r.l1].snapshots[0]].Name
	}
	f.Evidence = []finding.Evidence{{Source: "L2 entry", Offset: at, Value: hex64(entry),
		Text: fmt.Sprintf("maps guest offset %#x", guest)}}
	c.merge(f, alike{})
	return nil
}
