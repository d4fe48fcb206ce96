// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFileSystemOf: directories of one file system have the same answer, and those of others do not.
func TestFileSystemOf(t *testing.T) {
	dir := t.TempDir()
	a, err := FileSystemOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := FileSystemOf(filepath.Dir(dir))
	if err != nil || a != b {
		t.Errorf("%+v, and %+v above it: %v", a, b, err)
	}
	p, err := FileSystemOf("/proc")
	if err != nil || p == a || p.Type != "0x00009fa0" {
		t.Errorf("/proc is %+v: %v", p, err)
	}
	if _, err := FileSystemOf(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	shm, err := FileSystemOf("/dev/shm")
	if err != nil || shm.Type == "0x01021994" && shm.ID != "" || shm.Dev == a.Dev {
		t.Errorf("/dev/shm is %+v: %v, want no id, which is another one each time", shm, err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FileSystemOf(filepath.Join(dir, "fifo")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("of a pipe: %v", err)
	}
}
