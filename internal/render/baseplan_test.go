// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
)

// TestMissingIsSeen: what is missing is told before a thousand others, and the head says so.
func TestMissingIsSeen(t *testing.T) {
	p := &judge.Plan{Bases: "/p/_base"}
	c := &refs.Census{Bases: "/p/_base"}
	for i := range 1000 {
		name := fmt.Sprintf("b%04d", i)
		p.All = append(p.All, judge.Decided{Name: name, Path: "/p/_base/" + name, State: refs.Live, Verdict: judge.Keep})
		c.All = append(c.All, refs.Base{Name: name, Path: "/p/_base/" + name, State: refs.Live})
	}
	uses := []refs.Reference{{How: refs.Header, Holder: "/p/i/disk"}}
	for i := range maxOfAKind + 1 {
		name := fmt.Sprintf("gone%02d", i)
		p.All = append(p.All, judge.Decided{Name: name, Path: "/p/_base/" + name, State: refs.Missing, Verdict: judge.Keep, Uses: uses})
		c.All = append(c.All, refs.Base{Name: name, Path: "/p/_base/" + name, State: refs.Missing, Uses: uses})
	}
	var plan, scan strings.Builder
	if err := BasePlan(&plan, p, "", Style{}); err != nil {
		t.Fatal(err)
	}
	if err := BaseScan(&scan, c, Style{}); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%d are MISSING\n  gone00 is MISSING: needed by 1 image\n", maxOfAKind+1)
	if got := plan.String(); !strings.Contains(got, want) {
		t.Errorf("the plan does not say %q first:\n%s", want, got)
	}
	for what, got := range map[string]string{"plan": plan.String(), "scan": scan.String()} {
		if !strings.Contains(got, fmt.Sprintf("gone%02d", maxOfAKind)) || !strings.Contains(got, "  and 1000 bases more (--all lists them)\n") {
			t.Errorf("the %s lists not all that is missing, and no more:\n%s", what, got)
		}
	}
}
