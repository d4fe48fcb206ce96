// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// TestReportLost: a node whose report was lost, damaged, or is an older one counts on from what was noted of it, and nothing may
// be done until it has.
func TestReportLost(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a")
	a := f.nodes["a"]
	path := pool.Path(f.dir, pool.Nodes, "a.json")
	plan := func() *judge.Plan {
		p, err := Plan(t.Context(), nil, Decision{Census: a.look}, a.options())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a.pass()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		a.pass()
	}
	plan()
	want := uint64(6)
	for _, c := range []struct {
		name   string
		lose   func() error
		blocks judge.Rule
	}{
		{"lost", func() error { return os.Remove(path) }, judge.NodeGone},
		{"cut off", func() error { return os.WriteFile(path, old[:100], 0o600) }, judge.Unreadable},
		{"an older one", func() error { return os.WriteFile(path, old, 0o600) }, judge.WentBack},
	} {
		if err := c.lose(); err != nil {
			t.Fatal(err)
		}
		if !blocked(plan(), c.blocks) {
			t.Errorf("%s: %s does not speak against everything", c.name, c.blocks)
		}
		a.pass() // which may have seen that the document was no good
		want++
		if r := a.pass(); r.Seq != want || !r.Complete {
			t.Errorf("%s: report %d, complete %v, want %d", c.name, r.Seq, r.Complete, want)
		}
		if p := plan(); blocked(p, judge.NodeGone) || blocked(p, judge.Unreadable) || blocked(p, judge.WentBack) {
			t.Errorf("%s: after its next reports %+v", c.name, p.Blockers)
		}
		want++
	}
}

// TestNotesUnread: what became less is not forgotten where the notes of it cannot be read: they are not replaced.
func TestNotesUnread(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a", "b")
	f.nodes["b"].overlay("disk", "x")
	for _, n := range f.nodes {
		n.pass()
	}
	o := f.nodes["a"].options()
	notes := pool.Path(f.dir, pool.Noted, "a.json")
	plan := func() *judge.Plan {
		p, err := Plan(t.Context(), nil, Decision{Census: f.nodes["a"].look}, o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	plan()
	was, err := os.ReadFile(notes)
	if err != nil {
		t.Fatal(err)
	}
	for _, lose := range []func() error{
		func() error { return os.WriteFile(notes, was[:len(was)/2], 0o600) },
		func() error { return errors.Join(os.Remove(notes), os.Symlink("nowhere", notes)) },
	} {
		if err := lose(); err != nil {
			t.Fatal(err)
		}
		for range 3 { // what is known of b is lost as well
			if err := errors.Join(os.RemoveAll(pool.Path(f.dir, pool.Nodes, "b.json")),
				os.RemoveAll(pool.Path(f.dir, pool.Members, "b.json"))); err != nil {
				t.Fatal(err)
			}
			if p := plan(); !blocked(p, judge.Unreadable) {
				t.Fatalf("with notes that cannot be read: %+v", p.Blockers)
			}
		}
	}
	if err := errors.Join(os.Remove(notes), os.WriteFile(notes, was, 0o600)); err != nil {
		t.Fatal(err)
	}
	if p := plan(); !blocked(p, judge.NodeGone) {
		t.Errorf("with its notes again: %+v, want %s", p.Blockers, judge.NodeGone)
	}
}

func blocked(p *judge.Plan, r judge.Rule) bool {
	return slices.ContainsFunc(p.Blockers, func(b judge.Blocker) bool { return b.Rule == r })
}
