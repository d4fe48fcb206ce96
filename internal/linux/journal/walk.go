// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// ErrStop is returned by a function that wants no more entries; it is no error then.
var ErrStop = errors.New("no more entries are wanted")

// Options say which entries are wanted, and what of them. The zero value is all of all.
type Options struct {
	// Since and Until bound the entries by the time when they were written, both included; zero for
	// no bound. They are found by halving. Where samples show that a clock was set back, all entries
	// are looked at instead; see also [Damage].ClockBack.
	Since, Until time.Time
	// After leaves out entries up to that sequence number.
	After uint64
	// Backward gives the newest first.
	Backward bool
	// Fields are the names of the fields that are wanted, nil for all. All are verified, and
	// damaged ones are given whatever their name is.
	Fields []string
	// Match are fields that an entry must have, as "NAME=value": one of each name, as journalctl
	// takes them; at most 64. Entries are found by the index of the file where it is sound.
	Match []string
}

const maxTerms = 64

// walk is one walk through a file.
type walk struct {
	values
	ctx    context.Context
	o      Options
	fn     func(*Entry) error
	all    *list
	groups []uint64 // of the match: the terms of each name
	damage Damage
	entry  Entry
	items  []int64
	sums   []uint64
	steps  int
	since  uint64 // microseconds
	until  uint64
	last   uint64 // realtime of the last entry
}

// Entries hands the entries of the file to fn, in the order of the file, or backwards. It ends
// early with the error that fn returns, without one if that is ErrStop, and with that of ctx.
// Whatever is wrong with the file is told by Damage, which is of what was walked through only.
func (f *File) Entries(ctx context.Context, o Options, fn func(*Entry) error) (Damage, error) {
	w := &walk{ctx: ctx, o: o, fn: fn, until: maxUint64}
	w.f, w.names, w.maxWork = f, map[string]name{}, workBase+workRatio*f.size
	w.damage.Unclean = f.header.State != Offline && f.header.State != Archived
	w.damage.Spots = slices.Clone(f.problems)
	if err := w.wanted(); err != nil {
		return w.damage, err
	}
	w.all = w.list(0, f.arrays, f.entries)
	if w.all.broken != nil {
		w.damage.spot(w.all.at, "the list of entries ends here: %v", w.all.broken)
	}
	if w.all.more && f.header.State != Online {
		w.damage.spot(atEntries, "header: %d entries, and %d are listed", f.entries, w.all.n)
	}
	err := w.run()
	if w.overwork {
		w.damage.spot(0, "%v: what is packed is more than %d bytes", errWork, w.maxWork)
	}
	if errors.Is(err, ErrStop) {
		err = nil
	}
	return w.damage, err
}

const maxUint64 = 1<<64 - 1

// wanted takes the options apart.
func (w *walk) wanted() error {
	if w.o.Fields != nil {
		w.fields = map[string]bool{}
		for _, n := range w.o.Fields {
			w.fields[n] = true
		}
	}
	if len(w.o.Match) > maxTerms {
		return errors.New("more than 64 fields to match")
	}
	w.terms = slices.Clone(w.o.Match)
	slices.Sort(w.terms) // those of one name are neighbours then
	last := ""
	for i, term := range w.terms {
		name, _, ok := strings.Cut(term, "=")
		if !ok {
			return errors.New("match " + term + ": want NAME=value")
		}
		if i == 0 || name != last {
			w.groups = append(w.groups, 0)
		}
		w.groups[len(w.groups)-1] |= 1 << i
		last = name
	}
	if !w.o.Since.IsZero() {
		w.since = uint64(max(0, w.o.Since.UnixMicro()))
	}
	if !w.o.Until.IsZero() {
		w.until = uint64(max(0, w.o.Until.UnixMicro()))
	}
	return nil
}

// fewEntries are so few that searching by time saves nothing.
const fewEntries = 512

// reach is the part of the file that is to be walked through, as offsets.
type reach struct{ low, high int64 }

// run walks through what is asked for.
func (w *walk) run() error {
	all := w.within()
	cut, lists := all.low, []*list(nil)
	if len(w.groups) > 0 {
		lists, cut = w.index(all)
	}
	if !w.o.Backward {
		if lists != nil {
			done, err := w.indexed(lists, reach{all.low, cut})
			if err != nil {
				return err
			}
			cut = done
		}
		return w.plain(reach{cut, all.high})
	}
	if err := w.plain(reach{cut, all.high}); err != nil || lists == nil {
		return err
	}
	left, err := w.indexed(lists, reach{all.low, cut})
	if err != nil || left == all.low {
		return err
	}
	return w.plain(reach{all.low, left})
}

// within bounds the walk by times and numbers, where the list of entries allows it.
func (w *walk) within() reach {
	r := reach{w.f.begin, w.f.size}
	if w.all.n < fewEntries {
		return r
	}
	place := func(is func(o object, e entryWords) bool) (int64, bool) {
		i, ok := w.all.search(is)
		if !ok {
			return 0, false
		}
		if i == w.all.n { // only what no list leads to may follow
			o, _, ok := w.all.good(i - 1)
			return o.end(), ok
		}
		o, _, ok := w.all.good(i)
		return o.off, ok
	}
	if w.o.After > 0 {
		if off, ok := place(func(_ object, e entryWords) bool { return e.seqnum > w.o.After }); ok {
			r.low = off
		}
	}
	timed := w.since > 0 || w.until < maxUint64
	if !timed || !w.all.ordered() {
		return r
	}
	if off, ok := place(func(_ object, e entryWords) bool { return e.realtime >= w.since }); ok {
		r.low = max(r.low, off)
	}
	if w.until < maxUint64 {
		off, ok := place(func(_ object, e entryWords) bool { return e.realtime > w.until })
		if ok && off < w.all.slot(w.all.n-1) {
			r.high = off
		}
	}
	r.high = max(r.low, r.high)
	return r
}

// plain walks through the list of all entries, and where that is damaged through the file itself.
func (w *walk) plain(r reach) error {
	if r.low >= r.high && r.high < w.f.size {
		return nil
	}
	from, to := w.slots(r)
	if w.o.Backward {
		return w.backward(r, from, to)
	}
	return w.forward(r, from, to)
}

// slots gives the entries of the list that lie in r.
func (w *walk) slots(r reach) (from, to int64) {
	to = w.all.n
	if r.low > w.f.begin {
		if i, ok := w.all.search(func(o object, _ entryWords) bool { return o.off >= r.low }); ok {
			from = i
		}
	}
	if r.high < w.f.size {
		if i, ok := w.all.search(func(o object, _ entryWords) bool { return o.off >= r.high }); ok {
			to = i
		}
	}
	return from, to
}

func (w *walk) forward(r reach, from, to int64) error {
	low, last := r.low, int64(-1)
	for i := from; ; {
		o, e, next := w.nextGood(i, to, 1, last)
		high, bad := r.high, next-i
		if next < to {
			high = min(high, o.off)
		} else if to == w.all.n {
			bad += w.all.missing
		}
		if (next > i || next == w.all.n) && (next == to || high > r.low) {
			if err := w.search(low, high, bad, w.unlinked); err != nil {
				return err
			}
		}
		if next == to {
			return nil
		}
		if o.off >= r.low && o.off < r.high {
			if err := w.linked(o, e); err != nil {
				return err
			}
		}
		low, last = max(r.low, w.after(o, next)), o.off
		i = next + 1
	}
}

func (w *walk) backward(r reach, from, to int64) error {
	high, last := r.high, w.f.size
	for i := to - 1; ; {
		o, e, next := w.nextGood(i, from-1, -1, last)
		low, bad := r.low, i-next
		if next >= from {
			low = max(low, w.after(o, next))
		}
		tail := i == w.all.n-1
		if tail {
			bad += w.all.missing
		}
		if (next < i || tail) && (next < from || o.off < r.high) {
			if err := w.searchBack(low, high, bad); err != nil {
				return err
			}
		}
		if next < from {
			return nil
		}
		if o.off >= r.low && o.off < r.high {
			if err := w.linked(o, e); err != nil {
				return err
			}
		}
		high, last = min(r.high, o.off), o.off
		i = next - 1
	}
}

// nextGood gives the next entry from i on, before end, that the list leads to and that lies beyond
// last; end if there is none.
func (w *walk) nextGood(i, end, step, last int64) (o object, e entryWords, at int64) {
	for at = i; (end-at)*step > 0; at += step {
		var ok bool
		if o, e, ok = w.all.good(at); ok && (o.off-last)*step > 0 {
			return o, e, at
		}
	}
	return o, e, end
}

// after is where to search for what follows entry i. Its size may be wrong: that of one that
// reaches behind the next does not count.
func (w *walk) after(o object, i int64) int64 {
	end := o.end()
	if i < w.all.n-1 {
		if next := w.all.slot(i + 1); next > o.off && next < end {
			return o.off + 8
		}
	}
	return end
}

// search looks for entries that no list leads to. bad of them should be there.
func (w *walk) search(low, high, bad int64, found func(o object, e entryWords) error) error {
	n := int64(0)
	err := w.scan(low, high, func(o object, e entryWords) error {
		n++
		return found(o, e)
	})
	if lost := bad - n; lost > 0 && err == nil {
		w.damage.Lost += lost
		w.damage.spot(low, "%d entries are listed between here and 0x%x, and %d were found", bad, high, n)
	}
	return err
}

// maxUnlinked bounds the entries without a link that are held to be given backwards.
const maxUnlinked = 1 << 18

func (w *walk) searchBack(low, high, bad int64) error {
	var offs []int64
	err := w.search(low, high, bad, func(o object, e entryWords) error {
		if len(offs) == maxUnlinked {
			w.damage.spot(offs[0], "more than %d entries that no list leads to: the oldest are not given",
				maxUnlinked)
			w.damage.Lost += maxUnlinked / 2
			offs = slices.Delete(offs, 0, maxUnlinked/2)
		}
		offs = append(offs, o.off)
		return nil
	})
	if err != nil {
		return err
	}
	for _, off := range slices.Backward(offs) {
		o, e, err := w.reader.entry(off)
		if err != nil {
			continue // it was there a moment ago: the file is being changed
		}
		if err := w.unlinked(o, e); err != nil {
			return err
		}
	}
	return nil
}

// breathe lets a long walk be ended.
func (w *walk) breathe() error {
	if w.steps++; w.steps&255 == 0 {
		return w.ctx.Err()
	}
	return nil
}
