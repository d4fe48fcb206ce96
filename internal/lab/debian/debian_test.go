// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package debian

import (
	"strings"
	"testing"
)

// TestRun: what a program prints is given, and what it complains of is in the error.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	out, err := Run(t.Context(), dir, "sh", "-c", "pwd; echo $LC_ALL; echo careful >&2")
	if want := dir + "\nC\n"; err != nil || string(out) != want {
		t.Errorf("Run = %q, %v, want %q", out, err, want)
	}
	if _, err := Run(t.Context(), "", "sh", "-c", "echo nothing there >&2; exit 100"); err == nil ||
		!strings.Contains(err.Error(), "sh: exit status 100: nothing there") {
		t.Errorf("Run = %v, want the complaint", err)
	}
}

// TestVersionField: the first version that apt shows counts.
func TestVersionField(t *testing.T) {
	text := "Package: a\nVersion: 1:2.3~rc1-4+deb12u1\nDepends: b (Version: 9)\n"
	if m := versionField.FindSubmatch([]byte(text)); m == nil || string(m[1]) != "1:2.3~rc1-4+deb12u1" {
		t.Errorf("the version is %q", m)
	}
}
