// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if err := hold.Apart(); err != nil { // or other tests' namespaces keep what is mounted here
		fmt.Fprintln(os.Stderr, err)
	}
	testenv.Main(m)
}

// TestPopulate fills real file systems: what is made everywhere must be possible everywhere, and
// one that differs in a single file must be told.
func TestPopulate(t *testing.T) {
	for _, tc := range []struct {
		kind string
		mkfs []string
		fill Fill
	}{
		{"ext4", []string{"mkfs.ext4", "-q", "-F", "DISK"}, Fill{ACLs: true}},
		{"xfs", []string{"mkfs.xfs", "-q", "DISK"}, Fill{ACLs: true, Reflink: true}},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			dir, _ := Mount(t, Make(t, t.TempDir(), 1<<30, tc.mkfs...), tc.kind)
			Populate(t, dir, tc.fill)
			tree := ReadMounted(t, dir)
			if len(tree) < 2500 {
				t.Errorf("%d names, want thousands", len(tree))
			}
			other := maps.Clone(tree)
			delete(other, "/deep/level0")
			n := other["/links/many"]
			n.Stat.Mode ^= 1
			other["/links/many"] = n
			n = other["/sizes/4096"]
			n.Content = "other"
			other["/sizes/4096"] = n
			n = other["/attributes/many"]
			n.Xattrs = nil
			other["/attributes/many"] = n
			if d := Differences(other, tree, Loose{}); len(d) != 4 {
				t.Errorf("differences are %q, want 4", d)
			}
		})
	}
}

// TestCrash takes copies of a disk in use: each holds something, and differs from the one before.
func TestCrash(t *testing.T) {
	last := Tree{}
	mkfs := []string{"mkfs.ext4", "-q", "-F", "DISK"}
	Crash(t, "ext4", 128<<20, mkfs, 3, 1, func(copyOfDisk string, kernel Tree) {
		if len(kernel) < 3 || len(Differences(kernel, last, Loose{})) == 0 {
			t.Errorf("%s: %d names, want some and others than before", copyOfDisk, len(kernel))
		}
		last = kernel
	})
}

// TestElsewhere has a program of others, in a copy of their mounts, live on while a mount of ours ends.
func TestElsewhere(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "nsenter", "unshare", "mkfs.ext4")
	disk := Make(t, t.TempDir(), 16<<20, "mkfs.ext4", "-q", "-F", "DISK")
	_, unmount := Mount(t, disk, "ext4")
	// Who started us is in the namespace that other tests begin in.
	c := exec.Command("nsenter", "-t", fmt.Sprint(os.Getppid()), "-m", "unshare", "-m", "sh", "-c", "echo; exec sleep 600")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill() // it is of this test
		_ = c.Wait()
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	unmount() // it waits until nothing has the disk, and says so otherwise
}
