// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// mkfsGFS2 names the program that makes a GFS2, in a guest.
const mkfsGFS2 = "SHISA_MKFS_GFS2"

// TestFailed has the disks of XFS, Btrfs and GFS2 fail in one guest, and holds what the doctor says of each in it.
// TestStoryStall has ext4. TestStallFileSystems has what these show after a stall.
func TestFailed(t *testing.T) {
	testenv.NeedVM(t)
	testenv.Need(t, "mkfs.xfs", "mkfs.btrfs", "dmsetup", "apt-get", "dpkg-deb")
	t.Parallel()
	m := umlMachine{programs: umlPrograms(t), memoryMiB: 512,
		modules: []string{"dm-mod", "xfs", "btrfs", "gfs2"}}
	for _, name := range []string{"xfs", "btrfs", "gfs2"} {
		disk := filepath.Join(t.TempDir(), name)
		if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 400<<20)); err != nil {
			t.Fatal(err)
		}
		m.disks = append(m.disks, uml.Disk{Path: disk})
	}
	m.run(t, "TestFailedInside", mkfsGFS2+"="+unpackedTool(t, "gfs2-utils", "usr/sbin/mkfs.gfs2"))
}

func TestFailedInside(t *testing.T) {
	testenv.NeedGuest(t)
	const sectors = 400 << 11
	for n, c := range []struct {
		fs, code, options, shown string
		mkfs                     []string
	}{
		{"xfs", "FS02", "", "rw", []string{"mkfs.xfs", "-q", "-f"}},
		{"btrfs", "FS03", "", "ro", []string{"mkfs.btrfs", "-q", "-f"}},
		{"gfs2", "CL01", "lockproto=lock_nolock", "ro",
			[]string{os.Getenv(mkfsGFS2), "-q", "-O", "-p", "lock_nolock", "-j", "1", "-J", "8"}},
	} {
		t.Run(c.fs, func(t *testing.T) {
			mapper := func(args ...string) {
				t.Helper()
				run(t, "dmsetup", append([]string{"--noudevsync", "--noudevrules"}, args...)...)
			}
			mapper("create", c.fs, "--table", fmt.Sprintf("0 %d linear %s 0", sectors, uml.DiskPath(n)))
			dev, at := "/dev/mapper/"+c.fs, t.TempDir()
			run(t, c.mkfs[0], append(c.mkfs[1:], dev)...)
			if err := unix.Mount(dev, at, c.fs, 0, c.options); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
			if err := writeTo(filepath.Join(at, "old")); err != nil {
				t.Fatal(err)
			}
			if f := findingOf(examined(t), c.code); f != nil {
				t.Fatalf("before anything failed it is said: %+v", f)
			}
			mapper("suspend", "--nolockfs", c.fs)
			mapper("load", c.fs, "--table", fmt.Sprintf("0 %d error", sectors))
			mapper("resume", c.fs)
			if err := writeTo(filepath.Join(at, "new")); err == nil {
				t.Error("a file was written to a disk that fails")
			}
			// The data alone does not make a file system give up: what it keeps for itself does.
			if err := syncAll(at); err == nil {
				t.Error("a file system was written to a disk that fails")
			}
			mounts, err := os.ReadFile("/proc/mounts")
			if err != nil || !strings.Contains(string(mounts), fmt.Sprintf(" %s %s %s,", at, c.fs, c.shown)) {
				t.Errorf("want that the mount shows %s: %v, %s", c.shown, err, mounts)
			}
			f := findingOf(examined(t), c.code)
			if f == nil {
				t.Fatalf("%s is not found", c.code)
			}
			// As the kernel calls it, as people do, and where it is.
			name := fmt.Sprintf("dm-%d (mapper/%s, %s)", n, c.fs, at)
			if f.Object.Name != fmt.Sprint("dm-", n) || !strings.Contains(f.Summary, name) {
				t.Errorf("%s is said of %v: %s; want %s", c.code, f.Object, f.Summary, name)
			}
		})
	}
}

// syncAll makes a directory, and writes all of its file system.
func syncAll(at string) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	return errors.Join(os.Mkdir(filepath.Join(at, "directory"), 0o755), unix.Syncfs(int(f.Fd())), f.Close())
}

// writeTo writes a file, and waits until it is on the disk.
func writeTo(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 16384))
	return errors.Join(err, f.Sync(), f.Close())
}
