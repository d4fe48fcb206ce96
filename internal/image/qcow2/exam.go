// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

// Exam is a finished check with what it knows of single entries and clusters, for who wants to mend
// the image. It reads through the reader that it was made with. It may be used by one goroutine at
// a time.
type Exam struct {
	c      *checker
	result *Result
	buf    []byte // one cluster, or less where clusters are large
}

// Examine is Check that keeps what it learned.
func Examine(ctx context.Context, r io.ReaderAt, size int64, opts CheckOptions) (*Exam, error) {
	c, err := newChecker(r, size, opts)
	if err != nil {
		return nil, err
	}
	return c.finishExam(ctx)
}

func (c *checker) finishExam(ctx context.Context) (*Exam, error) {
	c.keep = true
	if err := c.examine(ctx); err != nil {
		return nil, err
	}
	if c.ev == nil {
		c.ev = &evidence{blocks: blockReader{index: -1}}
	}
	return &Exam{c: c, result: c.result(), buf: make([]byte, min(c.cs, maxUnitBytes))}, nil
}

// Result is what Check would have returned.
func (e *Exam) Result() *Result { return e.result }

// Header is the header of the image.
func (e *Exam) Header() *Header { return e.c.h }

// Clusters is how many clusters the file has, the last one perhaps cut.
func (e *Exam) Clusters() int64 { return int64(e.c.clusters) }

// Complete reports whether everything that refers to clusters could be read, so that a cluster
// without a reference has none.
func (e *Exam) Complete() bool {
	return e.c.unreadable == 0 && e.c.unlisted == 0 && !e.c.noRefcounts && len(e.result.Blind) == 0
}

// ReferencesKnown reports whether everything that refers to guest data and metadata could be read,
// whatever the state of the refcounts.
func (e *Exam) ReferencesKnown() bool {
	return e.c.unreadable == e.c.structure && e.c.unlisted == 0 && e.c.data != nil && e.c.blindCut == 0 &&
		!slices.ContainsFunc(e.result.Blind, func(b finding.Blind) bool {
			return !strings.HasPrefix(b.What, "refcount ") // the table or a block
		})
}

// RefcountsKnown reports whether the refcount table could be read.
func (e *Exam) RefcountsKnown() bool { return !e.c.noRefcounts && e.c.structure == 0 }

// Unlisted is how many entries that bear on what is wrong are not among Entries, for there are too
// many of them.
func (e *Exam) Unlisted() int64 { return e.c.ev.dropped }

// References counts what refers to a cluster, metadata and the views of snapshots included. They
// may be more than a refcount can hold.
func (e *Exam) References(cluster int64) uint64 {
	if e.c.data == nil || cluster < 0 { // an offset with its highest bit set
		return 0
	}
	return e.c.data.count(cluster)
}

// Refcount is the refcount of a cluster as it stands on disk; false where it cannot be known.
func (e *Exam) Refcount(cluster int64) (uint64, bool) {
	if cluster < 0 {
		return 0, false
	}
	return e.c.refcountOf(e.c.ev, cluster)
}

// EachReferenced calls fn for every range of clusters that something refers to, ascending, with how
// often. It may call it for neighbouring ranges of the same count.
func (e *Exam) EachReferenced(ctx context.Context, fn func(first, n int64, refs uint64) error) error {
	if e.c.data == nil {
		return nil
	}
	limit := int64(e.c.limit())
	for at := e.c.data.next(0, limit-1); at < limit; {
		if err := ctx.Err(); err != nil {
			return err
		}
		refs, end := e.c.data.count(at), at+1
		for end < limit && end-at < 1<<16 && e.c.data.count(end) == refs {
			end++
		}
		if err := fn(at, end-at, refs); err != nil {
			return err
		}
		at = e.c.data.next(end, limit-1)
	}
	return nil
}

// Limit is the first cluster that nothing refers to and the file does not have.
func (e *Exam) Limit() int64 { return int64(e.c.limit()) }

// Fault says what is wrong with an L2 entry by itself.
type Fault uint8

// The faults of an L2 entry.
const (
	// Sound: it is wrong, if at all, by what else refers to its cluster.
	Sound Fault = iota
	FaultReserved
	FaultMisaligned
	FaultPastEnd
	// FaultCompressedCopied: compressed, with the COPIED flag.
	FaultCompressedCopied
	// FaultCompressed: compressed where it cannot be, in an image with a data file, or with a
	// bitmap of subclusters.
	FaultCompressed
	// FaultSubclusters: the bitmap contradicts the entry or itself.
	FaultSubclusters
	// FaultDataFileCopied: without the COPIED flag, which every entry into a data file has.
	FaultDataFileCopied
)

// Entry is an L2 entry that bears on something that is wrong.
type Entry struct {
	Off   image.HostOff  // where it stands in the file
	Word  uint64         // as it stands there
	Guest image.GuestOff // what it maps, through the first L1 entry that names its table
	// Cluster is the one of those it refers to that is meant here, -1 if it refers to none.
	Cluster int64
	Fault   Fault
	// CopiedWrong: its COPIED flag contradicts the refcount as it stands.
	CopiedWrong bool
	// Table is where its table lies. Active is how many entries of the active L1 table name that,
	// Refs how many of all L1 tables.
	Table  image.HostOff
	Active uint32
	Refs   uint64
	// Foreign: its table was overwritten by something else.
	Foreign bool
}

// Entries are the L2 entries that refer to clusters with wrong refcounts or flags, to clusters that
// several things use, and those with faults of their own; ordered by cluster. One that refers to
// several such clusters is there for each of them.
func (e *Exam) Entries() []Entry {
	list := make([]Entry, 0, len(e.c.ev.hits))
	for i := range e.c.ev.hits {
		list = append(list, e.entry(&e.c.ev.hits[i]))
	}
	return list
}

func (e *Exam) entry(h *hit) Entry {
	tb := &e.c.tables[h.table]
	_, foreign := e.c.ev.foreign[h.table]
	x := Entry{Off: image.HostOff(h.off), Word: h.entry, Guest: image.GuestOff(h.guest),
		Cluster: h.cluster, Fault: Fault(h.fault), CopiedWrong: h.copied, Table: tb.off,
		Active: tb.active, Refs: tb.refs, Foreign: foreign}
	return x
}

// SnapshotOf names the first snapshot with an L2 table that is not part of the disk, "" for one that is.
func (e *Exam) SnapshotOf(off image.HostOff) string {
	no := e.c.tableIndex(&table{off: off})
	if no == len(e.c.tables) || e.c.tables[no].off != off {
		return ""
	}
	return e.snapshotOf(no)
}

func (e *Exam) snapshotOf(no int) string {
	if e.c.tables[no].active > 0 {
		return ""
	}
	return e.c.snapshots.Snapshots[e.c.l1s[e.c.refsOf(no)[0].l1].snapshots[0]].Name
}

// L1Entry is an entry of an L1 table that is not zero.
type L1Entry struct {
	Off    image.HostOff // where it stands in the file
	Word   uint64
	Index  int64
	Active bool
	// Behind: it is of the active table, and maps what lies behind the end of the disk.
	Behind bool
	// L1 tells the L1 tables apart; 0 is the active one.
	L1 int
	// Snapshot names the first snapshot with this L1 table, "" for the active one.
	Snapshot string
}

// Table is where the L2 table lies that l names.
func (l L1Entry) Table() image.HostOff { return image.HostOff(l.Word & OffsetMask) }

// L1Entries are the entries of all L1 tables, ordered by the table that they name.
func (e *Exam) L1Entries() []L1Entry {
	list := make([]L1Entry, 0, len(e.c.l1refs))
	for _, r := range e.c.l1refs {
		t := &e.c.l1s[r.l1]
		l := L1Entry{Off: t.off + image.HostOff(8*int64(r.index)), Word: r.entry, Index: int64(r.index),
			Active: t.active, Behind: t.active && e.c.behindDisk(r), L1: int(r.l1)}
		if !t.active {
			l.Snapshot = e.c.snapshots.Snapshots[t.snapshots[0]].Name
		}
		list = append(list, l)
	}
	return list
}

// Table is an L2 table as the check saw it.
type Table struct {
	Off    image.HostOff
	Active uint32 // entries of the active L1 table that name it
	Refs   uint64 // entries of all L1 tables that do
	// Used counts entries that are not zero, Bad those of them that cannot be right, and Past those
	// of the bad ones with which nothing is wrong but that the file ends before.
	Used, Bad, Past uint32
	// Foreign: it was overwritten by something else.
	Foreign bool
	// Stray: only entries behind the end of the disk name it.
	Stray bool
}

// Tables are the L2 tables, each once, ordered by place.
func (e *Exam) Tables() []Table {
	list := make([]Table, 0, len(e.c.tables))
	for i := range e.c.tables {
		tb := &e.c.tables[i]
		shape, foreign := e.c.ev.foreign[int32(i)]
		list = append(list, Table{Off: tb.off, Active: tb.active, Refs: tb.refs, Used: tb.used, Bad: tb.bad,
			Past: tb.past, Foreign: foreign && shape != strayTable, Stray: foreign && shape == strayTable})
	}
	return list
}

// OwnersOf names the metadata in a cluster, two pieces at most.
func (e *Exam) OwnersOf(cluster int64) []string { return e.c.ownersOf(cluster) }

// Overlaps are the ranges of clusters that are guest data and metadata at once.
func (e *Exam) Overlaps() []Clusters { return clustersOf(e.c.overlaps) }

// Clusters is a range of clusters of the file.
type Clusters struct{ First, N int64 }

func clustersOf(spans []span) []Clusters {
	list := make([]Clusters, 0, len(spans))
	for _, s := range spans {
		list = append(list, Clusters{s.first, s.last - s.first + 1})
	}
	return list
}

// Link is a range of clusters that several guest ranges share in the same order.
type Link struct {
	Clusters
	Guests []image.GuestOff
	// Snapshot names the first snapshot that one of the guest ranges belongs to, "" if all are
	// of the disk.
	Snapshot string
}

// Links are the clusters that several guest ranges use.
func (e *Exam) Links() []Link {
	if e.c.links == nil {
		return nil
	}
	list := make([]Link, 0, len(e.c.links.ranges))
	for _, r := range e.c.links.ranges {
		l := Link{Clusters: Clusters{r.first, r.last - r.first + 1}}
		for _, g := range r.guests {
			l.Guests = append(l.Guests, image.GuestOff(g))
		}
		for i := range r.hits {
			if s := e.snapshotOf(int(r.hits[i].table)); s != "" && l.Snapshot == "" {
				l.Snapshot = s
			}
		}
		list = append(list, l)
	}
	return list
}

// Orphan is a leaked cluster that holds an L2 table.
type Orphan struct {
	Cluster int64
	// Entries are its entries that map something, Inside those of them that lead to leaked clusters.
	Entries, Inside int64
	// Named are the active L1 entries that name a cluster which it maps.
	Named []int64
}

// Orphans are the L2 tables that no L1 entry names.
func (e *Exam) Orphans() []Orphan {
	list := make([]Orphan, 0, len(e.c.orphans))
	for _, o := range e.c.orphans {
		x := Orphan{Cluster: o.cluster, Entries: o.entries, Inside: o.inside}
		for _, n := range o.named {
			x.Named = append(x.Named, int64(n))
		}
		list = append(list, x)
	}
	return list
}

// BogusSlots are the active L1 entries whose table is empty, overwritten, or guest data as well.
func (e *Exam) BogusSlots() []int64 {
	var list []int64
	for _, i := range e.c.bogusSlots(e.c.ev) {
		list = append(list, int64(i))
	}
	slices.Sort(list)
	return list
}

// LooksLikeTable reports whether a cluster reads as an L2 table of this image: it has entries, and
// no more than one of ten cannot be right. An error means that it could not be read.
func (e *Exam) LooksLikeTable(cluster int64) (bool, error) {
	good, bad := 0, 0
	for pos := int64(0); pos < int64(e.c.cs); pos += int64(len(e.buf)) {
		if _, err := readPadded(e.c.r, e.buf, cluster<<e.c.bits+pos, int64(e.c.fileBytes)); err != nil {
			return false, err
		}
		g, b := e.c.likeEntries(e.buf)
		good, bad = good+g, bad+b
	}
	return good > 0 && bad*10 <= good, nil
}

// RefcountTable holds the entries of the refcount table up to its last one that is not zero.
func (e *Exam) RefcountTable() []uint64 { return e.c.reftable }

// BadBlock is a refcount block that cannot be used as it is.
type BadBlock struct {
	Index int64
	// Unusable: its entry in the refcount table is wrong, or something else uses its cluster. Else
	// what it holds makes no sense, or it is not there although clusters that it covers are in use.
	Unusable bool
}

// BadBlocks are the refcount blocks that cannot be used, ascending.
func (e *Exam) BadBlocks() []BadBlock {
	unusable := make(map[int64]bool, len(e.c.badBlocks))
	for _, b := range e.c.badBlocks {
		unusable[b.index] = true
	}
	list := make([]BadBlock, 0, len(e.c.damaged))
	for _, i := range e.c.damaged {
		list = append(list, BadBlock{Index: i, Unusable: unusable[i]})
	}
	return list
}

// Snapshots is the table of internal snapshots, empty where it could not be read.
func (e *Exam) Snapshots() *SnapshotTable { return e.c.snapshots }

// RefblockOffset is where a refcount table entry says that its block lies, 0 for none.
func RefblockOffset(entry uint64) image.HostOff { return image.HostOff(entry & reftableOffMask) }

// RefcountAt is entry i of a refcount block; a refcount is 1<<order bits wide.
func RefcountAt(block []byte, i int64, order uint32) uint64 { return refcountAt(block, i, order) }

// PutRefcount sets entry i of a refcount block to n, which must fit into 1<<order bits.
func PutRefcount(block []byte, i int64, order uint32, n uint64) {
	if order < 3 {
		bit := uint(i) << order
		mask := byte(1<<(1<<order)-1) << (bit & 7)
		block[bit>>3] = block[bit>>3]&^mask | byte(n<<(bit&7))&mask
		return
	}
	width := int64(1) << (order - 3)
	p := refcountPattern(n, order)
	copy(block[i*width:(i+1)*width], p[:width])
}
