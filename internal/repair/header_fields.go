// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
)

// fieldFix is a number of the header that is wrong, and what it should be.
type fieldFix struct {
	// Field is its name in qcow2.txt, Offset its place in the header.
	Field  string
	Offset int64
	Old    plan.Bytes
	// New is what should stand there; empty where nothing shows what.
	New       plan.Bytes
	Code      string // of the rule that finds it
	Certainty finding.Certainty
	// Proved: two independent observations show New, so it may be written in place. Otherwise it is
	// only reported.
	Proved   bool
	Summary  string
	Evidence []finding.Evidence
	// Next says what else can be done where it is not proved.
	Next string
}

const (
	// maxFieldRounds bounds how many fields are mended one after the other: there are not more.
	maxFieldRounds = 16
	// minProofs is how many observations show a value.
	minProofs = 2
	// rebuildNext is what is left for a field that is not proved.
	rebuildNext = "shisa repair --rebuild-header writes a copy of the image with a new header, and lets missing values be given"
)

// fieldMender finds what is wrong in a header whose rest is sound.
type fieldMender struct {
	r    io.ReaderAt
	size int64
	head []byte // the header with the fixes made so far
	x    *qcow2.Reconstruction
	list []fieldFix
}

// headerFields finds the numbers of the header that keep the image from being opened, or its
// snapshots from being found, and what they should be. Those that are proved may be written in
// place. It never makes the virtual disk smaller, and clears no feature bit that it does not know.
// The list is empty for a header without a fault. The error is that of ctx, or an *qcow2.OpenError
// where the header cannot be read.
func headerFields(ctx context.Context, r io.ReaderAt, size int64) ([]fieldFix, error) {
	m := &fieldMender{r: r, size: size, head: make([]byte, plan.SectorBytes), list: []fieldFix{}}
	if n, err := r.ReadAt(m.head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, &qcow2.OpenError{Kind: qcow2.ErrRead, Msg: "the header", Cause: err}
	} else {
		m.head = m.head[:n]
	}
	if len(m.head) < headerEnd {
		return m.list, ctx.Err()
	}
	for range maxFieldRounds {
		h, err := qcow2.ReadHeader(m.image(), size)
		if err == nil {
			return m.list, m.snapshots(ctx, h)
		}
		var open *qcow2.OpenError
		if !errors.As(err, &open) || open.Kind == qcow2.ErrRead {
			return nil, err
		}
		fix, err := m.fixFor(ctx, open)
		if err != nil {
			return nil, err
		}
		m.list = append(m.list, *fix)
		if !fix.Proved || bytes.Equal(fix.Old, fix.New) {
			return m.list, nil // nothing behind it can be judged
		}
		copy(m.head[fix.Offset:], fix.New)
	}
	return m.list, nil
}

// headerEnd is the length of a header of version 3 with its compression type.
const headerEnd = 112

// image is the file with the fixes made so far.
func (m *fieldMender) image() io.ReaderAt { return headed{m.r, m.head} }

// headed is a file with another beginning.
type headed struct {
	io.ReaderAt
	head []byte
}

// ReadAt is io.ReaderAt.
func (h headed) ReadAt(p []byte, off int64) (int, error) {
	n, err := h.ReaderAt.ReadAt(p, off)
	if off >= 0 && off < int64(len(h.head)) {
		copy(p[:n], h.head[off:])
	}
	return n, err
}

// Data passes on where the file has data.
func (h headed) Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error {
	if f, ok := h.ReaderAt.(interface {
		Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error
	}); ok {
		return f.Data(ctx, off, length, fn)
	}
	return fn(off, length)
}

// look finds the tables of the image, once.
func (m *fieldMender) look(ctx context.Context) error {
	if m.x != nil {
		return nil
	}
	x, err := qcow2.Reconstruct(ctx, m.image(), m.size, qcow2.ReconstructOptions{Near: true})
	if errors.Is(err, qcow2.ErrNoEvidence) {
		x, err = &qcow2.Reconstruction{Header: &qcow2.Header{}, L1Last: -1}, nil
	}
	m.x = x
	return err
}

func (m *fieldMender) u32(off int) uint32 { return binary.BigEndian.Uint32(m.head[off:]) }
func (m *fieldMender) u64(off int) uint64 { return binary.BigEndian.Uint64(m.head[off:]) }

// fixFor finds what the field should be that stands in the way of opening.
func (m *fieldMender) fixFor(ctx context.Context, e *qcow2.OpenError) (*fieldFix, error) {
	if err := m.look(ctx); err != nil {
		return nil, err
	}
	f := m.fault(e)
	f.Code = finding.QC01.Code
	f.Summary = e.Msg
	f.Proved = len(f.New) > 0 && len(f.Evidence) >= minProofs
	switch {
	case f.Proved:
		f.Certainty = finding.Sure
	case len(f.New) > 0:
		f.Certainty = finding.Likely
	default:
		f.Certainty = finding.Possible
	}
	if !f.Proved && f.Next == "" {
		f.Next = rebuildNext
	}
	if f.Evidence == nil {
		f.Evidence = []finding.Evidence{}
	}
	return f, nil
}

// fault sorts the faults by field.
func (m *fieldMender) fault(e *qcow2.OpenError) *fieldFix {
	switch off := int64(e.Off); {
	case errors.Is(e, qcow2.ErrNotQcow2):
		return m.magic()
	case off == 4:
		return m.version()
	case off == 8 || off == 16:
		return m.backing()
	case off == 20:
		return m.clusterBits()
	case off == 36, off == 40 && m.u32(36) > qcow2.MaxL1Bytes/8:
		return m.l1Size()
	case off == 40:
		return m.l1Offset()
	case off == 48 && uint64(m.u32(56))<<(m.u32(20)&31) > qcow2.MaxReftableBytes:
		return m.reftableSize()
	case off == 48:
		return m.reftableOffset()
	case off == 72:
		f := m.field(qcow2.FieldIncompatible, 72, 8)
		f.Next = "open the image with the program that set the bit; nothing that does not know it may write to it"
		return f
	case off == 96:
		return m.refcountOrder()
	case off == 100:
		return m.headerLength()
	case off == 104:
		return m.compression()
	case off == 24:
		return m.field(qcow2.FieldSize, 24, 8) // a size is never guessed in place
	case off == 32:
		return m.field(qcow2.FieldCrypt, 32, 4)
	default:
		return m.field("header extension", min(off, int64(len(m.head)-8)), 8)
	}
}

// field begins the fix of n bytes.
func (m *fieldMender) field(name string, off int64, n int64) *fieldFix {
	return &fieldFix{Field: name, Offset: off, Old: bytes.Clone(m.head[off : off+n])}
}

// what says what is done about a fault that is proved.
func (f *fieldFix) what() string {
	value := ""
	switch {
	case len(f.New) > 8: // two numbers, one behind the other
		return fmt.Sprintf("set the fields from %s on in the header: %s", f.Field, f.Summary)
	case strings.HasSuffix(f.Field, "offset") || strings.HasSuffix(f.Field, "features") || f.Field == "magic":
		value = fmt.Sprintf("%#x", f.number())
	default:
		value = fmt.Sprint(f.number())
	}
	return fmt.Sprintf("set the field %s in the header to %s: %s", f.Field, value, f.Summary)
}

// number is what should stand there.
func (f *fieldFix) number() (v uint64) {
	for _, b := range f.New {
		v = v<<8 | uint64(b)
	}
	return v
}

// set says what a field should be.
func (f *fieldFix) set(v uint64) *fieldFix {
	b := binary.BigEndian.AppendUint64(nil, v)
	f.New = b[8-len(f.Old):]
	return f
}

// proof adds an observation.
func (f *fieldFix) proof(source string, off int64, text string, args ...any) {
	f.Evidence = append(f.Evidence, finding.Evidence{Source: source, Offset: off,
		Text: fmt.Sprintf(text, args...)})
}

// observed adds what the search found for a field, beside what the old header says.
func (m *fieldMender) observed(f *fieldFix, name string) {
	x := m.x.Field(name)
	if x == nil || x.Missing || len(x.Alternatives) > 0 {
		return
	}
	for _, e := range x.Evidence {
		if e.Source != "old header" {
			f.Evidence = append(f.Evidence, e)
		}
	}
}

// agreeing is how many of the numbers of the header are those that the tables show.
func (m *fieldMender) agreeing() (n int) {
	h := m.x.Header
	for _, same := range []bool{
		m.u32(20) == h.ClusterBits,
		h.L1Off != 0 && m.u64(40) == uint64(h.L1Off),
		h.ReftableOff != 0 && m.u64(48) == uint64(h.ReftableOff),
		h.ReftableClusters != 0 && m.u32(56) == uint32(h.ReftableClusters),
	} {
		if same {
			n++
		}
	}
	return n
}

// magic: four bytes that are the same in every image.
func (m *fieldMender) magic() *fieldFix {
	f := m.field("magic", 0, 4)
	if n := m.agreeing(); n >= 3 {
		f.set(qcow2.Magic)
		f.proof("header", 20, "%d of the numbers behind it are those that the tables show", n)
		if v := m.u32(4); v == 2 || v == 3 {
			f.proof("header", 4, "a version of the format stands behind it")
		}
	}
	return f
}

// version: which one the rest of the header is of.
func (m *fieldMender) version() *fieldFix {
	f := m.field(qcow2.FieldVersion, 4, 4)
	if m.agreeing() < 3 {
		return f
	}
	length, h := m.u32(100), m.x.Header
	v := uint32(2)
	if length >= 104 && length <= 1<<m.u32(20) && length%8 == 0 {
		v = 3
	}
	head := bytes.Clone(m.head)
	binary.BigEndian.PutUint32(head[4:], v)
	if _, err := qcow2.ReadHeader(headed{m.r, head}, m.size); err != nil {
		return f // what else is wrong decides what it was
	}
	f.set(uint64(v))
	f.proof("header", 20, "the numbers before and behind it are those that the tables show")
	if v == 3 && m.u32(96) == h.RefcountOrder {
		f.proof("header", 96, "the width of refcounts and the length of the header stand where version 3 has them")
	}
	if v == 2 && h.RefcountOrder == 4 && h.Incompatible == 0 && m.u64(72)&0xffffffff == 0 {
		f.proof("header", 72, "extensions or their end stand where version 2 has them, and nothing needs version 3")
	}
	return f
}

// backing: the name stands behind the extensions, or none does.
func (m *fieldMender) backing() *fieldFix {
	f := m.field(qcow2.FieldBacking, 8, 12)
	rest, length := &m.x.Remains, m.u32(16)
	put := func(off, n int64) {
		f.New = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, uint64(off)), uint32(n))
	}
	switch {
	case rest.Backing != "" && rest.BackingAt > 0:
		put(rest.BackingAt, int64(len(rest.Backing)))
		f.proof("header cluster", rest.BackingAt, "the name %q stands behind the end of the header extensions",
			rest.Backing)
		if int64(length) == int64(len(rest.Backing)) {
			f.proof("header", 16, "the length of the name is that in the header")
		} else if m.u64(8) == uint64(rest.BackingAt) {
			f.proof("header", 8, "the place of the name is that in the header")
		}
	case rest.Bare && length == 0:
		put(0, 0)
		f.proof("header cluster", rest.End, "no name stands behind the end of the header extensions")
		f.proof("header", 16, "the length of the name is 0")
	}
	return f
}

func (m *fieldMender) clusterBits() *fieldFix {
	f := m.field(qcow2.FieldClusterBits, 20, 4)
	if x := m.x.Field(qcow2.FieldClusterBits); x != nil && x.Certainty == finding.Sure {
		f.set(uint64(m.x.Header.ClusterBits))
		m.observed(f, qcow2.FieldClusterBits)
	}
	return f
}

// l1Size: the number of entries follows from the size of the disk, if entries stand there.
func (m *fieldMender) l1Size() *fieldFix {
	f := m.field(qcow2.FieldL1Size, 36, 4)
	x, old := m.x, int64(m.u32(36))
	h := *x.Header
	h.SizeBytes = int64(m.u64(24))
	if h.ClusterBits != m.u32(20) || h.L1Off == 0 || h.SizeBytes <= 0 || h.L2Span() <= 0 {
		return f
	}
	need := (h.SizeBytes-1)/h.L2Span() + 1
	if need > x.L1Room || x.L1Last >= need && x.L1Last >= old {
		return f // the size of the disk is what is wrong, or both are
	}
	f.set(uint64(max(need, x.L1Last+1)))
	f.proof("header", 24, "a disk of %d bytes needs %d entries", h.SizeBytes, need)
	switch {
	case x.L1Last >= old:
		f.proof("L1 table", int64(h.L1Off)+8*old,
			"behind the first %d entries others follow that lead to L2 tables, the last is %d", old, x.L1Last)
	case old > qcow2.MaxL1Bytes/8 && x.L1Last >= 0:
		f.proof("L1 table", int64(h.L1Off), "its last entry in use is %d, and it has room for %d", x.L1Last, x.L1Room)
	default:
		f.Next = "the size of the disk may be what is wrong: " + rebuildNext
	}
	return f
}

func (m *fieldMender) l1Offset() *fieldFix {
	f := m.field(qcow2.FieldL1Off, 40, 8)
	m.table(f, qcow2.FieldL1Off, uint64(m.x.Header.L1Off))
	return f
}

func (m *fieldMender) reftableOffset() *fieldFix {
	f := m.field(qcow2.FieldReftableOff, 48, 8)
	m.table(f, qcow2.FieldReftableOff, uint64(m.x.Header.ReftableOff))
	return f
}

// table: a table was found, and the old value leads into its first cluster or is of no use.
func (m *fieldMender) table(f *fieldFix, name string, at uint64) {
	x := m.x.Field(name)
	if at == 0 || x == nil || x.Missing || len(x.Alternatives) > 0 || m.x.Header.ClusterBits != m.u32(20) {
		return
	}
	f.set(at)
	m.observed(f, name)
	if old := binary.BigEndian.Uint64(f.Old); old&^uint64(m.x.Header.ClusterSize()-1) == at {
		f.proof("header", f.Offset, "the old value leads into the first cluster of the table")
	}
}

// reftableSize: how far the table goes shows in its entries, and in what lies behind it.
func (m *fieldMender) reftableSize() *fieldFix {
	f := m.field(qcow2.FieldReftableSize, 56, 4)
	x, h := m.x, m.x.Header
	if h.ReftableOff == 0 || uint64(h.ReftableOff) != m.u64(48) || h.ClusterBits != m.u32(20) {
		return f
	}
	f.set(uint64(h.ReftableClusters))
	f.proof("refcount table", int64(h.ReftableOff), "its entries end in cluster %d of it", h.ReftableClusters)
	if x.Checked && x.Counts.Corruptions+x.Counts.CheckErrors == 0 {
		f.proof("refcounts", -1, "a check with a table of this size finds no fault, and nothing counted behind the table that could be its end")
	}
	return f
}

func (m *fieldMender) refcountOrder() *fieldFix {
	f := m.field(qcow2.FieldRefcountOrder, 96, 4)
	x, h := m.x, m.x.Header
	if h.ReftableOff == 0 || uint64(h.ReftableOff) != m.u64(48) {
		return f
	}
	f.set(uint64(h.RefcountOrder))
	m.observed(f, qcow2.FieldRefcountOrder)
	if x.Checked && x.Counts.Corruptions+x.Counts.CheckErrors == 0 {
		f.proof("refcounts", -1, "read so, they agree with all references")
	}
	return f
}

// headerLength: the extensions begin behind the header.
func (m *fieldMender) headerLength() *fieldFix {
	f := m.field(qcow2.FieldHeaderLength, 100, 4)
	at := m.x.Remains.At
	if !m.x.Remains.Extensions || at != 104 && at != headerEnd {
		return f
	}
	f.set(uint64(at))
	f.proof("header cluster", at, "a whole chain of header extensions begins there")
	if m.agreeing() >= 3 {
		f.proof("header", 20, "a header has this length or 8 bytes less, and its other numbers are those that the tables show")
	}
	return f
}

// compression: the type, and the feature bit that says that there is one, contradict each other.
func (m *fieldMender) compression() *fieldFix {
	x, h := m.x.Field(qcow2.FieldCompression), m.x.Header
	bit := m.u64(72)&qcow2.IncompatCompression != 0
	kind := qcow2.Compression(m.head[104])
	f := m.field(qcow2.FieldCompression, 104, 1)
	const known = qcow2.IncompatDirty | qcow2.IncompatCorrupt | qcow2.IncompatDataFile |
		qcow2.IncompatCompression | qcow2.IncompatExtendedL2
	if m.u64(72)&^known != 0 {
		return f // the word is not to be trusted, and nothing is written beside bits that are not known
	}
	if bit == (h.Compression != qcow2.Zlib) {
		f.set(uint64(h.Compression))
	} else if kind == h.Compression {
		f = m.field(qcow2.FieldIncompatible, 72, 8)
		f.set(m.u64(72) ^ qcow2.IncompatCompression)
	}
	if len(f.New) == 0 {
		return f
	}
	if x != nil && x.Certainty == finding.Sure {
		m.observed(f, qcow2.FieldCompression)
		f.proof("header", 72, "of the feature bit and the type one says the same")
	}
	return f
}
