// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestGrown has a crash soon after a file system grew: the log brings the superblock, and then what
// lies in groups that the one on the disk does not know.
func TestGrown(t *testing.T) {
	testenv.Need(t, "xfs_growfs")
	outside := filestest.CloneDir(t, 4<<30)
	disk := filestest.Make(t, outside, 1200<<20, "mkfs.xfs", "-q", "-d", "size=400m", "DISK")
	dir, unmount := filestest.Mount(t, disk, "xfs")
	if out, err := exec.Command("xfs_growfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("xfs_growfs: %v\n%s", err, out)
	}
	for i := range 300 { // each directory in the next group
		sub := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "file"), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := syncFile(dir); err != nil {
		t.Fatal(err)
	}
	crashed, second := filepath.Join(outside, "crashed"), filepath.Join(outside, "second")
	filestest.Clone(t, disk, crashed)
	filestest.Clone(t, disk, second)
	unmount()
	dir, unmount = filestest.Mount(t, second, "xfs")
	want := filestest.ReadMounted(t, dir)
	unmount()
	f := open(t, crashed)
	same(t, f, want, files.Recovered)
	if f.groups < 12 {
		t.Errorf("%d groups, want all that it grew to", f.groups)
	}
}

// syncFile brings what was done in a directory to the log.
func syncFile(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
