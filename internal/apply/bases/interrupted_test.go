// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// at runs a function before the step that begins with some words.
func at(words string, do func()) func(string) error {
	return func(what string) error {
		if strings.HasPrefix(what, words) {
			do()
		}
		return nil
	}
}

// TestInterrupted: who ends an act that takes away, wherever that is, finds each base in its place or removed, and nothing for
// recover to do.
func TestInterrupted(t *testing.T) {
	for _, words := range []string{"intend quarantine a", "rename a", "intend quarantine b", "rename b", "note quarantine b", "look again"} {
		f := newStock(t, "a", "b")
		files := f.files("a", "b")
		p := f.plan("a", "b")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := f.options()
		o.Step = at(words, cancel)
		d, err := Quarantine(ctx, p, f.decision(), o)
		if err == nil || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Quarantine = %+v, %v, want %v", words, d, err, context.Canceled)
		}
		f.settled(files, "quarantine, "+words)
		if s := f.state(); len(s.Held) > 0 {
			t.Errorf("%s: %+v are in quarantine, and nobody looked again", words, s.Held)
		}
	}
	for _, words := range []string{"intend purge a", "claim a", "intend purge b", "claim b", "unshield a", "remove a", "note purge a"} {
		f := newStock(t, "a", "b", "c")
		files := f.files("a", "b")
		f.quarantine("a", "b")
		f.reports()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := f.options()
		o.Step = at(words, cancel)
		p := f.plan()
		d, err := Purge(ctx, p, PurgeOptions{Approve: p.SHA256, Allowed: true, By: "root"}, f.decision(), o)
		if err == nil || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Purge = %+v, %v, want %v", words, d, err, context.Canceled)
		}
		if words == "unshield a" || words == "remove a" || words == "note purge a" { // what was begun is done
			delete(files, "a")
		}
		f.settled(files, "purge, "+words)
	}
}

// settled tells what is left for recover, and what is lost.
func (f *stock) settled(files map[string]uint64, when string) {
	f.t.Helper()
	if got := f.problems(files, true); got != nil {
		f.t.Errorf("%s: %q", when, got)
	}
	f.wantKept(files, when)
	for _, h := range f.state().Held {
		if h.Claimed || h.Links != 2 {
			f.t.Errorf("%s: %+v is claimed, or has no shield", when, h)
		}
	}
}

// TestNotLookedAgain: what was set aside is back where it could not be looked again whether somebody began to use it.
func TestNotLookedAgain(t *testing.T) {
	f := newStock(t, "a", "b")
	p := f.plan("a")
	looked := 0
	by := Decision{Census: func(ctx context.Context) (*refs.Census, error) {
		if looked++; looked > 1 {
			return nil, errors.New("the storage is gone")
		}
		return f.look(ctx)
	}}
	d, err := Quarantine(t.Context(), p, by, f.options())
	if err == nil || len(d.Quarantined) != 1 || len(d.Restored) != 1 || f.entry("a") == 0 {
		t.Errorf("Quarantine = %+v, %v, want it back", d, err)
	}
	f.settled(f.files("a", "b"), "not looked again")
}

// TestNotSeenAgain: what was set aside, and can be neither looked at again nor brought back, is an act that came to no end, also
// where it is known to be needed; when it can be read again recover brings back what is needed.
func TestNotSeenAgain(t *testing.T) {
	for _, fails := range []bool{false, true} {
		f := newStock(t, "a", "b")
		files, held := f.files("a", "b"), pool.Path(f.dir, pool.Quarantine)
		hide := func() {
			if err := errors.Join(os.Rename(held, held+".away"), os.Symlink("nowhere", held)); err != nil {
				t.Fatal(err)
			}
		}
		p, looked := f.plan("a"), 0
		by := f.decision()
		by.Census = func(ctx context.Context) (*refs.Census, error) {
			if looked++; looked == 1 {
				return f.look(ctx)
			}
			if fails {
				hide()
				return nil, errors.New("the storage is gone")
			}
			f.image("new", "a")
			c, err := f.look(ctx)
			return c, err
		}
		known := by.Known
		by.Known = func(ctx context.Context, c *refs.Census) ([]judge.Known, []error, error) {
			all, unknown, err := []judge.Known(nil), []error(nil), error(nil)
			if known != nil {
				all, unknown, err = known(ctx, c)
			}
			if looked > 1 && !fails {
				hide()
			}
			return all, unknown, err
		}
		d, err := Quarantine(t.Context(), p, by, f.options())
		if !errors.Is(err, ErrUnfinished) || len(d.Quarantined) != 1 || len(d.Restored) > 0 {
			t.Errorf("it cannot be looked again: %v: Quarantine = %+v, %v, want %v", fails, d, err, ErrUnfinished)
		}
		if fails {
			f.image("new", "a")
		}
		if err := errors.Join(os.Remove(held), os.Rename(held+".away", held)); err != nil {
			t.Fatal(err)
		}
		if d, err := Recover(t.Context(), f.decision(), f.options()); err != nil || len(d.Restored) != 1 {
			t.Errorf("it cannot be looked again: %v: Recover = %+v, %v, want a back", fails, d, err)
		}
		f.wantNames(files, "at the end")
	}
}

// TestNotLookedAgainMadeAnew: what was set aside, could not be looked again, and has lost its name to another file, is told as an
// act that came to no end.
func TestNotLookedAgainMadeAnew(t *testing.T) {
	f := newStock(t, "a", "b")
	p, looked := f.plan("a"), 0
	by := Decision{Census: func(ctx context.Context) (*refs.Census, error) {
		if looked++; looked > 1 {
			f.write("a", "made anew")
			return nil, errors.New("the storage is gone")
		}
		return f.look(ctx)
	}}
	d, err := Quarantine(t.Context(), p, by, f.options())
	if !errors.Is(err, ErrUnfinished) || !errors.Is(err, ErrThere) || len(d.Restored) > 0 || len(f.state().Held) != 1 {
		t.Errorf("Quarantine = %+v, %v, want %v and %v", d, err, ErrUnfinished, ErrThere)
	}
}

// TestClaimsNotSeen: a purge that can neither decide nor see what it has claimed is one that came to no end, and recover puts that
// back.
func TestClaimsNotSeen(t *testing.T) {
	f := newStock(t, "a", "b", "c")
	files := f.files("a", "b")
	f.quarantine("a", "b")
	f.reports()
	p, looked, claims := f.plan(), 0, pool.Path(f.dir, pool.Purge)
	by := Decision{Census: func(ctx context.Context) (*refs.Census, error) {
		if looked++; looked > 1 {
			if err := errors.Join(os.Rename(claims, claims+".away"), os.WriteFile(claims, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			return nil, errors.New("the storage is gone")
		}
		return f.look(ctx)
	}}
	d, err := Purge(t.Context(), p, PurgeOptions{Approve: p.SHA256, Allowed: true, By: "root"}, by, f.options())
	if !errors.Is(err, ErrUnfinished) || len(d.Purged) > 0 {
		t.Errorf("Purge = %+v, %v, want %v", d, err, ErrUnfinished)
	}
	if err := errors.Join(os.Remove(claims), os.Rename(claims+".away", claims)); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(t.Context(), f.decision(), f.options()); err != nil {
		t.Error(err)
	}
	f.settled(files, "recovered")
}

// TestShieldsNotSeen: a purge that was cut off is not told as done while nobody can see whether a shield keeps the base.
func TestShieldsNotSeen(t *testing.T) {
	f := newStock(t, "a", "b")
	ino := f.entry("a")
	f.quarantine("a")
	h, shields := f.state().Held[0], pool.Path(f.dir, pool.Shields)
	i := &pool.Intent{Schema: pool.IntentSchema, Act: pool.ActPurge, ID: h.ID, Name: "a", Inode: ino,
		From: pool.Quarantine + "/" + pool.HeldName(h.ID, "a"), Node: "n1", Time: time.Now().UTC()}
	text, err := i.Text()
	if err == nil {
		err = errors.Join(os.WriteFile(pool.Path(f.dir, pool.Journal, pool.IntentName(h.ID, i.Act)), text, 0o600), os.Remove(h.Path),
			os.Rename(shields, shields+".away"), os.Symlink("nowhere", shields))
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := Recover(t.Context(), f.decision(), f.options())
	if err != nil || len(d.Left) == 0 || len(d.Recovered) > 0 {
		t.Errorf("Recover = %+v, %v, want the purge left", d, err)
	}
	if err := errors.Join(os.Remove(shields), os.Rename(shields+".away", shields)); err != nil {
		t.Fatal(err)
	}
	d, err = Recover(t.Context(), f.decision(), f.options())
	if err != nil || len(d.Recovered) != 1 || !strings.Contains(d.Recovered[0], "its shield may have it") {
		t.Errorf("Recover = %+v, %v, want that its shield has it", d, err)
	}
}

// TestRecoverOdd: what recover cannot read may be an act that came to no end, and is told.
func TestRecoverOdd(t *testing.T) {
	for _, dir := range []string{pool.Journal, pool.Quarantine, pool.Purge} {
		f := newStock(t, "a", "b")
		f.quarantine("a") // so that all directories are there
		if err := errors.Join(os.MkdirAll(pool.Path(f.dir, dir), 0o755), os.WriteFile(pool.Path(f.dir, dir, "odd.json"), []byte("{"), 0o600)); err != nil {
			t.Fatal(err)
		}
		d, err := Recover(t.Context(), f.decision(), f.options())
		if err != nil || len(d.Left) != 1 || !strings.Contains(d.Left[0].Why, "odd.json") {
			t.Errorf("%s: Recover = %+v, %v, want it left", dir, d, err)
		}
	}
	// A name is not taken away beside what may be an act.
	w := newWorld(t, "a")
	o := w.receipts()
	w.write("../candidate", "x")
	st, err := diskio.Look(w.path("../candidate"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Adopt(t.Context(), w.path("../candidate"), st.ID, "b", Proof{}, o)
	if err == nil {
		err = errors.Join(os.MkdirAll(pool.Path(w.dir, pool.Journal), 0o755), os.WriteFile(pool.Path(w.dir, pool.Journal, "x.json"), nil, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Undo(t.Context(), d.Receipt, UndoOptions{Needed: func(string) bool { return true }}, o); !errors.Is(err, pool.ErrPool) {
		t.Errorf("Undo = %+v, %v, want %v", r, err, pool.ErrPool)
	}
}

// TestPinInThePast: a pin that has ended already is none.
func TestPinInThePast(t *testing.T) {
	w := newWorld(t, "a")
	if _, err := Pin(t.Context(), "a", PinOptions{Reason: "x", Until: time.Now().Add(-time.Minute)}, w.options()); err == nil || len(w.state().Pins) > 0 {
		t.Errorf("Pin = %v, pins %+v, want none", err, w.state().Pins)
	}
}
