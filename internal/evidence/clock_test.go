// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// tokyo is a machine in Japan with a timer and a daemon for time.
func tokyo(t *testing.T) map[string]string {
	t.Helper()
	zone, err := os.ReadFile("/usr/share/zoneinfo/Asia/Tokyo")
	if err != nil {
		testenv.Lacks(t, "the zones of tzdata")
	}
	return map[string]string{
		"etc/localtime":                                                        string(zone),
		"usr/share/zoneinfo/Europe/Berlin":                                     string(zone), // which one it is does not matter
		"etc/adjtime":                                                          "0.0 0 0.0\n0\nLOCAL\n",
		"usr/lib/systemd/systemd":                                              "",
		"usr/lib/systemd/system/a.timer":                                       "[Timer]\nOnCalendar=03:30 Europe/Berlin\nOnCalendar=04:30 Nowhere/Land\n",
		"var/lib/systemd/timers/stamp-a.timer":                                 "",
		"var/lib/systemd/timesync/clock":                                       "",
		"usr/lib/systemd/system/multi-user.target":                             "[Unit]\nRequires=sysinit.target\n",
		"usr/lib/systemd/system/sysinit.target":                                "[Unit]\n",
		"usr/lib/systemd/system/default.target":                                "[Unit]\nRequires=multi-user.target\n",
		"usr/lib/systemd/system/systemd-timesyncd.service":                     "[Service]\nExecStart=/bin/true\n",
		"etc/systemd/system/multi-user.target.wants/systemd-timesyncd.service": "-> /usr/lib/systemd/system/systemd-timesyncd.service",
	}
}

func TestClock(t *testing.T) {
	stamped := time.Date(2026, 11, 20, 18, 30, 0, 0, time.UTC)
	made := filled(t, tokyo(t))
	for name, at := range map[string]time.Time{"var/lib/systemd/timers/stamp-a.timer": stamped,
		"var/lib/systemd/timesync/clock": stamped.Add(time.Hour), "usr/lib/systemd/systemd": stamped.Add(-1000 * time.Hour)} {
		if err := os.Chtimes(filepath.Join(made, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	c := &gatheredFrom(t, made).Clock
	if _, offset := stamped.In(c.Zone).Zone(); offset != 9*3600 {
		t.Errorf("the zone is %v, want Japan's", c.Zone)
	}
	if c.Local != units.Yes || c.LocalFrom.Path != "/etc/adjtime" {
		t.Errorf("adjtime says local time: %s, from %s", c.Local, c.LocalFrom.Path)
	}
	if c.Synced != units.Yes || c.Saves != units.Yes || !c.Saved.Equal(stamped.Add(time.Hour)) || c.Waits != units.No {
		t.Errorf("set right %s by %s; saved %s by %s at %v; waits %s", c.Synced, c.Daemon, c.Saves, c.Saver, c.Saved, c.Waits)
	}
	if s := c.Stamps["a.timer"]; !s.At.Equal(stamped) || s.Fixed {
		t.Errorf("the stamp is %+v", s)
	}
	if !c.Build.Equal(stamped.Add(-1000 * time.Hour)) {
		t.Errorf("systemd was built %v", c.Build)
	}
	if zone, err := c.Load("Europe/Berlin"); zone == nil || err != nil {
		t.Errorf("Load of a zone that is there: %v, %v", zone, err)
	}
	if _, err := c.Load("Nowhere/Land"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a zone that is not there: %v", err)
	}
	if _, err := c.Load("Asia/Tokyo"); !errors.Is(err, tree.ErrNotCollected) {
		t.Errorf("Load of a zone that nobody names: %v", err)
	}
	if k := c.Keeps; k.Writable != units.Yes || k.Lasts != units.Yes || !k.Known || k.Why != "" {
		t.Errorf("stamps are kept: %+v", k)
	}
}

// TestDoubtfulStarts: what a boot may start or not sets the clock right, keeps it and is watched perhaps. Without luck,
// as since systemd 254, it is not.
func TestDoubtfulStarts(t *testing.T) {
	for version, want := range map[string]units.Truth{"252": units.Maybe, "254": units.No} {
		files := tokyo(t)
		delete(files, "etc/systemd/system/multi-user.target.wants/systemd-timesyncd.service")
		files["usr/lib/systemd/libsystemd-shared-"+version+".so"] = ""
		files["usr/lib/systemd/system/systemd-timesyncd.service"] = "[Service]\nExecStart=/bin/true\nWatchdogSec=3min\n"
		files["usr/lib/systemd/system/some.target"] = "[Unit]\nRequires=gone.service systemd-timesyncd.service systemd-time-wait-sync.service\n"
		files["usr/lib/systemd/system/systemd-time-wait-sync.service"] = "[Service]\nExecStart=/bin/true\n"
		files["etc/systemd/system/multi-user.target.wants/some.target"] = "-> /usr/lib/systemd/system/some.target"
		e := gatheredFrom(t, filled(t, files))
		c := &e.Clock
		if c.Synced != want || c.Saves != want || c.Waits != want {
			t.Errorf("%s: set right %s by %s, saved %s by %s, waits %s for %s; want %s each", version, c.Synced, c.Daemon, c.Saves,
				c.Saver, c.Waits, c.Waiter, want)
		}
		dogs := e.Limits.Watchdogs
		if perhaps := want == units.Maybe; perhaps != (len(dogs) == 1 && strings.Contains(dogs[0].Doubt, "gone.service")) ||
			perhaps != (c.Daemon != "") {
			t.Errorf("%s: daemon %q, watchdogs %+v", version, c.Daemon, dogs)
		}
	}
}

// TestKeep holds whether stamps are kept, by where they lie.
func TestKeep(t *testing.T) {
	const root = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"
	for name, c := range map[string]struct {
		files           map[string]string
		writable, lasts units.Truth
		why             string
	}{
		"fstab without /var":                {map[string]string{"etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n"}, units.Yes, units.Yes, ""},
		"no fstab":                          {nil, units.Yes, units.Yes, ""},
		"a tmpfs on /var":                   {map[string]string{"etc/fstab": "tmpfs /var tmpfs defaults 0 0\n"}, units.Yes, units.No, "/etc/fstab mounts a tmpfs"},
		"a tmpfs beside it":                 {map[string]string{"etc/fstab": "tmpfs /var/lib/systemd/timersx tmpfs defaults 0 0\n"}, units.Yes, units.Yes, ""},
		"a root that is read only":          {map[string]string{"etc/fstab": "/dev/sda1 / ext4 ro 0 1\n"}, units.No, units.Yes, "read-only"},
		"mounted":                           {map[string]string{"proc/1/mountinfo": root}, units.Yes, units.Yes, ""},
		"mounted read-only":                 {map[string]string{"proc/1/mountinfo": strings.Replace(root, "rw,relatime", "ro,relatime", 1)}, units.No, units.Yes, "read-only"},
		"a file system that went read-only": {map[string]string{"proc/1/mountinfo": strings.Replace(root, "remount-ro", "remount-ro,emergency_ro", 1)}, units.Maybe, units.Yes, "takes no writes now"},
		"mounted in memory":                 {map[string]string{"proc/1/mountinfo": root + "22 21 0:5 / /var rw - tmpfs tmpfs rw\n"}, units.Yes, units.No, "in memory"},
		"an overlay in memory": {map[string]string{"proc/1/mountinfo": "21 1 0:4 / / rw - overlay o rw,lowerdir=/l,upperdir=/run/u/x,workdir=/run/u/w\n" +
			"22 21 0:5 / /run rw - tmpfs tmpfs rw\n"}, units.Yes, units.No, "in memory"},
		"an overlay elsewhere": {map[string]string{"proc/1/mountinfo": "21 1 0:4 / / rw - overlay o rw,lowerdir=/l,upperdir=/u/x,workdir=/u/w\n"},
			units.Yes, units.Maybe, "not known"},
		"an overlay without writes": {map[string]string{"proc/1/mountinfo": "21 1 0:4 / / rw - overlay o rw,lowerdir=/l:/m\n"}, units.No, units.Yes, "takes no writes"},
		"the command line":          {map[string]string{"proc/1/mountinfo": root, "proc/cmdline": "quiet overlayroot=tmpfs\n"}, units.Yes, units.No, "overlayroot=tmpfs"},
		"volatile":                  {map[string]string{"proc/1/mountinfo": root, "proc/cmdline": "systemd.volatile=overlay\n"}, units.Yes, units.No, "systemd.volatile"},
		"not volatile":              {map[string]string{"proc/1/mountinfo": root, "proc/cmdline": "systemd.volatile=no\n"}, units.Yes, units.Yes, ""},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"var/lib/systemd/timers/stamp-a.timer": ""}
			for n, text := range c.files {
				files[n] = text
			}
			k := gatheredFrom(t, filled(t, files)).Clock.Keeps
			if k.Writable != c.writable || k.Lasts != c.lasts || !strings.Contains(k.Why, c.why) || (c.why == "") != (k.Why == "") {
				t.Errorf("writable %s, lasts %s, %q; want %s, %s, %q", k.Writable, k.Lasts, k.Why, c.writable, c.lasts, c.why)
			}
		})
	}
}

func TestNamed(t *testing.T) {
	for word, want := range map[string]bool{"Europe/Berlin": true, "CET": true, "03:30": false, "*-*-*": false, "../x": false,
		"/UTC": false, "": false, "a//b": false, "Etc/GMT+12": true} {
		if got := named(word); got != want {
			t.Errorf("named(%q) = %v, want %v", word, got, want)
		}
	}
}
