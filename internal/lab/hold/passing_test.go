// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestPassing holds that each of them is in the way of some umounts and not of others, also after the
// mount was away, and of none once it is released.
func TestPassing(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "df", "ls", "cat", "sh", "stat", "tail")
	if !apart() {
		testenv.Lacks(t, "a mount namespace of its own")
	}
	for _, k := range Passing() {
		t.Run(k.Name, func(t *testing.T) {
			source, at := t.TempDir(), t.TempDir()
			mount := func(from, to, kind string, flags uintptr) {
				t.Helper()
				if err := unix.Mount(from, to, kind, flags, ""); err != nil {
					t.Fatal(err)
				}
			}
			mount("passing", source, "tmpfs", 0)
			defer unix.Unmount(source, unix.MNT_DETACH)
			mount(source, at, "", unix.MS_BIND)
			defer unix.Unmount(at, unix.MNT_DETACH)
			h, err := Pass(t.Context(), k.Name, at)
			if errors.Is(err, ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			busy, free := 0, 0
			err = until(func() (bool, error) {
				err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
				switch {
				case err == nil:
					free++
					mount(source, at, "", unix.MS_BIND)
				case err == unix.EBUSY:
					busy++
					if k.Name == CallLoop {
						comeBy(t, h.Path)
					}
				default:
					return false, err
				}
				return busy > 1 && free > 1, nil
			})
			t.Logf("%s: %d umounts failed, %d did not", k.Name, busy, free)
			if err != nil {
				t.Errorf("%s: %d umounts failed, %d did not: %v", k.Name, busy, free, err)
			}
			if err := h.Release(); err != nil {
				t.Error(err)
			}
			if err := umount(at, nil); err != nil {
				t.Errorf("umount after the release of %s = %v", k.Name, err)
			}
		})
	}
}

// comeBy opens a named pipe for writing, if somebody waits for that.
func comeBy(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil && err != unix.ENXIO {
		t.Fatal(err)
	}
}
