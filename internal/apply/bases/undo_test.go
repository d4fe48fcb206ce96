// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/vault"
)

// receipts has the acts of a world leave receipts.
func (w *world) receipts() Options {
	w.t.Helper()
	v, err := vault.New(vault.Options{StateDir: w.dir + ".state"})
	if err != nil {
		w.t.Fatal(err)
	}
	o := w.options()
	o.Receipts, o.Tool = v, "test"
	return o
}

// undo takes an act back, where the bases of needed are needed.
func (w *world) undo(id string, o Options, needed ...string) *vault.BaseReceipt {
	w.t.Helper()
	r, err := Undo(w.t.Context(), id, UndoOptions{
		Census: func(context.Context) (*refs.Census, error) { return w.census(needed...), nil }}, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) modified(name string) time.Time {
	w.t.Helper()
	st, err := os.Stat(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return st.ModTime()
}

// whats lists the steps of a receipt with what became of them.
func whats(r *vault.BaseReceipt) (all []string) {
	for _, s := range r.Steps {
		text := string(s.What) + " " + s.Name
		if s.Done {
			text += " done"
		}
		if s.Undone {
			text += " undone"
		}
		all = append(all, text)
	}
	return all
}

func TestUndoProtect(t *testing.T) {
	w := newWorld(t, "a", "b")
	before := w.modified("a")
	o := w.receipts()
	d, err := Protect(t.Context(), w.census("a"), ProtectOptions{}, o)
	if err != nil || d.Receipt == "" {
		t.Fatalf("Protect = %+v, %v, want a receipt", d, err)
	}
	r, err := o.Receipts.BaseReceipt(d.Receipt)
	want := []string{"policy pool.json done", "shield a done", "touch a done", "shield b done", "record a done", "record b done"}
	if err != nil || r.State != vault.Committed || !slices.Equal(whats(r), want) || r.Pool != d.Pool || r.Act != "protect" {
		t.Fatalf("receipt = %+v, %v, want %q", r, err, want)
	}
	// What does nothing leaves none.
	if d, err := Protect(t.Context(), w.census("a"), ProtectOptions{}, o); err != nil || d.Receipt != "" {
		t.Errorf("Protect once more = %+v, %v, want no receipt", d, err)
	}
	w.remove("b")
	r = w.undo(d.Receipt, o)
	left := InForce(r)
	if len(left) != 1 || left[0].Name != "b" || left[0].Why != ErrLast.Error() || r.State != vault.Committed {
		t.Errorf("Undo = %+v, want that only the shield of b stays", r)
	}
	if h := w.state().Shields; len(h) != 1 || h[0].Name != "b" || !w.modified("a").Equal(before) {
		t.Errorf("shields %+v, a changed at %v, want that of b, and %v", h, w.modified("a"), before)
	}
	// Once the base is in its place the rest can be taken back too.
	if _, err := Restore(t.Context(), "b", RestoreOptions{}, w.options()); err != nil {
		t.Fatal(err)
	}
	if r = w.undo(d.Receipt, o); r.State != vault.Undone || len(w.state().Shields) != 0 {
		t.Errorf("Undo once more = %q, %+v", r.State, r.Steps)
	}
	if again := w.undo(d.Receipt, o); !again.Undone.Equal(*r.Undone) {
		t.Errorf("Undo of what is undone = %+v", again)
	}
}

// TestUndoTouch: a time is set back only where it is still the one that was set.
func TestUndoTouch(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	d, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(w.path("a"), later, later); err != nil {
		t.Fatal(err)
	}
	r := w.undo(d.Receipt, o)
	if r.State != vault.Undone || !w.modified("a").Equal(later) {
		t.Errorf("a changed at %v after Undo = %+v, want %v", w.modified("a"), r, later)
	}
}

// TestUndoTouchOfNeeded: a base that is needed does not look old again, whatever is taken back.
func TestUndoTouchOfNeeded(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	d, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	touched := w.modified("a")
	r := w.undo(d.Receipt, o, "a")
	if r.State != vault.Undone || !w.modified("a").Equal(touched) || len(w.state().Shields) != 0 {
		t.Errorf("a changed at %v after Undo = %+v, want %v and no shield", w.modified("a"), r, touched)
	}
	for _, s := range r.Steps {
		if s.What == vault.BaseTouch && s.Why == "" {
			t.Errorf("the touch says nothing of why it stays: %+v", s)
		}
	}
}

// TestTouchesAreDropped: of receipts that only touch the same bases the newest is kept.
func TestTouchesAreDropped(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	for range 4 {
		if _, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(w.path("a"), old, old); err != nil {
			t.Fatal(err)
		}
	}
	all, err := o.Receipts.BaseReceipts(t.Context())
	if err != nil || len(all) != 2 {
		t.Errorf("%d receipts, %v, want the one that made the shield, and the newest", len(all), err)
	}
}

// TestUndoRestore: the name is taken away only where nobody needs it, and the file is kept by its shield.
func TestUndoRestore(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	w.protect(ProtectOptions{NoRecord: true})
	id := w.state().Shields[0].ID
	w.remove("a")
	d, err := Restore(t.Context(), "a", RestoreOptions{}, o)
	if err != nil {
		t.Fatal(err)
	}
	r := w.undo(d.Receipt, o, "a")
	if left := InForce(r); len(left) != 2 || !strings.Contains(left[0].Why+left[1].Why, "a is needed, or may be: /a/disk needs it") {
		t.Errorf("Undo of what is needed = %+v", r)
	}
	if w.old("a") {
		t.Error("a keeps its name, and looks old")
	}
	blind := func(context.Context) (*refs.Census, error) {
		c := w.census()
		c.Gaps = append(c.Gaps, finding.Blind{Object: "x"})
		return c, nil
	}
	r, err = Undo(t.Context(), d.Receipt, UndoOptions{Census: blind}, o)
	if left := InForce(r); err != nil || len(left) != 2 || !strings.Contains(left[0].Why+left[1].Why, "1 places were not seen") {
		t.Errorf("Undo where not all was seen = %+v, %v", r, err)
	}
	// Nothing else keeps the file.
	if _, err := Unprotect(t.Context(), UnprotectOptions{}, w.options()); err != nil {
		t.Fatal(err)
	}
	r, err = Undo(t.Context(), d.Receipt, UndoOptions{Census: blind, Needed: func(p string) bool { return p == w.path("a") }}, o)
	if err != nil || r.State != vault.Undone {
		t.Errorf("Undo that is asked for = %+v, %v", r, err)
	}
	if h := w.state().Alone(); len(h) != 1 || h[0].ID != id || h[0].Name != "a" {
		t.Errorf("kept by shields alone: %+v, want a", h)
	}
	if _, err := os.Lstat(w.path("a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a is there: %v", err)
	}
}

// TestUndoAdopt: what was adopted has no shield yet, and gets one before it loses its name.
func TestUndoAdopt(t *testing.T) {
	w := newWorld(t, "candidate")
	o := w.receipts()
	st, err := diskio.Look(w.path("candidate"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Adopt(t.Context(), w.path("candidate"), st.ID, "a", "test", o)
	if err != nil {
		t.Fatal(err)
	}
	if r := w.undo(d.Receipt, o); r.State != vault.Undone {
		t.Errorf("Undo = %+v", r)
	}
	if h := w.state().Alone(); len(h) != 1 || h[0].Name != "a" {
		t.Errorf("kept by shields alone: %+v, want a", h)
	}
}

func TestUndoUnprotect(t *testing.T) {
	w := newWorld(t, "a", "b")
	o := w.receipts()
	if _, err := Protect(t.Context(), w.census("a"), ProtectOptions{}, o); err != nil {
		t.Fatal(err)
	}
	d, err := Unprotect(t.Context(), UnprotectOptions{Records: true}, o)
	if err != nil || len(d.Unshielded) != 2 || len(d.Forgotten) != 2 || len(w.state().Objects) != 0 {
		t.Fatalf("Unprotect = %+v, %v", d, err)
	}
	var stays []string
	for _, s := range d.Stays {
		stays = append(stays, s.Name)
	}
	if want := []string{".shisa/audit (8)", ".shisa/pool.json (1)"}; !slices.Equal(stays, want) {
		t.Errorf("stays: %q, want %q", stays, want)
	}
	w.remove("b")
	r := w.undo(d.Receipt, o)
	if h := w.state().Shields; len(h) != 1 || h[0].Name != "a" || len(InForce(r)) != 1 {
		t.Errorf("Undo = %+v, shields %+v, want that of a again", r, h)
	}
}

// TestUndoKeepsTheAudit: what is taken back by several acts leaves an audit that follows its chain.
func TestUndoKeepsTheAudit(t *testing.T) {
	w := newWorld(t, "a", "b")
	o := w.receipts()
	if _, err := Protect(t.Context(), w.census(), ProtectOptions{NoRecord: true}, o); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "b"} {
		if _, err := Pin(t.Context(), n, PinOptions{Reason: "r", By: "p"}, o); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Unpin(t.Context(), "a", "r", o)
	if err != nil {
		t.Fatal(err)
	}
	if r := w.undo(d.Receipt, o); r.State != vault.Undone || len(w.state().Pins) != 2 {
		t.Errorf("Undo of unpin = %q, pins %+v", whats(r), w.state().Pins)
	}
	all, err := o.Receipts.BaseReceipts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.State != vault.Undone {
			w.undo(r.ID, o)
		}
	}
	if s := w.state(); len(s.Pins) != 0 || len(s.Shields) != 0 { // state fails where an audit was broken
		t.Errorf("pins %+v, shields %+v, want none", s.Pins, s.Shields)
	}
}

// TestUnderWay: an act that is under way is not taken back, nor is its receipt ended; one that was cut off is.
func TestUnderWay(t *testing.T) {
	w := newWorld(t, "a", "b")
	o := w.receipts()
	o.Step = func(what string) error {
		if what != "shield b" {
			return nil
		}
		all, err := o.Receipts.BaseReceipts(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("receipts = %+v, %v", all, err)
		}
		if _, err := Undo(t.Context(), all[0].ID, UndoOptions{}, o); !errors.Is(err, diskio.ErrInUse) {
			t.Errorf("Undo of an act that is under way = %v, want %v", err, diskio.ErrInUse)
		}
		if ended, half, err := Settle(t.Context(), o.Receipts, time.Now()); len(ended)+len(half) > 0 || err != nil {
			t.Errorf("Settle = %+v, %+v, %v, want nothing", ended, half, err)
		}
		return ErrStopped
	}
	if _, err := Protect(t.Context(), w.census(), ProtectOptions{NoRecord: true}, o); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	ended, half, err := Settle(t.Context(), o.Receipts, time.Now())
	if err != nil || len(ended) != 1 || len(half) > 0 {
		t.Fatalf("Settle = %+v, %+v, %v, want the one that was cut off", ended, half, err)
	}
	r, err := o.Receipts.BaseReceipt(ended[0].ID)
	want := []string{"policy pool.json done", "shield a done", "shield b"}
	if err != nil || r.State != vault.Committed || r.Failure == "" || !slices.Equal(whats(r), want) {
		t.Errorf("receipt = %+v, %v, want %q", r, err, want)
	}
	if ended, half, err := Settle(t.Context(), o.Receipts, time.Now()); len(ended)+len(half) > 0 || err != nil {
		t.Errorf("Settle once more = %+v, %+v, %v, want nothing", ended, half, err)
	}
	if left, err := os.ReadDir(o.Receipts.BasesDir()); err != nil || len(left) != 2 { // with the lock of undoing
		t.Errorf("files = %v, %v", left, err)
	}
}

// TestUndoElsewhere: an act is not taken back in another pool, nor where none is.
func TestUndoElsewhere(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	d, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.path(".shisa"), w.path("aside")); err != nil {
		t.Fatal(err)
	}
	if _, err := Undo(t.Context(), d.Receipt, UndoOptions{}, o); !errors.Is(err, ErrOtherPool) {
		t.Errorf("Undo = %v, want %v", err, ErrOtherPool)
	}
}

// TestUndoCutOff: a power cut before any change leaves a receipt that takes back what was done, and nothing else.
func TestUndoCutOff(t *testing.T) {
	for at := 0; ; at++ {
		w := newWorld(t, "a", "b")
		before := w.modified("a")
		o := w.receipts()
		n := 0
		o.Step = func(string) error {
			if n++; n > at {
				return ErrStopped
			}
			return nil
		}
		_, err := Protect(t.Context(), w.census("a", "b"), ProtectOptions{}, o)
		if err == nil {
			if at < 8 {
				t.Fatalf("it was stopped at %d steps only", at)
			}
			return
		}
		o.Step = nil
		all, err := o.Receipts.BaseReceipts(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("stopped at %d: %d receipts, %v", at, len(all), err)
		}
		if all[0].State != vault.Applying {
			t.Fatalf("stopped at %d: %q", at, all[0].State)
		}
		if s := w.state(); s.Policy == nil {
			continue // nothing was begun but directories
		}
		if r := w.undo(all[0].ID, o); r.State != vault.Undone || len(w.state().Shields) > 0 || !w.modified("a").Equal(before) {
			t.Errorf("stopped at %d: Undo = %q, shields %+v, a changed at %v", at, whats(r), w.state().Shields, w.modified("a"))
		}
	}
}
