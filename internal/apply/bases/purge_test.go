// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// TestPurge: only when everybody has seen it in quarantine and a person approved is a base removed for good, with all
// of its names.
func TestPurge(t *testing.T) {
	f := newStock(t, "a", "b")
	files := f.files("a", "b")
	f.quarantine("a")
	d, err := f.purge(f.options())
	if err != nil || len(d.Purged) > 0 {
		t.Fatalf("Purge before anybody saw it = %+v, %v", d, err)
	}
	f.reports()
	p := f.plan()
	if len(p.With(judge.MayPurge)) != 1 {
		t.Fatalf("plan: %s", p.Against(&p.All[0]))
	}
	for _, c := range []struct {
		g    PurgeOptions
		want error
	}{
		{PurgeOptions{Approve: p.SHA256}, ErrPurgeOff}, {PurgeOptions{Allowed: true}, ErrApproval},
		{PurgeOptions{Allowed: true, Approve: strings.Repeat("0", 64)}, ErrApproval},
	} {
		if _, err := Purge(t.Context(), p, c.g, f.decision(), f.options()); !errors.Is(err, c.want) {
			t.Errorf("Purge with %+v = %v, want %v", c.g, err, c.want)
		}
	}
	f.policy(func(p *pool.Policy) { p.AllowPurge = false })
	if _, err := Purge(t.Context(), p, PurgeOptions{Approve: p.SHA256, Allowed: true}, f.decision(), f.options()); !errors.Is(err, ErrPurgeOff) {
		t.Errorf("Purge that the pool does not allow = %v, want %v", err, ErrPurgeOff)
	}
	f.policy(func(p *pool.Policy) { p.AllowPurge = true })
	d, err = f.purge(f.options())
	if err != nil || len(d.Purged) != 1 {
		t.Fatalf("Purge = %+v, %v", d, err)
	}
	for _, h := range f.state().Shields {
		if h.ID.Ino == files["a"] {
			t.Error("its shield is there: the space is not free")
		}
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
	if got, want := strings.Join(f.acts(), ", "), "quarantine a, purge a"; got != want {
		t.Errorf("audit: %s, want %s", got, want)
	}
}

// TestPurgeLooksAgain: what shows between the claim and the removal stops it, and the base is in quarantine again.
func TestPurgeLooksAgain(t *testing.T) {
	for name, change := range map[string]func(*stock){
		"an image":      func(f *stock) { f.image("new", "a") },
		"a report":      func(f *stock) { f.image("new", "a"); f.report("n2"); f.mustRemove("new") },
		"a pin":         func(f *stock) { f.pin("a") },
		"the hard link": func(f *stock) { f.linkHeld("other") },
		"what is not read": func(f *stock) {
			_ = os.WriteFile(filepath.Join(filepath.Dir(f.dir), "odd"), []byte("QFI\xfb\x00\x00\x00\x03 x"), 0o644)
		},
	} {
		f := newStock(t, "a", "b")
		files := f.files("a")
		f.quarantine("a")
		f.reports()
		o := f.options()
		done := false
		o.Step = func(what string) error {
			if !done && strings.HasPrefix(what, "claim") {
				done = true
				change(f)
			}
			return nil
		}
		d, err := f.purge(o)
		if err != nil || len(d.Purged) > 0 || len(d.Left) != 1 || !done {
			t.Errorf("%s: Purge = %+v, %v, want it left", name, d, err)
		}
		if h := f.state().Held; len(h) != 1 || h[0].Claimed || h[0].File.Ino != files["a"] || h[0].Links < 2 {
			t.Errorf("%s: Held = %+v, want it in quarantine with its shield", name, h)
		}
		if d, err = Recover(t.Context(), f.decision(), f.options()); err != nil {
			t.Errorf("%s: Recover = %+v, %v", name, d, err)
		}
		if got := f.problems(files, true); got != nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestPurgeLooksAtEach: what somebody says while another base is being removed is heard as well.
func TestPurgeLooksAtEach(t *testing.T) {
	for name, change := range map[string]func(*stock, string){
		"a pin": func(f *stock, base string) { f.pin(base) },
		"a report": func(f *stock, base string) {
			f.image("new", base)
			f.report("n2")
			f.mustRemove("new")
		},
		"an odd document": func(f *stock, _ string) {
			_ = os.WriteFile(pool.Path(f.dir, pool.Nodes, "n2.json"), []byte("{"), 0o600)
		},
		"a node that joins": func(f *stock, _ string) {
			if _, err := Join(t.Context(), "n3", me, f.options()); err != nil {
				t.Fatal(err)
			}
		},
		"a pool that allows it no more": func(f *stock, _ string) { f.policy(func(p *pool.Policy) { p.AllowPurge = false }) },
		"an unknown name": func(f *stock, base string) {
			for _, h := range f.state().Held {
				if h.Name == base {
					_ = os.Link(h.Path, filepath.Join(filepath.Dir(f.dir), "other"))
				}
			}
		},
	} {
		f := newStock(t, "a", "b", "c")
		f.quarantine("a", "b")
		f.reports()
		o := f.options()
		kept := ""
		o.Step = func(what string) error {
			if gone, ok := strings.CutPrefix(what, "remove "); ok && kept == "" {
				kept = map[string]string{"a": "b", "b": "a"}[gone]
				change(f, kept)
			}
			return nil
		}
		d, err := f.purge(o)
		if err != nil || kept == "" || len(d.Purged) != 1 || len(d.Left) != 1 || d.Left[0].Name != kept {
			t.Errorf("%s: Purge = %+v, %v, want %q left", name, d, err, kept)
		}
		if h, err := pool.Read(t.Context(), f.dir, time.Minute); err != nil || len(h.Held) != 1 || h.Held[0].Claimed || h.Held[0].Links < 2 {
			t.Errorf("%s: Held = %+v, %v, want %q in quarantine with its shield", name, h.Held, err, kept)
		}
	}
}

// linkHeld gives what was set aside a name that nobody here knows.
func (f *stock) linkHeld(name string) {
	f.t.Helper()
	if err := os.Link(f.state().Held[0].Path, filepath.Join(filepath.Dir(f.dir), name)); err != nil {
		f.t.Fatal(err)
	}
}

// TestUndoActs: what was set aside comes back by its receipt, a pin is taken back, and one that was taken back counts
// again.
func TestUndoActs(t *testing.T) {
	f := newStock(t, "a", "b")
	files := f.files("a", "b")
	o := f.world.receipts()
	d, err := Quarantine(t.Context(), f.plan("a", "b"), f.decision(), o)
	if err != nil || len(d.Quarantined) != 2 || d.Receipt == "" {
		t.Fatalf("Quarantine = %+v, %v", d, err)
	}
	r := f.undo(d.Receipt, o)
	if got, want := strings.Join(whats(r), ", "), "quarantine a done undone, quarantine b done undone"; got != want || r.State != vault.Undone {
		t.Errorf("undone: %s, %s, want %s", r.State, got, want)
	}
	if got := f.files("a", "b"); got["a"] != files["a"] || got["b"] != files["b"] {
		t.Errorf("after undo: %v, want %v", got, files)
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
	pin, err := Pin(t.Context(), "a", PinOptions{Reason: "golden"}, o)
	if err != nil {
		t.Fatal(err)
	}
	f.undo(pin.Receipt, o)
	if n := len(f.state().Pins); n != 0 {
		t.Errorf("%d pins after undo of pin, want none", n)
	}
	f.pin("a")
	unpin, err := Unpin(t.Context(), "a", "no more", o)
	if err != nil {
		t.Fatal(err)
	}
	f.undo(unpin.Receipt, o)
	if n := len(f.state().Pins); n != 1 {
		t.Errorf("%d pins after undo of unpin, want 1", n)
	}
	// What was removed for good is never taken back, and the receipt says so.
	id := f.lastReceipt(t, o)
	if _, err := Undo(t.Context(), id, UndoOptions{}, o); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), "b was removed for good") {
		t.Errorf("Undo of a purge = %v, want %v", err, ErrNothing)
	}
	if r, err := o.Receipts.BaseReceipt(id); err != nil || r.State != vault.Committed || r.Undone != nil {
		t.Errorf("its receipt says %q, undone %v, %v", r.State, r.Undone, err)
	}
}

// TestUndoOfPurged: a quarantine whose base was removed for good since, or that only its shield keeps, is told as that, and not
// as taken back.
func TestUndoOfPurged(t *testing.T) {
	for name, c := range map[string]struct {
		since func(f *stock, o Options) error
		left  bool
		why   string
	}{
		"removed for good": {func(f *stock, o Options) error {
			f.reports()
			d, err := f.purge(f.options())
			if err == nil && len(d.Purged) != 1 {
				t.Fatalf("Purge = %+v", d)
			}
			return err
		}, false, "it was removed for good since"},
		"brought back": {func(f *stock, o Options) error {
			_, err := Restore(t.Context(), "a", RestoreOptions{}, f.options())
			return err
		}, false, "it has its name already"},
		"brought back and removed": {func(f *stock, o Options) error {
			_, err := Restore(t.Context(), "a", RestoreOptions{}, f.options())
			f.remove("a")
			return err
		}, true, "shisa base restore gives it that from its shield"},
	} {
		f := newStock(t, "a", "b")
		o := f.world.receipts()
		d, err := Quarantine(t.Context(), f.plan("a"), f.decision(), o)
		if err == nil {
			err = c.since(f, o)
		}
		if err != nil {
			t.Fatal(err)
		}
		r := f.undo(d.Receipt, o)
		if left := len(InForce(r)) == 1; left != c.left || !strings.Contains(r.Steps[0].Why, c.why) {
			t.Errorf("%s: Undo = %+v, want left %v: %s", name, r, c.left, c.why)
		}
	}
}

// TestPurgeCutOff: wherever a purge is cut off, its receipt and the audit tell in the end whether the base was removed, also
// when the receipt is settled before recover; nothing says that it can be taken back.
func TestPurgeCutOff(t *testing.T) {
	for at, last := 0, false; !last; at++ {
		for _, settleFirst := range []bool{false, true} {
			f := newStock(t, "a", "b")
			o := f.world.receipts()
			f.quarantine("a")
			f.reports()
			n, cut := 0, ""
			o.Step = func(what string) error {
				if n++; n > at {
					cut = what
					return ErrStopped
				}
				return nil
			}
			d, err := f.purge(o)
			if last = err == nil; last && d.CanUndo {
				t.Error("it is said that a purge can be taken back")
			}
			o.Step = nil
			settle := func() {
				if _, half, err := Settle(t.Context(), o); err != nil || len(half) > 0 {
					t.Errorf("cut at %q: Settle = %+v, %v", cut, half, err)
				}
			}
			if settleFirst {
				settle()
			}
			if _, err := Recover(t.Context(), f.decision(), f.options()); err != nil {
				t.Errorf("cut at %q: Recover: %v", cut, err)
			}
			settle()
			s := f.state()
			gone := len(s.Held) == 0
			if !gone && (s.Held[0].Claimed || s.Held[0].Links != 2) {
				t.Errorf("cut at %q: held %+v, want it in quarantine with its shield", cut, s.Held[0])
			}
			noted := slices.ContainsFunc(s.Audits, func(e pool.Entry) bool { return e.Act == pool.ActPurge && e.Name == "a" })
			all, err := o.Receipts.BaseReceipts(t.Context())
			told := err == nil && len(all) == 1 && all[0].State == vault.Committed && slices.Equal(whats(all[0]), []string{"purge a done"})
			if gone != noted || gone != told || !gone && len(all) > 0 {
				t.Errorf("cut at %q, settled first %v: gone %v, noted %v, told %v by %+v", cut, settleFirst, gone, noted, told, all)
			}
		}
		if at > 100 {
			t.Fatal("it does not end")
		}
	}
}

// TestSettleElsewhere: the receipt of an act that was cut off stays as it is where its pool is not there, and where it cannot
// be told what was done.
func TestSettleElsewhere(t *testing.T) {
	for name, change := range map[string]func(w *world) func(){
		"not mounted": func(w *world) func() {
			aside := w.dir + ".aside"
			if err := errors.Join(os.Rename(w.dir, aside), os.Mkdir(w.dir, 0o755)); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := errors.Join(os.Remove(w.dir), os.Rename(aside, w.dir)); err != nil {
					t.Fatal(err)
				}
			}
		},
		"not to be read": func(w *world) func() {
			shields, aside := pool.Path(w.dir, pool.Shields), w.dir+".aside"
			if err := errors.Join(os.Rename(shields, aside), os.Symlink("shields", shields)); err != nil { // ELOOP
				t.Fatal(err)
			}
			return func() {
				if err := errors.Join(os.Remove(shields), os.Rename(aside, shields)); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		w := newWorld(t, "a", "b")
		w.protect(ProtectOptions{NoRecord: true})
		if _, err := Unprotect(t.Context(), UnprotectOptions{}, w.options()); err != nil {
			t.Fatal(err)
		}
		o := w.receipts()
		o.Step = func(what string) error {
			if what == "shield b" {
				return ErrStopped
			}
			return nil
		}
		if _, err := Protect(t.Context(), w.census(), ProtectOptions{NoRecord: true}, o); !errors.Is(err, ErrStopped) {
			t.Fatal(err)
		}
		o.Step = nil
		back := change(w)
		ended, half, err := Settle(t.Context(), o)
		all, err2 := o.Receipts.BaseReceipts(t.Context())
		if err == nil || len(ended)+len(half) > 0 || err2 != nil || len(all) != 1 || all[0].State != vault.Applying {
			t.Errorf("%s: Settle = %+v, %+v, %v, receipts %+v", name, ended, half, err, all)
		}
		back()
		if ended, _, err := Settle(t.Context(), o); err != nil || len(ended) != 1 || len(InForce(ended[0])) != 1 {
			t.Errorf("%s: Settle in the end = %+v, %v, want one shield", name, ended, err)
		}
	}
}

// lastReceipt is that of an act that removed a base for good.
func (f *stock) lastReceipt(t *testing.T, o Options) string {
	t.Helper()
	f.plan()
	f.reports()
	f.quarantine("b")
	f.reports()
	d, err := f.purge(o)
	if err != nil || len(d.Purged) != 1 || d.Receipt == "" {
		t.Fatalf("Purge = %+v, %v", d, err)
	}
	r, err := o.Receipts.BaseReceipt(d.Receipt)
	if err != nil || len(InForce(r)) > 0 || len(whats(r)) != 1 || whats(r)[0] != "purge b done" {
		t.Errorf("receipt = %v, %v, in force %v", whats(r), err, InForce(r))
	}
	return d.Receipt
}
