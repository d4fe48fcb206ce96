// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Loop writes the files of a machine that starts again and again, with the log of its last boots, which ended
// at now. A persistent timer restarts it each night, as it was made for. What loops is that the service of that
// timer is enabled too.
func Loop(dir string, now time.Time) error {
	const etc, usr = "etc/systemd/system/", "usr/lib/systemd/system/"
	const log, stamp = "var/log/syslog", "var/lib/systemd/timers/stamp-daily_reboot.timer"
	err := plant(dir, map[string]string{
		"etc/hostname":      "cache1\n",
		"etc/machine-id":    "0123456789abcdef0123456789abcdef\n",
		"etc/fstab":         "/dev/vda1 / ext4 errors=remount-ro 0 1\n",
		"usr/bin/systemctl": "",
		"boot/grub/grub.cfg": "set timeout_style=hidden\nset timeout=0\n" +
			"menuentry 'Debian' {\n\tlinux /vmlinuz root=/dev/vda1 ro quiet\n}\n",
		log:                       shortBoots(now),
		stamp:                     "",
		usr + "default.target":    "[Unit]\nRequires=multi-user.target\n",
		usr + "multi-user.target": "[Unit]\nRequires=sysinit.target\nWants=timers.target\n",
		usr + "sysinit.target":    "[Unit]\n",
		usr + "timers.target":     "[Unit]\n",
		etc + "daily_reboot.timer": "[Unit]\nDescription=Restart each night\n\n" +
			"[Timer]\nOnCalendar=*-*-* 03:30:00\nPersistent=true\n\n[Install]\nWantedBy=timers.target\n",
		etc + "daily_reboot.service": "[Unit]\nDescription=Restart before memory is used up\n\n" +
			"[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl reboot\n\n[Install]\nWantedBy=multi-user.target\n",
	}, map[string]string{
		"bin": "usr/bin",
		"lib": "usr/lib",
		etc + "timers.target.wants/daily_reboot.timer":       "../daily_reboot.timer",
		etc + "multi-user.target.wants/daily_reboot.service": "../daily_reboot.service",
	})
	// The times of these files say when the timer elapsed last, and that no log is missing since.
	for _, name := range []string{log, stamp} {
		if err == nil {
			err = os.Chtimes(filepath.Join(dir, name), now, now)
		}
	}
	return err
}

// shortBoots is a syslog of five boots of some seconds each.
func shortBoots(now time.Time) string {
	const boots, apart = 5, 20 * time.Second
	var b strings.Builder
	for i := range boots {
		began := now.UTC().Add(-apart * time.Duration(boots-i))
		for _, l := range []struct {
			after time.Duration
			text  string
		}{
			{0, "kernel: Linux version 6.1.0-44-amd64 (debian-kernel@lists.debian.org) #1 SMP"},
			{time.Second, "systemd[1]: Reached target sysinit.target - System Initialization."},
			{2 * time.Second, "systemd[1]: Started cron.service - Regular background program processing daemon."},
			{5 * time.Second, "systemd[1]: Starting daily_reboot.service - Restart before memory is used up..."},
			{5100 * time.Millisecond, "systemd[1]: Stopped target multi-user.target - Multi-User System."},
			{5150 * time.Millisecond, "systemd[1]: Starting systemd-update-utmp.service - Record System Boot/Shutdown in UTMP..."},
			{5200 * time.Millisecond, "systemd[1]: Reached target reboot.target - System Reboot."},
		} {
			fmt.Fprintf(&b, "%s cache1 %s\n", began.Add(l.after).Format("2006-01-02T15:04:05.000000-07:00"), l.text)
		}
	}
	return b.String()
}
