// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

// How a header that was overwritten is found again, from what the rest of the file holds:
//
//	1 the file's data is read once: which sectors can be L1 or refcount tables, snapshot tables,
//	  bitmap directories, encryption headers
//	2 refcount table: an array of offsets whose blocks count themselves and the table once
//	3 L1 table: an array of offsets that lead to L2 tables; of several the one whose COPIED flags
//	  agree with the refcounts and that no snapshot names
//	4 cluster size: the largest for which both hold, and to which every offset is aligned
//	5 L2 tables: all of them once, for their kind, the end of the disk, and compressed clusters
//	6 a check behind the header found: what it leaves unexplained lies at the end of a table
//
// What stands at the place of the old header is one witness among others.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
)

// ErrNoEvidence: the file holds nothing of which it can be said that it is a qcow2 image.
var ErrNoEvidence = errors.New("nothing in the file looks like the tables of a qcow2 image")

// ReconstructOptions are what the caller knows of the image. The zero value knows nothing.
type ReconstructOptions struct {
	// Name is the object that blind spots speak of.
	Name string
	// ClusterBits is the cluster size as a power of two; 0 means find it.
	ClusterBits uint32
	// Version is 2 or 3; 0 means find it.
	Version uint32
	// SizeBytes is the size of the virtual disk; 0 means find it.
	SizeBytes int64
	// L1Off and ReftableOff are where the tables lie; 0 means find them.
	L1Off, ReftableOff image.HostOff
	// Backing is the name of the backing file, "" for none; nil means find it.
	Backing *string
	// BackingFormat is its format, "" means find it.
	BackingFormat string
	// DataFile is the name of the external data file; "" means find it.
	DataFile string
	// Near: look at the front of the file and at where the old header points, and at the rest only if
	// that does not settle it. It is for headers of which a few numbers are wrong.
	Near bool
	// Progress, if set, is told the bytes of the file looked at and to look at.
	Progress func(done, total int64)
}

// Field is a field of the header as it was found.
type Field struct {
	// Name is the field's name in qcow2.txt, Offset its place in the header, -1 for an extension.
	Name   string `json:"name"`
	Offset int64  `json:"offset"`
	// Value is what it should be, for people; "" if it is missing.
	Value     string            `json:"value"`
	Certainty finding.Certainty `json:"certainty"` // "" if it is missing
	// Given: the caller said so. Missing: nothing shows what it was, and the caller must say.
	Given    bool               `json:"given"`
	Missing  bool               `json:"missing"`
	Evidence []finding.Evidence `json:"evidence"`
	// Alternatives are other values for which something speaks.
	Alternatives []Alternative `json:"alternatives"`
}

// Alternative is another value that a field may have.
type Alternative struct {
	Value string `json:"value"`
	Text  string `json:"text"` // what speaks for it
}

// Remains is what is left of the old header cluster behind the numbers.
type Remains struct {
	// Extensions: the chain of header extensions is whole, from At to End.
	Extensions bool
	At, End    int64
	// Backing is the name that stands at BackingAt, "" for none. Bare: where it would be nothing is.
	Backing   string
	BackingAt int64
	Bare      bool
}

// Patch replaces bytes of the file.
type Patch struct {
	Offset   int64
	Old, New []byte
	Text     string // what it is for
}

// Reconstruction is the header that a file should have.
type Reconstruction struct {
	// Header is the header found. Where the size of the disk is missing it holds the highest that is
	// possible; nil where the tables were not found.
	Header *Header
	Fields []Field
	// SizeLow and SizeHigh are the bounds of the virtual size that the tables leave, in bytes.
	SizeLow, SizeHigh int64
	// L1Last is the last entry of the L1 table that is not zero, -1 without any; L1Room is how many
	// entries the table has room for.
	L1Last, L1Room int64
	Remains        Remains
	// HeaderBytes is the header cluster, nil while a field is missing.
	HeaderBytes []byte
	// Patches are what else must be written with it: persistent bitmaps are marked as not trusted.
	Patches []Patch
	// Counts are those of a check of the image behind this header; Checked tells whether there are.
	Counts  Counts
	Checked bool
	// Blind is what could not be read on the way.
	Blind []finding.Blind

	old     []byte // the first bytes of the file
	unknown []extension
}

// Missing are the names of the fields that the caller must give.
func (x *Reconstruction) Missing() []string {
	var names []string
	for i := range x.Fields {
		if x.Fields[i].Missing {
			names = append(names, x.Fields[i].Name)
		}
	}
	return names
}

// Field gives the field of that name, or nil.
func (x *Reconstruction) Field(name string) *Field {
	for i := range x.Fields {
		if x.Fields[i].Name == name {
			return &x.Fields[i]
		}
	}
	return nil
}

// Names of fields, as in qcow2.txt.
const (
	FieldVersion       = "version"
	FieldBacking       = "backing_file"
	FieldClusterBits   = "cluster_bits"
	FieldSize          = "size"
	FieldCrypt         = "crypt_method"
	FieldL1Size        = "l1_size"
	FieldL1Off         = "l1_table_offset"
	FieldReftableOff   = "refcount_table_offset"
	FieldReftableSize  = "refcount_table_clusters"
	FieldSnapshots     = "nb_snapshots"
	FieldSnapshotsOff  = "snapshots_offset"
	FieldIncompatible  = "incompatible_features"
	FieldCompatible    = "compatible_features"
	FieldAutoclear     = "autoclear_features"
	FieldRefcountOrder = "refcount_order"
	FieldHeaderLength  = "header_length"
	FieldCompression   = "compression_type"
	FieldBitmaps       = "bitmaps"
	FieldDataFile      = "data_file"
	FieldUnknown       = "unknown extensions"
)

// oldHeaderBytes is how much of the place of the old header is compared with what was found.
const oldHeaderBytes = headerBytes

// scout looks for the tables of an image whose header is lost.
type scout struct {
	r     io.ReaderAt
	size  int64
	opts  ReconstructOptions
	parts partCache
	old   []byte // the first bytes of the file

	cands    []candidate
	candsCut bool
	// What may be snapshot tables, bitmap directories and encryption headers, ascending.
	snapAt, bitmapAt, luksAt []int64

	blind    []finding.Blind
	blindCut int64
	table    []byte // scratch for one L2 table
	kinds    map[kindKey]tableKind
	// swept are the bytes that the sweep read, looked those read to look at possible tables.
	swept, looked int64
}

// Reconstruct finds the header that the image should have. size is the length of the file. It reads
// the file's data once, and all L2 tables; its memory is bounded whatever the file holds. The error
// is ErrNoEvidence, that of ctx, or what reading returned where nothing could be read.
func Reconstruct(ctx context.Context, r io.ReaderAt, size int64, opts ReconstructOptions) (
	*Reconstruction, error) {
	s := &scout{r: r, size: size, opts: opts, old: make([]byte, oldHeaderBytes)}
	s.parts.init(r, size)
	s.note("header", 0, s.read(s.old, 0))
	g, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	if g == nil || g.refs == nil && g.l1 == nil {
		return nil, fmt.Errorf("%w: %d sectors that could be tables, none leads to others",
			ErrNoEvidence, len(s.cands))
	}
	f := &finder{scout: s, guess: g, h: &Header{ClusterBits: g.bits}}
	if err := f.find(ctx); err != nil {
		return nil, err
	}
	return f.result(), nil
}

// look finds the cluster size, the refcount table and the L1 table.
func (s *scout) look(ctx context.Context) (*guess, error) {
	rest, err := s.sweepFront(ctx)
	if err != nil {
		return nil, err
	}
	g, err := s.decide(ctx)
	if err != nil || rest >= s.size {
		return g, err
	}
	if s.opts.Near && g != nil && g.settled() && g.l1.owned && len(g.l1s) == 1 {
		return g, nil
	}
	// Further tables lie at multiples of the cluster size, if that is known by now.
	if g != nil && g.settled() {
		if err := s.sweep(ctx, rest, s.size, 1<<g.bits); err != nil {
			return nil, err
		}
		if g, err = s.decide(ctx); err != nil || g != nil && g.settled() {
			return g, err
		}
		s.forget(rest)
	}
	if err := s.sweep(ctx, rest, s.size, sectorBytes); err != nil {
		return nil, err
	}
	return s.decide(ctx)
}

// forget drops what was found from off on.
func (s *scout) forget(off int64) {
	s.cands = slices.DeleteFunc(s.cands, func(c candidate) bool { return c.off >= off })
	later := func(x int64) bool { return x >= off }
	s.snapAt = slices.DeleteFunc(s.snapAt, later)
	s.bitmapAt = slices.DeleteFunc(s.bitmapAt, later)
	s.luksAt = slices.DeleteFunc(s.luksAt, later)
}

// spent reports whether too much was read for what the file holds: sectors that all pass for tables
// of every cluster size.
func (s *scout) spent() bool { return s.looked > maxLooked*s.swept+minLooked }

// read fills p from off; what lies behind the end of the file is zeros.
func (s *scout) read(p []byte, off int64) error {
	_, err := readPadded(s.r, p, off, s.size)
	return err
}

// note records that something could not be read.
func (s *scout) note(what string, off int64, err error) {
	if err == nil {
		return
	}
	if len(s.blind) >= maxBlind {
		s.blindCut++
		return
	}
	s.blind = append(s.blind, finding.Blind{Object: s.opts.Name, What: what,
		Reason: readReason(err), Host: []finding.Range{{Offset: off, Length: sectorBytes}},
		Guest: []finding.Range{}})
}

// word is the 64-bit word at off, a multiple of 8. What cannot be read is noted and 0.
func (s *scout) word(off int64) uint64 {
	s.looked += 8
	p, err := s.parts.get(off)
	s.note("table", off, err)
	if err != nil || p == nil {
		return 0
	}
	return p.entry(off)
}

// old32 and old64 are numbers at the place of the old header.
func (s *scout) old32(off int) uint32 { return binary.BigEndian.Uint32(s.old[off:]) }
func (s *scout) old64(off int) uint64 { return binary.BigEndian.Uint64(s.old[off:]) }
