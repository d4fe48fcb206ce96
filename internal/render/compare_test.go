// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/disk"
)

func TestCompareResults(t *testing.T) {
	for r, o := range map[CompareResult]disk.Outcome{
		ResultIdentical: disk.Identical, ResultContentDiffers: disk.ContentDiffers,
		ResultAllocationDiffers: disk.AllocationDiffers, ResultSizeDiffers: disk.SizeDiffers,
	} {
		if string(r) != string(o) {
			t.Errorf("result %q, want that of disk: %q", r, o)
		}
	}
}

// twoDisks opens two images of zeros, a and another with an odd name.
func twoDisks(t *testing.T) (a, b *disk.Chain) {
	t.Helper()
	t.Chdir(t.TempDir())
	var chains []*disk.Chain
	for _, name := range []string{"a", "b\x1b"} {
		if err := os.WriteFile(name, make([]byte, 4096), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := disk.Open(t.Context(), name, disk.Options{Format: "raw"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		chains = append(chains, c)
	}
	return chains[0], chains[1]
}

// A disk that was written to meanwhile is neither the same nor another.
func TestCompareChanged(t *testing.T) {
	a, b := twoDisks(t)
	if err := os.WriteFile("a", make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, r := range []disk.Comparison{{Outcome: disk.Identical, Offset: -1}, {Outcome: disk.ContentDiffers}} {
		d := NewCompareDocument(a, b, false, r, nil)
		if want := []int{5}; d.Result != ResultCannotTell || !cmp.Equal(d.Status, want) || !cmp.Equal(d.Changed, []string{"a"}) {
			t.Errorf("NewCompareDocument(%s, changed) = %s, status %v, changed %v, want %v", r.Outcome, d.Result, d.Status, d.Changed, want)
		}
	}
}

func TestCompare(t *testing.T) {
	a, b := twoDisks(t)
	tests := []struct {
		name   string
		r      disk.Comparison
		err    error
		status []int
		want   string
	}{
		{"identical", disk.Comparison{Outcome: disk.Identical, Offset: -1, Passed: true}, nil, []int{0},
			"identical: a and $'b\\x1b' hold the same\n"},
		{"content", disk.Comparison{Outcome: disk.ContentDiffers, Offset: 5 << 30}, nil, []int{3},
			"different: the first difference is at 5 GiB (0x140000000)\n"},
		{"behind the end", disk.Comparison{Outcome: disk.ContentDiffers, Offset: 1024, Passed: true}, nil, []int{3},
			"different: the first difference is at 1 KiB (0x400)\n" +
				"  the part that both have is the same; a has 4 KiB (4096 bytes), $'b\\x1b' has 4 KiB (4096 bytes)\n"},
		{"allocation", disk.Comparison{Outcome: disk.AllocationDiffers, Offset: 0}, nil, []int{3},
			"different: the range at 0 is not stored in the same way\n" +
				"  all before it holds the same; without --strict only the content counts\n"},
		{"size", disk.Comparison{Outcome: disk.SizeDiffers, Offset: -1}, nil, []int{3},
			"different: a has 4 KiB (4096 bytes), $'b\\x1b' has 4 KiB (4096 bytes)\n" +
				"  without --strict the content would have been compared\n"},
		{"unreadable", disk.Comparison{}, &disk.CompareError{Disk: 1, Path: "b\x1b", Offset: 512, Err: errors.New("input/output error")},
			[]int{4}, "cannot tell: read b\\x1b at 0x200: input/output error\n"},
	}
	for _, tt := range tests {
		d := NewCompareDocument(a, b, false, tt.r, tt.err)
		var out bytes.Buffer
		if err := Compare(&out, d, Style{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, out.String()); diff != "" || !cmp.Equal(d.Status, tt.status) {
			t.Errorf("%s: Compare() has status %v, want %v, and text (-want +got):\n%s", tt.name, d.Status, tt.status, diff)
		}
	}
}
