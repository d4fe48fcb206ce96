// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"testing"
)

// TestIndexDamage: whatever is wrong with the index of a value, every entry that has it is given, and
// none that has not.
func TestIndexDamage(t *testing.T) {
	const n = 900
	for _, compact := range []bool{false, true} {
		m := seeded(compact, true, n)
		good := m.bytes()
		kernel := m.values["_TRANSPORT=kernel"]
		hash := le.Uint64(good[kernel+16:])
		bucket := makerTable + int64(hash%makerBuckets)*bucketBytes
		second := m.word(m.word(kernel+48) + objectHead)
		o := Options{Match: []string{"_TRANSPORT=kernel"}}
		want := asSet(given(t, open(t, good), o))
		if len(want) != n/3 {
			t.Fatalf("%d entries, want %d", len(want), n/3)
		}
		for name, c := range map[string]struct {
			do       func(b []byte)
			complete bool
		}{
			"nothing":           {func([]byte) {}, true},
			"another entry":     {func(b []byte) { copy(b[second+arrayHead:], m.offset(nil, m.entries[16])) }, false},
			"no entry":          {func(b []byte) { copy(b[second+arrayHead:], m.offset(nil, m.entries[15]+8)) }, false},
			"nothing in a slot": {func(b []byte) { clear(b[second+arrayHead:][:4]) }, false},
			"back": {func(b []byte) {
				copy(b[second+arrayHead:], m.offset(nil, m.entries[3]))
			}, false},
			"first entry":      {func(b []byte) { clear(b[kernel+40:][:8]) }, false},
			"no list":          {func(b []byte) { clear(b[kernel+48:][:8]) }, false},
			"shorter list":     {func(b []byte) { clear(b[second+objectHead:][:8]) }, false},
			"counts more":      {func(b []byte) { b[kernel+58] = 1 }, false},
			"counts fewer":     {func(b []byte) { le.PutUint64(b[kernel+56:], 5) }, true},
			"counts none":      {func(b []byte) { le.PutUint64(b[kernel+56:], 0) }, true},
			"empty bucket":     {func(b []byte) { clear(b[bucket:][:8]) }, false},
			"bucket of others": {func(b []byte) { copy(b[bucket:], b[otherBucket(b, bucket):][:16]) }, false},
			"broken chain":     {func(b []byte) { le.PutUint64(b[bucket:], uint64(m.entries[0])) }, false},
			"no table":         {func(b []byte) { b[atDataTable] += 8 }, false},
			"no buckets":       {func(b []byte) { clear(b[atDataBytes:][:8]) }, false},
		} {
			b := bytes.Clone(good)
			c.do(b)
			for _, backward := range []bool{false, true} {
				o.Backward = backward
				got, d := given(t, open(t, b), o)
				if among(got, want) != n/3 || len(got) != n/3 || d.Complete() != c.complete {
					t.Errorf("compact %v, %s, backward %v: %d given, %d of them right, %v, want %d, complete %v",
						compact, name, backward, len(got), among(got, want), &d, n/3, c.complete)
				}
			}
		}
		// With another key no value has its hash: all entries are damaged, and may match.
		b := bytes.Clone(good)
		b[atFileID]++
		if got, d := given(t, open(t, b), o); len(got) != n || d.Hurt != n {
			t.Errorf("with another key: %d given, %v", len(got), &d)
		}
	}
}

// otherBucket is one that is not empty, and not that.
func otherBucket(b []byte, not int64) int64 {
	for at := int64(makerTable); ; at += bucketBytes {
		if at != not && le.Uint64(b[at:]) != 0 {
			return at
		}
	}
}

// TestStaleIndex: in a file that was not closed the index may lack the last entries.
func TestStaleIndex(t *testing.T) {
	m := newMaker(true, true)
	for i := range uint64(3000) { // the last hundred in the last ten minutes
		field := "_TRANSPORT=journal"
		if i%10 == 0 {
			field = "_TRANSPORT=kernel"
		}
		m.entry(i+1, uint64(at(int64(i*6000)).UnixMicro()), i, ID{1}, field)
	}
	b := m.bytes()
	o := Options{Match: []string{"_TRANSPORT=kernel"}}
	want := asSet(given(t, open(t, b), o))
	b[atState] = byte(Online)
	kernel := m.values["_TRANSPORT=kernel"]
	le.PutUint64(b[kernel+56:], 295)
	items := int64(0)
	for a, left := m.word(kernel+48), int64(294); a != 0; a = m.word(a + objectHead) {
		k := (m.word(a+8) - arrayHead) / 4
		if left < k {
			items = a + arrayHead + 4*left
			break
		}
		left -= k
	}
	clear(b[items:][:5*4])
	for _, backward := range []bool{false, true} {
		o.Backward = backward
		got, d := given(t, open(t, b), o)
		if among(got, want) != 300 || len(got) != 300 || !d.Complete() || !d.Unclean {
			t.Errorf("backward %v: %d entries, %d right, %+v, want 300", backward, len(got), among(got, want), d)
		}
	}
}

// TestWrongTimes: one wrong time leads no search astray.
func TestWrongTimes(t *testing.T) {
	const n = 1000
	m := seeded(true, true, n)
	good := m.bytes()
	for _, o := range []Options{{Since: at(300)}, {Until: at(700)}, {Since: at(480), Until: at(520)}} {
		want := asSet(given(t, open(t, good), o))
		for i := 0; i < n; i += 77 {
			for _, wrong := range []uint64{1, maxTime} {
				b := bytes.Clone(good)
				le.PutUint64(b[m.entries[i]+24:], wrong)
				got, _ := given(t, open(t, b), o)
				if lost := len(want) - int(among(got, want)); lost > 1 {
					t.Errorf("%v with a wrong time of entry %d: %d are missing", o, i, lost)
				}
			}
		}
	}
}

// TestSwallowed: an entry that no list leads to is found behind a value whose size is wrong.
func TestSwallowed(t *testing.T) {
	for _, compact := range []bool{false, true} {
		m := seeded(compact, true, 300)
		good := m.bytes()
		want := asSet(given(t, open(t, good), Options{}))
		b := bytes.Clone(good)
		value := m.values["MESSAGE=message 200"]
		size := m.entries[200] + m.word(m.entries[200]+8) - value // all of the entry behind it
		le.PutUint64(b[value+8:], uint64(size))
		width := int64(len(m.offset(nil, 0)))
		for a, left := m.word(atEntryArray), int64(200); ; a = m.word(a + objectHead) {
			if k := (m.word(a+8) - arrayHead) / width; left < k {
				clear(b[a+arrayHead+left*width:][:width])
				break
			} else {
				left -= k
			}
		}
		got, d := given(t, open(t, b), Options{})
		if len(got) != 300 || among(got, want) != 299 || d.Unlinked != 1 || d.Hurt != 1 || d.Lost != 0 {
			t.Errorf("compact %v: %d entries, %d right, %+v", compact, len(got), among(got, want), d)
		}
	}
}

// TestSwallowedByList: a list whose size is wrong hides no entry, whichever list it is. More may be told
// as lost than is.
func TestSwallowedByList(t *testing.T) {
	for _, compact := range []bool{false, true} {
		m := seeded(compact, true, 100)
		good := m.bytes()
		want := asSet(given(t, open(t, good), Options{}))
		w := &walk{}
		w.f = open(t, good)
		for at := w.f.begin; at < int64(len(good)); {
			o, err := w.head(at)
			if err != nil {
				t.Fatal(err)
			}
			at = o.end()
			if o.kind != kindArray {
				continue
			}
			for _, more := range []int64{8, 64, 400} {
				b := bytes.Clone(good)
				le.PutUint64(b[o.off+8:], uint64(o.size+more))
				got, d := given(t, open(t, b), Options{})
				if n := among(got, want); n != 100 || len(got) != 100 {
					t.Errorf("compact %v, list at 0x%x with %d bytes more: %d given, %d right, %v", compact, o.off,
						more, len(got), n, &d)
				}
			}
		}
	}
}

// TestOtherKey: a file whose key is wrong is not taken for one that lacks a value.
func TestOtherKey(t *testing.T) {
	m := newMaker(true, true)
	for i := range uint64(20) {
		m.entry(i+1, uint64(at(int64(i)).UnixMicro()), i, ID{1}, "_TRANSPORT=kernel")
	}
	b := m.bytes()
	for key := range byte(64) {
		b[atFileID] ^= key + 1
		got, d := given(t, open(t, b), Options{Match: []string{"_TRANSPORT=kernel"}})
		if len(got) != 20 || d.Hurt != 20 {
			t.Errorf("key %d: %d given, %v", key, len(got), &d)
		}
		b[atFileID] ^= key + 1
	}
}
