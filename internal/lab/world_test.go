// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestWorld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "world")
	w, err := NewWorld(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	// A demonstration is made while somebody waits for it.
	if n := spaceBelow(t, w.Dir); n > maxWorldBytes {
		t.Errorf("the world takes %d bytes, want %d at most", n, maxWorldBytes)
	}
	for _, i := range w.Images {
		if _, err := os.Stat(filepath.Join(w.Dir, i.Path)); err != nil {
			t.Error(err)
		}
	}
	if _, err := NewWorld(t.Context(), dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("NewWorld of a directory that exists = %v, want fs.ErrExist", err)
	}
	if err := w.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v, want fs.ErrNotExist", err)
	}
}

// maxWorldBytes is the space that a world may take.
const maxWorldBytes = 96 << 20

// spaceBelow is how much space the files below dir take.
func spaceBelow(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWorldIsWhatItSays holds the world against qemu-img.
func TestWorldIsWhatItSays(t *testing.T) {
	testenv.Need(t, "qemu-img")
	w, err := NewWorld(t.Context(), filepath.Join(t.TempDir(), "world"))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"base/debian-12.qcow2": 0, "machines/web-1.qcow2": 0, "machines/wiki.qcow2": 0,
		"machines/web-2.qcow2":   3,
		"machines/mail.qcow2":    3, // it takes a lost mapping for leaks
		"machines/db.qcow2":      2,
		"machines/build.qcow2":   1,
		"machines/archive.qcow2": 2,
		"other/legacy.vmdk":      0,
	} {
		cmd := exec.Command("qemu-img", "check", "-q", filepath.Join(w.Dir, path))
		err := cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("qemu-img check %s: exit status %d, want %d (%v)", path, got, want, err)
		}
	}
}

func TestWorldStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := filepath.Join(t.TempDir(), "world")
	if _, err := NewWorld(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("NewWorld = %v, want context.Canceled", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an interrupted world is still there: %v", err)
	}
}
