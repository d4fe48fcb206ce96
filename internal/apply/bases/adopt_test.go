// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/vault"
)

// adopt adopts a file outside the pool as a base.
func (w *world) adopt(name string, p Proof, o Options) error {
	w.t.Helper()
	w.write("../candidate", "a copy")
	st, err := diskio.Look(w.path("../candidate"))
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = Adopt(w.t.Context(), filepath.Clean(w.path("../candidate")), st.ID, name, p, o)
	return err
}

// TestAdoptWhole: a copy has the name of a base only when it is whole and held against its digest. What a power cut
// leaves is no base, is told, and goes when it is a day old.
func TestAdoptWhole(t *testing.T) {
	w := newWorld(t, "b")
	o := w.receipts()
	none := func(when string) {
		t.Helper()
		if _, err := os.Lstat(w.path("a")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s the name is there: %v", when, err)
		}
	}
	o.Progress = func(string, int64, int64) { none("while it is copied") }
	if err := w.adopt("a", Proof{SHA256: strings.Repeat("0", 64)}, o); !errors.Is(err, diskio.ErrChanged) {
		t.Errorf("Adopt of what was changed since = %v, want %v", err, diskio.ErrChanged)
	}
	none("of what was changed")
	if n := len(w.state().Partials); n != 0 {
		t.Errorf("%d copies are left, want none", n)
	}
	o.Step = func(what string) error {
		if what == "adopt a" {
			return ErrStopped
		}
		return nil
	}
	if err := w.adopt("a", Proof{}, o); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	none("after a power cut")
	o.Step = nil
	sum := sha256.Sum256([]byte("a copy"))
	if err := w.adopt("a", Proof{SHA256: hex.EncodeToString(sum[:])}, o); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(w.path("a")); string(text) != "a copy" || w.old("a") {
		t.Errorf("a holds %q, %v, or looks old", text, err)
	}
}

// partial leaves a copy that was to become a base, as a power cut does.
func (w *world) partial(id string, age time.Duration) string {
	w.t.Helper()
	path := pool.Path(w.dir, pool.PartialName(strings.Repeat(id, 32)))
	at := time.Now().Add(-age)
	if err := errors.Join(os.WriteFile(path, make([]byte, 8192), 0o600), os.Chtimes(path, at, at)); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// TestPartials: copies that came to nothing are taken away by who makes the next, and by recover, and told until then.
func TestPartials(t *testing.T) {
	f := newStock(t, "a", "b")
	for name, do := range map[string]func() error{
		"adopt": func() error { return f.adopt("adopted", Proof{}, f.options()) },
		"make": func() error {
			n, err := Create(t.Context(), f.options())
			if err != nil {
				return err
			}
			return n.Discard()
		},
		"recover": func() error {
			d, err := Recover(t.Context(), f.decision(), f.options())
			if err == nil && (len(d.Recovered) != 1 || !strings.Contains(d.Recovered[0], "taken away: ")) {
				t.Errorf("recover says %q", d.Recovered)
			}
			return err
		},
	} {
		old, young, held := f.partial("a", 25*time.Hour), f.partial("b", 23*time.Hour), f.partial("c", 25*time.Hour)
		lock, err := diskio.Host().OpenForRepair(held)
		if err != nil {
			t.Fatal(err)
		}
		c, err := f.look(t.Context())
		if err != nil || c.Partial.Files != 3 || c.Partial.AllocatedBytes == 0 || !c.Complete() {
			t.Errorf("%s: the census tells of %+v, gaps %+v, %v", name, c.Partial, c.Gaps, err)
		}
		if err := do(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the old one is there: %v", name, err)
		}
		for _, path := range []string{young, held} {
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("%s: %v, want that it stays", name, err)
			}
		}
		if err := errors.Join(lock.Close(), os.Remove(young), os.Remove(held)); err != nil {
			t.Fatal(err)
		}
	}
	// One that has the name of a base as well keeps that.
	path := f.partial("d", 25*time.Hour)
	if err := os.Link(path, f.path("z")); err != nil {
		t.Fatal(err)
	}
	if d, err := Recover(t.Context(), f.decision(), f.options()); err != nil || len(d.Recovered) != 1 || f.entry("z") == 0 {
		t.Errorf("Recover = %+v, %v, z is inode %d", d, err, f.entry("z"))
	}
}

// TestAdoptedLikeOthers: what is adopted has the owner and the permissions that most bases have; where there are none,
// those that Nova's have.
func TestAdoptedLikeOthers(t *testing.T) {
	testenv.NeedRoot(t)
	for name, c := range map[string]struct {
		peers []diskio.Ownership
		want  diskio.Ownership
	}{
		"none":   {nil, diskio.Ownership{Mode: 0o644, Owner: 42, Group: 43}},
		"all":    {[]diskio.Ownership{{Mode: 0o640, Owner: 7, Group: 8}}, diskio.Ownership{Mode: 0o640, Owner: 7, Group: 8}},
		"setuid": {[]diskio.Ownership{{Mode: 0o600 | fs.ModeSetuid, Owner: 7, Group: 8}}, diskio.Ownership{Mode: 0o600, Owner: 7, Group: 8}},
		"most": {[]diskio.Ownership{{Mode: 0o600, Owner: 1, Group: 1}, {Mode: 0o644, Owner: 7, Group: 8}, {Mode: 0o644, Owner: 7, Group: 8}},
			diskio.Ownership{Mode: 0o644, Owner: 7, Group: 8}},
	} {
		w := newWorld(t)
		if err := os.Chown(w.dir, 42, 43); err != nil {
			t.Fatal(err)
		}
		for i, p := range c.peers {
			path := w.path(string(rune('b' + i)))
			if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, int(p.Owner), int(p.Group)), os.Chmod(path, p.Mode)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.adopt("a", Proof{}, w.options()); err != nil {
			t.Fatal(err)
		}
		made, err := Create(t.Context(), w.options())
		if err == nil {
			err = made.End()
		}
		if err == nil {
			_, err = Adopt(t.Context(), made.Path, made.ID(), "made", Proof{}, w.options())
		}
		if err != nil || made.Discard() != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"a", "made"} {
			got, err := diskio.Host().LookAt(w.path(n))
			if (diskio.Ownership{Mode: got.Mode, Owner: got.Owner, Group: got.Group}) != c.want || err != nil || got.Links != 1 {
				t.Errorf("%s: %s is %+v, %v, want %+v and one name", name, n, got, err, c.want)
			}
		}
	}
}

// TestCreateBegins: a pool that is begun by the first copy has a receipt that is ended.
func TestCreateBegins(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	n, err := Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Discard(); err != nil {
		t.Fatal(err)
	}
	all, err := o.Receipts.BaseReceipts(t.Context())
	if err != nil || len(all) != 1 || all[0].State != vault.Committed || all[0].Act != "adopt" || o.Receipts.BaseUnderWay(all[0].ID) != nil {
		t.Errorf("receipts = %+v, %v, want one that is ended", all, err)
	}
}

// TestAdoptUnseen: a name that cannot be looked at is not said to be there.
func TestAdoptUnseen(t *testing.T) {
	w := newWorld(t, "b")
	if err := w.adopt(strings.Repeat("x", 300), Proof{}, w.receipts()); !errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, ErrThere) {
		t.Errorf("Adopt = %v, want %v", err, unix.ENAMETOOLONG)
	}
	if err := w.adopt("b", Proof{}, w.receipts()); !errors.Is(err, ErrThere) {
		t.Errorf("Adopt of a base that is there = %v, want %v", err, ErrThere)
	}
}
