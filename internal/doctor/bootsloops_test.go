// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/lab/nspawn"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
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
		{name: "at its time", world: nspawn.World{Files: files(does, onceADay(12*time.Second, "Persistent=true")), Enable: timer},
			ends: "rs", first: 15 * time.Second},
		{name: "at its time, not persistent", world: nspawn.World{Files: files(does, onceADay(12*time.Second, "Persistent=false")),
			Enable: timer}, ends: "rs", first: 15 * time.Second},
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
		loop("soon after each start", "TM02 loop", nspawn.World{Files: files(does, "[Timer]\nAccuracySec=1us\nOnBootSec=1s"), Enable: timer}, both),
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

func script(all map[string]nspawn.File) map[string]nspawn.File {
	all["/usr/local/bin/weekly"] = nspawn.File{Mode: 0o755, Text: "#!/bin/sh\n# weekly maintenance\nsync\nexec shutdown -r now\n"}
	return all
}

// TestLoops has systemd itself run each row of the table. It holds what rules say of the files before, against what
// systemd does then; what is said of the journals that it wrote: what the boots amount to, who is to blame; and that the
// machine stays up with the arguments that are given.
func TestLoops(t *testing.T) {
	root := newRoot(t)
	for _, row := range loops() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			if got := row.foretold(t, root); got != row.before {
				t.Errorf("rules say %q of the files of %s, want %q", got, row.name, row.before)
			}
			ends, after := row.boot(t, root)
			if ends != row.ends {
				t.Fatalf("systemd: %s ends %q, want %q", row.name, ends, row.ends)
			}
			row.keep(t, after)
			b := bootsAt(t, after)
			row.judge(t, b)
			if b.Blame == nil {
				return
			}
			row.world.Arguments = b.Stop.Arguments
			if ends, _ := row.boot(t, root); ends != "s" {
				t.Errorf("%s with %v ends %q, want it to stay up", row.name, b.Stop.Arguments, ends)
			}
		})
	}
}

// foretold is what rules say of the files of a row before it was ever booted.
func (row *loopRow) foretold(t *testing.T, root *nspawn.Root) string {
	t.Helper()
	w := row.world
	w.Files = timed(time.Now(), w.Files)
	dir := filepath.Join(t.TempDir(), "before")
	if err := root.Write(t.Context(), w, dir); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range Examine([]*evidence.Evidence{gatherAt(t, dir)}, nil).Findings {
		if strings.HasPrefix(f.Code, "TM") {
			all = append(all, f.Code+" "+f.Kind)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// judge holds what is said of the boots of a row.
func (row *loopRow) judge(t *testing.T, b *Boots) {
	t.Helper()
	course := row.course
	if course == "" {
		course = Steady
	}
	if b.Course != course {
		t.Errorf("boots of %s = %s (%s), want %s", row.name, b.Course, b.Why, course)
	}
	if got := blamed(b); got != row.blame {
		t.Errorf("boots of %s blame %q, want %q", row.name, got, row.blame)
	}
	if b.Blame == nil {
		return
	}
	if !b.Blame.Certain || b.Blame.Ended != b.Blame.Of {
		t.Errorf("boots of %s: %+v, want it certain, and all boots", row.name, b.Blame)
	}
	if got := strings.Join(b.Blame.Masks, " "); got != row.masks {
		t.Errorf("boots of %s mask %q, want %q", row.name, got, row.masks)
	}
}

// keptJournal is where the journal of a row is kept.
func (row *loopRow) keptJournal() string {
	return filepath.Join("testdata", "boots", row.kept+".tar.gz")
}

// keep keeps the journal that systemd wrote of a row, with SHISA_UPDATE=1. Take it only for what it shows: each has
// other numbers and times.
func (row *loopRow) keep(t *testing.T, after string) {
	t.Helper()
	if row.kept == "" || os.Getenv("SHISA_UPDATE") != "1" {
		return
	}
	found, err := filepath.Glob(filepath.Join(after, "var/log/journal/*/system*"))
	if err != nil || len(found) == 0 {
		t.Fatalf("journals %v, %v, want some", found, err)
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, name := range found {
		text, err := os.ReadFile(name)
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: filepath.Base(name), Mode: 0o644, Size: int64(len(text))})
		}
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close(), os.WriteFile(row.keptJournal(), packed.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// unpack gives the journals that are kept, by their names.
func (row *loopRow) unpack(t *testing.T) map[string]string {
	t.Helper()
	packed, err := os.Open(row.keptJournal())
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = string(text)
	}
}

// TestKeptLoops holds the same of journals that systemd wrote before: it needs no root, and systemd may be another.
func TestKeptLoops(t *testing.T) {
	n := 0
	for _, row := range loops() {
		if row.kept == "" {
			continue
		}
		n++
		files := map[string]string{"etc/machine-id": labMachine + "\n", "usr/bin/systemctl": "", "usr/bin/false": "",
			"etc/hostname": "guest\n"}
		for name, text := range row.unpack(t) {
			files["var/log/journal/"+labMachine+"/"+name] = text
		}
		for name, f := range row.world.Files {
			files[strings.TrimPrefix(name, "/")] = f.Text
		}
		row.judge(t, bootsAt(t, machine(t, files, time.Now())))
	}
	if n < 4 {
		t.Errorf("%d journals are kept, want more", n)
	}
}

// labMachine is the number of machines in package nspawn.
const labMachine = "5b15a0000000000000000000000000a1"

func newRoot(t *testing.T) *nspawn.Root {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "systemd-nspawn", "systemctl", "journalctl", "dbus-daemon")
	root, err := nspawn.NewRoot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// boot boots a row and gives how its boots ended, and its files after that.
func (row *loopRow) boot(t *testing.T, root *nspawn.Root) (ends, after string) {
	t.Helper()
	hold := max(row.hold, 1500*time.Millisecond)
	w := row.world
	w.Files = timed(time.Now(), w.Files)
	o, err := root.Boot(t.Context(), w, nspawn.Limits{Boots: 4, Hold: hold, First: row.first, Cut: row.cut, Wall: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for _, b := range o.Boots {
		ends += b.End[:1]
	}
	after = filepath.Join(t.TempDir(), "after")
	if err := o.Write(t.Context(), after); err != nil {
		t.Fatal(err)
	}
	return ends, after
}

// bootsAt tells of the boots of a machine whose files are in a directory.
func bootsAt(t *testing.T, dir string) *Boots {
	t.Helper()
	e := gatherAt(t, dir)
	r := ExamineBoots([]*evidence.Evidence{e})
	return &r.Machines[0]
}

func gatherAt(t *testing.T, dir string) *evidence.Evidence {
	t.Helper()
	ctx := context.Background()
	files, err := tree.OpenDirectory(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	e, err := evidence.Gather(ctx, files, evidence.Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func blamed(b *Boots) string {
	if b.Blame == nil {
		return ""
	}
	return b.Blame.Unit
}

// TestNoBystander holds that no unit is ever said to have asked but the one that does.
func TestNoBystander(t *testing.T) {
	root := newRoot(t)
	row := loops()[slices.IndexFunc(loops(), func(r loopRow) bool { return r.name == "through logind" })]
	_, after := row.boot(t, root)
	for _, b := range bootsAt(t, after).Boots {
		if b.By.Unit != "nightly.service" || b.First != "nightly.service" {
			t.Errorf("a boot was ended by %+v, its first dangerous unit is %q, want nightly.service", b.By, b.First)
		}
	}
}
