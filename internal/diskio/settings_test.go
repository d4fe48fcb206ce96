// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestSettings: only files of sysfs are read and written as settings, and none by a link.
func TestSettings(t *testing.T) {
	s := KernelSettings()
	const there = "/sys/kernel/profiling"
	if b, err := os.ReadFile(there); err == nil {
		got, err := s.ReadSetting(there)
		if err != nil || got+"\n" != string(b) {
			t.Errorf("ReadSetting(%s) = %q, %v, want %q", there, got, err, b)
		}
	}
	file := filepath.Join(t.TempDir(), "timeout")
	if err := os.WriteFile(file, []byte("30\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{file: ErrNoSetting, "/proc/sys/kernel/panic": ErrNoSetting,
		"/sys/kernel": nil, "/sys/no/such/file": fs.ErrNotExist, "/sys/class/block": nil} {
		if _, err := s.ReadSetting(name); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("ReadSetting(%s): %v, want %v", name, err, want)
		}
		if err := s.WriteSetting(name, "300"); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("WriteSetting(%s): %v, want %v", name, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "30\n" {
		t.Errorf("a file that is no setting holds %q by now (%v)", b, err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(there, link); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadSetting(link); err == nil {
		t.Error("a link was followed")
	}
}
