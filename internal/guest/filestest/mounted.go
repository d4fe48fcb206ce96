// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package filestest holds the readers of guests' file systems against the kernel: it makes file
// systems, fills them through a mount, and compares names, attributes and content. For tests only.
package filestest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// patience is how often it is asked whether a file system is free, each 20 ms: a busy machine may take
// long to end what was started.
const patience = 6000

// Make makes a file system in a sparse file of sizeBytes below dir and gives the file's name. In
// mkfs the word DISK is replaced by that name.
func Make(t testing.TB, dir string, sizeBytes int64, mkfs ...string) string {
	t.Helper()
	testenv.Need(t, mkfs[0])
	f, err := os.CreateTemp(dir, "disk")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(sizeBytes), f.Close()); err != nil {
		t.Fatal(err)
	}
	args := make([]string, len(mkfs)-1)
	for i := range args {
		args[i] = strings.ReplaceAll(mkfs[i+1], "DISK", f.Name())
	}
	if out, err := exec.Command(mkfs[0], args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(mkfs, " "), err, out)
	}
	return f.Name()
}

// Mount mounts a file system through a loop device and gives the directory, and what takes the
// mount away again; that is done at the end of the test at the latest. Without options it is
// mounted with noatime. A kernel that cannot mount it skips the test, through testenv.
func Mount(t testing.TB, disk, kind string, options ...string) (dir string, unmount func()) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "mount", "umount")
	dir = t.TempDir()
	opts := strings.Join(append([]string{"loop", "noatime"}, options...), ",")
	if out, err := exec.Command("mount", "-t", kind, "-o", opts, disk, dir).CombinedOutput(); err != nil {
		testenv.Lacks(t, fmt.Sprintf("a kernel that mounts this %s (%s)", kind, bytes.TrimSpace(out)))
	}
	mounted := true
	unmount = func() {
		t.Helper()
		if !mounted {
			return
		}
		mounted = false
		for try := 0; ; try++ {
			err := unix.Unmount(dir, 0)
			if err == nil {
				released(t, disk)
				return
			}
			if !errors.Is(err, unix.EBUSY) || try == patience {
				t.Errorf("umount %s: %v", dir, err)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// released waits until no loop device has a file any more. A program that was started meanwhile in a
// mount namespace of its own keeps a file system mounted until it ends; until then what was written
// need not be in the file. Those of other packages' tests do not, where a package's TestMain calls
// hold.Apart: its mounts are in none of the namespaces that they copy.
func released(t testing.TB, disk string) {
	t.Helper()
	for try := 0; ; try++ {
		busy := false
		names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			// One whose file is gone has no file.
			file, err := os.ReadFile(n)
			busy = busy || err == nil && strings.TrimSpace(string(file)) == disk
		}
		if !busy {
			return
		}
		if try == patience {
			t.Errorf("%s is still mounted somewhere", disk)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Clone copies a file by sharing its blocks, which takes no time in which the file could change.
// Both must be on a file system that can do that, as [CloneDir] gives.
func Clone(t testing.TB, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		t.Fatalf("clone %s: %v", filepath.Base(from), err)
	}
}

// CloneDir gives a directory of sizeBytes in which files can be cloned: a file system of its own.
func CloneDir(t testing.TB, sizeBytes int64) string {
	t.Helper()
	disk := Make(t, t.TempDir(), sizeBytes, "mkfs.xfs", "-q", "-m", "reflink=1", "DISK")
	dir, _ := Mount(t, disk, "xfs")
	return dir
}
