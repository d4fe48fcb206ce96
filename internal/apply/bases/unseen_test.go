// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// broken makes an image of which nobody can tell what it rests on, as one that is just being made.
func (f *stock) broken(name string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(f.dir), name), []byte("QFI\xfb\x00\x00\x00\x03 x"), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// TestLookAgainUnseen: what cannot be read any more right after bases were set aside may need them, and they are back.
func TestLookAgainUnseen(t *testing.T) {
	f := newStock(t, "a", "b", "c")
	f.remove("c") // only its shield keeps it
	f.reports()
	f.plan()
	f.reports()
	files := f.files("a", "b")
	p := f.plan()
	o := f.options()
	o.Step = func(what string) error {
		if what == "look again" {
			f.broken("new")
		}
		return nil
	}
	d, err := Quarantine(t.Context(), p, f.decision(), o)
	if err != nil || len(d.Restored) != 2 || !slices.ContainsFunc(d.Left, func(l pool.Left) bool {
		return strings.Contains(l.Why, "not everything was seen") && strings.Contains(l.Why, "/new")
	}) {
		t.Errorf("Quarantine = %+v, %v, want that a and b are back", d, err)
	}
	for n, file := range files {
		if f.entry(n) != file {
			t.Errorf("%s is inode %d after the second look, want %d", n, f.entry(n), file)
		}
	}
	if s := f.state(); len(s.Held)+len(s.Intents) > 0 || len(s.ShieldsOf("c")) != 1 {
		t.Errorf("held %+v, intents %+v, shields of c %+v: want nothing set aside", s.Held, s.Intents, s.ShieldsOf("c"))
	}
}

// TestRecoverUnseen: what is in quarantine may be needed by what cannot be read: that is told.
func TestRecoverUnseen(t *testing.T) {
	f := newStock(t, "a", "b")
	f.quarantine("a")
	recovered := func() *pool.Done {
		t.Helper()
		d, err := Recover(t.Context(), f.decision(), f.options())
		if err != nil || d.Did() || len(d.Left) > 0 {
			t.Fatalf("Recover = %+v, %v", d, err)
		}
		return d
	}
	if d := recovered(); len(d.Unseen) > 0 {
		t.Errorf("Recover where everything is read tells of %+v", d.Unseen)
	}
	f.broken("odd")
	f.broken("odd2")
	d := recovered()
	if len(d.Unseen) != 1 || !strings.HasSuffix(d.Unseen[0].Name, ".a") || !strings.Contains(d.Unseen[0].Why, "/odd") ||
		!strings.HasSuffix(d.Unseen[0].Why, "and 1 more") {
		t.Errorf("Unseen = %+v, want a, and what may need it", d.Unseen)
	}
}

// TestRecoverUnread: what the pool keeps and cannot be read is told, also where nothing is in quarantine.
func TestRecoverUnread(t *testing.T) {
	f := newStock(t, "a")
	shields := pool.Path(f.dir, pool.Shields)
	if err := os.Rename(shields, shields+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shields, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Recover(t.Context(), f.decision(), f.options())
	if err != nil || d.Did() || len(d.Unseen) != 1 || d.Unseen[0].Name != pool.Dir || !strings.Contains(d.Unseen[0].Why, shields) {
		t.Errorf("Recover = %+v, %v, want that the shields were not read", d, err)
	}
}
