// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func BenchmarkMap(b *testing.B) {
	dir := testenv.DiskDir(b)
	for _, l := range []struct {
		name   string
		layout lab.Layout
	}{{"sequential", lab.Sequential}, {"runs=16", lab.Runs(16)}, {"random", lab.Random}} {
		path := filepath.Join(dir, l.name)
		if err := lab.Write(path, lab.Spec{VirtualBytes: 16 << 30, Layout: l.layout}); err != nil {
			b.Fatal(err)
		}
		b.Run("size=16GiB/layout="+l.name, func(b *testing.B) {
			b.ReportAllocs()
			n, before := 0, cpuTime(b)
			for b.Loop() {
				c := mustOpen(b, path, follow)
				err := c.Map(b.Context(), 0, c.Size(), func(*Entry) error { n++; return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(n), "cpu-ns/entry")
		})
	}
}

// cpuTime is what this process took of the processors so far. On a busy machine only that is
// comparable.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRead(b *testing.B) {
	testenv.Need(b, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(b)
	const size = 256 << 20
	base := filepath.Join(dir, "0")
	if err := lab.Write(base, lab.Spec{VirtualBytes: size, Layout: lab.Random, Data: true}); err != nil {
		b.Fatal(err)
	}
	paths := []string{base}
	for i := 1; i <= 3; i++ {
		path := filepath.Join(dir, fmt.Sprint(i))
		run(b, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", fmt.Sprint(i-1), "-F", "qcow2", path)
		args := []string{}
		for off := int64(i) << 16; off < size; off += 5 << 18 {
			args = append(args, "-c", fmt.Sprintf("write -q -P %d %d 128k", i, off))
		}
		run(b, dir, "qemu-io", append(args, path)...)
		paths = append(paths, path)
	}
	for depth, path := range paths {
		for _, step := range []int{4 << 10, 64 << 10, 2 << 20} {
			b.Run(fmt.Sprintf("depth=%d/step=%d", depth, step), func(b *testing.B) {
				c := mustOpen(b, path, follow)
				b.SetBytes(size)
				b.ReportAllocs()
				p := make([]byte, step)
				for b.Loop() {
					for off := int64(0); off < size; off += int64(step) {
						if _, err := c.ReadAt(p, off); err != nil && err != io.EOF {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}
