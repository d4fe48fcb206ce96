// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// TestMoveOvertaken: a file that takes the name between the look and the rename keeps it, in one step and in two. Where
// a third has that name by then none is lost.
// TestTouchFar: a file gets the time that it is given also where that is no number of nanoseconds.
func TestTouchFar(t *testing.T) {
	dir := filesOf(t, "a", "b")
	far := time.Date(2400, 1, 2, 3, 4, 5, 0, time.UTC)
	ts := unix.Timespec{Sec: far.Unix()}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/a", []unix.Timespec{ts, ts}, 0); err != nil {
		t.Fatal(err)
	}
	if err := HostLinks().Touch(fileID(t, dir+"/b"), dir+"/b", far); err != nil {
		t.Fatal(err)
	}
	// The file system may end before that year.
	want, err1 := LookEntry(dir + "/a")
	got, err2 := LookEntry(dir + "/b")
	if err := errors.Join(err1, err2); err != nil || !got.ModTime.Equal(want.ModTime) {
		t.Errorf("Touch to %v gives %v, want %v, %v", far, got.ModTime, want.ModTime, err)
	}
}

// TestTimeOf: whatever time a file has, documents can tell it.
func TestTimeOf(t *testing.T) {
	for seconds, want := range map[int64]string{
		math.MinInt64: "0000-01-01T00:00:00Z", -62167219201: "0000-01-01T00:00:00Z", -62167219200: "0000-01-01T00:00:00.000000005Z",
		0: "1970-01-01T00:00:00.000000005Z", 253402300799: "9999-12-31T23:59:59.000000005Z", 253402300800: "9999-12-31T23:59:59Z",
		math.MaxInt64: "9999-12-31T23:59:59Z",
	} {
		got, err := timeOf(seconds, 5).MarshalText()
		if err != nil || string(got) != want {
			t.Errorf("timeOf(%d) = %s, %v, want %s", seconds, got, err, want)
		}
	}
}

func TestMoveOvertaken(t *testing.T) {
	type move func(hostLinks, ID, string, string) error
	aside := func(h hostLinks, id ID, from, to string) error { return h.Aside(id, from, to) }
	for name, c := range map[string]struct {
		do    move
		old   bool
		third bool
		want  error
	}{
		"move":                          {func(h hostLinks, id ID, from, to string) error { return h.Move(id, from, to) }, false, false, ErrChanged},
		"move in steps":                 {hostLinks.moveInSteps, true, false, nil},
		"aside":                         {aside, false, false, ErrChanged},
		"aside, on an old one":          {aside, true, false, ErrChanged},
		"aside, a third":                {aside, false, true, fs.ErrExist},
		"aside, a third, on an old one": {aside, true, true, fs.ErrExist},
	} {
		dir := filesOf(t, "base", "anew", "third")
		base, anew, to := filepath.Join(dir, "base"), filepath.Join(dir, "anew"), filepath.Join(dir, "aside")
		id, newer, last := fileID(t, base), fileID(t, anew), fileID(t, filepath.Join(dir, "third"))
		h := hostLinks{old: c.old, between: func() {
			if err := os.Rename(anew, base); err != nil {
				t.Error(err)
			}
		}, before: func() {
			if err := os.Rename(filepath.Join(dir, "third"), base); c.third && err != nil {
				t.Error(err)
			}
		}}
		if !c.third {
			h.before = nil
		}
		if err := c.do(h, id, base, to); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		want := map[string]ID{base: newer}
		switch {
		case c.third: // the one that was taken by mistake is where the error says
			want = map[string]ID{base: last, to: newer}
		case c.want == nil: // the file had its new name by then
			want[to] = id
		}
		for path, id := range want {
			if err := id.is(path); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := idOf(to); want[to] == (ID{}) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something has the new name: %v", name, err)
		}
	}
}

// TestAside: a file gets a new name, on any file system.
func TestAside(t *testing.T) {
	for _, old := range []bool{false, true} {
		dir := filesOf(t, "a", "b")
		h, a, b, c := hostLinks{old: old}, dir+"/a", dir+"/b", dir+"/c"
		if err := h.Aside(fileID(t, a), a, b); !errors.Is(err, fs.ErrExist) || holds(t, b) != "b" || holds(t, a) != "a" {
			t.Errorf("Aside over another file = %v, want %v and nothing changed", err, fs.ErrExist)
		}
		if err := h.Aside(fileID(t, a), a, c); err != nil || holds(t, c) != "a" || holds(t, a) != "" {
			t.Errorf("Aside = %v, want that it has the new name only", err)
		}
		if err := h.Move(fileID(t, c), c, a); err != nil || holds(t, a) != "a" || holds(t, c) != "" {
			t.Errorf("Move = %v, want that it has its name again", err)
		}
	}
}

// TestTakeBack: a name is taken back from a file that has another one, and never from a file of somebody else.
func TestTakeBack(t *testing.T) {
	for name, other := range map[string]bool{"the same file": false, "another file": true} {
		dir := t.TempDir()
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		if err := os.WriteFile(from, []byte("a"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := os.Link(from, to)
		if other {
			err = os.WriteFile(to+".new", []byte("b"), 0o600)
			if err == nil {
				err = os.Rename(to+".new", to)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := takeBack(from, to); err != nil {
			t.Errorf("%s: takeBack() = %v", name, err)
		}
		if _, err := os.Stat(to); (err == nil) != other {
			t.Errorf("%s: the name is there: %v, want %v", name, err == nil, other)
		}
		if _, err := os.Stat(from); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStays: a removal that failed was done only if a look says so.
func TestStays(t *testing.T) {
	eio := &fs.PathError{Op: "look at", Path: "a", Err: unix.EIO}
	for _, c := range []struct {
		name      string
		err, look error
		want      error
	}{
		{"done", nil, fs.ErrNotExist, nil},
		{"done, and another file's", nil, ErrChanged, nil},
		{"done, and nobody can look", nil, eio, nil},
		{"not done", unix.EPERM, nil, unix.EPERM},
		{"said to be done", nil, nil, ErrNotDone},
		{"done, and the answer is lost", unix.EIO, fs.ErrNotExist, nil},
		{"not done, and nobody can look", unix.EIO, eio, unix.EIO},
	} {
		if got := stays(c.err, c.look); !errors.Is(got, c.want) || c.want == nil && got != nil {
			t.Errorf("%s: stays = %v, want %v", c.name, got, c.want)
		}
	}
}
