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
	planID    = "00112233445566778899aabbccddeeff"
)

// Places in the image of makeUp.
const (
	oldBytes = 10*pageBytes + 100 // its length before
	newBytes = oldBytes + 20000   // and after
	countAt  = pageBytes + 200    // 600 bytes are written, in the phase Count
	lowAt    = 3*pageBytes + 512  // 512 bytes are written, in the phase Lower
	watchAt  = 6*pageBytes + 100  // relied on, and not written
	freeAt   = 7*pageBytes + 2000 // neither
	gapAt    = oldBytes + 1000    // added, and not written
)

// makeUp makes up a plan with all phases, each of several writes that are far apart and some that are
// near, growth with gaps, a write across the old end, and a fence; and gives the image before and
// after it.
func makeUp(t testing.TB, dev, ino uint64, path string) (p *plan.Plan, before, after []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	before = make([]byte, oldBytes)
	for i := range before {
		before[i] = byte(r.Uint32())
	}
	after = append(slices.Clone(before), make([]byte, newBytes-oldBytes)...)
	p = &plan.Plan{
		Schema: plan.Schema, ID: planID, Created: time.Unix(1, 0).UTC(),
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
	for _, w := range []struct {
		phase  plan.Phase
		off, n int
	}{
		{plan.New, oldBytes + 2000, 700}, {plan.New, oldBytes + 2800, 40},
		{plan.New, oldBytes + 9500, 30}, {plan.New, oldBytes + 18000, 600},
		{plan.Count, pageBytes + 8, 6}, {plan.Count, countAt, 600}, {plan.Count, 4*pageBytes + 100, 24},
		{plan.Count, 7*pageBytes + 500, 24}, {plan.Count, 9*pageBytes + 1020, 10},
		{plan.Point, 2 * pageBytes, 300}, {plan.Point, 5*pageBytes + 16, 8},
		{plan.Point, 8*pageBytes - 6, 12}, {plan.Point, 10*pageBytes - 700, 12},
		{plan.Point, 10 * pageBytes, 300}, // across the old end
		{plan.Lower, lowAt, 512}, {plan.Lower, 5*pageBytes + 1000, 100}, {plan.Lower, 9*pageBytes + 600, 16},
		{plan.Switch, 8, 100},
	} {
		write(w.phase, w.off, w.n)
	}
	for _, rel := range [][2]int64{
		{0, 600}, {pageBytes, 3 * pageBytes}, {6 * pageBytes, pageBytes}, {10 * pageBytes, 1024},
	} {
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

// hurtOf counts the changes of an image that left guest data wrong which nobody put right.
func hurtOf(t testing.TB, d *cut.Disk, path string) int {
	t.Helper()
	v, err := vault.New(vault.Options{Disk: d, StateDir: stateDir})
	if err != nil {
		t.Fatal(err)
	}
	m, err := v.Memory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := m.Of(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range all {
		if c.State == vault.Committed {
			n++
		}
	}
	return n
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

// inOrder holds that an image is in a state that a change may leave at any moment: phases that are
// made whole, one that is being made, and phases that were not begun; and behind the fence, unless it
// is as before or as after. Who finds it so sees no pointer to what is not there.
func inOrder(t testing.TB, p *plan.Plan, before, after, got []byte, what string) {
	t.Helper()
	all := func(ph plan.Phase, want []byte) bool {
		for _, w := range p.Writes {
			if w.Phase == ph && !bytes.Equal(sliced(got, w.Offset, w.End()), sliced(want, w.Offset, w.End())) {
				return false
			}
		}
		return true
	}
	begun, isOld, isNew := plan.Phase(""), len(got) == len(before), len(got) == len(after)
	phases := plan.Phases()[:4]
	for i := len(phases) - 1; i >= 0; i-- {
		ph := phases[i]
		isOld, isNew = isOld && all(ph, before), isNew && all(ph, after)
		if begun != "" && !all(ph, after) {
			t.Errorf("%s: the phase %s is there before %s is whole", what, begun, ph)
		}
		if begun == "" && !all(ph, before) {
			begun = ph
		}
	}
	fenced := slices.Clone(before[:512])
	copy(fenced[p.Fence.Offset:], p.Fence.New)
	switch head := sliced(got, 0, 512); {
	case bytes.Equal(head, fenced):
	case bytes.Equal(head, before[:512]) && isOld:
	case bytes.Equal(head, after[:512]) && isNew:
	default:
		t.Errorf("%s: the image is in the middle of a change, and not behind the fence", what)
	}
}

// sliced is a range of b, with zeros for what lies past its end.
func sliced(b []byte, from, to int64) []byte {
	out := make([]byte, to-from)
	copy(out, b[min(from, int64(len(b))):])
	return out
}
