// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"encoding/hex"
	"errors"
)

// Bounds of what is kept of values.
const (
	// cacheBytes bounds each of the two halves of the values that are kept: most values of a file
	// are those of many entries.
	cacheBytes = 1 << 20
	valueCost  = 200 // what a value takes beside its bytes
	maxNames   = 4096
	// maxEntry bounds the values of one entry that are held at once.
	maxEntry = 2 * maxValue
	// What is read for one walk is bounded by that of the file: each entry could name the largest
	// value, packed to next to nothing.
	workBase, workRatio = 64 << 20, 64
)

// value is a DATA object, unpacked and verified ("Data Objects").
type value struct {
	off    int64
	name   string
	bytes  []byte // behind "NAME="; nil if nobody asked for that name
	wanted bool
	xor    uint64 // what it adds to the hash of its entries
	hits   uint64 // the terms of the match that it is
	boot   ID     // of a value of _BOOT_ID
	booted bool
	bad    error
}

// values reads them.
type values struct {
	reader
	unpacker
	plain    []byte // the last one unpacked
	cache    [2]map[int64]*value
	cached   int             // bytes in the first half
	front    [1 << 12]*value // some of them, by their offset
	single   value           // the last one that no other entry has
	names    map[string]name
	fields   map[string]bool // nil for all
	terms    []string
	held     []byte // the values of one entry that no other has
	work     int64
	maxWork  int64
	overwork bool
}

type name struct {
	text   string
	wanted bool
}

var (
	errHash   = errors.New("its hash is wrong")
	errNoName = errors.New("a value without a name")
	errWork   = errors.New("not read: the file unpacks to too much")
)

// value gives the one at off. Its bytes are good until the next entry is begun, all else until the
// next value is asked for.
func (v *values) value(off int64) *value {
	slot := &v.front[uint64(off)/8%uint64(len(v.front))]
	if *slot != nil && (*slot).off == off {
		return *slot
	}
	if got, ok := v.cache[0][off]; ok {
		*slot = got
		return got
	}
	got, ok := v.cache[1][off]
	if !ok {
		var shared bool
		if v.single, shared = v.read(off); !shared {
			return &v.single
		}
		got = new(value)
		*got = v.single
	}
	v.keep(got)
	return got
}

// keep puts a value into the first half of the cache. When that is full the second half is dropped,
// with all that was not asked for since.
func (v *values) keep(got *value) {
	if v.cached > cacheBytes || v.cache[0] == nil {
		clear(v.front[:])
		v.cache[1], v.cache[0], v.cached = v.cache[0], make(map[int64]*value), 0
	}
	v.cache[0][got.off] = got
	v.cached += valueCost + len(got.bytes)
}

// read reads a value; shared tells whether other entries have it, too.
func (v *values) read(off int64) (got value, shared bool) {
	o, err := v.object(off, kindData)
	if err != nil {
		return value{off: off, bad: err}, false
	}
	head, err := v.bytes(off, v.dataHead())
	if err != nil {
		return value{off: off, bad: err}, false
	}
	hash := le.Uint64(head[16:])
	shared = le.Uint64(head[56:]) != 1
	text, err := v.text(o)
	if err != nil {
		return value{off: off, bad: err}, shared
	}
	before, after, named := bytes.Cut(text, []byte("="))
	if !named {
		return value{off: off, bad: errNoName}, shared
	}
	n := v.name(before)
	got = value{off: off, name: n.text, wanted: n.wanted, xor: jenkins(text)}
	if v.f.hash(text, got.xor) != hash {
		got.bad, got.wanted = errHash, true
	}
	if got.wanted {
		got.bytes = v.hold(after, shared)
	}
	for i, term := range v.terms {
		if got.bad == nil && string(text) == term {
			got.hits |= 1 << i
		}
	}
	if n.text == "_BOOT_ID" {
		_, err := hex.Decode(got.boot[:], after[:min(len(after), 2*len(got.boot))])
		got.booted = err == nil && len(after) == 2*len(got.boot)
	}
	return got, shared
}

// hash is that of a text in this file; j is its Jenkins hash.
func (f *File) hash(text []byte, j uint64) uint64 {
	if f.header.Keyed {
		return siphash(f.k0, f.k1, text)
	}
	return j
}

// text is "NAME=value", good until something else is read.
func (v *values) text(o object) ([]byte, error) {
	n := o.size - v.dataHead()
	if n > maxValue {
		return nil, errTooLarge
	}
	if v.tired(n) {
		return nil, errWork
	}
	b, err := v.bytes(o.off+v.dataHead(), n)
	if err != nil || o.flags == 0 {
		return b, err
	}
	b, err = v.unpack(v.plain[:0], b, o.flags)
	v.plain = b
	if cap(b) > 8*blockBytes {
		v.plain = nil // seldom, and too large to be kept
	}
	if v.tired(int64(len(b))) {
		return nil, errWork
	}
	return b, err
}

// tired counts what is read.
func (v *values) tired(n int64) bool {
	v.work += n
	v.overwork = v.overwork || v.work > v.maxWork
	return v.overwork
}

// name tells whether somebody asked for a name. Names are few, and each is kept once.
func (v *values) name(b []byte) name {
	if n, ok := v.names[string(b)]; ok {
		return n
	}
	n := name{text: string(b), wanted: v.fields == nil || v.fields[string(b)]}
	if len(v.names) < maxNames {
		v.names[n.text] = n
	}
	return n
}

// hold copies a value out of what is read next. Never nil: an empty value is one.
func (v *values) hold(b []byte, shared bool) []byte {
	if shared {
		return append([]byte{}, b...)
	}
	start := len(v.held)
	v.held = append(v.held, b...)
	return v.held[start:len(v.held):len(v.held)]
}

// release forgets the values of the last entry.
func (v *values) release() {
	if cap(v.held) > cacheBytes {
		v.held = nil
	}
	v.held = v.held[:0]
}

// entryItems are the offsets of an entry's values.
func (v *values) entryItems(o object, into []int64) ([]int64, error) {
	into = into[:0]
	b, err := v.bytes(o.off+entryHead, o.size-entryHead)
	if err != nil {
		return into, err
	}
	if v.f.header.Compact {
		for ; len(b) >= 4; b = b[4:] {
			into = append(into, int64(le.Uint32(b)))
		}
		return into, nil
	}
	for ; len(b) >= 16; b = b[16:] {
		into = append(into, v.f.bounded(le.Uint64(b)))
	}
	return into, nil
}
