// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestCrash holds what is read of a disk that was copied while it was mounted and written to
// against what the kernel makes of it.
func TestCrash(t *testing.T) {
	for _, tc := range []struct {
		name, kind, mkfs string
	}{
		{"4k", "ext4", "-b 4096"},
		{"1k", "ext4", "-b 1024 -J size=8"},
		{"no-csum", "ext4", "-b 4096 -O ^metadata_csum,^64bit"},
		{"inline", "ext4", "-b 4096 -O inline_data,orphan_file"},
		{"ext3", "ext3", "-b 4096 -J size=8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			copies, recovered := 3, 0
			if testenv.Long() {
				copies = 50
			}
			mkfs := append([]string{"mkfs." + tc.kind, "-q", "-F"}, strings.Fields(tc.mkfs)...)
			mkfs = append(mkfs, "DISK")
			filestest.Crash(t, tc.kind, 256*mib, mkfs, copies, 11,
				func(disk string, kernel filestest.Tree) {
					fs := openDisk(t, disk)
					got, view, err := filestest.ReadView(t.Context(), fs)
					if err != nil {
						t.Fatal(err)
					}
					if view.State == files.Recovered {
						recovered++
					}
					if view.State == files.Incomplete {
						t.Errorf("incomplete: %+v", view.Problems[:min(4, len(view.Problems))])
					}
					for _, line := range filestest.Differences(got, kernel, filestest.Loose{}) {
						t.Error(line)
					}
				})
			t.Logf("%d of %d copies had something to replay", recovered, copies)
		})
	}
}
