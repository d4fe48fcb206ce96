// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// filesOf makes files in a directory of the test's own, each of which holds its name.
func filesOf(t *testing.T, all ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range all {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func fileID(t *testing.T, path string) ID {
	t.Helper()
	i, err := idOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// holds tells what stands in a file, "" where there is none.
func holds(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text)
}

func TestLink(t *testing.T) {
	dir := filesOf(t, "a", "b")
	l, a, b, c := HostLinks(), dir+"/a", dir+"/b", dir+"/c"
	if err := l.Link(fileID(t, a), a, b); !errors.Is(err, fs.ErrExist) || holds(t, b) != "b" {
		t.Errorf("Link over another file = %v, it holds %q; want %v and nothing changed", err, holds(t, b), fs.ErrExist)
	}
	if err := l.Link(fileID(t, b), a, c); !errors.Is(err, ErrChanged) || holds(t, c) != "" {
		t.Errorf("Link of a file that was replaced = %v, want %v and no new name", err, ErrChanged)
	}
	for range 2 { // it is so already the second time
		if err := l.Link(fileID(t, a), a, c); err != nil || fileID(t, a) != fileID(t, c) {
			t.Errorf("Link = %v, want that both are one file", err)
		}
	}
	if err := os.Symlink("a", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := l.Link(fileID(t, a), dir+"/link", dir+"/d"); !errors.Is(err, ErrSpecial) {
		t.Errorf("Link of a symbolic link = %v, want %v", err, ErrSpecial)
	}
}

func TestMove(t *testing.T) {
	dir := filesOf(t, "a", "b")
	l, a, b, c := HostLinks(), dir+"/a", dir+"/b", dir+"/c"
	if err := l.Move(fileID(t, a), a, b); !errors.Is(err, fs.ErrExist) || holds(t, b) != "b" || holds(t, a) != "a" {
		t.Errorf("Move over another file = %v, want %v and nothing changed", err, fs.ErrExist)
	}
	if err := os.Link(a, c); err != nil {
		t.Fatal(err)
	}
	// rename(2) says that this went well and leaves both names.
	if err := l.Move(fileID(t, a), a, c); !errors.Is(err, fs.ErrExist) || holds(t, a) != "a" {
		t.Errorf("Move onto another name of the same file = %v, want %v", err, fs.ErrExist)
	}
	if err := l.Unlink(fileID(t, a), c); err != nil {
		t.Fatal(err)
	}
	if err := l.Move(fileID(t, b), a, c); !errors.Is(err, ErrChanged) {
		t.Errorf("Move of a file that was replaced = %v, want %v", err, ErrChanged)
	}
	if err := l.Move(fileID(t, a), a, c); err != nil || holds(t, c) != "a" || holds(t, a) != "" {
		t.Errorf("Move = %v, want that it has the new name only", err)
	}
}

func TestUnlinkAndTouch(t *testing.T) {
	dir := filesOf(t, "a", "b")
	l, a, b := HostLinks(), dir+"/a", dir+"/b"
	if err := l.Unlink(fileID(t, a), b); !errors.Is(err, ErrChanged) || holds(t, b) != "b" {
		t.Errorf("Unlink of another file = %v, want %v and nothing changed", err, ErrChanged)
	}
	when := time.Date(2020, 3, 1, 4, 0, 0, 5, time.UTC)
	if err := l.Touch(fileID(t, a), b, when); !errors.Is(err, ErrChanged) {
		t.Errorf("Touch of another file = %v, want %v", err, ErrChanged)
	}
	before, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Touch(fileID(t, a), a, when); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(a); err != nil || !st.ModTime().Equal(when) || st.Size() != before.Size() {
		t.Errorf("Touch: %v, changed %v, want %v", err, st.ModTime(), when)
	}
}

// TestMoveOvertaken: a file that takes the name between the look and the rename keeps it, in one step and in two.
func TestMoveOvertaken(t *testing.T) {
	for name, inSteps := range map[string]bool{"in one step": false, "in steps": true} {
		dir := filesOf(t, "base", "anew")
		base, anew, to := filepath.Join(dir, "base"), filepath.Join(dir, "anew"), filepath.Join(dir, "aside")
		id, err := idOf(base)
		if err != nil {
			t.Fatal(err)
		}
		newer, err := idOf(anew)
		if err != nil {
			t.Fatal(err)
		}
		h := hostLinks{between: func() {
			if err := os.Rename(anew, base); err != nil {
				t.Error(err)
			}
		}}
		if inSteps {
			// The file had its new name by then: nothing is lost, and the old name is the other's.
			if err := h.moveInSteps(id, base, to); err != nil || id.is(to) != nil {
				t.Errorf("%s: %v, at the new name: %v", name, err, id.is(to))
			}
		} else if err := h.Move(id, base, to); !errors.Is(err, ErrChanged) {
			t.Errorf("%s: Move = %v, want %v", name, err, ErrChanged)
		} else if _, err := idOf(to); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something has the new name: %v", name, err)
		}
		if err := newer.is(base); err != nil {
			t.Errorf("%s: the file that was made meanwhile lost its name: %v", name, err)
		}
	}
}
