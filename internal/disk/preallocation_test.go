// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

func TestCountNonzero(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for width := 1; width <= 64; width *= 2 {
		for range 200 {
			p := make([]byte, 8*(1+r.IntN(8)))
			for i := range p {
				if r.IntN(3) == 0 {
					p[i] = byte(r.IntN(4)) << r.IntN(7)
				}
			}
			all := int64(len(p) * 8 / width)
			n := r.Int64N(all + 2)
			want := int64(0)
			for i := range min(n, all) {
				bit := int(i) * width
				v := uint64(0)
				if width < 8 { // the first number is in the lowest bits of its byte
					v = uint64(p[bit/8]) >> (bit % 8) & (1<<width - 1)
				} else {
					var b [8]byte
					copy(b[8-width/8:], p[bit/8:bit/8+width/8])
					v = binary.BigEndian.Uint64(b[:])
				}
				if v != 0 {
					want++
				}
			}
			if got := countNonzero(p, width, n); got != want {
				t.Errorf("countNonzero(%x, width %d, %d) = %d, want %d", p, width, n, got, want)
			}
		}
	}
}

func TestDataRangesAfter(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		var d dataRanges
		end := int64(0)
		for range r.IntN(60) {
			start := end + r.Int64N(1<<r.IntN(24)+1)
			end = start + 1 + r.Int64N(1<<r.IntN(24)+1)
			d.ends = append(d.ends, start, end)
		}
		d.makeIndex()
		for range 100 {
			off := r.Int64N(end + 10)
			if n := len(d.ends); n > 0 && r.IntN(2) == 0 {
				off = max(0, d.ends[r.IntN(n)]+r.Int64N(3)-1)
			}
			want := 0
			for want < len(d.ends)/2 && d.ends[2*want+1] <= off {
				want++
			}
			if got := d.after(off); got != want {
				t.Fatalf("after(%d) in %v = %d, want %d", off, d.ends, got, want)
			}
		}
	}
}
