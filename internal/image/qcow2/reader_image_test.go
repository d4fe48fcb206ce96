// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// drawn is an image drawn at random: valid as far as a reader can tell, with every kind of entry
// that its features allow. Its refcounts are not kept.
type drawn struct {
	file []byte // the image
	data []byte // the external data file
	want []byte // what the guest must see
}

// features are those of an image to draw.
type features struct {
	version     uint32
	clusterBits uint32
	extended    bool
	zstd        bool
	dataFile    bool
	sizeBytes   int64
}

// drawing is an image in the making.
type drawing struct {
	features
	rnd *rand.Rand
	drawn
	flate *flate.Writer
	zenc  *zstd.Encoder
	// packed is where the next compressed stream goes, packedEnd the end of the room for it.
	packed, packedEnd int64
}

func (d *drawing) clusterSize() int64 { return 1 << d.clusterBits }

func (d *drawing) entryBytes() int64 {
	if d.extended {
		return 16
	}
	return 8
}

// tester is what testing and rapid have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
}

// draw makes an image with these features.
func draw(t tester, rnd *rand.Rand, f features) drawn {
	t.Helper()
	d := &drawing{features: f, rnd: rnd}
	d.want = make([]byte, f.sizeBytes)
	var err error
	if d.flate, err = flate.NewWriterWindow(nil, 4096); err != nil {
		t.Fatal(err)
	}
	if d.zenc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(rnd.IntN(2) == 0)); err != nil {
		t.Fatal(err)
	}
	defer d.zenc.Close()
	cs := d.clusterSize()
	d.alloc(1)                                   // header
	reft := d.alloc(1)                           // refcount table
	span := cs / d.entryBytes() << f.clusterBits // of one L2 table
	l1Entries := (f.sizeBytes + span - 1) / span
	l1 := d.alloc((l1Entries*8 + cs - 1) / cs)
	if f.dataFile {
		d.data = make([]byte, (f.sizeBytes+cs-1)&^(cs-1))
	}
	for i := range l1Entries {
		if d.rnd.IntN(5) == 0 {
			continue
		}
		l2 := d.alloc(1)
		binary.BigEndian.PutUint64(d.file[l1+8*i:], uint64(l2)|qcow2.FlagCopied)
		d.table(l2, i*span)
	}
	d.header(reft, l1, l1Entries)
	// The end of the last cluster need not be there.
	if cut := int64(len(d.file)) - int64(rnd.IntN(int(cs))); rnd.IntN(3) == 0 &&
		!bytes.ContainsFunc(d.file[cut:], nonzero) {
		d.file = d.file[:cut]
	}
	return d.drawn
}

func nonzero(r rune) bool { return r != 0 }

// alloc appends n clusters of zeros.
func (d *drawing) alloc(n int64) int64 {
	off := int64(len(d.file))
	d.file = append(d.file, make([]byte, n*d.clusterSize())...)
	return off
}

func (d *drawing) header(reft, l1, l1Entries int64) {
	be := binary.BigEndian
	p := d.file
	be.PutUint32(p, qcow2.Magic)
	be.PutUint32(p[4:], d.version)
	be.PutUint32(p[20:], d.clusterBits)
	be.PutUint64(p[24:], uint64(d.sizeBytes))
	be.PutUint32(p[36:], uint32(l1Entries))
	be.PutUint64(p[40:], uint64(l1))
	be.PutUint64(p[48:], uint64(reft))
	be.PutUint32(p[56:], 1)
	if d.version < 3 {
		return
	}
	var incompatible uint64
	if d.extended {
		incompatible |= qcow2.IncompatExtendedL2
	}
	if d.zstd {
		incompatible |= qcow2.IncompatCompression
		p[104] = byte(qcow2.Zstd)
	}
	if d.dataFile {
		incompatible |= qcow2.IncompatDataFile
	}
	be.PutUint64(p[72:], incompatible)
	be.PutUint32(p[96:], 4)
	be.PutUint32(p[100:], 112)
}

// table fills the L2 table at l2, which maps the disk from guest on.
func (d *drawing) table(l2, guest int64) {
	cs, kind := d.clusterSize(), 0
	for at := l2; at < l2+cs && guest < d.sizeBytes; at += d.entryBytes() {
		if d.rnd.IntN(5) < 2 {
			kind = d.rnd.IntN(5)
		}
		var entry, bitmap uint64
		switch {
		case kind == 1 && d.version >= 3 && !d.extended:
			entry = qcow2.FlagZero
		case kind == 2 && d.version >= 3 && !d.extended:
			entry = qcow2.FlagZero | qcow2.FlagCopied | uint64(d.place(guest))
		case kind == 3 && !d.dataFile:
			entry = d.compressed(guest)
		case kind >= 3:
			entry = qcow2.FlagCopied | uint64(d.place(guest))
			d.fill(int64(entry&qcow2.OffsetMask), guest, cs)
			bitmap = 1<<32 - 1
		}
		if d.extended && entry&qcow2.FlagCompressed == 0 && d.rnd.IntN(2) == 0 {
			bitmap = d.bitmap(entry, guest)
		}
		binary.BigEndian.PutUint64(d.file[at:], entry)
		if d.extended {
			binary.BigEndian.PutUint64(d.file[at+8:], bitmap)
		}
		guest += cs
	}
}

// place allocates a cluster for the guest cluster at that offset.
func (d *drawing) place(guest int64) int64 {
	if d.dataFile {
		return guest
	}
	if d.rnd.IntN(4) == 0 {
		d.alloc(1) // a gap
	}
	return d.alloc(1)
}

// fill stores random bytes for [guest, guest+n), at off.
func (d *drawing) fill(off, guest, n int64) {
	p := d.file
	if d.dataFile {
		p = d.data
	}
	p = p[off : off+n]
	seed := d.rnd.Uint64()
	for i := range p {
		p[i] = byte(seed>>(i%7*8)) + byte(i>>9)
	}
	if guest < d.sizeBytes {
		copy(d.want[guest:], p)
	}
}

// compressed stores a compressed cluster and gives its entry.
func (d *drawing) compressed(guest int64) uint64 {
	cs := d.clusterSize()
	plain := make([]byte, cs)
	for i := range plain {
		if i < 64 || d.rnd.IntN(97) == 0 {
			plain[i] = byte(d.rnd.Uint32())
		} else {
			plain[i] = plain[i-1-d.rnd.IntN(40)]
		}
	}
	var stream []byte
	if d.zstd {
		stream = d.zenc.EncodeAll(plain, nil)
	} else {
		var b bytes.Buffer
		d.flate.Reset(&b)
		if _, err := d.flate.Write(plain); err != nil {
			panic(err) // a bytes.Buffer does not fail
		}
		if err := d.flate.Close(); err != nil {
			panic(err)
		}
		stream = b.Bytes()
	}
	n := int64(len(stream))
	if n > cs {
		return 0
	}
	if d.packedEnd-d.packed < n {
		if d.packedEnd != int64(len(d.file)) {
			d.packed = int64(len(d.file))
		}
		d.alloc(1 + (n-1)>>d.clusterBits)
		d.packedEnd = int64(len(d.file))
	}
	off := d.packed
	copy(d.file[off:], stream)
	d.packed += n
	copy(d.want[guest:], plain)
	sectors := (off+n-1)>>9 - off>>9
	return uint64(off) | uint64(sectors)<<(62-(d.clusterBits-8)) | qcow2.FlagCompressed
}

// bitmap draws how the subclusters of a cluster are stored.
func (d *drawing) bitmap(entry uint64, guest int64) uint64 {
	sub := d.clusterSize() / 32
	zero := d.rnd.Uint32() & d.rnd.Uint32()
	alloc := uint32(0)
	if entry != 0 {
		alloc = bits.RotateLeft32(0x0ff0_ff00, d.rnd.IntN(32)) &^ zero
	}
	for i := range int64(32) {
		if at := guest + i*sub; alloc>>i&1 == 0 && at < d.sizeBytes {
			clear(d.want[at:min(at+sub, d.sizeBytes)])
		}
	}
	return uint64(zero)<<32 | uint64(alloc)
}

// show opens an image that is in memory.
func show(t tester, g drawn) *qcow2.Disk {
	t.Helper()
	r := bytes.NewReader(g.file)
	h, err := qcow2.ReadHeader(r, r.Size())
	if err != nil {
		t.Fatal(err)
	}
	d, err := qcow2.NewDisk(r, r.Size(), h, qcow2.DiskOptions{Data: bytes.NewReader(g.data),
		DataBytes: int64(len(g.data))})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
