// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestThinnedMarks: the boots that are told are the same, whatever was dropped on the way.
func TestThinnedMarks(t *testing.T) {
	forms := []string{"unit.starting", "unit.started", "unit.stopping", "unit.stopped", "unit.failed"}
	rare := []mark{{form: "kernel.boot"}, {form: "kernel.boot"}, {form: "shutdown.request"}, {form: "kernel.panic"},
		{form: "unit.reached", unit: "reboot.target"}, {form: "unit.reached", unit: "basic.target"},
		{form: "unit.stopped", unit: "multi-user.target"}, {form: "journal.started"}, {form: "journal.stopped"},
		{form: "kernel.oops"}, {form: "kernel.resume"}, {form: "unit.reached", unit: "x.target"}, {form: "kernel.reboot"}}
	kinds, dropped := map[string]int{}, 0
	for seed := range testenv.Rounds(40, 400, 4000) {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		var all []mark
		whole, thinned := tracker{}, tracker{}
		at := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
		for range 50 + r.IntN(1000) {
			at = at.Add(time.Duration(r.IntN(5000)) * time.Millisecond)
			m := mark{at: at, before: at.Add(-time.Second), form: forms[r.IntN(len(forms))], unit: fmt.Sprintf("u%d.service", r.IntN(40))}
			if r.IntN(40) == 0 {
				unit := rare[r.IntN(len(rare))]
				m.form, m.unit = unit.form, unit.unit
			}
			all = append(all, m)
			thinned.texts.list = append(thinned.texts.list, m)
			if r.IntN(30) == 0 {
				thinned.texts.thin(keptDaily)
			}
		}
		whole.texts.list, whole.end, thinned.end = all, at, at
		dropped += len(all) - len(thinned.texts.list)
		want := whole.fromTexts()
		if diff := cmp.Diff(want, thinned.fromTexts()); diff != "" {
			t.Fatalf("seed %d: boots of %d marks of %d (-want +got):\n%s", seed, len(thinned.texts.list), len(all), diff)
		}
		for _, b := range want {
			kinds[b.End]++
			if b.LastUnit != "" {
				kinds["unit"]++
			}
		}
	}
	for _, kind := range []string{"cut", "shutdown", "panic", "unit"} {
		if kinds[kind] == 0 {
			t.Errorf("no boot ended so: %s (%v)", kind, kinds)
		}
	}
	if dropped == 0 {
		t.Error("nothing was dropped")
	}
}
