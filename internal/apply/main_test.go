// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab/cut"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/vault"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	imagePath = "/img/a.img"
	stateDir  = "/state"
)

// change makes up a plan with all phases, growth with a gap, a write across the old end, and a fence,
// and gives the image before and after it.
func makeUp(t testing.TB, dev, ino uint64, path string) (p *plan.Plan, before, after []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	before = make([]byte, 8*512+100)
	for i := range before {
		before[i] = byte(r.Uint32())
	}
	after = append(slices.Clone(before), make([]byte, 4096)...)
	p = &plan.Plan{
		Schema: plan.Schema, ID: "00112233445566778899aabbccddeeff", Created: time.Unix(1, 0).UTC(),
		Tool: "test", SizeAfterBytes: int64(len(after)),
		Object: plan.Object{Path: path, Format: "raw", Dev: dev, Ino: ino, SizeBytes: int64(len(before))},
		Steps:  []plan.Step{{Code: "QC02", Action: "raise", Summary: "raise", Count: 1}},
		Hurt: []plan.Hurt{{Code: "QC06", Kind: "mixed", Summary: "two owners",
			Guest: []finding.Range{{Offset: 65536, Length: 65536}}}},
		Fence: &plan.Fence{Offset: 72, Old: slices.Clone(before[72:80]), New: []byte("FENCED!!")},
	}
	write := func(phase plan.Phase, off, n int) {
		fresh := make([]byte, n)
		for i := range fresh {
			fresh[i] = byte(r.Uint32())
		}
		w := plan.Write{Phase: phase, Offset: int64(off), New: fresh}
		if off < len(before) {
			w.Old = slices.Clone(before[off:min(off+n, len(before))])
		}
		p.Writes = append(p.Writes, w)
		copy(after[off:], fresh)
	}
	write(plan.New, len(before)+2000, 700)
	write(plan.Count, 512, 6)
	write(plan.Count, 700, 600)
	write(plan.Point, 8*512, 300)
	write(plan.Lower, 5*512, 512)
	write(plan.Switch, 8, 100)
	for _, rel := range [][2]int64{{0, 600}, {1024, 3072}, {8 * 512, 1024}} {
		d, err := plan.DigestOf(bytes.NewReader(before), int64(len(before)), rel[0], rel[1], make([]byte, 100))
		if err != nil {
			t.Fatal(err)
		}
		p.Relies = append(p.Relies, d)
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p, before, after
}

// world is a disk with an image and the plan of a change of it.
func world(t testing.TB) (d *cut.Disk, p *plan.Plan, before, after []byte) {
	t.Helper()
	return worldUntil(t, t.Context())
}

// worldUntil is world whose disk lets operations hang until ctx ends.
func worldUntil(t testing.TB, ctx context.Context) (*cut.Disk, *plan.Plan, []byte, []byte) {
	t.Helper()
	d := cut.New(ctx)
	p, before, after := makeUp(t, 1, 1, imagePath)
	d.Put(imagePath, before)
	return d, p, before, after
}

func options(d *cut.Disk) Options {
	return Options{Disk: d, StateDir: stateDir, Now: func() time.Time { return time.Unix(1000, 0) }}
}

// fault sets the faults of a disk.
func fault(t testing.TB, d *cut.Disk, script string) {
	t.Helper()
	if err := d.Fault(script); err != nil {
		t.Fatal(err)
	}
}

// content is the image on a disk.
func content(t testing.TB, d *cut.Disk) []byte {
	t.Helper()
	b, ok := d.Get(imagePath)
	if !ok {
		t.Fatalf("no image; there is %q", d.Paths())
	}
	return b
}

// opsOf counts the operations of fn on a disk.
func opsOf(t testing.TB, d *cut.Disk, fn func()) int {
	t.Helper()
	fault(t, d, "")
	fn()
	return len(d.Ops())
}

// mustApply carries out a plan.
func mustApply(t testing.TB, d *cut.Disk, p *plan.Plan) *vault.Receipt {
	t.Helper()
	r, err := Apply(t.Context(), p, options(d))
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return r
}

// settled holds that an image is whole, that nothing is left to recover, and that another recovery
// does nothing.
func settled(t testing.TB, d *cut.Disk, what string, want ...[]byte) {
	t.Helper()
	got := content(t, d)
	if !slices.ContainsFunc(want, func(w []byte) bool { return bytes.Equal(w, got) }) {
		t.Errorf("%s: the image is none of the %d that it may be", what, len(want))
	}
	fault(t, d, "")
	out, err := Recover(t.Context(), imagePath, options(d))
	if err != nil || len(out) > 0 || len(d.Ops()) > 0 {
		t.Errorf("%s: another Recover = %+v, %v, and does %q", what, out, err, d.Ops())
	}
	if out, err := Recover(t.Context(), "", options(d)); err != nil || len(out) > 0 {
		t.Errorf("%s: Recover of all receipts = %+v, %v", what, out, err)
	}
}

// clone gives a copy of a disk on which all is sure.
func clone(t testing.TB, d *cut.Disk) *cut.Disk {
	t.Helper()
	for s := range d.Survivors(0) {
		return s
	}
	t.Fatal("no survivor")
	return nil
}

// isNew is a Verify that wants an image.
func isNew(want []byte) func(context.Context, io.ReaderAt, int64) error {
	return func(_ context.Context, r io.ReaderAt, size int64) error {
		got := make([]byte, size)
		if _, err := r.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("it is another image")
		}
		return nil
	}
}
