// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// A path that was judged without symbolic links is not opened through one, on the way or at its end,
// even though that leads to the same file.
func TestOpenResolved(t *testing.T) {
	dir, err := filepath.EvalSymlinks(testenv.DiskDir(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(dir+"/real", 0o755), os.WriteFile(dir+"/real/a", []byte("x"), 0o600),
		os.Symlink("real", dir+"/link"), os.Symlink("a", dir+"/real/b")); err != nil {
		t.Fatal(err)
	}
	RequireUnchanged(t, dir+"/real/a")
	for _, tc := range []struct {
		path string
		want error
	}{
		{"real/a", nil},
		{"link/a", ErrChanged},
		{"real/b", ErrChanged},
		{"real/none", os.ErrNotExist},
		{"real", ErrDirectory},
	} {
		f, err := OpenResolved(dir+"/"+tc.path, false)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, tc.want) {
			t.Errorf("OpenResolved(%s) = %v, want %v", tc.path, err, tc.want)
		}
	}
}

// The current directory is known by the name that it was entered by.
func TestRealPath(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(dir+"/real/sub", 0o755), os.Symlink("real", dir+"/link"),
		os.WriteFile(dir+"/real/a", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir + "/link/sub")
	for _, path := range []string{"../a", "./../a", dir + "/link/a", "../../link/a"} {
		if got, err := RealPath(path); err != nil || got != dir+"/real/a" {
			t.Errorf("RealPath(%s) = %q, %v, want %q", path, got, err, dir+"/real/a")
		}
	}
	if _, err := RealPath("../none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("RealPath(../none) = %v, want %v", err, os.ErrNotExist)
	}
}
