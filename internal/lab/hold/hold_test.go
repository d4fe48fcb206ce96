// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if IsChild(os.Args) {
		Serve()
	}
	if err := Apart(); err != nil {
		fmt.Fprintln(os.Stderr, err) // the tests that need it say so, too
	}
	testenv.Main(m)
}

// newDisk is a disk that goes with the test.
func newDisk(t *testing.T) *Disk {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.erofs")
	d, err := NewDisk(t.Context(), t.TempDir())
	if errors.Is(err, ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// TestKinds holds that each kind does to umount(2) and to the device what it is said to, and nothing
// once it is released.
func TestKinds(t *testing.T) {
	for _, k := range Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			d := newDisk(t)
			h, err := Make(t.Context(), k, d.Place)
			if errors.Is(err, ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := d.Umount(k.Effect.Errno()); got != k.Effect.Errno() {
				t.Errorf("umount(2) = %v, want %v", got, k.Effect.Errno())
			}
			want := k.Effect == Harmless
			if free, err := d.Free(want); err != nil || free != want {
				t.Errorf("Free() = %t, %v, want %t", free, err, want)
			}
			if err := h.Release(); err != nil {
				t.Error(err)
			}
			if k.Effect == Blocks {
				if err := d.Umount(nil); err != nil {
					t.Errorf("umount(2) after the release = %v, want success", err)
				}
			}
			if free, err := d.Free(true); err != nil || !free {
				t.Errorf("Free() after the release = %t, %v, want true", free, err)
			}
		})
	}
}
