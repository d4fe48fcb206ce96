// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
	"github.com/shisa-vm/shisa/internal/linux/logs"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// keep has systemd write the entries into a journal of the machine below root.
func keep(t testing.TB, c *journaltest.Course, root, dir string) string {
	t.Helper()
	testenv.Need(t, journaltest.Remote)
	p, err := c.Keep(t.Context(), filepath.Join(root, dir))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newCourse() *journaltest.Course { return &journaltest.Course{At: utc(2026, 11, 22, 9, 0)} }

// told gives boots as text.
func told(l *logs.Log) string {
	var out []string
	for _, b := range l.Boots {
		s := fmt.Sprintf("%s+%s %s %s", b.Began.Format("15:04:05"), b.Last.Sub(b.Began), b.End, b.LastUnit)
		for _, j := range b.Jumps {
			s += fmt.Sprintf(" %s at %s asleep=%v", j.By, j.At.Format("15:04:05"), j.Asleep)
		}
		out = append(out, strings.Join(strings.Fields(s), " "))
	}
	return strings.Join(out, "\n")
}

func TestBootsOfAJournal(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.Churn(2)
	c.Start()
	c.Say(time.Minute, "kernel", "Kernel panic - not syncing: hung_task: blocked tasks")
	c.Start()
	c.Say(time.Minute, "systemd", "Started cron.service - Cron.", "UNIT=cron.service", "_PID=1")
	keep(t, c, root, "/var/log/journal")
	l := read(t, root, logs.Options{Now: c.At, MachineID: journaltest.Machine})
	same(t, "boots", told(l), `
09:00:00+1.9s shutdown daily_reboot.service
09:00:06+1.9s shutdown daily_reboot.service
09:00:13+1m0s panic
09:01:13+1m0s cut cron.service`)
	if len(l.Sources) != 1 || !l.Sources[0].Persistent || l.Sources[0].Damage != "" || l.Sources[0].Entries != 32 {
		t.Errorf("sources = %+v", l.Sources)
	}
}

// TestRootIsFoundFirst: the system that finds the root file system goes down before the machine comes
// up; its end is not that of the boot.
func TestRootIsFoundFirst(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.Start()
	c.Say(0, "systemd-journald", "Journal started")
	c.Say(0, "systemd", "Reached target basic.target - Basic System.", "UNIT=basic.target")
	c.Say(time.Second, "systemd", "Stopped target timers.target - Timer Units.", "UNIT=timers.target")
	c.Say(0, "systemd-journald", "Journal stopped")
	c.Say(time.Second, "systemd-journald", "Journal started")
	c.Say(time.Second, "systemd", "Reached target basic.target - Basic System.", "UNIT=basic.target")
	c.Say(0, "systemd", "Started apt-daily.timer - Apt.", "UNIT=apt-daily.timer")
	c.Say(0, "systemd", "Starting nightly.service - Nightly...", "UNIT=nightly.service")
	c.Say(0, "systemd", "Starting dbus.service - D-Bus...", "UNIT=dbus.service")
	c.Say(0, "systemd", "Started dbus.service - D-Bus.", "UNIT=dbus.service")
	c.Say(0, "systemd", "Started cron.service - Cron.", "UNIT=cron.service")
	keep(t, c, root, "/var/log/journal")
	same(t, "boots", told(read(t, root, logs.Options{Now: c.At})), "09:00:00+3s cut nightly.service")
}

func TestStepsOfTheClockInAJournal(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.Start()
	c.Say(time.Minute, "cron", "x")
	c.At, c.Skew = c.At.Add(9*time.Hour), c.Skew+9*time.Hour // set forward
	c.Say(time.Minute, "cron", "y")
	c.At, c.Skew = c.At.Add(-2*time.Hour), c.Skew-2*time.Hour // and back
	c.Say(time.Minute, "cron", "z")
	c.Start()
	c.Say(time.Minute, "kernel", "PM: suspend entry (deep)")
	c.At, c.Skew = c.At.Add(8*time.Hour), c.Skew+8*time.Hour // asleep
	c.Say(time.Second, "kernel", "PM: suspend exit")
	c.Say(30*time.Second, "cron", "a small step")
	keep(t, c, root, "/var/log/journal")
	same(t, "boots", told(read(t, root, logs.Options{Now: c.At})), `
09:00:00+9h2m0s cut 9h0m0s at 18:02:00 asleep=false -2h0m0s at 16:03:00 asleep=false
16:03:00+8h1m31s cut 8h0m0s at 00:04:01 asleep=true`)
}

// TestIndexGivesWhatAllEntriesGive: large journals are read by their index.
func TestIndexGivesWhatAllEntriesGive(t *testing.T) {
	c := newCourse()
	for i := range 3 {
		c.Start()
		c.Say(time.Second, "systemd", "Started cron.service - Cron.", "UNIT=cron.service", "_PID=1")
		for j := range 300 {
			c.Say(time.Second, "cron", fmt.Sprintf("job %d", j))
		}
		c.Say(time.Second, "kernel", "Aborting journal on device sda1-8.")
		c.Say(time.Second, "rsync", `write failed on "/srv/x": No space left on device (28)`, "PRIORITY=3")
		c.Say(time.Minute, "cron", "last word")
		c.At = c.At.Add(time.Duration(i) * time.Minute)
	}
	root := t.TempDir()
	keep(t, c, root, "/var/log/journal")
	whole := read(t, root, logs.Options{Now: c.At})
	indexed := read(t, root, logs.Options{Now: c.At, WholeBytes: 1})
	same(t, "messages by the index", times(indexed), times(whole))
	same(t, "boots by the index", told(indexed), told(whole))
	if len(whole.Messages) < 6 {
		t.Errorf("only %d messages", len(whole.Messages))
	}
}

func TestJournalsAreBounded(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.Start()
	keep(t, c, root, "/var/log/journal")
	l := read(t, root, logs.Options{Now: c.At, JournalBytes: 1000})
	if len(l.Messages) != 0 || len(l.Gaps) != 1 || !strings.Contains(l.Gaps[0].Reason, "1 of its journals") {
		t.Errorf("%d messages, gaps %v, want none and one", len(l.Messages), l.Gaps)
	}
}

func TestJournalAndSyslogAreOne(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.Start()
	c.Say(12345678901*time.Microsecond, "kernel", "Aborting journal on device sda1-8.")
	keep(t, c, root, "/var/log/journal")
	put(t, root, "var/log/syslog", c.At.Add(3*time.Second).Format("Jan _2 15:04:05")+" h "+abort, c.At.Add(3*time.Second))
	var got []string
	for _, m := range read(t, root, logs.Options{Now: c.At.Add(time.Minute)}).Messages {
		got = append(got, fmt.Sprintf("%s %v %d %v", m.Form.Name, m.Exact, m.Count, m.Boot != ""))
	}
	same(t, "messages", strings.Join(got, "\n"), "kernel.boot true 1 true\next4.abort true 1 true")
}

func TestDamagedJournalIsTold(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.Start()
	for i := range 200 {
		c.Say(time.Second, "kernel", fmt.Sprintf("EXT4-fs (sda%d): Remounting filesystem read-only", i))
	}
	p := keep(t, c, root, "/run/log/journal")
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, b[:len(b)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	put(t, root, "/run/log/journal/"+journaltest.Machine+"/user-1000.journal", "not looked at", c.At)
	put(t, root, "/run/log/journal/"+journaltest.Machine+"/other.journal", "no journal", c.At)
	l := read(t, root, logs.Options{Now: c.At})
	if len(l.Sources) != 1 || l.Sources[0].Damage == "" || l.Sources[0].Persistent {
		t.Errorf("sources = %+v, want one with damage that does not outlive a boot", l.Sources)
	}
	if len(l.Gaps) != 1 || !strings.Contains(l.Gaps[0].Path, "other.journal") {
		t.Errorf("gaps = %+v, want that of the file that is no journal", l.Gaps)
	}
}
