// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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

// TestFastCommits: what the journal has as fast commits is not replayed, and that is said.
func TestFastCommits(t *testing.T) {
	dir := t.TempDir()
	disk := filestest.Make(t, dir, 64*mib, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "fast_commit",
		"DISK")
	mounted, unmount := filestest.Mount(t, disk, "ext4")
	synced := func(name string) {
		t.Helper()
		f, err := os.Create(filepath.Join(mounted, name))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString(name)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	synced("first")
	unix.Sync()
	copied := func(name string) *FS {
		t.Helper()
		b, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		second := filepath.Join(dir, name)
		if err := os.WriteFile(second, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return openDisk(t, second)
	}
	before := copied("before").View()
	if before.State != files.Recovered {
		t.Errorf("before a fast commit the view is %+v", before)
	}
	for i := range 5 {
		synced(fmt.Sprintf("file%d", i))
	}
	after := copied("after").View()
	if text := fmt.Sprint(after.Problems); after.State != files.Incomplete ||
		!strings.Contains(text, "fast commits of") {
		t.Errorf("after fast commits the view is %+v", after)
	}
	unmount()
	if end := openDisk(t, disk).View(); end.State != files.Clean || len(end.Problems) > 0 {
		t.Errorf("after the end the view is %+v", end)
	}
}
