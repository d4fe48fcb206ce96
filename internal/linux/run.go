// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Run is one run of a machine, from one start to the next, and how far it has come.
type Run struct {
	// BootID is what the kernel calls it.
	BootID string
	// MachineID is the number of the machine (machine-id(5)), "" if it has none.
	MachineID string
	// Up is how long it has lasted, with the time that the machine slept; Awake is without that. Neither jumps
	// when somebody sets the clock.
	Up, Awake time.Duration
}

// Run tells about this run of the machine that the program runs on.
func (h *Host) Run(ctx context.Context) (r Run, err error) {
	text, err := h.Text(ctx, "/proc/sys/kernel/random/boot_id")
	if err != nil {
		return r, err
	}
	id, err := h.Text(ctx, "/etc/machine-id")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	r.MachineID = strings.TrimSpace(string(id))
	r.BootID = strings.TrimSpace(string(text))
	for _, c := range []struct {
		clock int32
		to    *time.Duration
	}{{unix.CLOCK_BOOTTIME, &r.Up}, {unix.CLOCK_MONOTONIC, &r.Awake}} {
		var ts unix.Timespec
		if err := unix.ClockGettime(c.clock, &ts); err != nil {
			return r, fmt.Errorf("clock %d: %w", c.clock, err)
		}
		*c.to = time.Duration(ts.Nano())
	}
	return r, nil
}
