// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestWritten has another program write to a block device that is open.
func TestWritten(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "losetup")
	name := filepath.Join(testenv.DiskDir(t), "disk")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", name).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v\n%s", err, out)
		}
	})
	f, err := Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 1<<20), 0); err != nil || f.Written() {
		t.Errorf("reading: %v, written %v; want not", err, f.Written())
	}
	w, err := os.OpenFile(device, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("changed")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil || !f.Written() {
		t.Errorf("%v, written %v; want it", err, f.Written())
	}
}
