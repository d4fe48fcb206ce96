// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/lab/cutfs"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestAfterKilledCheck repairs what qemu-img check -r all leaves when the power is cut at one of its
// writes, which may be worse than what it began with. The guest reads what it read before.
func TestAfterKilledCheck(t *testing.T) {
	testenv.Need(t, "qemu-img")
	testenv.NeedRoot(t)
	_, sound := build(t, lab.Spec{VirtualBytes: 3 << 20, ClusterBits: 12, Data: true, Seed: 7})
	h, err := qcow2.ReadHeader(sound, int64(len(sound)))
	if err != nil {
		t.Fatal(err)
	}
	was := view(t, sound)
	broken := append(memory(nil), sound...)
	binary.BigEndian.PutUint64(broken[h.ReftableOff:], 0)
	world, mount := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(world, "a.qcow2"), broken, 0o600); err != nil {
		t.Fatal(err)
	}
	tree, err := cutfs.Load(world)
	if err != nil {
		t.Fatal(err)
	}
	states, mended := 0, 0
	for k := 1; ; k++ {
		fs, err := cutfs.Mount(mount, tree)
		if errors.Is(err, cutfs.ErrUnavailable) {
			testenv.Lacks(t, "a FUSE directory: "+err.Error())
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		fs.CutAt(k)
		// How it ends is not what is asked here: the power is cut.
		_ = fs.Do(func() error {
			return exec.Command("qemu-img", "check", "-q", "-r", "all", filepath.Join(mount, "a.qcow2")).Run()
		})
		if err := fs.Unmount(); err != nil {
			t.Fatal(err)
		}
		if !fs.Cut() {
			break
		}
		for _, m := range []cutfs.Mode{cutfs.None, cutfs.All, cutfs.Random} {
			left := t.TempDir()
			if err := fs.Survivors(m, uint64(k)).WriteTo(left); err != nil {
				t.Fatal(err)
			}
			b := load(t, filepath.Join(left, "a.qcow2"))
			states++
			p := makePlan(t, b, repair.Options{})
			after := b.applied(t, p)
			for i, now := range view(t, after) {
				if !bytes.Equal(now, was[i]) {
					t.Fatalf("cut at %d, %v survives: cluster %d of the disk reads differently", k, m, i)
				}
			}
			if status, text := qemuCheck(t, after); status != 0 && status != 3 {
				t.Errorf("cut at %d, %v survives: qemu-img check exits with %d:\n%.500s", k, m, status, text)
			}
			if p.After.Corruptions == 0 && p.After.Verdict != finding.CannotTell {
				mended++
			}
		}
	}
	t.Logf("%d of %d states mended", mended, states)
	if states == 0 || mended < states {
		t.Errorf("%d of %d states are mended", mended, states)
	}
}
