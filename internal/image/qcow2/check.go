// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// How a check goes:
//
//	1 header, snapshot table, L1 tables      -> the distinct L2 tables, each with its L1 entries
//	2 every L2 table, once, in parallel      -> references to host clusters (tally), entry faults
//	3 metadata                               -> references by the image to itself
//	4 refcount table and blocks, in parallel -> clusters whose refcount differs (suspects)
//	5 only if something is wrong: the tables once more, to learn which guest ranges are meant
//
// Steps 2 to 4 read the metadata once from front to back and hold no list of clusters.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

const (
	// DefaultMemoryBytes bounds the memory for reference counts where the caller does not.
	DefaultMemoryBytes = 4 << 30
	// maxWorkers bounds the scanners: each has reference counts of its own.
	maxWorkers = 4
	// defaultReaders and maxReaders bound how many reads are under way at once. They hide the latency
	// of disks and servers; what they read is scanned by fewer scanners.
	defaultReaders = 8
	maxReaders     = 256
	// minUnitBytes and maxUnitBytes bound one read of tables.
	minUnitBytes = 64 << 10
	maxUnitBytes = 256 << 10
	// sectorStep is how finely an unreadable table is read again.
	sectorStep = 4096
	// ctxSteps is how many short steps are made before a look whether to stop.
	ctxSteps = 1 << 12
	// maxBlind bounds the list of unreadable places; those beyond are counted in its last entry.
	maxBlind = 1000
	// suspectShare is the part of the memory for ranges with a wrong refcount, 32 bytes each, twice
	// while they are gathered: entries of the refcount table that share a block make billions of a
	// small file.
	suspectShare = 128
	// defaultRanges is how many ranges a finding lists.
	defaultRanges = 20
)

// checker is the state of one check.
type checker struct {
	geometry
	r     io.ReaderAt
	opts  CheckOptions
	spare buffers

	snapshots *SnapshotTable
	l1s       []l1table
	l1refs    []l1ref // sorted by the table that they point to
	tables    []table // sorted by offset

	data, meta *tally // references by guest data, and by the image to itself
	owners     []region
	ownerEnds  []int64 // made when owners is complete
	reftable   []uint64
	// noRefcounts: the refcount table could not be read, so nothing can be compared.
	noRefcounts bool

	counts   Counts
	faults   entryFaults
	dataEnd  uint64 // end of what is mapped in an external data file
	past     bool   // some active entry points past the end
	l1Faults int64  // faults of L1 entries, as qemu counts them

	suspects []Suspect
	// copied are ranges with the right refcount where a COPIED flag may be wrong, overlaps those
	// that are guest data and metadata at once, shared those that several guest ranges use.
	copied, overlaps, shared []span
	badBlocks                []badBlock
	damaged                  []int64 // refcount blocks that explain all their refcounts, ascending
	// compared is the first cluster whose refcount was not held against its references, and unread
	// are the blocks that could not be, by index.
	compared int64
	unread   map[int64]bool

	findings   []finding.Finding
	merged     map[mergeKey]int // findings that further ones of their kind are added to
	low        map[string]int   // the finding of low refcounts of guest data, by rule
	blind      []finding.Blind
	blindCut   int64
	blindLock  sync.Mutex
	told       map[string]int // findings by code, where each stands for one place
	kept       atomic.Int64   // suspects, which only suspectShare of the memory may hold
	unlisted   int64          // clusters that would be suspects beyond that
	unprobed   int64          // leaked clusters that were not looked at whole
	unreadable int64          // pieces of metadata that could not be read, so that leaks cannot be told
	structure  int64          // those of them that hold refcounts, and no references

	progress progress

	// scan is what the first look brought, if keep is set. before is that of an earlier check, and
	// changed says what may be different since: see Exam.Again.
	keep         bool
	scan, before *scanned
	changed      func(off, length int64) bool

	// What the second look brought is kept for those who mend: see Exam.
	ev      *evidence
	links   *crossLinks
	orphans []orphan
	// bitmapLeaks are the leaked clusters of bitmaps that are invalid, ascending.
	bitmapLeaks []int64
}

// span is a range of host clusters, both ends included.
type span struct{ first, last int64 }

// region is a piece of metadata in the file.
type region struct {
	span
	what string
}

// Check examines the consistency of an image of size bytes. What is wrong with the image is in the
// Result; the error, an *OpenError or that of ctx, says that there was nothing to examine. It reads
// metadata only, unless opts ask for more.
func Check(ctx context.Context, r io.ReaderAt, size int64, opts CheckOptions) (*Result, error) {
	c, err := newChecker(r, size, opts)
	if err != nil {
		return nil, err
	}
	if err := c.examine(ctx); err != nil {
		return nil, err
	}
	return c.result(), nil
}

func (c *checker) examine(ctx context.Context) error {
	if err := c.count(ctx); err != nil {
		return err
	}
	if err := c.explain(ctx); err != nil {
		return err
	}
	if err := c.inflateAll(ctx); err != nil {
		return err
	}
	c.explainRest()
	c.dirtyNext()
	return nil
}

func newChecker(r io.ReaderAt, size int64, opts CheckOptions) (*checker, error) {
	h, err := ReadHeader(r, size)
	if err != nil {
		return nil, err
	}
	if opts.Workers <= 0 {
		opts.Workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	if opts.Readers <= 0 {
		opts.Readers = defaultReaders
	}
	opts.Readers = min(opts.Readers, maxReaders)
	if opts.MaxRanges == 0 {
		opts.MaxRanges = defaultRanges
	}
	if opts.MemoryBytes <= 0 {
		opts.MemoryBytes = DefaultMemoryBytes
	}
	c := &checker{geometry: newGeometry(h, size), r: r, opts: opts, snapshots: &SnapshotTable{}}
	c.meta = newTally(int64(c.clusters)+1, opts.MemoryBytes)
	// qemu counts whole sectors of the disk.
	c.counts.TotalClusters = (h.SizeBytes&^511 + int64(c.cs) - 1) >> c.bits
	return c, nil
}

// count does steps 1 to 4. Its error is that of ctx; what cannot be counted becomes a blind spot.
func (c *checker) count(ctx context.Context) error {
	c.readSnapshotTable()
	if err := c.readL1Tables(ctx); err != nil {
		return err
	}
	c.gatherTables()
	c.readReftable()
	c.progress = progress{fn: c.opts.Progress, total: c.metadataBytes(), done: new(atomic.Int64)}
	err := c.scanTables(ctx)
	if err == nil {
		err = c.countMetadata(ctx)
	}
	if err == nil {
		err = c.compare(ctx)
	}
	if errors.Is(err, errTallyMemory) {
		c.blindSpot(finding.Blind{What: "reference counts", Reason: fmt.Sprintf("%v (%d bytes)",
			errTallyMemory, c.opts.MemoryBytes)})
		c.suspects, c.copied, c.overlaps, c.shared = nil, nil, nil, nil
		return ctx.Err()
	}
	return err
}

// readSnapshotTable reads the table of internal snapshots; a broken one is a finding, and none of
// its snapshots is counted.
func (c *checker) readSnapshotTable() {
	t, err := ReadSnapshots(c.r, int64(c.fileBytes), c.h)
	var open *OpenError
	switch {
	case err == nil:
		c.snapshots = t
	case errors.As(err, &open) && open.Kind == ErrRead:
		c.counts.CheckErrors++
		c.blindSpot(finding.Blind{What: "snapshot table", Reason: readReason(err),
			Host: []finding.Range{{Offset: int64(c.h.SnapshotsOff), Length: 40}}})
		c.unreadable++
	default:
		c.counts.CheckErrors++
		f := c.newFinding(finding.QC16, finding.Sure, "table_unreadable", fmt.Sprintf(
			"the table of %d internal snapshots cannot be read: %v", c.h.Snapshots, err))
		if open != nil {
			f.Host = []finding.Range{{Offset: int64(open.Off), Length: 8}}
		}
		c.findings = append(c.findings, f)
		c.unreadable++ // their clusters would look leaked
	}
	if c.h.Version < 3 {
		return
	}
	// Entries of version 3 hold at least the large VM state size and the disk size.
	short := c.snapshots.Blank
	for i := range c.snapshots.Snapshots {
		if c.snapshots.Snapshots[i].ExtraBytes < 16 {
			short++
		}
	}
	if short > 0 {
		c.counts.Corruptions += short
		f := c.newFinding(finding.QC16, finding.Sure, "entry_incomplete", fmt.Sprintf("%s incomplete",
			plural(short, "entry of the snapshot table is", "entries of the snapshot table are")))
		f.Count, f.Severity = short, finding.Warning
		c.findings = append(c.findings, f)
	}
}

// refcountTable is the refcount table among the owners of clusters.
const refcountTable = "refcount table"

// inc counts a piece of metadata, with qemu's rule for what ends past the end of the file; rule is
// the one that it breaks then.
func (c *checker) inc(off, length int64, weight uint64, what string, rule finding.Rule) error {
	if length <= 0 {
		return nil
	}
	if beyond(uint64(off), uint64(length), c.fileBytes, c.cs) {
		c.counts.Corruptions += int64(weight)
		f := c.newFinding(rule, finding.Sure, "past_end", fmt.Sprintf("the %s lies past the end of the file", what))
		f.Host = []finding.Range{{Offset: off, Length: length}}
		if rule == finding.QC24 { // without it, nothing of the disk can be read
			f.Guest = []finding.Range{{Offset: 0, Length: c.h.SizeBytes}}
		}
		c.merge(f, alike{about: what})
		c.unreadable++ // what it was, and led to, would look leaked
		if what == refcountTable {
			c.structure++
		}
		return nil
	}
	s := span{off >> c.bits, (off + length - 1) >> c.bits}
	c.owners = append(c.owners, region{s, what})
	return c.meta.add(s.first, s.last, weight, refPlain)
}

func (c *checker) newFinding(r finding.Rule, sure finding.Certainty, kind, summary string) finding.Finding {
	return finding.New(r, c.opts.Name, sure, kind, summary)
}

// blindSpot records something that could not be looked at.
func (c *checker) blindSpot(b finding.Blind) {
	if len(c.blind) >= maxBlind {
		c.blindCut++
		return
	}
	b.Object = c.opts.Name
	if b.Host == nil {
		b.Host = []finding.Range{}
	}
	if b.Guest == nil {
		b.Guest = []finding.Range{}
	}
	c.blind = append(c.blind, b)
}

// result gathers what was found.
func (c *checker) result() *Result {
	if c.blindCut > 0 {
		c.blind = append(c.blind, finding.Blind{Object: c.opts.Name, What: "further places",
			Reason: fmt.Sprintf("%d more could not be read", c.blindCut),
			Host:   []finding.Range{}, Guest: []finding.Range{}})
	}
	finding.Sort(c.findings)
	r := &Result{Header: c.h, Counts: c.counts, Findings: c.findings, Blind: c.blind,
		Suspects: c.suspects}
	if r.Findings == nil {
		r.Findings = []finding.Finding{}
	}
	if r.Blind == nil {
		r.Blind = []finding.Blind{}
	}
	return r
}

// hostRange is a range of clusters in bytes.
func (c *checker) hostRange(s span) finding.Range {
	return finding.Range{Offset: s.first << c.bits, Length: (s.last - s.first + 1) << c.bits}
}

// guestOf is the position on the virtual disk of entry i of the table that L1 entry l1 points to.
func (c *checker) guestOf(l1 int64, i int64) image.GuestOff {
	return image.GuestOff(l1*c.h.L2Span() + i<<c.bits)
}

// buffers keeps buffers for reading that are not in use: each part of a check needs as many as the
// one before. Several goroutines may use it at once.
type buffers struct {
	mu   sync.Mutex
	free [][]byte
}

// get gives a buffer of n bytes, which may hold anything.
func (b *buffers) get(n int64) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, p := range b.free {
		if int64(cap(p)) >= n {
			b.free = slices.Delete(b.free, i, i+1)
			return p[:n]
		}
	}
	return make([]byte, n)
}

// put takes a buffer back; it may be nil.
func (b *buffers) put(p []byte) {
	if p == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = append(b.free, p)
}
