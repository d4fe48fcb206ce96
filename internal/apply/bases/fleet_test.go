// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// allowPurge has the pool allow removing for good, at once.
func (f *farm) allowPurge() {
	f.t.Helper()
	p := *f.state().Policy
	p.AllowPurge, p.MinAge, p.MinQuarantine, p.MaxFraction = true, 0, 0, 1
	text, err := p.Text()
	if err == nil {
		err = os.WriteFile(pool.Path(f.dir, pool.File), text, 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// plan decides on a node.
func (n *node) plan(only ...string) *judge.Plan {
	n.f.t.Helper()
	p, err := Plan(n.f.t.Context(), only, Decision{Census: n.look}, n.options())
	if err != nil {
		n.f.t.Fatal(err)
	}
	return p
}

func (n *node) quarantine(p *judge.Plan) []string {
	n.f.t.Helper()
	d, err := Quarantine(n.f.t.Context(), p, Decision{Census: n.look}, n.options())
	if err != nil {
		n.f.t.Fatal(err)
	}
	return d.Quarantined
}

func (n *node) purge(p *judge.Plan) []string {
	n.f.t.Helper()
	d, err := Purge(n.f.t.Context(), p, PurgeOptions{Approve: p.SHA256, Allowed: true, By: "me"}, Decision{Census: n.look}, n.options())
	if err != nil {
		n.f.t.Fatal(err)
	}
	return d.Purged
}

// TestAgentsAndPurge: three nodes with directories of their own, agents on each, and a person who wants the space of a
// base on one of them. Only what every node has looked for goes, and never what one that is down needs.
func TestAgentsAndPurge(t *testing.T) {
	f := newFarm(t, []string{"used", "free"}, "a", "b", "c")
	f.allowPurge()
	a, b, c := f.nodes["a"], f.nodes["b"], f.nodes["c"]
	c.overlay("disk", "used") // only c sees it
	all := []*node{a, b, c}
	for _, n := range all {
		n.pass()
	}
	a.plan() // what nobody needs is a candidate from now on
	if got := a.quarantine(a.plan()); len(got) > 0 {
		t.Errorf("set aside %q before anybody spoke again", got)
	}
	for _, n := range all {
		n.pass()
	}
	got := a.quarantine(a.plan())
	if len(got) != 1 || !strings.HasSuffix(got[0], ".free") {
		t.Fatalf("set aside %q, want free alone", got)
	}
	for _, n := range all {
		n.pass()
	}
	for _, n := range []*node{a, b} { // c is down from now on
		n.run.Awake += grace + time.Second
		n.pass()
	}
	p := a.plan()
	if got := a.purge(p); len(got) > 0 {
		t.Errorf("removed %q while c is down", got)
	}
	if i := slices.IndexFunc(p.All, func(b judge.Decided) bool { return b.Name == "free" }); i < 0 ||
		!strings.Contains(p.Against(&p.All[i]), "c") {
		t.Errorf("the plan does not say that c is not heard: %+v", p.All)
	}
	c.boot()
	c.pass()
	if got := a.purge(a.plan()); len(got) != 1 {
		t.Errorf("removed %q when all have looked, want free", got)
	}
	if _, err := os.Stat(f.path("used")); err != nil {
		t.Error(err)
	}
	if h := f.state().Held; len(h) > 0 {
		t.Errorf("in quarantine: %+v", h)
	}
}

// TestAgent: it passes again and again until it is stopped, or once, and protects where it is to.
func TestAgent(t *testing.T) {
	f := newFarm(t, []string{"x"}, "a")
	a := f.nodes["a"]
	f.write("late", "late")
	var told []pool.What
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := AgentOptions{Pass: PassOptions{Machine: a.machine, Census: a.look, Run: a.runs}, Every: time.Millisecond,
		Tell: func(h pool.Happened) error {
			if told = append(told, h.What); len(told) == 3 {
				cancel()
			}
			return nil
		}}
	if complete, err := Agent(ctx, o, a.options()); !errors.Is(err, context.Canceled) || !complete {
		t.Errorf("Agent = %v, %v, want %v", complete, err, context.Canceled)
	}
	if want := []pool.What{pool.Reported, pool.Reported, pool.Reported}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	if r := lastOf(f.state(), "a").Report; r.Seq != 3 || len(f.state().ShieldsOf("late")) > 0 {
		t.Errorf("report %d, shields %v", r.Seq, f.state().ShieldsOf("late"))
	}
	told, o.Once, o.Protect = nil, true, &ProtectOptions{NoRecord: true}
	if complete, err := Agent(t.Context(), o, a.options()); err != nil || !complete {
		t.Errorf("Agent once = %v, %v", complete, err)
	}
	if want := []pool.What{pool.Reported, pool.Passed}; !slices.Equal(told, want) || len(f.state().ShieldsOf("late")) != 1 {
		t.Errorf("told %q, want %q and a shield of late", told, want)
	}
	// An error ends it: who started it starts it again.
	o.Pass.Run = func(context.Context) (linux.Run, error) { return linux.Run{}, fs.ErrInvalid }
	if _, err := Agent(t.Context(), o, a.options()); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Agent = %v, want %v", err, fs.ErrInvalid)
	}
}

// TestDescribe: what a node says to a fleet is what it reported, with what it has.
func TestDescribe(t *testing.T) {
	f := newFarm(t, []string{"x", "gone"}, "a")
	a := f.nodes["a"]
	f.protect(ProtectOptions{})
	a.overlay("disk", "gone")
	f.remove("gone")
	i, err := Describe(t.Context(), PassOptions{Machine: a.machine, Census: a.look, Run: a.runs}, a.options())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, k := range i.All {
		all = append(all, k.Name+" "+k.State)
		if k.SHA256 == "" || k.Shield == "" {
			t.Errorf("%s has the digest %q and the shield %q", k.Name, k.SHA256, k.Shield)
		}
	}
	if want := []string{"gone missing", "x live"}; !slices.Equal(all, want) || !i.Said().Needs("gone", 0) {
		t.Errorf("Describe = %q, want %q", all, want)
	}
}
