// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// manyDirs makes more directories than go into one run: most hold one file, some nothing, some more.
func manyDirs(t *testing.T, dir string) {
	t.Helper()
	for i := range 3*runLen + 5 {
		p := fmt.Sprintf("%s/i%03d", dir, i)
		err := os.Mkdir(p, 0o755)
		if i%7 != 0 {
			err = errors.Join(err, os.WriteFile(p+"/disk", []byte("text"), 0o644))
		}
		if i%11 == 0 {
			err = errors.Join(err, os.WriteFile(p+"/disk.info", []byte("{}"), 0o644), os.MkdirAll(p+"/deep/er", 0o755),
				os.WriteFile(p+"/deep/er/f", nil, 0o644), os.Symlink("disk", p+"/link"))
		}
		for k := range (i % 20) / 19 * (runFiles + 3) {
			err = errors.Join(err, os.WriteFile(fmt.Sprint(p, "/many", k), nil, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// neverKept tells of files that are read each time, such as those that are not sound.
func neverKept(path string) bool { return strings.HasSuffix(path, "5/disk") }

// told sweeps and gives what was told, in order, each as often as it was told, and what was opened. asking may hang where
// the clock goes on only while all wait (testing/synctest).
func told(t *testing.T, l *Learning, asking func(string), roots ...string) (all, opened []string) {
	t.Helper()
	return toldIn(t.Context(), t, l, asking, roots...)
}

func toldIn(ctx context.Context, t *testing.T, l *Learning, asking func(string), roots ...string) (all, opened []string) {
	t.Helper()
	var mu sync.Mutex
	s := &Sweep{HeadBytes: 4, Workers: 3, Timeout: time.Minute, Learn: l, asking: asking,
		opening: func(path string) {
			mu.Lock()
			opened = append(opened, path)
			mu.Unlock()
			if asking != nil {
				asking(path)
			}
		},
		File: func(_ int, f *Swept) {
			if !f.Known {
				f.Tag, f.Keep = uint32(len(f.Head)), !neverKept(f.Path())
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, fmt.Sprintf("%s %s %s %v %d %d %v %v %v", f.Path(), f.Dir, f.Name, f.In, f.Tag, f.Stat.SizeBytes,
				f.Stat.ID, f.Stat.ChangeTime, f.Born))
		},
		Other: func(kind WalkKind, path string, err error) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, fmt.Sprint(path, " ", kind, " ", err))
		}}
	if err := s.Run(ctx, roots); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(all)
	for _, line := range all {
		if path, _, _ := strings.Cut(line, " "); neverKept(path) && asking == nil && !slices.Contains(opened, path) {
			t.Errorf("%s is not opened, although nothing was to be kept of it", path)
		}
	}
	return all, slices.DeleteFunc(opened, neverKept)
}

// trustedDir is a directory on a file system whose times are trusted.
func trustedDir(t *testing.T) string {
	t.Helper()
	_, dir := memoryOf(t)
	dir += "/many"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// later is a time at which all changes until now are old enough to be remembered.
func later() time.Time { return time.Now().Add(time.Hour) }

// TestSameAsEverything: whatever changes, a sweep by what is remembered tells the very same as one of everything, each
// thing once, also where roots lie in one another; and then, when nothing changes, it opens nothing.
func TestSameAsEverything(t *testing.T) {
	for round := range testenv.Rounds(3, 30, 200) {
		r := rand.New(rand.NewPCG(uint64(round), 11))
		dir := trustedDir(t)
		manyDirs(t, dir)
		var known *Memory
		for step := range 8 {
			roots := []string{dir}
			for _, inner := range []string{"i000", "i001", "i002", "i011/deep"} {
				if r.IntN(2) == 0 {
					roots = slices.Insert(roots, r.IntN(len(roots)+1), filepath.Join(dir, inner))
				}
			}
			done := slices.Clone(roots[1:])
			if step > 1 {
				for range 1 + r.IntN(6) {
					done = append(done, changeOne(t, r, dir))
				}
			}
			time.Sleep(20 * time.Millisecond) // the kernel's clock ticks every ten milliseconds at most
			want, _ := told(t, nil, nil, roots...)
			l := &Learning{Known: known, Now: later()}
			got, opened := told(t, l, nil, roots...)
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("round %d after %q (-everything +remembered):\n%s", round, done, d)
			}
			if step > 0 && len(opened) > 2*runLen {
				t.Errorf("round %d after %q: %d files are opened", round, done, len(opened))
			}
			// What is learned is good for the next one, also as it is written.
			b := l.Seen.Append(nil)
			var err error
			if known, err = ParseMemory(b, 5); err != nil {
				t.Fatalf("round %d after %q: %v", round, done, err)
			}
			still := &Learning{Known: known, Now: later()}
			if again, opened := told(t, still, nil, roots...); len(opened) > 0 || !slices.Equal(again, got) {
				t.Fatalf("round %d after %q, then nothing: %q are opened", round, done, opened)
			}
		}
	}
}

// TestSameEntersLater: a directory that was not looked into before, in one that is as it was, is remembered from then on.
func TestSameEntersLater(t *testing.T) {
	dir := trustedDir(t)
	manyDirs(t, dir)
	var known *Memory
	for i, without := range []string{"/i001", "", ""} {
		l := &Learning{Known: known, Now: later()}
		files, opened := 0, 0
		s := &Sweep{HeadBytes: 4, Workers: 1, Timeout: time.Minute, Learn: l, Other: func(WalkKind, string, error) {},
			opening: func(string) { opened++ },
			File:    func(_ int, f *Swept) { files++; f.Keep = true },
			Enter:   func(path string) bool { return path != dir+without }}
		if err := s.Run(t.Context(), []string{dir}); err != nil {
			t.Fatal(err)
		}
		if want := []int{files, 1, 0}[i]; opened != want {
			t.Errorf("sweep %d opens %d of %d files, want %d", i, opened, files, want)
		}
		known = l.Seen
	}
}

// changeOne changes something, and says what.
func changeOne(t *testing.T, r *rand.Rand, dir string) string {
	t.Helper()
	at := fmt.Sprintf("%s/i%03d", dir, r.IntN(3*runLen+5))
	var what string
	var err error
	switch r.IntN(8) {
	case 0:
		what, err = "write", os.WriteFile(at+"/disk", []byte(strings.Repeat("x", r.IntN(5))), 0o644)
	case 1:
		what, err = "touch", os.Chtimes(at+"/disk", time.Unix(1, 0), time.Unix(1, 0))
	case 2:
		what, err = "remove", os.RemoveAll(at)
	case 3:
		what, err = "make", os.MkdirAll(at+"/new", 0o755)
	case 4:
		what, err = "add", os.WriteFile(fmt.Sprintf("%s/add%d", at, r.IntN(4)), nil, 0o644)
	case 5:
		to := fmt.Sprintf("%s/i%03d", dir, r.IntN(3*runLen+5))
		what, err = "swap with "+filepath.Base(to), unix.Renameat2(unix.AT_FDCWD, at, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	case 6:
		what, err = "link", os.Rename(at, at+".moved")
		if err == nil {
			err = os.Symlink(filepath.Base(at)+".moved", at)
		}
	case 7:
		what, err = "chmod", os.Chmod(at, 0o700)
	}
	if err != nil {
		what += " (not)"
	}
	return what + " " + filepath.Base(at)
}

// TestSameHangs: a name that does not answer while a run is looked at is told, and nothing else is lost by it: what the
// same worker had looked at before is looked at again, and told once.
func TestSameHangs(t *testing.T) {
	dir := trustedDir(t)
	manyDirs(t, dir)
	first := &Learning{Now: later()}
	want, _ := told(t, first, nil, dir)
	now := later()
	for _, hanging := range [][]string{{"i040"}, {"i040/disk"}, {"i001", "i003/disk", "i004", "i100", "i101/disk"}} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			var mu sync.Mutex
			asked := map[string]int{}
			l := &Learning{Known: first.Seen, Now: now}
			got, _ := told(t, l, func(path string) {
				name := strings.TrimPrefix(path, dir+"/")
				mu.Lock()
				asked[name]++
				mu.Unlock()
				if slices.Contains(hanging, name) {
					<-release
				}
			}, dir)
			close(release)
			synctest.Wait()
			if d := cmp.Diff(withoutHanging(want, dir, hanging), got); d != "" {
				t.Errorf("%q hang (-want +got):\n%s", hanging, d)
			}
			for _, h := range hanging {
				if asked[h] != 1 {
					t.Errorf("%s, which does not answer, was asked for %d times", h, asked[h])
				}
			}
		})
	}
}

// withoutHanging is what is told of a directory where some names in it do not answer.
func withoutHanging(all []string, dir string, hanging []string) (left []string) {
	for _, line := range all {
		inHanging := slices.ContainsFunc(hanging, func(h string) bool {
			at := dir + "/" + strings.TrimSuffix(h, "/disk")
			return strings.HasPrefix(line, at+"/") || strings.HasPrefix(line, at+" ")
		})
		if !inHanging {
			left = append(left, line)
		}
	}
	for _, h := range hanging {
		path := dir + "/" + h
		left = append(left, fmt.Sprint(path, " ", WalkBlind, " read ", path, ": ", ErrTimeout))
	}
	slices.Sort(left)
	return left
}

// TestSameAllHang: where too many names do not answer, each directory that nobody looks at is told.
func TestSameAllHang(t *testing.T) {
	dir := trustedDir(t)
	manyDirs(t, dir)
	first := &Learning{Now: later()}
	told(t, first, nil, dir)
	now := later()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		all, _ := told(t, &Learning{Known: first.Seen, Now: now}, func(path string) {
			if path != dir {
				<-release
			}
		}, dir)
		close(release)
		for i := range 3*runLen + 5 {
			blind := fmt.Sprintf("%s/i%03d %v ", dir, i, WalkBlind)
			if !slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, blind) }) {
				t.Errorf("nobody is told that i%03d was not looked at", i)
			}
		}
		if len(all) != 3*runLen+5 {
			t.Errorf("%d things are told, want only what was not looked at", len(all))
		}
	})
}

// TestSamePaths: the names of a run are as long as is reckoned, and no more than the run may hold, however many files a
// directory has.
func TestSamePaths(t *testing.T) {
	dir := trustedDir(t)
	manyDirs(t, dir)
	l := &Learning{Now: later()}
	told(t, l, nil, dir)
	m, large := l.Seen, 0
	for i := range m.subs {
		s := &m.subs[i]
		if s.dir < 0 {
			continue
		}
		paths := string(m.pathsOf(nil, dir, s))
		want := 1
		if d := &m.dirs[s.dir]; d.files > runFiles {
			large++
		} else if d.subs == 0 {
			want += int(d.files)
		}
		if n := strings.Count(paths, "\x00"); n != want || len(paths) != m.pathsLen(dir, s) {
			t.Errorf("%s: %d names of %d bytes, want %d of %d", m.sub(s), n, len(paths), want, m.pathsLen(dir, s))
		}
	}
	if large == 0 {
		t.Error("no directory has many files")
	}
}

// TestSameMoved: files that get other names while a directory is gone through by what is known of it are told, or the
// directory is a gap, however many there are and whatever was met before.
func TestSameMoved(t *testing.T) {
	dir := trustedDir(t)
	name := func(kind string, i int) string { return fmt.Sprintf("%s/%s%03d", dir, kind, i) }
	const count = 2 * maxMoves
	for i := range count {
		if err := os.WriteFile(name("old", i), []byte("text"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first := &Learning{Now: later()}
	told(t, first, nil, dir)
	time.Sleep(20 * time.Millisecond)
	for i := range count {
		if err := os.Chmod(name("old", i), 0o600); err != nil { // so that each is read again
			t.Fatal(err)
		}
	}
	files, blind := 0, []string{}
	var once sync.Once
	s := &Sweep{HeadBytes: 4, Workers: 1, Timeout: time.Minute, Learn: &Learning{Known: first.Seen, Now: later()},
		opening: func(string) {
			once.Do(func() {
				for i := range count {
					if err := os.Rename(name("old", i), name("new", i)); err != nil {
						t.Error(err)
					}
				}
			})
		},
		File:  func(int, *Swept) { files++ },
		Other: func(_ WalkKind, path string, err error) { blind = append(blind, path) }}
	if err := s.Run(t.Context(), []string{dir}); err != nil {
		t.Fatal(err)
	}
	if files < count && !slices.Equal(blind, []string{dir}) {
		t.Errorf("%d of %d files are told, and the gaps are %q", files, count, blind)
	}
}

// TestGivenUpAtItsEnd: a worker that is given up when it has told of all in a directory takes no further one, which
// nobody would be told of.
func TestGivenUpAtItsEnd(t *testing.T) {
	r := &sweep{seen: map[ID]bool{}, trust: map[uint64]trust{}, open: 2, alive: 1, queue: []sweepDir{
		{path: t.TempDir(), dev: ^uint64(0), known: -1}, {path: "/proc", dev: ^uint64(0), known: -1}}}
	r.more = sync.NewCond(&r.mu)
	r.users.Store(2)
	w := &sweeper{r: r, names: make([]byte, dirBytes)}
	r.Sweep = &Sweep{Other: func(WalkKind, string, error) { // the last that is told of /proc: then as giveUp does
		w.gone = true
		r.open--
		r.alive--
	}}
	w.work()
	if len(r.queue) != 1 || r.open != 1 || r.alive != 0 {
		t.Errorf("%d directories wait, %d are open, %d workers live; want 1, 1 and 0", len(r.queue), r.open, r.alive)
	}
}
