// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// largeBytes is the size of a disk from which on a few rounds leave it out.
const largeBytes = 8 << 20

// broken is a random image with random faults.
type broken struct {
	seed   uint64
	spec   lab.Spec
	faults []string
	sound  memory
	image  memory
}

// breakOne makes an image from a seed and breaks it in one to five ways.
func breakOne(t *testing.T, seed uint64) (broken, bool) {
	t.Helper()
	s := lab.RandomSpec(seed)
	s.VirtualBytes, s.Data = min(s.VirtualBytes, 96<<20), true
	path, sound := build(t, s)
	x := broken{seed: seed, spec: s, sound: sound, image: slices.Clone(sound)}
	r := rand.New(rand.NewPCG(seed, 0xb40))
	cut := int64(-1)
	for range 1 + r.IntN(5) {
		// The lab breaks sound images only, so each fault is made in one and carried over.
		if err := os.WriteFile(path, sound, 0o600); err != nil {
			t.Fatal(err)
		}
		hit, err := lab.Break(path, r.Uint64())
		if errors.Is(err, lab.ErrNotApplicable) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		x.faults = append(x.faults, hit.Fault)
		for _, c := range hit.Changes {
			if n := c.Offset + int64(len(c.New)) - int64(len(x.image)); n > 0 {
				x.image = append(x.image, make([]byte, n)...)
			}
			copy(x.image[c.Offset:], c.New)
		}
		if hit.Cut >= 0 && (cut < 0 || hit.Cut < cut) {
			cut = hit.Cut
		}
	}
	if cut >= 0 {
		x.image = x.image[:min(cut, int64(len(x.image)))]
	}
	return x, len(x.faults) > 0
}

// TestRandomFaults repairs random images with random faults. Afterwards our check and qemu-img's agree that
// nothing is wrong, or the plan says what remains; the guest reads what it read before, or zeros
// where the plan says that something is lost; and the old bytes in the plan give the image back.
func TestRandomFaults(t *testing.T) {
	testenv.Need(t, "qemu-img")
	const bare = 586 // entries past the end of the file, in a table that nothing is written into
	var mu sync.Mutex
	outcome := map[string]int{}
	t.Cleanup(func() { t.Logf("outcomes: %v", outcome) })
	one := func(seed uint64) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { // each gives its files back at its end
			t.Parallel()
			if x, ok := breakOne(t, seed); ok {
				how := repairOne(t, x)
				mu.Lock()
				defer mu.Unlock()
				outcome[how]++
			}
		})
	}
	seeds := uint64(testenv.Rounds(200, 1000, 3000))
	few := seeds <= bare
	for seed := range seeds {
		if !few || lab.RandomSpec(seed).VirtualBytes <= largeBytes {
			one(seed)
		}
	}
	if few {
		one(bare)
	}
}

func repairOne(t *testing.T, x broken) string {
	t.Helper()
	p, err := repair.Plan(context.Background(), x.image, int64(len(x.image)),
		repair.Options{Check: qcow2.CheckOptions{DataFileBytes: -1, MaxRanges: -1}})
	if err != nil {
		if _, herr := qcow2.ReadHeader(x.image, int64(len(x.image))); herr == nil {
			t.Errorf("seed %d %v: %v", x.seed, x.faults, err)
		}
		return "header"
	}
	p.Object.Path = "/image.qcow2"
	if err := p.Validate(); err != nil {
		t.Errorf("seed %d %v: %v", x.seed, x.faults, err)
	}
	after := x.image.applied(t, p)
	if back := after.undone(p); !bytes.Equal(back, x.image) {
		t.Errorf("seed %d %v: the old bytes of the plan do not give the image back", x.seed, x.faults)
	}
	if err := repair.Verify(context.Background(), after, int64(len(after)), p,
		qcow2.CheckOptions{DataFileBytes: -1}); err != nil {
		t.Errorf("seed %d %v: %v", x.seed, x.faults, err)
	}
	now := checked(t, after)
	if b, n := p.Before.Corruptions+p.Before.CheckErrors, now.Counts.Corruptions+now.Counts.CheckErrors; n > b && !headless(x.image) {
		t.Errorf("seed %d %v: %d errors, %d before", x.seed, x.faults, n, b)
	}
	lost := comparable(t, x, p, after)
	status, text := qemuCheck(t, after)
	switch {
	case p.After.Verdict == finding.Clean && status != 0:
		t.Errorf("seed %d %v: clean, but qemu-img check exits with %d:\n%.600s", x.seed, x.faults, status, text)
	case p.After.Verdict == finding.Clean && lost:
		return "clean, with data remembered as hurt"
	case p.After.Verdict == finding.Clean:
		return "clean"
	case len(p.Remains)+len(p.Blind) == 0:
		t.Errorf("seed %d %v: %s, and nothing remains", x.seed, x.faults, p.After.Verdict)
	}
	return "something remains"
}

// headless reports whether nothing could be checked before.
func headless(b memory) bool {
	_, err := qcow2.ReadHeader(b, int64(len(b)))
	return err != nil
}

// undone gives the image back from the old bytes of a plan.
func (b memory) undone(p *plan.Plan) memory {
	out := append(memory(nil), b...)
	for _, w := range p.Writes {
		copy(out[w.Offset:], w.Old)
	}
	return out[:p.Object.SizeBytes]
}

// comparable holds what the guest reads after a repair against what it read before. A cluster that
// could be read must read the same, unless the plan says that its range is hurt or given a new
// mapping.
func comparable(t *testing.T, x broken, p *plan.Plan, after memory) (lost bool) {
	t.Helper()
	was, is := view(t, x.image), view(t, after)
	cs := int64(1) << x.spec.ClusterBits
	if x.spec.ClusterBits == 0 {
		cs = 1 << 16
	}
	told := func(off int64) bool {
		for _, h := range p.Hurt {
			for _, r := range h.Guest {
				if off < r.End() && r.Offset < off+cs {
					return true
				}
			}
		}
		for _, s := range p.Steps {
			if s.Action != "relink" && s.Action != "clear" {
				continue
			}
			for _, r := range s.Guest {
				if off < r.End() && r.Offset < off+cs {
					return true
				}
			}
		}
		return false
	}
	for i := range was {
		off := int64(i) * cs
		if was[i] == nil || i >= len(is) || is[i] != nil && bytes.Equal(was[i], is[i]) {
			continue
		}
		if !told(off) {
			t.Errorf("seed %d %v: the guest reads something else at %#x, and nothing was said", x.seed, x.faults, off)
			break
		}
		lost = true
	}
	return lost || len(p.Hurt) > 0
}

// TestRandomL1 is TestRandomFaults for L1 tables that are overwritten as a whole or in part.
func TestRandomL1(t *testing.T) {
	testenv.Need(t, "qemu-img")
	outcome := map[string]int{}
	seeds := uint64(testenv.Rounds(16, 60, 300))
	for seed := range seeds {
		s := lab.RandomSpec(seed)
		if seeds == 16 && s.VirtualBytes > largeBytes {
			continue
		}
		s.VirtualBytes, s.Data = min(s.VirtualBytes, 64<<20), true
		_, sound := build(t, s)
		h, err := qcow2.ReadHeader(sound, int64(len(sound)))
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(seed, 0x11))
		x := broken{seed: seed, spec: s, faults: []string{"L1 table"}, sound: sound, image: slices.Clone(sound)}
		n := 8 * h.L1Entries
		if r.IntN(3) == 0 {
			n = min(n, plan.SectorBytes)
		}
		table := x.image[h.L1Off : int64(h.L1Off)+n]
		switch r.IntN(4) {
		case 0:
			clear(table)
		case 1:
			for i := range table {
				table[i] = byte(r.Uint32())
			}
		case 2:
			copy(table, bytes.Repeat([]byte("some text\n"), len(table)))
		case 3: // refcounts
			copy(table, bytes.Repeat([]byte{0, 1}, len(table)))
		}
		outcome[repairOne(t, x)]++
	}
	t.Logf("outcomes: %v", outcome)
}
