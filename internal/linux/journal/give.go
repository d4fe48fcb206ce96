// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"math/bits"
	"time"
)

// unlinked gives an entry that a search found.
func (w *walk) unlinked(o object, e entryWords) error {
	w.entry.Unlinked = true
	return w.give(o, e, false)
}

// linked gives an entry that a list leads to.
func (w *walk) linked(o object, e entryWords) error {
	w.entry.Unlinked = false
	i, ok := w.all.find(o.off)
	return w.give(o, e, ok && w.misnumbered(i, e.seqnum))
}

// misnumbered tells whether the number of entry i of the file does not fit its neighbours', or those of
// the header. The numbers of a file ascend ("Sequence Numbers").
func (w *walk) misnumbered(i int64, n uint64) bool {
	f, l := w.f, w.all
	if f.header.State != Online {
		if f.dense && !l.more && l.missing == 0 { // places in the list are right
			return n-f.first != uint64(i)
		}
		if n < f.first || n > f.last {
			return true
		}
	}
	if i > 0 {
		if _, e, err := w.reader.entry(l.slot(i - 1)); err == nil && e.seqnum >= n {
			return true
		}
	}
	if i < l.n-1 {
		if _, e, err := w.reader.entry(l.slot(i + 1)); err == nil && e.seqnum <= n {
			return true
		}
	}
	return false
}

// give hands an entry to the caller if it is wanted. wrong: its numbers are.
func (w *walk) give(o object, e entryWords, wrong bool) error {
	if err := w.breathe(); err != nil {
		return err
	}
	if w.last != 0 && e.realtime != w.last && (e.realtime > w.last) == w.o.Backward {
		w.damage.ClockBack++
	}
	w.last = e.realtime
	if e.realtime < w.since || e.realtime > w.until || e.seqnum <= w.o.After {
		return nil
	}
	hits, err := w.assemble(o, e, wrong)
	if err != nil {
		return err
	}
	if !w.entry.Damaged && !w.matches(hits) {
		return nil
	}
	if w.entry.Unlinked {
		w.damage.Unlinked++
	}
	if w.entry.Damaged {
		w.damage.Hurt++
	}
	return w.fn(&w.entry)
}

// matches tells whether an entry with these terms has one of each name. One that is damaged may
// have had others, and is given.
func (w *walk) matches(hits uint64) bool {
	for _, g := range w.groups {
		if g&hits == 0 {
			return false
		}
	}
	return true
}

// assemble reads the values of an entry and verifies them.
func (w *walk) assemble(o object, e entryWords, wrong bool) (hits uint64, err error) {
	w.release()
	t := &w.entry
	*t = Entry{Offset: o.off, Seqnum: e.seqnum, SeqnumID: w.f.header.SeqnumID,
		Realtime: moment(e.realtime), Monotonic: microseconds(e.monotonic), Boot: e.boot,
		XorHash: e.xor, Fields: t.Fields[:0], Unlinked: t.Unlinked}
	t.Damaged = wrong || t.Realtime.IsZero() || e.monotonic > maxTime
	if w.tired(o.size) {
		w.damage.spot(o.off, "%v", errWork)
		return 0, ErrStop
	}
	if w.items, err = w.entryItems(o, w.items); err != nil {
		w.damage.spot(o.off, "%v", err)
		t.Damaged = true
		return 0, nil
	}
	sum, whole, held := uint64(0), true, 0
	w.sums = w.sums[:0]
	for _, at := range w.items {
		v := w.value(at)
		if v.bad != nil {
			w.damage.spot(at, "value %s: %v", v.name, v.bad)
			t.Damaged, whole = true, false
			t.Fields = append(t.Fields, Field{v.name, v.bytes, true})
			continue
		}
		sum ^= v.xor
		w.sums = append(w.sums, v.xor)
		hits |= v.hits
		if v.booted && v.boot != e.boot {
			t.Damaged = true
		}
		if !v.wanted {
			continue
		}
		if held += len(v.bytes); held > maxEntry {
			w.damage.spot(at, "value %s: the entry has more than %d bytes", v.name, maxEntry)
			t.Damaged, v.bytes = true, nil
		}
		t.Fields = append(t.Fields, Field{v.name, v.bytes, v.bytes == nil})
	}
	if whole && !spans(w.sums, sum^e.xor) {
		w.damage.spot(o.off, "the values of entry %d are not those that it was written with", e.seqnum)
		t.Damaged = true
	}
	return hits, nil
}

// microseconds is a time since the boot.
func microseconds(usec uint64) time.Duration {
	return time.Duration(min(usec, maxTime)) * time.Microsecond
}

// spans tells whether want is the exclusive or of some of all. A field that an entry was given
// twice is listed once and counted twice in the entry's hash, so some may be missing from it. With
// so few of so many bits no other set of fields gives the same.
func spans(all []uint64, want uint64) bool {
	const few = 40
	if want == 0 {
		return true
	}
	if len(all) > few {
		return false
	}
	var basis [64]uint64 // each by its highest bit
	reduce := func(x uint64) uint64 {
		for x != 0 && basis[63-bits.LeadingZeros64(x)] != 0 {
			x ^= basis[63-bits.LeadingZeros64(x)]
		}
		return x
	}
	for _, x := range all {
		if r := reduce(x); r != 0 {
			basis[63-bits.LeadingZeros64(r)] = r
		}
	}
	return reduce(want) == 0
}
