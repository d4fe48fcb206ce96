// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"testing"
)

// maker writes small journals byte by byte, so that tests can make any of them wrong.
type maker struct {
	compact, keyed bool
	b              []byte
	values         map[string]int64
	entries        []int64
	first, last    uint64
	tail           int64
}

const (
	makerHeader  = 272
	makerBuckets = 16
	makerTable   = makerHeader + objectHead
)

// newMaker begins a journal.
func newMaker(compact, keyed bool) *maker {
	m := &maker{compact: compact, keyed: keyed, values: map[string]int64{}, b: make([]byte, makerHeader)}
	copy(m.b, "LPKSHHRH")
	flags := uint32(0)
	if compact {
		flags |= incompatCompact
	}
	if keyed {
		flags |= incompatKeyed
	}
	le.PutUint32(m.b[atIncompatible:], flags)
	for i := range 64 {
		m.b[atFileID+i] = byte(i*7 + 1)
	}
	m.set(atHeaderSize, makerHeader)
	m.object(kindDataTable, 0, make([]byte, makerBuckets*bucketBytes))
	m.set(atDataTable, makerTable)
	m.set(atDataBytes, makerBuckets*bucketBytes)
	return m
}

// seeded has n entries, in two boots; every third is of the kernel. It is sealed if it has more than 7.
func seeded(compact, keyed bool, n int) *maker {
	m := newMaker(compact, keyed)
	for i := range uint64(n) {
		boot := ID{byte(1 + 2*i/uint64(n))}
		if i%50 == 7 { // a seal, which is passed over
			m.object(kindTag, 0, make([]byte, tagBytes-objectHead))
			m.b[atCompatible] = compatSealed
		}
		transport := "_TRANSPORT=journal"
		if i%3 == 0 {
			transport = "_TRANSPORT=kernel"
		}
		m.entry(i+1, 1_700_000_000_000_000+i*1000, i*1000, boot, transport, "_BOOT_ID="+boot.String(),
			fmt.Sprintf("PRIORITY=%d", i%8), fmt.Sprintf("MESSAGE=message %d", i))
	}
	return m
}

func (m *maker) set(at int64, v uint64) { le.PutUint64(m.b[at:], v) }
func (m *maker) word(at int64) int64    { return int64(le.Uint64(m.b[at:])) }
func (m *maker) object(kind, flags byte, content []byte) int64 {
	for len(m.b)%8 != 0 {
		m.b = append(m.b, 0)
	}
	off := int64(len(m.b))
	m.b = append(m.b, kind, flags, 0, 0, 0, 0, 0, 0)
	m.b = le.AppendUint64(m.b, uint64(objectHead+len(content)))
	m.b = append(m.b, content...)
	m.tail = off
	return off
}

// value adds a value, or finds it.
func (m *maker) value(text string) int64 {
	if off, ok := m.values[text]; ok {
		return off
	}
	return m.packed(text, 0, []byte(text))
}

func (m *maker) packed(text string, flags byte, payload []byte) int64 {
	f := &File{k0: le.Uint64(m.b[atFileID:]), k1: le.Uint64(m.b[atFileID+8:])}
	f.header.Keyed = m.keyed
	hash := f.hash([]byte(text), jenkins([]byte(text)))
	head := dataHead - objectHead
	if m.compact {
		head += 8
	}
	off := m.object(kindData, flags, append(make([]byte, head), payload...))
	m.set(off+16, hash)
	bucket := makerTable + int64(hash%makerBuckets)*bucketBytes
	if last := m.word(bucket + 8); last != 0 {
		m.set(last+24, uint64(off))
	} else {
		m.set(bucket, uint64(off))
	}
	m.set(bucket+8, uint64(off))
	m.values[text] = off
	return off
}

func (m *maker) entry(seqnum, realtime, monotonic uint64, boot ID, fields ...string) int64 {
	var items []int64
	xor := uint64(0)
	for _, f := range fields {
		xor ^= jenkins([]byte(f))
		items = append(items, m.value(f))
	}
	slices.Sort(items)
	return m.entryOf(seqnum, realtime, monotonic, boot, xor, slices.Compact(items))
}

func (m *maker) entryOf(seqnum, realtime, monotonic uint64, boot ID, xor uint64, items []int64) int64 {
	var c []byte
	for _, v := range []uint64{seqnum, realtime, monotonic} {
		c = le.AppendUint64(c, v)
	}
	c = le.AppendUint64(append(c, boot[:]...), xor)
	for _, off := range items {
		c = m.offset(c, off)
		if !m.compact {
			c = le.AppendUint64(c, le.Uint64(m.b[off+16:]))
		}
	}
	off := m.object(kindEntry, 0, c)
	m.link(atEntryArray, int64(len(m.entries)), off)
	m.entries = append(m.entries, off)
	if m.first == 0 {
		m.first = seqnum
		m.set(atHeadRealtime, realtime)
	}
	m.last = seqnum
	m.set(atTailRealtime, realtime)
	for _, d := range items {
		n := m.word(d + 56)
		if n == 0 {
			m.set(d+40, uint64(off))
		} else {
			m.link(d+48, n-1, off)
		}
		m.set(d+56, uint64(n+1))
	}
	return off
}

func (m *maker) offset(c []byte, off int64) []byte {
	if m.compact {
		return le.AppendUint32(c, uint32(off))
	}
	return le.AppendUint64(c, uint64(off))
}

// link puts off at place i of the list that the word at begins.
func (m *maker) link(at, i, off int64) {
	width, n := int64(len(m.offset(nil, 0))), int64(2)
	for m.word(at) != 0 {
		a := m.word(at)
		if n = (m.word(a+8) - arrayHead) / width; i < n {
			copy(m.b[a+arrayHead+i*width:], m.offset(nil, off))
			return
		}
		i, at = i-n, a+objectHead
	}
	a := m.object(kindArray, 0, make([]byte, 8+2*n*width))
	m.set(at, uint64(a))
	copy(m.b[a+arrayHead:], m.offset(nil, off))
}

// bytes ends the journal.
func (m *maker) bytes() []byte {
	for len(m.b)%8 != 0 {
		m.b = append(m.b, 0)
	}
	m.set(atArenaSize, uint64(len(m.b)-makerHeader))
	m.set(atTailObject, uint64(m.tail))
	m.set(atEntries, uint64(len(m.entries)))
	m.set(atHeadSeqnum, m.first)
	m.set(atTailSeqnum, m.last)
	return m.b
}

func open(t testing.TB, b []byte) *File {
	t.Helper()
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// given is what a walk gave, one string for each entry.
func given(t testing.TB, f *File, o Options) ([]string, Damage) {
	t.Helper()
	got := []string{}
	d, err := f.Entries(t.Context(), o, func(e *Entry) error { got = append(got, text(e)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return got, d
}

// text is an entry with all that it has.
func text(e *Entry) string {
	s := fmt.Sprintf("0x%x %d %v %v %v 0x%x", e.Offset, e.Seqnum, e.Realtime.UnixMicro(), e.Monotonic,
		e.Boot, e.XorHash)
	for _, f := range e.Fields {
		s += fmt.Sprintf(" %s=%s", f.Name, hex.EncodeToString(f.Value))
		if f.Damaged {
			s += "!"
		}
	}
	if e.Damaged {
		s += " damaged"
	}
	return s
}
