// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/lab/nspawn"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// The units of the story. Suspected wrongly is Persistent=true of the timer; what loops is the service, which is
// enabled beside it.
const (
	storyService = "[Unit]\nDescription=Daily reboot\n[Service]\nType=oneshot\nExecStart=/bin/systemctl --no-block reboot\n" +
		"[Install]\nWantedBy=multi-user.target\n"
	storyTimer = "[Unit]\nDescription=Daily reboot\n[Timer]\nOnCalendar=*-*-* 03:30:00\nPersistent=true\n[Install]\n" +
		"WantedBy=timers.target\n"
	storyUnits = "/etc/systemd/system/"
)

// TestStoryLoop is the story of a machine that restarts for ever because of a nightly reboot. Systemd itself runs it;
// what it leaves is on a disk, of which the unit is told that loops, and what stops it. The disk is mended then: systemd
// stays up with what is on it, and undo gives the same disk to the byte.
func TestStoryLoop(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	testenv.Need(t, "systemd-nspawn", "systemctl", "journalctl", "dbus-daemon", "mkfs.ext4", "debugfs", "qemu-img", uml.Program, "go")
	t.Parallel()
	shisa, dir := newShisa(t), testenv.DiskDir(t)
	root, err := nspawn.NewRoot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]nspawn.File{storyUnits + "daily_reboot.service": {Text: storyService},
		storyUnits + "daily_reboot.timer": {Text: storyTimer}}
	w := nspawn.World{Files: files, Enable: []string{"daily_reboot.service", "daily_reboot.timer"}}
	limits := nspawn.Limits{Boots: 4, Hold: 2 * time.Second, Wall: 20 * time.Minute}
	tree := filepath.Join(dir, "tree")
	if ends := played(t, root, w, limits, tree); ends != "reboot reboot reboot reboot" {
		t.Fatalf("with the units of the story systemd ends its boots by %s", ends)
	}
	raw, disk := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	run(t, "mkfs.ext4", "-q", "-F", "-d", tree, raw, "1G")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk)
	before := fileDigest(t, disk)

	var r doctor.BootsReport
	if err := json.Unmarshal([]byte(shisa.says(t, 3, "doctor", "boots", "--json", "--disk", disk)), &r); err != nil ||
		len(r.Machines) != 1 || r.Machines[0].Blame == nil || r.Machines[0].Stop == nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if b := r.Machines[0]; b.Course != doctor.Loop || b.Blame.Unit != "daily_reboot.service" || !b.Blame.Certain ||
		!slices.Contains(b.Stop.Arguments, "systemd.mask=daily_reboot.service") {
		t.Errorf("of a loop it is said: %s, %+v, %+v", b.Course, b.Blame, b.Stop)
	} else {
		w.Arguments = b.Stop.Arguments
		if ends := played(t, root, w, limits, ""); ends != "stayed" {
			t.Errorf("with %v systemd ends its boots by %s", w.Arguments, ends)
		}
		w.Arguments = nil
	}
	var all doctor.Report
	if err := json.Unmarshal([]byte(shisa.says(t, 3, "doctor", "--json", "--disk", disk)), &all); err != nil || len(all.Causes) == 0 {
		t.Fatalf("%v: %+v", err, all)
	}
	if o := all.Causes[0].Object; o.Kind != doctor.Unit || o.Name != "daily_reboot.service" {
		t.Errorf("the first cause is %v, want the service, and not its timer", o)
	}
	shisa.says(t, 3, "doctor", "timers", "--disk", disk)

	plan := filepath.Join(dir, "plan.json")
	shisa.says(t, 3, "doctor", "boots", "--disk", disk, "--fix", "--out", plan)
	shisa.says(t, 0, "apply", plan)
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw)
	if ends := played(t, root, nspawn.World{Files: unitsOn(t, raw)}, limits, ""); ends != "stayed" {
		t.Errorf("with what is on the mended disk systemd ends its boots by %s", ends)
	}
	shisa.says(t, 0, "undo", disk)
	if fileDigest(t, disk) != before {
		t.Error("after undo the disk is another one")
	}
}

// played is how the boots of a world end; what is on its disk then is in dir, unless that is "".
func played(t *testing.T, root *nspawn.Root, w nspawn.World, limits nspawn.Limits, dir string) string {
	t.Helper()
	o, err := root.Boot(t.Context(), w, limits)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var ends []string
	for _, b := range o.Boots {
		ends = append(ends, b.End)
	}
	if dir != "" {
		if err := o.Write(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	return strings.Join(ends, " ")
}

// unitsOn are the files of the administrator's units on a disk of ext4.
func unitsOn(t *testing.T, raw string) map[string]nspawn.File {
	t.Helper()
	dir, files := t.TempDir(), map[string]nspawn.File{}
	run(t, "debugfs", "-R", "rdump /etc/systemd/system "+dir, raw)
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		at := storyUnits + strings.TrimPrefix(name, dir+"/system/")
		if d.Type()&fs.ModeSymlink != 0 {
			to, err := os.Readlink(name)
			files[at] = nspawn.File{Link: to}
			return err
		}
		text, err := os.ReadFile(name)
		files[at] = nspawn.File{Text: string(text)}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files of units: %v", len(files), err)
	}
	return files
}
