// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package journal reads the journal files of systemd: whole ones, files that were never closed, and
// damaged ones as far as they go. It takes bytes and opens no path.
//
// The format is that of docs/JOURNAL_FILE_FORMAT.md of systemd 257, whose sections are named in
// quotes; where that is silent, journal-file.c, compress.c and journal-def.h of systemd 252 and 257
// decide. All numbers are little endian, all objects begin at a multiple of 8.
//
//	Header            208 to 272 bytes: what kind of file, where the lists begin, how many entries
//	FIELD_HASH_TABLE  names of fields             (not used here)
//	DATA_HASH_TABLE   fields by their hash        found through it: the entries that have a field
//	DATA, ENTRY ...   appended as they come       each field once, however many entries have it
//	ENTRY_ARRAY ...   offsets of entries          one chain for the file, one for each field
//	TAG               seals                       passed over, not verified
//
// A field has a hash, and an entry the exclusive or of its fields' hashes. Both are verified, so no
// field is given as sound that was changed. The numbers and times of an entry have no hash: what
// contradicts its neighbours is marked, and a changed time that does not cannot be told.
package journal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// What Open turns down.
var (
	// ErrNotJournal: the file does not begin as journals do, or is shorter than their header.
	ErrNotJournal = errors.New("not a journal file")
	// ErrUnsupported: the file has features that are not known here; the error names them.
	ErrUnsupported = errors.New("unsupported journal file")
)

// ID is a number of 128 bits: of a machine, a boot, a file, or a row of sequence numbers.
type ID [16]byte

// String is the 32 digits that systemd writes.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// State says how a file was left ("Dirty Detection").
type State byte

// The states. A file that is being written, or whose writer was killed, is online.
const (
	Offline State = iota
	Online
	Archived
)

func (s State) String() string {
	if names := []string{"offline", "online", "archived"}; int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("unknown (%d)", byte(s))
}

// Header is what a file says of itself. None of it has a checksum.
type Header struct {
	File, Machine, SeqnumID ID
	// Boot is the boot of the last entry, in files of systemd 254 and later; before, it may be that
	// of whoever closed the file.
	Boot  ID
	State State
	// Compact: offsets of 4 bytes. Keyed: siphash24 instead of Jenkins' hash. Sealed: the file has
	// seals against changes, which are not verified here.
	Compact, Keyed, Sealed bool
	// Compression names the kinds of compression that the file may have.
	Compression []string
	// Entries counts them. First and Last are their times, zero if there are none.
	Entries                 int64
	First, Last             time.Time
	FirstSeqnum, LastSeqnum uint64
	// Bytes is how much of the file is in use, from its beginning.
	Bytes int64
}

// Flags of the header ("Extensibility").
const (
	incompatXZ = 1 << iota
	incompatLZ4
	incompatKeyed
	incompatZstd
	incompatCompact
	incompatKnown = 1<<iota - 1

	compatSealed = 1
)

// Offsets in the header. What lies behind headerMin was added later.
const (
	headerMin = 208
	headerMax = 4096 // a bound: it had 272 bytes in 2025

	atCompatible   = 8
	atIncompatible = 12
	atState        = 16
	atFileID       = 24
	atMachineID    = 40
	atBootID       = 56
	atSeqnumID     = 72
	atHeaderSize   = 88
	atArenaSize    = 96
	atDataTable    = 104
	atDataBytes    = 112
	atTailObject   = 136
	atEntries      = 152
	atTailSeqnum   = 160
	atHeadSeqnum   = 168
	atEntryArray   = 176
	atHeadRealtime = 184
	atTailRealtime = 192
)

// File is a journal file that is open for reading. Many may read it at once.
type File struct {
	r      io.ReaderAt
	size   int64
	header Header

	k0, k1                 uint64 // the key of the hash
	begin                  int64  // where the objects begin
	tailObject             int64
	table, buckets, arrays int64 // of fields: offset and number; the first array of entries
	entries                int64
	dense                  bool // sequence numbers have no gaps
	first, last            uint64
	problems               []Spot // of the header
}

// Open reads the header of a journal file of size bytes. The file is not read further, and nothing
// is kept of it. Errors: ErrNotJournal, ErrUnsupported, and those of r.
func Open(r io.ReaderAt, size int64) (*File, error) {
	var b [headerMin]byte
	if size < headerMin {
		return nil, fmt.Errorf("%w: %d bytes, and the header alone takes %d", ErrNotJournal, size,
			headerMin)
	}
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, headerMin), b[:]); err != nil {
		return nil, fmt.Errorf("read the header: %w", err)
	}
	if !bytes.HasPrefix(b[:], []byte("LPKSHHRH")) {
		return nil, fmt.Errorf("%w: it begins with %q", ErrNotJournal, b[:8])
	}
	if unknown := le.Uint32(b[atIncompatible:]) &^ incompatKnown; unknown != 0 {
		return nil, fmt.Errorf("%w: incompatible features 0x%x, made by a systemd newer than 257",
			ErrUnsupported, unknown)
	}
	f := &File{r: r, size: size}
	f.parse(b[:])
	return f, nil
}

// Header gives what the file says of itself.
func (f *File) Header() Header {
	h := f.header
	h.Compression = append([]string{}, h.Compression...)
	return h
}

func (f *File) parse(b []byte) {
	flags := le.Uint32(b[atIncompatible:])
	h := &f.header
	h.File, h.Machine = ID(b[atFileID:][:16]), ID(b[atMachineID:][:16])
	h.Boot, h.SeqnumID = ID(b[atBootID:][:16]), ID(b[atSeqnumID:][:16])
	h.State = State(b[atState])
	h.Compact, h.Keyed = flags&incompatCompact != 0, flags&incompatKeyed != 0
	h.Sealed = le.Uint32(b[atCompatible:])&compatSealed != 0
	for i, name := range []string{"xz", "lz4", "", "zstd"} {
		if name != "" && flags>>i&1 != 0 {
			h.Compression = append(h.Compression, name)
		}
	}
	word := func(at int) uint64 { return le.Uint64(b[at:]) }
	f.k0, f.k1 = word(atFileID), word(atFileID+8)
	f.first, f.last = word(atHeadSeqnum), word(atTailSeqnum)
	h.FirstSeqnum, h.LastSeqnum = f.first, f.last
	h.First, h.Last = moment(word(atHeadRealtime)), moment(word(atTailRealtime))

	f.begin = f.bounded(word(atHeaderSize))
	if f.begin < headerMin || f.begin > headerMax || f.begin%8 != 0 {
		f.problem(atHeaderSize, "a header of %d bytes", word(atHeaderSize))
		f.begin = headerMin
	}
	arena := f.bounded(word(atArenaSize))
	h.Bytes = f.begin + arena
	if h.Bytes > f.size {
		f.problem(f.size, "the file ends here, and its header says that it has %d bytes", h.Bytes)
		h.Bytes = f.size
	}
	if h.State > Archived {
		f.problem(atState, "unknown state %d", byte(h.State))
	}
	f.tailObject, f.arrays = f.bounded(word(atTailObject)), f.bounded(word(atEntryArray))
	f.table, f.buckets = f.bounded(word(atDataTable)), f.bounded(word(atDataBytes))/bucketBytes
	f.entries = f.bounded(word(atEntries))
	if most := f.size / entryMin; f.entries > most {
		f.problem(atEntries, "%d entries, more than the file has room for", word(atEntries))
	}
	h.Entries = f.entries
	f.dense = f.entries > 0 && f.last-f.first+1 == uint64(f.entries)
}

// bounded is v as a signed number, or the largest of them.
func (f *File) bounded(v uint64) int64 { return int64(min(v, 1<<62)) }

func (f *File) problem(at int64, format string, args ...any) {
	f.problems = append(f.problems, Spot{at, fmt.Sprintf("header: "+format, args...)})
}

// moment is a time in microseconds, zero for none.
func moment(usec uint64) time.Time {
	if usec == 0 || usec > maxTime {
		return time.Time{}
	}
	return time.UnixMicro(int64(usec)).UTC()
}

// maxTime is the latest time that systemd takes, in microseconds (VALID_REALTIME).
const maxTime = 1<<55 - 1

// Entry is one message. It is good until the function that was given it returns.
type Entry struct {
	Offset    int64 // in the file
	Seqnum    uint64
	SeqnumID  ID
	Realtime  time.Time // UTC; when it was written
	Monotonic time.Duration
	Boot      ID
	XorHash   uint64
	// Fields are those that were asked for, in the order of the file.
	Fields []Field
	// Damaged: something of it is not as it was written. Fields that are known to be are marked; if
	// none is, one of them is another entry's, or one is missing, or its number or boot is wrong.
	Damaged bool
	// Unlinked: no list leads to it. It was found by a search of the file: the last entries of a
	// file that was never closed are, and those that a damaged list led to.
	Unlinked bool
}

// Field is one value.
type Field struct {
	// Name is as the journal has it, or "" if it could not be read.
	Name  string
	Value []byte
	// Damaged: the value does not have the hash that it was written with. What there is is given.
	Damaged bool
}

// Get gives the first value of that name, also one that is damaged.
func (e *Entry) Get(name string) ([]byte, bool) {
	for i := range e.Fields {
		if e.Fields[i].Name == name {
			return e.Fields[i].Value, true
		}
	}
	return nil, false
}

// Damage says what of a file could not be given, and why.
type Damage struct {
	// Unclean: the file was not closed: it is being written, or its writer was killed.
	Unclean bool
	// Lost counts entries that the file lists, or says to have, and that were not found. Hurt counts
	// those that were given and marked, Unlinked those that only a search found.
	Lost, Hurt, Unlinked int64
	// ClockBack counts how often an entry was earlier than the one written before it.
	ClockBack int64
	// Spots are the first of what was found wrong; More counts the others.
	Spots []Spot
	More  int64
}

// maxSpots bounds how many places are named.
const maxSpots = 64

// Spot is a place in a file where something is wrong.
type Spot struct {
	Offset int64
	Why    string
}

func (s Spot) String() string { return fmt.Sprintf("0x%x: %s", s.Offset, s.Why) }

// Complete tells whether all entries were given that were asked for, each as it was written.
func (d *Damage) Complete() bool {
	return d.Lost == 0 && d.Hurt == 0 && len(d.Spots) == 0
}

// String says it on one line.
func (d *Damage) String() string {
	var s []string
	for _, p := range []struct {
		n    int64
		what string
	}{{d.Lost, "lost"}, {d.Hurt, "damaged"}, {d.Unlinked, "found by a search"}} {
		if p.n > 0 {
			s = append(s, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	for _, p := range d.Spots[:min(len(d.Spots), 3)] {
		s = append(s, p.String())
	}
	if more := int64(len(d.Spots)-min(len(d.Spots), 3)) + d.More; more > 0 {
		s = append(s, fmt.Sprintf("%d more", more))
	}
	return strings.Join(s, "; ")
}

func (d *Damage) spot(at int64, format string, args ...any) {
	if len(d.Spots) >= maxSpots {
		d.More++
		return
	}
	d.Spots = append(d.Spots, Spot{at, fmt.Sprintf(format, args...)})
}
