// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestSweepMoved: a file that gets another name in its directory between the look at the names and that at the file is
// told by its new one.
func TestSweepMoved(t *testing.T) {
	for _, c := range []struct {
		name string
		// change is called before at is opened in dir.
		change func(dir, at string) error
		want   string
	}{
		{"another name", func(dir, at string) error {
			if at != "f" {
				return nil
			}
			return os.Rename(dir+"/f", dir+"/a new one")
		}, "a new one: text"},
		{"twice", func(dir, at string) error {
			to := map[string]string{"f": "g", "g": "h"}[at]
			if to == "" {
				return nil
			}
			return os.Rename(dir+"/"+at, dir+"/"+to)
		}, "h: text"},
		{"removed", func(dir, at string) error { return os.Remove(dir + "/" + at) }, ""},
		{"removed with its directory", func(dir, _ string) error { return os.RemoveAll(dir) },
			"blind: no such file or directory"},
		{"into another directory", func(dir, at string) error { return os.Rename(dir+"/"+at, dir+"/../elsewhere") }, ""},
		{"again and again", func(dir, at string) error {
			return os.Rename(dir+"/"+at, dir+"/"+map[string]string{"f": "g", "g": "f"}[at])
		},
			"blind: its names changed each of the 8 times that it was read"},
	} {
		dir := filepath.Join(t.TempDir(), "dir")
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/f", []byte("text"), 0o600)); err != nil {
			t.Fatal(err)
		}
		got := ""
		s := &Sweep{HeadBytes: 16, Workers: 1, Timeout: time.Minute,
			opening: func(path string) {
				if err := c.change(dir, filepath.Base(path)); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			},
			File:  func(_ int, f *Swept) { got = f.Name + ": " + string(f.Head) },
			Other: func(_ WalkKind, _ string, err error) { got = fmt.Sprintf("blind: %v", errors.Unwrap(err)) }}
		if err := s.Run(t.Context(), []string{dir}); err != nil {
			t.Fatal(err)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	// Some that are removed at once are no reason to give the directory up.
	dir := t.TempDir()
	for i := range 3 * maxMoves {
		if err := os.WriteFile(fmt.Sprint(dir, "/", i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &Sweep{HeadBytes: 16, Workers: 1, Timeout: time.Minute, opening: func(path string) { _ = os.Remove(path) }}
	if got := swept(t, s, dir); len(got) != 0 {
		t.Errorf("all removed: %v", got)
	}
}

// TestSweepChanging: in a directory that takes the kernel several calls what is renamed meanwhile is told by one of its names
// at least, whether it is a file or a directory.
func TestSweepChanging(t *testing.T) {
	for _, deep := range []bool{false, true} {
		// Names that change for longer than the directory is read again and again are a gap, as on a busy machine.
		tries := 0
		for ; sweepChanging(t, deep); tries++ {
			if tries == 20 {
				t.Fatalf("directories: %v: given up %d times", deep, tries)
			}
		}
	}
}

// sweepChanging is one try; gap tells that the directory was given up.
func sweepChanging(t *testing.T, deep bool) (gap bool) {
	const count = 3000
	dir := testenv.DiskDir(t)
	name := func(kind string, i int) string {
		return fmt.Sprintf("%s/%s%04d%s", dir, kind, i, strings.Repeat("x", 40))
	}
	for i := range count {
		at := name("old", i)
		if deep {
			if err := os.Mkdir(at, 0o755); err != nil {
				t.Fatal(err)
			}
			at += "/disk"
		}
		if err := os.WriteFile(at, []byte(fmt.Sprint(i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	seen, told, begun := map[string]int{}, map[int]bool{}, false
	s := &Sweep{HeadBytes: 16, Workers: 4, Timeout: time.Minute,
		opening: func(string) {
			mu.Lock()
			defer mu.Unlock()
			if begun {
				return
			}
			begun = true
			for i := 0; i < count; i += 2 {
				if err := os.Rename(name("old", i), name("new", i)); err != nil {
					t.Error(err)
				}
			}
		},
		File: func(_ int, f *Swept) { mu.Lock(); seen[string(f.Head)]++; mu.Unlock() },
		Other: func(_ WalkKind, path string, err error) {
			if errors.Is(err, errChanging) {
				gap = true
				return
			}
			var i int
			if _, scan := fmt.Sscanf(filepath.Base(path), "old%04d", &i); scan != nil || !deep || !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
			told[i] = true // a directory that was queued by its old name is a gap
		}}
	if err := s.Run(t.Context(), []string{dir}); err != nil {
		t.Fatal(err)
	}
	missed, twice := 0, 0
	for i := range count {
		switch n := seen[fmt.Sprint(i)]; {
		case n == 0 && !told[i]:
			missed++
		case n > 1:
			twice++
		}
	}
	if !gap && missed > 0 || twice > 0 {
		t.Errorf("directories: %v: of %d files %d were missed, and %d told twice", deep, count, missed, twice)
	}
	return gap
}
