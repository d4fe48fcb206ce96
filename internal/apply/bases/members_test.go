// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// ago puts the last report of a node back in time.
func (f *farm) ago(node string, d time.Duration) {
	f.t.Helper()
	r := *lastOf(f.state(), node).Report
	r.Time = r.Time.Add(-d)
	text, err := r.Text()
	if err == nil {
		err = os.WriteFile(pool.Path(f.dir, pool.Nodes, pool.NodeFile(node)), text, 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

var me = Person{By: "me", Reason: "it burned"}

// TestRetire: what a node used is pinned, and it is waited for no more.
func TestRetire(t *testing.T) {
	f := newFarm(t, []string{"used", "free"}, "a", "b")
	f.nodes["a"].pass()
	b := f.nodes["b"]
	b.overlay("disk", "used")
	b.overlay("disk2", "used")
	b.pass()
	o := f.nodes["a"].options()
	for _, c := range []struct {
		name, node string
		r          RetireOptions
		want       error
	}{
		{"one that nobody knows", "z", RetireOptions{}, ErrUnknown},
		{"one that Nova alone knows", "nova1", RetireOptions{Known: []string{"nova1"}}, ErrSilent},
		{"one that spoke a moment ago", "b", RetireOptions{}, ErrAlive},
		{"one that spoke in the future", "b", RetireOptions{}, ErrAlive},
	} {
		if c.name == "one that spoke in the future" {
			f.ago("b", -10*365*24*time.Hour)
		}
		if _, _, err := Retire(t.Context(), c.node, me, c.r, o); !errors.Is(err, c.want) {
			t.Errorf("Retire of %s = %v, want %v", c.name, err, c.want)
		}
	}
	f.ago("b", 11*365*24*time.Hour)
	free, used := f.setAside("free"), f.setAside("used")
	a := f.nodes["a"]
	a.pass()
	a.run.Awake += grace + time.Second
	a.pass()
	f.wantBlockers("b is silent", free, "free", "not_seen: b")
	gone, _, err := Retire(t.Context(), "b", me, RetireOptions{}, o)
	if err != nil || len(gone.Pins) != 1 {
		t.Fatalf("Retire = %+v, %v, want one pin", gone, err)
	}
	f.wantBlockers("b was retired", free, "free")
	f.wantBlockers("b was retired", used, "used", "pinned")
	if p := f.state().Pins; len(p) != 1 || len(p[0].Uses) != 2 || p[0].Inode == 0 || p[0].Reason != "node b was retired: it burned" {
		t.Errorf("pins = %+v, want one with two uses", p)
	}
	if _, _, err := Retire(t.Context(), "b", me, RetireOptions{}, o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Retire once more = %v, want %v", err, fs.ErrExist)
	}
	// It comes back all the same.
	b.pass()
	f.wantBlockers("b is back", free, "free", "not_seen: b")
	f.wantBlockers("b is back", used, "used", "pinned", "used: b")
	f.ago("b", time.Hour)
	// It needs what is missing under its name, and the file that was set aside.
	if gone, _, err = Retire(t.Context(), "b", me, RetireOptions{}, o); err != nil || len(gone.Pins) != 2 || len(f.state().Pins) != 2 {
		t.Errorf("Retire anew = %+v, %v with %d pins, want the same pin and one more", gone, err, len(f.state().Pins))
	}
	// A person takes it back.
	if _, err := Join(t.Context(), "b", me, o); err != nil {
		t.Fatal(err)
	}
	f.wantBlockers("b was joined again", free, "free", "not_seen: b")
	if _, err := Join(t.Context(), "b", me, o); !errors.Is(err, ErrMember) {
		t.Errorf("Join once more = %v, want %v", err, ErrMember)
	}
}

// TestRetireUnsure: what a node could not say has to be accepted.
func TestRetireUnsure(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a", "b")
	o := f.nodes["a"].options()
	if _, err := Join(t.Context(), "silent", me, o); err != nil {
		t.Fatal(err)
	}
	f.wantBlockers("joined", "0123456789abcdef0123456789abcdef", "x", "no_report: silent")
	if _, _, err := Retire(t.Context(), "silent", me, RetireOptions{}, o); !errors.Is(err, ErrSilent) {
		t.Errorf("Retire of a silent one = %v, want %v", err, ErrSilent)
	}
	if _, _, err := Retire(t.Context(), "silent", me, RetireOptions{Silent: true}, o); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(f.nodes["b"].dir+"/disk", []byte("QFI\xfb\x00\x00\x00\x03 broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := f.nodes["b"].pass(); r.Complete || len(r.Gaps) != 1 {
		t.Errorf("report of what cannot be read = %+v, want a gap", r)
	}
	f.ago("b", time.Hour)
	if _, _, err := Retire(t.Context(), "b", me, RetireOptions{}, o); !errors.Is(err, ErrPartly) {
		t.Errorf("Retire with an incomplete report = %v, want %v", err, ErrPartly)
	}
	// Any document that cannot be read may be what b said.
	if err := os.WriteFile(pool.Path(f.dir, pool.Pins, "x.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Retire(t.Context(), "b", me, RetireOptions{Partly: true}, o); !errors.Is(err, pool.ErrPool) {
		t.Errorf("Retire in a pool that cannot be read = %v, want %v", err, pool.ErrPool)
	}
}

// TestRetireCut: wherever a retirement is cut off, what the node used is still needed, and it can be done again.
func TestRetireCut(t *testing.T) {
	for cut := 0; ; cut++ {
		f := newFarm(t, []string{"x", "y"}, "a", "b")
		f.nodes["b"].overlay("disk", "x")
		f.nodes["b"].overlay("disk2", "y")
		f.nodes["b"].pass()
		f.nodes["a"].pass()
		f.ago("b", time.Hour)
		o := f.nodes["a"].options()
		n := 0
		o.Step = func(what string) error {
			if n++; n > cut {
				return fmt.Errorf("%s: %w", what, ErrStopped)
			}
			return nil
		}
		_, _, err := Retire(t.Context(), "b", me, RetireOptions{}, o)
		s := f.state()
		b := lastOf(s, "b")
		if b.Away() && len(s.Pins) != 2 {
			t.Errorf("cut %d: b is away with %d pins, want 2", cut, len(s.Pins))
		}
		if _, _, err := Retire(t.Context(), "b", me, RetireOptions{}, f.nodes["a"].options()); err != nil && !b.Away() {
			t.Errorf("cut %d: once more: %v", cut, err)
		}
		if got := len(f.state().Pins); got != 2 {
			t.Errorf("cut %d: %d pins after all, want 2", cut, got)
		}
		if err == nil {
			if cut < 5 {
				t.Errorf("a retirement has %d steps only", cut)
			}
			return
		}
	}
}

// TestPassCut: wherever a pass is cut off, what the node said before stands, and it can be done again.
func TestPassCut(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a")
	a := f.nodes["a"]
	for cut := 0; ; cut++ {
		n := 0
		o := a.options()
		o.Step = func(what string) error {
			if n++; n > cut {
				return ErrStopped
			}
			return nil
		}
		before := len(f.state().Reports)
		_, _, err := Pass(t.Context(), PassOptions{Machine: a.machine, Census: a.look, Run: a.runs}, o)
		if s := f.state(); err != nil && len(s.Reports) != before || len(s.Members) > 1 {
			t.Errorf("cut %d: %d reports, %d members", cut, len(s.Reports), len(s.Members))
		}
		if err == nil {
			break
		}
	}
	if r := f.state().Reports; len(r) != 1 || !slices.Equal(r[0].Observed, []string{}) {
		t.Errorf("reports = %+v, want one", r)
	}
}

// TestRetiredName: a name that was retired may be another machine's.
func TestRetiredName(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a", "b")
	b := f.nodes["b"]
	b.overlay("disk", "x")
	b.pass()
	f.ago("b", time.Hour)
	if _, _, err := Retire(t.Context(), "b", me, RetireOptions{}, f.nodes["a"].options()); err != nil {
		t.Fatal(err)
	}
	anew := *b
	anew.machine, anew.dir = f.nodes["a"].machine, t.TempDir()
	anew.boot()
	if r := anew.pass(); len(r.Uses) > 0 || r.Seq != 2 {
		t.Errorf("report of the new machine = %+v", r)
	}
	s := f.state()
	if n := lastOf(s, "b"); n.Away() || n.Member.Machine != anew.machine || len(s.Pins) != 1 {
		t.Errorf("b = %+v with %d pins, want the new machine and a pin", n, len(s.Pins))
	}
	if _, err := b.try(); !errors.Is(err, ErrDuplicate) {
		t.Errorf("Pass of the old machine = %v, want %v", err, ErrDuplicate)
	}
}
