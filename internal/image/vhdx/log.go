// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vhdx

// The log ([MS-VHDX] 2.3) is a ring of sectors of 4 KiB. What changes the metadata is written there
// first, as an entry with a number, and then to its place. An image that was not closed is read as if
// the last unbroken sequence of entries had been written to its place.
//
//	entry:       0 "loge"   4 CRC-32C of the entry uint32    8 bytes uint32   12 tail: offset uint32
//	            16 number uint64           24 descriptors uint32      32 GUID of the log
//	            48 file size flushed uint64                           56 file size needed uint64
//	            64 descriptors, then data sectors, each from a new sector on
//	descriptor:  0 "desc"   4 last 4 bytes    8 first 8 bytes         16 offset uint64   24 number uint64
//	             0 "zero"                     8 bytes to zero uint64  16 offset uint64   24 number uint64
//	data sector: 0 "data"   4 high half of the number uint32          8 bytes 8 to 4091
//	          4092 low half of the number uint32

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/shisa-vm/shisa/internal/image"
)

const (
	logSector     = 4 << 10
	entryHead     = 64
	descBytes     = 32
	descsOfSector = logSector / descBytes

	// maxLogBytes bounds the log that is searched. Hyper-V and qemu make logs of 1 MiB; a larger one
	// only takes longer.
	maxLogBytes = 1 << 30
	// maxLogReads is how many times the length of the log is read at most to find what counts in
	// it. An honest log is read once, and what is left of older entries in it at most once more; only
	// one that was made to keep us busy has entries that overlap.
	maxLogReads = 8
	// maxDescriptors bounds the memory for a replay, some 64 bytes each, to 64 MiB; that many
	// descriptors rewrite 4 GiB.
	maxDescriptors = 1 << 20
	// logBuffer is how much of the log is read at once.
	logBuffer = 256 << 10
)

// Log is what was found in the log of an image.
type Log struct {
	// Dirty: the log is in use. The image was not closed, or is open.
	Dirty bool
	// Entries were replayed in memory, with the numbers First to Last; Sectors of 4 KiB that they
	// rewrite. 0 where there was nothing to replay.
	Entries     int
	First, Last uint64
	Sectors     int64
}

// logEntry is a valid entry.
type logEntry struct {
	off, length int64 // in the log
	tail        int64
	number      uint64
	descs       int
	flushed     uint64
	needed      uint64
}

// dataOff is where in the entry the data sectors begin.
func (e *logEntry) dataOff() int64 {
	return (entryHead + int64(e.descs)*descBytes + logSector - 1) / logSector * logSector
}

// logReader reads the ring.
type logReader struct {
	d      *Disk
	guid   string
	off    int64 // of the log in the file
	length int64
	budget int64 // bytes that may still be read
	buf    []byte
}

// replay looks for the log that head names, and lays what it holds over the file.
func (d *Disk) replay(head []byte) error {
	le := binary.LittleEndian
	guid, length, off := string(head[48:64]), int64(le.Uint32(head[68:])), le.Uint64(head[72:])
	a := extent{off, uint64(length)}
	if guid == guidNone {
		// Where the log is does not matter, but blocks must not lie there.
		if a.within(d.size) {
			d.taken = append(d.taken, a)
		}
		return nil
	}
	if v := le.Uint16(head[64:]); v != 0 {
		return unsupported(header1Off+64, "a log of version %d", v)
	}
	if length == 0 {
		return nil // nothing can be in it
	}
	if err := d.take("log", header1Off+72, a); err != nil {
		return err
	}
	if length%logSector != 0 || off%logSector != 0 {
		return invalid(header1Off+68, "a log of %d bytes at %#x", length, off)
	}
	if length > maxLogBytes {
		return unsupported(header1Off+68, "a log of %d bytes to replay", length)
	}
	d.log.Dirty = true
	l := &logReader{d: d, guid: guid, off: int64(off), length: length, budget: maxLogReads * length,
		buf: make([]byte, logBuffer)}
	entries, err := l.search()
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		// The entry that was about to be written is not whole: nothing was changed yet.
		d.note("the log is in use, but holds no whole entry: nothing was replayed")
		return nil
	}
	return l.apply(entries)
}

// search finds the active sequence ([MS-VHDX] 2.3.3): of the unbroken sequences in the ring whose last
// entry has its tail in the sequence, the one with the highest numbers. It begins at that tail.
func (l *logReader) search() ([]logEntry, error) {
	var best []logEntry
	for tail := int64(0); tail < l.length; {
		var seq []logEntry
		next := tail
		for {
			e, err := l.entry(next)
			if err != nil {
				return nil, err
			}
			if e == nil || len(seq) > 0 && e.number != seq[len(seq)-1].number+1 {
				break
			}
			seq = append(seq, *e)
			if next += e.length; next >= l.length {
				next -= l.length
			}
			if next == seq[0].off {
				break // round the ring
			}
		}
		if active := sinceTail(seq); active != nil && (best == nil || last(active).number > last(best).number) {
			best = active
		}
		if len(seq) == 0 {
			tail += logSector
		} else if next <= tail {
			break // it went over the end of the ring
		} else {
			tail = next
		}
	}
	return best, nil
}

func last(seq []logEntry) *logEntry { return &seq[len(seq)-1] }

// sinceTail gives the entries of seq from the tail of its last one on, nil if that is not in seq.
func sinceTail(seq []logEntry) []logEntry {
	for i := len(seq) - 1; i >= 0; i-- {
		if seq[i].off == last(seq).tail {
			return seq[i:]
		}
	}
	return nil
}

// at is where in the file the byte at pos of the ring is; pos may be one round ahead.
func (l *logReader) at(pos int64) int64 { return l.off + pos%l.length }

// read calls fn for the n bytes at pos of the ring, piece by piece; pieces are whole sectors.
func (l *logReader) read(pos, n int64, fn func(p []byte)) error {
	if l.budget -= n; l.budget < 0 {
		return invalid(l.off, "the log has many entries that overlap")
	}
	for n > 0 {
		here := pos % l.length
		p := l.buf[:min(n, int64(len(l.buf)), l.length-here)]
		if err := image.ReadPadded(l.d.r, l.d.size, p, l.off+here); err != nil {
			return fmt.Errorf("read the log at %#x: %w", l.off+here, err)
		}
		fn(p)
		pos, n = pos+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// entry reads the entry at pos of the ring; nil if there is no valid one.
func (l *logReader) entry(pos int64) (*logEntry, error) {
	var head [entryHead]byte
	if err := image.ReadPadded(l.d.r, l.d.size, head[:], l.at(pos)); err != nil {
		return nil, fmt.Errorf("read the log at %#x: %w", l.at(pos), err)
	}
	le := binary.LittleEndian
	e := &logEntry{off: pos, length: int64(le.Uint32(head[8:])), tail: int64(le.Uint32(head[12:])),
		number: le.Uint64(head[16:]), flushed: le.Uint64(head[48:]), needed: le.Uint64(head[56:])}
	count := int64(le.Uint32(head[24:]))
	if string(head[:4]) != "loge" || string(head[32:48]) != l.guid || e.number == 0 || e.number == math.MaxUint64 ||
		e.length == 0 || e.length > l.length || e.length%logSector != 0 || count > (e.length-entryHead)/descBytes {
		return nil, nil
	}
	e.descs = int(count)
	s := entryScan{e: e, data: e.dataOff()}
	if err := l.read(pos, e.length, s.piece); err != nil {
		return nil, err
	}
	if s.bad || s.pos != e.length || s.need > (e.length-s.data)/logSector || s.sum != le.Uint32(head[4:]) {
		return nil, nil
	}
	return e, nil
}

// entryScan checks an entry piece by piece.
type entryScan struct {
	e    *logEntry
	data int64 // where the data sectors begin
	pos  int64
	sum  uint32
	need int64 // data sectors that the descriptors stand for
	bad  bool
}

func (s *entryScan) piece(p []byte) {
	table := crc32.MakeTable(crc32.Castagnoli)
	if s.pos == 0 {
		clear(p[4:8])
	}
	s.sum = crc32.Update(s.sum, table, p)
	le := binary.LittleEndian
	for ; len(p) > 0; p, s.pos = p[logSector:], s.pos+logSector {
		if s.pos < s.data {
			for i := range descsOfSector {
				at := s.pos + int64(i)*descBytes
				if n := (at - entryHead) / descBytes; at >= entryHead && n < int64(s.e.descs) {
					s.descriptor(p[i*descBytes:][:descBytes])
				}
			}
		} else if (s.pos-s.data)/logSector < s.need {
			number := uint64(le.Uint32(p[4:]))<<32 | uint64(le.Uint32(p[logSector-4:]))
			s.bad = s.bad || string(p[:4]) != "data" || number != s.e.number
		}
	}
}

func (s *entryScan) descriptor(p []byte) {
	le := binary.LittleEndian
	length := uint64(logSector)
	switch string(p[:4]) {
	case "desc":
		s.need++
	case "zero":
		length = le.Uint64(p[8:])
	default:
		s.bad = true
	}
	off := le.Uint64(p[16:])
	s.bad = s.bad || le.Uint64(p[24:]) != s.e.number || off%logSector != 0 || length%logSector != 0 ||
		off > math.MaxInt64-length || length > math.MaxInt64
}

// apply lays what the entries hold over the file.
func (l *logReader) apply(entries []logEntry) error {
	d, size := l.d, l.d.size
	var writes []write
	for i := range entries {
		e := &entries[i]
		switch {
		case e.flushed > uint64(size):
			return invalid(l.at(e.off)+48, "the file has %d bytes, and had %d when the log was written: it was cut",
				size, e.flushed)
		case e.needed > maxFileBytes:
			return invalid(l.at(e.off)+56, "the log speaks of a file of %d bytes", e.needed)
		case len(writes)+e.descs > maxDescriptors:
			return unsupported(l.at(e.off), "a log of more than %d descriptors", maxDescriptors)
		}
		d.size = max(d.size, int64(e.needed))
		var err error
		if writes, err = l.writes(e, writes); err != nil {
			return err
		}
	}
	// What the log writes behind the end makes the file longer; zeros there need not be written.
	for _, w := range writes {
		if w.from >= 0 {
			d.size = max(d.size, w.end)
		}
	}
	o := newOverlay(d.r, size, writes)
	for _, p := range o.parts {
		d.log.Sectors += max(0, min(p.end, d.size)-p.off+logSector-1) / logSector
	}
	d.log.Entries, d.log.First, d.log.Last = len(entries), entries[0].number, last(entries).number
	d.r = o
	return nil
}

// writes adds what the entry e writes.
func (l *logReader) writes(e *logEntry, writes []write) ([]write, error) {
	first, left, start := len(writes), e.descs, entryHead
	pos := e.off + e.dataOff() // of the next data sector
	err := l.read(e.off, e.dataOff(), func(p []byte) {
		for p = p[start:]; len(p) > 0 && left > 0; p, left = p[descBytes:], left-1 {
			w := write{from: -1}
			w.off = int64(binary.LittleEndian.Uint64(p[16:]))
			w.end = w.off + logSector
			if string(p[:4]) == "zero" {
				w.end = w.off + int64(binary.LittleEndian.Uint64(p[8:]))
			} else {
				w.from = l.at(pos)
				copy(w.front[:], p[8:16])
				copy(w.back[:], p[4:8])
				pos += logSector
			}
			writes = append(writes, w)
		}
		start = 0
	})
	if err == nil && len(writes)-first != e.descs {
		err = invalid(l.at(e.off), "the log changed while it was read")
	}
	return writes, err
}
