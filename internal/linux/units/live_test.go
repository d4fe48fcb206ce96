// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// TestLoadsThisHost loads the units of the machine that tests run on, whatever they are.
func TestLoadsThisHost(t *testing.T) {
	l, err := tree.OpenLive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := Load(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	u := s.Unit("multi-user.target")
	if u == nil || u.State != Loaded {
		t.Fatalf("multi-user.target is %+v, want it loaded", u)
	}
	r := s.Reached("default.target")
	for _, name := range []string{"multi-user.target", "basic.target", "sysinit.target", "timers.target"} {
		if _, is := r[name]; !is {
			t.Errorf("%s is not reached from default.target, which is %q", name, s.Default)
		}
	}
	t.Logf("%d units, %d reached, gaps %v", len(s.Units), len(r), s.Gaps)
}
