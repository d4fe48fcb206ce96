// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"errors"
	"math/bits"
	"slices"
)

// The index of a file that was not closed may be behind its entries: journald writes a file to the
// disk every five minutes. Younger entries are looked at one by one, but not more than so many.
const (
	staleUsec    = 10 * 60 * 1_000_000
	staleEntries = 1 << 16
)

// index finds the lists of the entries that may match: of all names that are asked for, those of
// the name that the fewest entries have. They hold for entries before cut. Without lists, none of
// the entries can be left out unseen.
func (w *walk) index(all reach) (lists []*list, cut int64) {
	best, fewest := []*list(nil), int64(-1)
	if w.all.n == 0 {
		return nil, all.low
	}
	if !w.keyed() {
		w.damage.spot(atFileID, "the index of fields: no value has the hash that it should have")
		return nil, all.low
	}
	for _, g := range w.groups {
		found, n := []*list{}, int64(0)
		for ; g != 0; g &= g - 1 {
			l, at, err := w.lookUp(w.terms[bits.TrailingZeros64(g)])
			if err != nil {
				w.damage.spot(at, "the index of fields: %v; all entries are looked at", err)
				return nil, all.low
			}
			if l != nil {
				found, n = append(found, l), n+l.n
			}
		}
		if fewest < 0 || n < fewest {
			best, fewest = found, n
		}
	}
	cut = w.fresh(all)
	return best, max(all.low, min(cut, all.high))
}

// keyed tells whether values have the hashes that this file says: it may be found by none else.
func (w *walk) keyed() bool {
	_, o, _, ok := w.all.near(0)
	if !ok {
		return false
	}
	items, err := w.entryItems(o, nil)
	sound := func(off int64) bool { return w.value(off).bad == nil }
	return err == nil && slices.ContainsFunc(items, sound)
}

// fresh is where the index of the file may begin to lack entries.
func (w *walk) fresh(all reach) int64 {
	end := w.all.n
	if end == 0 || w.all.missing > 0 {
		return all.low
	}
	if w.f.header.State == Online {
		_, _, newest, ok := w.all.near(end - 1)
		if !ok {
			return all.low
		}
		i, ok := w.all.search(func(_ object, e entryWords) bool {
			return e.realtime+staleUsec >= newest.realtime
		})
		if !ok {
			return all.low
		}
		end = max(i, end-staleEntries)
	}
	if end == w.all.n {
		o, _, ok := w.all.good(end - 1)
		if !ok {
			return all.low
		}
		return o.end()
	}
	_, o, _, ok := w.all.near(end)
	if !ok {
		return all.low
	}
	return o.off
}

var (
	errChain = errors.New("the chain of a hash is broken")
	errTable = errors.New("the hash table is not where the header says")
)

// lookUp finds a field and the list of its entries, nil if no entry has it ("Hash Table Objects").
// It goes by the chain of its hash, which must be sound to its end to prove that.
func (w *walk) lookUp(term string) (*list, int64, error) {
	f := w.f
	table, err := w.object(f.table-objectHead, kindDataTable)
	if err != nil || f.buckets == 0 || table.size != objectHead+f.buckets*bucketBytes {
		return nil, f.table, errTable
	}
	text := []byte(term)
	hash := f.hash(text, jenkins(text))
	bucket := int64(hash % uint64(f.buckets))
	b, err := w.bytes(f.table+bucket*bucketBytes, bucketBytes)
	if err != nil {
		return nil, f.table, err
	}
	at, tail := f.bounded(le.Uint64(b)), f.bounded(le.Uint64(b[8:]))
	if (at == 0) != (tail == 0) {
		return nil, f.table + bucket*bucketBytes, errChain
	}
	for prev := int64(0); at != 0; {
		o, err := w.object(at, kindData)
		if err == nil && (at <= prev || at > tail) {
			err = errChain
		}
		if err != nil {
			return nil, at, err
		}
		if err := w.breathe(); err != nil {
			return nil, at, err
		}
		b, err := w.bytes(at, dataHead)
		if err != nil {
			return nil, at, err
		}
		its, next := le.Uint64(b[16:]), f.bounded(le.Uint64(b[24:]))
		first, array, n := f.bounded(le.Uint64(b[40:])), f.bounded(le.Uint64(b[48:])), le.Uint64(b[56:])
		if int64(its%uint64(f.buckets)) != bucket || next == 0 && at != tail {
			return nil, at, errChain
		}
		text, err := w.text(o)
		if err != nil {
			return nil, at, err
		}
		if w.f.hash(text, jenkins(text)) != its {
			return nil, at, errHash
		}
		if string(text) == term {
			if first == 0 {
				if array != 0 || n != 0 {
					return nil, at, errChain
				}
				return nil, 0, nil
			}
			l := w.list(first, array, f.bounded(n))
			l.value = at
			return l, l.at, l.broken
		}
		prev, at = at, next
	}
	return nil, 0, nil
}

// indexed gives the entries of lists that lie in r, each once. It ends where a list proves wrong,
// and tells how far it came: what is left of r is to be looked at entry by entry.
func (w *walk) indexed(lists []*list, r reach) (done int64, err error) {
	start, end, step := r.low, r.high, int64(1)
	if w.o.Backward {
		start, end, step = r.high, r.low, -1
	}
	at := make([]int64, len(lists))
	for i, l := range lists {
		if l.missing > 0 {
			w.damage.spot(l.value, "the index lacks %d entries of this value", l.missing)
			return start, nil
		}
		var ok bool
		if at[i], ok = l.search(func(o object, _ entryWords) bool { return o.off >= start }); !ok {
			return start, nil
		}
		if w.o.Backward {
			at[i]--
		}
	}
	for done = start; ; {
		best, o, e, ok := w.nearest(lists, at, step)
		if !ok {
			return done, nil
		}
		if best == nil || o.off < r.low || o.off >= r.high {
			return end, nil
		}
		if step > 0 && o.off < done || step < 0 && o.off >= done {
			w.damage.spot(best.value, "the index of this value goes back to 0x%x", o.off)
			return done, nil
		}
		for k, l := range lists { // an entry may have two of the values
			if at[k] >= 0 && at[k] < l.n && l.slot(at[k]) == o.off {
				at[k] += step
			}
		}
		if err := w.linked(o, e); err != nil {
			return done, err
		}
		if done = o.off; step > 0 {
			done += 8 // not its end: its size may be wrong
		}
	}
}

// nearest is the next entry of several lists, nil if they have no more. ok is false where one of
// them leads to what is no entry, or has not the value.
func (w *walk) nearest(lists []*list, at []int64, step int64) (
	best *list, o object, e entryWords, ok bool,
) {
	for i, l := range lists {
		if at[i] < 0 || at[i] >= l.n {
			continue
		}
		got, words, ok := l.good(at[i])
		if ok {
			var err error
			w.items, err = w.entryItems(got, w.items)
			ok = err == nil && slices.Contains(w.items, l.value)
		}
		if !ok {
			w.damage.spot(l.value, "the index of this value leads to 0x%x, which does not have it",
				l.slot(at[i]))
			return nil, o, e, false
		}
		if best == nil || (got.off-o.off)*step < 0 {
			best, o, e = l, got, words
		}
	}
	return best, o, e, true
}
