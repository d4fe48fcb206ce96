// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package imagetest holds the tests that every image.Reader passes.
package imagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/shisa-vm/shisa/internal/image"
)

// Open gives the disk to test and all bytes that it must show. The disk is as good as new each
// time; it may be small, but should hold every kind of extent that the format has.
type Open func(t *testing.T) (image.Reader, []byte)

// Run tests the disk that open gives.
func Run(t *testing.T, open Open) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, image.Reader, []byte)
	}{
		{"size", testSize},
		{"whole", testWhole},
		{"pieces", testPieces},
		{"end", testEnd},
		{"bad ranges", testBadRanges},
		{"at once", testAtOnce},
		{"map covers", testMapCovers},
		{"map is true", testMapTrue},
		{"map of parts", testMapParts},
		{"map is stopped", testMapStopped},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, want := open(t)
			c.test(t, d, want)
		})
	}
}

func testSize(t *testing.T, d image.Reader, want []byte) {
	if d.Size() != int64(len(want)) {
		t.Errorf("Size() = %d, want %d", d.Size(), len(want))
	}
}

// Equal fails the test if got is not want, and names the first byte that differs.
func Equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Errorf("%s = %d bytes, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s at %#x = %#02x, want %#02x", what, i, got[i], want[i])
			return
		}
	}
}

func testWhole(t *testing.T, d image.Reader, want []byte) {
	got := bytes.Repeat([]byte{0xa5}, len(want)) // so that zeros must be written
	n, err := d.ReadAt(got, 0)
	if n != len(want) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("ReadAt(all) = %d, %v, want %d", n, err, len(want))
	}
	Equal(t, "ReadAt(all)", got, want)
}

func testPieces(t *testing.T, d image.Reader, want []byte) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 250 {
		off, n := piece(rnd, len(want))
		got := bytes.Repeat([]byte{0xa5}, n)
		if m, err := d.ReadAt(got, int64(off)); m != n || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("ReadAt(%d bytes at %#x) = %d, %v, want %d", n, off, m, err, n)
		}
		Equal(t, fmt.Sprintf("ReadAt(%d bytes at %#x)", n, off), got, want[off:off+n])
	}
}

// piece gives a range within size bytes, mostly short, sometimes aligned.
func piece(rnd *rand.Rand, size int) (off, n int) {
	if size == 0 {
		return 0, 0
	}
	off = rnd.IntN(size)
	if rnd.IntN(2) == 0 {
		off &^= 511
	}
	n = min(rnd.IntN(1<<rnd.IntN(19)+1), size-off)
	return off, n
}

func testEnd(t *testing.T, d image.Reader, want []byte) {
	size := int64(len(want))
	for _, c := range []struct {
		off int64
		n   int
		got int
		eof bool
	}{
		{size, 1, 0, true},
		{size + 1, 1, 0, true},
		{size + 1<<40, 4096, 0, true},
		{max(size-1, 0), 2, int(min(size, 1)), true},
		{max(size-700, 0), 4096, int(min(size, 700)), true},
		{size, 0, 0, false},
		{0, 0, 0, false},
	} {
		p := bytes.Repeat([]byte{0xa5}, c.n)
		n, err := d.ReadAt(p, c.off)
		if n != c.got || c.eof != (err == io.EOF) || !c.eof && err != nil {
			t.Errorf("ReadAt(%d bytes at %d of %d) = %d, %v, want %d, EOF %v", c.n, c.off, size, n,
				err, c.got, c.eof)
		}
		if n > 0 && n == c.got {
			Equal(t, fmt.Sprintf("ReadAt(%d bytes at %#x)", c.n, c.off), p[:n], want[c.off:])
		}
	}
}

func testBadRanges(t *testing.T, d image.Reader, _ []byte) {
	for _, off := range []int64{-1, -4096, -1 << 63} {
		for _, n := range []int{0, 1} {
			if m, err := d.ReadAt(make([]byte, n), off); m != 0 ||
				!errors.Is(err, image.ErrOffset) {
				t.Errorf("ReadAt(%d bytes at %d) = %d, %v, want 0, %v", n, off, m, err,
					image.ErrOffset)
			}
		}
	}
	never := func(e image.Extent) error {
		t.Errorf("Map of a bad or empty range gives %+v", e)
		return nil
	}
	for _, c := range []struct{ off, n int64 }{{-1, 10}, {0, -1}, {-1 << 63, -1 << 63}} {
		if err := d.Map(t.Context(), image.GuestOff(c.off), c.n, never); !errors.Is(err,
			image.ErrOffset) {
			t.Errorf("Map(%d, %d) = %v, want %v", c.off, c.n, err, image.ErrOffset)
		}
	}
	for _, c := range []struct{ off, n int64 }{{0, 0}, {d.Size(), 512},
		{d.Size() + 512, 1<<63 - 1}} {
		if err := d.Map(t.Context(), image.GuestOff(c.off), c.n, never); err != nil {
			t.Errorf("Map(%d, %d) = %v, want none", c.off, c.n, err)
		}
	}
}

func testAtOnce(t *testing.T, d image.Reader, want []byte) {
	var all sync.WaitGroup
	for seed := range uint64(6) {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 7))
			for range 30 {
				off, n := piece(rnd, len(want))
				got := make([]byte, n)
				if m, err := d.ReadAt(got, int64(off)); m != n || err != nil && err != io.EOF {
					t.Errorf("ReadAt(%d bytes at %#x) at once = %d, %v, want %d", n, off, m, err, n)
				}
				Equal(t, fmt.Sprintf("ReadAt(%d bytes at %#x) at once", n, off), got,
					want[off:off+n])
			}
			if es := extents(t, d, 0, d.Size()); len(es) == 0 && d.Size() > 0 {
				t.Errorf("Map at once gives nothing")
			}
		})
	}
	all.Wait()
}

func extents(t *testing.T, d image.Reader, off, n int64) []image.Extent {
	var es []image.Extent
	err := d.Map(t.Context(), image.GuestOff(off), n, func(e image.Extent) error {
		es = append(es, e)
		return nil
	})
	if err != nil {
		t.Errorf("Map(%#x, %d): %v", off, n, err)
	}
	return es
}

// covers fails the test unless es cover [off, end) once and in order, joined where they can be.
func covers(t *testing.T, es []image.Extent, off, end int64) {
	t.Helper()
	for i, e := range es {
		if int64(e.Guest) != off || e.Length <= 0 {
			t.Errorf("extent %d is %+v, want it to begin at %#x", i, e, off)
			return
		}
		off += e.Length
		if i == 0 {
			continue
		}
		last := es[i-1]
		follows := !e.HasHost || int64(last.Host)+last.Length == int64(e.Host)
		if last.Kind == e.Kind && last.HasHost == e.HasHost && last.InDataFile == e.InDataFile &&
			last.Part == e.Part && follows {
			t.Errorf("extents %+v and %+v are not joined", last, e)
		}
	}
	if off != end {
		t.Errorf("the map ends at %#x, want %#x", off, end)
	}
}

func testMapCovers(t *testing.T, d image.Reader, want []byte) {
	size := int64(len(want))
	for _, n := range []int64{size, size + 1, 1<<63 - 1} {
		covers(t, extents(t, d, 0, n), 0, size)
	}
}

func testMapTrue(t *testing.T, d image.Reader, want []byte) {
	for _, e := range extents(t, d, 0, d.Size()) {
		switch part := want[e.Guest : int64(e.Guest)+e.Length]; e.Kind {
		case image.Data:
			if !e.HasHost {
				t.Errorf("%+v is data, but has no place", e)
			}
		case image.Compressed:
			if e.HasHost {
				t.Errorf("%+v is compressed, but claims to have its bytes as they are", e)
			}
		case image.Zero, image.Unallocated:
			if i := bytes.IndexFunc(part, func(r rune) bool { return r != 0 }); i >= 0 {
				t.Errorf("%+v reads %#02x at %#x, want zeros", e, part[i], int(e.Guest)+i)
			}
		default:
			t.Errorf("%+v is of an unknown kind", e)
		}
	}
}

func testMapParts(t *testing.T, d image.Reader, want []byte) {
	whole := extents(t, d, 0, d.Size())
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		off, n := piece(rnd, len(want))
		got := extents(t, d, int64(off), int64(n))
		covers(t, got, int64(off), int64(off+n))
		if expect := clip(whole, int64(off), int64(off+n)); !same(got, expect) {
			t.Errorf("Map(%#x, %d) = %+v, want %+v", off, n, got, expect)
			return
		}
	}
}

// clip cuts es to [from, to).
func clip(es []image.Extent, from, to int64) []image.Extent {
	var out []image.Extent
	for _, e := range es {
		if cut := from - int64(e.Guest); cut > 0 {
			e.Guest += image.GuestOff(cut)
			e.Length -= cut
			if e.HasHost {
				e.Host += image.HostOff(cut)
			}
		}
		if e.Length = min(e.Length, to-int64(e.Guest)); e.Length > 0 {
			out = append(out, e)
		}
	}
	return out
}

// same compares maps. The Host of a compressed extent that was clipped is that of a later stream.
func same(a, b []image.Extent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if x.Kind == image.Compressed && y.Kind == image.Compressed {
			x.Host, y.Host = 0, 0
		}
		if x != y {
			return false
		}
	}
	return true
}

func testMapStopped(t *testing.T, d image.Reader, _ []byte) {
	if d.Size() == 0 {
		return
	}
	stop := errors.New("stop")
	calls := 0
	err := d.Map(t.Context(), 0, d.Size(), func(image.Extent) error {
		calls++
		return stop
	})
	if err != stop || calls != 1 {
		t.Errorf("Map with a failing fn = %v after %d calls, want %v after 1", err, calls, stop)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calls = 0
	err = d.Map(ctx, 0, d.Size(), func(image.Extent) error {
		calls++
		return nil
	})
	if !errors.Is(err, context.Canceled) || calls != 0 {
		t.Errorf("Map with a cancelled context = %v after %d calls, want %v", err, calls,
			context.Canceled)
	}
}
