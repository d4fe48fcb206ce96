// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
)

// kindWord is what a kind looks like.
var kindWord = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)

// Entries that are wrong in the same way are one finding, whose sentence counts them and which shows
// some of them, or all.
func TestAlikeFindingsAreOne(t *testing.T) {
	img := load(t, lab.Spec{VirtualBytes: 64 << 20, ClusterBits: 9, Fill: 1})
	be := binary.BigEndian
	l1 := int64(be.Uint64(img[40:]))
	for i := range int64(7) { // L1 entries 4, 6, ... 16
		img[l1+8*(4+2*i)+7] |= 2
	}
	table := int64(be.Uint64(img[l1+8*30:]) & qcow2.OffsetMask)
	for i := range int64(9) { // L2 entries, of a table that stays one
		img[table+8*3*i+7] |= 2
	}
	for _, tt := range []struct {
		opts       qcow2.CheckOptions
		shown, cut [2]int64 // of the L1 and the L2 entries
	}{
		{qcow2.CheckOptions{MaxRanges: 3}, [2]int64{4, 4}, [2]int64{3, 5}},
		{qcow2.CheckOptions{MaxRanges: -1, AllEvidence: true}, [2]int64{7, 9}, [2]int64{}},
	} {
		tt.opts.DataFileBytes = -1
		res, err := qcow2.Check(t.Context(), bytes.NewReader(img), int64(len(img)), tt.opts)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []struct {
			kind, summary string
			count         int64
		}{
			{"l1_reserved_bits", "7 L1 entries have reserved bits set", 7},
			{"l2_reserved_bits", "L2 entries have reserved bits set", 9},
		} {
			var found []finding.Finding
			for _, f := range res.Findings {
				if f.Code == finding.QC09.Code && f.Kind == want.kind {
					found = append(found, f)
				}
			}
			if len(found) != 1 {
				t.Fatalf("Check() found %d of %s in %+v, want one", len(found), want.kind, res.Findings)
			}
			f := found[0]
			if f.Summary != want.summary || f.Count != want.count {
				t.Errorf("Check() = %q of %d, want %q of %d", f.Summary, f.Count, want.summary, want.count)
			}
			if n := int64(len(f.Evidence)); n != tt.shown[i] || f.EvidenceCut != tt.cut[i] {
				t.Errorf("%s: %d of the evidence, %d left out, want %d, %d", f.Kind, n, f.EvidenceCut, tt.shown[i], tt.cut[i])
			}
			if all := int64(len(f.Host)) + f.HostCut; all != want.count {
				t.Errorf("%s: %d ranges in all, want %d", f.Kind, all, want.count)
			}
		}
	}
}

// One entry is told by its number.
func TestOneEntryHasItsNumber(t *testing.T) {
	img := load(t, lab.Spec{VirtualBytes: 1 << 20, ClusterBits: 9, Fill: 1})
	img[int64(binary.BigEndian.Uint64(img[40:]))+8*5+7] |= 2
	res, err := qcow2.Check(t.Context(), bytes.NewReader(img), int64(len(img)), qcow2.CheckOptions{DataFileBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(res.Findings[0].Summary), "L1 entry 5 has reserved bits set"; got != want {
		t.Errorf("Check() = %q, want %q", got, want)
	}
}
