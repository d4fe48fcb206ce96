// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// TestInterruptedBack: who ends an act while it brings bases back that somebody began to use has all of them back.
func TestInterruptedBack(t *testing.T) {
	f := newStock(t, "a", "b")
	files := f.files("a", "b")
	p := f.plan("a", "b")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := f.options()
	o.Step = func(what string) error {
		switch what {
		case "look again":
			f.image("late", "a")
			f.image("later", "b")
		case "intend restore a":
			cancel()
		}
		return nil
	}
	d, err := Quarantine(ctx, p, f.decision(), o)
	if len(d.Restored) != 2 {
		t.Errorf("Quarantine = %+v, %v, want both back", d, err)
	}
	f.settled(files, "interrupted")
	if s := f.state(); len(s.Held) > 0 {
		t.Errorf("%+v are in quarantine, and needed", s.Held)
	}
}

// stuck are links of which some names cannot be taken away.
type stuck struct {
	diskio.Links
	end string
}

func (s stuck) Unlink(id diskio.ID, name string) error {
	if strings.HasSuffix(name, s.end) {
		return &os.PathError{Op: "remove", Path: name, Err: os.ErrPermission}
	}
	return s.Links.Unlink(id, name)
}

// TestRecoverStuck: what recover cannot bring to its end keeps no base that is needed from coming back.
func TestRecoverStuck(t *testing.T) {
	f := newStock(t, "a", "b")
	f.quarantine("a")
	f.image("late", "a")
	partial, old := pool.Path(f.dir, pool.PartialName(strings.Repeat("0", 32))), time.Now().Add(-2*partialAfter)
	if err := errors.Join(os.WriteFile(partial, []byte("x"), 0o600), os.Chtimes(partial, old, old)); err != nil {
		t.Fatal(err)
	}
	o := f.options()
	o.Links = stuck{diskio.HostLinks(), ".get"}
	d, err := Recover(t.Context(), f.decision(), o)
	if err != nil || len(d.Left) != 1 || d.Left[0].Name != partial || f.entry("a") == 0 {
		t.Errorf("Recover = %+v, %v, want a back, and what is left of a copy told", d, err)
	}

	f = newStock(t, "a", "b")
	ids := f.quarantine("a", "b")
	f.image("late", "a")
	held := pool.HeldName(ids[1], "b")
	if err := os.Rename(pool.Path(f.dir, pool.Quarantine, held), pool.Path(f.dir, pool.Purge, held)); err != nil {
		t.Fatal(err)
	}
	f.damageAudit()
	if d, err := Recover(t.Context(), f.decision(), f.options()); err == nil || f.entry("a") == 0 || f.entry("b") != 0 {
		t.Errorf("Recover = %+v, %v, want a back, and that the audit does not hold", d, err)
	}
}

// damageAudit changes the last line of the audit of this node.
func (w *world) damageAudit() {
	w.t.Helper()
	path := pool.Path(w.dir, pool.Audit, w.options().Node+".jsonl")
	text, err := os.ReadFile(path)
	if err == nil {
		text[len(text)-10] ^= 1
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestPurgeBesideCutAudit: an audit that lost its end once keeps no receipt of a later purge open.
func TestPurgeBesideCutAudit(t *testing.T) {
	f := newStock(t, "a", "b", "c")
	o := f.world.receipts()
	f.quarantine("a", "b")
	f.reports()
	if err := os.WriteFile(pool.Path(f.dir, pool.Audit, "other.jsonl"), []byte(`{"time":`), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Step = at("intend purge b", func() {
		if _, err := Pin(t.Context(), "b", PinOptions{Reason: "wait"}, f.options()); err != nil {
			t.Error(err)
		}
	})
	d, err := f.purge(o)
	if err != nil || len(d.Purged) != 1 || len(d.Left) != 1 {
		t.Fatalf("Purge = %+v, %v, want a removed and b left", d, err)
	}
	all, err := o.Receipts.BaseReceipts(t.Context())
	if err != nil || len(all) != 1 || all[0].State != vault.Committed {
		t.Errorf("receipts %+v, %v, want one that is ended", all, err)
	}
}

// TestInterruptedUnclaim: who ends a purge while it puts a base back into quarantine finds it there, and nothing for recover
// to do.
func TestInterruptedUnclaim(t *testing.T) {
	f := newStock(t, "a", "b", "c")
	files := f.files("b")
	f.quarantine("a", "b")
	f.reports()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := f.options()
	o.Step = func(what string) error {
		switch what {
		case "intend purge b":
			_, err := Pin(t.Context(), "b", PinOptions{Reason: "wait"}, f.options())
			return err
		case "unclaim b":
			cancel()
		}
		return nil
	}
	p := f.plan()
	if d, err := Purge(ctx, p, PurgeOptions{Approve: p.SHA256, Allowed: true, By: "root"}, f.decision(), o); len(d.Left) != 1 {
		t.Errorf("Purge = %+v, %v, want b left", d, err)
	}
	f.settled(files, "unclaim b")
}

// stuckClaim takes no name from what was claimed.
type stuckClaim struct{ diskio.Links }

func (s stuckClaim) Unlink(id diskio.ID, name string) error {
	if strings.Contains(name, "/"+pool.Purge+"/") {
		return &fs.PathError{Op: "unlink", Path: name, Err: syscall.EIO}
	}
	return s.Links.Unlink(id, name)
}

// TestUnclaimCutOff: a base whose removal fails after it lost its shield is put back into quarantine. Wherever that is cut off,
// and wherever the recovery after it is, it is in quarantine with a shield in the end.
func TestUnclaimCutOff(t *testing.T) {
	// stops gives a Step that ends the act at the n-th step from the first that begins with some words.
	stops := func(from string, n int, cut *string) func(string) error {
		begun := from == ""
		return func(what string) error {
			if begun = begun || strings.HasPrefix(what, from); begun {
				n--
			}
			if n < 0 {
				*cut = cmp.Or(*cut, what)
				return ErrStopped
			}
			return nil
		}
	}
	for _, kept := range []bool{false, true} {
		seen := map[string]bool{}
		for at, all := 0, false; !all; at++ {
			for again, whole := 0, false; !whole; again++ {
				f := newStock(t, "a", "b")
				files := f.files("a")
				if kept { // set aside directly from its shield
					f.remove("a")
				}
				f.quarantine("a")
				f.reports()
				cut, cutAgain := "", ""
				o := f.options()
				o.Links, o.Step = stuckClaim{diskio.HostLinks()}, stops("unclaim", at, &cut)
				if d, err := f.purge(o); err == nil || len(d.Purged) > 0 {
					t.Fatalf("Purge = %+v, %v, want that it could not be removed", d, err)
				}
				if all = cut == ""; all {
					whole = true
				} else {
					o = f.options()
					o.Step = stops("", again, &cutAgain)
					_, err := Recover(t.Context(), f.decision(), o)
					if whole = cutAgain == ""; whole != (err == nil) {
						t.Errorf("cut at %q, and at %q: Recover: %v", cut, cutAgain, err)
					}
					if d, err := Recover(t.Context(), f.decision(), f.options()); err != nil || len(d.Left) > 0 {
						t.Errorf("cut at %q, and at %q: Recover = %+v, %v", cut, cutAgain, d, err)
					}
				}
				f.settled(files, cut+", "+cutAgain)
				if n := len(f.state().Held); n != 1 {
					t.Errorf("cut at %q, and at %q: %d in quarantine, want 1", cut, cutAgain, n)
				}
				seen[cut] = true
				if at+again > 100 {
					t.Fatal("it does not end")
				}
			}
		}
		for _, step := range []string{"unclaim a", "shield again a", "end purge a"} {
			if !seen[step] {
				t.Errorf("it was not cut off at %q, but at %v", step, seen)
			}
		}
	}
}

// TestWatchNotNoted: a base that is back is told to be, also where that could not be noted.
func TestWatchNotNoted(t *testing.T) {
	w := newWorld(t, "a")
	heard, end := w.watching(func() *refs.Census { return w.census("a") })
	w.damageAudit()
	w.remove("a")
	h := heard()
	if err := end(false); !errors.Is(err, pool.ErrChain) {
		t.Errorf("Watch = %v, want %v", err, pool.ErrChain)
	}
	if _, err := os.Lstat(filepath.Join(w.dir, "a")); err != nil || h.What != pool.Restored || !strings.Contains(h.Why, pool.ErrChain.Error()) {
		t.Errorf("happened %+v, and a: %v; want that it is back and not noted", h, err)
	}
}
