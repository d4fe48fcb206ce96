// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// withOnce runs tests, and takes away what they have made once for all of them.
type withOnce struct{ m *testing.M }

func (w withOnce) Run() int {
	status := w.m.Run()
	if err := os.RemoveAll(onceDir()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// onceDir is below the directory that testenv has for the temporary files of all tests.
func onceDir() string { return filepath.Join(os.TempDir(), "once") }

// once gives a file that the first test that asks for it makes.
func once(t *testing.T, name string, make func(to string) error) string {
	t.Helper()
	to := filepath.Join(onceDir(), name)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(to+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(to); err == nil {
		return to
	}
	if err := make(to + ".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(to+".new", to); err != nil {
		t.Fatal(err)
	}
	return to
}

// built gives a program of ours, or the tests of a package, that run in guests: static, without cgo.
func built(t *testing.T, pkg string, tests bool) string {
	t.Helper()
	testenv.Need(t, "go")
	name := path.Base(pkg)
	if tests {
		name += ".test"
	}
	return once(t, filepath.Join(strings.ReplaceAll(pkg, "/", "-"), name), func(to string) error {
		return vm.Build(t.Context(), to, pkg, tests)
	})
}

// kernelOf gives the kernel of a Debian package. apt takes seconds to find it.
func kernelOf(t *testing.T, pkg string) (k vm.Kernel) {
	t.Helper()
	cache, err := vm.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	name := once(t, pkg, func(to string) error {
		k, err := vm.Fetch(t.Context(), cache, pkg)
		if errors.Is(err, vm.ErrUnavailable) {
			testenv.Lacks(t, err.Error())
		}
		if err != nil {
			return err
		}
		text, err := json.Marshal(k)
		return errors.Join(err, os.WriteFile(to, text, 0o600))
	})
	text, err := os.ReadFile(name)
	if err := errors.Join(err, json.Unmarshal(text, &k)); err != nil {
		t.Fatal(err)
	}
	return k
}

// builtInto gives programs the names that they have in a directory.
func builtInto(t *testing.T, dir string, programs map[string]string) {
	t.Helper()
	for name, from := range programs {
		if err := os.Link(from, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}
