// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

func (w *world) inode(path string) uint64 {
	w.t.Helper()
	e, err := diskio.LookEntry(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return e.Ino
}

func (w *world) text(name string) string {
	w.t.Helper()
	text, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// TestNewFileUnderOldName: a base that was removed and downloaded anew is another file. Both are kept, and the old one
// never takes the place of the new one.
func TestNewFileUnderOldName(t *testing.T) {
	w := newWorld(t, "a")
	w.protect(ProtectOptions{}, "a")
	old := w.inode(w.path("a"))
	w.remove("a")
	w.write("a", "downloaded anew")
	d := w.protect(ProtectOptions{}, "a")
	if !slices.Equal(d.Shielded, []string{"a"}) || !slices.Equal(d.Recorded, []string{"a"}) {
		t.Errorf("Protect = %+v, want that the new file is shielded and recorded too", d)
	}
	var inodes []uint64
	for _, h := range w.state().ShieldsOf("a") {
		inodes = append(inodes, h.ID.Ino)
	}
	want := []uint64{old, w.inode(w.path("a"))}
	slices.Sort(inodes)
	slices.Sort(want)
	if !slices.Equal(inodes, want) || old == w.inode(w.path("a")) {
		t.Fatalf("shields of inodes %d, want %d", inodes, want)
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, w.options()); !errors.Is(err, ErrThere) {
		t.Errorf("Restore = %v, want %v", err, ErrThere)
	}
	if got := w.text("a"); got != "downloaded anew" {
		t.Errorf("a holds %q", got)
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{As: "a.old"}, w.options()); err != nil || w.inode(w.path("a.old")) != old {
		t.Errorf("Restore as another = %v, inode %d, want %d", err, w.inode(w.path("a.old")), old)
	}
}

// TestOneFileTwoNames: rename(2) of one name of a file onto another of it does nothing and says that all is well.
// Whatever gives or takes names is asked for both being one file, and none may be lost.
func TestOneFileTwoNames(t *testing.T) {
	w := newWorld(t, "a")
	if err := os.Link(w.path("a"), w.path("b")); err != nil {
		t.Fatal(err)
	}
	d := w.protect(ProtectOptions{}, "a")
	if !slices.Equal(d.Shielded, []string{"a", "b"}) || !slices.Equal(d.Recorded, []string{"a"}) {
		t.Errorf("Protect = %+v, want both names shielded, and the file recorded once", d)
	}
	if d = w.protect(ProtectOptions{}, "a"); len(d.Recorded) > 0 {
		t.Errorf("recorded %q once more", d.Recorded)
	}
	// The shield is the base itself: nothing is to be renamed onto anything.
	d, err := Restore(t.Context(), "a", RestoreOptions{}, w.options())
	if err != nil || len(d.Restored)+len(d.Left) > 0 || !slices.Equal(d.Touched, []string{"a"}) {
		t.Errorf("Restore of what is there = %+v, %v", d, err)
	}
	w.remove("a")
	// b is still there, and is not a: its name does not speak for the shield of a.
	if d, err = Unprotect(t.Context(), UnprotectOptions{}, w.options()); err != nil || !slices.Equal(d.Unshielded, []string{"b"}) ||
		len(d.Left) != 1 || d.Left[0].Name != "a" {
		t.Errorf("Unprotect = %+v, %v, want that the shield of a stays", d, err)
	}
	if d, err = Restore(t.Context(), "a", RestoreOptions{}, w.options()); err != nil || w.text("a") != "a" || w.inode(w.path("a")) != w.inode(w.path("b")) {
		t.Errorf("Restore = %+v, %v", d, err)
	}
	e, err := diskio.LookEntry(w.path("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := diskio.HostLinks().Move(e.ID, w.path("a"), w.path("b")); !errors.Is(err, os.ErrExist) {
		t.Errorf("Move onto another name of the file = %v, want that it is there", err)
	}
	if w.text("a") != "a" || w.text("b") != "a" {
		t.Error("a name was lost")
	}
}

// TestBackIsNew: what comes back looks as if it was changed now, in whatever way it comes: a cleaner removes at
// once what looks old.
func TestBackIsNew(t *testing.T) {
	w := newWorld(t, "a", "elsewhere")
	w.protect(ProtectOptions{})
	w.remove("a")
	if w.state().Alone()[0].Modified.After(time.Now().Add(-24 * time.Hour)) {
		t.Fatal("the shield of a is new: it proves nothing")
	}
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, w.options()); err != nil || w.old("a") {
		t.Errorf("Restore = %v; old: %v", err, w.old("a"))
	}
	st, err := diskio.Look(w.path("elsewhere"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(t.Context(), w.path("elsewhere"), st.ID, "c", Proof{Why: "test"}, w.options()); err != nil || w.old("c") {
		t.Errorf("Adopt = %v; old: %v", err, w.old("c"))
	}
}

// TestClocks: what is old is told by the clock of the file system alone. This host's may be years off, and so may the
// times of files.
func TestClocks(t *testing.T) {
	for _, years := range []int{-30, -1, 1, 30} {
		w := newWorld(t, "old", "fresh", "ahead", "1970")
		for name, at := range map[string]time.Time{"fresh": time.Now().Add(-time.Hour), "ahead": time.Now().AddDate(25, 0, 0),
			"1970": time.Unix(0, 0)} {
			if err := os.Chtimes(w.path(name), at, at); err != nil {
				t.Fatal(err)
			}
		}
		o := w.options()
		o.Now = func() time.Time { return time.Now().AddDate(years, 0, 0) }
		begun := time.Now()
		d, err := Protect(t.Context(), w.census("old", "fresh", "ahead", "1970"), ProtectOptions{NoRecord: true}, o)
		if want := []string{"1970", "ahead", "old"}; err != nil || !slices.Equal(d.Touched, want) {
			t.Errorf("a clock that is %d years off: touched %q, %v, want %q", years, d.Touched, err, want)
		}
		for _, n := range []string{"old", "ahead", "1970"} {
			// The clock of a file system goes by ticks.
			if at := w.modified(n); at.Before(begun.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
				t.Errorf("a clock that is %d years off: %s was changed at %s, want now", years, n, at)
			}
		}
	}
}

// TestPoolUnread: where pool.json is there and cannot be read nobody says that it is not, and a plan tells why.
func TestPoolUnread(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	d, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	w.write(".shisa/pool.json", "{ broken")
	for name, act := range map[string]func() error{
		"protect":   func() error { _, err := Protect(t.Context(), w.census(), ProtectOptions{}, o); return err },
		"unprotect": func() error { _, err := Unprotect(t.Context(), UnprotectOptions{}, o); return err },
		"undo":      func() error { _, err := Undo(t.Context(), d.Receipt, UndoOptions{}, o); return err },
	} {
		if err := act(); !errors.Is(err, pool.ErrPool) || errors.Is(err, ErrOtherPool) {
			t.Errorf("%s = %v, want %v", name, err, pool.ErrPool)
		}
	}
	census := func(context.Context) (*refs.Census, error) { return w.census(), nil }
	p, err := Plan(t.Context(), nil, Decision{Census: census}, o)
	if err != nil || !slices.Equal(p.Status, []int{finding.StatusCannotTell}) || p.Blockers[0].Rule != judge.Unreadable {
		t.Fatalf("Plan = %+v, %v, want that it could not be read", p, err)
	}
	if _, err := Quarantine(t.Context(), p, Decision{Census: census}, o); !errors.Is(err, pool.ErrPool) {
		t.Errorf("Quarantine = %v, want %v", err, pool.ErrPool)
	}
}

// TestNotMounted: where a pool was and none is, nothing is made, and nothing is taken away either.
func TestNotMounted(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	if _, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o); err != nil {
		t.Fatal(err)
	}
	mounted := w.dir + ".mounted"
	if err := os.Rename(w.dir, mounted); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := w.census()
	for name, act := range map[string]func() error{
		"protect":   func() error { _, err := Protect(t.Context(), c, ProtectOptions{}, o); return err },
		"unprotect": func() error { _, err := Unprotect(t.Context(), UnprotectOptions{Records: true}, o); return err },
		"adopt": func() error {
			st, err := diskio.Look(mounted + "/a")
			if err != nil {
				return err
			}
			_, err = Adopt(t.Context(), mounted+"/a", st.ID, "a", Proof{Why: "test"}, o)
			return err
		},
		"join": func() error { _, err := Join(t.Context(), "n1", Person{"p", "r"}, o); return err },
	} {
		if err := act(); !errors.Is(err, ErrOtherPool) {
			t.Errorf("%s = %v, want %v", name, err, ErrOtherPool)
		}
	}
	if all, err := os.ReadDir(w.dir); err != nil || len(all) > 0 {
		t.Errorf("the empty directory holds %v, %v", all, err)
	}
	// Another pool at the place of it is told just as well, and taken where somebody says that it is meant.
	other := newWorld(t, "b")
	other.protect(ProtectOptions{NoRecord: true})
	if err := errors.Join(os.Remove(w.dir), os.Rename(other.dir, w.dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Protect(t.Context(), w.census(), ProtectOptions{}, o); !errors.Is(err, ErrOtherPool) {
		t.Errorf("Protect of another pool = %v, want %v", err, ErrOtherPool)
	}
	o.NewPool = true
	if _, err := Protect(t.Context(), w.census(), ProtectOptions{}, o); err != nil {
		t.Error(err)
	}
	o.NewPool = false
	if _, err := Protect(t.Context(), w.census(), ProtectOptions{}, o); err != nil {
		t.Errorf("Protect of what was said to be a new pool: %v", err)
	}
}

// TestCopiedDirectory: a copy of a directory of bases has the pool's documents, and second names that are files of
// their own. None of those counts as a shield, none is taken away, and the bases get new ones.
func TestCopiedDirectory(t *testing.T) {
	w := newWorld(t, "a")
	w.protect(ProtectOptions{}, "a")
	copied := &world{t, w.dir + ".copy"}
	// Not by cp -a, which keeps that two names are one file.
	if out, err := exec.Command("cp", "-r", w.dir, copied.dir).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	s, err := pool.Read(t.Context(), copied.dir, time.Minute)
	if err != nil || len(s.Shields) > 0 || len(s.Unread) != 1 || !strings.Contains(s.Unread[0].Error(), "it is inode") {
		t.Fatalf("Read of the copy = %+v, %v, want a shield that is none", s, err)
	}
	wrong := pool.Path(copied.dir, pool.Shields, pool.ShieldName(w.inode(w.path("a")), "a"))
	copied.remove("a")
	if _, err := Restore(t.Context(), "a", RestoreOptions{}, copied.options()); !errors.Is(err, ErrNoShield) || !strings.Contains(err.Error(), "it is inode") {
		t.Errorf("Restore from a shield that is none = %v", err)
	}
	copied.write("a", "a")
	d, err := Protect(t.Context(), copied.census("a"), ProtectOptions{}, copied.options())
	if err != nil || !slices.Equal(d.Shielded, []string{"a"}) {
		t.Errorf("Protect of the copy = %+v, %v", d, err)
	}
	d, err = Unprotect(t.Context(), UnprotectOptions{}, copied.options())
	if err != nil || !slices.Equal(d.Unshielded, []string{"a"}) || len(d.Left) != 1 {
		t.Errorf("Unprotect of the copy = %+v, %v", d, err)
	}
	if _, err := os.Lstat(wrong); err != nil {
		t.Errorf("what was no shield is gone: %v", err)
	}
	if w.text("a") != "a" || len(w.state().Shields) != 1 {
		t.Error("the pool that was copied was changed")
	}
}
