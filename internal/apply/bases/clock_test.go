// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// TestClockIsNoFile: with a pipe where the clock should be, a plan is made in which nothing may be done; it notes nothing
// and hangs nowhere, and nothing acts by it.
func TestClockIsNoFile(t *testing.T) {
	f := newStock(t, "a", "b")
	clock, noted := pool.Path(f.dir, pool.Clock), pool.Path(f.dir, pool.Noted, pool.NodeFile(f.options().Node))
	good := f.plan()
	before, err := os.ReadFile(noted)
	if err := errors.Join(err, os.Remove(clock), unix.Mkfifo(clock, 0o600)); err != nil {
		t.Fatal(err)
	}
	p := f.plan()
	var rules []judge.Rule
	for _, b := range p.Blockers {
		rules = append(rules, b.Rule)
	}
	if !slices.Contains(rules, judge.NoClock) || !slices.Contains(rules, judge.Unreadable) || len(p.With(judge.MayQuarantine)) > 0 {
		t.Errorf("blockers are %q, and %d bases may be set aside", rules, len(p.With(judge.MayQuarantine)))
	}
	if !slices.Contains(p.Status, finding.StatusCannotTell) || slices.Contains(good.Status, finding.StatusCannotTell) {
		t.Errorf("the status is %v, and was %v; want %d now", p.Status, good.Status, finding.StatusCannotTell)
	}
	if after, err := os.ReadFile(noted); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the notes were written anew: %v", err)
	}
	for _, p := range []*judge.Plan{p, good} {
		if _, err := Quarantine(t.Context(), p, f.decision(), f.options()); !errors.Is(err, diskio.ErrSpecial) {
			t.Errorf("Quarantine = %v, want that it has no clock", err)
		}
	}
}
