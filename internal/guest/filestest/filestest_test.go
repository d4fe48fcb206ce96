// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"maps"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestPopulate fills real file systems: what is made everywhere must be possible everywhere, and
// one that differs in a single file must be told.
func TestPopulate(t *testing.T) {
	for _, tc := range []struct {
		kind string
		mkfs []string
		fill Fill
	}{
		{"ext4", []string{"mkfs.ext4", "-q", "-F", "DISK"}, Fill{ACLs: true}},
		{"xfs", []string{"mkfs.xfs", "-q", "DISK"}, Fill{ACLs: true, Reflink: true}},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			dir, _ := Mount(t, Make(t, t.TempDir(), 1<<30, tc.mkfs...), tc.kind)
			Populate(t, dir, tc.fill)
			tree := ReadMounted(t, dir)
			if len(tree) < 2500 {
				t.Errorf("%d names, want thousands", len(tree))
			}
			other := maps.Clone(tree)
			delete(other, "/deep/level0")
			n := other["/links/many"]
			n.Stat.Mode ^= 1
			other["/links/many"] = n
			n = other["/sizes/4096"]
			n.Content = "other"
			other["/sizes/4096"] = n
			n = other["/attributes/many"]
			n.Xattrs = nil
			other["/attributes/many"] = n
			if d := Differences(other, tree, Loose{}); len(d) != 4 {
				t.Errorf("differences are %q, want 4", d)
			}
		})
	}
}

// TestCrash takes copies of a disk in use: each holds something, and differs from the one before.
func TestCrash(t *testing.T) {
	last := Tree{}
	mkfs := []string{"mkfs.ext4", "-q", "-F", "DISK"}
	Crash(t, "ext4", 128<<20, mkfs, 3, 1, func(copyOfDisk string, kernel Tree) {
		if len(kernel) < 3 || len(Differences(kernel, last, Loose{})) == 0 {
			t.Errorf("%s: %d names, want some and others than before", copyOfDisk, len(kernel))
		}
		last = kernel
	})
}
