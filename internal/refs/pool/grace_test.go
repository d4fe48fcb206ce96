// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"math"
	"testing"
	"time"
)

// TestLongGrace: where launches may take as long as a span can be, nobody has waited for them.
func TestLongGrace(t *testing.T) {
	for d, want := range map[time.Duration]int64{0: 0, 1: 1, time.Second: 1, time.Second + 1: 2,
		math.MaxInt64 - time.Second: maxGraceSeconds, math.MaxInt64: maxGraceSeconds} {
		if got := SecondsOf(d); got != want {
			t.Errorf("SecondsOf(%v) = %d, want %d", d, got, want)
		}
	}
	r := &Report{LaunchGraceSeconds: 900, Observed: []string{"id"}}
	for _, d := range []time.Duration{16 * time.Minute, math.MaxInt64 - time.Second, math.MaxInt64} {
		if seen := r.Seen(d); len(seen) > 0 {
			t.Errorf("who waited for 15 minutes has seen %q where a launch takes %v", seen, d)
		}
	}
}
