// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// TestTwoNames: a file with two names is two bases with a shield each, so that whichever name is removed comes back, and
// neither is set aside.
func TestTwoNames(t *testing.T) {
	f := newStock(t, "a", "free")
	if err := os.Link(f.path("a"), f.path("z")); err != nil {
		t.Fatal(err)
	}
	file := f.entry("a")
	look := func() *refs.Census {
		c, err := f.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	protect := func() *pool.Done {
		d, err := Protect(t.Context(), look(), ProtectOptions{}, f.options())
		if err != nil || len(d.Left) > 0 {
			t.Fatalf("Protect = %+v, %v", d, err)
		}
		return d
	}
	if d := protect(); !slices.Equal(d.Shielded, []string{"z"}) {
		t.Errorf("shielded %q, want the name that is new", d.Shielded)
	}
	if d := protect(); len(d.Shielded)+len(d.Recorded) > 0 {
		t.Errorf("once more = %+v, want nothing to do", d)
	}
	for _, n := range []string{"a", "z"} {
		if h := f.state().ShieldsOf(n); len(h) != 1 || h[0].ID.Ino != file || h[0].Links != 4 {
			t.Errorf("shields of %s = %+v, want one of inode %d with four names", n, h, file)
		}
	}
	f.reports()
	f.plan()
	f.reports()
	p := f.plan()
	for i := range p.All {
		b := &p.All[i]
		linked := slices.ContainsFunc(b.Blockers, func(k judge.Blocker) bool { return k.Rule == judge.Linked })
		if two := b.Name == "a" || b.Name == "z"; two && (b.Verdict != judge.Keep || !linked) {
			t.Errorf("%s may be %s by %+v, want that it stays as linked", b.Name, b.Verdict, b.Blockers)
		}
	}
	f.image("1", "a")
	f.image("2", "z")
	// Removed one after the other, and then both at once.
	for _, gone := range [][]string{{"a"}, {"z"}, {"a", "z"}} {
		for _, n := range gone {
			f.remove(n)
		}
		alone := 0
		if len(gone) == 2 {
			alone = 1
		}
		c := look()
		if n := c.Kept.Files; n != int64(alone) {
			t.Errorf("without %q %d files are only kept by shields, want %d", gone, n, alone)
		}
		for _, n := range gone {
			if !slices.ContainsFunc(c.All, func(b refs.Base) bool { return b.Name == n && b.State == refs.Missing && b.Shield != "" }) {
				t.Errorf("without %q the census does not miss %s, or has no shield of it", gone, n)
			}
		}
		d := protect()
		slices.Sort(d.Restored)
		if !slices.Equal(d.Restored, gone) {
			t.Errorf("without %q Protect restored %q", gone, d.Restored)
		}
		for _, n := range []string{"a", "z"} {
			if f.entry(n) != file {
				t.Errorf("without %q: %s is inode %d then, want %d", gone, n, f.entry(n), file)
			}
		}
	}
	// By hand, and of one that nobody is known to need.
	if err := errors.Join(os.Remove(f.path("../1")), os.Remove(f.path("../2"))); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "z"} {
		f.remove(n)
		if _, err := Restore(t.Context(), n, RestoreOptions{}, f.options()); err != nil || f.entry(n) != file {
			t.Errorf("Restore of %s = %v, and it is inode %d, want %d", n, err, f.entry(n), file)
		}
	}
}

// TestUnprotectSetAside: a base that is set aside in the moment that its shield is taken away has that again, and not a copy of it
// beside it: of two files none would come back by itself.
func TestUnprotectSetAside(t *testing.T) {
	f := newStock(t, "a", "b")
	file := f.entry("a")
	o := f.options()
	o.Step = func(what string) error {
		if what == "unshield a" {
			f.quarantine("a")
		}
		return nil
	}
	d, err := Unprotect(t.Context(), UnprotectOptions{}, o)
	if err != nil || !slices.Equal(d.Unshielded, []string{"b"}) || len(d.Left) != 1 || d.Left[0].Name != "a" {
		t.Errorf("Unprotect = %+v, %v, want that the shield of a stays", d, err)
	}
	if all := f.state().Formers("a"); len(all) != 1 || all[0].File.Ino != file {
		t.Errorf("files that had the name = %+v, want the one with inode %d", all, file)
	}
	if h := f.state().ShieldsOf("a"); len(h) != 1 || h[0].ID.Ino != file {
		t.Errorf("shields of a = %+v, want that of inode %d", h, file)
	}
	f.image("disk", "a")
	c, err := f.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d, err := Protect(t.Context(), c, ProtectOptions{NoRecord: true}, f.options()); err != nil || f.entry("a") != file {
		t.Errorf("Protect when a is needed = %+v, %v, and a is inode %d, want %d", d, err, f.entry("a"), file)
	}
}

// entry is the inode of a name, 0 for none.
func (f *stock) entry(name string) uint64 {
	e, err := diskio.LookEntry(f.path(name))
	if err != nil {
		return 0
	}
	return e.Ino
}

// TestTwoNamesTaken: an image that names a base may rest on any file that had that name, also on one that has another name as
// well: it is removed for good only where the file that has the name by now is known to hold the same.
func TestTwoNamesTaken(t *testing.T) {
	f := newStock(t, "a")
	file := f.entry("a")
	if err := os.Link(f.path("a"), f.path("z")); err != nil {
		t.Fatal(err)
	}
	f.protect(ProtectOptions{NoRecord: true})
	f.image("disk", "z")
	f.remove("z")
	if err := os.WriteFile(f.path("z"), []byte("made anew, and another"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.protect(ProtectOptions{NoRecord: true})
	f.reports()
	f.plan()
	f.reports()
	f.quarantine("a")
	f.reports()
	p := f.plan()
	for i := range p.All {
		b := &p.All[i]
		if b.Inode != file {
			continue
		}
		if b.Name != "a" || b.ID == "" || b.Verdict != judge.Keep ||
			!slices.ContainsFunc(b.Blockers, func(k judge.Blocker) bool { return k.Rule == judge.NameTaken }) {
			t.Errorf("%s may be %s by %+v, want that it stays: the image may have been made on it", b.Name, b.Verdict, b.Blockers)
		}
	}
	if d, err := f.purge(f.options()); err != nil || len(d.Purged) > 0 {
		t.Errorf("Purge = %+v, %v, want nothing removed", d, err)
	}
}

// TestUnprotectRemoved: a base that somebody removes in the moment that its shield is taken away is kept by a copy, also where
// whoever began the act ends it then.
func TestUnprotectRemoved(t *testing.T) {
	f := newStock(t, "a")
	want, err := os.ReadFile(f.path("a"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := f.options()
	o.Step = func(what string) error {
		if what == "unshield a" {
			f.remove("a")
			cancel()
		}
		return nil
	}
	if d, err := Unprotect(ctx, UnprotectOptions{}, o); err == nil && len(d.Left) == 0 {
		t.Errorf("Unprotect = %+v, want that it tells of a", d)
	}
	all := f.state().ShieldsOf("a")
	if len(all) != 1 {
		t.Fatalf("shields of a = %+v, want a copy", all)
	}
	if got, err := os.ReadFile(all[0].Path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy has %d bytes (%v), want the %d of a", len(got), err, len(want))
	}
}
