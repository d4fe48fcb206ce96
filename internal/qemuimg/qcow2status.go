// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"syscall"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// subKind is what stands behind a subcluster; without subclusters, behind a cluster.
type subKind uint8

const (
	subUnallocated      subKind = iota // no cluster
	subUnallocatedAlloc                // a cluster is reserved, the subcluster is not in use
	subZero                            // zeros, no cluster
	subZeroAlloc                       // zeros, a cluster is reserved
	subNormal
	subCompressed
	subInvalid
)

// hasHost tells whether a subcluster of kind k has a place in the file.
func (k subKind) hasHost() bool {
	return k == subUnallocatedAlloc || k == subZeroAlloc || k == subNormal
}

// lastStatus keeps the answer for a range, of which qemu-img compare asks for one part after the
// other.
type lastStatus struct {
	start, end int64
	kind       subKind
	host       int64 // of start
}

// qcow2Status is what the L2 tables say of off, and up to where they say the same.
func (g *graph) qcow2Status(n *node, off, want int64) (status, error) {
	q := n.q
	if q.prealloc == unknown {
		q.prealloc = no
		if g.preallocated(n) {
			q.prealloc = yes
		}
	}
	if !g.coarse {
		want = min(want, math.MaxInt32)
	}
	kind, host, length, err := g.lookup(n, off, want)
	if err != nil {
		return status{}, err
	}
	st := status{n: length}
	if kind.hasHost() && !n.encrypted {
		st.flags, st.off, st.file = offsetValid, host, n.data
	}
	switch kind {
	case subZero, subZeroAlloc:
		st.flags |= isZero
	case subNormal, subCompressed:
		st.flags |= isData
	}
	if q.prealloc == yes && st.flags&(isData|offsetValid) == isData|offsetValid {
		st.flags |= recurse
	}
	return st, nil
}

// lookup finds what stands at off, for at most want bytes of one kind and in one piece.
func (g *graph) lookup(n *node, off, want int64) (subKind, int64, int64, error) {
	q := n.q
	if l := &q.last; off >= l.start && off < l.end {
		host := l.host
		if l.kind.hasHost() {
			host += off - l.start
		}
		return l.kind, host, min(want, l.end-off), nil
	}
	h := q.h
	inCluster := off & (h.ClusterSize() - 1)
	index := off >> h.ClusterBits & (h.L2Entries() - 1)
	available := (q.sliceEntries - index&(q.sliceEntries-1)) << h.ClusterBits
	needed := min(want+inCluster, available)

	table, err := g.l2Table(n, off)
	if err != nil {
		return 0, 0, 0, err
	}
	if table == 0 {
		if g.coarse {
			return subUnallocated, 0, min(want, q.unmapped(off)), nil
		}
		return subUnallocated, 0, needed - inCluster, nil
	}
	c := clusterRun{g: g, n: n, table: table, index: index, off: off, inCluster: inCluster}
	if err := c.first(); err != nil {
		return 0, 0, 0, err
	}
	clusters := (needed + h.ClusterSize() - 1) >> h.ClusterBits
	length, err := c.count(clusters)
	if err != nil {
		return 0, 0, 0, err
	}
	if length < needed || needed == available {
		// It ends by itself, not only because no more was asked for.
		q.last = lastStatus{off, off + min(length, needed) - inCluster, c.kind, c.host}
	}
	return c.kind, c.host, min(length, needed) - inCluster, nil
}

// l2Table is the place of the L2 table for off, 0 where there is none.
func (g *graph) l2Table(n *node, off int64) (int64, error) {
	q := n.q
	index := off / q.h.L2Span()
	if index >= q.h.L1Entries || index*8+8 > int64(len(q.l1)) {
		return 0, nil
	}
	table := int64(binary.BigEndian.Uint64(q.l1[index*8:]) & qcow2.OffsetMask)
	if table&(q.h.ClusterSize()-1) != 0 {
		return 0, g.corrupt(n, "L2 table offset %s unaligned (L1 index: %s)", hex(table), hex(index))
	}
	return table, nil
}

// unmapped is how far it is from off to what the next L2 table maps. A disk of 2 EiB without a single
// table is one piece then, not two thousand million.
func (q *qcow2Node) unmapped(off int64) int64 {
	span := q.h.L2Span()
	for i := off/span + 1; i < q.h.L1Entries && i*8+8 <= int64(len(q.l1)); i++ {
		if binary.BigEndian.Uint64(q.l1[i*8:])&qcow2.OffsetMask != 0 {
			return i*span - off
		}
	}
	return math.MaxInt64
}

// corrupt reports, once for each image, that its tables cannot be right; the answer is an I/O error.
func (g *graph) corrupt(n *node, format string, args ...any) error {
	if !n.signaled {
		g.s.stderr("qcow2: Image is corrupt: %s; further non-fatal corruption events will be "+
			"suppressed\n", fmt.Sprintf(format, args...))
	}
	n.signaled = true
	return syscall.EIO
}

// hex is C's %#x, which puts no 0x before zero.
func hex(v int64) string {
	if v == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", uint64(v))
}

// l2Window is a part of an L2 table.
type l2Window struct {
	off int64
	buf []byte
}

// l2WindowBytes is how much of a table is read at once.
const l2WindowBytes = 64 << 10

// entry reads an L2 entry and the bitmap of its subclusters, 0 where there are none.
func (q *qcow2Node) entry(table, index int64) (entry, bitmap uint64, err error) {
	size := q.h.L2EntryBytes()
	off := table + index*size
	w := &q.window
	if off < w.off || off+size > w.off+int64(len(w.buf)) {
		step := min(q.h.ClusterSize(), l2WindowBytes)
		w.off = off &^ (step - 1)
		if int64(cap(w.buf)) < step {
			w.buf = make([]byte, step)
		}
		w.buf = w.buf[:step]
		got := 0
		if w.off < q.size {
			got, err = q.r.ReadAt(w.buf[:min(step, q.size-w.off)], w.off)
			if err != nil && !errors.Is(err, io.EOF) {
				w.buf = w.buf[:0]
				return 0, 0, err
			}
		}
		clear(w.buf[got:]) // past the end of the file
	}
	p := w.buf[off-w.off:]
	if size == 16 {
		bitmap = binary.BigEndian.Uint64(p[8:])
	}
	return binary.BigEndian.Uint64(p), bitmap, nil
}

// clusterRun counts clusters of one kind that follow one another.
type clusterRun struct {
	g     *graph
	n     *node
	table int64
	index int64
	// off is the guest's position, inCluster its distance from the beginning of its cluster.
	off, inCluster int64
	kind           subKind
	host           int64
	entry, bitmap  uint64
}

// first decodes the entry for off and makes qemu's checks of it.
func (c *clusterRun) first() error {
	q := c.n.q
	h := q.h
	var err error
	if c.entry, c.bitmap, err = q.entry(c.table, c.index); err != nil {
		return err
	}
	c.kind = subKindOf(h, c.entry, c.bitmap, c.inCluster/h.SubclusterSize())
	place := int64(c.entry & qcow2.OffsetMask)
	switch {
	case h.Version < 3 && (c.kind == subZero || c.kind == subZeroAlloc):
		return c.g.corrupt(c.n, "Zero cluster entry found in pre-v3 image (L2 offset: %s, L2 index: %s)",
			hex(c.table), hex(c.inSlice(c.index)))
	case c.kind == subCompressed && h.HasDataFile():
		return c.g.corrupt(c.n, "Compressed cluster entry found in image with external data file "+
			"(L2 offset: %s, L2 index: %s)", hex(c.table), hex(c.inSlice(c.index)))
	case !c.kind.hasHost():
		return nil
	case place&(h.ClusterSize()-1) != 0:
		return c.g.corrupt(c.n, "Cluster allocation offset %s unaligned (L2 offset: %s, L2 index: %s)",
			hex(place), hex(c.table), hex(c.inSlice(c.index)))
	}
	c.host = place + c.inCluster
	if h.HasDataFile() && c.host != c.off {
		return c.g.corrupt(c.n, "External data file host cluster offset %s does not match guest cluster "+
			"offset: %s, L2 index: %s)", hex(place), hex(c.off-c.inCluster), hex(c.inSlice(c.index)))
	}
	return nil
}

// inSlice is an index as qemu counts it: within the part of the table that it loaded.
func (c *clusterRun) inSlice(index int64) int64 { return index & (c.n.q.sliceEntries - 1) }

// count looks at up to clusters entries, and gives the bytes from the beginning of the first cluster
// to the end of what is alike.
func (c *clusterRun) count(clusters int64) (int64, error) {
	q := c.n.q
	h := q.h
	subs := h.ClusterSize() / h.SubclusterSize()
	start := c.inCluster / h.SubclusterSize()
	total := start
	place := c.entry & qcow2.OffsetMask
	for i := range clusters {
		from := int64(0)
		entry, bitmap, kind := c.entry, c.bitmap, c.kind
		if i == 0 {
			from = start
		} else {
			var err error
			if entry, bitmap, err = q.entry(c.table, c.index+i); err != nil {
				return 0, err
			}
			kind = subKindOf(h, entry, bitmap, 0)
		}
		run := subRun(h, kind, bitmap, from)
		switch {
		case kind == subInvalid:
			return 0, c.g.corrupt(c.n, "Invalid cluster entry found  (L2 offset: %s, L2 index: %s)",
				hex(c.table), hex(c.inSlice(c.index+i)))
		case i == 0 && kind == subCompressed:
			return (start + run) * h.SubclusterSize(), nil
		case kind != c.kind:
			return total * h.SubclusterSize(), nil
		case i > 0 && kind.hasHost():
			if place += uint64(h.ClusterSize()); place != entry&qcow2.OffsetMask {
				return total * h.SubclusterSize(), nil
			}
		}
		total += run
		if from+run < subs {
			break
		}
	}
	return total * h.SubclusterSize(), nil
}

// subKindOf decodes subcluster sub of an entry.
func subKindOf(h *qcow2.Header, entry, bitmap uint64, sub int64) subKind {
	typ := h.TypeOf(entry)
	if typ == qcow2.EntryCompressed {
		return subCompressed
	}
	if !h.ExtendedL2() {
		return [...]subKind{
			qcow2.EntryUnallocated: subUnallocated, qcow2.EntryZeroPlain: subZero,
			qcow2.EntryZeroAlloc: subZeroAlloc, qcow2.EntryNormal: subNormal,
		}[typ]
	}
	zero, alloc := bitmap>>32>>sub&1 != 0, bitmap>>sub&1 != 0
	if typ == qcow2.EntryNormal {
		switch {
		case bitmap>>32&bitmap&math.MaxUint32 != 0:
			return subInvalid
		case zero:
			return subZeroAlloc
		case alloc:
			return subNormal
		}
		return subUnallocatedAlloc
	}
	switch {
	case bitmap&math.MaxUint32 != 0:
		return subInvalid
	case zero:
		return subZero
	}
	return subUnallocated
}

// subRun counts the subclusters of a cluster from number from on that are of kind kind.
func subRun(h *qcow2.Header, kind subKind, bitmap uint64, from int64) int64 {
	if !h.ExtendedL2() {
		return 1 - from
	}
	var same uint32 // a bit for each subcluster that is of this kind
	switch alloc, zero := uint32(bitmap), uint32(bitmap>>32); kind {
	case subNormal:
		same = alloc
	case subZero, subZeroAlloc:
		same = zero
	case subUnallocated, subUnallocatedAlloc:
		same = ^(alloc | zero)
	default:
		return 32 - from
	}
	return int64(bits.TrailingZeros32(^(same >> from)))
}

// preallocated guesses, as qemu does, whether the image has clusters that the file system has not:
// then what a table says is data may be a hole of the file.
func (g *graph) preallocated(n *node) bool {
	q := n.q
	h := q.h
	onDisk := n.file.allocated() >> h.ClusterBits
	threshold := max(onDisk*10/9, onDisk+2)
	end := (n.file.length + h.ClusterSize() - 1) >> h.ClusterBits
	reftable, err := q.table(int64(h.ReftableOff), h.ReftableEntries()*8)
	if err != nil {
		return false
	}
	count := int64(0)
	per := h.RefblockEntries()
	block := make([]byte, h.ClusterSize())
	for i := int64(0); i*8+8 <= int64(len(reftable)) && i*per < end && count < threshold; i++ {
		off := int64(binary.BigEndian.Uint64(reftable[i*8:]) &^ (sector - 1))
		if off == 0 {
			continue
		}
		if off&(h.ClusterSize()-1) != 0 {
			_ = g.corrupt(n, "Refblock offset %s unaligned (reftable index: %s)", hex(off), hex(i))
			return false
		}
		if off < 0 {
			return false
		}
		clear(block)
		if off < q.size {
			part := block[:min(int64(len(block)), q.size-off)]
			if _, err := q.r.ReadAt(part, off); err != nil && !errors.Is(err, io.EOF) {
				return false
			}
		}
		count += countUsed(block, h.RefcountBits(), min(per, end-i*per))
	}
	return count >= threshold
}

// countUsed counts the refcounts among the first n that are not zero.
func countUsed(block []byte, width int, n int64) (used int64) {
	if width >= 8 {
		size := width / 8
		for ; n > 0; n-- {
			for _, b := range block[:size] {
				if b != 0 {
					used++
					break
				}
			}
			block = block[size:]
		}
		return used
	}
	for i := range n {
		bit := i * int64(width)
		if block[bit/8]>>(bit%8)&(1<<width-1) != 0 {
			used++
		}
	}
	return used
}
