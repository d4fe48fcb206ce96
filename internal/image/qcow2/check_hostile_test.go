// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
)

// brokenDisk fails to read one range.
type brokenDisk struct {
	io.ReaderAt
	bad finding.Range
}

var errMedium = errors.New("medium error")

func (b brokenDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < b.bad.End() && b.bad.Offset < off+int64(len(p)) {
		return 0, errMedium
	}
	return b.ReaderAt.ReadAt(p, off)
}

func load(t testing.TB, spec lab.Spec) []byte {
	t.Helper()
	img, err := os.ReadFile(build(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// An unreadable range does not end the check: it is named, with what it stood for, everything else
// is counted, and nothing that follows from it is taken for a fault of the image.
func TestCheckGoesOnPastUnreadableRanges(t *testing.T) {
	img := load(t, lab.Spec{VirtualBytes: 256 << 20, ClusterBits: 12, Fill: 0.1, Front: true, Snapshots: 1})
	h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	l2 := int64(be.Uint64(img[int64(h.L1Off)+8*3:]) & qcow2.OffsetMask)
	block := int64(be.Uint64(img[h.ReftableOff:]))
	second := int64(be.Uint64(img[int64(h.ReftableOff)+8:]))
	span := h.L2Span()
	for _, tt := range []struct {
		name  string
		bad   finding.Range
		what  string
		guest []finding.Range
	}{
		{"an L2 table", finding.Range{Offset: l2, Length: 1 << 12}, "L2 table",
			[]finding.Range{{Offset: 3 * span, Length: span}}},
		{"a refcount block", finding.Range{Offset: block, Length: 512}, "refcount block 0", nil},
		{"the second refcount block", finding.Range{Offset: second, Length: 512}, "refcount block 1", nil},
		{"the refcount table", finding.Range{Offset: int64(h.ReftableOff), Length: 1}, "refcount table", nil},
		{"the L1 table", finding.Range{Offset: int64(h.L1Off), Length: 1}, "L1 table", nil},
		{"the snapshot table", finding.Range{Offset: int64(h.SnapshotsOff), Length: 1}, "snapshot table", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := brokenDisk{bytes.NewReader(img), tt.bad}
			res, err := qcow2.Check(t.Context(), r, int64(len(img)), qcow2.CheckOptions{DataFileBytes: -1})
			if err != nil {
				t.Fatalf("Check() = %v, want a result", err)
			}
			if len(res.Blind) != 1 || res.Blind[0].What != tt.what || res.Blind[0].Reason != errMedium.Error() {
				t.Fatalf("Check() is blind to %+v, want the %s", res.Blind, tt.what)
			}
			if tt.guest != nil {
				if d := cmp.Diff(tt.guest, res.Blind[0].Guest); d != "" {
					t.Errorf("guest ranges of the blind spot (-want +got):\n%s", d)
				}
			}
			if w := finding.Worst(res.Findings); w != finding.Note {
				t.Errorf("Check() found %+v, want nothing but notes", res.Findings)
			}
			if v := finding.VerdictOf(res.Findings, res.Blind); v != finding.CannotTell {
				t.Errorf("verdict = %s, want %s", v, finding.CannotTell)
			}
			if res.Counts.CheckErrors == 0 {
				t.Errorf("check_errors = 0, want more")
			}
		})
	}
}

// Of a large table only the sectors around the fault are missing.
func TestCheckReadsAroundBadSectors(t *testing.T) {
	img := load(t, lab.Spec{VirtualBytes: 2 << 30, ClusterBits: 14, Fill: 0.02, Front: true})
	h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	l2 := int64(binary.BigEndian.Uint64(img[int64(h.L1Off)+8*3:]) & qcow2.OffsetMask)
	r := brokenDisk{bytes.NewReader(img), finding.Range{Offset: l2 + 4096 + 512, Length: 512}}
	res, err := qcow2.Check(t.Context(), r, int64(len(img)), qcow2.CheckOptions{DataFileBytes: -1})
	if err != nil || len(res.Blind) != 1 {
		t.Fatalf("Check() = %+v, %v, want one blind spot", res, err)
	}
	span := h.L2Span()
	if d := cmp.Diff([]finding.Range{{Offset: 3*span + span/4, Length: span / 4}}, res.Blind[0].Guest); d != "" {
		t.Errorf("guest ranges of the blind spot (-want +got):\n%s", d)
	}
}

// A fault elsewhere is still found.
func TestCheckFindsFaultsBesideUnreadableRanges(t *testing.T) {
	img := load(t, lab.Spec{VirtualBytes: 2 << 30, ClusterBits: 14, Fill: 0.02, Front: true})
	h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	l2 := func(i int64) int64 {
		return int64(binary.BigEndian.Uint64(img[int64(h.L1Off)+8*i:]) & qcow2.OffsetMask)
	}
	img[l2(5)+7] |= 2 // a reserved bit
	r := brokenDisk{bytes.NewReader(img), finding.Range{Offset: l2(3), Length: 1}}
	res, err := qcow2.Check(t.Context(), r, int64(len(img)), qcow2.CheckOptions{DataFileBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(res.Findings, func(f finding.Finding) bool { return f.Code == "QC09" }) || len(res.Blind) != 1 {
		t.Errorf("Check() = %+v, blind %+v, want QC09 and one blind spot", res.Findings, res.Blind)
	}
}

// lie makes a small header that claims much.
func lie(edits ...edit) []byte {
	img := make([]byte, 512)
	be := binary.BigEndian
	be.PutUint32(img, qcow2.Magic)
	be.PutUint32(img[4:], 3)
	be.PutUint32(img[20:], 9)
	be.PutUint32(img[96:], 4)
	be.PutUint32(img[100:], 104)
	return with(img, edits...)
}

// A short file never costs much, whatever it claims.
func TestCheckCostsLittle(t *testing.T) {
	for _, tt := range []struct {
		name string
		img  []byte
		size int64
	}{
		{"an L1 table at its limit", lie(edit{36, be32s(32 << 20 / 8)}, edit{40, be64(0)}, edit{48, be64(512)}, edit{56, be32s(1)}), 512},
		{"a refcount table at its limit", lie(edit{20, be32s(21)}, edit{48, be64(1 << 21)}, edit{56, be32s(4)}), 512},
		{"65536 snapshots", lie(edit{60, be32s(65536)}, edit{64, be64(0)}), 512},
		{"everything at once in a long hole", lie(edit{36, be32s(32 << 20 / 8)}, edit{40, be64(512)},
			edit{48, be64(1 << 30)}, edit{56, be32s(16384)}, edit{60, be32s(65536)}, edit{64, be64(1 << 31)}), 1 << 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cost := memory(func() {
				_, err := qcow2.Check(t.Context(), sparse{tt.img, tt.size}, tt.size, qcow2.CheckOptions{DataFileBytes: -1})
				var open *qcow2.OpenError
				if err != nil && !errors.As(err, &open) {
					t.Errorf("Check() = %v, want a result or an *OpenError", err)
				}
			})
			if cost > 64<<20 {
				t.Errorf("Check() allocated %d bytes, want at most %d", cost, 64<<20)
			}
		})
	}
}

// sparse is a file that is a hole behind its first bytes.
type sparse struct {
	head []byte
	size int64
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	if off < int64(len(s.head)) {
		copy(p[:n], s.head[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// More memory than allowed is never taken; the answer is then "cannot tell".
func TestCheckKeepsToItsMemory(t *testing.T) {
	path := build(t, lab.Spec{VirtualBytes: 4 << 30, ClusterBits: 12, Layout: lab.Random})
	img, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	st, err := img.Stat()
	if err != nil {
		t.Fatal(err)
	}
	res, err := qcow2.Check(t.Context(), img, st.Size(), qcow2.CheckOptions{MemoryBytes: 100 << 10, DataFileBytes: -1})
	if err != nil || len(res.Blind) != 1 || finding.VerdictOf(res.Findings, res.Blind) != finding.CannotTell {
		t.Errorf("Check(100 KiB of memory) = %+v, %v, want cannot_tell", res, err)
	}
}

// metered counts what is read of a file, and tells when that is more than its limit.
type metered struct {
	io.ReaderAt
	bytes atomic.Int64
	limit int64 // 0: none
	full  func()
}

func (m *metered) ReadAt(p []byte, off int64) (int, error) {
	if n := m.bytes.Add(int64(len(p))); m.limit > 0 && n > m.limit {
		m.full()
	}
	return m.ReaderAt.ReadAt(p, off)
}

// readsOf is how many bytes a check of a file may read. Each table is read once for counting and once
// for what is wrong, refcount blocks again for single refcounts, and leaked clusters for lost tables;
// in a hostile file each kind may be all of it.
func readsOf(fileBytes int) int64 { return 64<<10 + 8*int64(fileBytes) }

// FuzzCheck requires of any bytes: no panic, bounded work, and the same counts from the parallel
// check as from the plain walk through the image.
func FuzzCheck(f *testing.F) {
	for i, spec := range []lab.Spec{
		{VirtualBytes: 64 << 10, ClusterBits: 9},
		{VirtualBytes: 256 << 10, ClusterBits: 9, Snapshots: 2, Rewrite: 0.3, Bitmaps: 1},
		{VirtualBytes: 512 << 10, ClusterBits: 14, ExtendedL2: true, Partial: 0.4},
		{VirtualBytes: 64 << 10, ClusterBits: 9, RefcountBits: 1, Compressed: 0.4},
		{VirtualBytes: 64 << 10, ClusterBits: 10, RefcountBits: 64, Version: 3, Leaks: 3},
	} {
		path := filepath.Join(f.TempDir(), fmt.Sprint(i))
		if err := lab.Write(path, spec); err != nil {
			f.Fatal(err)
		}
		img, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(img)
		rnd := rand.New(rand.NewPCG(uint64(i), 2))
		for range 8 {
			bad := slices.Clone(img)
			spoil(rnd, bad)
			f.Add(bad)
		}
	}
	f.Add(lie(edit{36, be32s(64)}, edit{40, be64(0)}))
	f.Fuzz(func(t *testing.T, img []byte) {
		if len(img) > 1<<20 {
			return
		}
		before := slices.Clone(img)
		opts := qcow2.CheckOptions{MemoryBytes: 64 << 20, DataFileBytes: -1}
		file := &metered{ReaderAt: bytes.NewReader(img)}
		res, err := qcow2.Check(t.Context(), file, int64(len(img)), opts)
		if !bytes.Equal(img, before) {
			t.Fatal("Check() changed its input")
		}
		if n := file.bytes.Load(); n > readsOf(len(img)) {
			t.Fatalf("Check() of %d bytes read %d, want %d at most", len(img), n, readsOf(len(img)))
		}
		if err != nil {
			var open *qcow2.OpenError
			if !errors.As(err, &open) {
				t.Fatalf("Check() = %v, want an *OpenError", err)
			}
			return
		}
		for _, b := range res.Blind {
			if b.What == "reference counts" {
				return // no memory for them
			}
		}
		// The walk reads a table for each reference to it, as qemu-img does, which may be for ever.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		lines, file := 0, &metered{ReaderAt: bytes.NewReader(img), limit: 1 << 30, full: cancel}
		counts, err := qcow2.Trace(ctx, file, int64(len(img)), opts, func(qcow2.Line) error {
			if lines++; lines > 1<<20 {
				return io.ErrShortBuffer
			}
			return nil
		})
		if err != nil {
			return // qemu-img gives up, or says more than anybody reads
		}
		if d := cmp.Diff(counts, res.Counts); d != "" {
			t.Fatalf("counts differ (-Trace +Check):\n%s", d)
		}
		if counts.Corruptions+counts.Leaks > 0 && len(res.Findings) == 0 {
			t.Fatalf("Check() counts %+v and finds nothing", counts)
		}
	})
}
