// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apart

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestCopies: what a new namespace would keep of others is what it gets no word of.
func TestCopies(t *testing.T) {
	table := "20 1 8:1 / / rw master:1 - ext4 /dev/sda1 rw\n" + // hears
		"21 20 8:2 / /data rw - ext4 /dev/sdb rw\n" + // private, on one that hears
		"22 21 8:3 / /data/vm rw master:3 - ext4 /dev/sdc rw\n" + // on one that does not
		"23 22 8:4 / /data/vm/x rw - ext4 /dev/sdd rw\n" +
		"24 21 8:5 / /data/needed rw - ext4 /dev/sde rw\n"
	mounts, bad := linux.ParseMounts([]byte(table))
	if bad != 0 {
		t.Fatal("the table is wrong")
	}
	var got []string
	for _, m := range copies(mounts, func(point string) bool { return within(point, "/data/needed/file") }) {
		got = append(got, m.Point)
	}
	if diff := cmp.Diff([]string{"/data/vm"}, got); diff != "" {
		t.Errorf("copies (-want +got):\n%s", diff)
	}
	needed := needs([]string{"/srv/vm/disk.raw"})
	for point, want := range map[string]bool{"/": true, "/srv": true, "/srv/vm": true, "/srv/vm/disk.raw": true,
		"/srv/v": false, "/srv/other": false, "/proc/sys/fs/binfmt_misc": true, "/etc/hosts": true, "/usr": true,
		"/mnt": false, "/media/stick": false, "/run": true, "/run/media/stick": false} {
		if got := needed(point); got != want {
			t.Errorf("needed(%s) = %t, want %t", point, got, want)
		}
	}
}

// ownThread runs fn on a thread of its own that ends with it.
func ownThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		fn()
	}()
	<-done
}

// TestMounts: of what others have mounted nothing is kept, what is needed stays, and nobody writes to
// what lies beneath.
func TestMounts(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	ownThread(func() {
		// What the test mounts goes with this thread.
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		if err != nil {
			testenv.Lacks(t, err.Error())
			return
		}
		for _, name := range []string{"kept", "theirs", "shared"} {
			at := filepath.Join(dir, name)
			err := errors.Join(os.Mkdir(at, 0o755), unix.Mount("theirs", at, "tmpfs", 0, "size=64k"))
			if err != nil {
				t.Error(err)
				return
			}
		}
		// On a shared mount an umount is told to the copies.
		below, heard := filepath.Join(dir, "theirs", "below"), filepath.Join(dir, "shared", "heard")
		file, one := filepath.Join(dir, "kept", "file"), filepath.Join(dir, "one")
		err = errors.Join(os.Mkdir(below, 0o755), unix.Mount("theirs", below, "tmpfs", 0, ""),
			unix.Mount("", filepath.Join(dir, "shared"), "", unix.MS_SHARED, ""),
			os.Mkdir(heard, 0o755), unix.Mount("theirs", heard, "tmpfs", 0, ""),
			os.WriteFile(file, []byte("x"), 0o600), os.WriteFile(one, nil, 0o600), unix.Mount(file, one, "", unix.MS_BIND, ""))
		if err != nil {
			t.Error(err)
			return
		}
		// The namespace of those others lives on.
		theirs, err := os.Open("/proc/thread-self/ns/mnt")
		if err != nil {
			t.Error(err)
			return
		}
		defer theirs.Close()
		covered, err := Mounts(context.WithoutCancel(t.Context()), filepath.Join(dir, "kept", "x"))
		if err != nil {
			t.Errorf("Mounts = %v", err)
			return
		}
		want := []string{filepath.Join(dir, "shared"), filepath.Join(dir, "theirs"), below}
		if got := slices.DeleteFunc(covered, func(p string) bool { return !within(dir, p) }); !slices.Equal(got, want) {
			t.Errorf("covered = %q, want %q", got, want)
		}
		err = os.WriteFile(filepath.Join(dir, "theirs", "x"), nil, 0o600)
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("write beneath what was mounted = %v, want %v", err, unix.EROFS)
		}
		// What QEMU exports is mounted on a file.
		export := filepath.Join(dir, "export")
		if err := errors.Join(os.WriteFile(export, []byte("beneath"), 0o600), cover([]string{export})); err != nil {
			t.Errorf("cover of a file = %v", err)
		}
		if b, err := os.ReadFile(export); err != nil || len(b) > 0 {
			t.Errorf("a file that was covered holds %q, %v", b, err)
		}
		for _, name := range []string{file, one} {
			if b, err := os.ReadFile(name); err != nil || string(b) != "x" {
				t.Errorf("what is needed, %s, holds %q, %v", name, b, err)
			}
		}
	})
}
