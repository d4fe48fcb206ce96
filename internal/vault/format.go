// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/plan"
)

// The undo file, version 1 (doc/formats/undo.md). Numbers are little-endian.
//
//	0           header, 512 bytes
//	512         the receipt as JSON
//	            records: fence, new, count, point, lower, switch, watch
//	end - 64    trailer
//	            zeros up to a multiple of 512
//	            8 states, 512 bytes each, written one by one; zeros where there is none yet
//
//	header  0 "SHISAUND"  8 version  12 zero  16 plan id  32 dev  40 ino  48 size before
//	       56 size after  64 mtime s  72 mtime ns  76 zero  80 head before  112 head after
//	      144 plan digest  176 length of the receipt  184 end of the trailer
//	      192 crc of the receipt  196 zeros  508 crc of the 508 bytes before
//	record  0 "RECD"  4 number  8 kind  9 zeros  12 crc of the record without this field
//	       16 offset  24 length of old  28 length of new  32 old, new
//	trailer 0 "SHISAEND"  8 number of records  16 SHA-256 of all before the trailer
//	       48 zeros  60 crc of the 60 bytes before
//	state   0 "SHISASTA"  8 number  12 state  16 plan id  32 time, ns since 1970  40 zeros
//	      508 crc of the 508 bytes before
const (
	undoVersion = 1
	sectorBytes = plan.SectorBytes

	headerMagic  = "SHISAUND"
	recordMagic  = "RECD"
	trailerMagic = "SHISAEND"
	stateMagic   = "SHISASTA"

	recordHead   = 32
	trailerBytes = 64
	// maxPieceBytes bounds the bytes of one record, and so the memory that reading takes. A longer
	// write becomes several records.
	maxPieceBytes = 1 << 20
	// watchBytes is the length of what a record of the kind watch carries: length, CRC-32C before
	// and after.
	watchBytes = 16
	// roomStates is how many states a file has room for: a change has five at most.
	roomStates = 8
	// maxShortWatch is how long a range that reaches past the end of a short image may be.
	maxShortWatch = plan.MaxWriteBytes
)

// Kind says what a record of an undo file is about.
type Kind uint8

// The kinds of records, in the order in which they stand in the file.
const (
	KindFence Kind = iota // the bytes of the fence
	KindNew               // the phases of the plan
	KindCount
	KindPoint
	KindLower
	KindSwitch // the first sector, whole
	KindWatch  // a range that the plan relies on, and that undoing relies on to be as it was left
	numKinds
)

func (k Kind) String() string {
	names := [numKinds]string{"fence", "new", "count", "point", "lower", "switch", "watch"}
	if k >= numKinds {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return names[k]
}

// kindOf is the kind of a phase's records.
func kindOf(p plan.Phase) Kind { return KindNew + Kind(slices.Index(plan.Phases(), p)) }

// Record is a piece of an image with its bytes before and after. Old is shorter than New where the
// image ended before. It is valid until the next one is read.
type Record struct {
	Kind   Kind
	Offset int64
	Old    []byte
	New    []byte
}

// End is the first byte after r.
func (r Record) End() int64 { return r.Offset + int64(len(r.New)) }

// Watch is a range of the image that the plan relies on, with the CRC-32C of its bytes before and
// after. What lies past the end of the image counts as zeros.
type Watch struct {
	Offset, Length int64
	Before, After  uint32
}

// header is the first sector of an undo file.
type header struct {
	id                    [16]byte
	dev, ino              uint64
	before, after         int64
	modTime               time.Time
	headBefore, headAfter [32]byte
	digest                [32]byte
	metaBytes, endBytes   int64
	metaCRC               uint32
}

func (h *header) encode() []byte {
	b := make([]byte, sectorBytes)
	le := binary.LittleEndian
	copy(b, headerMagic)
	le.PutUint32(b[8:], undoVersion)
	copy(b[16:], h.id[:])
	le.PutUint64(b[32:], h.dev)
	le.PutUint64(b[40:], h.ino)
	le.PutUint64(b[48:], uint64(h.before))
	le.PutUint64(b[56:], uint64(h.after))
	le.PutUint64(b[64:], uint64(h.modTime.Unix()))
	le.PutUint32(b[72:], uint32(h.modTime.Nanosecond()))
	copy(b[80:], h.headBefore[:])
	copy(b[112:], h.headAfter[:])
	copy(b[144:], h.digest[:])
	le.PutUint64(b[176:], uint64(h.metaBytes))
	le.PutUint64(b[184:], uint64(h.endBytes))
	le.PutUint32(b[192:], h.metaCRC)
	le.PutUint32(b[508:], plan.Checksum(b[:508]))
	return b
}

// decodeHeader reads the first sector of an undo file that is fileBytes long. The errors are
// ErrNotUndo, ErrNewer, and errors that say what is wrong.
func decodeHeader(b []byte, fileBytes int64) (*header, error) {
	le := binary.LittleEndian
	switch v := le.Uint32(b[8:]); {
	case allZero(b):
		return nil, fmt.Errorf("its header is empty")
	case string(b[:8]) != headerMagic:
		return nil, fmt.Errorf("%w: it begins %q", ErrNotUndo, b[:8])
	case v > undoVersion:
		return nil, fmt.Errorf("%w: undo file version %d, this one knows %d", ErrNewer, v, undoVersion)
	case le.Uint32(b[508:]) != plan.Checksum(b[:508]):
		return nil, fmt.Errorf("the checksum of its header is wrong")
	case v != undoVersion:
		return nil, fmt.Errorf("its version is %d", v)
	}
	h := &header{
		dev: le.Uint64(b[32:]), ino: le.Uint64(b[40:]),
		before: int64(le.Uint64(b[48:])), after: int64(le.Uint64(b[56:])),
		modTime:   time.Unix(int64(le.Uint64(b[64:])), int64(le.Uint32(b[72:]))).UTC(),
		metaBytes: int64(le.Uint64(b[176:])), endBytes: int64(le.Uint64(b[184:])),
		metaCRC: le.Uint32(b[192:]),
	}
	copy(h.id[:], b[16:])
	copy(h.headBefore[:], b[80:])
	copy(h.headAfter[:], b[112:])
	copy(h.digest[:], b[144:])
	switch {
	case h.before < 0 || h.after < h.before:
		return nil, fmt.Errorf("it makes the image shorter (%d bytes, %d before)", h.after, h.before)
	case h.endBytes < sectorBytes+trailerBytes || h.endBytes > fileBytes:
		return nil, fmt.Errorf("it ends at %d, the file at %d", h.endBytes, fileBytes)
	case h.metaBytes < 0 || h.metaBytes > min(maxReceiptBytes, h.endBytes-sectorBytes-trailerBytes):
		return nil, fmt.Errorf("its receipt has %d bytes", h.metaBytes)
	}
	return h, nil
}

// statesAt is where the states begin.
func (h *header) statesAt() int64 { return roundUp(h.endBytes) }

func roundUp(n int64) int64 { return (n + sectorBytes - 1) &^ (sectorBytes - 1) }

func (h *header) idText() string { return hex.EncodeToString(h.id[:]) }

func allZero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// encodeRecord appends a record to b.
func encodeRecord(b []byte, seq uint32, r Record) []byte {
	at := len(b)
	le := binary.LittleEndian
	b = append(b, recordMagic...)
	b = le.AppendUint32(b, seq)
	b = append(b, byte(r.Kind), 0, 0, 0)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, uint64(r.Offset))
	b = le.AppendUint32(b, uint32(len(r.Old)))
	b = le.AppendUint32(b, uint32(len(r.New)))
	b = append(b, r.Old...)
	b = append(b, r.New...)
	le.PutUint32(b[at+12:], plan.Checksum(b[at:]))
	return b
}

// decodeHead reads the head of a record.
func decodeHead(b []byte, seq uint32) (r Record, oldLen, newLen int, err error) {
	le := binary.LittleEndian
	r = Record{Kind: Kind(b[8]), Offset: int64(le.Uint64(b[16:]))}
	o, n := le.Uint32(b[24:]), le.Uint32(b[28:])
	switch {
	case string(b[:4]) != recordMagic || b[9] != 0 || b[10] != 0 || b[11] != 0:
		err = fmt.Errorf("record %d begins %x", seq, b[:12])
	case le.Uint32(b[4:]) != seq:
		err = fmt.Errorf("record %d says that it is record %d", seq, le.Uint32(b[4:]))
	case r.Kind >= numKinds || r.Offset < 0 || o > maxPieceBytes || n > maxPieceBytes:
		err = fmt.Errorf("record %d is of %v, at %d, with %d and %d bytes", seq, r.Kind, r.Offset, o, n)
	}
	return r, int(o), int(n), err
}

// check holds a record against what a plan may do to an image.
func (h *header) check(r Record) error {
	bad := func(what string) error {
		return fmt.Errorf("a record of %v at %d %s", r.Kind, r.Offset, what)
	}
	n, inside := int64(len(r.New)), min(int64(len(r.New)), max(0, h.before-r.Offset))
	switch {
	case r.Kind == KindWatch:
		if len(r.Old) != 0 || n != watchBytes {
			return bad("is no watch")
		}
		w := r.watch()
		if w.Length < 0 || w.Length > max(h.after, maxShortWatch) || w.Offset+w.Length < 0 {
			return bad("has a length that cannot be")
		}
	case n == 0 || r.Offset > h.after-n:
		return bad("goes past the end of the image")
	case int64(len(r.Old)) != inside:
		return bad("has not as many old bytes as the image had")
	case r.Kind == KindFence && (r.Offset+n > sectorBytes || inside != n),
		r.Kind == KindSwitch && (r.Offset != 0 || n != min(sectorBytes, h.after)),
		r.Kind == KindNew && inside > 0,
		r.Kind >= KindNew && r.Kind < KindSwitch && r.Offset < sectorBytes:
		return bad("has no business there")
	}
	return nil
}

func (r Record) watch() Watch {
	le := binary.LittleEndian
	return Watch{r.Offset, int64(le.Uint64(r.New)), le.Uint32(r.New[8:]), le.Uint32(r.New[12:])}
}

func (w Watch) record() Record {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, uint64(w.Length))
	b = le.AppendUint32(le.AppendUint32(b, w.Before), w.After)
	return Record{Kind: KindWatch, Offset: w.Offset, New: b}
}

func encodeTrailer(count uint64, sum []byte) []byte {
	b := make([]byte, trailerBytes)
	copy(b, trailerMagic)
	binary.LittleEndian.PutUint64(b[8:], count)
	copy(b[16:48], sum)
	binary.LittleEndian.PutUint32(b[60:], plan.Checksum(b[:60]))
	return b
}

// decodeTrailer gives the number of records and the sum of all before the trailer.
func decodeTrailer(b []byte) (count uint64, sum []byte, err error) {
	if string(b[:8]) != trailerMagic || binary.LittleEndian.Uint32(b[60:]) != plan.Checksum(b[:60]) {
		return 0, nil, fmt.Errorf("it has no trailer")
	}
	return binary.LittleEndian.Uint64(b[8:]), b[16:48], nil
}

// stateCodes gives the number of each state in the file, its place in the list.
func stateCodes() []State {
	return []State{"", Prepared, Applying, Committed, Undoing, Undone, RolledBack}
}

// follows tells whether a state may come after another; "" is before the first.
func (s State) follows(before State) bool {
	next := map[State][]State{
		"": {Prepared}, Prepared: {Applying, RolledBack}, Applying: {Committed, RolledBack},
		Committed: {Undoing}, Undoing: {Undone},
	}
	return slices.Contains(next[before], s)
}

func encodeState(id [16]byte, seq uint32, s State, now time.Time) []byte {
	b := make([]byte, sectorBytes)
	le := binary.LittleEndian
	copy(b, stateMagic)
	le.PutUint32(b[8:], seq)
	le.PutUint32(b[12:], uint32(slices.Index(stateCodes(), s)))
	copy(b[16:], id[:])
	le.PutUint64(b[32:], uint64(now.UnixNano()))
	le.PutUint32(b[508:], plan.Checksum(b[:508]))
	return b
}

// stateEntry is one state that a change went through.
type stateEntry struct {
	id    [16]byte
	seq   uint32
	state State
	at    time.Time
}

// decodeState reads a state; ok is false for anything that is none, such as a torn one.
func decodeState(b []byte) (e stateEntry, ok bool) {
	le := binary.LittleEndian
	code := le.Uint32(b[12:])
	if string(b[:8]) != stateMagic || le.Uint32(b[508:]) != plan.Checksum(b[:508]) ||
		code == 0 || int64(code) >= int64(len(stateCodes())) {
		return stateEntry{}, false
	}
	copy(e.id[:], b[16:])
	e.seq, e.state = le.Uint32(b[8:]), stateCodes()[code]
	e.at = time.Unix(0, int64(le.Uint64(b[32:]))).UTC()
	return e, true
}
