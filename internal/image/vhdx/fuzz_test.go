// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vhdx_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/vhdx"
)

// An image has 4 MiB at least, most of them zeros. The input of the fuzzer are the parts that count.
const (
	fuzzLog   = 1 * mib
	fuzzMeta  = 2 * mib
	fuzzBAT   = 3 * mib
	fuzzBytes = 6 * mib
)

// spots are the places of an image that the input fills, one after the other.
func spots() [][2]int64 {
	return [][2]int64{{head1, 80}, {head2, 80}, {regi1, 80}, {fuzzMeta, 32 + 5*32}, {fuzzMeta + tableLen, 48}, {fuzzBAT, 48},
		{fuzzLog, 192}, {fuzzLog + 4096, 64}, {fuzzLog + 8188, 4}, {fuzzLog + 8192, 128}, {fuzzLog + 12288, 16},
		{fuzzLog + 16380, 4}}
}

// assemble makes an image of the input; the sums of what has one are made right.
func assemble(in []byte) []byte {
	p := make([]byte, fuzzBytes)
	copy(p, "vhdxfile")
	for _, s := range spots() {
		n := copy(p[s[0]:s[0]+s[1]], in)
		in = in[n:]
	}
	sum(p[head1 : head1+headLen])
	sum(p[head2 : head2+headLen])
	sum(p[regi1 : regi1+tableLen])
	for off := int64(fuzzLog); off < fuzzLog+12288; off += 8192 {
		if n := int64(binary.LittleEndian.Uint32(p[off+8:])); n >= 4096 && n <= 16384 {
			sum(p[off : off+n])
		}
	}
	return p
}

// small is the input that makes a sound image, with a log if dirty.
func small(dirty bool) []byte {
	le := binary.LittleEndian
	p := make([]byte, fuzzBytes)
	for i, at := range []int{head1, head2} {
		h := p[at:]
		copy(h, "head")
		h[8], h[66] = byte(i+1), 1
		le.PutUint32(h[68:], mib)
		le.PutUint64(h[72:], fuzzLog)
	}
	copy(p[regi1:], "regi")
	le.PutUint32(p[regi1+8:], 2)
	for i, r := range []struct {
		guid string
		off  uint64
	}{
		{"\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08", fuzzBAT},
		{"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e", fuzzMeta},
	} {
		e := p[regi1+16+32*i:]
		copy(e, r.guid)
		le.PutUint64(e[16:], r.off)
		le.PutUint32(e[24:], mib)
	}
	copy(p[fuzzMeta:], "metadata")
	le.PutUint16(p[fuzzMeta+10:], 3)
	for i, m := range []struct {
		guid  string
		value uint64
	}{
		{"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b", mib},
		{"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8", 5 * mib},
		{"\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f", 512},
	} {
		e := p[fuzzMeta+32+32*i:]
		copy(e, m.guid)
		le.PutUint32(e[16:], uint32(tableLen+8*i))
		le.PutUint64(p[fuzzMeta+tableLen+8*i:], m.value)
	}
	le.PutUint64(p[fuzzBAT:], 4*mib|6)
	le.PutUint64(p[fuzzBAT+8:], 2)
	le.PutUint64(p[fuzzBAT+24:], 5*mib|6)
	if dirty {
		l := newLog(p)
		l.entry(op{off: fuzzBAT, data: bytes.Clone(p[fuzzBAT : fuzzBAT+4096])}, op{off: 5 * mib, zeros: 8192})
		l.tail = l.pos
		l.entry(op{off: 4 * mib, data: make([]byte, 4096)})
	}
	var in []byte
	for _, s := range spots() {
		in = append(in, p[s[0]:s[0]+s[1]]...)
	}
	return in
}

// The inputs that the fuzzers begin with are sound images.
func TestSeeds(t *testing.T) {
	for _, dirty := range []bool{false, true} {
		d := open(t, assemble(small(dirty)))
		if d.Size() != 5*mib || d.Log().Dirty != dirty || dirty && d.Log().Entries != 1 {
			t.Errorf("dirty %v: %d bytes, Log = %+v", dirty, d.Size(), d.Log())
		}
	}
}

func fuzz(f *testing.F, fn func(t *testing.T, p []byte)) {
	f.Add(small(false))
	f.Add(small(true))
	f.Fuzz(func(t *testing.T, in []byte) {
		imagetest.Unchanged(t, assemble(in), fn)
	})
}

func FuzzHeader(f *testing.F) {
	fuzz(f, func(t *testing.T, p []byte) {
		d, err := vhdx.Open(bytes.NewReader(p), int64(len(p)))
		if err != nil && !imagetest.Refusal(err) {
			t.Errorf("Open = %v", err)
		} else if err == nil && (d.Size() < 0 || d.BlockBytes() <= 0) {
			t.Errorf("Open = %d bytes in blocks of %d", d.Size(), d.BlockBytes())
		}
	})
}

func FuzzMap(f *testing.F) { fuzz(f, look) }
