// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs_test

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/logs"
)

func TestRingOfTheKernel(t *testing.T) {
	root, booted := t.TempDir(), utc(2026, 11, 22, 9, 0)
	put(t, root, "dev/kmsg", "4,7,60000000,-;EXT4-fs (sda1): Remounting filesystem read-only\n SUBSYSTEM=block\n DEVICE=b8:1\n"+
		"3,8,61000000,-;blk_update_request: I/O error, dev sda, sector 1\n"+
		"3,9,62000000,-;blk_update_request: I/O error, dev sda, sector 2\n"+
		"30,10,63000000,-;systemd[1]: Failed to start thing.\n"+
		"30,11,63000000,-;no program\n"+
		"garbage\n"+
		"6,12,64000000,-;last", booted)
	l := read(t, root, logs.Options{Now: booted.Add(time.Hour), Booted: booted, BootID: "00-01"})
	same(t, "messages", times(l), `
ext4.ro 2026-11-22T09:01:00
blk.io 2026-11-22T09:01:01 x2
unit.failed 2026-11-22T09:01:03`)
	if n := len(l.Sources); n != 1 || l.Sources[0].Entries != 6 || l.Sources[0].Persistent || l.Sources[0].Damage == "" {
		t.Errorf("sources = %+v, want one of 6 entries, with damage", l.Sources)
	}
	put(t, root, "dev/kmsg", "4,7,60000000,-;x\n", booted)
	if l := read(t, root, logs.Options{Now: booted, Booted: booted}); l.Sources[0].Damage == "" {
		t.Error("a ring that does not begin with the first record is whole")
	}
	put(t, root, "dev/kmsg", "4,0,60000000,-;x\n", booted)
	if l := read(t, root, logs.Options{Now: booted, Booted: booted}); l.Sources[0].Damage != "" {
		t.Errorf("a whole ring is damaged: %s", l.Sources[0].Damage)
	}
	if l.Messages[0].Boot != "0001" {
		t.Errorf("boot %q", l.Messages[0].Boot)
	}
	l = read(t, root, logs.Options{Now: booted.Add(time.Hour)})
	if len(l.Messages) != 0 || len(l.Gaps) != 1 {
		t.Errorf("without the time of the boot: %d messages, gaps %v, want none and one", len(l.Messages), l.Gaps)
	}
}

func TestReportsOfSos(t *testing.T) {
	root, at := t.TempDir(), utc(2026, 11, 22, 10, 0)
	put(t, root, "sos_commands/kernel/dmesg", "[   60.000000] EXT4-fs (sda1): Remounting filesystem read-only\n", at)
	put(t, root, "sos_commands/logs/journalctl_--no-pager_--boot", "-- Logs begin at Mon 2026-11-02 --\n"+
		"Nov 22 09:00:00 h kernel: Linux version 6.1.0 (x) y\nNov 22 09:00:20 h systemd[1]: Reached target Multi-User System.\n"+
		"-- Reboot --\nNov 22 09:30:00 h kernel: Linux version 6.1.0 (x) y\n", at)
	put(t, root, "sos_commands/logs/journalctl_--disk-usage", "Archived and active journals take up 1G.\n", at)
	l := read(t, root, logs.Options{Now: at, Booted: utc(2026, 11, 22, 9, 30)})
	same(t, "messages", times(l), `
kernel.boot 2026-11-22T09:00:00?
kernel.boot 2026-11-22T09:30:00?
ext4.ro 2026-11-22T09:31:00?`)
	same(t, "boots", told(l), "09:00:00+20s cut\n09:30:00+0s cut")
}

func TestPanicThatOnlyTheFirmwareKept(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.Start()
	c.Say(time.Minute, "cron", "x")
	c.At = c.At.Add(time.Minute)
	c.Start()
	c.Say(time.Minute, "cron", "y")
	keep(t, c, root, "/var/log/journal")
	put(t, root, "/var/lib/systemd/pstore/1763802060/001/dmesg.txt", "Panic#1 Part1\n<6>[   60.000000] x\n"+
		"<0>[   61.000000] Kernel panic - not syncing: hung_task: blocked tasks\n", c.At.Add(-time.Minute))
	same(t, "boots", told(read(t, root, logs.Options{Now: c.At})), "09:00:00+1m0s panic\n09:02:00+1m0s cut")
}

// TestLinesThatAreTooLong: the rest of a line is skipped, and the next one is read.
func TestLinesThatAreTooLong(t *testing.T) {
	root, at := t.TempDir(), utc(2026, 11, 22, 10, 0)
	put(t, root, "var/log/syslog", "Nov 22 09:00:00 h x: "+strings.Repeat("long ", 20000)+"\nNov 22 09:00:01 h "+abort, at)
	l := read(t, root, logs.Options{Now: at})
	same(t, "messages", times(l), "ext4.abort 2026-11-22T09:00:01?")
	if l.Sources[0].Entries != 2 {
		t.Errorf("%d lines, want 2", l.Sources[0].Entries)
	}
}
