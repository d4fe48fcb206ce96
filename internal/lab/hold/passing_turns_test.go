// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestTurns holds that each is in the way of every umount between its turns and of none besides, also
// after the mount was away, and that it says when it is told what it cannot do.
func TestTurns(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "sh")
	if !apart() {
		testenv.Lacks(t, "a mount namespace of its own")
	}
	for _, k := range Passing() {
		if k.Name == StatLoop {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			source, at := t.TempDir(), t.TempDir()
			if err := unix.Mount("turns", source, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(source, unix.MNT_DETACH)
			bind := func() {
				t.Helper()
				if err := unix.Mount(source, at, "", unix.MS_BIND, ""); err != nil {
					t.Fatal(err)
				}
			}
			bind()
			defer unix.Unmount(at, unix.MNT_DETACH)
			h, err := TakeTurns(t.Context(), k.Name, at)
			if errors.Is(err, ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := h.LetGo(t.Context()); err == nil {
				t.Error("LetGo before Take: no error")
			}
			for range 4 {
				pid, err := h.Take(t.Context())
				if err != nil || (k.Name == RunLoop) == (pid == h.PID) || pid == 0 {
					t.Fatalf("Take = %d, %v, the holder is %d", pid, err, h.PID)
				}
				if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY {
					t.Errorf("umount while it is held = %v, want %v", err, unix.EBUSY)
				}
				if err := h.LetGo(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := umount(at, nil); err != nil {
					t.Fatalf("umount = %v", err)
				}
				bind()
			}
			if _, err := h.Take(t.Context()); err != nil {
				t.Error(err)
			}
			if err := h.Release(); err != nil { // in the middle of a turn
				t.Error(err)
			}
			if err := umount(at, nil); err != nil {
				t.Errorf("umount after the release = %v", err)
			}
		})
	}
}
