// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package testenv is what tests share: what they need of the machine, and proof that they leave
// nothing behind on it.
//
// Three variables steer tests. SHISA_TEST_ALL=1 says that this machine has everything, so a test
// that would skip fails. SHISA_LONG=1 runs the long sweeps. SHISA_TEST_DIR names a directory on a
// file system with storage behind it, for tests that a file system in memory cannot serve.
package testenv

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Need skips the test unless every tool is in the path, and fails it where SHISA_TEST_ALL=1 says
// that it must be.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	var absent []string
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			absent = append(absent, tool)
		}
	}
	if len(absent) > 0 {
		Lacks(t, "the program "+strings.Join(absent, " and "))
	}
}

// NeedRoot skips or fails the test, as Need does, unless it runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Lacks(t, "root")
	}
}

// NeedUser skips the test if it runs as root, which no permission stops. It never fails: the same
// machine cannot be both.
func NeedUser(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Skip("needs a user other than root")
	}
}

// NeedLong skips the test unless SHISA_LONG=1.
func NeedLong(t testing.TB) {
	t.Helper()
	if !Long() {
		t.Skip("a long sweep: set SHISA_LONG=1 to run it")
	}
}

// Long tells whether the long sweeps are to run.
func Long() bool { return os.Getenv("SHISA_LONG") == "1" }

// Lacks skips the test for want of what, or fails it where SHISA_TEST_ALL=1. It is for what Need
// cannot look up, such as a feature of the kernel that the test tried to use.
func Lacks(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("SHISA_TEST_ALL") == "1" {
		t.Fatalf("this machine lacks %s, and SHISA_TEST_ALL=1 says that it has everything", what)
	}
	t.Skipf("needs %s", what)
}

// DiskDir is a new directory on a file system with storage behind it, where holes, O_DIRECT and
// allocation are what they are on a hypervisor. It is removed at the end of the test.
func DiskDir(t testing.TB) string {
	t.Helper()
	for _, parent := range []string{os.Getenv("SHISA_TEST_DIR"), os.TempDir(), "/var/tmp"} {
		if parent == "" || !hasStorage(parent) {
			continue
		}
		dir, err := os.MkdirTemp(parent, "shisa-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	Lacks(t, "a directory on a disk (name one in SHISA_TEST_DIR)")
	return ""
}

// hasStorage tells whether the file system of dir has a disk, local or remote, right behind it.
func hasStorage(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false
	}
	switch st.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
		return false
	}
	return true
}
