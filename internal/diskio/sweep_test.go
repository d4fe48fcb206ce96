// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
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
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			var mu sync.Mutex
			files, blind, left := 0, 0, hanging
			s := &Sweep{HeadBytes: 1, Workers: 2, Timeout: time.Minute,
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
			synctest.Wait()
			if err != nil || files+blind != 30 || hanging < maxMute && blind != hanging || blind < min(hanging, maxMute) {
				t.Errorf("%d hang: Run = %v, %d files and %d blind of 30", hanging, err, files, blind)
			}
		})
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

// TestSweepEntries: what the kernel tells of a directory, or who stands for it, is not believed blindly; a file
// system that tells no types is asked for them.
func TestSweepEntries(t *testing.T) {
	entry := func(kind byte, name string, length int) []byte {
		b := make([]byte, 24+len(name))
		binary.NativeEndian.PutUint16(b[direntLen:], uint16(length))
		b[direntType] = kind
		copy(b[direntName:], name)
		return b
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/d", 0o755), os.WriteFile(dir+"/f", []byte("text"), 0o644),
		os.Symlink("f", dir+"/l"), unix.Mkfifo(dir+"/p", 0o644)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tc := range []struct {
		name  string
		b     []byte
		wrong bool
		told  string
	}{
		{"file", entry(unix.DT_REG, "f", 25), false, "f 4 "},
		{"file of unknown type", entry(unix.DT_UNKNOWN, "f", 25), false, "f 4 "},
		{"directory of unknown type", entry(unix.DT_UNKNOWN, "d", 25), false, "into d "},
		{"link of unknown type", entry(unix.DT_UNKNOWN, "l", 25), false, "1 l "},
		{"pipe of unknown type", entry(unix.DT_UNKNOWN, "p", 25), false, "2 p "},
		{"gone", entry(unix.DT_UNKNOWN, "g", 25), false, ""},
		{"directory", entry(unix.DT_DIR, "d", 25), false, "into d "},
		{"itself and its parent", append(entry(unix.DT_DIR, ".", 25), entry(unix.DT_DIR, "..", 26)...), false, ""},
		{"not whole", entry(unix.DT_REG, "f", 25)[:19], true, ""},
		{"longer than there is", entry(unix.DT_REG, "f", 26), true, ""},
		{"shorter than its head", entry(unix.DT_REG, "f", 19), true, ""},
		{"of no length", entry(unix.DT_REG, "f", 0), true, ""},
		{"a file, then nonsense", append(entry(unix.DT_REG, "f", 25), 1, 2, 3), true, "f 4 "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			s := &Sweep{HeadBytes: 1, Workers: 1, Timeout: time.Minute,
				File: func(_ int, f *Swept) { got += fmt.Sprintf("%s %d ", f.Name, f.Stat.SizeBytes) },
				Other: func(kind WalkKind, path string, err error) {
					got += fmt.Sprintf("%d %s ", kind, filepath.Base(path))
				}}
			r := &sweep{Sweep: s, seen: map[ID]bool{}, hash: maphash.MakeSeed()}
			r.more = sync.NewCond(&r.mu)
			w := &sweeper{r: r, head: make([]byte, 1)}
			wrong := false
			for _, directories := range []bool{true, false} {
				_, err := w.batch(int(f.Fd()), sweepDir{path: dir}, tc.b, false, directories)
				wrong = wrong || errors.Is(err, errDirent)
			}
			for _, d := range r.queue {
				got += "into " + filepath.Base(d.path) + " "
			}
			if got != tc.told || wrong != tc.wrong {
				t.Errorf("batch tells %q, wrong %v, want %q, %v", got, wrong, tc.told, tc.wrong)
			}
		})
	}
}
