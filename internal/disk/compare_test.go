// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// qemuSays is what qemu-img compare prints and returns for r.
func qemuSays(r Comparison, strict bool) (string, int) {
	var b strings.Builder
	if r.SizeA != r.SizeB && r.Passed {
		b.WriteString("Warning: Image size mismatch!\n")
	}
	switch r.Outcome {
	case Identical:
		return b.String() + "Images are identical.\n", 0
	case ContentDiffers:
		fmt.Fprintf(&b, "Content mismatch at offset %d!\n", r.Offset)
	case AllocationDiffers:
		fmt.Fprintf(&b, "Strict mode: Offset %d block status mismatch!\n", r.Offset)
	case SizeDiffers:
		b.WriteString("Strict mode: Image size mismatch!\n")
	}
	return b.String(), 1
}

// compareBoth compares two disks with qemu-img and with Compare, plain and strict.
func compareBoth(t *testing.T, a, b string) {
	t.Helper()
	ca, cb := mustOpen(t, a, follow), mustOpen(t, b, follow)
	for _, strict := range []bool{false, true} {
		args := []string{"compare"}
		if strict {
			args = append(args, "-s")
		}
		wantText, errOut, want := output(t, ".", "qemu-img", append(args, a, b)...)
		if want > 1 {
			t.Fatalf("qemu-img compare %s %s = %d\n%s", a, b, want, errOut)
		}
		for _, workers := range []int{0, 1, 3} {
			r, err := Compare(t.Context(), ca, cb, CompareOptions{Strict: strict, Workers: workers})
			if err != nil {
				t.Fatalf("Compare(strict %v) = %v", strict, err)
			}
			if text, status := qemuSays(r, strict); text != wantText || status != want {
				t.Errorf("Compare(strict %v, %d workers) = %d %q, want %d %q", strict, workers, status, text, want, wantText)
			}
		}
	}
}

func TestCompareAsQemu(t *testing.T) {
	for _, seed := range seeds(5, 300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRand(5000 + seed)
			path := randomChain(t, r)
			other := filepath.Join(t.TempDir(), "other")
			// A copy of the same content, in another format and with other clusters.
			args := []string{"convert", "-O", "raw"}
			if r.IntN(2) == 0 {
				args = []string{"convert", "-O", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", 512<<r.IntN(12))}
			}
			run(t, ".", "qemu-img", append(args, path, other)...)
			settle(t, other)
			compareBoth(t, path, other)
			compareBoth(t, other, path)
			compareBoth(t, path, path)
			change(t, r, other)
			settle(t, other)
			compareBoth(t, path, other)
			compareBoth(t, other, path)
		})
	}
}

// change makes the disk longer, shorter or another one in some place.
func change(t *testing.T, r *rand.Rand, path string) {
	t.Helper()
	size := mustOpen(t, path, follow).Size()
	switch r.IntN(3) {
	case 0:
		run(t, ".", "qemu-img", "resize", "-q", path, fmt.Sprintf("+%d", 512*(1+r.IntN(4096))))
	case 1:
		run(t, ".", "qemu-img", "resize", "-q", "--shrink", path, fmt.Sprint(size-512*(1+r.Int64N(1024))))
	}
	if r.IntN(3) > 0 {
		size = mustOpen(t, path, follow).Size()
		off := r.Int64N(size)
		run(t, ".", "qemu-io", "-c", fmt.Sprintf("write -q -P %d %d %d", r.IntN(5), off, 1+r.Int64N(min(100000, size-off))), path)
	}
}

// The maps of these pairs are one of a kind: parts of tables, ranges beyond 2 GiB, holes at the end.
func TestCompareLarge(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	dir := testenv.DiskDir(t)
	type img struct{ name, opts, size string }
	images := []img{
		{"small.qcow2", "cluster_size=512", "3G"}, {"large.qcow2", "cluster_size=2M", "3G"},
		{"usual.qcow2", "cluster_size=64k", "3G"}, {"ext.qcow2", "extended_l2=on", "3G"}, {"raw", "", "3G"},
	}
	for _, i := range images {
		path := filepath.Join(dir, i.name)
		args := []string{"create", "-q", "-f", "qcow2", "-o", i.opts, path, i.size}
		if i.opts == "" {
			args = []string{"create", "-q", "-f", "raw", path, i.size}
		}
		run(t, dir, "qemu-img", args...)
		run(t, dir, "qemu-io", "-c", "write -q -P 1 1G 1M", "-c", "write -q -P 2 2147483136 1024", path)
		settle(t, path)
	}
	last := filepath.Join(dir, "last")
	run(t, dir, "qemu-img", "create", "-q", "-f", "raw", last, "3G")
	run(t, dir, "qemu-io", "-f", "raw", "-c", "write -q -P 1 1G 1M", "-c", "write -q -P 2 2147483136 1024", "-c", "write -q -P 9 3221225000 1", last)
	for i, a := range images {
		for _, b := range images[i:] {
			t.Run(a.name+" "+b.name, func(t *testing.T) {
				compareBoth(t, filepath.Join(dir, a.name), filepath.Join(dir, b.name))
			})
		}
		t.Run(a.name+" last", func(t *testing.T) { compareBoth(t, filepath.Join(dir, a.name), last) })
	}
}

// What comes first on the disk decides, whoever of the workers is faster.
func TestCompareFirst(t *testing.T) {
	dir := t.TempDir()
	const size = 64 << 20
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, at := range []int64{0, 511, 512, 5 << 20, 5<<20 + 700, size - 1} {
		x := make([]byte, size)
		for i := range x {
			x[i] = byte(i>>9) | 1
		}
		write := func(path string) {
			if err := os.WriteFile(path, x, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write(a)
		for i := at; i < size; i += 3 << 20 {
			x[i] ^= 0xff
		}
		write(b)
		r, err := Compare(t.Context(), mustOpen(t, a, follow), mustOpen(t, b, follow), CompareOptions{Workers: 8})
		if want := at &^ 511; err != nil || r.Outcome != ContentDiffers || r.Offset != want {
			t.Errorf("Compare(different from %d on) = %s at %d, %v, want %s at %d", at, r.Outcome, r.Offset, err, ContentDiffers, want)
		}
	}
}

func TestCompareCancelled(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(a, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	c := mustOpen(t, a, follow)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Compare(ctx, c, c, CompareOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Compare(cancelled) = %v, want %v", err, context.Canceled)
	}
}
