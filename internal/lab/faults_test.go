// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// unseen are the faults that qemu-img check 7.2 says nothing about.
var unseen = map[string]bool{
	"header-corrupt-bit": true,
	"header-dirty-bit":   true,
	"bitmap-in-use":      true,
	"data-file-short":    true,
}

func seeds(short int) int {
	if os.Getenv("SHISA_LONG") != "" {
		return 20 * short
	}
	return short
}

// TestRandomSpec: what is drawn is sound.
func TestRandomSpec(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for seed := range uint64(seeds(30)) {
		checkBuilt(t, RandomSpec(seed))
	}
}

// TestFaults applies every fault to random images and shows that something is broken then, that
// the list of changes is the whole truth, and that undoing them heals the image.
func TestFaults(t *testing.T) {
	testenv.Need(t, "qemu-img")
	specs := []Spec{
		{VirtualBytes: 40 << 20, Snapshots: 2, Rewrite: .1, Bitmaps: 2, Front: true, Fill: .5},
		{VirtualBytes: 40 << 20, ExtendedL2: true, Partial: .5, Compressed: .2, Fill: .8},
		{VirtualBytes: 1 << 20, DataFile: "x.data", Fill: .5},
		{VirtualBytes: 300 << 10, ClusterBits: 9, Front: true, Fill: .5, RefcountBits: 64},
	}
	for seed := range uint64(seeds(4)) {
		specs = append(specs, RandomSpec(1000+seed))
	}
	applied := map[string]int{}
	for i, s := range specs {
		for _, f := range Faults() {
			if applied[f.Name] >= seeds(2) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", f.Name, i), func(t *testing.T) {
				if applyFault(t, f, s, uint64(i)) {
					applied[f.Name]++
				}
			})
		}
	}
	for _, f := range Faults() {
		if applied[f.Name] == 0 && f.Name != "encryption-header-past-end" {
			t.Errorf("%s fitted no image", f.Name)
		}
	}
}

func applyFault(t *testing.T, f Fault, s Spec, seed uint64) bool {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	if err := Write(path, s); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hit, err := f.Apply(path, seed)
	after, rerr := os.ReadFile(path)
	if rerr != nil {
		t.Fatal(rerr)
	}
	if errors.Is(err, ErrNotApplicable) {
		if !bytes.Equal(before, after) {
			t.Errorf("%s changed an image that it does not fit", f.Name)
		}
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(hit.Want) == 0 {
		t.Errorf("%s wants no rule", f.Name)
	}
	for _, r := range append(hit.Host, hit.Guest...) {
		if r.Length <= 0 || r.Offset < 0 {
			t.Errorf("%s hit %+v", f.Name, r)
		}
	}
	if broken := qemuFails(path); broken == unseen[f.Name] {
		t.Errorf("%s: qemu-img check fails = %v, want %v\nimage %+v\nhit %v, guest %v", f.Name,
			broken, !broken, s, hit.Host, hit.Guest)
	}
	for i := len(hit.Changes) - 1; i >= 0; i-- {
		copy(after[hit.Changes[i].Offset:], hit.Changes[i].Old)
	}
	if n := min(len(before), len(after)); !bytes.Equal(before[:n], after[:n]) {
		t.Errorf("%s: the image differs elsewhere than in its list of changes", f.Name)
	}
	return true
}

func qemuFails(path string) bool {
	cmd := exec.Command("qemu-img", "check", "-f", "qcow2", filepath.Base(path))
	cmd.Dir = filepath.Dir(path)
	return cmd.Run() != nil
}

func TestFaultsAreNamed(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Faults() {
		if seen[f.Name] || f.Text == "" {
			t.Errorf("fault %q is named twice or has no text", f.Name)
		}
		seen[f.Name] = true
	}
	if len(seen) < 60 {
		t.Errorf("%d faults, want 60 or more", len(seen))
	}
}

func TestBreakIsRepeatable(t *testing.T) {
	var hits []Hit
	for range 2 {
		path := filepath.Join(t.TempDir(), "a.qcow2")
		if err := Write(path, RandomSpec(7)); err != nil {
			t.Fatal(err)
		}
		hit, err := Break(path, 7)
		if err != nil {
			t.Fatal(err)
		}
		hits = append(hits, hit)
	}
	if a, b := fmt.Sprint(hits[0]), fmt.Sprint(hits[1]); a != b {
		t.Errorf("Break with one seed = %v and %v", a, b)
	}
}
