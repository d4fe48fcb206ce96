// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"math"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// drain says which ids this report may name as observed, and which are still waited for. seen are those of step 1,
// run is the moment after step 2, and before step 4.
func drain(r, last *pool.Report, seen []string, run linux.Run, grace time.Duration) {
	waited := map[string]int64{} // for how many seconds each was waited for
	waiting := map[string]bool{}
	r.LaunchGraceSeconds = pool.SecondsOf(grace)
	if last != nil {
		// What was waited for by a shorter grace than the one of now is waited for anew.
		for _, id := range last.Seen(grace) {
			waited[id] = last.DrainedSeconds
		}
		for _, d := range last.Draining {
			// What is kept is rounded up, and what it is held against down.
			since := int64(run.Awake/time.Second) - d.UpSeconds
			switch {
			case d.BootID != run.BootID:
				since = math.MaxInt64
			case since < 0:
				continue // no clock that only goes forward told that: it is waited for anew
			}
			left := pool.Draining{Observed: []string{}, BootID: d.BootID, UpSeconds: d.UpSeconds}
			for _, id := range d.Observed {
				switch {
				case !slices.Contains(seen, id):
				case since >= r.LaunchGraceSeconds:
					waited[id] = max(waited[id], since)
				default:
					waiting[id] = true
					left.Observed = append(left.Observed, id)
				}
			}
			if len(left.Observed) > 0 {
				r.Draining = append(r.Draining, left)
			}
		}
	}
	first := pool.Draining{Observed: []string{}, BootID: run.BootID, UpSeconds: int64(math.Ceil(run.Awake.Seconds()))}
	least := int64(math.MaxInt64)
	for _, id := range seen {
		long, done := waited[id]
		switch {
		case done:
			r.Observed = append(r.Observed, id)
			least = min(least, long)
		case !waiting[id]:
			first.Observed = append(first.Observed, id)
		}
	}
	if len(first.Observed) > 0 {
		r.Draining = append(r.Draining, first)
	}
	if least < math.MaxInt64 {
		r.DrainedSeconds = least
	}
}
