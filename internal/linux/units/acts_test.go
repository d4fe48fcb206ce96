// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// system is a tree with programs.
func system(files map[string]string) map[string]string {
	all := vendor()
	for _, name := range []string{"systemctl", "shutdown", "reboot", "poweroff", "halt", "init", "sh", "bash", "env", "nice",
		"touch", "rm", "true", "false", "busctl", "dbus-send", "gdbus", "kexec", "timeout", "sudo", "systemd-run", "test",
		"python3", "perl", "tee", "flock", "su", "runuser", "telinit", "grub-reboot", "echo", "mkdir", "setsid", "nohup",
		"loginctl", "sleep", "curl", "check", "ask", "x"} {
		all["usr/bin/"+name] = "\x7fELF"
	}
	all["bin"], all["sbin"] = "->usr/bin", "->usr/bin"
	for _, name := range []string{"reboot", "poweroff", "halt", "kexec"} {
		all["usr/lib/systemd/system/"+name+".target"] = "[Unit]\nDefaultDependencies=no\n"
	}
	for name, text := range files {
		all[name] = text
	}
	return all
}

// told gives an act in one line.
func told(a *Act) string {
	s := a.What
	if a.If != "" {
		s += " if " + a.If
	}
	if a.Delay > 0 {
		s += " after " + a.Delay.String()
	}
	if a.At != "" {
		s += " at " + a.At
	}
	if a.Later {
		s += " later"
	}
	if a.Missing != "" {
		s += " missing"
	}
	if a.Doubt != "" {
		s += " doubt"
	}
	for _, g := range a.Guards {
		s += ", " + g.Kind
		if g.Kind == Disarms && !g.Lasting {
			s += " until a restart"
		}
	}
	return s
}

func toldAll(s *Set, name string) string {
	var all []string
	for _, a := range s.Acts(name) {
		all = append(all, told(&a))
	}
	return strings.Join(all, "; ")
}

// TestCommands holds what commands are said to do.
func TestCommands(t *testing.T) {
	for _, c := range []struct{ exec, want string }{
		{"/bin/systemctl reboot", "reboot"},
		{"/sbin/systemctl --no-block --message=\"good night\" reboot", "reboot"},
		{"systemctl -q poweroff", "poweroff"},
		{"-@/bin/systemctl systemctl --force --force halt", "halt"},
		{"+/bin/systemctl isolate reboot.target", "reboot"},
		{"/bin/systemctl start poweroff.target", "poweroff"},
		{"/bin/systemctl start --no-block kexec.target", "kexec"},
		{"/bin/systemctl -H other reboot", ""},
		{"/bin/systemctl --host=other reboot", ""},
		{"/bin/systemctl --root /mnt enable reboot", ""},
		{"/bin/systemctl status reboot.target", ""},
		{"/bin/systemctl restart other.service", ""},
		{"/bin/systemctl --when=+1h reboot", "reboot after 1h0m0s"},
		{"/sbin/shutdown -r now", "reboot"},
		{"/sbin/shutdown -r +5 \"bye\"", "reboot after 5m0s"},
		{"/sbin/shutdown -r", "reboot after 1m0s"},
		{"/sbin/shutdown --reboot 03:30", "reboot at 03:30"},
		{"/sbin/shutdown -h now", "poweroff"},
		{"/sbin/shutdown -H now", "halt"},
		{"/sbin/shutdown -c", ""},
		{"/sbin/shutdown -k now", ""},
		{"/sbin/reboot -f", "reboot"},
		{"/sbin/reboot -w", ""},
		{"/sbin/halt -p", "poweroff"},
		{"/sbin/poweroff --reboot", "reboot"},
		{"/sbin/init 6", "reboot"},
		{"/sbin/init 3", ""},
		{"/sbin/telinit 0", "poweroff"},
		{"/sbin/kexec -l /boot/x", ""},
		{"/sbin/kexec -e", "kexec"},
		{"/usr/bin/grub-reboot 1", ""},
		{"/usr/bin/busctl call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager Reboot b true",
			"reboot"},
		{"/usr/bin/busctl call org.freedesktop.systemd1 /x org.freedesktop.systemd1.Manager StartUnit ss reboot.target replace",
			"reboot"},
		{"/usr/bin/dbus-send --system --dest=org.freedesktop.login1 /x org.freedesktop.login1.Manager.PowerOff boolean:true",
			"poweroff"},
		{"/usr/bin/gdbus call -y -d org.freedesktop.login1 -o /x -m org.freedesktop.login1.Manager.Reboot true", "reboot"},
		{"/usr/bin/loginctl reboot", "reboot"},
		{"/bin/sh -c 'echo b > /proc/sysrq-trigger'", "reboot"},
		{"/bin/sh -c 'sync; echo -n o >/proc/sysrq-trigger'", "poweroff"},
		{"/bin/sh -c 'echo c | tee /proc/sysrq-trigger'", "crash"},
		{"/bin/sh -c 'echo 1 > /proc/sys/kernel/sysrq'", ""},
		{"/bin/sh -c 'echo reboot'", ""},
		{"/bin/sh -c \"echo systemctl reboot >> /var/log/x\"", ""},
		{"/bin/sh -ec 'exec systemctl reboot'", "reboot"},
		{"/bin/bash -lc \"sleep 5 && reboot\"", "reboot"},
		{"/bin/sh -c 'exit 0; reboot'", ""},
		{"/bin/sh -c 'false && reboot'", ""},
		{"/bin/sh -c 'false || reboot'", "reboot"},
		{"/bin/sh -c 'curl -f x || reboot'", "reboot doubt"},
		{"/bin/sh -c 'if true; then reboot; fi'", "reboot"},
		{"/bin/sh -c 'if [ -e /nope ]; then reboot; fi'", ""},
		{"/bin/sh -c 'if [ -e /etc/machine-id ]; then reboot; fi'", "reboot"},
		{"/bin/sh -c '[ -e /etc/done ] || { touch /etc/done; reboot; }'", "reboot, disarms"},
		{"/bin/sh -c '[ -e /run/done ] || { touch /run/done; reboot; }'", "reboot, disarms until a restart"},
		{"/bin/sh -c 'test -f /etc/done && exit; : > /etc/done; reboot'", "reboot, disarms"},
		{"/bin/sh -c 'test -f /etc/machine-id && rm -f /etc/machine-id && reboot'", "reboot, disarms"},
		{"/bin/sh -c 'f() { reboot; }; f'", "reboot"},
		{"/bin/sh -c '[ -e /etc/twice ] && reboot; touch /etc/twice'", "reboot later"},
		{"/bin/sh -c 'CMD=reboot; $$CMD'", "reboot"},
		{"/bin/sh -c 'case $$1 in a) reboot;; esac'", "reboot doubt"},
		{"/bin/sh -c 'while true; do reboot; done'", "reboot"},
		{"/bin/sh -c 'while sleep 60; do check || reboot; done'", "reboot doubt"},
		{"/bin/sh -c 'systemctl disable x.service; reboot'", "reboot, disarms"},
		{"/bin/sh -c 'systemctl disable other.service; reboot'", "reboot"},
		{"/bin/sh -c 'rm /etc/systemd/system/x.service; reboot'", "reboot, disarms"},
		{"/usr/bin/env X=1 nice -n 5 timeout -k 5 10 /sbin/reboot", "reboot"},
		{"/usr/bin/sudo -u root systemctl reboot", "reboot"},
		{"/usr/bin/flock /run/x -c 'systemctl reboot'", "reboot"},
		{"/usr/bin/su -c 'reboot' root", "reboot"},
		{"/usr/bin/systemd-run --on-active=30s --unit=x systemctl reboot", "reboot after 30s"},
		{"/usr/bin/systemd-run -M guest reboot", ""},
		{"/opt/wrap.sh", "reboot"},
		{"/opt/wrap.sh ; /bin/true", "reboot"},
		{"/opt/py.py", "reboot doubt"},
		{"/usr/bin/python3 -c 'import os; os.system(\"reboot\")'", "reboot doubt"},
		{"/opt/gone/systemctl reboot", "reboot missing"},
		{"/opt/gone", ""},
		{"/bin/true", ""},
		{"/bin/sh -c '/opt/gone/reboot'", "reboot missing"},
		{"/bin/sh -c 'cat <<EOF\n reboot\nEOF'", ""},
		{"/bin/sh -c '/opt/gone; reboot'", "reboot"},
		{"/bin/sh -c 'set -e; /opt/gone; reboot'", ""},
		{"/bin/sh -ec '/opt/gone; reboot'", ""},
		{"/bin/sh -c 'set -euo pipefail; gone x; reboot'", ""},
		{"/bin/sh -c 'set -u -o errexit; gone; reboot'", ""},
		{"/bin/sh -c 'set -o pipefail; gone; reboot'", "reboot"},
		{"/bin/sh -c 'set -e; set +e; gone; reboot'", "reboot"},
		{"/bin/sh -c 'set -- -e; gone; reboot'", "reboot"},
		{"/bin/sh -c 'set -e; gone || true; reboot'", "reboot"},
		{"/bin/sh -c 'set -e; true && gone; reboot'", ""},
		{"/bin/sh -c 'set -e; gone && true; reboot'", "reboot"},
		{"/bin/sh -c 'set -e; if gone; then true; fi; ! gone; gone | true; gone & reboot'", "reboot"},
		{"/bin/sh -c 'set -e; true | gone; reboot'", ""},
		{"/bin/sh -c 'set -e; f() { gone; true; }; f; reboot'", ""},
		{"/bin/sh -c 'set -e; f() { gone; true; }; f && reboot'", "reboot"},
		{"/bin/sh -c 'set -e; (gone; true); reboot'", ""},
		{"/bin/sh -c '(set -e; gone; poweroff); gone; reboot'", "reboot"},
		{"/bin/sh -c 'set -e; if ask; then gone; fi; reboot'", "reboot doubt"},
		{"/bin/sh -c 'if ask; then set -e; fi; gone; reboot'", "reboot doubt"},
		{"/bin/sh -c 'set -e; ask; reboot'", "reboot"},
		{"/bin/sh -c 'set -e; [ -n \"$1\" ]; reboot'", "reboot doubt"},
		{"/bin/sh -c 'set -e; [ -e /nope ]; reboot'", ""},
		{"/bin/sh -c 'set -e; systemctl is-active x; reboot'", "reboot doubt"},
		{"/bin/sh -c 'set -e; PATH=/opt/bin; gone; reboot'", "reboot"},
		{"/opt/strict.sh", ""},
		{"/bin/sh /opt/strict.sh", "reboot"},
		{"/bin/sh /opt/plain", "reboot"},
		{"/bin/systemctl start deep.service", "poweroff"},
		{"/bin/sh -c 'systemctl start deep'", "poweroff"},
		{"/bin/systemctl start x.service", ""},
	} {
		dir := t.TempDir()
		kind := "Type=oneshot\n"
		written(t, dir, system(map[string]string{
			"opt/wrap.sh":                     "#!/bin/sh\n# says reboot\nset -e\nlog() { logger \"$@\"; }\nlog hello\n. /opt/lib.sh\nleave now\n",
			"opt/lib.sh":                      "#!/bin/sh\nleave() {\n\t/sbin/shutdown -r \"now\"\n}\n",
			"opt/py.py":                       "#!/usr/bin/env python3\nimport subprocess\n# reboot\nsubprocess.run(['systemctl', 'reboot'])\n",
			"opt/plain":                       "reboot\n",
			"opt/strict.sh":                   "#!/bin/sh -e\n/opt/gone\nreboot\n",
			"etc/systemd/system/deep.service": "[Service]\nType=oneshot\nExecStart=/sbin/poweroff\n",
			"etc/systemd/system/x.service": "[Service]\n" + kind + "ExecStart=" +
				strings.ReplaceAll(c.exec, "\n", "\\n") + "\n",
		}))
		s := loaded(t, dir)
		if u := s.Unit("x.service"); u.State != Loaded {
			t.Errorf("%s: %s %s", c.exec, u.State, u.Why)
		}
		if got := toldAll(s, "x.service"); got != c.want {
			t.Errorf("%s\n\tdoes %q, want %q", c.exec, got, c.want)
		}
	}
}

// TestServices holds what whole services are said to do.
func TestServices(t *testing.T) {
	for _, c := range []struct{ name, unit, service, want string }{
		{"once", "", "ExecStart=/bin/true\nExecStop=/sbin/reboot", "reboot"},
		{"remains", "", "RemainAfterExit=yes\nExecStart=/bin/true\nExecStop=/sbin/reboot", "reboot if it is stopped"},
		{"simple", "", "Type=simple\nExecStart=/usr/bin/x\nExecStop=/sbin/reboot", "reboot if it is stopped"},
		{"after a failure", "", "ExecStartPre=/bin/false\nExecStart=/sbin/reboot", ""},
		{"after one that does not count", "", "ExecStartPre=-/bin/false\nExecStart=/sbin/reboot", "reboot"},
		{"after one that is missing", "", "ExecStart=/opt/gone\nExecStart=/sbin/reboot", ""},
		{"only if", "", "ExecCondition=/usr/bin/test -e /etc/x\nExecStart=/sbin/reboot", ""},
		{"perhaps if", "", "ExecCondition=/bin/sh -c 'ask'\nExecStart=/sbin/reboot", "reboot, condition not known"},
		{"reset", "", "ExecStart=/sbin/reboot\nExecStart=\nExecStart=/bin/true", ""},
		{"failure", "FailureAction=reboot-force", "ExecStart=/bin/sh -c x", "reboot if it fails"},
		{"sure failure", "FailureAction=reboot", "ExecStart=/opt/gone", "reboot"},
		{"old place", "", "FailureAction=poweroff\nExecStart=/bin/sh -c x", "poweroff if it fails"},
		{"sure success", "SuccessAction=soft-reboot-force", "ExecStart=/bin/true", "soft-reboot"},
		{"success", "SuccessAction=exit", "ExecStart=/bin/sh -c x", "exit if it succeeds"},
		{"none", "FailureAction=none", "ExecStart=/bin/false", ""},
		{"limit", "StartLimitAction=reboot", "Type=simple\nRestart=always\nExecStart=/usr/bin/x", "reboot if it is started too often"},
		{"no limit", "StartLimitAction=reboot", "ExecStart=/bin/true", ""},
		{"job", "JobTimeoutSec=5\nJobTimeoutAction=reboot", "ExecStart=/bin/true", "reboot if its start takes too long"},
		{"no job", "JobTimeoutAction=reboot", "ExecStart=/bin/true", ""},
		{"condition", "ConditionPathExists=/nope", "ExecStart=/sbin/reboot", "reboot, condition not met"},
		{"met", "ConditionPathExists=!/nope", "ExecStart=/sbin/reboot", "reboot"},
		{"unknown", "ConditionKernelCommandLine=x", "ExecStart=/sbin/reboot", "reboot, condition not known"},
		{"one of", "ConditionPathExists=|/nope\nConditionPathExists=|/etc", "ExecStart=/sbin/reboot", "reboot"},
		{"none of", "ConditionPathExists=|/nope\nConditionPathExists=|/no", "ExecStart=/sbin/reboot",
			"reboot, condition not met, condition not met"},
		{"reset condition", "ConditionPathExists=/nope\nConditionPathIsDirectory=", "ExecStart=/sbin/reboot", "reboot"},
		{"disarms", "ConditionPathExists=!/var/lib/done", "ExecStartPre=/bin/touch /var/lib/done\nExecStart=/sbin/reboot",
			"reboot, disarms"},
		{"disarms for now", "ConditionPathExists=!/run/done", "ExecStartPre=/bin/touch /run/done\nExecStart=/sbin/reboot",
			"reboot, disarms until a restart"},
		{"disarms too late", "ConditionPathExists=!/var/lib/done", "ExecStart=/sbin/reboot\nExecStartPost=/bin/touch /var/lib/done",
			"reboot"},
		{"flag", "ConditionPathExists=/etc/machine-id", "ExecStartPre=/bin/rm /etc/machine-id\nExecStart=/sbin/reboot",
			"reboot, disarms"},
		{"on failure", "OnFailure=off.service", "ExecStart=/bin/false", "poweroff"},
		{"if on failure", "OnFailure=off.service", "ExecStart=/bin/sh -c x", "poweroff if it fails"},
		{"on success", "OnSuccess=reboot.target", "ExecStart=/bin/true", "reboot"},
		{"on no success", "OnSuccess=reboot.target", "ExecStart=/bin/false", ""},
		{"wants", "Wants=reboot.target", "ExecStart=/bin/true", ""},
		{"environment", "", "Environment=\"CMD=systemctl reboot\" ARG=now\nExecStart=/bin/sh -c ${CMD}", "reboot"},
		{"environment in a text", "", "Environment=WHAT=reboot\nExecStart=/bin/sh -c 'systemctl $WHAT'", "reboot"},
		{"words", "", "Environment=\"ARGS=-r now\"\nExecStart=/sbin/shutdown $ARGS", "reboot"},
		{"reload", "", "ExecStart=/bin/true\nExecReload=/sbin/reboot", ""},
	} {
		dir := t.TempDir()
		service := c.service
		if !strings.Contains(service, "Type=") {
			service = "Type=oneshot\n" + service
		}
		written(t, dir, system(map[string]string{
			"etc/systemd/system/off.service": "[Service]\nType=oneshot\nExecStart=/sbin/poweroff\n",
			"etc/systemd/system/x.service":   "[Unit]\n" + c.unit + "\n[Service]\n" + service + "\n",
		}))
		s := loaded(t, dir)
		if u := s.Unit("x.service"); u.State != Loaded {
			t.Errorf("%s: %s %s", c.name, u.State, u.Why)
		}
		if got := toldAll(s, "x.service"); got != c.want {
			t.Errorf("%s: it does %q, want %q", c.name, got, c.want)
		}
	}
}

// TestChains holds that an act says where it is written.
func TestChains(t *testing.T) {
	dir := t.TempDir()
	written(t, dir, system(map[string]string{
		"opt/wrap.sh":                     "#!/bin/sh\n\nif true; then\n\tsystemctl start deep\nfi\n",
		"etc/systemd/system/deep.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'sync; reboot'\n",
		"etc/systemd/system/x.service":    "[Service]\nType=oneshot\nExecStart=/opt/wrap.sh\n",
	}))
	var got []string
	acts := loaded(t, dir).Acts("x.service")
	if len(acts) != 1 {
		t.Fatalf("acts are %+v, want one", acts)
	}
	for _, s := range acts[0].Chain {
		got = append(got, fmt.Sprintf("%s:%d %s", s.From.Path, s.From.Line, s.Text))
	}
	want := []string{
		"/etc/systemd/system/x.service:3 ExecStart=/opt/wrap.sh", "/opt/wrap.sh:4 systemctl start deep",
		":0 starts deep.service", "/etc/systemd/system/deep.service:3 ExecStart=/bin/sh -c 'sync; reboot'",
		"/etc/systemd/system/deep.service:3 reboot",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the chain is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestBare holds that a copy of /etc alone is judged by the targets that every system has.
func TestBare(t *testing.T) {
	dir := t.TempDir()
	written(t, dir, map[string]string{
		"etc/systemd/system/x.service":                         "[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n",
		"etc/systemd/system/multi-user.target.wants/x.service": "->../x.service",
	})
	s := loaded(t, dir)
	if _, is := s.Reached("default.target")["x.service"]; !s.Bare || !is {
		t.Errorf("it is bare: %v; started: %v", s.Bare, s.Reached("default.target"))
	}
}

// TestSplitUsr holds that a system where / and /usr are apart has its own units and programs.
func TestSplitUsr(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"sbin/reboot": "\x7fELF", "bin/systemctl": "\x7fELF", "usr/bin/true": "\x7fELF",
		"usr/sbin/halt": "->/bin/systemctl"}
	for name, text := range vendor() {
		if name != "lib" {
			files[strings.Replace(name, "usr/lib/systemd", "lib/systemd", 1)] = text
		}
	}
	for name, command := range map[string]string{"a": "/sbin/reboot", "b": "/sbin/systemctl reboot", "c": "reboot",
		"d": "/usr/bin/systemctl reboot", "e": "/usr/sbin/halt", "f": "/usr/bin/reboot"} {
		files["usr/lib/systemd/system/"+name+".service"] = "[Service]\nType=oneshot\nExecStart=" + command + "\n"
	}
	files["lib/systemd/system/f.service"] = "[Service]\nType=oneshot\nExecStart=/bin/systemctl poweroff\n"
	written(t, dir, files)
	s := loaded(t, dir)
	if _, is := s.Reached("default.target")["basic.target"]; !is || s.MergedUsr || s.Bare {
		t.Errorf("merged: %v, bare: %v", s.MergedUsr, s.Bare)
	}
	for name, want := range map[string]string{"a": "reboot", "b": "reboot missing", "c": "reboot", "d": "reboot missing",
		"e": "halt", "f": "poweroff"} {
		if got := toldAll(s, name+".service"); got != want {
			t.Errorf("%s does %q, want %q", name, got, want)
		}
	}
}
