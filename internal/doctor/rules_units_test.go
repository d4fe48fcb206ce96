// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"maps"
	"testing"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// plainSystem is a system that starts, with some programs.
func plainSystem(files map[string]string) map[string]string {
	all := map[string]string{"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "lib": "->usr/lib", "bin": "->usr/bin",
		"sbin": "->usr/sbin", "etc/fstab": ""}
	for name, text := range map[string]string{
		"default.target":    "[Unit]\nRequires=multi-user.target\n",
		"multi-user.target": "[Unit]\nRequires=basic.target\n",
		"basic.target":      "[Unit]\nRequires=sysinit.target\nWants=timers.target\n",
		"sysinit.target":    "[Unit]\nDescription=x\n",
		"timers.target":     "[Unit]\nDescription=x\n",
		"reboot.target":     "[Unit]\nDefaultDependencies=no\n",
	} {
		all["usr/lib/systemd/system/"+name] = text
	}
	for _, name := range []string{"usr/bin/systemctl", "usr/bin/sh", "usr/sbin/shutdown", "usr/bin/true", "usr/sbin/cron",
		"usr/bin/python3", "usr/bin/check"} {
		all[name] = "\x7fELF"
	}
	maps.Copy(all, files)
	return all
}

// TestUnitRules holds what the rules say of a system with one thing in it.
func TestUnitRules(t *testing.T) {
	const on = "etc/systemd/system/multi-user.target.wants/x.service"
	service := func(more, command string) map[string]string {
		return map[string]string{"etc/systemd/system/x.service": "[Unit]\n" + more + "\n[Service]\nType=oneshot\nExecStart=" +
			command + "\n", on: "->../x.service"}
	}
	with := func(all map[string]string, name, text string) map[string]string {
		all[name] = text
		return all
	}
	timer := func(text string) map[string]string {
		return map[string]string{"etc/systemd/system/x.timer": "[Timer]\n" + text,
			"etc/systemd/system/x.service":                   "[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n",
			"etc/systemd/system/timers.target.wants/x.timer": "->../x.timer"}
	}
	cron := func(line string) map[string]string {
		return map[string]string{"etc/cron.d/x": line, "etc/systemd/system/cron.service": "[Service]\nExecStart=/usr/sbin/cron -f\n",
			"etc/systemd/system/multi-user.target.wants/cron.service": "->../cron.service"}
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"nothing", nil, ""},
		{"a loop", service("", "/bin/systemctl reboot"), "TM01 loop"},
		{"not started", map[string]string{"etc/systemd/system/x.service": "[Service]\nExecStart=/bin/systemctl reboot\n" +
			"[Install]\nWantedBy=multi-user.target\n"}, ""},
		{"if it fails", service("FailureAction=reboot", "/usr/bin/check"), "TM01 on-failure"},
		{"perhaps", service("", "/bin/sh -c 'check || systemctl reboot'"), "TM01 perhaps"},
		{"a condition that is not met", service("ConditionPathExists=/nope", "/bin/systemctl reboot"), ""},
		{"a condition that is not known", service("ConditionVirtualization=vm", "/bin/systemctl reboot"), "TM01 perhaps"},
		{"in words of another language", with(service("", "/opt/x.py"), "opt/x.py",
			"#!/usr/bin/python3\nimport os\nos.system('systemctl reboot')\n"), "TM01 likely"},
		{"it waits", service("", "/sbin/shutdown -r +30"), "TM01 rolling"},
		{"it waits too short", service("", "/sbin/shutdown -r +5"), "TM01 loop"},
		{"for a time of the day", service("", "/sbin/shutdown -r 03:30"), "TM01 rolling"},
		{"its program is missing", service("", "/opt/gone/systemctl reboot"), "TM07 missing"},
		{"its program is in another directory", service("", "/sbin/systemctl reboot"), "TM07 missing"},
		{"the directories are one", with(service("", "/sbin/systemctl reboot"), "sbin", "->usr/bin"), "TM01 loop"},
		{"the default target", map[string]string{"usr/lib/systemd/system/default.target": "->reboot.target"}, "TM01 loop"},
		{"soon", timer("OnBootSec=30s\n"), "TM02 loop"},
		{"late", timer("OnBootSec=2d\n"), "TM02 rolling"},
		{"taken back", timer("OnBootSec=30s\nOnCalendar=\nOnCalendar=weekly\n"), ""},
		{"a timer that is not met", timer("OnBootSec=30s\n[Unit]\nConditionPathExists=/nope\n"), ""},
		{"a crontab", cron("@reboot root /bin/systemctl reboot\n"), "TM01 loop"},
		{"a crontab that waits", cron("@reboot root sleep 60 && check || shutdown -r +5\n"), "TM01 perhaps"},
		{"another line of a crontab", cron("@reboot root true\n0 4 * * * root /sbin/shutdown -r now\n"), ""},
		{"a crontab that nothing reads", map[string]string{"etc/cron.d/x": "@reboot root /bin/systemctl reboot\n"}, ""},
		{"the first boot", map[string]string{"etc/machine-id": "uninitialized\n",
			"etc/systemd/system/x.service": "[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n[Install]\n" +
				"WantedBy=multi-user.target\n"}, "TM05 loop"},
		{"an empty number is no first boot", map[string]string{"etc/machine-id": "",
			"etc/systemd/system/x.service": "[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n[Install]\n" +
				"WantedBy=multi-user.target\n"}, ""},
		{"the first boot enables a timer", map[string]string{"etc/machine-id": "uninitialized\n",
			"etc/systemd/system/x.timer":   "[Timer]\nOnBootSec=1min\n[Install]\nWantedBy=timers.target\n",
			"etc/systemd/system/x.service": "[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n"}, "TM05 loop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			laid(t, dir, plainSystem(c.files))
			if got := unitRules(t, dir); got != c.want {
				t.Errorf("the rules say %q, want %q", got, c.want)
			}
		})
	}
}

// TestUnitsNotKnown holds that units which could not be read are never passed.
func TestUnitsNotKnown(t *testing.T) {
	for _, r := range []Rule{ruleTM01(), ruleTM02(), ruleTM05(), ruleTM07()} {
		e := &evidence.Evidence{Gaps: []evidence.Gap{{Part: evidence.PartUnits, Reason: "no rights"}}}
		ask(t, r, e, says{"host:h:h", Unknown, "", ""})
		ask(t, r, &evidence.Evidence{}) // another init: nothing to be said
	}
}

// TestPanics holds what is said of a kernel that restarts by itself.
func TestPanics(t *testing.T) {
	set := func(all map[string]string) *evidence.Evidence {
		e := &evidence.Evidence{Config: evidence.Config{Sysctl: map[string]evidence.Setting{}}}
		for k, v := range all {
			e.Config.Sysctl[k] = evidence.Setting{Value: v}
		}
		return e
	}
	r := ruleTM01()
	for _, c := range []struct {
		all  map[string]string
		want int
	}{
		{map[string]string{"kernel.panic": "10"}, 0},
		{map[string]string{"kernel.panic": "0", "kernel.panic_on_oops": "1"}, 0},
		{map[string]string{"kernel.panic": "10", "kernel.panic_on_oops": "1"}, 1},
		{map[string]string{"kernel.panic": "-1", "kernel.hung_task_panic": "1"}, 1},
	} {
		if got := panics(&r, set(c.all)); len(got) != c.want {
			t.Errorf("of %v is said %+v, want %d findings", c.all, got, c.want)
		}
	}
}
