// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// nightly is a machine in Japan with the story's timer, as files. Its stamp is of the night before.
type nightly struct {
	files map[string]string
	// stamp is how old the stamp is, 0 for none.
	stamp time.Duration
	// fixed: nobody may change it.
	fixed bool
}

// nightlyNow is noon there.
var nightlyNow = time.Date(2026, 11, 20, 3, 0, 0, 0, time.UTC)

func newNightly(t *testing.T, change ...func(*nightly)) *evidence.Evidence {
	t.Helper()
	zone, err := os.ReadFile("/usr/share/zoneinfo/Asia/Tokyo")
	if err != nil {
		testenv.Lacks(t, "the zones of tzdata")
	}
	n := &nightly{stamp: 8*time.Hour + 30*time.Minute - time.Second, files: map[string]string{
		"etc/localtime": string(zone), "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
		"usr/bin/systemctl": "", "bin": "-> usr/bin", "sbin": "-> usr/bin",
		"usr/lib/systemd/system/default.target":                     "[Unit]\nRequires=multi-user.target\n",
		"usr/lib/systemd/system/multi-user.target":                  "[Unit]\nRequires=sysinit.target\nWants=timers.target\n",
		"usr/lib/systemd/system/sysinit.target":                     "[Unit]\n",
		"usr/lib/systemd/system/timers.target":                      "[Unit]\n",
		"usr/lib/systemd/system/shutdown.target":                    "[Unit]\n",
		"usr/lib/systemd/system/basic.target":                       "[Unit]\n",
		"usr/lib/systemd/system/reboot.target":                      "[Unit]\n",
		"etc/systemd/system/daily_reboot.service":                   "[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl reboot\n",
		"etc/systemd/system/daily_reboot.timer":                     "[Timer]\nOnCalendar=*-*-* 03:30:00\nPersistent=true\n",
		"etc/systemd/system/timers.target.wants/daily_reboot.timer": "-> /etc/systemd/system/daily_reboot.timer",
	}}
	for _, f := range change {
		f(n)
	}
	dir := t.TempDir()
	if n.stamp != 0 {
		n.files["var/lib/systemd/timers/stamp-daily_reboot.timer"] = ""
	} else {
		n.files["var/lib/systemd/timers/keep"] = ""
	}
	for name, text := range n.files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, link := strings.CutPrefix(text, "-> "); link {
			err = os.Symlink(to, at)
		} else {
			err = os.WriteFile(at, []byte(text), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n.stamp != 0 {
		chtimes(t, filepath.Join(dir, "var/lib/systemd/timers/stamp-daily_reboot.timer"), nightlyNow.Add(-n.stamp))
	}
	if _, ok := n.files["var/lib/systemd/timesync/clock"]; ok {
		chtimes(t, filepath.Join(dir, "var/lib/systemd/timesync/clock"), nightlyNow.Add(-time.Hour))
	}
	e := gather(t, dir)
	e.Now, e.Clock.Present = nightlyNow, nightlyNow
	if s, ok := e.Clock.Stamps["daily_reboot.timer"]; ok && n.fixed {
		s.Fixed = true
		e.Clock.Stamps["daily_reboot.timer"] = s
	}
	return e
}

func stale(n *nightly)    { n.stamp += 48 * time.Hour }
func noStamp(n *nightly)  { n.stamp = 0 }
func noSystem(n *nightly) { n.files["etc/fstab"] = "tmpfs /var tmpfs defaults 0 0\n" }
func readOnly(n *nightly) { n.files["etc/fstab"] = "/dev/sda1 / ext4 ro 0 1\n" }
func local(n *nightly)    { n.files["etc/adjtime"] = "0.0 0 0.0\n0\nLOCAL\n" }
func chrony(n *nightly) {
	n.files["usr/lib/systemd/system/chrony.service"] = "[Service]\nExecStart=/usr/sbin/chronyd\n"
	n.files["etc/systemd/system/multi-user.target.wants/chrony.service"] = "-> /usr/lib/systemd/system/chrony.service"
}
func timesyncd(n *nightly) {
	n.files["usr/lib/systemd/system/systemd-timesyncd.service"] = "[Service]\nExecStart=/usr/lib/systemd/systemd-timesyncd\n"
	n.files["etc/systemd/system/multi-user.target.wants/systemd-timesyncd.service"] = "-> /usr/lib/systemd/system/systemd-timesyncd.service"
	n.files["var/lib/systemd/timesync/clock"] = ""
}

func failed(n *nightly) {
	n.files["proc/1/mountinfo"] = "21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro,emergency_ro\n"
}
func inFuture(n *nightly) {
	n.files["var/log/syslog"] = "2026-11-19T18:31:02+09:00 guest systemd[1]: daily_reboot.timer: Not using persistent file timestamp " +
		"Fri 2026-11-20 03:30:00 JST as it is in the future.\n"
}

const vm = "[Unit]\nConditionVirtualization=vm\n"

// lucky has the timer started by a target that lacks something: now and then before systemd 254.
func lucky(n *nightly) {
	n.files["usr/lib/systemd/libsystemd-shared-252.so"] = ""
	n.files["etc/systemd/system/some.target"] = "[Unit]\nRequires=gone.service daily_reboot.timer\n"
	n.files["etc/systemd/system/timers.target.wants/some.target"] = "-> /etc/systemd/system/some.target"
	delete(n.files, "etc/systemd/system/timers.target.wants/daily_reboot.timer")
}

func enabled(n *nightly) {
	n.files["etc/systemd/system/multi-user.target.wants/daily_reboot.service"] = "-> /etc/systemd/system/daily_reboot.service"
}

// runsTwice has the service restart the machine when it runs for the second time.
func runsTwice(n *nightly) {
	n.files["usr/bin/sh"] = "\x7fELF"
	n.files["usr/bin/touch"] = "\x7fELF"
	n.files["etc/systemd/system/daily_reboot.service"] = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'if [ -e /run/x ]; then systemctl reboot; fi; touch /run/x'\n"
	n.files["etc/systemd/system/multi-user.target.wants/daily_reboot.service"] = "-> /etc/systemd/system/daily_reboot.service"
}

func unit(name, text string) func(*nightly) {
	return func(n *nightly) { n.files["etc/systemd/system/daily_reboot."+name] = text }
}

// TestTimers holds what is told of the story's timer, and what the rules find.
func TestTimers(t *testing.T) {
	for name, c := range map[string]struct {
		change []func(*nightly)
		danger Danger
		status int
		// rules are those that find something; unsure those that cannot tell.
		rules, unsure string
		// says is part of what is said.
		says string
	}{
		"S1: as it was made":   {nil, TimerActs, 0, "", "", "next at 2026-11-21 03:30 JST"},
		"S3: stale, read-only": {[]func(*nightly){stale, readOnly}, TimerLoops, 3, "TM03", "", "cannot be written"},
		"S3, if a condition of the timer is met": {[]func(*nightly){stale, readOnly, unit("timer", vm+"[Timer]\nOnCalendar=*-*-* 03:30:00\nPersistent=true\n")},
			TimerMayLoop, 3, "TM03", "", "whether ConditionVirtualization=vm is met is not known"},
		"S3, if a condition of the service is met": {[]func(*nightly){stale, readOnly, unit("service", vm+"[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl reboot\n")},
			TimerMayLoop, 3, "TM03", "", "whether ConditionVirtualization=vm is met is not known"},
		"S5, if a condition is met": {[]func(*nightly){stale, unit("service", vm+"[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl reboot\n")},
			TimerUnknown, 4, "", "TM04", "may restart the machine once"},
		"S3, if it is started":           {[]func(*nightly){stale, readOnly, lucky}, TimerMayLoop, 3, "TM03", "", "some.target requires gone.service"},
		"the service is enabled as well": {[]func(*nightly){enabled}, TimerActs, 3, "", "", "as it was made for"},
		"it counts from what never ran": {[]func(*nightly){unit("timer", "[Timer]\nOnUnitActiveSec=1d\n")}, TimerIdle, 0, "", "",
			"no boot runs it before"},
		"it counts from what runs at each start": {[]func(*nightly){unit("timer", "[Timer]\nOnUnitInactiveSec=2min\n"), runsTwice}, TimerLoops, 3,
			"TM02", "", "again and again"},
		"S3: stale, forgotten":                  {[]func(*nightly){stale, noSystem}, TimerLoops, 3, "TM03", "", "next boot does not find it"},
		"S3: stale, and its file system failed": {[]func(*nightly){stale, failed}, TimerMayLoop, 3, "TM03 TM04", "", "which failed, takes no writes at the next start either"},
		"A: the log says it":                    {[]func(*nightly){chrony, inFuture}, TimerMayLoop, 3, "TM06", "", "its log says that a stamp was in the future"},
		"the stamp's attributes":                {[]func(*nightly){stale, func(n *nightly) { n.fixed = true }}, TimerLoops, 3, "TM03", "", "cannot be written"},
		"S4: no stamp, read-only":               {[]func(*nightly){noStamp, readOnly}, TimerActs, 0, "", "", "as it was made for"},
		"S5: stale":                             {[]func(*nightly){stale}, TimerSurprise, 3, "TM04", "", "it missed 2026-11-19 03:30 JST, and systemd catches that up"},
		"S6: stale, not persistent":             {[]func(*nightly){stale, unit("timer", "[Timer]\nOnCalendar=03:30\n")}, TimerActs, 0, "", "", "as it was made for"},
		"S9: OnBootSec=":                        {[]func(*nightly){unit("timer", "[Timer]\nOnBootSec=1s\n")}, TimerLoops, 3, "TM02", "", "OnBootSec=1s"},
		"48 hours":                              {[]func(*nightly){unit("timer", "[Timer]\nOnBootSec=48h\n")}, TimerActs, 0, "TM02", "", "48h0m0s after the start"},
		"A: local time, a daemon":               {[]func(*nightly){local, chrony}, TimerMayLoop, 3, "TM06", "", "9h slow at the start"},
		"a stopped clock that nobody sets right": {[]func(*nightly){local, unit("timer", "[Timer]\nOnCalendar=09:05\n")}, TimerActs, 0, "", "",
			"begins in 1970, and never set right"},
		"a stopped clock, some hours before": {[]func(*nightly){unit("timer", "[Timer]\nOnCalendar=12:30\n")}, TimerActs, 0, "", "", "on every 3 hours 30 minutes, if the clock of the hardware has stopped, and begins in 1970, and never"},
		"A: no sign of it":                   {[]func(*nightly){chrony}, TimerActs, 0, "", "", "would do so again and again"},
		"C: a daemon that saves the time":    {[]func(*nightly){local, timesyncd}, TimerActs, 0, "", "", "as it was made for"},
		"the program is missing":             {[]func(*nightly){unit("service", "[Service]\nExecStart=/opt/none/systemctl reboot\n")}, TimerIdle, 0, "", "", "there is no /opt/none/systemctl"},
		"a condition of the timer":           {[]func(*nightly){stale, readOnly, unit("timer", "[Unit]\nConditionPathExists=/nowhere\n[Timer]\nOnCalendar=03:30\nPersistent=yes\n")}, TimerIdle, 0, "", "", "a condition of this timer is not met"},
		"through a unit that it pulls in": {[]func(*nightly){stale, readOnly, unit("service", "[Unit]\nWants=other.service\n[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl is-active x\n"),
			func(n *nightly) {
				n.files["etc/systemd/system/other.service"] = "[Service]\nExecStart=/usr/bin/systemctl reboot\n"
			}}, TimerLoops, 3, "TM03", "", "cannot be written"},
		"at a time of the day": {[]func(*nightly){stale, readOnly, func(n *nightly) { n.files["usr/bin/shutdown"] = "" },
			unit("service", "[Service]\nType=oneshot\nExecStart=/usr/bin/shutdown -r 03:30\n")}, TimerActs, 0, "", "", ""},
		"not enabled":   {[]func(*nightly){func(n *nightly) { delete(n.files, "etc/systemd/system/timers.target.wants/daily_reboot.timer") }}, TimerIdle, 0, "", "", "no boot starts this timer"},
		"masked":        {[]func(*nightly){stale, readOnly, unit("service", "-> /dev/null")}, TimerHarmless, 0, "", "", ""},
		"it powers off": {[]func(*nightly){stale, readOnly, unit("service", "[Service]\nExecStart=/usr/bin/systemctl poweroff\n")}, TimerLoops, 3, "TM03", "", "powers off the machine"},
		"once if a unit fails": {[]func(*nightly){stale, unit("service", "[Unit]\nFailureAction=reboot\n[Service]\nExecStart=/usr/bin/systemctl is-failed x\n")},
			TimerActs, 0, "", "", "if it fails, which is taken for so here"},
		"if it succeeds": {[]func(*nightly){stale, readOnly, unit("service", "[Unit]\nSuccessAction=reboot\n[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl is-failed x\n")},
			TimerLoops, 3, "TM03", "", "cannot be written"},
		"if a unit fails":            {[]func(*nightly){stale, readOnly, unit("service", "[Unit]\nFailureAction=reboot\n[Service]\nExecStart=/usr/bin/systemctl is-failed x\n")}, TimerMayLoop, 3, "TM03", "", "it fails"},
		"a calendar that is refused": {[]func(*nightly){stale, readOnly, unit("timer", "[Timer]\nOnCalendar=Fri..Mon\nOnCalendar=2020-1-1\nPersistent=yes\n")}, TimerActs, 0, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := newNightly(t, c.change...)
			r := ExamineTimers([]*evidence.Evidence{e})
			m := &r.Machines[0]
			i := slices.IndexFunc(m.Timers, func(x TimerInfo) bool { return x.Unit == "daily_reboot.timer" })
			if i < 0 {
				t.Fatalf("no such timer: %+v; gaps %+v", m.Timers, e.Gaps)
			}
			x := &m.Timers[i]
			if x.Danger != c.danger || r.Status[0] != c.status || !strings.Contains(strings.Join(x.Says, "\n"), c.says) {
				t.Errorf("danger %q, status %v, want %q, %d with %q\n%s\n%+v\n%+v", x.Danger, r.Status, c.danger, c.status, c.says,
					strings.Join(x.Says, "\n"), x.Acts, m.NotLookedAt)
			}
			var fails, unsure []string
			for _, rule := range []Rule{ruleTM02(), ruleTM03(), ruleTM04(), ruleTM06()} {
				for _, res := range rule.judge(e) {
					switch res.Outcome {
					case Fail:
						fails = append(fails, rule.Code)
					case Unknown:
						unsure = append(unsure, rule.Code)
					}
				}
			}
			if strings.Join(fails, " ") != c.rules || strings.Join(unsure, " ") != c.unsure {
				t.Errorf("found %q, cannot tell %q, want %q, %q", fails, unsure, c.rules, c.unsure)
			}
		})
	}
}

// TestTimersUnknown holds that what is not known of stamps is not taken for harmless.
func TestTimersUnknown(t *testing.T) {
	e := newNightly(t, stale)
	e.Clock.Keeps.Writable = "unknown"
	r := ExamineTimers([]*evidence.Evidence{e})
	x := r.Machines[0].Timers[0]
	if x.Danger != TimerMayLoop || x.Unsure == "" || !slices.Equal(r.Status, []int{finding.StatusFound, finding.StatusCannotTell}) {
		t.Errorf("danger %q, unsure %q, status %v", x.Danger, x.Unsure, r.Status)
	}
	rule := ruleTM03()
	if res := rule.judge(e); len(res) != 1 || res[0].Outcome != Unknown {
		t.Errorf("TM03 = %+v, want one unknown", res)
	}
	e = newNightly(t)
	e.Clock.Keeps.Known = false
	e.Clock.Stamps = nil
	if x := ExamineTimers([]*evidence.Evidence{e}).Machines[0].Timers[0]; x.Danger != TimerUnknown || x.Unsure == "" || x.Stamp != "unknown" {
		t.Errorf("of a stamp that is not known: danger %q, unsure %q", x.Danger, x.Unsure)
	}
	rule = ruleTM04()
	if res := rule.judge(e); len(res) != 1 || res[0].Outcome != Unknown {
		t.Errorf("TM04 = %+v, want one unknown", res)
	}
	e.Gaps = append(e.Gaps, evidence.Gap{Part: evidence.PartUnits, Reason: "not collected"})
	e.Units = nil
	if r := ExamineTimers([]*evidence.Evidence{e}); r.Verdict != finding.CannotTell {
		t.Errorf("without units the verdict is %s", r.Verdict)
	}
}

// TestTimersBounded holds that a machine whose units were made to take for ever is told about in bounded time, and
// that what was not played is not taken for harmless.
func TestTimersBounded(t *testing.T) {
	e := newNightly(t, stale, readOnly, func(n *nightly) {
		text := "[Timer]\nPersistent=yes\n" + strings.Repeat("OnCalendar=Mon *-02-29 23:59:59\nOnCalendar=*-*~28 03:30:0/0.1\n", 40)
		for i := range 20 {
			name := fmt.Sprintf("etc/systemd/system/timers.target.wants/x%d.timer", i)
			n.files[name] = "-> /etc/systemd/system/x.timer"
			n.files[fmt.Sprintf("etc/systemd/system/x%d.timer", i)] = text + "Unit=daily_reboot.service\n"
			n.files[name] = fmt.Sprintf("-> /etc/systemd/system/x%d.timer", i)
		}
	})
	m := &ExamineTimers([]*evidence.Evidence{e}).Machines[0]
	if worst, unsure := m.Worst(); !unsure || worst != TimerLoops {
		t.Errorf("the worst is %s, unsure %v", worst, unsure)
	}
	left := 10
	x := timerOf(e, e.Units.Unit("daily_reboot.timer"), bootStarts(e), &left)
	if x.Danger != TimerUnknown || x.Unsure == "" || left < 0 {
		t.Errorf("with nothing left to play: danger %s, unsure %q, %d left", x.Danger, x.Unsure, left)
	}
}
