// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// lintedTimer lints a repository of a service and a timer.
func lintedTimer(ctx context.Context, dir, service, timer string, now time.Time) (*LintReport, error) {
	for name, text := range map[string]string{"nightly.service": service, "nightly.timer": timer} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	files, err := tree.OpenDirectory(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer files.Close()
	return Lint(ctx, files, dir, now)
}

// TestLintWorlds: the rules about stamps and clocks judge a repository's timers on all machines that there may be, at
// whatever time of the day and the year they are asked.
func TestLintWorlds(t *testing.T) {
	const install, service = "[Install]\nWantedBy=timers.target\n", "[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n"
	for _, c := range []struct {
		name, service, timer string
		want                 []string // code and severity
		status               int
	}{
		{"persistent", service, "[Timer]\nOnCalendar=03:30\nPersistent=yes\n" + install,
			[]string{"TM03 warning", "TM04 warning", "TM06 note"}, 3},
		{"a zone", service, "[Timer]\nOnCalendar=Mon *-*-1..7 03:30 Europe/Berlin\nPersistent=yes\n" + install,
			[]string{"TM03 warning", "TM04 warning", "TM06 note"}, 3},
		{"not persistent", service, "[Timer]\nOnCalendar=03:30\n" + install, []string{"TM06 note"}, 0},
		{"waits for the right time", service, "[Unit]\nRequires=systemd-time-wait-sync.service\n[Timer]\nOnCalendar=03:30\n" + install, nil, 0},
		{"waits, and is persistent", service, "[Unit]\nWants=systemd-time-wait-sync.service\n[Timer]\nOnCalendar=03:30\nPersistent=1\n" + install,
			[]string{"TM03 warning", "TM04 warning"}, 3},
		{"only if it fails", "[Unit]\nFailureAction=reboot\n[Service]\nType=oneshot\nExecStart=/opt/x\n",
			"[Timer]\nOnCalendar=03:30\nPersistent=yes\n" + install, nil, 0},
		{"nobody enables it", service, "[Timer]\nOnCalendar=03:30\nPersistent=yes\n", nil, 0},
		{"harmless", "[Service]\nType=oneshot\nExecStart=/bin/true\n", "[Timer]\nOnCalendar=03:30\nPersistent=yes\n" + install, nil, 0},
		{"counts from its unit", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'if [ -e /run/x ]; then reboot; fi; touch /run/x'\n" +
			"[Install]\nWantedBy=multi-user.target\n", "[Timer]\nOnUnitActiveSec=1min\n" + install, []string{"TM02 danger"}, 3},
		{"counts from its unit, long after", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'if [ -e /run/x ]; then reboot; fi; touch /run/x'\n" +
			"[Install]\nWantedBy=multi-user.target\n", "[Timer]\nOnUnitActiveSec=1h\n" + install, nil, 0},
		{"started too often", "[Unit]\nStartLimitAction=reboot-force\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
			"[Timer]\nOnActiveSec=1\nOnUnitActiveSec=1\nAccuracySec=1ms\n" + install, []string{"TM02 danger"}, 3},
		{"started too often, if it is as exact as that", "[Unit]\nStartLimitAction=reboot-force\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
			"[Timer]\nOnActiveSec=1\nOnUnitActiveSec=1\n" + install, []string{"TM02 note"}, 0},
		{"a condition of the timer", service, "[Unit]\nConditionVirtualization=vm\n[Timer]\nOnBootSec=1min\n" + install, []string{"TM02 note"}, 0},
		{"no zone at all", service, "[Timer]\nOnCalendar=03:30 a:b\nOnBootSec=1h\nPersistent=yes\n" + install, []string{"TM02 note"}, 0},
	} {
		for n, now := range []time.Time{time.Date(2026, 11, 22, 3, 29, 59, 0, time.UTC), time.Date(2026, 7, 1, 18, 30, 2, 0, time.UTC),
			time.Date(2028, 2, 29, 12, 0, 0, 0, time.UTC)} {
			if n > 0 && c.name != "persistent" {
				continue
			}
			r, err := lintedTimer(t.Context(), t.TempDir(), c.service, c.timer, now)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range r.Findings {
				got = append(got, f.Code+" "+string(f.Severity))
				if strings.HasPrefix(f.Code, "TM03") && !strings.Contains(f.Summary, "if the stamp is old and stamps cannot be written; or if "+
					"the stamp is old and stamps do not last") || f.Code == "TM06" && !strings.Contains(f.Summary, "if the clock is 9h slow at the start") {
					t.Errorf("%s: %s does not name its worlds: %s", c.name, f.Code, f.Summary)
				}
			}
			slices.Sort(got)
			if d := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); d != "" || r.Status[0] != c.status || len(r.NotLookedAt) > 0 {
				t.Errorf("%s at %s: status %v, not looked at %+v; findings (-want +got):\n%s", c.name, now, r.Status, r.NotLookedAt, d)
			}
		}
	}
}

// FuzzLint lints a repository of any service and timer: in a bounded time, and the status fits what is found.
func FuzzLint(f *testing.F) {
	f.Add("[Service]\nExecStart=/bin/systemctl reboot\n", "[Timer]\nOnCalendar=03:30 Asia/Tokyo\nPersistent=yes\n[Install]\nWantedBy=timers.target\n")
	f.Add("[Service]\nExecStart=/bin/sh -c 'sleep 5; reboot'\n", "[Timer]\nOnUnitActiveSec=5\nOnUnitInactiveSec=0\nOnBootSec=1us\nAccuracySec=1us\n"+
		"[Install]\nWantedBy=timers.target\n")
	f.Add("[Unit]\nStartLimitAction=reboot\n[Service]\nExecStart=/bin/true\n", "[Timer]\nOnActiveSec=0\nOnUnitActiveSec=0\n[Install]\nWantedBy=default.target\n")
	f.Add("[Service]\nExecStart=/sbin/reboot -f\n", "[Timer]\nOnCalendar=*:*:*\nOnCalendar=*-2-30\nRandomizedDelaySec=99y\nPersistent=on\n[Install]\nWantedBy=timers.target\n")
	f.Fuzz(func(t *testing.T, service, timer string) {
		ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
		defer stop()
		r, err := lintedTimer(ctx, t.TempDir(), service, timer, time.Date(2026, 11, 22, 3, 29, 59, 0, time.UTC))
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal("it takes too long")
			}
			return
		}
		for _, x := range r.Findings {
			if len(x.Evidence) == 0 || x.Summary == "" || !strings.HasPrefix(x.Code, "TM") {
				t.Errorf("%+v", x)
			}
		}
		if len(r.Findings) == 0 && r.Status[0] == 3 {
			t.Errorf("status %v without a finding", r.Status)
		}
	})
}
