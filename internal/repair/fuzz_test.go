// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/repair"
)

// FuzzPlan plans the repair of anything. A plan keeps its own rules, its old bytes give the image
// back, the image has no more faults afterwards than before, and a check of it finds what the plan
// said that it would.
func FuzzPlan(f *testing.F) {
	for seed := range uint64(12) {
		s := lab.RandomSpec(seed)
		s.ClusterBits, s.VirtualBytes = 9+int(seed%4), 256<<10
		s.ExtendedL2, s.Partial = false, 0
		path := filepath.Join(f.TempDir(), "a.qcow2")
		if err := lab.Write(path, s); err != nil {
			continue // not every spec is possible with clusters that small
		}
		if _, err := lab.Break(path, seed); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(mustRead(f, path)), uint8(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte, how uint8) {
		if len(b) > 1<<20 {
			return
		}
		image := memory(b)
		opts := repair.Options{Reclaim: how&1 != 0, Split: how&2 != 0, ZeroLost: how&4 != 0, CompareData: how&8 != 0,
			Subclusters: []string{"", "data", "zero", ""}[how>>4&3], MemoryBytes: 64 << 20,
			Check: qcow2.CheckOptions{DataFileBytes: -1, MemoryBytes: 64 << 20, Workers: 1}}
		p, err := repair.Plan(context.Background(), image, int64(len(b)), opts)
		if err != nil {
			return
		}
		p.Object.Path = "/image"
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		after := image.applied(t, p)
		if !bytes.Equal(after.undone(p), image) {
			t.Fatal("the old bytes do not give the image back")
		}
		if err := repair.Verify(context.Background(), after, int64(len(after)), p, opts.Check); err != nil {
			t.Fatal(err)
		}
		if n, was := p.After.Corruptions+p.After.CheckErrors, p.Before.Corruptions+p.Before.CheckErrors; n > was && !headless(image) {
			t.Fatalf("%d faults, %d before", n, was)
		}
	})
}

func mustRead(f *testing.F, path string) memory {
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return b
}
