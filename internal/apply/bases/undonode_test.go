// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/vault"
)

// TestUndoRetireOtherMachine: the pins of a retirement tell what the disks of the node used. They stay where another machine
// has its name by the time that it is taken back, and go where the node itself names the same still.
func TestUndoRetireOtherMachine(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a", "b")
	f.nodes["a"].pass()
	b := f.nodes["b"]
	b.overlay("disk", "x")
	b.pass()
	f.ago("b", time.Hour)
	o := f.world.receipts()
	_, d, err := Retire(t.Context(), "b", me, RetireOptions{}, o)
	if err != nil {
		t.Fatal(err)
	}
	anew := *b
	anew.machine, anew.dir = strings.Repeat("f", 64), t.TempDir()
	anew.overlay("disk9", "x") // it uses the same base, for itself
	anew.boot()
	anew.pass()
	r := f.undo(d.Receipt, o)
	if left := InForce(r); len(left) != 1 || left[0].What != vault.BasePin || !strings.Contains(left[0].Why, "shisa base unpin") {
		t.Errorf("Undo where another machine has the name = %+v, want that the pin stays", r)
	}
	if p := f.state().Pins; len(p) != 1 || p[0].Name != "x" {
		t.Errorf("pins = %+v, want that of x", p)
	}
	// A person knows better.
	if _, err := Unpin(t.Context(), d.Pinned[0], "its disks are gone", f.world.receipts()); err != nil {
		t.Fatal(err)
	}
	if r := f.undo(d.Receipt, o); r.State != vault.Undone {
		t.Errorf("Undo without the pin = %+v", r)
	}

	// The node that came back by itself tells what the pin does.
	f.ago("b", time.Hour)
	if _, d, err = Retire(t.Context(), "b", me, RetireOptions{}, o); err != nil {
		t.Fatal(err)
	}
	anew.pass()
	if r := f.undo(d.Receipt, o); r.State != vault.Undone || len(f.state().Pins) != 0 {
		t.Errorf("Undo where the node is back = %+v with %d pins", r, len(f.state().Pins))
	}
}

// TestUndoJoinUnpinned: a retirement whose pins were taken back since does not come into force again.
func TestUndoJoinUnpinned(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a", "b")
	f.nodes["a"].pass()
	f.nodes["b"].overlay("disk", "x")
	f.nodes["b"].pass()
	f.ago("b", time.Hour)
	o := f.world.receipts()
	_, retired, err := Retire(t.Context(), "b", me, RetireOptions{}, o)
	if err != nil {
		t.Fatal(err)
	}
	joined, err := Join(t.Context(), "b", me, o)
	if err != nil {
		t.Fatal(err)
	}
	unpinned, err := Unpin(t.Context(), retired.Pinned[0], "b tells it itself", o)
	if err != nil {
		t.Fatal(err)
	}
	r := f.undo(joined.Receipt, o)
	if left := InForce(r); len(left) != 1 || !strings.Contains(left[0].Why, "retired anew") || away(f.state(), "b") {
		t.Errorf("Undo of the join = %+v, b away %v: want that the last report of b counts", r, away(f.state(), "b"))
	}
	if r := f.undo(unpinned.Receipt, o); r.State != vault.Undone {
		t.Errorf("Undo of the unpin = %+v", r)
	}
	if r := f.undo(joined.Receipt, o); r.State != vault.Undone || !away(f.state(), "b") {
		t.Errorf("Undo of the join with the pin = %+v, b away %v", r, away(f.state(), "b"))
	}
}
