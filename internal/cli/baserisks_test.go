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
	d, err := o.decision(newBasePlan(s), "/p", s)
	if err != nil || !slices.Equal(d.NoOverlays, []string{"a"}) || !slices.Equal(d.OtherStorage, []string{"b", "a"}) {
		t.Errorf("the risks taken are %q and %q: %v", d.NoOverlays, d.OtherStorage, err)
	}
	for _, risk := range []string{"", "a", "no-overlays:", "other-storage:", "other-storage", "power:a"} {
		o.risks = []string{risk}
		if _, err := o.decision(newBasePlan(s), "/p", s); err == nil {
			t.Errorf("the risk %q is taken", risk)
		}
	}
}
