// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
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

// TestLongNames: a base whose name leaves no room for a number before it has no shield, or no name in quarantine; that is told,
// and the receipt of the act comes to its end.
func TestLongNames(t *testing.T) {
	most := strings.Repeat("x", 255)
	w := newWorld(t, most, "a")
	o := w.receipts()
	d, err := Protect(t.Context(), w.census(most), ProtectOptions{}, o)
	if err != nil || len(d.Left) != 1 || d.Left[0].Name != most || !slices.Equal(d.Shielded, []string{"a"}) {
		t.Fatalf("Protect = %+v, %v, want only the longest name left", d, err)
	}
	if r, err := o.Receipts.BaseReceipt(d.Receipt); err != nil || r.State != vault.Committed {
		t.Errorf("the receipt of Protect is %+v, %v", r, err)
	}

	long := strings.Repeat("y", 230)
	f := newStock(t, long)
	o = f.receipts()
	d, err = Quarantine(t.Context(), f.plan(long), f.decision(), o)
	if err != nil || len(d.Left) != 1 || len(d.Quarantined) > 0 {
		t.Fatalf("Quarantine = %+v, %v, want the long name left", d, err)
	}
	if all, err := o.Receipts.BaseReceipts(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("Quarantine that did nothing left %+v, %v", all, err)
	}
}

// TestPolicyUnread: a pool.json that cannot be read is told as that, and not as storage that is not mounted.
func TestPolicyUnread(t *testing.T) {
	w := newWorld(t, "a")
	o := w.receipts()
	d, err := Protect(t.Context(), w.census(), ProtectOptions{}, o)
	if err != nil {
		t.Fatal(err)
	}
	w.write(".shisa/pool.json", "{")
	_, restore := Restore(t.Context(), "a", RestoreOptions{}, o)
	_, unprotect := Unprotect(t.Context(), UnprotectOptions{}, o)
	_, undo := Undo(t.Context(), d.Receipt, UndoOptions{}, o)
	for what, err := range map[string]error{"Restore": restore, "Unprotect": unprotect, "Undo": undo} {
		if !errors.Is(err, pool.ErrPool) || errors.Is(err, ErrOtherPool) {
			t.Errorf("%s = %v, want what is wrong with pool.json", what, err)
		}
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

// TestTouchCutOff: after a power cut a touch is told from somebody else's by the time that it gave.
func TestTouchCutOff(t *testing.T) {
	for name, c := range map[string]struct{ before, after, done bool }{
		"not done": {}, "done": {after: true, done: true},
		"not done, and touched by another": {before: true}, "done, and touched by another": {before: true, after: true},
	} {
		w := newWorld(t, "a")
		w.protect(ProtectOptions{NoRecord: true})
		o := w.receipts()
		o.Links = cutTouch{diskio.HostLinks(), c.after}
		if _, err := Protect(t.Context(), w.census("a"), ProtectOptions{NoRecord: true}, o); !errors.Is(err, ErrStopped) {
			t.Fatal(err)
		}
		o.Links = nil
		if c.before {
			was := time.Now().Add(-time.Minute).Truncate(time.Second)
			if err := os.Chtimes(w.path("a"), was, was); err != nil {
				t.Fatal(err)
			}
		}
		ended, _, err := Settle(t.Context(), o)
		if err != nil || len(ended) != 1 || ended[0].Steps[0].Done != c.done {
			t.Errorf("%s: Settle = %+v, %v, want done %v", name, ended, err, c.done)
			continue
		}
		if !c.done {
			continue // there is no receipt of what did nothing
		}
		if r := w.undo(ended[0].ID, o); r.State != vault.Undone || !w.old("a") {
			t.Errorf("%s: Undo = %+v, changed at %v", name, r, w.modified("a"))
		}
	}
}

// cutTouch loses power at the touch of a base, before it or after it.
type cutTouch struct {
	diskio.Links
	after bool
}

func (c cutTouch) Touch(id diskio.ID, name string, t time.Time) error {
	if filepath.Base(name) == pool.Clock {
		return c.Links.Touch(id, name, t)
	}
	if c.after {
		if err := c.Links.Touch(id, name, t); err != nil {
			return err
		}
	}
	return ErrStopped
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
	if left := InForce(r); err != nil || len(left) != 2 || !strings.Contains(left[0].Why+left[1].Why, "1 place was not seen") {
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
	touch := slices.IndexFunc(r.Steps, func(s vault.BaseStep) bool { return s.What == vault.BaseTouch })
	if touch < 0 || r.Steps[touch].Why != "it has not that name any more, and keeps its new time" {
		t.Errorf("the touch of what lost its name, step %d: %+v", touch, r.Steps)
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
	d, err := Adopt(t.Context(), w.path("candidate"), st.ID, "a", Proof{Why: "test"}, o)
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
		if ended, half, err := Settle(t.Context(), Options{Receipts: o.Receipts}); len(ended)+len(half) > 0 || err != nil {
			t.Errorf("Settle = %+v, %+v, %v, want nothing", ended, half, err)
		}
		return ErrStopped
	}
	if _, err := Protect(t.Context(), w.census(), ProtectOptions{NoRecord: true}, o); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	ended, half, err := Settle(t.Context(), Options{Receipts: o.Receipts})
	if err != nil || len(ended) != 1 || len(half) > 0 {
		t.Fatalf("Settle = %+v, %+v, %v, want the one that was cut off", ended, half, err)
	}
	r, err := o.Receipts.BaseReceipt(ended[0].ID)
	want := []string{"policy pool.json done", "shield a done", "shield b"}
	if err != nil || r.State != vault.Committed || r.Failure == "" || !slices.Equal(whats(r), want) {
		t.Errorf("receipt = %+v, %v, want %q", r, err, want)
	}
	if ended, half, err := Settle(t.Context(), Options{Receipts: o.Receipts}); len(ended)+len(half) > 0 || err != nil {
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

// TestUndoRestoreFromQuarantine: what came from quarantine goes back there, under an id that nobody has seen.
func TestUndoRestoreFromQuarantine(t *testing.T) {
	f := newStock(t, "a", "b")
	o := f.world.receipts()
	files := f.files("a")
	was := f.quarantine("a")[0]
	d, err := Restore(t.Context(), "a", RestoreOptions{As: "as"}, o)
	if err != nil {
		t.Fatal(err)
	}
	r := f.undo(d.Receipt, o)
	h := f.state().Held
	if r.State != vault.Undone || len(h) != 1 || h[0].File.Ino != files["a"] || h[0].Name != "a" || h[0].ID == was || h[0].Links != 2 {
		t.Fatalf("Undo = %+v, held %+v, want a in quarantine under a new id", r, h)
	}
	if got := f.problems(files, true); got != nil {
		t.Error(got)
	}
	if got, want := strings.Join(f.acts(), ", "), "quarantine a, restore a, quarantine a"; got != want {
		t.Errorf("audit: %s, want %s", got, want)
	}
}

// TestUndoOvertaken: a base that is made anew under the name in the very moment in which that is taken away keeps it,
// also where the program ends before it could put it back.
func TestUndoOvertaken(t *testing.T) {
	for name, c := range map[string]struct{ cut, third bool }{"goes on": {}, "cut off": {cut: true}, "cut off, a third": {true, true}} {
		f := newStock(t, "a", "b")
		o := f.world.receipts()
		f.remove("a")
		d, err := Restore(t.Context(), "a", RestoreOptions{}, o)
		if err != nil {
			t.Fatal(err)
		}
		was := f.entry("a")
		f.write("../anew", "anew")
		anew := f.entry("../anew")
		l := &overtaking{Links: diskio.HostLinks(), cut: c.cut, before: func() {
			if err := os.Rename(f.path("../anew"), f.path("a")); err != nil {
				t.Fatal(err)
			}
		}}
		o.Links = l
		r, err := Undo(t.Context(), d.Receipt, UndoOptions{Census: f.look}, o)
		if (err != nil) != c.cut || !l.done {
			t.Fatalf("%s: Undo = %+v, %v", name, r, err)
		}
		if c.cut {
			_, err := Undo(t.Context(), d.Receipt, UndoOptions{Census: f.look}, f.world.receipts())
			if !errors.Is(err, ErrUnfinished) {
				t.Errorf("%s: Undo once more = %v, want %v", name, err, ErrUnfinished)
			}
			want, number := "a file that had taken the name of a meanwhile has it again", 2
			if c.third {
				f.write("a", "third")
				want, number = "is in quarantine as ", 3 // and it had no shield
			}
			d, err := Recover(t.Context(), f.decision(), f.options())
			if err != nil || len(d.Recovered) != number || !strings.Contains(d.Recovered[0], want) {
				t.Errorf("%s: Recover = %+v, %v", name, d, err)
			}
		}
		if c.third {
			if h := f.state().Held; len(h) != 1 || h[0].File.Ino != anew || f.entry("a") == anew {
				t.Errorf("%s: held %+v, want the file that was made anew", name, h)
			}
		} else if got := f.entry("a"); got != anew || len(f.state().Held) != 0 {
			t.Errorf("%s: a is inode %d, held %+v, want that %d has its name", name, got, f.state().Held, anew)
		}
		f.wantKept(map[string]uint64{"a": was}, name)
		if r = f.undo(d.Receipt, f.world.receipts()); r.State != vault.Undone || r.Steps[0].Why == "" {
			t.Errorf("%s: Undo at last = %+v", name, r)
		}
	}
}

// overtaking has another file take a name just before it is moved aside. cut: the program ends when that was done, and
// not put back.
type overtaking struct {
	diskio.Links
	before    func()
	cut, done bool
}

func (l *overtaking) Aside(id diskio.ID, from, to string) error {
	l.done = true
	l.before()
	if !l.cut {
		return l.Links.Aside(id, from, to)
	}
	return errors.Join(os.Rename(from, to), ErrStopped)
}

// TestUndoAlone: a name is not taken away while another program is at work.
func TestUndoAlone(t *testing.T) {
	f := newStock(t, "a", "b")
	o := f.world.receipts()
	f.remove("a")
	d, err := Restore(t.Context(), "a", RestoreOptions{}, o)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := newKeeper(o).control()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Undo(t.Context(), d.Receipt, UndoOptions{Census: f.look}, o); !errors.Is(err, ErrBusy) {
		t.Errorf("Undo beside another program = %v, want %v", err, ErrBusy)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if r := f.undo(d.Receipt, o); r.State != vault.Undone {
		t.Errorf("Undo = %+v", r)
	}
}

// TestOwnNames: only names of our own are ever unlinked.
func TestOwnNames(t *testing.T) {
	w := newWorld(t, "a")
	e, err := diskio.LookEntry(w.path("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := newKeeper(w.options()).unlink(e.ID, w.path("a")); err == nil {
		t.Error("the name of a base was unlinked")
	}
}

// TestUndoJoin: a membership can be taken back until the node has said anything, or was retired; what the nodes that decide
// noted of it stops nothing then.
func TestUndoJoin(t *testing.T) {
	f := newStock(t, "a", "b")
	o := f.world.receipts()
	join := func(node string) *pool.Done {
		d, err := Join(t.Context(), node, me, o)
		if err != nil || d.Receipt == "" || !d.CanUndo {
			t.Fatalf("Join = %+v, %v, want a receipt", d, err)
		}
		return d
	}
	left := func(d *pool.Done, want string) {
		t.Helper()
		r := f.undo(d.Receipt, o)
		if left := InForce(r); len(left) != 1 || !strings.Contains(left[0].Why, want) {
			t.Errorf("Undo = %+v, want it left: %s", r, want)
		}
	}
	may := func() int { return len(f.plan().With(judge.MayQuarantine)) }
	if n := may(); n != 2 {
		t.Fatalf("%d bases may be set aside, want both", n)
	}
	d := join("n9")
	if n := may(); n != 0 {
		t.Errorf("%d bases may be set aside before n9 has said anything", n)
	}
	if r := f.undo(d.Receipt, o); r.State != vault.Undone || lastOf(f.state(), "n9").Member != nil {
		t.Errorf("Undo = %+v", r)
	}
	if n := may(); n != 2 {
		t.Errorf("%d bases may be set aside after that: %+v", n, f.plan().Blockers)
	}
	d = join("n9")
	_, retired, err := Retire(t.Context(), "n9", me, RetireOptions{Silent: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	left(d, "n9 was retired since")
	back := join("n9")
	if n := lastOf(f.state(), "n9"); n.Away() {
		t.Errorf("n9 = %+v, want that it is back", n)
	}
	if r := f.undo(back.Receipt, o); r.State != vault.Undone || !away(f.state(), "n9") {
		t.Errorf("Undo of the join that took a retirement back = %+v", r)
	}
	if r := f.undo(retired.Receipt, o); r.State != vault.Undone || lastOf(f.state(), "n9").Retired != nil {
		t.Errorf("Undo of the retirement = %+v, %+v", r, lastOf(f.state(), "n9"))
	}
	f.report("n9")
	left(d, "n9 has said what it needs since, in report 1 of ")
	// One that spoke is never forgotten.
	f.plan()
	if err := errors.Join(os.Remove(pool.Path(f.dir, pool.Nodes, "n9.json")), os.Remove(pool.Path(f.dir, pool.Members, "n9.json"))); err != nil {
		t.Fatal(err)
	}
	if n := may(); n != 0 {
		t.Errorf("%d bases may be set aside though n9 is forgotten", n)
	}
}

// TestUndoRetire: a node that was retired is what it was, with its last report, and without the pins that were made for it;
// pins that were there before, or that another retirement stands on, stay.
func TestUndoRetire(t *testing.T) {
	f := newFarm(t, []string{"x", "y"}, "a", "b")
	b := f.nodes["b"]
	b.overlay("disk", "x")
	b.overlay("disk2", "y")
	f.nodes["a"].pass()
	b.pass()
	f.ago("b", time.Hour)
	was := lastOf(f.state(), "b")
	o := f.world.receipts()
	human, err := Pin(t.Context(), "x", PinOptions{Reason: "golden"}, o)
	if err != nil {
		t.Fatal(err)
	}
	retire := func() *pool.Done {
		t.Helper()
		_, d, err := Retire(t.Context(), "b", me, RetireOptions{}, o)
		if err != nil || d.Receipt == "" || !d.CanUndo {
			t.Fatalf("Retire = %+v, %v", d, err)
		}
		return d
	}
	d := retire()
	if len(d.Pinned) != 2 || len(f.state().Pins) != 3 {
		t.Fatalf("pinned %q of %d", d.Pinned, len(f.state().Pins))
	}
	r := f.undo(d.Receipt, o)
	n := lastOf(f.state(), "b")
	if r.State != vault.Undone || n.Away() || n.Retired != nil || n.Report.SHA256 != was.Report.SHA256 || n.Member.Machine != was.Member.Machine {
		t.Errorf("Undo = %+v, b = %+v, want it as it was", r, n)
	}
	if p := f.state().Pins; len(p) != 1 || p[0].ID != human.Pinned[0] {
		t.Errorf("pins = %+v, want the one that a person made", p)
	}
	// It says something and is retired again with the pins of the first time: those stay as long as that is in force.
	d = retire()
	b.pass()
	f.ago("b", time.Hour)
	second := retire()
	if len(second.Pinned) != 0 {
		t.Errorf("the second retirement pinned %q, want none", second.Pinned)
	}
	r = f.undo(d.Receipt, o)
	if left := InForce(r); len(left) != 2 || !strings.Contains(left[0].Why, "b is retired, and the pin of ") || len(f.state().Pins) != 3 {
		t.Errorf("Undo of the first = %+v, %d pins", r, len(f.state().Pins))
	}
	r = f.undo(second.Receipt, o)
	if n = lastOf(f.state(), "b"); r.State != vault.Undone || n.Away() || n.Retired == nil {
		t.Errorf("Undo of the second = %+v, b = %+v, want that it is back as it was before", r, n)
	}
	// Without its report the pins are all that tells.
	if err := os.Remove(pool.Path(f.dir, pool.Nodes, "b.json")); err != nil {
		t.Fatal(err)
	}
	r = f.undo(d.Receipt, o)
	if left := InForce(r); len(left) != 2 || !strings.Contains(left[0].Why, "the last report of b is gone") {
		t.Errorf("Undo without a report = %+v", r)
	}
}

// TestUndoRetireCut: wherever the undo of a retirement is cut off, what the node used is still needed, and it goes on.
func TestUndoRetireCut(t *testing.T) {
	for cut := 0; ; cut++ {
		f := newFarm(t, []string{"x", "y"}, "a", "b")
		f.nodes["b"].overlay("disk", "x")
		f.nodes["b"].overlay("disk2", "y")
		f.nodes["a"].pass()
		f.nodes["b"].pass()
		f.ago("b", time.Hour)
		o := f.world.receipts()
		_, d, err := Retire(t.Context(), "b", me, RetireOptions{}, o)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		o.Step = func(what string) error {
			if n++; n > cut {
				return ErrStopped
			}
			return nil
		}
		_, err = Undo(t.Context(), d.Receipt, UndoOptions{}, o)
		s := f.state()
		if b := lastOf(s, "b"); b.Away() && len(s.Pins) != 2 {
			t.Errorf("cut %d: b is away with %d pins", cut, len(s.Pins))
		}
		if r := f.undo(d.Receipt, f.world.receipts()); r.State != vault.Undone || away(f.state(), "b") || len(f.state().Pins) > 0 {
			t.Errorf("cut %d: Undo goes on = %+v", cut, r)
		}
		if err == nil {
			if cut < 3 {
				t.Errorf("it has %d steps only", cut)
			}
			return
		}
	}
}

func away(s *pool.State, node string) bool {
	n := lastOf(s, node)
	return n.Away()
}
