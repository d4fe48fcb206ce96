// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/lab/cut"
)

// openedImage is an image of n random bytes on a disk, open for a change that may make it longer.
func openedImage(t testing.TB, r *rand.Rand, n, after int) (*cut.Disk, *image, []byte) {
	t.Helper()
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	d := cut.New(t.Context())
	d.Put(imagePath, b)
	f, err := d.OpenForRepair(imagePath)
	if err != nil {
		t.Fatal(err)
	}
	return d, &image{path: imagePath, f: f, before: int64(n), after: int64(after)}, b
}

// What is read is what is there, whatever was read before: after every write, every new length, and
// where somebody else wrote, after the cache was dropped.
func TestReadIsNeverStale(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	d, img, model := openedImage(t, r, 3*windowBytes+77, 4*windowBytes+5)
	for step := range 20000 {
		off := r.IntN(len(model))
		if r.IntN(2) == 0 {
			off = int(img.before) - 50 + r.IntN(len(model)-int(img.before)+50) // about the old end
		}
		n := min(len(model)-off, 1+r.IntN(1<<r.IntN(18)))
		switch r.IntN(12) {
		case 0:
			p := bytes.Repeat([]byte{byte(step)}, n)
			if err := img.write(p, int64(off)); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], p)
		case 1:
			size := img.before
			if r.IntN(2) == 0 {
				size = img.after
			}
			if err := img.resize(size); err != nil {
				t.Fatal(err)
			}
			model = sliced(model, 0, size)
		case 2:
			poke(t, d, imagePath, off)
			model[off] ^= 0x55
			if err := img.dropCache(); err != nil {
				t.Fatal(err)
			}
		default:
			got := make([]byte, n+r.IntN(10))
			if err := img.read(got, int64(off), int64(len(model))); err != nil {
				t.Fatal(err)
			}
			if want := sliced(model, int64(off), int64(off+len(got))); !bytes.Equal(got, want) {
				t.Fatalf("step %d: read %d bytes at %#x: other bytes than are there", step, n, off)
			}
		}
	}
}

// What was behind the end is gone when the image gets longer again.
func TestReadAfterResize(t *testing.T) {
	_, img, _ := openedImage(t, rand.New(rand.NewPCG(8, 9)), 1000, 2000)
	got := make([]byte, 300)
	for _, err := range []error{
		img.resize(2000), img.write(bytes.Repeat([]byte{7}, 500), 1200), img.read(got, 1300, 2000),
		img.resize(1000), img.resize(2000), img.read(got, 1300, 2000),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, make([]byte, 300)) {
		t.Errorf("read %x..., want zeros", got[:8])
	}
}

// What cannot be read keeps nobody from what lies beside it.
func TestReadBesideFault(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	d, img, b := openedImage(t, r, 2*windowBytes, 2*windowBytes)
	d.Spoil(imagePath, 1000, 1)
	for _, tc := range []struct {
		off, n int
		want   error
	}{
		{0, 1000, nil}, {1001, 64, nil}, {990, 20, syscall.EIO}, {windowBytes - 10, 20, nil},
		{500, 501, syscall.EIO}, {windowBytes + 7, 100, nil}, {1001, windowBytes, nil},
	} {
		got := make([]byte, tc.n)
		err := img.read(got, int64(tc.off), int64(len(b)))
		if !errors.Is(err, tc.want) || err == nil && !bytes.Equal(got, b[tc.off:tc.off+tc.n]) {
			t.Errorf("read %d bytes at %d = %v, want %v", tc.n, tc.off, err, tc.want)
		}
	}
}

// Pieces that are gathered end up where they should, nothing else changes, and no page is written
// that has none of them.
func TestBatch(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 5))
		n := 1 + r.IntN(1<<18)
		after := n + r.IntN(1<<16)
		d, img, model := openedImage(t, r, n, after)
		size := n
		if r.IntN(2) == 0 {
			// Grown, as before the first write; or with the length of before, as in a recovery.
			if err := img.resize(int64(after)); err != nil {
				t.Fatal(err)
			}
			size = after
		}
		want := sliced(model, 0, int64(size))
		fault(t, d, "")
		b := &batch{img: img, size: int64(size)}
		at := 0
		pages := map[int64]bool{}
		for range 40 {
			if r.IntN(10) == 0 {
				at = r.IntN(after) // not in order
			}
			p := bytes.Repeat([]byte{byte(r.Uint32())}, 1+r.IntN(1<<r.IntN(15)))
			if at+len(p) > after || at >= size {
				at = 0
				continue
			}
			if err := b.put(p, int64(at)); err != nil {
				t.Fatal(err)
			}
			if end := at + len(p); end > len(want) {
				want = sliced(want, 0, int64(end))
			}
			copy(want[at:], p)
			for page := at / pageBytes; page <= (at+len(p)-1)/pageBytes; page++ {
				pages[int64(page)] = true
			}
			at += len(p) + r.IntN(1<<r.IntN(15))
		}
		if err := b.flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, content(t, d)) {
			t.Fatalf("seed %d: the image is not what was written to it", seed)
		}
		for _, op := range d.Ops() {
			var off, n int64
			if _, err := fmt.Sscanf(op, "write "+imagePath+" 0x%x+%d", &off, &n); err != nil {
				t.Fatalf("%q: %v", op, err)
			}
			for page := off / pageBytes; page <= (off+n-1)/pageBytes; page++ {
				if !pages[page] {
					t.Fatalf("seed %d: %s writes page %d, in which nothing changes", seed, op, page)
				}
			}
			if n > batchBytes {
				t.Fatalf("seed %d: %s is more than %d", seed, op, batchBytes)
			}
		}
	}
}

// What lies between two pieces and cannot be read is no reason not to write them.
func TestBatchAcrossFault(t *testing.T) {
	d, img, b := openedImage(t, rand.New(rand.NewPCG(6, 7)), 2*pageBytes, 2*pageBytes)
	d.Spoil(imagePath, 300, 5)
	fault(t, d, "")
	bt := &batch{img: img, size: int64(len(b))}
	for _, off := range []int64{100, 200, 400, 500} {
		if err := bt.put([]byte("piece"), off); err != nil {
			t.Fatal(err)
		}
		copy(b[off:], "piece")
	}
	if err := bt.flush(); err != nil {
		t.Fatal(err)
	}
	want := []string{"write " + imagePath + " 0x64+105", "write " + imagePath + " 0x190+105"}
	if diff := cmp.Diff(want, d.Ops()); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
	if !bytes.Equal(b, content(t, d)) {
		t.Error("the image is not what was written to it")
	}
}

// Sectors that cannot be read, beside all that a change touches, keep it neither from being made nor
// from being taken back.
func TestFaultsBesideTheChange(t *testing.T) {
	spoiled := func(d *cut.Disk) {
		for _, off := range []int64{600, countAt - 100, 3 * pageBytes, 5*pageBytes + 2048, 7*pageBytes + 3000} {
			d.Spoil(imagePath, off, 50)
		}
	}
	d, p, before, after := world(t)
	p.Relies = p.Relies[2:3]
	spoiled(d)
	if _, err := Apply(t.Context(), p, options(d)); err != nil {
		t.Errorf("Apply beside sectors that cannot be read = %v", err)
	}
	if got := content(t, d); !bytes.Equal(got, after) {
		t.Error("Apply did not write what it should")
	}
	if _, err := Undo(t.Context(), imagePath, "", options(d)); err != nil || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Undo = %v", err)
	}
	d, before, _ = cutAt(t, 4)
	spoiled(d)
	if _, err := Recover(t.Context(), imagePath, options(d)); err != nil || !bytes.Equal(before, content(t, d)) {
		t.Errorf("Recover = %v", err)
	}
}

func TestSeldom(t *testing.T) {
	var got []string
	tell := seldom(func(what string, done, total int64) {
		got = append(got, fmt.Sprintf("%s %d/%d", what, done, total))
	})
	for range 2 { // the second time is told as the first
		for done := int64(100 << 10); done <= 1000<<10; done += 100 << 10 {
			tell("a", done>>10<<10, 1000<<10)
		}
	}
	tell("b", 1, 10)
	tell("b", 2, 10)
	tell("b", 10, 10)
	tell("c", 0, 0)
	var want []string
	for range 2 {
		for _, n := range []int{100, 400, 700, 1000} {
			want = append(want, fmt.Sprintf("a %d/%d", n<<10, 1000<<10))
		}
	}
	want = append(want, "b 1/10", "b 10/10", "c 0/0")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// closer is a file whose closing hangs, as it may on a network file system.
type closer struct{ closing, answer chan struct{} }

func (c *closer) Close() error {
	close(c.closing)
	<-c.answer
	return nil
}

func TestCloseOfStorageGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := &patient{ctx: ctx, grace: 1}
	c := &closer{closing: make(chan struct{}), answer: make(chan struct{})}
	defer close(c.answer)
	if err := closeIn(p, c); !errors.Is(err, errHung) || !p.hung {
		t.Errorf("closing storage that hangs = %v, want %v", err, errHung)
	}
	<-c.closing
	c.closing = make(chan struct{})
	if err := closeIn(p, c); !errors.Is(err, errHung) {
		t.Errorf("closing storage that was given up = %v, want %v", err, errHung)
	}
	<-c.closing
}

// The list of operations has the gaps in it.
func TestGapsAreWritten(t *testing.T) {
	d, p, _, _ := world(t)
	fault(t, d, "")
	mustApply(t, d, p)
	if want := fmt.Sprintf("write %s %#x+%d", imagePath, pageBytes+8, countAt+600-pageBytes-8); !slices.Contains(d.Ops(), want) {
		t.Errorf("no %q in\n%s", want, strings.Join(d.Ops(), "\n"))
	}
}
