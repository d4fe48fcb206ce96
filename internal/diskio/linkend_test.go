// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLinkEnd: links are followed as the kernel does, also to what is not there.
func TestLinkEnd(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return dir + "/" + name }
	if err := errors.Join(os.MkdirAll(at("a/b"), 0o755), os.WriteFile(at("file"), nil, 0o600), os.Symlink("a/b", at("deep")),
		os.Symlink("deep/../gone", at("up")), os.Symlink(at("up"), at("twice")), os.Symlink("round", at("round")),
		os.Symlink("/nowhere/at/all", at("out"))); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{
		"file": at("file"), "gone": at("gone"), "deep": at("a/b"), "up": at("a/gone"), "twice": at("a/gone"),
		"deep/../x": at("a/x"), "out": "/nowhere/at/all", "no/such/x": at("no/such/x"), "file/x": at("file/x"),
	} {
		if got, err := LinkEnd(at(from)); got != want || err != nil {
			t.Errorf("LinkEnd(%s) = %s, %v, want %s", from, got, err, want)
		}
	}
	if got, err := LinkEnd(at("round")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("LinkEnd of a circle = %q, %v, want %v", got, err, unix.ELOOP)
	}
}

// TestLookBorn: a file is born once, whatever its times are set to.
func TestLookBorn(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	before := time.Now().Add(-time.Minute)
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Chtimes(name, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	st, born, err := LookBorn(name)
	if err != nil || st.ID != f.Stat().ID || st.ModTime.Unix() != 1e9 || !born.Equal(f.Born()) || !born.IsZero() && born.Before(before) {
		t.Errorf("LookBorn = %+v, %v, %v, want it born at %v", st, born, err, f.Born())
	}
	if _, _, err := LookBorn(filepath.Dir(name)); !errors.Is(err, ErrDirectory) {
		t.Errorf("LookBorn of a directory = %v, want %v", err, ErrDirectory)
	}
}
