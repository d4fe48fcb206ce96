// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestMounted has the kernel write the file systems: many files of all sizes, of which some are
// removed again, so that old blocks stay behind and trees are split and moved.
func TestMounted(t *testing.T) {
	testenv.NeedLong(t)
	testenv.NeedRoot(t)
	for _, tc := range []struct {
		name, mkfs string
		proved     int // percent of pieces of 512 MiB
	}{
		{"ext4", "mkfs.ext4 -q -F DISK", 25},
		{"xfs", "mkfs.xfs -q -f DISK", 30},
		{"btrfs", "mkfs.btrfs -q -f DISK", 5}, // its data has nothing that tells a place
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 16*gib)
			w.mkfs(t, tc.mkfs)
			fill(t, w, tc.name)
			for _, span := range []int64{512 * mib, 128 * mib, 32 * mib} {
				s := w.prove(t, span)
				t.Logf("span %d MiB: %s", span/mib, s)
				if span == 512*mib && s.proved*100 < tc.proved*s.pieces {
					t.Errorf("span %d MiB: %s, want %d %%", span/mib, s, tc.proved)
				}
			}
		})
	}
}

// fill mounts the file system in w, writes some gigabytes in rounds, and takes half away again.
func fill(t *testing.T, w *world, kind string) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", "-t", kind, w.Name(), dir).CombinedOutput(); err != nil {
		testenv.Lacks(t, fmt.Sprintf("a kernel that mounts %s (%s)", kind, out))
	}
	defer func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	}()
	x := uint64(88172645463325252)
	next := func(n uint64) uint64 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		return x % n
	}
	content := make([]byte, 4*mib)
	for i := range content {
		content[i] = byte(next(256))
	}
	for round := range 4 {
		for d := range 150 {
			sub := filepath.Join(dir, fmt.Sprintf("round%d", round), fmt.Sprintf("dir%d", d%15), fmt.Sprintf("sub%d", d))
			if err := os.MkdirAll(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			for f := range 40 {
				size := next(64 * uint64(kib))
				if f == 0 {
					size = next(uint64(4 * mib))
				}
				name := filepath.Join(sub, strings.Repeat("n", int(1+next(60)))+fmt.Sprint(f))
				if err := os.WriteFile(name, content[:size], 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		big := filepath.Join(dir, fmt.Sprintf("big%d", round))
		for range 150 {
			f, err := os.OpenFile(big, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(content); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		run(t, "", "sync", "-f", dir)
		if round%2 == 0 {
			if err := os.RemoveAll(filepath.Join(dir, fmt.Sprintf("round%d", round))); err != nil {
				t.Fatal(err)
			}
		}
	}
}
