// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import "errors"

// maxArrays bounds the arrays of a list: each is twice as long as the one before, so a list of all
// entries that a file can have takes 40.
const maxArrays = 256

// list is a list of entries: that of the file, or of the entries that have a value ("Entry Array
// Objects"). Offsets ascend.
type list struct {
	r     *reader
	first int64 // the first entry of a value is kept with the value; 0 for none
	value int64 // where that is, 0 in the list of the file
	parts []part
	n     int64 // entries in it
	// missing counts entries that are to be in it and that it has no room for.
	missing int64
	broken  error // why it ends where it does, with the place
	at      int64
	last    int64 // the place that was found last
	more    bool  // it has more entries than it is said to have
}

// part is an array of the list.
type part struct {
	items    int64 // offset
	index, n int64 // the first of them, and their number
}

var errOrder = errors.New("lists do not go backwards")

// list reads where the arrays of a list of n entries are. first is 0, or the first entry, which is
// then in none of them.
func (r *reader) list(first, array, n int64) *list {
	l := &list{r: r, first: first}
	room := int64(0)
	if first != 0 {
		room = 1
	}
	item := int64(8)
	if r.f.header.Compact {
		item = 4
	}
	for prev := int64(0); array != 0; {
		o, err := r.object(array, kindArray)
		switch {
		case err != nil:
		case array <= prev:
			err = errOrder
		case len(l.parts) == maxArrays:
			err = errors.New("too many arrays")
		}
		var b []byte
		if err == nil {
			b, err = r.bytes(array, arrayHead)
		}
		if err != nil {
			l.broken, l.at = err, array
			break
		}
		k := (o.size - arrayHead) / item
		l.parts = append(l.parts, part{array + arrayHead, room, k})
		room += k
		prev, array = array, r.f.bounded(le.Uint64(b[objectHead:]))
	}
	l.n = min(n, room)
	l.missing = n - l.n
	// A writer counts an entry after it was listed: what is listed counts.
	for l.n < room && l.slot(l.n) != 0 {
		l.n, l.more = l.n+1, true
	}
	return l
}

// slot is the offset of an entry, 0 if it cannot be read.
func (l *list) slot(i int64) int64 {
	if i == 0 && l.first != 0 {
		return l.first
	}
	k := len(l.parts) - 1
	for k > 0 && l.parts[k].index > i {
		k--
	}
	if k < 0 || i < l.parts[k].index || i-l.parts[k].index >= l.parts[k].n {
		return 0
	}
	i -= l.parts[k].index
	if l.r.f.header.Compact {
		b, err := l.r.bytes(l.parts[k].items+4*i, 4)
		if err != nil {
			return 0
		}
		return int64(le.Uint32(b))
	}
	b, err := l.r.bytes(l.parts[k].items+8*i, 8)
	if err != nil {
		return 0
	}
	return l.r.f.bounded(le.Uint64(b))
}

// good reads the head of entry i, if the list leads to one and its neighbours agree. A wrong offset
// may make its neighbours look wrong, too; they are found by a search then.
func (l *list) good(i int64) (o object, w entryWords, ok bool) {
	off := l.slot(i)
	if off == 0 || i > 0 && l.slot(i-1) >= off {
		return o, w, false
	}
	if i < l.n-1 {
		if next := l.slot(i + 1); next != 0 && next <= off {
			return o, w, false
		}
	}
	o, w, err := l.r.entry(off)
	return o, w, err == nil
}

// find gives the place of an entry in the list, if its neighbours on the way there are right. The walk
// asks for one after the other: the last place and those beside it are looked at first.
func (l *list) find(off int64) (int64, bool) {
	for i := max(0, l.last-1); i < min(l.n, l.last+2); i++ {
		if l.slot(i) == off {
			l.last = i
			return i, true
		}
	}
	low, high := int64(0), l.n
	for low < high {
		if mid := low + (high-low)/2; l.slot(mid) < off {
			low = mid + 1
		} else {
			high = mid
		}
	}
	l.last = low
	return low, low < l.n && l.slot(low) == off
}

// near gives the first of a few entries at or behind i that is good, and whose number and time lie
// between those of its neighbours: neither has a hash, and a wrong one would lead a search astray.
func (l *list) near(i int64) (at int64, o object, w entryWords, ok bool) {
	const few = 16
	for at = i; at < min(l.n, i+few); at++ {
		if o, w, ok = l.good(at); ok && l.between(at, w) {
			return at, o, w, true
		}
	}
	return at, o, w, false
}

func (l *list) between(i int64, w entryWords) bool {
	if i > 0 {
		if _, before, ok := l.good(i - 1); ok && (before.seqnum >= w.seqnum || before.realtime > w.realtime) {
			return false
		}
	}
	if i < l.n-1 {
		if _, after, ok := l.good(i + 1); ok && (after.seqnum <= w.seqnum || after.realtime < w.realtime) {
			return false
		}
	}
	return true
}

// search finds the first entry for which is holds, by halving: it holds for all behind that one. ok
// is false where the list is too damaged for that.
func (l *list) search(is func(o object, w entryWords) bool) (i int64, ok bool) {
	low, high := int64(0), l.n
	for low < high {
		mid := low + (high-low)/2
		at, o, w, ok := l.near(mid)
		if !ok {
			return 0, false
		}
		if at >= high { // all from mid on are bad
			return 0, false
		}
		if is(o, w) {
			high = mid // what is bad between them is behind the place then
		} else {
			low = at + 1
		}
	}
	return low, true
}

// ordered tells whether times ascend, as far as samples show. Where a clock was set back, a search
// by time may miss entries.
func (l *list) ordered() bool {
	const samples = 64
	last := uint64(0)
	for k := range int64(samples) {
		_, _, w, ok := l.near(k * (l.n - 1) / (samples - 1))
		if !ok || w.realtime < last {
			return false
		}
		last = w.realtime
	}
	return true
}
