// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import "testing"

func TestHashes(t *testing.T) {
	// The vector of the paper: a key and a message of ascending bytes.
	var b [16]byte
	for i := range b {
		b[i] = byte(i)
	}
	if got := siphash(le.Uint64(b[:]), le.Uint64(b[8:]), b[:15]); got != 0xa129ca6149be45e5 {
		t.Errorf("siphash = %#x, want 0xa129ca6149be45e5", got)
	}
	// Those of the tests in lookup3.c.
	for text, want := range map[string]uint64{
		"":                               0xdeadbeefdeadbeef,
		"Four score and seven years ago": 0x17770551ce7226e6,
	} {
		if got := jenkins([]byte(text)); got != want {
			t.Errorf("jenkins(%q) = %#x, want %#x", text, got, want)
		}
	}
}

func TestSpans(t *testing.T) {
	all := []uint64{3, 5, 1 << 40, 1<<63 | 9}
	for want, is := range map[uint64]bool{0: true, 3: true, 3 ^ 5: true, 1<<63 | 9 ^ 5: true, 4: false,
		1 << 63: false, 1<<40 | 6: true} {
		if spans(all, want) != is {
			t.Errorf("spans(%#x) = %v, want %v", want, !is, is)
		}
	}
	if spans(make([]uint64, 50), 1) {
		t.Error("spans of many hashes proves nothing")
	}
}
