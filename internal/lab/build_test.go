// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// judge is what qemu-img check says of an image.
type judge struct {
	CheckErrors int64 `json:"check-errors"`
	Corruptions int64 `json:"corruptions"`
	Leaks       int64 `json:"leaks"`
	Allocated   int64 `json:"allocated-clusters"`
	Fragmented  int64 `json:"fragmented-clusters"`
	Compressed  int64 `json:"compressed-clusters"`
	Total       int64 `json:"total-clusters"`
	End         int64 `json:"image-end-offset"`
}

func qemuCheck(t *testing.T, path string) judge {
	t.Helper()
	cmd := exec.Command("qemu-img", "check", "-U", "--output=json", "-f", "qcow2", filepath.Base(path))
	cmd.Dir = filepath.Dir(path) // qemu looks for a data file from where it runs
	out, err := cmd.Output()
	var j judge
	if jerr := json.Unmarshal(out, &j); jerr != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("qemu-img check %s: %v\n%s", path, err, exit.Stderr)
		}
		t.Fatalf("qemu-img check %s: %v, %v", path, err, jerr)
	}
	return j
}

func wantOf(i Info) judge {
	return judge{Leaks: i.Leaks, Allocated: i.Allocated, Fragmented: i.Fragmented,
		Compressed: i.Compressed, Total: i.TotalClusters, End: i.EndOffset}
}

func checkBuilt(t *testing.T, spec Spec) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.qcow2")
	if spec.Backing != "" {
		base := filepath.Join(filepath.Dir(path), spec.Backing)
		if err := os.WriteFile(base, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	info, err := Build(path, spec)
	if err != nil {
		t.Fatalf("Build(%+v) = %v", spec, err)
	}
	if got, want := qemuCheck(t, path), wantOf(info); got != want {
		t.Errorf("qemu-img check of %+v\n got %+v\nwant %+v", spec, got, want)
	}
}

// TestBuild holds every combination that the format allows against qemu-img: by default some of
// them, with SHISA_LONG=1 all.
func TestBuild(t *testing.T) {
	testenv.Need(t, "qemu-img")
	n := 0
	for cb := 9; cb <= 21; cb++ {
		for i, rb := range []int{1, 2, 4, 8, 16, 32, 64} {
			if os.Getenv("SHISA_LONG") == "" && i != cb%7 && cb != 16 {
				continue
			}
			for kind, s := range variants(cb) {
				s.ClusterBits, s.RefcountBits = cb, rb
				s.Seed = uint64(cb*100 + rb)
				if s.VirtualBytes == 0 {
					s.VirtualBytes = 700 << cb
				}
				if _, err := s.normal(); errors.Is(err, ErrSpec) {
					continue // such as snapshots with refcounts of one bit
				}
				n++
				t.Run(fmt.Sprintf("cb=%d/rb=%d/%s", cb, rb, kind), func(t *testing.T) {
					checkBuilt(t, s)
				})
			}
		}
	}
	if n < 150 {
		t.Errorf("%d images made, want 150 or more", n)
	}
}

func variants(cb int) map[string]Spec {
	return map[string]Spec{
		"plain":   {},
		"v2":      {Version: 2, Backing: "base.raw", BackingFormat: "raw"},
		"sparse":  {Fill: .4, EmptyTables: .3, ZeroPlain: .1, ZeroAlloc: .1},
		"random":  {Layout: Random, Fill: .7, Leaks: 7},
		"runs":    {Layout: Runs(16), LeakPercent: 1},
		"leaks":   {Leaks: 4, TailLeaks: 3},
		"shared":  {Duplicates: 20, Layout: Random},
		"packed":  {Compressed: .5},
		"zstd":    {Compressed: .9, Zstd: true, Layout: Runs(3)},
		"snaps":   {Snapshots: 3},
		"cow":     {Snapshots: 4, Rewrite: .1, Fill: .5, Compressed: .2, Data: cb < 14},
		"cow2":    {Version: 2, Snapshots: 2, Rewrite: .3, Fill: .5, Layout: Random},
		"vm":      {Snapshots: 2, VMState: 300 << cb, Rewrite: .05},
		"ext":     {ExtendedL2: true, Partial: .5, Fill: .8, ZeroPlain: .1, ZeroAlloc: .1},
		"extpack": {ExtendedL2: true, Partial: .3, Compressed: .3, Snapshots: 1, Rewrite: .2},
		"bitmaps": {Bitmaps: 3, Fill: .2, VirtualBytes: 64 << 20},
		"data":    {DataFile: "a.data", Fill: .5, ZeroAlloc: .2, ZeroPlain: .1},
		"rawdata": {DataFile: "a.data", RawDataFile: true, TailLeaks: 2},
		"flags":   {Corrupt: true, LazyRefcounts: true, Dirty: true, FeatureNames: cb > 10, Fill: .01},
		"empty":   {Fill: -1},
		"hole":    {Fill: .1, AppendHole: 1 << 30},
	}
}

// TestWrongRefcounts: as many refcounts are wrong as are asked for, half of them too high.
func TestWrongRefcounts(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for _, bits := range []int{1, 16, 64} {
		path := filepath.Join(t.TempDir(), "a.qcow2")
		info, err := Build(path, Spec{VirtualBytes: 64 << 20, ClusterBits: 12, RefcountBits: bits, WrongPercent: 1})
		if err != nil {
			t.Fatal(err)
		}
		clusters := info.FileBytes >> 12
		if want := clusters / 100; info.Wrong < want-1 || info.Wrong > want {
			t.Errorf("%d bits: %d refcounts of %d are wrong, want %d", bits, info.Wrong, clusters, want)
		}
		high := info.Wrong / 2
		if bits == 1 {
			high = 0 // a higher one has no room
		}
		got := qemuCheck(t, path)
		if got.Leaks != high || got.Corruptions < info.Wrong-high {
			t.Errorf("%d bits: qemu-img check = %+v, want %d leaks and %d corruptions or more", bits, got,
				high, info.Wrong-high)
		}
	}
}

func TestSpecRefuses(t *testing.T) {
	for name, s := range map[string]Spec{
		"cluster bits":      {ClusterBits: 8},
		"refcount bits":     {RefcountBits: 3},
		"version":           {Version: 4},
		"size":              {VirtualBytes: 513},
		"v2 zeros":          {Version: 2, ZeroPlain: .1},
		"snapshots":         {RefcountBits: 1, Snapshots: 1},
		"wrong refcounts":   {WrongPercent: 101},
		"subclusters":       {ExtendedL2: true, ClusterBits: 12},
		"L1":                {VirtualBytes: 1 << 50, ClusterBits: 9},
		"too many shared":   {VirtualBytes: 1 << 20, Duplicates: 100},
		"data file":         {DataFile: "x", Snapshots: 1},
		"rewrite":           {Rewrite: .1},
		"refcount table":    {VirtualBytes: 64 << 30, ClusterBits: 9, RefcountBits: 64},
		"long header":       {VirtualBytes: 1 << 20, ClusterBits: 9, FeatureNames: true, Backing: "x", Fill: -1},
		"too many clusters": {VirtualBytes: 1 << 44, ClusterBits: 12},
	} {
		path := filepath.Join(t.TempDir(), "x")
		if err := Write(path, s); !errors.Is(err, ErrSpec) {
			t.Errorf("Write(%s) = %v, want ErrSpec", name, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Write(%s) left a file: %v", name, err)
		}
	}
}

// TestWriteKeepsWhatIsThere: neither the image nor its data file replace a file.
func TestWriteKeepsWhatIsThere(t *testing.T) {
	for _, name := range []string{"a.qcow2", "a.data"} {
		dir := t.TempDir()
		old := filepath.Join(dir, name)
		if err := os.WriteFile(old, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		err := Write(filepath.Join(dir, "a.qcow2"), Spec{VirtualBytes: 1 << 20, DataFile: "a.data"})
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("Write over %s = %v, want fs.ErrExist", name, err)
		}
		files, err := os.ReadDir(dir)
		if got, _ := os.ReadFile(old); string(got) != "old" || len(files) != 1 || err != nil {
			t.Errorf("after Write over %s there is %v with %q, %v", name, files, got, err)
		}
	}
}
