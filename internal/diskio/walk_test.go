// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// tree makes files and directories below a new directory; names that end in / are directories,
// "a -> b" are symbolic links, "a|" are FIFOs.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		path := filepath.Join(dir, name)
		var err error
		link, target, isLink := strings.Cut(name, " -> ")
		switch {
		case isLink:
			err = os.Symlink(target, filepath.Join(dir, link))
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case strings.HasSuffix(name, "|"):
			err = unix.Mkfifo(strings.TrimSuffix(path, "|"), 0o644)
		default:
			if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
				err = os.WriteFile(path, []byte(name), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var kindNames = []string{"file", "symlink", "special", "pseudo", "blind"}

// walk gives what a walk over the directories visits, as "kind path", sorted.
func walk(t *testing.T, dir string, starts ...string) []string {
	t.Helper()
	got := []string{}
	w := diskio.NewWalker(time.Minute, func(k diskio.WalkKind, path string, _ diskio.Stat, err error) error {
		if (k == diskio.WalkBlind) != (err != nil) {
			t.Errorf("visit(%v, %s) has the error %v", k, path, err)
		}
		got = append(got, kindNames[k]+" "+strings.TrimPrefix(path, dir+"/"))
		return nil
	})
	for _, s := range starts {
		if err := w.Walk(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(got)
	return got
}

func TestWalk(t *testing.T) {
	dir := tree(t, "a", "d/b", "d/e/c", "d/\xff\xfe", "l -> d", "d/out -> /etc", "d/loop -> ..",
		"fifo|", "empty/")
	want := []string{"file a", "file d/b", "file d/e/c", "file d/\xff\xfe", "special fifo",
		"symlink d/loop", "symlink d/out", "symlink l"}
	if diff := cmp.Diff(want, walk(t, dir, dir)); diff != "" {
		t.Errorf("Walk (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, walk(t, dir, dir, dir+"/d", dir)); diff != "" {
		t.Errorf("Walk of overlapping directories (-want +got):\n%s", diff)
	}
	want = []string{"file l/b", "file l/e/c", "file l/\xff\xfe", "symlink l/loop", "symlink l/out"}
	if diff := cmp.Diff(want, walk(t, dir, dir+"/l")); diff != "" {
		t.Errorf("Walk of a named link (-want +got):\n%s", diff)
	}
}

func TestWalkBlind(t *testing.T) {
	dir := tree(t, "a")
	for _, tc := range []struct {
		name, start string
		want        []string
	}{
		{"missing", dir + "/none", []string{"blind none"}},
		{"a file", dir + "/a", []string{"blind a"}},
		{"the kernel's own", "/proc", []string{"pseudo /proc"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, walk(t, dir, tc.start)); diff != "" {
				t.Errorf("Walk(%s) (-want +got):\n%s", tc.start, diff)
			}
		})
	}
}

func TestWalkDeep(t *testing.T) {
	dir := t.TempDir()
	path := dir
	for range 250 {
		path += "/d"
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	var blind []string
	w := diskio.NewWalker(time.Minute, func(_ diskio.WalkKind, path string, _ diskio.Stat, err error) error {
		if !errors.Is(err, diskio.ErrTooDeep) {
			t.Errorf("visit(%s, %v), want %v", path, err, diskio.ErrTooDeep)
		}
		blind = append(blind, path)
		return nil
	})
	if err := w.Walk(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if len(blind) != 1 {
		t.Errorf("Walk of 250 levels = %d blind places, want 1", len(blind))
	}
}

func TestWalkStops(t *testing.T) {
	dir := tree(t, "a", "b", "c")
	stop := errors.New("enough")
	n := 0
	visit := func(diskio.WalkKind, string, diskio.Stat, error) error { n++; return stop }
	if err := diskio.NewWalker(time.Minute, visit).Walk(t.Context(), dir); err != stop || n != 1 {
		t.Errorf("Walk = %v after %d visits, want %v after 1", err, n, stop)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := diskio.NewWalker(time.Minute, visit).Walk(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("Walk after cancel = %v, want %v", err, context.Canceled)
	}
}

func TestWalkManyFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range 3000 {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(walk(t, dir, dir)); n != 3000 {
		t.Errorf("Walk of 3000 files = %d", n)
	}
}

func TestWithin(t *testing.T) {
	cause := errors.New("cause")
	if got, err := diskio.Within(t.Context(), time.Minute, func() (int, error) { return 7, nil }, nil); got != 7 || err != nil {
		t.Errorf("Within = %v, %v, want 7", got, err)
	}
	if _, err := diskio.Within(t.Context(), time.Minute, func() (int, error) { return 7, cause }, nil); err != cause {
		t.Errorf("Within = %v, want %v", err, cause)
	}
	hang, late := make(chan struct{}), make(chan int)
	slow := func() (int, error) { <-hang; return 8, nil }
	give := func(v int) { late <- v }
	if _, err := diskio.Within(t.Context(), time.Millisecond, slow, give); !errors.Is(err, diskio.ErrTimeout) {
		t.Errorf("Within = %v, want %v", err, diskio.ErrTimeout)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := diskio.Within(ctx, time.Minute, slow, give); !errors.Is(err, context.Canceled) {
		t.Errorf("Within = %v, want %v", err, context.Canceled)
	}
	close(hang)
	if got := []int{<-late, <-late}; got[0] != 8 || got[1] != 8 {
		t.Errorf("late got %v, want [8 8]", got)
	}
}

func TestOpenSpecial(t *testing.T) {
	dir := tree(t, "x.qcow2|", "d/", "link -> x.qcow2")
	for name, want := range map[string]error{
		dir + "/x.qcow2": diskio.ErrSpecial, dir + "/link": diskio.ErrSpecial,
		dir + "/d": diskio.ErrDirectory, dir + "/none": fs.ErrNotExist, "/dev/null": diskio.ErrSpecial,
	} {
		if _, err := diskio.Open(name); !errors.Is(err, want) {
			t.Errorf("Open(%s) = %v, want %v", name, err, want)
		}
	}
}

// Who looks for images that nobody used for long must not find that we used them all.
func TestAccessTime(t *testing.T) {
	dir := tree(t, "d/a")
	old := time.Now().Add(-100 * time.Hour).Truncate(time.Second)
	accessed := func(path string) time.Time {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return time.Unix(st.Atim.Unix())
	}
	for _, p := range []string{dir + "/d/a", dir + "/d"} {
		if err := os.Chtimes(p, old, old); err != nil {
			t.Fatal(err)
		}
	}
	walk(t, dir, dir)
	f, err := diskio.Open(dir + "/d/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 3), 0); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir + "/d/a", dir + "/d"} {
		if got := accessed(p); !got.Equal(old) {
			t.Errorf("%s was accessed at %v, want %v", p, got, old)
		}
	}
}
