// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// benchDisk makes an image and opens it.
func benchDisk(b *testing.B, spec lab.Spec) func() *qcow2.Disk {
	b.Helper()
	path := filepath.Join(testenv.DiskDir(b), "bench.qcow2")
	if err := lab.Write(path, spec); err != nil {
		b.Fatal(err)
	}
	f, err := diskio.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return func() *qcow2.Disk {
		h, err := qcow2.ReadHeader(f, f.Size())
		if err != nil {
			b.Fatal(err)
		}
		d, err := qcow2.NewDisk(f, f.Size(), h, qcow2.DiskOptions{})
		if err != nil {
			b.Fatal(err)
		}
		return d
	}
}

func BenchmarkMap(b *testing.B) {
	for _, c := range []struct {
		name string
		spec lab.Spec
	}{
		{"size=64GiB/layout=random", lab.Spec{VirtualBytes: 64 << 30, Layout: lab.Random}},
		{"size=64GiB/layout=runs of 16", lab.Spec{VirtualBytes: 64 << 30, Layout: lab.Runs(16)}},
		{"size=1TiB/layout=sequential", lab.Spec{VirtualBytes: 1 << 40}},
		{"size=64GiB/subclusters", lab.Spec{VirtualBytes: 64 << 30, ExtendedL2: true, Partial: 0.3,
			Layout: lab.Random}},
	} {
		b.Run(c.name, func(b *testing.B) {
			disk := benchDisk(b, c.spec)
			b.ReportAllocs()
			extents := 0
			for b.Loop() {
				d := disk()
				extents = 0
				err := d.Map(b.Context(), 0, d.Size(), func(image.Extent) error {
					extents++
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(extents), "extents")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, c := range []struct {
		name string
		spec lab.Spec
		step int
	}{
		{"plain/1MiB", lab.Spec{VirtualBytes: 256 << 20, Data: true}, 1 << 20},
		{"plain/4KiB", lab.Spec{VirtualBytes: 64 << 20, Data: true}, 4 << 10},
		{"random/1MiB", lab.Spec{VirtualBytes: 256 << 20, Data: true, Layout: lab.Random}, 1 << 20},
		{"zlib/1MiB", lab.Spec{VirtualBytes: 64 << 20, Data: true, Compressed: 1}, 1 << 20},
		{"zlib/4KiB", lab.Spec{VirtualBytes: 64 << 20, Data: true, Compressed: 1}, 4 << 10},
		{"zstd/1MiB", lab.Spec{VirtualBytes: 64 << 20, Data: true, Compressed: 1, Zstd: true},
			1 << 20},
	} {
		b.Run(c.name, func(b *testing.B) {
			d := benchDisk(b, c.spec)()
			p := make([]byte, c.step)
			b.SetBytes(d.Size())
			b.ReportAllocs()
			for b.Loop() {
				for off := int64(0); off < d.Size(); off += int64(c.step) {
					if _, err := d.ReadAt(p, off); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run("anywhere/4KiB", func(b *testing.B) {
		d := benchDisk(b, lab.Spec{VirtualBytes: 64 << 30})()
		p := make([]byte, 4<<10)
		rnd := rand.New(rand.NewPCG(1, 1))
		b.SetBytes(int64(len(p)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := d.ReadAt(p, rnd.Int64N(d.Size()>>12)<<12); err != nil {
				b.Fatal(fmt.Errorf("read: %w", err))
			}
		}
	})
}
