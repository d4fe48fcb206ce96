// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/nspawn"
)

const (
	nightlyService = "/etc/systemd/system/nightly.service"
	nightlyTimer   = "/etc/systemd/system/nightly.timer"
	nightlyStamp   = "/var/lib/systemd/timers/stamp-nightly.timer"
	stamps         = "/var/lib/systemd/timers"
)

// loopRow is a machine of which it is known what systemd does with it.
type loopRow struct {
	name  string
	world nspawn.World
	// ends are how its boots end, one letter each: r reboot, p poweroff, s stays, c cut. That of a loop ends with r.
	ends string
	// first is how long the first boot is held, hold the others, cut after which time the power of boots fails.
	first, hold time.Duration
	cut         map[int]time.Duration
	// before is what rules say of its files before it was ever booted, as "TM01 loop".
	before string
	// course is what its boots amount to, blame who is to blame, masks what is masked.
	course Course
	blame  string
	masks  string
	// firstUnit is the first dangerous unit of each boot, "" if it is the one to blame.
	firstUnit string
	// kept is the name under which its journal is kept in testdata/boots, "" for most.
	kept string
}

// files makes a world of a service and a timer, each of lines; "" for none.
func files(service, timer string) map[string]nspawn.File {
	all := map[string]nspawn.File{}
	if service != "" {
		all[nightlyService] = nspawn.File{Text: "[Unit]\nDescription=Nightly restart\n" + service + "\n"}
	}
	if timer != "" {
		all[nightlyTimer] = nspawn.File{Text: "[Unit]\nDescription=Nightly timer\n" + timer + "\n[Install]\nWantedBy=timers.target\n"}
	}
	return all
}

// with adds a stamp of an age, negative in the future.
func with(all map[string]nspawn.File, age time.Duration) map[string]nspawn.File {
	all[nightlyStamp] = nspawn.File{Mtime: time.Now().Add(-age)}
	return all
}

const (
	does    = "[Service]\nType=oneshot\nExecStart=/bin/systemctl reboot\n"
	install = "[Install]\nWantedBy=multi-user.target"
)

// onceADay is a timer for once a day, at a time so long after the machine is started.
func onceADay(in time.Duration, more string) string {
	return "[Timer]\nAccuracySec=1us\nOnCalendar={" + in.String() + "}\n" + more
}

var later = regexp.MustCompile(`\{(.*)\}`)

// timed puts the times of timers in.
func timed(now time.Time, all map[string]nspawn.File) map[string]nspawn.File {
	all = maps.Clone(all)
	for name, f := range all {
		f.Text = later.ReplaceAllStringFunc(f.Text, func(in string) string {
			d, _ := time.ParseDuration(in[1 : len(in)-1])
			return now.UTC().Add(d).Format("*-*-* 15:04:05")
		})
		all[name] = f
	}
	return all
}

// loops is the table: what was found out about reboot loops, row by row.
func loops() []loopRow {
	timer, service := []string{"nightly.timer"}, []string{"nightly.service"}
	const hour, stale = time.Hour, 48 * time.Hour
	const both = "nightly.service nightly.timer"
	loop := func(name, before string, w nspawn.World, masks string) loopRow {
		return loopRow{name: name, before: before, world: w, ends: "rrrr", course: Loop, blame: "nightly.service", masks: masks}
	}
	rows := []loopRow{
		{name: "at its time", world: nspawn.World{Files: files(does, onceADay(20*time.Second, "Persistent=true")), Enable: timer},
			ends: "rs", first: 24 * time.Second},
		{name: "at its time, not persistent", world: nspawn.World{Files: files(does, onceADay(20*time.Second, "Persistent=false")),
			Enable: timer}, ends: "rs", first: 24 * time.Second},
		{name: "at its time, with a stamp that cannot be written", before: "TM03 lost-stamp", world: nspawn.World{
			Files:  with(files(does, onceADay(20*time.Second, "Persistent=true")), time.Minute),
			Enable: timer, ReadOnly: []string{stamps}}, ends: "rrrr", first: 24 * time.Second, course: Loop,
			blame: "nightly.service", masks: both},
		loop("service enabled", "TM01 loop", nspawn.World{Files: files(does+install, onceADay(6*hour, "Persistent=true")), Enable: service}, both),
		loop("both enabled", "TM01 loop", nspawn.World{Files: files(does+install, onceADay(6*hour, "Persistent=true")),
			Enable: append(timer, service...)}, both),
		loop("stale stamp that cannot be written", "TM03 lost-stamp", nspawn.World{Files: with(files(does, onceADay(6*hour, "Persistent=true")), stale),
			Enable: timer, ReadOnly: []string{stamps}}, both),
		loop("stale stamp of an image that forgets", "TM03 lost-stamp", nspawn.World{
			Files: with(files(does, onceADay(6*hour, "Persistent=true")), stale), Enable: timer, Forgets: true}, both),
		{name: "no stamp, and none can be written", world: nspawn.World{Files: files(does, onceADay(6*hour, "Persistent=true")),
			Enable: timer, ReadOnly: []string{stamps}}, ends: "s"},
		{name: "stale stamp", before: "TM04 stale-stamp", world: nspawn.World{Files: with(files(does, onceADay(6*hour, "Persistent=true")), stale),
			Enable: timer}, ends: "rs"},
		{name: "stale stamp, not persistent", world: nspawn.World{Files: with(files(does, onceADay(6*hour, "")), stale),
			Enable: timer}, ends: "s"},
		{name: "stamp in the future", world: nspawn.World{Files: with(files(does, onceADay(6*hour, "Persistent=true")), -stale),
			Enable: timer}, ends: "s"},
		{name: "stale stamp that cannot be written, delayed", before: "TM03 lost-stamp", world: nspawn.World{
			Files:  with(files(does, onceADay(6*hour, "Persistent=true\nRandomizedDelaySec=2s")), stale),
			Enable: timer, ReadOnly: []string{stamps}}, ends: "rrrr", hold: 5 * time.Second, course: Loop,
			blame: "nightly.service", masks: both},
		{name: "soon after each start", before: "TM02 loop", world: nspawn.World{Files: files(does, "[Timer]\nAccuracySec=1us\nOnBootSec=1s"),
			Enable: timer}, ends: "rrrr", hold: 10 * time.Second, course: Loop, blame: "nightly.service", masks: both},
		{name: "again, by a timer that counts from when it ran", before: "TM02 loop", world: nspawn.World{Files: twice(files(
			"[Service]\nType=oneshot\nExecStart=/usr/local/bin/twice\n"+install, "[Timer]\nAccuracySec=1us\nOnUnitActiveSec=3s")),
			Enable: append(timer, service...)}, ends: "rrrr", hold: 15 * time.Second, course: Loop, blame: "nightly.service", masks: both},
		{name: "a timer that counts from what never ran", world: nspawn.World{Files: files(does,
			"[Timer]\nAccuracySec=1us\nOnUnitActiveSec=1us\nOnUnitInactiveSec=1us"), Enable: timer}, ends: "s", hold: 6 * time.Second},
		{name: "started too often by its timer", before: "TM02 loop", world: nspawn.World{Files: files(
			"StartLimitAction=reboot\nStartLimitBurst=3\nStartLimitIntervalSec=1min\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
			"[Timer]\nAccuracySec=1us\nOnActiveSec=1s\nOnUnitInactiveSec=1s"), Enable: timer}, ends: "rrrr", hold: 20 * time.Second,
			course: Loop, blame: "nightly.service", masks: both},
		{name: "not started too often by its timer", world: nspawn.World{Files: files(
			"StartLimitAction=reboot\nStartLimitBurst=3\nStartLimitIntervalSec=2s\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
			"[Timer]\nAccuracySec=1us\nOnActiveSec=1s\nOnUnitActiveSec=1s"), Enable: timer}, ends: "s", hold: 12 * time.Second},
		loop("a timer that requires its service", "TM01 loop", nspawn.World{
			Files: files(does, strings.Replace(onceADay(6*hour, ""), "[Timer]", "Requires=nightly.service\n[Timer]", 1)), Enable: timer}, both),
		loop("reboots when it fails", "TM01 loop", nspawn.World{
			Files:  files("FailureAction=reboot\n[Service]\nType=oneshot\nExecStart=/bin/false\n"+install, ""),
			Enable: service}, "nightly.service"),
		loop("reboots when it is started too often", "TM01 on-failure", nspawn.World{
			Files: files("StartLimitAction=reboot\nStartLimitBurst=2\n[Service]\nRestart=always\nRestartSec=0\n"+
				"ExecStart=/bin/false\n"+install, ""), Enable: service}, "nightly.service"),
		loop("first boot", "TM05 loop", nspawn.World{Files: files(does+install, ""), MachineID: "uninitialized"}, "nightly.service"),
		loop("through logind", "TM01 loop", nspawn.World{Files: files(does+install, ""), Enable: service, Logind: true}, "nightly.service"),
		loop("through a script", "TM01 loop", nspawn.World{Files: script(files("[Service]\nType=oneshot\nExecStart=/usr/local/bin/weekly\n"+install, "")),
			Enable: service}, "nightly.service"),
		loop("as on Arch", "TM01 loop", nspawn.World{Files: files("[Service]\nType=oneshot\nExecStart=/sbin/systemctl reboot\n"+install, ""),
			Enable: service, OneBin: true}, "nightly.service"),
		{name: "another one fails", before: "TM01 loop", world: nspawn.World{Files: failing(files("OnFailure=again.service\n[Service]\n"+
			"Type=oneshot\nExecStart=/bin/false\n"+install, "")), Enable: service}, ends: "rrrr", course: Loop,
			blame: "again.service", masks: "again.service", firstUnit: "nightly.service"},
		{name: "a path that is there", before: "TM01 loop", world: nspawn.World{Files: byPath(files(does, "")),
			Enable: []string{"nightly.path"}}, ends: "rrrr", course: Loop, blame: "nightly.service", masks: "nightly.service nightly.path"},
		{name: "an instance", before: "TM01 loop", world: nspawn.World{Files: map[string]nspawn.File{
			"/etc/systemd/system/power@.service": {Text: "[Unit]\nDescription=Do %i\n[Service]\nType=oneshot\nExecStart=/bin/systemctl %i\n" + install}},
			Enable: []string{"power@reboot.service"}}, ends: "rrrr", course: Loop, blame: "power@reboot.service",
			masks: "power@reboot.service"},
		{name: "as on Debian", before: "TM07 missing", world: nspawn.World{Files: files("[Service]\nType=oneshot\nExecStart=/sbin/systemctl reboot\n"+install, ""),
			Enable: service}, ends: "s"},
		{name: "turns itself off", before: "TM01 once", world: nspawn.World{Files: files("ConditionPathExists=!/var/lib/done\n[Service]\nType=oneshot\n"+
			"ExecStart=/bin/touch /var/lib/done\nExecStart=/bin/systemctl reboot\n"+install, ""), Enable: service}, ends: "rs"},
		{name: "wants the target", world: nspawn.World{Files: files("Wants=reboot.target\n[Service]\nType=oneshot\nExecStart=/bin/true\n"+
			install, ""), Enable: service}, ends: "s"},
		{name: "its power fails", world: nspawn.World{Files: files(does, onceADay(6*hour, "")), Enable: timer}, ends: "cccs",
			cut: map[int]time.Duration{0: 1, 1: 1, 2: 1}, course: Crashes},
		{name: "powers off", before: "TM01 loop", world: nspawn.World{Files: files("[Service]\nType=oneshot\nExecStart=/sbin/poweroff\n"+install, ""),
			Enable: service}, ends: "p"},
	}
	for i := range rows {
		w := &rows[i].world
		if len(w.ReadOnly) > 0 {
			w.Files["/etc/fstab"] = nspawn.File{Text: "/dev/vda2 " + stamps + " ext4 ro 0 2\n"}
		}
		if w.Forgets {
			w.Files["/boot/grub/grub.cfg"] = nspawn.File{Text: "linux /vmlinuz root=/dev/vda1 overlayroot=tmpfs\n"}
		}
	}
	for name, kept := range map[string]string{"through logind": "logind", "reboots when it fails": "failure",
		"stale stamp that cannot be written": "stamp", "its power fails": "cut"} {
		i := slices.IndexFunc(rows, func(r loopRow) bool { return r.name == name })
		rows[i].kept = kept
	}
	return rows
}

// failing adds a unit that another one starts when it fails.
func failing(all map[string]nspawn.File) map[string]nspawn.File {
	all["/etc/systemd/system/again.service"] = nspawn.File{Text: does}
	return all
}

// byPath adds a unit that starts the service when something is there.
func byPath(all map[string]nspawn.File) map[string]nspawn.File {
	all["/etc/systemd/system/nightly.path"] = nspawn.File{Text: "[Path]\nPathExists=/etc/hostname\n[Install]\nWantedBy=paths.target\n"}
	return all
}

// twice adds a script that restarts the machine when it is run for the second time.
func twice(all map[string]nspawn.File) map[string]nspawn.File {
	all["/usr/local/bin/twice"] = nspawn.File{Mode: 0o755, Text: "#!/bin/sh\nif [ -e /run/twice ]; then exec systemctl reboot; fi\ntouch /run/twice\n"}
	return all
}

func script(all map[string]nspawn.File) map[string]nspawn.File {
	all["/usr/local/bin/weekly"] = nspawn.File{Mode: 0o755, Text: "#!/bin/sh\n# weekly maintenance\nsync\nexec shutdown -r now\n"}
	return all
}
