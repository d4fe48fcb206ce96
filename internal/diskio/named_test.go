// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// What is made has the mode that was asked for, whatever the umask.
func TestModesWithUmask(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	h, dir := diskio.Host(), t.TempDir()
	sub, path := filepath.Join(dir, "x/y"), filepath.Join(dir, "x/y/a")
	if err := h.MakeDir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := h.CreateNew(path, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("hello"), 0); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{
		filepath.Join(dir, "x"): fs.ModeDir | 0o755, sub: fs.ModeDir | 0o755, path: 0o644,
		link: fs.ModeSymlink | 0o777,
	} {
		n, err := h.LookAt(name)
		if err != nil || n.Mode != want || n.Owner != uint32(os.Getuid()) || n.Group != uint32(os.Getgid()) {
			t.Errorf("LookAt(%s) = %+v, %v, want %v", name, n, err, want)
		}
	}
	if n, err := h.LookAt(path); err != nil || n.SizeBytes != 5 || n.Links != 1 {
		t.Errorf("LookAt = %+v, %v, want 5 bytes and 1 name", n, err)
	}
	if _, err := h.LookAt(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LookAt of nothing = %v, want %v", err, fs.ErrNotExist)
	}
}
