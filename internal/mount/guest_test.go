// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"context"
	"io"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/guest/ext4"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/guest/xfs"
)

// TestGuests: a mount of ours shows of a guest's file system what the mount of the kernel shows.
func TestGuests(t *testing.T) {
	for _, tc := range []struct {
		kind string
		mkfs []string
		open filestest.OpenFS
		fill filestest.Fill
	}{
		{"ext4", []string{"mkfs.ext4", "-q", "-F", "-O", "inline_data", "DISK"},
			func(ctx context.Context, r io.ReaderAt, size int64) (files.FS, error) { return ext4.Open(ctx, r, size) },
			filestest.Fill{ACLs: true}},
		{"xfs", []string{"mkfs.xfs", "-q", "DISK"},
			func(ctx context.Context, r io.ReaderAt, size int64) (files.FS, error) { return xfs.Open(ctx, r, size) },
			filestest.Fill{ACLs: true, Reflink: true}},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			disk := filestest.Make(t, t.TempDir(), 1<<30, tc.mkfs...)
			at, unmount := filestest.Mount(t, disk, tc.kind)
			filestest.Populate(t, at, tc.fill)
			unmount()
			at, unmount = filestest.Mount(t, disk, tc.kind, "ro")
			want := filestest.ReadMounted(t, at)
			unmount()
			diskio.RequireUnchanged(t, disk)
			f, err := diskio.Open(disk)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fsys, err := tc.open(t.Context(), f, f.Size())
			if err != nil {
				t.Fatal(err)
			}
			dir, logged := shown(t, fsys)
			for _, line := range filestest.Differences(filestest.ReadMounted(t, dir), want, filestest.Loose{}) {
				t.Error(line)
			}
			if lines := logged(); len(lines) > 0 {
				t.Errorf("told is %q, want nothing", lines)
			}
		})
	}
}
