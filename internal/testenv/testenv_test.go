// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package testenv

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// spy is a test that notes what ended it.
type spy struct {
	testing.TB
	end string
}

func (s *spy) Helper()               {}
func (s *spy) Fatalf(string, ...any) { s.ended("fail") }
func (s *spy) Skipf(string, ...any)  { s.ended("skip") }

// ended keeps the first end: a real test would not get to the second.
func (s *spy) ended(how string) { s.end = cmp.Or(s.end, how) }

func TestNeed(t *testing.T) {
	for _, c := range []struct {
		name, all, tool, want string
	}{
		{"there", "", "sh", ""},
		{"there, all", "1", "sh", ""},
		{"absent", "", "no-such-program-xyz", "skip"},
		{"absent, all", "1", "no-such-program-xyz", "fail"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("SHISA_TEST_ALL", c.all)
			s := &spy{TB: t}
			if Need(s, c.tool); s.end != c.want {
				t.Errorf("Need(%s) = %q, want %q", c.tool, s.end, c.want)
			}
		})
	}
}

func TestRounds(t *testing.T) {
	for _, c := range []struct {
		sweep, long string
		want        int
	}{{"", "", 1}, {"1", "", 2}, {"", "1", 3}, {"1", "1", 3}} {
		t.Setenv("SHISA_SWEEP", c.sweep)
		t.Setenv("SHISA_LONG", c.long)
		if n := Rounds(1, 2, 3); n != c.want {
			t.Errorf("Rounds() = %d with SHISA_SWEEP=%s and SHISA_LONG=%s, want %d", n, c.sweep, c.long, c.want)
		}
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	n := Read(t, func() {
		if _, err := os.ReadFile(path); err != nil {
			t.Error(err)
		}
	})
	if n < 1<<20 || n > 1<<20+4096 {
		t.Errorf("Read() = %d of a file of %d", n, 1<<20)
	}
}

func TestLeaksAreSeen(t *testing.T) {
	dir := t.TempDir()
	before := openFiles()

	f, err := os.Create(filepath.Join(dir, "left"))
	if err != nil {
		t.Fatal(err)
	}
	wantOne(t, "newFiles", newFiles(before), f.Name())
	wantOne(t, "below", below(dir), f.Name())
	f.Close()
	if got := newFiles(before); len(got) != 0 {
		t.Errorf("newFiles() = %q after closing, want none", got)
	}

	c := exec.Command("sleep", "60")
	Start(t, c)
	wantOne(t, "children", children(), "sleep")
	if err := c.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err == nil {
		t.Error("sleep ended by itself, want it killed")
	}
}

func wantOne(t *testing.T, what string, got []string, want string) {
	t.Helper()
	if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want) }) {
		t.Errorf("%s = %q, want one with %q", what, got, want)
	}
}

func TestMountsAndLoopsAreSeen(t *testing.T) {
	Need(t, "mount", "umount", "losetup")
	NeedRoot(t)
	dir := t.TempDir()
	mnt, file := filepath.Join(dir, "mnt"), filepath.Join(dir, "file")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("mount", "-t", "tmpfs", "none", mnt).Run(); err != nil {
		Lacks(t, "the right to mount")
	}
	wantOne(t, "mounts", mounts(dir), mnt)
	if err := exec.Command("umount", mnt).Run(); err != nil {
		t.Error(err)
	}
	loop, err := exec.Command("losetup", "-f", "--show", file).Output()
	if err != nil {
		Lacks(t, "loop devices")
	}
	wantOne(t, "loops", loops(dir), file)
	if err := exec.Command("losetup", "-d", strings.TrimSpace(string(loop))).Run(); err != nil {
		t.Error(err)
	}
	if got := slices.Concat(mounts(dir), loops(dir)); len(got) != 0 {
		t.Errorf("left = %q, want none", got)
	}
}

func TestAsUser(t *testing.T) {
	if AsUser(t) {
		return
	}
	path := filepath.Join(t.TempDir(), "closed")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(path); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("ReadFile(closed) = %v, want %v", err, fs.ErrPermission)
	}
}

func TestDiskDir(t *testing.T) {
	dir := DiskDir(t)
	if !hasStorage(dir) {
		t.Errorf("DiskDir() = %s, want a directory on a disk", dir)
	}
}
