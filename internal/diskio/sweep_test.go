// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// swept runs a sweep and gives what it told, by path.
func swept(t *testing.T, s *Sweep, dirs ...string) map[string]string {
	t.Helper()
	var mu sync.Mutex
	got := map[string]string{}
	s.File = func(worker int, f *Swept) {
		if worker < 0 || worker >= s.Slots() {
			t.Errorf("worker %d of %d", worker, s.Slots())
		}
		mu.Lock()
		defer mu.Unlock()
		got[f.Path()] = fmt.Sprintf("%d %q", f.Stat.SizeBytes, f.Head)
	}
	s.Other = func(kind WalkKind, path string, err error) {
		mu.Lock()
		defer mu.Unlock()
		got[path] = [...]string{"file", "link", "special", "pseudo", "blind"}[kind]
		if err != nil {
			got[path] += ": " + errors.Unwrap(err).Error()
		}
	}
	if err := s.Run(t.Context(), dirs); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	want := map[string]string{}
	for i := range 300 {
		p := filepath.Join(dir, strings.Repeat("d/", i%7), fmt.Sprint("s", i%13))
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		p += fmt.Sprint("/f", i)
		text := strings.Repeat("x", i)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		want[p] = fmt.Sprintf("%d %q", i, text[:min(i, 100)])
	}
	if err := os.Symlink("d", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	want[dir+"/link"] = "link"
	if err := unix.Mkfifo(dir+"/pipe", 0o644); err != nil {
		t.Fatal(err)
	}
	want[dir+"/pipe"] = "special"
	want[dir+"/nowhere"] = "blind: no such file or directory"
	s := &Sweep{HeadBytes: 100, Workers: 4, Timeout: time.Minute}
	// A directory that is named twice is swept once.
	if d := cmp.Diff(want, swept(t, s, dir, dir+"/d", dir+"/nowhere")); d != "" {
		t.Errorf("Run (-want +got):\n%s", d)
	}
	s.Enter = func(path string) bool { return path != dir+"/d" }
	maps.DeleteFunc(want, func(p, _ string) bool { return strings.HasPrefix(p, dir+"/d/") })
	if d := cmp.Diff(want, swept(t, s, dir, dir+"/nowhere")); d != "" {
		t.Errorf("Run without a directory (-want +got):\n%s", d)
	}
}

func TestSweepPseudo(t *testing.T) {
	s := &Sweep{HeadBytes: 100, Workers: 1, Timeout: time.Minute}
	if d := cmp.Diff(map[string]string{"/proc": "pseudo"}, swept(t, s, "/proc")); d != "" {
		t.Errorf("Run (-want +got):\n%s", d)
	}
}

// TestSweepHangs: a name that does not answer holds one worker, and the rest of its directory is not
// looked at; after many such, nothing is.
func TestSweepHangs(t *testing.T) {
	dir := t.TempDir()
	for i := range 30 {
		p := filepath.Join(dir, fmt.Sprintf("%02d", i))
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p+"/f", nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var dirs []string
	for i := range 30 {
		dirs = append(dirs, filepath.Join(dir, fmt.Sprintf("%02d", i)))
	}
	for _, hanging := range []int{1, 3, 30} {
		release := make(chan struct{})
		var mu sync.Mutex
		files, blind, left := 0, 0, hanging
		s := &Sweep{HeadBytes: 1, Workers: 2, Timeout: 100 * time.Millisecond,
			File:  func(int, *Swept) { mu.Lock(); files++; mu.Unlock() },
			Other: func(WalkKind, string, error) { mu.Lock(); blind++; mu.Unlock() },
			opening: func(string) {
				mu.Lock()
				left--
				hang := left >= 0
				mu.Unlock()
				if hang {
					<-release
				}
			},
		}
		err := s.Run(t.Context(), dirs)
		close(release)
		mu.Lock()
		if err != nil || files+blind != 30 || blind < min(hanging, maxMute) {
			t.Errorf("%d hang: Run = %v, %d files and %d blind of 30", hanging, err, files, blind)
		}
		mu.Unlock()
	}
}

func TestSweepEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &Sweep{HeadBytes: 1, Workers: 2, Timeout: time.Minute, File: func(int, *Swept) {}, Other: func(WalkKind, string, error) {}}
	if err := s.Run(ctx, []string{t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want that it was ended", err)
	}
}
