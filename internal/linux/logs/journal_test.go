// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs_test

import (
	"bytes"
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

// course writes the entries of a machine in the export format of journals.
type course struct {
	bytes.Buffer
	boot  int
	at    time.Time
	began time.Time
	skew  time.Duration // that sleep took from the kernel's clock
}

// start begins a boot.
func (c *course) start() {
	c.boot++
	c.began, c.skew = c.at, 0
	c.say(0, "kernel", "Linux version 6.1.0-44-amd64 (x) #1 SMP")
}

func (c *course) id() string { return fmt.Sprintf("%032x", 0xb007+c.boot) }

// say writes an entry some time after the one before.
func (c *course) say(after time.Duration, who, text string, fields ...string) {
	c.at = c.at.Add(after)
	fmt.Fprintf(c, "__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%s\n_HOSTNAME=h\nMESSAGE=%s\n",
		c.at.UnixMicro(), (c.at.Sub(c.began) - c.skew).Microseconds(), c.id(), text)
	if who == "kernel" {
		fmt.Fprintf(c, "_TRANSPORT=kernel\nPRIORITY=4\n_SOURCE_MONOTONIC_TIMESTAMP=%d\n", c.at.Sub(c.began).Microseconds())
	} else {
		fmt.Fprintf(c, "_TRANSPORT=syslog\nSYSLOG_IDENTIFIER=%s\nPRIORITY=3\n", who)
	}
	for _, f := range fields {
		fmt.Fprintln(c, f)
	}
	c.WriteByte('\n')
}

const machine = "0123456789abcdef0123456789abcdef"

// keep has systemd write the entries into a journal of the machine below root.
func (c *course) keep(t testing.TB, root, dir string) string {
	t.Helper()
	testenv.Need(t, journaltest.Remote)
	p := filepath.Join(root, dir, machine, "system.journal")
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	form := journaltest.Form{Name: "x", Compact: true, Keyed: true, Compress: "zstd"}
	if err := journaltest.Make(t.Context(), p, form, &c.Buffer); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(p, c.at, c.at); err != nil {
		t.Fatal(err)
	}
	return p
}

func newCourse() *course { return &course{at: utc(2026, 11, 22, 9, 0)} }

// churn is a machine that a unit restarts.
func churn(c *course, times int) {
	for range times {
		c.start()
		c.say(time.Second, "systemd", "Started cron.service - Cron.", "UNIT=cron.service", "_PID=1")
		c.say(time.Second, "systemd", "Starting daily_reboot.service - Reboot...", "UNIT=daily_reboot.service", "_PID=1")
		c.say(0, "systemd-logind", "System is rebooting.")
		c.say(0, "systemd", "Reached target shutdown.target - Shutdown.", "_PID=4711", "USER_UNIT=shutdown.target")
		c.say(time.Second, "systemd", "Starting plymouth-reboot.service - Splash...", "UNIT=plymouth-reboot.service", "_PID=1")
		c.say(0, "systemd", "Reached target reboot.target - System Reboot.", "UNIT=reboot.target", "_PID=1")
		c.say(0, "systemd-journald", "Journal stopped")
		c.at = c.at.Add(5 * time.Second)
	}
}

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
	churn(c, 2)
	c.start()
	c.say(time.Minute, "kernel", "Kernel panic - not syncing: hung_task: blocked tasks")
	c.start()
	c.say(time.Minute, "systemd", "Started cron.service - Cron.", "UNIT=cron.service", "_PID=1")
	c.keep(t, root, "/var/log/journal")
	l := read(t, root, logs.Options{Now: c.at, MachineID: machine})
	same(t, "boots", told(l), `
09:00:00+3s shutdown daily_reboot.service
09:00:08+3s shutdown daily_reboot.service
09:00:16+1m0s panic
09:01:16+1m0s cut cron.service`)
	if len(l.Sources) != 1 || !l.Sources[0].Persistent || l.Sources[0].Damage != "" || l.Sources[0].Entries != 20 {
		t.Errorf("sources = %+v", l.Sources)
	}
}

func TestStepsOfTheClockInAJournal(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.start()
	c.say(time.Minute, "cron", "x")
	c.at, c.skew = c.at.Add(9*time.Hour), c.skew+9*time.Hour // set forward
	c.say(time.Minute, "cron", "y")
	c.at, c.skew = c.at.Add(-2*time.Hour), c.skew-2*time.Hour // and back
	c.say(time.Minute, "cron", "z")
	c.start()
	c.say(time.Minute, "kernel", "PM: suspend entry (deep)")
	c.at, c.skew = c.at.Add(8*time.Hour), c.skew+8*time.Hour // asleep
	c.say(time.Second, "kernel", "PM: suspend exit")
	c.say(30*time.Second, "cron", "a small step")
	c.keep(t, root, "/var/log/journal")
	same(t, "boots", told(read(t, root, logs.Options{Now: c.at})), `
09:00:00+9h2m0s cut 9h0m0s at 18:02:00 asleep=false -2h0m0s at 16:03:00 asleep=false
16:03:00+8h1m31s cut 8h0m0s at 00:04:01 asleep=true`)
}

// TestIndexGivesWhatAllEntriesGive: large journals are read by their index.
func TestIndexGivesWhatAllEntriesGive(t *testing.T) {
	c := newCourse()
	for i := range 3 {
		c.start()
		c.say(time.Second, "systemd", "Started cron.service - Cron.", "UNIT=cron.service", "_PID=1")
		for j := range 300 {
			c.say(time.Second, "cron", fmt.Sprintf("job %d", j))
		}
		c.say(time.Second, "kernel", "Aborting journal on device sda1-8.")
		c.say(time.Second, "rsync", `write failed on "/srv/x": No space left on device (28)`)
		c.say(time.Minute, "cron", "last word")
		c.at = c.at.Add(time.Duration(i) * time.Minute)
	}
	root := t.TempDir()
	c.keep(t, root, "/var/log/journal")
	whole := read(t, root, logs.Options{Now: c.at})
	indexed := read(t, root, logs.Options{Now: c.at, WholeBytes: 1})
	same(t, "messages by the index", times(indexed), times(whole))
	same(t, "boots by the index", told(indexed), told(whole))
	if len(whole.Messages) < 6 {
		t.Errorf("only %d messages", len(whole.Messages))
	}
}

func TestJournalAndSyslogAreOne(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.start()
	c.say(12345678901*time.Microsecond, "kernel", "Aborting journal on device sda1-8.")
	c.keep(t, root, "/var/log/journal")
	put(t, root, "var/log/syslog", c.at.Add(3*time.Second).Format("Jan _2 15:04:05")+" h "+abort, c.at.Add(3*time.Second))
	var got []string
	for _, m := range read(t, root, logs.Options{Now: c.at.Add(time.Minute)}).Messages {
		got = append(got, fmt.Sprintf("%s %v %d %v", m.Form.Name, m.Exact, m.Count, m.Boot != ""))
	}
	same(t, "messages", strings.Join(got, "\n"), "kernel.boot true 1 true\next4.abort true 1 true")
}

func TestDamagedJournalIsTold(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.start()
	for i := range 200 {
		c.say(time.Second, "kernel", fmt.Sprintf("EXT4-fs (sda%d): Remounting filesystem read-only", i))
	}
	p := c.keep(t, root, "/run/log/journal")
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, b[:len(b)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	put(t, root, "/run/log/journal/"+machine+"/other.journal", "no journal", c.at)
	l := read(t, root, logs.Options{Now: c.at})
	if len(l.Sources) != 1 || l.Sources[0].Damage == "" || l.Sources[0].Persistent {
		t.Errorf("sources = %+v, want one with damage that does not outlive a boot", l.Sources)
	}
	if len(l.Gaps) != 1 || !strings.Contains(l.Gaps[0].Path, "other.journal") {
		t.Errorf("gaps = %+v, want that of the file that is no journal", l.Gaps)
	}
}
