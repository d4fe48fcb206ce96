// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

// l1table is one L1 table. Snapshots that name the same one share it.
type l1table struct {
	off     image.HostOff
	entries int64
	// active: it is the active one; else the snapshots (by index) that have it.
	active    bool
	snapshots []int
}

// weight is how many times the table is used.
func (t *l1table) weight() int64 {
	if t.active {
		return 1
	}
	return int64(len(t.snapshots))
}

// l1ref is an L1 entry that is not zero.
type l1ref struct {
	entry uint64
	index int32 // in its L1 table, so at most 4 Mi
	l1    int32 // in checker.l1s
}

func (r l1ref) table() uint64 { return r.entry & OffsetMask }

const (
	// l1StepBytes is how much of an L1 table is read at once.
	l1StepBytes = 64 << 10
	// maxL1ReadBytes bounds the bytes of all L1 tables: 65536 snapshots may each name 32 MiB of
	// holes in a file that takes no space at all.
	maxL1ReadBytes = 16 << 30
	// maxL1Refs bounds the L1 entries that are kept: 64 TiB of disk with 250 snapshots.
	maxL1Refs  = 1 << 25
	l1refBytes = 16
)

// readL1Tables reads the active L1 table and those of the snapshots.
func (c *checker) readL1Tables(ctx context.Context) error {
	c.l1s = append(c.l1s, l1table{off: c.h.L1Off, entries: c.h.L1Entries, active: true})
	type key struct{ off, entries int64 }
	seen := map[key]int{}
	if c.dataFile && c.snapshots.Len() > 0 {
		c.counts.Corruptions++
		c.findings = append(c.findings, c.newFinding(finding.QC16, finding.Sure, "with_data_file",
			fmt.Sprintf("%d internal snapshots in an image with an external data file, which cannot hold any",
				c.snapshots.Len())))
	}
	for i := range c.snapshots.Snapshots {
		s := &c.snapshots.Snapshots[i]
		if why := c.snapshotL1Fault(s); why != "" {
			c.counts.Corruptions++
			f := c.newFinding(finding.QC16, finding.Sure, "l1_unusable", fmt.Sprintf(
				"snapshot %q (%s) is lost: its L1 table %s", s.Name, s.ID, why))
			f.Snapshot = s.Name
			f.Host = []finding.Range{{Offset: int64(s.EntryOff), Length: s.EntryBytes}}
			c.findings = append(c.findings, f)
			c.unreadable++
			continue
		}
		k := key{int64(s.L1Off), s.L1Entries}
		if at, ok := seen[k]; ok {
			c.l1s[at].snapshots = append(c.l1s[at].snapshots, i)
			continue
		}
		seen[k] = len(c.l1s)
		c.l1s = append(c.l1s, l1table{off: s.L1Off, entries: s.L1Entries, snapshots: []int{i}})
	}
	var total int64
	for i := range c.l1s {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.readL1(i, &total); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) snapshotL1Fault(s *Snapshot) string {
	switch {
	case uint64(s.L1Off)&(c.cs-1) != 0:
		return fmt.Sprintf("is not cluster aligned (%#x)", uint64(s.L1Off))
	case s.L1Entries > MaxL1Bytes/8:
		return fmt.Sprintf("has %d entries, %d at most", s.L1Entries, MaxL1Bytes/8)
	}
	return ""
}

// readL1 gathers the entries of one L1 table.
func (c *checker) readL1(no int, total *int64) error {
	t := &c.l1s[no]
	// As in qemu, a table that lies past the end is a fault and reads as zeros.
	end := min(t.entries*8, max(int64(c.fileBytes)-int64(t.off), 0))
	if t.off < 0 {
		end = 0
	}
	buf := c.spare.get(min(end, l1StepBytes) + 7)
	defer c.spare.put(buf)
	for pos := int64(0); pos < end; pos += l1StepBytes {
		n := min(end-pos, l1StepBytes)
		if *total += n; *total > maxL1ReadBytes || int64(len(c.l1refs)) > min(maxL1Refs, c.opts.MemoryBytes/l1refBytes) {
			c.unreadable++
			c.blindSpot(finding.Blind{What: "L1 tables of snapshots",
				Reason: "they are more than is held in memory or read"})
			return nil
		}
		p := buf[:(n+7)&^7]
		if _, err := readPadded(c.r, p, int64(t.off)+pos, int64(c.fileBytes)); err != nil {
			c.unreadable++
			c.counts.CheckErrors++
			c.blindSpot(finding.Blind{What: c.l1Name(no), Reason: err.Error(),
				Host:  []finding.Range{{Offset: int64(t.off) + pos, Length: n}},
				Guest: []finding.Range{{Offset: pos / 8 * c.h.L2Span(), Length: n / 8 * c.h.L2Span()}}})
			continue
		}
		for i := 0; i < len(p); i += 8 {
			if e := binary.BigEndian.Uint64(p[i:]); e != 0 {
				c.l1refs = append(c.l1refs, l1ref{e, int32(pos/8) + int32(i/8), int32(no)})
			}
		}
	}
	return nil
}

func (c *checker) l1Name(no int) string {
	if t := &c.l1s[no]; !t.active {
		return fmt.Sprintf("L1 table of snapshot %q", c.snapshots.Snapshots[t.snapshots[0]].Name)
	}
	return "L1 table"
}

// gatherTables lists the distinct L2 tables and counts the faults of L1 entries.
func (c *checker) gatherTables() {
	sorted := slices.IsSortedFunc(c.l1refs, compareRefs)
	if !sorted {
		slices.SortFunc(c.l1refs, compareRefs)
	}
	distinct := 0
	for i, r := range c.l1refs {
		if i == 0 || r.table() != c.l1refs[i-1].table() {
			distinct++
		}
	}
	c.tables = make([]table, 0, distinct)
	for i, r := range c.l1refs {
		if n := len(c.tables); n == 0 || uint64(c.tables[n-1].off) != r.table() {
			c.tables = append(c.tables, table{off: image.HostOff(r.table()), firstRef: int32(i)})
		}
		t := &c.tables[len(c.tables)-1]
		w := c.l1s[r.l1].weight()
		t.refs += uint64(w)
		if c.l1s[r.l1].active {
			t.active++
		}
		if r.entry&l1ReservedMask != 0 {
			c.l1Faults += w
		}
		if r.table()&(c.cs-1) != 0 {
			c.l1Faults += w
		}
	}
}

func compareRefs(a, b l1ref) int {
	return cmp.Or(cmp.Compare(a.table(), b.table()), cmp.Compare(a.l1, b.l1), cmp.Compare(a.index, b.index))
}

// refsOf gives the L1 entries that point to table i.
func (c *checker) refsOf(i int) []l1ref {
	end := len(c.l1refs)
	if i+1 < len(c.tables) {
		end = int(c.tables[i+1].firstRef)
	}
	return c.l1refs[c.tables[i].firstRef:end]
}

// scanTables reads every L2 table once and counts what it refers to. Readers wait for the disk;
// a reader that has a piece borrows one of the scanners for it.
func (c *checker) scanTables(ctx context.Context) error {
	if c.scannedBefore() {
		c.counts.Corruptions += c.faults.sum() + c.l1Faults
		return ctx.Err()
	}
	scanners := make(chan *scanner, c.opts.Workers)
	memory := c.opts.MemoryBytes / int64(c.opts.Workers+1)
	for range c.opts.Workers {
		scanners <- &scanner{geometry: c.geometry, tally: newTally(int64(c.clusters)+1, memory)}
	}
	err := c.readTables(ctx, func(tb *table, off int64, piece []byte, next *uint64) error {
		s := <-scanners
		s.next = *next
		err := s.scan(tb, piece)
		*next = s.next
		scanners <- s
		return err
	})
	close(scanners)
	for s := range scanners {
		c.faults.add(&s.faults)
		c.past = c.past || s.past
		c.dataEnd = max(c.dataEnd, s.dataEnd)
		c.counts.AllocatedClusters += s.counts.AllocatedClusters
		c.counts.FragmentedClusters += s.counts.FragmentedClusters
		c.counts.CompressedClusters += s.counts.CompressedClusters
		if c.data == nil {
			c.data = s.tally
			c.data.limit = c.opts.MemoryBytes
		} else if mergeErr := c.data.merge(s.tally); err == nil {
			err = mergeErr
		}
	}
	if c.keep && err == nil {
		c.rememberScan()
	}
	c.counts.Corruptions += c.faults.sum() + c.l1Faults
	return err
}

// readTables gives every L2 table to fn, in pieces that come in order and from one goroutine for
// each table: piece begins off bytes into the table. next is kept from piece to piece.
func (c *checker) readTables(ctx context.Context, fn func(tb *table, off int64, piece []byte, next *uint64) error) error {
	unit := min(max(int64(c.cs), minUnitBytes), maxUnitBytes)
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	var faults sync.Mutex
	for range min(c.opts.Readers, max(1, readBytes/int(unit)), len(c.tables)) {
		g.Go(func() error {
			var buf []byte
			defer func() { c.spare.put(buf) }()
			for {
				first := int(next.Load())
				n := c.unitAt(first, unit)
				if n == 0 {
					return nil
				}
				if !next.CompareAndSwap(int64(first), int64(first+n)) {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if buf == nil {
					buf = c.spare.get(unit)
				}
				if err := c.readUnit(first, n, buf, &faults, fn); err != nil {
					return err
				}
				c.progress.add(int64(n) << c.bits)
			}
		})
	}
	return g.Wait()
}

// unitAt gives how many tables from first on lie one behind the other and fit into one read.
func (c *checker) unitAt(first int, unit int64) int {
	n := 0
	for first+n < len(c.tables) && n < int(max(unit>>c.bits, 1)) {
		if n > 0 && c.tables[first+n].off != c.tables[first+n-1].off+image.HostOff(c.cs) {
			break
		}
		n++
	}
	return n
}

func (c *checker) readUnit(first, n int, buf []byte, faults *sync.Mutex,
	fn func(tb *table, off int64, piece []byte, next *uint64) error) error {
	off := int64(c.tables[first].off)
	if n > 1 || int64(c.cs) <= int64(len(buf)) {
		p := buf[:int64(n)<<c.bits]
		if err := c.readPiece(first, n, 0, p, off, faults); err != nil {
			return err
		}
		for i := range n {
			next := uint64(0)
			if err := fn(&c.tables[first+i], 0, p[int64(i)<<c.bits:int64(i+1)<<c.bits], &next); err != nil {
				return err
			}
		}
		return nil
	}
	next := uint64(0)
	for pos := int64(0); pos < int64(c.cs); pos += int64(len(buf)) {
		if err := c.readPiece(first, 1, pos, buf, off+pos, faults); err != nil {
			return err
		}
		if err := fn(&c.tables[first], pos, buf, &next); err != nil {
			return err
		}
	}
	return nil
}

// readPiece reads p at off, which is pos bytes into table first and may go over n tables. What
// cannot be read becomes zeros and a blind spot, as finely as the disk allows.
func (c *checker) readPiece(first, n int, pos int64, p []byte, off int64, faults *sync.Mutex) error {
	if off >= int64(c.fileBytes) {
		clear(p)
		return nil
	}
	_, err := readPadded(c.r, p, off, int64(c.fileBytes))
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	for at := int64(0); at < int64(len(p)); at += sectorStep {
		q := p[at:min(at+sectorStep, int64(len(p)))]
		if _, err := readPadded(c.r, q, off+at, int64(c.fileBytes)); err == nil {
			continue
		} else if errors.Is(err, context.Canceled) {
			return err
		} else {
			clear(q)
			faults.Lock()
			c.unreadablePiece(first+int(at>>c.bits), (pos+at)&(int64(c.cs)-1), int64(len(q)), off+at, err)
			faults.Unlock()
		}
	}
	return nil
}

// unreadablePiece records length bytes at pos of table i that could not be read.
func (c *checker) unreadablePiece(i int, pos, length, off int64, err error) {
	i = min(i, len(c.tables)-1)
	b := finding.Blind{What: "L2 table", Reason: readReason(err),
		Host: []finding.Range{{Offset: off, Length: length}}}
	c.unreadable++
	c.counts.CheckErrors++
	span := length / c.h.L2EntryBytes() << c.bits
	for _, r := range c.refsOf(i) {
		if len(b.Guest) == defaultRanges {
			break
		}
		if c.l1s[r.l1].active {
			g := int64(c.guestOf(int64(r.index), pos/c.h.L2EntryBytes()))
			b.Guest = append(b.Guest, finding.Range{Offset: g, Length: span})
		} else if b.What == "L2 table" && c.tables[i].active == 0 {
			b.What = "L2 table of " + c.l1Name(int(r.l1))[len("L1 table of "):]
		}
	}
	// Neighbouring places with the same reason are one.
	if n := len(c.blind); n > 0 && c.blind[n-1].Reason == b.Reason && c.blind[n-1].What == b.What &&
		len(c.blind[n-1].Guest) == len(b.Guest) && c.blind[n-1].Host[0].End() == off && pos != 0 {
		last := &c.blind[n-1]
		last.Host[0].Length += length
		for j := range last.Guest {
			last.Guest[j].Length += span
		}
		return
	}
	c.blindSpot(b)
}

// readReason is the cause of a failed read without the words around it.
func readReason(err error) string {
	var open *OpenError
	if errors.As(err, &open) && open.Cause != nil {
		err = open.Cause
	}
	for {
		next := errors.Unwrap(err)
		if next == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			return err.Error()
		}
		err = next
	}
}

// progress tells the caller how much of the metadata was read.
type progress struct {
	fn    func(done, total int64)
	total int64
	done  *atomic.Int64
}

func (p *progress) add(n int64) {
	if p.fn != nil {
		p.fn(p.done.Add(n), p.total)
	}
}

// metadataBytes is about how much there is to read.
func (c *checker) metadataBytes() int64 {
	n := int64(len(c.tables)) << c.bits
	for _, e := range c.reftable {
		if e != 0 {
			n += int64(c.cs)
		}
	}
	return n
}
