// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import "errors"

// scan looks for entries from low to high, object by object, and hands them to found. Where the row
// of objects is broken it looks for the next one that proves to be an object; what lies between is
// told.
func (w *walk) scan(low, high int64, found func(o object, e entryWords) error) error {
	high = min(high, w.f.size)
	before := object{off: low, size: 0} // the object that led here
	for at := low; at < high; {
		if err := w.breathe(); err != nil {
			return err
		}
		o, err := w.head(at)
		switch {
		case err != nil:
		case o.kind == kindData && !w.sound(o):
			err, before = errHash, o // its size may be wrong, too
		case o.kind == kindEntry:
			var e entryWords
			if _, e, err = w.reader.entry(at); err == nil && !w.ownItems(o) {
				err, before = errHead, object{off: at}
			}
			if err == nil {
				if err := found(o, e); err != nil {
					return err
				}
			}
		}
		if err == nil {
			before, at = o, o.end()
			continue
		}
		// The end of what was written, unless something follows all the same.
		if errors.Is(err, errZeros) && at > w.f.tailObject && w.f.header.State != Online {
			return nil
		}
		from := at
		if !w.sound(before) {
			from = before.off + 8
		}
		next, err2 := w.next(from, high)
		if err2 != nil {
			return err2
		}
		if next >= high && errors.Is(err, errZeros) && at > w.f.tailObject {
			return nil // nothing does
		}
		if next > at {
			w.damage.spot(at, "%v; searched up to 0x%x", err, min(next, high))
		}
		before, at = object{off: next}, next
	}
	return nil
}

// next looks for an object that proves itself.
func (w *walk) next(from, high int64) (int64, error) {
	for at := (from + 7) &^ 7; at < high; at += 8 {
		if at%blockBytes == 0 {
			if err := w.breathe(); err != nil {
				return 0, err
			}
		}
		if o, err := w.head(at); err == nil && o.end() > at && w.proves(o) {
			return at, nil
		}
	}
	return high, nil
}

// proves tells whether what looks like an object is one.
func (w *walk) proves(o object) bool {
	switch o.kind {
	case kindEntry:
		_, e, err := w.reader.entry(o.off)
		return err == nil && e.realtime != 0 && e.realtime <= maxTime && e.monotonic <= maxTime &&
			w.ownItems(o)
	case kindData:
		return w.sound(o)
	}
	_, err := w.head(o.end())
	return err == nil || errors.Is(err, errZeros)
}

// ownItems tells whether all that an entry lists are values.
func (w *walk) ownItems(o object) bool {
	var err error
	if w.items, err = w.entryItems(o, w.items); err != nil {
		return false
	}
	for _, at := range w.items {
		if d, err := w.head(at); err != nil || d.kind != kindData {
			return false
		}
	}
	return true
}

// sound tells whether the size of an object can be relied on.
func (w *walk) sound(o object) bool {
	if o.size == 0 {
		return false
	}
	if o.kind != kindData {
		return o.kind == kindEntry
	}
	v, _ := w.read(o.off)
	w.release()
	return v.bad == nil
}
