// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

import "encoding/binary"

// reader takes numbers off the front of bytes, low byte first. Past the end it gives zeros, and bad
// stays set.
type reader struct {
	b   []byte
	bad bool
}

// bytes takes n bytes off; they are not copied.
func (r *reader) bytes(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8 {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// uleb takes a number of seven bits a byte (DWARF 5, section 7.6). Bits past the 64th are lost.
func (r *reader) uleb() uint64 {
	v, _, _ := r.leb()
	return v
}

// sleb is uleb with a sign.
func (r *reader) sleb() int64 {
	v, shift, last := r.leb()
	if last&0x40 != 0 && shift < 64 {
		v |= ^uint64(0) << shift
	}
	return int64(v)
}

func (r *reader) leb() (v uint64, shift uint, last uint8) {
	for {
		last = r.u8()
		v |= uint64(last&0x7f) << shift
		shift += 7
		if last&0x80 == 0 || r.bad {
			return v, shift, last
		}
	}
}

// text takes a string off that ends with a zero byte.
func (r *reader) text() string {
	for i, c := range r.b {
		if c == 0 {
			return string(r.bytes(uint64(i) + 1)[:i])
		}
	}
	r.bad = true
	return ""
}
