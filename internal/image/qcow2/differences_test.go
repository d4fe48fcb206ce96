// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

// Where a check is meant to say something else than qemu-img 7.2 does. Each of these stands in
// doc/formats/qcow2.md. Both programs look at the same file, so that a difference that goes away in
// either of them is noticed.

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// hurt breaks an image in named ways, one after the other.
func hurt(t *testing.T, path string, faults ...string) {
	t.Helper()
	for _, name := range faults {
		i := slices.IndexFunc(lab.Faults(), func(f lab.Fault) bool { return f.Name == name })
		if i < 0 {
			t.Fatalf("the lab has no fault %q", name)
		}
		if _, err := lab.Faults()[i].Apply(path, 1); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// codes are the rules of what was found, notes left out.
func codes(res *qcow2.Result) []string {
	list := []string{}
	for _, f := range res.Findings {
		if f.Severity != finding.Note && !slices.Contains(list, f.Code) {
			list = append(list, f.Code)
		}
	}
	return list
}

func TestMoreClustersThanQemuCounts(t *testing.T) {
	testenv.Need(t, "qemu-img")
	path := build(t, lab.Spec{VirtualBytes: 10 << 10, ClusterBits: 9})
	if err := os.Truncate(path, 1100<<30); err != nil {
		t.Fatal(err)
	}
	q := qemuChecks(t, path)
	if said := strings.Join(q.lines, " "); q.exit != 1 || !strings.Contains(said, "File too large") {
		t.Errorf("qemu-img check = exit %d, %q, want 1 and that the file is too large", q.exit, said)
	}
	diskio.RequireUnchanged(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file := &metered{ReaderAt: f}
	res, err := qcow2.Check(t.Context(), file, 1100<<30, qcow2.CheckOptions{DataFileBytes: -1})
	if err != nil || len(res.Findings)+len(res.Blind) > 0 || res.Counts.TotalClusters != 20 {
		t.Errorf("Check(file of 1100 GiB) = %+v, %v, want 20 clusters and nothing found", res, err)
	}
	if n := file.bytes.Load(); n > 64<<10 {
		t.Errorf("Check(file of 1100 GiB) read %d bytes, want 65536 at most: those of its tables", n)
	}
}

// Where qemu-img gives the check up, or refuses to open the image, the rest is looked at
// nevertheless: a second fault is found.
func TestBrokenPartsDoNotEndTheCheck(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for fault, code := range map[string]string{
		"bitmap-directory-wiped": "QC17", "bitmap-entry-reserved": "QC17", "bitmap-entry-misaligned": "QC17",
		"snapshot-offset": "QC16",
	} {
		t.Run(fault, func(t *testing.T) {
			path := build(t, lab.Spec{VirtualBytes: 8 << 20, ClusterBits: 12, Snapshots: 1, Bitmaps: 1})
			hurt(t, path, "refcount-metadata-zero", fault)
			diskio.RequireUnchanged(t, path)
			if q := qemuChecks(t, path); q.exit != 1 || q.json && q.counts.AllocatedClusters > 0 && q.counts.TotalClusters > 0 {
				t.Errorf("qemu-img check = exit %d, %+v, %q, want that it gives up", q.exit, q.counts, q.lines)
			}
			res, err := check(t, path)
			if err != nil {
				t.Fatalf("Check() = %v, want a result", err)
			}
			if got := codes(res); !slices.Contains(got, code) || !slices.Contains(got, "QC04") {
				t.Errorf("Check() found %v, want %s and QC04 among them", got, code)
			}
		})
	}
}

func TestLostMappingIsNoLeak(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for _, fault := range []string{"l1-entry-wiped", "l2-wiped"} {
		path := build(t, lab.Spec{VirtualBytes: 2 << 30})
		hurt(t, path, fault)
		if q := qemuChecks(t, path); q.exit != 3 || q.counts.Corruptions > 0 {
			t.Errorf("%s: qemu-img check = exit %d, %+v, want 3, for it sees leaks only", fault, q.exit, q.counts)
		}
		res, err := check(t, path)
		if err != nil {
			t.Fatal(err)
		}
		if got := codes(res); !slices.Equal(got, []string{"QC13"}) {
			t.Errorf("%s: Check() found %v, want the lost mapping and no leak", fault, got)
		}
	}
}

// Clusters that two guest ranges share are a fault also when the refcount was raised to fit.
func TestSharedClustersAreFoundAfterRepair(t *testing.T) {
	testenv.Need(t, "qemu-img")
	path := build(t, lab.Spec{VirtualBytes: 64 << 20, Duplicates: 5})
	if q := qemuChecks(t, path); q.exit != 0 {
		t.Errorf("qemu-img check = exit %d, %q, want 0", q.exit, q.lines)
	}
	res, err := check(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if got := codes(res); !slices.Equal(got, []string{"QC06"}) || res.Counts.Corruptions != 0 {
		t.Errorf("Check() found %v and counts %+v, want QC06 and the counts of qemu-img", got, res.Counts)
	}
}

// One overwritten table is one finding, not one for each of its entries.
func TestOverwrittenTableIsOneFinding(t *testing.T) {
	testenv.Need(t, "qemu-img")
	path := build(t, lab.Spec{VirtualBytes: 2 << 30})
	hurt(t, path, "l2-overwritten-random")
	q := qemuChecks(t, path)
	if len(q.lines) < 8192 {
		t.Errorf("qemu-img check prints %d lines, want one for each entry at least", len(q.lines))
	}
	res, err := check(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if res.Findings[0].Code != "QC12" || len(res.Findings) > 4 {
		t.Errorf("Check() = %d findings, the first %s, want at most 4, the first QC12", len(res.Findings),
			res.Findings[0].Code)
	}
	if res.Counts != q.counts {
		t.Errorf("Check() counts %+v, want %+v as qemu-img", res.Counts, q.counts)
	}
}
