// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package testenv is what tests share: what they need of the machine, and proof that they leave
// nothing behind on it.
//
// Six variables steer tests. SHISA_TEST_ALL=1 says that this machine has everything, so a test
// that would skip fails. SHISA_LONG=1 runs the long sweeps. SHISA_TEST_DIR names a directory on a
// file system with storage behind it, for tests that a file system in memory cannot serve.
// SHISA_TEST_VM=1 runs what runs in guests, and SHISA_TEST_ENGINES says what traces there. SHISA_TEST_NOVA=1
// runs what Debian's Nova runs in.
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

// asUser says in the environment of a test that AsUser started it.
const asUser = "SHISA_TEST_AS_USER"

// AsUser makes a test run with no more rights than files' permissions give. No permission stops
// root, so there the test is started once more without capabilities; AsUser then reports true, and
// the test that called it is done.
func AsUser(t *testing.T) (done bool) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv(asUser) != "" {
		return false
	}
	Need(t, "setpriv")
	c := exec.Command("setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs",
		os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), asUser+"=1")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Errorf("without root's rights: %v\n%s", err, out)
	}
	return true
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

// NeedVM skips the test unless SHISA_TEST_VM=1: it runs in a guest with a kernel of its own, and
// "make test-vm" is what runs it.
func NeedVM(t testing.TB) {
	t.Helper()
	if os.Getenv("SHISA_TEST_VM") != "1" {
		t.Skip("in a guest: make test-vm runs it")
	}
}

// NeedNova skips the test unless SHISA_TEST_NOVA=1: it downloads OpenStack Nova, and "make test-nova" is what
// runs it.
func NeedNova(t testing.TB) {
	t.Helper()
	if os.Getenv("SHISA_TEST_NOVA") != "1" {
		t.Skip("with OpenStack Nova: make test-nova runs it")
	}
}

// InGuest is what a guest sets for the tests that run in it.
const InGuest = "SHISA_TEST_IN_GUEST"

// NeedGuest skips the test unless it runs in a guest, whose kernel it may do with as it likes.
func NeedGuest(t testing.TB) {
	t.Helper()
	if os.Getenv(InGuest) != "1" {
		t.Skip("is run by others in a guest")
	}
}

// Engines names what traces holders of mounts here: watch and syscall, which need no more than BPF and
// a processor, or what SHISA_TEST_ENGINES says, separated by commas.
func Engines() []string {
	if names := os.Getenv("SHISA_TEST_ENGINES"); names != "" {
		return strings.Split(names, ",")
	}
	return []string{"watch", "syscall"}
}

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
