// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

const (
	// Whatever the bytes, no more than this is allocated in all, beside some times the input.
	fuzzBytes = 24 << 20
	// maxFuzzInput keeps the fuzzer fast.
	maxFuzzInput = 128 << 10
	// maxFuzzTables bounds the L2 tables that are mapped. Thousands of L1 entries may name the same
	// table, so that mapping takes as long as the disk is large; only its user can end it earlier.
	maxFuzzTables = 64
)

// seeds adds images of every kind to a fuzz target, whole and cut off.
func seeds(f *testing.F) {
	for i, c := range []features{
		{version: 2, clusterBits: 9, sizeBytes: 10 << 9},
		{version: 3, clusterBits: 9, sizeBytes: 70<<9 + 512},
		{version: 3, clusterBits: 10, sizeBytes: 6 << 10},
		{version: 3, clusterBits: 9, zstd: true, sizeBytes: 10 << 9},
		{version: 3, clusterBits: 9, dataFile: true, sizeBytes: 10 << 9},
		{version: 3, clusterBits: 14, extended: true, sizeBytes: 1 << 14},
	} {
		g := draw(f, rand.New(rand.NewPCG(uint64(i), 77)), c)
		f.Add(g.file)
		f.Add(g.file[:len(g.file)/2])
		f.Add(with(g.file, edit{60, uint32(3)}, edit{64, uint64(1 << c.clusterBits)}))
		f.Add(with(g.file, edit{20, uint32(21)}))
		f.Add(with(g.file, edit{24, uint64(1 << 40)}, edit{36, uint32(1 << 20)}))
		f.Add(with(g.file, edit{88, uint64(1)},
			ext(112, extBitmaps, 24, be32s(2, 0)+be64(100, 1<<c.clusterBits)), ext(144, 0, 0, "")))
	}
	f.Add([]byte{})
	f.Add([]byte("QFI\xfb"))
}

// frugal runs fn on the image and fails if it changes the input or takes too much memory.
func frugal(t *testing.T, data []byte, fn func(r *bytes.Reader)) {
	t.Helper()
	data = data[:min(len(data), maxFuzzInput)]
	before := bytes.Clone(data)
	if used := memory(func() { fn(bytes.NewReader(data)) }); used > fuzzBytes+8*uint64(len(data)) {
		t.Errorf("it takes %d bytes for an input of %d", used, len(data))
	}
	if !bytes.Equal(data, before) {
		t.Error("the input was changed")
	}
}

func FuzzHeader(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		frugal(t, data, func(r *bytes.Reader) {
			h, err := qcow2.ReadHeader(r, r.Size())
			var refused *qcow2.OpenError
			if err != nil {
				if !errors.As(err, &refused) {
					t.Errorf("ReadHeader = %v, want an OpenError", err)
				}
				return
			}
			if _, err := qcow2.ReadSnapshots(r, r.Size(), h); err != nil &&
				!errors.As(err, &refused) {
				t.Errorf("ReadSnapshots = %v, want an OpenError", err)
			}
			bitmaps, err := qcow2.ReadBitmaps(r, r.Size(), h)
			if err == nil {
				err = errors.Join(qcow2.LoadBitmaps(r, r.Size(), h, bitmaps)...)
			}
			if err != nil && !errors.As(err, &refused) {
				t.Errorf("ReadBitmaps = %v, want an OpenError", err)
			}
		})
	})
}

// disksOf gives the disks of an image: the active one, and the first snapshots.
func disksOf(t *testing.T, r *bytes.Reader) []*qcow2.Disk {
	h, err := qcow2.ReadHeader(r, r.Size())
	if err != nil {
		return nil
	}
	o := qcow2.DiskOptions{Data: r, DataBytes: r.Size()}
	d, err := qcow2.NewDisk(r, r.Size(), h, o)
	if err != nil {
		t.Fatalf("NewDisk = %v", err)
	}
	disks := []*qcow2.Disk{d}
	table, err := qcow2.ReadSnapshots(r, r.Size(), h)
	if err != nil {
		return disks
	}
	for i := range table.Snapshots[:min(2, len(table.Snapshots))] {
		o.Snapshot = &table.Snapshots[i]
		if d, err := qcow2.NewDisk(r, r.Size(), h, o); err == nil {
			disks = append(disks, d)
		}
	}
	return disks
}

var errEnough = errors.New("enough")

func FuzzMap(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		frugal(t, data, func(r *bytes.Reader) {
			for _, d := range disksOf(t, r) {
				end := min(d.Size()/d.Header().L2Span(), maxFuzzTables) * d.Header().L2Span()
				if end == 0 {
					end = d.Size()
				}
				pos, calls := int64(0), 0
				err := d.Map(context.Background(), 0, end, func(e image.Extent) error {
					if int64(e.Guest) != pos || e.Length <= 0 || e.Length > end-pos ||
						e.Kind > image.Compressed {
						t.Errorf("Map gives %+v at %#x of %#x", e, pos, end)
					}
					pos += e.Length
					if calls++; calls > 20_000 {
						return errEnough
					}
					return nil
				})
				var entry *qcow2.EntryError
				switch {
				case err == nil && pos != end:
					t.Errorf("Map ends at %#x of %#x", pos, end)
				case errors.As(err, &entry) && int64(entry.Guest) > pos:
					t.Errorf("Map = %v, but ended at %#x", err, pos)
				case err != nil && err != errEnough && entry == nil:
					t.Errorf("Map = %v, want an EntryError", err)
				}
			}
		})
	})
}

func FuzzRead(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		frugal(t, data, func(r *bytes.Reader) {
			for _, d := range disksOf(t, r) {
				p := make([]byte, 8192)
				for i := range int64(24) {
					off := i * 7001
					if i >= 16 {
						off = d.Size() / 8 * (i - 16)
					}
					n, err := d.ReadAt(p, off)
					known := errors.Is(err, qcow2.ErrEntry) || errors.Is(err, qcow2.ErrEncrypted) ||
						err == io.EOF
					if err != nil && !known || err == nil && n != len(p) || n < 0 || n > len(p) {
						t.Errorf("ReadAt(%#x of %#x) = %d, %v", off, d.Size(), n, err)
					}
					agree(t, d, off, p[:n])
				}
			}
		})
	})
}

// agree holds what was read against the map.
func agree(t *testing.T, d *qcow2.Disk, off int64, p []byte) {
	if len(p) == 0 {
		return
	}
	err := d.Map(context.Background(), image.GuestOff(off), int64(len(p)),
		func(e image.Extent) error {
			part := p[int64(e.Guest)-off:][:e.Length]
			if e.Kind != image.Data && e.Kind != image.Compressed && bytes.ContainsFunc(part, nonzero) {
				t.Errorf("ReadAt gives bytes for %+v", e)
			}
			return nil
		})
	if err != nil {
		t.Errorf("ReadAt reads %d bytes at %#x, but Map = %v", len(p), off, err)
	}
}
