// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestIntoMetadata points entries of an L2 table into their own table and into other metadata. The plan
// says what a check finds afterwards, qemu-img finds no error, and all other clusters read as before.
func TestIntoMetadata(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for _, spec := range []lab.Spec{
		{VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 3, Fill: .5, RefcountBits: 16},
		{VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 4, Fill: .5, Version: 2},
		{VirtualBytes: 4 << 20, ClusterBits: 12, Data: true, Seed: 5, Fill: .5, Snapshots: 1, Rewrite: .2},
	} {
		_, sound := build(t, spec)
		h, err := qcow2.ReadHeader(sound, int64(len(sound)))
		if err != nil {
			t.Fatal(err)
		}
		l2 := int64(word(sound, int64(h.L1Off)) & qcow2.OffsetMask)
		was := view(t, sound)
		for name, target := range map[string]int64{
			"own table": l2, "other L2": int64(word(sound, int64(h.L1Off)+8) & qcow2.OffsetMask), "L1": int64(h.L1Off),
			"refcount table": int64(h.ReftableOff), "refcount block": int64(word(sound, int64(h.ReftableOff))),
		} {
			for _, many := range []int64{1, 3, 40} {
				b := slices.Clone(sound)
				for i := range many {
					binary.BigEndian.PutUint64(b[l2+8*(i*7+3):], uint64(target)|qcow2.FlagCopied)
				}
				for _, o := range []repair.Options{{}, {Split: true}, {Only: []string{"QC02", "QC05"}}, {Reclaim: true}} {
					what := fmt.Sprintf("seed %d, %d entries into the %s, %+v", spec.Seed, many, name, o)
					p := makePlan(t, b, o)
					after := b.applied(t, p)
					if err := repair.Verify(context.Background(), after, int64(len(after)), p,
						qcow2.CheckOptions{DataFileBytes: -1}); err != nil {
						t.Errorf("%s: %v", what, err)
					}
					if len(o.Only) > 0 {
						continue
					}
					if status, text := qemuCheck(t, after); status != 0 && status != 3 {
						t.Errorf("%s: %v; qemu-img check exits with %d:\n%.600s", what, actions(p), status, text)
					}
					for i, now := range view(t, after) {
						hit := i%7 == 3 && int64(i/7) < many
						if !hit && !bytes.Equal(now, was[i]) {
							t.Errorf("%s: cluster %d of the disk reads differently", what, i)
							break
						}
					}
				}
			}
		}
	}
}
