// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"io"
	"testing"
)

// sparse is zeros with single bytes.
type sparse struct {
	size  int64
	bytes map[int64]byte
	read  int64
}

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, b := range s.bytes {
		if at >= off && at < off+int64(len(p)) {
			p[at-off] = b
		}
	}
	n := max(0, min(int64(len(p)), s.size-off))
	s.read += n
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// TestDigest: of a hole that is one little is read, and what stands in one at its edges or at a place
// that is read is told.
func TestDigest(t *testing.T) {
	const size, far = 4<<30 + 4096, 4 << 30
	of := func(bytes map[int64]byte, hole func(off int64) int64) (string, int64) {
		t.Helper()
		s := &sparse{size: size, bytes: bytes}
		sum, err := digest(s, hole)
		if err != nil {
			t.Fatal(err)
		}
		return sum, s.read
	}
	hole := func(off int64) int64 { return max(off, far) }
	want, all := of(map[int64]byte{far: 1}, func(off int64) int64 { return off })
	got, read := of(map[int64]byte{far: 1}, hole)
	if got != want || all != size || read > 32<<20 {
		t.Errorf("digest is %s of %d bytes, want %s of %d", got, read, want, all)
	}
	for _, at := range []int64{0, edgeBytes - 1, edgeBytes + 3*strideBytes + 2*blockBytes + 1, far - edgeBytes, far - 1,
		far + 1} {
		if got, _ := of(map[int64]byte{far: 1, at: 2}, hole); got == want {
			t.Errorf("a byte at 0x%x is not seen", at)
		}
	}
	if got, _ := of(map[int64]byte{far + 1: 1}, hole); got == want {
		t.Error("a byte at another place is not seen")
	}
}
