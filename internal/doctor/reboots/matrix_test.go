// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package reboots

import (
	"strings"
	"testing"
	"time"
)

// TestMatrix holds which clocks are played, and which of them loop, for machines in Japan of which different things
// are known.
func TestMatrix(t *testing.T) {
	const jst = 9 * time.Hour
	for name, c := range map[string]struct {
		known Known
		// clocks is how many there are, loops those that loop, by what their names begin with.
		clocks int
		first  string
		loops  []string
	}{
		"a daemon that saves the time": {Known{Offset: jst, Local: No, Synced: Yes, Saves: Yes, Saved: noon.Add(-time.Hour), Build: noon.AddDate(-1, 0, 0)}, 13,
			"the clock is right", []string{ // from the time that was saved to the event, again and again
				"the clock is 9h slow at the start, no earlier than the last time that was saved, and never",
				"the clock of the hardware has stopped, and begins in 1970, no earlier than the last time that was saved, and never"}},
		"a daemon that does not": {Known{Offset: jst, Local: Yes, Synced: Yes, Saves: No, Build: noon.AddDate(-1, 0, 0)}, 13,
			"the clock is right", []string{"the clock is 9h slow", "the clock of the hardware has stopped"}},
		"no daemon": {Known{Offset: jst, Local: Yes, Synced: No, Saves: No, Build: noon.AddDate(-1, 0, 0)}, 5, "the clock is right",
			[]string{"the clock of the hardware has stopped"}}, // from systemd's build to the event, again and again
		"waits":              {Known{Offset: jst, Synced: Yes, Saves: No, Waits: Yes}, 13, "the clock is right", nil},
		"known to be off":    {Known{Offset: jst, Local: Yes, Right: No, Error: -jst, Synced: Yes, Saves: No}, 16, "the clock is 9h slow", []string{"the clock is 9h slow", "the clock of the hardware has stopped"}},
		"nothing is known":   {Known{Offset: jst, Local: Unknown, Synced: Unknown, Saves: Unknown}, 26, "the clock is right", []string{"the clock is 9h slow", "the clock of the hardware has stopped"}},
		"where local is UTC": {Known{Synced: Yes, Saves: No}, 7, "the clock is right", []string{"the clock of the hardware has stopped"}},
	} {
		t.Run(name, func(t *testing.T) {
			runs := Matrix(World{Start: noon, Timers: nightly(t, soon(t))}, c.known)
			if len(runs) != c.clocks || !strings.HasPrefix(runs[0].Clock, c.first) {
				t.Errorf("%d clocks, the first is %q; want %d, %q", len(runs), runs[0].Clock, c.clocks, c.first)
			}
			got := map[string]bool{}
			for i := range runs {
				r := &runs[i]
				var is bool
				for _, p := range c.loops {
					if strings.HasPrefix(r.Clock, p) {
						is, got[p] = true, got[p] || r.Loop
					}
				}
				if r.Loop && !is {
					t.Errorf("%q loops\n%s", r.Clock, chain(r))
				}
			}
			for _, p := range c.loops {
				if !got[p] {
					t.Errorf("%q does not loop", p)
				}
			}
		})
	}
}

func TestSpell(t *testing.T) {
	for d, want := range map[time.Duration]string{9 * time.Hour: "9h", 330 * time.Minute: "5h30m", 5 * time.Second: "5s",
		20 * time.Minute: "20m"} {
		if got := spell(d); got != want {
			t.Errorf("spell(%v) = %q, want %q", d, got, want)
		}
	}
}
