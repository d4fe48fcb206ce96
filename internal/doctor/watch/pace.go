// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// share is the part of one processor that may be taken over time, burst what may be taken beside it
	// at once: a fault is looked at soon also where looking costs much.
	share = 0.008
	burst = 2 * time.Second
	// logShare is the part that reading logs again may take.
	logShare = 0.004
)

// purse is the processor time that may be spent.
type purse struct {
	spent func() time.Duration
	began time.Time
	start time.Duration
}

func newPurse(spent func() time.Duration, now time.Time) *purse {
	return &purse{spent: spent, began: now, start: spent()}
}

// wait is how long nothing may be spent.
func (p *purse) wait(now time.Time) time.Duration {
	over := p.spent() - p.start - burst - time.Duration(float64(now.Sub(p.began))*share)
	if over <= 0 {
		return 0
	}
	return time.Duration(float64(over) / share)
}

// processorTime is what this program and its children took so far.
func processorTime() time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}
