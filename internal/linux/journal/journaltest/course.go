// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journaltest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Course writes what a machine says over several boots, in the export format.
type Course struct {
	bytes.Buffer
	// At is the time of the last entry; moving it lets time pass.
	At time.Time
	// Skew is how far the clock of the day was set ahead of the kernel's in this boot, or how long the
	// machine slept.
	Skew time.Duration

	boots int
	began time.Time
}

// Machine is the number of the machine.
const Machine = "0123456789abcdef0123456789abcdef"

// Start begins a boot.
func (c *Course) Start() {
	c.boots++
	c.began, c.Skew = c.At, 0
	c.Say(0, "kernel", "Linux version 6.1.0-44-amd64 (x) #1 SMP")
}

// Say writes an entry of a program, or of the kernel, some time after the one before. Those of programs
// have no priority but by their fields.
func (c *Course) Say(after time.Duration, who, text string, fields ...string) {
	c.At = c.At.Add(after)
	mono := (c.At.Sub(c.began) - c.Skew).Microseconds()
	fmt.Fprintf(c, "__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%032x\n_HOSTNAME=h\nMESSAGE=%s\n",
		c.At.UnixMicro(), mono, 0xb007+c.boots, text)
	if who == "kernel" {
		fmt.Fprintf(c, "_TRANSPORT=kernel\nPRIORITY=4\n_SOURCE_MONOTONIC_TIMESTAMP=%d\n", mono)
	} else {
		fmt.Fprintf(c, "_TRANSPORT=syslog\nSYSLOG_IDENTIFIER=%s\n", who)
	}
	for _, f := range fields {
		fmt.Fprintln(c, f)
	}
	c.WriteByte('\n')
}

// Churn is a machine that one of its units restarts at every start, so many times. What systemd 252 says
// then was taken from a container: services that others need to go down come up meanwhile.
func (c *Course) Churn(times int) {
	unit := func(text, name string) { c.Say(100*time.Millisecond, "systemd", text, "UNIT="+name, "_PID=1") }
	for range times {
		c.Start()
		unit("Started cron.service - Cron.", "cron.service")
		unit("Starting daily_reboot.service - Reboot...", "daily_reboot.service")
		unit("Starting upower.service - Daemon for power management...", "upower.service")
		unit("Started dbus.service - D-Bus System Message Bus.", "dbus.service")
		c.Say(0, "systemd-logind", "The system will reboot now!")
		c.Say(0, "systemd-logind", "System is rebooting.")
		unit("daily_reboot.service: Deactivated successfully.", "daily_reboot.service")
		c.Say(0, "systemd", "Reached target shutdown.target - Shutdown.", "_PID=4711", "USER_UNIT=shutdown.target")
		unit("Stopping cron.service - Cron...", "cron.service")
		unit("cron.service: Deactivated successfully.", "cron.service")
		unit("Starting plymouth-reboot.service - Splash...", "plymouth-reboot.service")
		unit("Reached target reboot.target - System Reboot.", "reboot.target")
		c.Say(time.Second, "systemd-journald", "Journal stopped")
		c.At = c.At.Add(5 * time.Second)
	}
}

// Keep has systemd write the entries as the journal of the machine below a directory for journals, and
// gives its path.
func (c *Course) Keep(ctx context.Context, dir string) (string, error) {
	p := filepath.Join(dir, Machine, "system.journal")
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return "", err
	}
	if err := Make(ctx, p, Form{Name: "course", Compact: true, Keyed: true, Compress: "zstd"}, &c.Buffer); err != nil {
		return "", err
	}
	return p, os.Chtimes(p, c.At, c.At)
}
