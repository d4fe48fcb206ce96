// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/refs/judge"
)

// TestQuarantinedBaseNeeds: what a base in quarantine rests on stays, since that one may come back at any time.
func TestQuarantinedBaseNeeds(t *testing.T) {
	f := newStock(t, "bottom", "other")
	if err := writeOverlay(f.path("top"), "bottom"); err != nil {
		t.Fatal(err)
	}
	f.protect(ProtectOptions{NoRecord: true})
	f.reports()
	f.plan()
	f.reports()
	f.quarantine("top")
	verdict := func(name string) judge.Verdict {
		t.Helper()
		f.reports()
		f.plan()
		f.reports()
		p := f.plan()
		i := slices.IndexFunc(p.All, func(b judge.Decided) bool { return b.Name == name })
		if i < 0 {
			t.Fatalf("%s is not in the plan of %s", name, filepath.Base(f.dir))
		}
		return p.All[i].Verdict
	}
	if got := verdict("bottom"); got != judge.Keep {
		t.Errorf("bottom: %s, want %s", got, judge.Keep)
	}
	if d, err := f.purge(f.options()); err != nil || len(d.Purged) != 1 {
		t.Fatalf("Purge = %+v, %v", d, err)
	}
	if got := verdict("bottom"); got != judge.MayQuarantine {
		t.Errorf("bottom without top: %s, want %s", got, judge.MayQuarantine)
	}
}
