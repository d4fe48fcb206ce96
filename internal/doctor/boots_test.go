// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// syslog is that of a machine whose syslog is written line by line.
type syslog struct {
	strings.Builder
	at time.Time
}

// start begins a boot some time after the last line.
func (s *syslog) start(after time.Duration) {
	s.say(after, "kernel: Linux version 6.1.0-44-amd64 (x) #1 SMP")
	s.unit(100*time.Millisecond, "Reached target sysinit.target - System Initialization.")
	s.unit(100*time.Millisecond, "Started cron.service - Regular background program processing daemon.")
}

func (s *syslog) say(after time.Duration, line string) {
	s.at = s.at.Add(after)
	fmt.Fprintf(s, "%s guest %s\n", s.at.Format("2006-01-02T15:04:05.000000-07:00"), line)
}

func (s *syslog) unit(after time.Duration, text string) { s.say(after, "systemd[1]: "+text) }

// down is what is said of an end in order.
func (s *syslog) down() {
	s.unit(20*time.Millisecond, "Stopped target multi-user.target - Multi-User System.")
	s.unit(20*time.Millisecond, "Stopping cron.service - Regular background program processing daemon...")
	s.unit(20*time.Millisecond, "Starting systemd-update-utmp.service - Record System Boot/Shutdown in UTMP...")
	s.unit(20*time.Millisecond, "Reached target reboot.target - System Reboot.")
	s.unit(20*time.Millisecond, "Shutting down.")
}

// times writes the same boot some times.
func times(n int, gap time.Duration, boot func(*syslog)) func(*syslog) {
	return func(s *syslog) {
		for range n {
			s.start(gap)
			boot(s)
		}
	}
}

const rebooter = "[Unit]\nDescription=Nightly restart\n[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n"

// TestBoots holds what is said of boots that cannot be had from systemd in a container: by lines as they are
// written.
func TestBoots(t *testing.T) {
	starting := func(s *syslog) { s.unit(3*time.Second, "Starting nightly.service - Nightly restart...") }
	for _, c := range []struct {
		name   string
		boots  func(*syslog)
		files  map[string]string // besides
		course Course
		by     string // the kind of who is to blame
		blame  string // who it is
		end    string // of the first boot
		sure   bool
		over   bool
		status string
	}{
		{name: "a unit that is being started", boots: times(4, 20*time.Second, func(s *syslog) { starting(s); s.down() }),
			course: Loop, by: ByUnit, blame: "nightly.service", end: "reboot", sure: true, status: "[3]"},
		{name: "a log of systemd before 247, which has descriptions only", boots: times(4, 20*time.Second, func(s *syslog) {
			s.unit(3*time.Second, "Starting Nightly restart...")
			s.unit(20*time.Millisecond, "Stopped target Multi-User System.")
			s.unit(20*time.Millisecond, "Starting Update UTMP about System Boot/Shutdown...")
			s.unit(20*time.Millisecond, "Reached target Reboot.")
		}), course: Loop, by: ByUnit, blame: "nightly.service", end: "reboot", sure: true, status: "[3]"},
		{name: "a bystander alone", boots: times(4, 20*time.Second, func(s *syslog) { s.down() }),
			course: Churn, end: "reboot", status: "[3 4]"},
		{name: "a service that was started last, and does nothing of the kind", boots: times(4, 20*time.Second, func(s *syslog) {
			s.unit(3*time.Second, "Starting harmless.service - Harmless...")
			s.down()
		}), course: Churn, end: "reboot", status: "[3 4]"},
		{name: "a service that was started last, of which there is no file", boots: times(4, 20*time.Second, func(s *syslog) {
			s.unit(3*time.Second, "Starting gone.service - Gone...")
			s.say(time.Second, "systemd-logind[400]: System is rebooting.")
			s.unit(time.Millisecond, "gone.service: Deactivated successfully.")
			s.down()
		}), course: Loop, by: ByUnit, blame: "gone.service", end: "reboot", status: "[3]"},
		{name: "a service that was masked since", boots: times(4, 20*time.Second, func(s *syslog) { starting(s); s.down() }),
			files:  map[string]string{"etc/systemd/system/nightly.service": ""},
			course: Loop, by: ByUnit, blame: "nightly.service", end: "reboot", status: "[3]"},
		{name: "systemd that tells who asked", boots: times(4, 20*time.Second, func(s *syslog) {
			starting(s) // some other unit asks
			s.say(time.Second, "systemd-logind[400]: reboot requested from client PID 700 ('systemctl') (unit agent.service)...")
			s.say(time.Millisecond, "systemd-logind[400]: The system will reboot now!")
			s.down()
		}), course: Loop, by: ByUnit, blame: "agent.service", end: "reboot", sure: true, status: "[3]"},
		{name: "a person whom systemd tells of", boots: times(4, 20*time.Second, func(s *syslog) {
			s.say(time.Second, "systemd-logind[400]: New session 3 of user ann.")
			s.say(time.Second, "systemd-logind[400]: reboot requested from client PID 700 ('systemctl') (unit session-3.scope)...")
			s.down()
		}), course: Churn, by: ByPerson, blame: "a person, ann", end: "reboot", sure: true, status: "[3]"},
		{name: "a person with sudo, while a dangerous service runs", boots: times(4, 20*time.Second, func(s *syslog) {
			s.unit(time.Second, "Started nightly.service - Nightly restart.")
			s.say(10*time.Second, "sudo:      ann : TTY=pts/0 ; PWD=/home/ann ; USER=root ; COMMAND=/usr/sbin/reboot")
			s.down()
		}), course: Churn, by: ByPerson, blame: "a person, ann", end: "reboot", sure: true, status: "[3]"},
		{name: "a person with sudo who did something else", boots: times(4, 20*time.Second, func(s *syslog) {
			s.say(time.Second, "sudo:      ann : TTY=pts/0 ; PWD=/home/ann ; USER=root ; COMMAND=/usr/bin/systemctl status x")
			starting(s)
			s.down()
		}), course: Loop, by: ByUnit, blame: "nightly.service", end: "reboot", sure: true, status: "[3]"},
		{name: "somebody was logged in", boots: times(4, 20*time.Second, func(s *syslog) {
			s.say(time.Second, "systemd-logind[400]: New session 3 of user ann.")
			s.say(9*time.Second, "systemd-logind[400]: The system will reboot now!")
			s.down()
		}), course: Churn, by: ByPerson, blame: "a person, ann", end: "reboot", status: "[3]"},
		{name: "somebody had been logged in", boots: times(4, 20*time.Second, func(s *syslog) {
			s.say(time.Second, "systemd-logind[400]: New session 3 of user ann.")
			s.say(9*time.Second, "systemd-logind[400]: Removed session 3.")
			s.say(9*time.Second, "systemd-logind[400]: The system will reboot now!")
			s.down()
		}), course: Churn, end: "reboot", status: "[3 4]"},
		{name: "a dangerous service that was started long before, and somebody logged in", boots: times(4, 20*time.Second, func(s *syslog) {
			s.unit(time.Second, "Started nightly.service - Nightly restart.")
			s.say(time.Second, "systemd-logind[400]: New session 3 of user ann.")
			s.say(5*time.Minute, "systemd-logind[400]: The system will reboot now!")
			s.down()
		}), course: Churn, by: ByPerson, blame: "a person, ann", end: "reboot", status: "[3]"},
		{name: "the power button", boots: times(4, 20*time.Second, func(s *syslog) {
			s.say(9*time.Second, "systemd-logind[400]: Power key pressed short.")
			s.say(time.Millisecond, "systemd-logind[400]: System is powering down.")
			s.unit(20*time.Millisecond, "Reached target poweroff.target - System Power Off.")
		}), course: Churn, by: ByButton, blame: "the power button, or the hypervisor", end: "poweroff", sure: true, status: "[3]"},
		{name: "panics", boots: times(4, 20*time.Second, func(s *syslog) {
			s.say(5*time.Second, "kernel: Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)")
		}), course: Crashes, end: "panic", status: "[3]"},
		{name: "logs that just stop", boots: times(4, 20*time.Second, func(s *syslog) {
			s.unit(3*time.Second, "Started nightly.service - Nightly restart.")
		}), course: Crashes, end: "cut", status: "[3]"},
		{name: "the daemon of a watchdog", boots: times(4, 20*time.Second, func(s *syslog) {
			s.say(5*time.Second, "watchdog[300]: shutting down the system because of error -3 = 'load average too high'")
		}), course: Crashes, end: "watchdog", status: "[3]"},
		{name: "a crontab", boots: times(4, 20*time.Second, func(s *syslog) { s.down() }), files: map[string]string{
			"etc/crontab": "@reboot root /bin/systemctl reboot\n"}, course: Loop, by: ByUnit, blame: "cron.service", end: "reboot",
			sure: true, status: "[3]"},
		{name: "it has run longer since", boots: func(s *syslog) {
			times(4, 20*time.Second, func(s *syslog) { starting(s); s.down() })(s)
			s.start(20 * time.Second)
			s.unit(2*time.Hour, "Started later.service - Later.")
		}, course: Loop, by: ByUnit, blame: "nightly.service", end: "reboot", sure: true, over: true, status: "[0]"},
		{name: "every night", boots: times(4, 20*time.Second, func(s *syslog) {
			s.unit(24*time.Hour, "Starting nightly.service - Nightly restart...")
			s.down()
		}), course: Steady, end: "reboot", status: "[0]"},
		{name: "every 15 minutes", boots: times(4, 20*time.Second, func(s *syslog) {
			s.unit(15*time.Minute, "Starting nightly.service - Nightly restart...")
			s.down()
		}), course: Churn, by: ByUnit, blame: "nightly.service", end: "reboot", sure: true, status: "[3]"},
		{name: "two boots", boots: times(2, 20*time.Second, func(s *syslog) { starting(s); s.down() }),
			course: Steady, end: "reboot", status: "[0]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &syslog{at: time.Date(2026, 11, 20, 3, 30, 0, 0, time.UTC)}
			c.boots(s)
			files := map[string]string{"var/log/syslog": s.String(), "etc/systemd/system/nightly.service": rebooter,
				"etc/systemd/system/harmless.service": "[Service]\nExecStart=/bin/true\n",
				"usr/lib/systemd/system/cron.service": "[Unit]\nDescription=Cron\n[Service]\nExecStart=/bin/true\n",
				"usr/bin/systemctl":                   "", "usr/bin/true": "", "usr/bin/sh": "",
				"etc/hostname": "guest\n"}
			maps.Copy(files, c.files)
			dir := machine(t, files, s.at)
			r := ExamineBoots([]*evidence.Evidence{gatherAt(t, dir)})
			b := &r.Machines[0]
			kind, who, sure := "", "", false
			if b.Blame != nil {
				kind, who, sure = b.Blame.Kind, b.Blame.Who, b.Blame.Certain
			}
			if b.Course != c.course || b.Over != c.over || fmt.Sprint(r.Status) != c.status {
				t.Errorf("boots = %s, over %v, status %v (%s), want %s, %v, %s", b.Course, b.Over, r.Status, b.Why, c.course, c.over, c.status)
			}
			if kind != c.by || who != c.blame || sure != c.sure {
				t.Errorf("boots blame %q %q, certain %v, want %q %q, %v", kind, who, sure, c.by, c.blame, c.sure)
			}
			if len(b.Boots) == 0 || b.Boots[0].End != c.end {
				t.Errorf("boots = %+v, want the first to end by %q", b.Boots, c.end)
			}
			if c.end == "panic" && (len(b.Boots[0].Evidence) != 1 || !strings.Contains(b.Boots[0].Evidence[0].Value, "Unable")) {
				t.Errorf("boots = %+v, want what the kernel said", b.Boots[0].Evidence)
			}
		})
	}
}

// machine writes the files of a machine with /usr merged, its logs changed last at a time.
func machine(t *testing.T, files map[string]string, last time.Time) string {
	t.Helper()
	dir := t.TempDir()
	for _, link := range []string{"bin", "lib"} {
		if err := os.Symlink("usr/"+link, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(name, "var/log/") {
			if err := os.Chtimes(at, last, last); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// login is a record of wtmp.
func login(kind int16, user string, at time.Time) string {
	b := make([]byte, 384)
	binary.LittleEndian.PutUint16(b, uint16(kind))
	copy(b[44:], user)
	binary.LittleEndian.PutUint32(b[340:], uint32(at.Unix()))
	return string(b)
}

// TestBootsOfLogins: where there is nothing but wtmp no log tells who asked; the files of units may.
func TestBootsOfLogins(t *testing.T) {
	at := time.Date(2026, 11, 20, 3, 30, 0, 0, time.UTC)
	records := ""
	for range 4 {
		records += login(2, "reboot", at) + login(1, "shutdown", at.Add(9*time.Second))
		at = at.Add(20 * time.Second)
	}
	for _, c := range []struct {
		name, link, blame string
		course            Course
	}{
		{"a unit that each start reaches", "etc/systemd/system/multi-user.target.wants/nightly.service", "nightly.service", Loop},
		{"a unit that nothing starts", "", "", Churn},
	} {
		dir := machine(t, map[string]string{"var/log/wtmp": records, "etc/systemd/system/nightly.service": rebooter,
			"usr/lib/systemd/system/multi-user.target": "[Unit]\n", "usr/bin/systemctl": ""}, at)
		if err := os.Symlink("/usr/lib/systemd/system/multi-user.target", filepath.Join(dir, "etc/systemd/system/default.target")); err != nil {
			t.Fatal(err)
		}
		if c.link != "" {
			err := os.MkdirAll(filepath.Join(dir, filepath.Dir(c.link)), 0o755)
			if err == nil {
				err = os.Symlink("/etc/systemd/system/nightly.service", filepath.Join(dir, c.link))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		b := bootsAt(t, dir)
		if b.Course != c.course || blamed(b) != c.blame {
			t.Errorf("%s: boots = %s, blame %q (%s), want %s, %q", c.name, b.Course, blamed(b), b.Why, c.course, c.blame)
		}
		if named := len(b.Also) > 0 && b.Also[0].Unit == "nightly.service"; named != (c.link != "" && b.Blame == nil) {
			t.Errorf("%s: boots also name %+v", c.name, b.Also)
		}
		if b.Blame != nil && (b.Blame.Ended != 0 || b.Blame.Certain) {
			t.Errorf("%s: boots blame %+v, want that no log tells", c.name, b.Blame)
		}
	}
}

// TestBootsWithoutLogs: where no log tells of a boot, what files say of the next one is told all the same.
func TestBootsWithoutLogs(t *testing.T) {
	dir := machine(t, map[string]string{"etc/systemd/system/nightly.service": rebooter, "usr/bin/systemctl": "",
		"etc/systemd/system/default.target": "[Unit]\nWants=nightly.service\n"}, time.Now())
	r := ExamineBoots([]*evidence.Evidence{gatherAt(t, dir)})
	b := &r.Machines[0]
	if b.Course != NotKnown || fmt.Sprint(r.Status) != "[4]" || len(b.Also) != 1 || b.Also[0].Unit != "nightly.service" {
		t.Errorf("boots = %s, status %v, also %+v, want it unknown, 4, and nightly.service", b.Course, r.Status, b.Also)
	}
}

// TestChurnOfWrongClocks: a clock that begins wrong and is set right in each boot hides no row, whichever way it is off.
func TestChurnOfWrongClocks(t *testing.T) {
	for _, wrong := range []time.Duration{0, 9 * time.Hour, -9 * time.Hour} {
		var boots []evidence.Boot
		at := time.Date(2026, 11, 20, 3, 30, 0, 0, time.UTC)
		for range 4 {
			b := evidence.Boot{Began: at.Add(wrong), Last: at.Add(20 * time.Second), Ran: 20 * time.Second, End: "shutdown"}
			if wrong != 0 {
				b.Jumps = []evidence.Jump{{At: at.Add(5 * time.Second), By: -wrong}}
			}
			boots = append(boots, b)
			at = at.Add(time.Minute)
		}
		if row, over := churn(boots); len(row) != 4 || over {
			t.Errorf("churn of a clock off by %v = %d boots, over %v, want 4", wrong, len(row), over)
		}
		boots[2].Began, boots[2].Last = boots[2].Began.Add(time.Hour), boots[2].Last.Add(time.Hour)
		boots[3].Began, boots[3].Last = boots[3].Began.Add(time.Hour), boots[3].Last.Add(time.Hour)
		if row, _ := churn(boots); row != nil {
			t.Errorf("churn with an hour between, of a clock off by %v = %d boots, want none", wrong, len(row))
		}
	}
}

// FuzzBoots has boots told of which the words are of anybody: nothing may panic, a unit is only said to be certain if
// its files or the log say so, and what is told is bounded.
func FuzzBoots(f *testing.F) {
	f.Add("unit.starting|nightly.service|Starting nightly.service - x...\nshutdown.request||System is rebooting.\n")
	f.Add("machine.session|3|New session 3 of user ann.\nshutdown.caller|session-3.scope|reboot requested from client PID 1\n")
	f.Add("shutdown.forced||Rebooting: unit nightly.service failed\nmachine.sudo||ann : COMMAND=/sbin/reboot\n")
	dir := f.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "etc/systemd/system"), 0o755); err != nil {
		f.Fatal(err)
	}
	for name, text := range map[string]string{"etc/systemd/system/nightly.service": "[Unit]\nFailureAction=reboot\n",
		"etc/systemd/system/nightly.timer": "[Timer]\nOnBootSec=1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	e, err := gatherDir(f.Context(), dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		x := *e
		x.Gaps, x.Boots = nil, nil
		at := time.Date(2026, 11, 20, 3, 30, 0, 0, time.UTC)
		for range 3 {
			b := evidence.Boot{Began: at, End: "shutdown", LastUnit: "x.service"}
			for line := range strings.Lines(text[:min(len(text), 4096)]) {
				at = at.Add(time.Second)
				form, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "|")
				unit, said, _ := strings.Cut(rest, "|")
				w := evidence.Word{Form: form, Unit: unit, Text: said, From: evidence.Source{Time: at}}
				if b.Said = append(b.Said, w); b.Asked == nil && strings.HasPrefix(form, "shutdown.") {
					b.Asked = &w
				}
			}
			b.Last = at
			x.Boots = append(x.Boots, b)
		}
		m := &ExamineBoots([]*evidence.Evidence{&x}).Machines[0]
		if m.Blame != nil && m.Blame.Certain && m.Blame.Unit != "" && !strings.Contains(text, m.Blame.Unit) {
			t.Errorf("boots blame %q, which nothing names", m.Blame.Unit)
		}
	})
}
