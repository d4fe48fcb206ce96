// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestContent lets qemu read what the guest wrote: every allocated cluster holds its own content,
// also compressed and after snapshots, and everything else zeros.
func TestContent(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for name, s := range map[string]Spec{
		"plain":          {},
		"random":         {Layout: Random, Fill: .5, RefcountBits: 2},
		"zlib":           {Compressed: .6, Fill: .7},
		"zlib 512":       {Compressed: .6, ClusterBits: 9},
		"zlib 2M":        {Compressed: .5, ClusterBits: 21, VirtualBytes: 64 << 20},
		"zstd":           {Compressed: .6, Fill: .7, Zstd: true},
		"zstd 4k random": {Compressed: .5, Zstd: true, ClusterBits: 12, Layout: Runs(3)},
		"subclusters":    {ExtendedL2: true, Compressed: .3},
		"snapshots":      {Snapshots: 3, Rewrite: .2, Fill: .6, Compressed: .2},
		"data file":      {DataFile: "a.data", Fill: .5},
		"odd end":        {VirtualBytes: 5<<20 + 512, Compressed: .3},
	} {
		t.Run(name, func(t *testing.T) {
			s.Data, s.Seed = true, 42
			if s.VirtualBytes == 0 {
				s.VirtualBytes = 6 << 20
			}
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "a.raw")
			info, err := Build(path, s)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("qemu-img", "convert", "-O", "raw", path, raw)
			cmd.Dir = dir // where qemu looks for a data file
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("qemu-img convert: %v: %s", err, out)
			}
			if got := contentClusters(t, raw, s); got != info.Allocated {
				t.Errorf("%d clusters hold their content, want %d", got, info.Allocated)
			}
		})
	}
}

// contentClusters counts the clusters that hold their content; any other must be zeros.
func contentClusters(t *testing.T, raw string, s Spec) (n int64) {
	t.Helper()
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	s, err = s.normal()
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, s.clusterSize())
	for off := 0; off < len(got); off += len(want) {
		c := got[off:min(off+len(want), len(got))]
		s.Content(want, int64(off))
		switch {
		case bytes.Equal(c, want[:len(c)]):
			n++
		case !bytes.Equal(c, make([]byte, len(c))):
			t.Fatalf("the cluster at %#x holds something else", off)
		}
	}
	return n
}
