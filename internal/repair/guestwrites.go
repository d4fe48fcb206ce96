// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// What a guest's disk holds is changed as qemu would change it: a cluster that nothing else refers to is
// written in place, and for all others a new one is made behind the end of the file, filled with what the
// guest sees there, and named in the place of the old one, whose refcount is lowered. A table that a snapshot
// shares is copied first.

// GuestWrite is a run of bytes that the guest's disk is to hold.
type GuestWrite struct {
	Offset int64
	Data   []byte
}

// End is the first byte after w.
func (w GuestWrite) End() int64 { return w.Offset + int64(len(w.Data)) }

// Errors of PlanWrites, for errors.Is.
var (
	// ErrUnsound: a check finds faults, or could not look at everything. The image is mended first.
	ErrUnsound = errors.New("the image is not sound")
	// ErrUnwritable: guest data of such an image is not changed.
	ErrUnwritable = errors.New("guest data of this image is not changed")
)

// PlanWrites makes a plan of how the guest's disk in the qcow2 image that r reads is given some bytes. step
// says in its Code, Name and Summary why. writes are in order and do not overlap. opts.Disk is the guest's
// view through the whole backing chain, needed where the image has a backing file; of the rest of opts only
// Name, Check and MemoryBytes count. The Object of the plan has only the size. The error is an
// *qcow2.OpenError, ErrUnsound, ErrUnwritable, ErrMemory, or that of reading or of ctx.
func PlanWrites(
	ctx context.Context, r io.ReaderAt, size int64, writes []GuestWrite, step plan.Step, opts Options,
) (*plan.Plan, error) {
	opts = Options{Name: opts.Name, Disk: opts.Disk, Check: opts.Check,
		MemoryBytes: cmp.Or(max(opts.MemoryBytes, 0), DefaultMemoryBytes), Only: []string{"none"}}
	opts.Check.Name = opts.Name
	rec := newRecorder(r)
	m := &mender{opts: opts, ov: newOverlay(rec, size, opts.MemoryBytes), kept: map[string]string{},
		keptTables: map[int64]string{}, placed: map[int64]bool{}, said: map[string]bool{},
		counted: map[int64]bool{}}
	if err := m.examine(ctx); err != nil {
		return nil, err
	}
	before := stateOf(m.ex.Result())
	if err := m.writable(writes); err != nil {
		return nil, err
	}
	w, err := m.newWriter(step)
	if err != nil {
		return nil, err
	}
	if err := w.all(ctx, writes); err != nil {
		return nil, err
	}
	m.steps, m.phases = append(m.steps, w.steps()...), append(m.phases, w.phases()...)
	if _, err := m.rounds(ctx); err != nil {
		return nil, err
	}
	after := stateOf(m.ex.Result())
	if after.Corruptions+after.CheckErrors > 0 || after.Leaks > before.Leaks {
		return nil, fmt.Errorf("%w: after the change a check would find %d corruptions, %d check errors and "+
			"%d leaks, %d leaks before", ErrUnwritable, after.Corruptions, after.CheckErrors, after.Leaks, before.Leaks)
	}
	return m.finish(ctx, rec, before)
}

// writable refuses images whose guest data this does not change, and writes that are out of order.
func (m *mender) writable(writes []GuestWrite) error {
	res, state := m.ex.Result(), stateOf(m.ex.Result())
	no := func(why string) error { return fmt.Errorf("%w: %s", ErrUnwritable, why) }
	switch {
	case state.Corruptions+state.CheckErrors > 0 && len(res.Findings) > 0:
		return fmt.Errorf("%w: %s %s", ErrUnsound, res.Findings[0].Code, res.Findings[0].Summary)
	case !m.ex.Complete():
		return fmt.Errorf("%w: not all of its tables could be read", ErrUnsound)
	case m.h.Incompatible&(qcow2.IncompatDirty|qcow2.IncompatCorrupt) != 0:
		return fmt.Errorf("%w: it is marked as dirty or corrupt", ErrUnsound)
	case len(m.dangling) > 0 || m.stuck:
		return fmt.Errorf("%w: entries point past the end of the file", ErrUnsound)
	case m.h.HasDataFile():
		return no("its data lies in an external data file")
	case m.h.Crypt != qcow2.CryptNone:
		return no("it is encrypted")
	case m.h.Bitmaps != nil || m.h.Autoclear != 0:
		return no("it has persistent bitmaps, which would not know of the change, or marks that this program does not " +
			"know: a backup by them would miss it; remove them with qemu-img bitmap --remove, or start the machine once")
	case m.h.HasBacking && m.opts.Disk == nil:
		return no("its backing file is not open")
	}
	end := int64(0)
	for _, w := range writes {
		if w.Offset < end || len(w.Data) == 0 || w.End() > m.h.SizeBytes {
			return no(fmt.Sprintf("%d bytes at %#x are out of order, or not on the disk", len(w.Data), w.Offset))
		}
		end = w.End()
	}
	return nil
}

// writer changes guest data in the overlay.
type writer struct {
	m    *mender
	view io.ReaderAt // the guest's disk as it was
	buf  []byte      // a cluster
	// tables are the L2 tables that may be written, by L1 index.
	tables         map[int64]int64
	inPlace, moved plan.Step
}

func (m *mender) newWriter(step plan.Step) (*writer, error) {
	w := &writer{m: m, view: m.opts.Disk, buf: make([]byte, m.h.ClusterSize()), tables: map[int64]int64{}}
	if w.view == nil {
		d, err := qcow2.NewDisk(m.ov.base, m.ov.baseSize, m.h, qcow2.DiskOptions{})
		if err != nil {
			return nil, err
		}
		w.view = d
	} else {
		// The plan rests on what the chain shows there.
		m.below, m.askedGuest = newRecorder(w.view), true
		w.view = m.below
	}
	step.Certainty = cmp.Or(step.Certainty, finding.Sure)
	step.Host, step.Guest = []finding.Range{}, []finding.Range{}
	if step.Proofs == nil {
		step.Proofs = []finding.Evidence{}
	}
	why := step.Summary
	w.inPlace, w.moved = step, step
	w.inPlace.Action, w.inPlace.Summary = "write", why+": what changes in clusters of its own is written in place"
	w.moved.Action = "allocate"
	w.moved.Summary = why + ": what changes in clusters that the backing file, a snapshot or compression holds, " +
		"or none, gets new ones"
	w.moved.Proofs = []finding.Evidence{}
	return w, nil
}

// steps gives what was done, phases when it begins.
func (w *writer) steps() []plan.Step {
	var all []plan.Step
	for _, s := range []plan.Step{w.inPlace, w.moved} {
		if s.Count > 0 {
			all = append(all, s)
		}
	}
	return all
}

func (w *writer) phases() []plan.Phase {
	var all []plan.Phase
	if w.inPlace.Count > 0 {
		all = append(all, plan.Point)
	}
	if w.moved.Count > 0 {
		all = append(all, plan.New)
	}
	return all
}

// all carries out the writes, cluster by cluster.
func (w *writer) all(ctx context.Context, writes []GuestWrite) error {
	bits := w.m.h.ClusterBits
	writes = slices.Clone(writes) // the caller's stays
	for i := 0; i < len(writes); {
		if err := ctx.Err(); err != nil {
			return err
		}
		// The parts of all writes that are in one cluster go together.
		g := writes[i].Offset >> bits
		var parts []GuestWrite
		for ; i < len(writes) && writes[i].Offset>>bits == g; i++ {
			x := writes[i]
			if end := (g + 1) << bits; x.End() > end {
				parts = append(parts, GuestWrite{x.Offset, x.Data[:end-x.Offset]})
				writes[i] = GuestWrite{end, x.Data[end-x.Offset:]}
				break
			}
			parts = append(parts, x)
		}
		if err := w.cluster(image.GuestOff(g<<bits), parts); err != nil {
			return err
		}
	}
	return nil
}

// cluster changes one cluster of the guest's disk.
func (w *writer) cluster(g image.GuestOff, parts []GuestWrite) error {
	m := w.m
	table, err := w.table(int64(g) / m.h.L2Span())
	if err != nil {
		return err
	}
	at := table + int64(g)%m.h.L2Span()>>m.h.ClusterBits*m.h.L2EntryBytes()
	word, err := m.get64(at)
	if err != nil {
		return err
	}
	bitmap := uint64(0)
	if m.h.ExtendedL2() {
		if bitmap, err = m.get64(at + 8); err != nil {
			return err
		}
	}
	off := int64(word & qcow2.OffsetMask)
	n := uint64(0)
	if typ := m.h.TypeOf(word); typ == qcow2.EntryNormal || typ == qcow2.EntryZeroAlloc {
		known := false
		if n, known = m.refcountNow(off >> m.h.ClusterBits); !known {
			return fmt.Errorf("%w: the refcount of the cluster at %#x cannot be told", ErrUnsound, off)
		}
	}
	const allStored = 0x00000000ffffffff // doc "Extended L2 Entries": no subcluster reads as zeros
	if m.h.TypeOf(word) == qcow2.EntryNormal && n == 1 && (!m.h.ExtendedL2() || bitmap == allStored) {
		for _, p := range parts {
			if err := m.ov.write(plan.Point, p.Data, off+p.Offset-int64(g)); err != nil {
				return err
			}
			w.tell(&w.inPlace, off+p.Offset-int64(g), finding.Range{Offset: p.Offset, Length: int64(len(p.Data))})
		}
		return nil
	}
	if err := w.fill(g, parts); err != nil {
		return err
	}
	step, phase := &w.inPlace, plan.Point
	if n != 1 {
		step, phase = &w.moved, plan.New
		if err := w.release(word, off, n); err != nil {
			return err
		}
		if off, err = m.alloc(1); err != nil {
			return err
		}
	}
	if err := m.ov.write(phase, w.buf, off); err != nil {
		return err
	}
	w.tell(step, off, m.clusterRange(g))
	if m.h.ExtendedL2() {
		if err := m.put64(plan.Point, at+8, allStored); err != nil {
			return err
		}
	}
	return m.put64(plan.Point, at, uint64(off)|qcow2.FlagCopied)
}

// fill puts what a cluster will hold into the buffer.
func (w *writer) fill(g image.GuestOff, parts []GuestWrite) error {
	clear(w.buf)
	n := int(w.m.clusterRange(g).Length)
	if got, err := w.view.ReadAt(w.buf[:n], int64(g)); got < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes of the guest's disk at %#x: %w", n, int64(g), err)
	}
	for _, p := range parts {
		copy(w.buf[p.Offset-int64(g):], p.Data)
	}
	return nil
}

// release takes one reference away from what an entry named; n is the refcount of its cluster, 0 where it
// named none of its own.
func (w *writer) release(word uint64, off int64, n uint64) error {
	m := w.m
	if n > 1 {
		return w.lower(off>>m.h.ClusterBits, n)
	}
	if m.h.TypeOf(word) != qcow2.EntryCompressed {
		return nil
	}
	at, length := m.h.CompressedRange(word)
	length = min(length, m.ov.baseSize-int64(at)) // the last sector may be cut
	for c := int64(at) >> m.h.ClusterBits; c <= (int64(at)+length-1)>>m.h.ClusterBits; c++ {
		n, ok := m.refcountNow(c)
		if !ok || n == 0 {
			return fmt.Errorf("%w: the refcount of the compressed cluster at %#x cannot be told", ErrUnsound, int64(at))
		}
		if err := w.lower(c, n); err != nil {
			return err
		}
	}
	return nil
}

// lower takes one off the refcount n of a cluster.
func (w *writer) lower(c int64, n uint64) error {
	done, err := w.m.setRefcounts(plan.Lower, c, 1, n-1)
	if err == nil && !done {
		err = fmt.Errorf("%w: the refcount block of the cluster at %#x cannot be written", ErrUnsound,
			c<<w.m.h.ClusterBits)
	}
	return err
}

// table gives the L2 table of an entry of the active L1 table, made anew where there is none, or where
// others use it too.
func (w *writer) table(index int64) (int64, error) {
	if off, ok := w.tables[index]; ok {
		return off, nil
	}
	m := w.m
	if index >= m.h.L1Entries {
		return 0, fmt.Errorf("%w: its L1 table is shorter than the disk", ErrUnsound)
	}
	l1 := int64(m.h.L1Off) + 8*index
	word, err := m.get64(l1)
	if err != nil {
		return 0, err
	}
	off := int64(word & qcow2.OffsetMask)
	n := uint64(0)
	if off != 0 {
		ok := false
		if n, ok = m.refcountNow(off >> m.h.ClusterBits); !ok || n == 0 {
			return 0, fmt.Errorf("%w: the refcount of the L2 table at %#x cannot be told", ErrUnsound, off)
		}
	}
	if n != 1 {
		if off, err = w.copyTable(off, n); err != nil {
			return 0, err
		}
		if err := m.put64(plan.Point, l1, uint64(off)|qcow2.FlagCopied); err != nil {
			return 0, err
		}
		w.tell(&w.moved, off, finding.Range{})
	}
	w.tables[index] = off
	return off, nil
}

// copyTable makes a new L2 table: a copy of the one at off, whose refcount n it lowers, or an empty one
// where off is 0.
func (w *writer) copyTable(off int64, n uint64) (int64, error) {
	m := w.m
	clear(w.buf)
	if off != 0 {
		if err := m.readCluster(w.buf, off); err != nil {
			return 0, err
		}
		// What a shared table names is shared too, so that no entry has the flag COPIED.
		for i := int64(0); i < int64(len(w.buf)); i += m.h.L2EntryBytes() {
			e := binary.BigEndian.Uint64(w.buf[i:])
			if e&qcow2.FlagCompressed == 0 && e&qcow2.FlagCopied != 0 {
				return 0, fmt.Errorf("%w: the L2 table at %#x is shared, and names clusters that are not", ErrUnsound, off)
			}
		}
		if err := w.lower(off>>m.h.ClusterBits, n); err != nil {
			return 0, err
		}
	}
	at, err := m.alloc(1)
	if err != nil {
		return 0, err
	}
	return at, m.ov.write(plan.New, w.buf, at)
}

// tell adds a place of the file, and of the guest's disk, to a step.
func (w *writer) tell(st *plan.Step, host int64, g finding.Range) {
	st.Count++
	length := g.Length
	if length == 0 {
		length = w.m.h.ClusterSize()
	}
	w.m.at(st, host, length)
	w.m.guest(st, g)
}
