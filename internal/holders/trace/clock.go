// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clock turns the kernel's time into that of people.
type clock struct{ base time.Time }

// newClock reads both clocks. The clock of people may be set later, which changes nothing here.
func newClock() (clock, error) {
	now, err := monotonic()
	return clock{time.Now().Round(0).Add(-time.Duration(now))}, err
}

// at is a time of CLOCK_MONOTONIC, in ns, as the time of day.
func (c clock) at(ns int64) time.Time { return c.base.Add(time.Duration(ns)).UTC() }

// monotonic is CLOCK_MONOTONIC in ns, by which the kernel's programs tell time.
func monotonic() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return ts.Nano(), nil
}
