// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
)

// What qemu-img check -r 7.2 does, one step after the other:
//
//	snapshot table      entries that are too short are noted, and written anew at the very end
//	count references    misaligned clusters without data are taken out of their entries
//	compare refcounts   only looking: every difference is said, and whether one is 0 where it may not be
//	  one was 0         -r leaks gives up here; -r all makes the refcount structure anew, counts once
//	                    more, and frees what the old structure was stored in
//	  else              once more, now repairing; every difference is said again
//	COPIED flags        are set right; by -r leaks only if nothing else is wrong by then
//
// Whether a fault counts as repaired is asked of the image as the repair in hand leaves it, so that
// nothing is said to be repaired that is not.

// Mend is a repair, for TraceMend.
type Mend struct {
	// Errors: errors are mended too (-r all), not only leaks (-r leaks).
	Errors bool
	// After reads the image as the repair leaves it, AfterBytes long.
	After      io.ReaderAt
	AfterBytes int64
}

// Mended is what TraceMend counts.
type Mended struct {
	// Counts are those of the image as it was, without what the repair mends.
	Counts
	CorruptionsFixed, LeaksFixed int64
}

// TraceMend gives the lines that qemu-img check -r 7.2 writes to stderr about an image and a repair
// of it, in its order. Where qemu-img gives up, the error is a *StopError: it is done then, and
// looks no second time.
func TraceMend(ctx context.Context, r io.ReaderAt, size int64, opts CheckOptions, m Mend,
	emit func(Line) error,
) (Mended, error) {
	t, err := newTracer(ctx, r, size, opts, emit)
	if err != nil {
		return Mended{}, err
	}
	t.mend = &mending{errors: m.Errors, opts: opts, end: m.AfterBytes}
	t.mend.after, err = newTracer(ctx, m.After, m.AfterBytes, opts, func(Line) error { return nil })
	if err != nil {
		return Mended{}, err
	}
	var stop *StopError
	err = t.mend.after.trace()
	if err != nil && !errors.As(err, &stop) {
		return Mended{}, err
	}
	t.mend.whole = err == nil
	err = t.trace()
	d := Mended{t.counts, t.mend.corruptionsFixed, t.mend.leaksFixed}
	if err == nil && t.mend.whole {
		// What is mended beyond what qemu-img can.
		more := max(0, d.Corruptions-t.mend.after.counts.Corruptions)
		d.Corruptions, d.CorruptionsFixed = d.Corruptions-more, d.CorruptionsFixed+more
		more = max(0, d.Leaks-t.mend.after.counts.Leaks)
		d.Leaks, d.LeaksFixed = d.Leaks-more, d.LeaksFixed+more
	}
	return d, err
}

// mending is what a tracer knows of a repair. A nil one is none.
type mending struct {
	errors bool
	opts   CheckOptions
	end    int64
	// after has gone over the image as the repair leaves it; whole is set if it came to the end.
	after *tracer
	whole bool
	// rebuilt: the refcounts are those of after by now.
	rebuilt bool
	// repairing: refcounts that are settled count as what they will be.
	repairing bool
	// quiet: what is not repaired is not said again.
	quiet bool

	incomplete                   int64 // snapshot entries that are written anew
	corruptionsFixed, leaksFixed int64
}

// changed reports whether the word at off is another one afterwards.
func (m *mending) changed(off, word uint64) bool {
	if m == nil || !m.errors {
		return false
	}
	p, err := m.after.read(off, 8)
	return err == nil && binary.BigEndian.Uint64(p) != word
}

// wasZeroed reports whether an L2 entry was mended by making it one of zeros. p and after begin with
// it, as it was and as it is afterwards.
func (t *tracer) wasZeroed(p, after []byte) bool {
	bitmap := uint64(0)
	if t.h.ExtendedL2() {
		bitmap = binary.BigEndian.Uint64(p[8:])
	}
	entry := binary.BigEndian.Uint64(p)
	return t.preallocated(entry, bitmap) && entry != binary.BigEndian.Uint64(after)
}

// replaced reports whether an entry of the refcount table is another one afterwards.
func (m *mending) replaced(i int, entry uint64) bool {
	return m != nil && m.errors && m.whole &&
		(i >= len(m.after.reftable) || m.after.reftable[i] != entry)
}

// table reads an L2 table as it is afterwards, nil where it cannot be read.
func (m *mending) table(off uint64, n int64) []byte {
	p, err := m.after.read(off, n)
	if err != nil || !m.whole {
		return nil
	}
	return p
}

// flagFits reports whether an entry has the flag that it should have, afterwards.
func (m *mending) flagFits(word uint64) bool {
	a := m.after
	if typ := a.h.TypeOf(word); typ != EntryNormal && typ != EntryZeroAlloc {
		return true
	}
	if a.dataFile {
		return word&FlagCopied != 0
	}
	n, ok, err := a.refcount(word & OffsetMask >> a.bits)
	return err == nil && ok && (n == 1) == (word&FlagCopied != 0)
}

// l1FlagFits is flagFits for an entry of the active L1 table.
func (m *mending) l1FlagFits(i int) bool {
	if !m.whole || i >= len(m.after.l1) {
		return false
	}
	word := m.after.l1[i]
	if word&OffsetMask == 0 {
		return true
	}
	n, ok, err := m.after.refcount(word & OffsetMask >> m.after.bits)
	return err == nil && ok && (n == 1) == (word&FlagCopied != 0)
}

// incomplete says that an entry of the snapshot table lacks what version 3 wants.
func (t *tracer) incomplete(i int64) error {
	if m := t.mend; m != nil && m.errors && m.whole && i < int64(len(m.after.snapshots.Snapshots)) &&
		m.after.snapshots.Snapshots[i].ExtraBytes >= 16 {
		m.incomplete++
		return t.say("Repairing snapshot table entry %d is incomplete", i)
	}
	return t.corrupt("ERROR snapshot table entry %d is incomplete", i)
}

// settled reports whether the refcount of a cluster, which is not what it should be, is right after
// the repair.
func (t *tracer) settled(cluster, have, want uint64) bool {
	m := t.mend
	if have < want && !m.errors || !m.whole {
		return false
	}
	n, ok, err := m.after.refcount(cluster)
	return err == nil && ok && n == m.after.refs.count(int64(cluster))
}

// refcountNow is the refcount of a cluster with what was repaired up to here.
func (t *tracer) refcountNow(cluster uint64) (uint64, bool, error) {
	if t.mend != nil && t.mend.rebuilt {
		return t.mend.after.refcount(cluster)
	}
	n, ok, err := t.refcount(cluster)
	if err != nil || !ok || t.mend == nil || !t.mend.repairing || cluster >= t.limit {
		return n, ok, err
	}
	if want := t.refs.count(int64(cluster)); n != want && t.settled(cluster, n, want) {
		n = want
	}
	return n, ok, nil
}

// flagWord counts a wrong COPIED flag and gives the first word of its line.
func (t *tracer) flagWord(mended bool) string {
	if mended {
		t.mend.corruptionsFixed++
		return "Repairing"
	}
	t.counts.Corruptions++
	return "ERROR"
}

// traceMend does what qemu-img check -r does once the snapshot table is read.
func (t *tracer) traceMend() error {
	m := t.mend
	if err := t.countAll(); err != nil {
		return err
	}
	counted := t.counts
	if err := t.compare(false); err != nil {
		return err
	}
	switch {
	case t.rebuild && !m.errors:
		if err := t.say("ERROR need to rebuild refcount structures"); err != nil {
			return err
		}
		return t.stop(reasonIO)
	case t.rebuild && m.whole && t.newStructure():
		if err := t.rebuildStructure(); err != nil {
			return err
		}
	case t.counts.Leaks > 0 || t.counts.Corruptions > 0:
		t.counts = counted
		// A refcount of 0 is raised where it is; qemu-img looks a second time only where there is none.
		m.repairing, m.quiet = true, t.rebuild
		if err := t.compare(true); err != nil {
			return err
		}
	}
	if err := t.flags(m.errors || t.counts.Corruptions+t.counts.Leaks+t.counts.CheckErrors == 0); err != nil {
		return err
	}
	m.corruptionsFixed += m.incomplete
	return nil
}

// newStructure reports whether the repair makes refcount blocks or the refcount table anew.
func (t *tracer) newStructure() bool {
	a := t.mend.after
	if a.h.ReftableOff != t.h.ReftableOff || a.h.RefcountOrder != t.h.RefcountOrder {
		return true
	}
	for i, e := range t.reftable {
		if t.mend.replaced(i, e) {
			return true
		}
	}
	return len(a.reftable) != len(t.reftable)
}

// rebuildStructure says what qemu says while it makes the refcount structure anew.
func (t *tracer) rebuildStructure() error {
	m := t.mend
	if err := t.say("Rebuilding refcount structure"); err != nil {
		return err
	}
	found := t.counts
	a, err := newTracer(t.ctx, m.after.r, m.end, m.opts, t.emit)
	if err != nil {
		return err
	}
	a.snapshots = m.after.snapshots
	if err := a.countAll(); err != nil {
		return err
	}
	m.rebuilt = true
	t.counts.Corruptions, t.counts.Leaks = a.counts.Corruptions, 0
	if err := t.freeOld(a); err != nil {
		return err
	}
	m.corruptionsFixed += max(0, found.Corruptions-t.counts.Corruptions)
	m.leaksFixed += max(0, found.Leaks-t.counts.Leaks)
	return nil
}

// freeOld compares the refcounts of the new structure, and says which clusters of the old one it
// counts as free. a has counted the references.
func (t *tracer) freeOld(a *tracer) error {
	old := map[uint64]bool{}
	for _, e := range t.reftable {
		old[e&reftableOffMask>>t.bits] = true
	}
	first := uint64(t.h.ReftableOff) >> t.bits
	for c := range uint64(t.h.ReftableClusters) {
		old[first+c] = true
	}
	highest := uint64(0)
	for c := range max(t.limit, a.limit) {
		if c%4096 == 0 && t.ctx.Err() != nil {
			return t.ctx.Err()
		}
		have, ok, err := a.refcount(c)
		if err != nil {
			return err
		}
		want := a.refs.count(int64(c))
		if have > 0 || want > 0 {
			highest = c
		}
		switch was := t.refs.count(int64(c)); {
		case !ok:
		case have > want:
			t.counts.Leaks++
			err = t.say("Leaked cluster %d refcount=%d reference=%d", c, have, want)
		case have < want:
			err = t.say("ERROR cluster %d refcount=%d reference=%d", c, have, want)
		case was > 0 && want == 0 && old[c]:
			err = t.say("Repairing cluster %d refcount=%d reference=0", c, was)
		}
		if err != nil {
			return err
		}
	}
	t.counts.ImageEndOffset = int64((highest + 1) << t.bits)
	return nil
}
