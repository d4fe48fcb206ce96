// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"context"
	"io"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func openFS(ctx context.Context, volume io.ReaderAt, size int64) (files.FS, error) {
	f, err := Open(ctx, volume, size)
	if err != nil {
		return nil, err // not a nil of another type
	}
	return f, nil
}

// TestFlips turns bits of the metadata around: whatever is missing then must be said.
func TestFlips(t *testing.T) {
	rounds := 12
	if testenv.Long() {
		rounds = 400
	}
	for _, v := range variants() {
		if !v.short() || v.name == "v5 small log" {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			args := append([]string{"mkfs.xfs", "-q"}, v.mkfs...)
			disk := filestest.Make(t, t.TempDir(), 3<<30, append(args, "DISK")...)
			if v.v4() {
				kernelTree(t, disk, "fill", v)
			} else {
				dir, unmount := filestest.Mount(t, disk, "xfs")
				filestest.Populate(t, dir, v.fill)
				unmount()
			}
			filestest.Flips(t, disk, openFS, filestest.Flip{Rounds: rounds, Seed: 1000, Checked: !v.v4()})
		})
	}
}
