// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"encoding/binary"
	"math/bits"
)

var le = binary.LittleEndian

// siphash is SipHash-2-4 ("SipHash: a fast short-input PRF", Aumasson and Bernstein, 2012) with the
// two halves of a key.
func siphash(k0, k1 uint64, b []byte) uint64 {
	v0, v1, v2, v3 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d, k0^0x6c7967656e657261,
		k1^0x7465646279746573
	last := uint64(len(b)) << 56
	for ; len(b) >= 8; b = b[8:] {
		m := le.Uint64(b)
		v0, v1, v2, v3 = sipRounds(2, v0, v1, v2, v3^m)
		v0 ^= m
	}
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	v0, v1, v2, v3 = sipRounds(2, v0, v1, v2, v3^last)
	v0, v1, v2, v3 = sipRounds(4, v0^last, v1, v2^0xff, v3)
	return v0 ^ v1 ^ v2 ^ v3
}

func sipRounds(n int, a, b, c, d uint64) (uint64, uint64, uint64, uint64) {
	for range n {
		a += b
		b = bits.RotateLeft64(b, 13) ^ a
		a = bits.RotateLeft64(a, 32)
		c += d
		d = bits.RotateLeft64(d, 16) ^ c
		a += d
		d = bits.RotateLeft64(d, 21) ^ a
		c += b
		b = bits.RotateLeft64(b, 17) ^ c
		c = bits.RotateLeft64(c, 32)
	}
	return a, b, c, d
}

// jenkins is hashlittle2 of lookup3 (Bob Jenkins, 2006, public domain) from two zeros, its first
// result as the upper half ("Basics").
func jenkins(k []byte) uint64 {
	a := 0xdeadbeef + uint32(len(k))
	b, c := a, a
	if len(k) == 0 {
		return uint64(c)<<32 | uint64(b)
	}
	for ; len(k) > 12; k = k[12:] {
		a += le.Uint32(k)
		b += le.Uint32(k[4:])
		c += le.Uint32(k[8:])
		a = a - c ^ bits.RotateLeft32(c, 4)
		c += b
		b = b - a ^ bits.RotateLeft32(a, 6)
		a += c
		c = c - b ^ bits.RotateLeft32(b, 8)
		b += a
		a = a - c ^ bits.RotateLeft32(c, 16)
		c += b
		b = b - a ^ bits.RotateLeft32(a, 19)
		a += c
		c = c - b ^ bits.RotateLeft32(b, 4)
		b += a
	}
	var rest [12]byte
	copy(rest[:], k)
	a += le.Uint32(rest[:])
	b += le.Uint32(rest[4:])
	c += le.Uint32(rest[8:])
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	c = (c ^ b) - bits.RotateLeft32(b, 24)
	return uint64(c)<<32 | uint64(b)
}
