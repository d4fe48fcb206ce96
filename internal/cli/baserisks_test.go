// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"slices"
	"testing"
)

// TestBaseRisks: each risk is taken for the node that is named, and nothing else is a risk.
func TestBaseRisks(t *testing.T) {
	s := &stdio{}
	o := planOptions{risks: []string{"no-overlays:a", "other-storage:b", "other-storage:a"}}
	d, err := o.decision(newBasePlan(s), s)
	if err != nil || !slices.Equal(d.NoOverlays, []string{"a"}) || !slices.Equal(d.OtherStorage, []string{"b", "a"}) {
		t.Errorf("the risks taken are %q and %q: %v", d.NoOverlays, d.OtherStorage, err)
	}
	for _, risk := range []string{"", "a", "no-overlays:", "other-storage:", "other-storage", "power:a", "audit:a"} {
		o.risks = []string{risk}
		if _, err := o.decision(newBasePlan(s), s); err == nil {
			t.Errorf("the risk %q is taken", risk)
		}
	}
	// That of an audit is for recover alone.
	o = planOptions{risks: []string{"audit:a"}, ends: true}
	if d, err := o.decision(newBaseRecover(s), s); err != nil || !slices.Equal(d.NewAudits, []string{"a"}) {
		t.Errorf("the audits are %q: %v", d.NewAudits, err)
	}
	o.risks = []string{"audit:"}
	if _, err := o.decision(newBaseRecover(s), s); err == nil {
		t.Error("an audit of nobody is begun")
	}
}
