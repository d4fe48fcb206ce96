// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"testing"
)

// The forms that open-vm-tools has had, and others that are found on machines.
func TestParseUdev(t *testing.T) {
	for _, c := range []struct {
		name, text string
		seconds    int
		broken     bool
	}{
		{"open-vm-tools today", `ACTION=="add", SUBSYSTEM=="scsi", ENV{DEVTYPE}=="scsi_device", ATTR{vendor}=="VMware*", ` +
			`ATTR{model}=="Virtual disk*", ATTR{timeout}="180"`, 180, false},
		{"open-vm-tools of 2018", `ACTION=="add", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", ATTRS{model}=="Virtual disk*", ` +
			`ENV{DEVTYPE}=="disk", RUN+="/bin/sh -c 'echo 180 >/sys$DEVPATH/device/timeout'"`, 180, false},
		{"open-vm-tools of 2019", `ACTION=="add", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", ATTRS{model}=="Virtual disk*", ` +
			`ENV{DEVTYPE}=="disk", RUN+="/bin/sh -c 'echo 180 >/sys$env{DEVPATH}/device/timeout'"`, 180, false},
		{"a condition that was to set it", `ACTION=="add", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", ` +
			`ATTRS{timeout}="180"`, 180, true},
		{"the path of another event", `ACTION=="add", SUBSYSTEMS=="scsi", ATTRS{vendor}=="VMware*", ENV{DEVTYPE}=="disk", ` +
			`RUN+="/bin/sh -c 'echo 180 >/sys$DEVPATH/timeout'"`, 180, true},
		{"the story's", `ACTION=="add", SUBSYSTEM=="block", KERNEL=="sd*[!0-9]", ` +
			`RUN+="/bin/sh -c 'echo 300 > /sys$DEVPATH/device/timeout'"`, 300, false},
		{"on several lines", "ACTION==\"add\", SUBSYSTEM==\"scsi\", \\\n  ATTR{timeout}=\"60\"\n", 60, false},
		{"a comment", `# ATTR{timeout}="180"`, 0, false},
		{"something else", `SUBSYSTEM=="block", ATTR{queue/scheduler}="none"`, 0, false},
		{"no number", `SUBSYSTEM=="scsi", ATTR{timeout}="999999999999999999999"`, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules := ParseUdev("/etc/udev/rules.d/x.rules", []byte(c.text))
			if c.seconds == 0 {
				if len(rules) != 0 {
					t.Errorf("ParseUdev = %+v, want none", rules)
				}
				return
			}
			if len(rules) != 1 {
				t.Fatalf("ParseUdev = %+v, want one rule", rules)
			}
			if r := rules[0]; r.Seconds != c.seconds || (r.Broken != "") != c.broken {
				t.Errorf("ParseUdev = %d seconds, broken %q, want %d, %t", r.Seconds, r.Broken, c.seconds, c.broken)
			}
		})
	}
}

func FuzzUdev(f *testing.F) {
	f.Add([]byte(`ACTION=="add", ATTR{timeout}="180"`))
	f.Add([]byte("RUN+=\"echo 3 > /sys/timeout\" \\\n \\"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, r := range ParseUdev("x", text) {
			if r.Seconds < 0 || r.From.Line < 1 {
				t.Errorf("ParseUdev(%q) = %+v", text, r)
			}
		}
	})
}
