// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/lab/nspawn"
	"github.com/shisa-vm/shisa/internal/mount"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// nightly is the unit of story S2: it was enabled beside its timer.
const nightly = "[Unit]\nDescription=Nightly restart\n[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl reboot\n" +
	"[Install]\nWantedBy=multi-user.target\n"

// upText is what a guest says that stays up.
const upText = `true`

// loopingGuest makes the disk of a guest with systemd that restarts itself for ever, in a qcow2 image with a
// snapshot.
func loopingGuest(t *testing.T, dir string) string {
	t.Helper()
	made, err := nspawn.NewRoot(t.Context(), filepath.Join(dir, "host"))
	if err != nil {
		t.Fatal(err)
	}
	const system = "/etc/systemd/system/"
	w := nspawn.World{Files: map[string]nspawn.File{
		system + "nightly.service": {Text: nightly},
		system + "nightly.timer":   {Text: "[Timer]\nOnCalendar=03:30\nPersistent=true\n[Install]\nWantedBy=timers.target\n"},
		// Longer than the other one needs to take the machine down.
		system + "up.service": {Text: "[Service]\nType=simple\nExecStart=/bin/sh -c 'sleep 6; echo " +
			upText + " >/dev/ttyS0; sleep 1; systemctl poweroff'\n" +
			"[Install]\nWantedBy=multi-user.target\n"},
		system + "default.target": {Link: "/usr/lib/systemd/system/multi-user.target"},
	}, Enable: []string{"nightly.service", "nightly.timer", "up.service"}}
	root := filepath.Join(dir, "root")
	if err := made.Write(t.Context(), w, root); err != nil {
		t.Fatal(err)
	}
	raw, image := filepath.Join(dir, "raw"), filepath.Join(dir, "vm.qcow2")
	for _, args := range [][]string{{"truncate", "-s", "400M", raw}, {"mkfs.ext4", "-q", "-F", "-d", root, raw},
		{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image}, {"qemu-img", "snapshot", "-c", "one", image}} {
		mustRun(t, args...)
	}
	return image
}

func mustRun(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// stays boots the guest on a view of its disk, and tells whether it stays up, as boots does.
func stays(t *testing.T, image string, more ...string) bool {
	t.Helper()
	c, err := disk.Open(t.Context(), image, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := mount.ServeDisk(c, c.Size(), mount.DiskOptions{StateDir: t.TempDir(), Source: image})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	return boots(t, d.Path(), more...)
}

// boots boots a guest from a disk, and tells whether it stays up: else it restarts itself. More are words for
// the kernel's command line.
func boots(t *testing.T, raw string, more ...string) bool {
	t.Helper()
	r, err := uml.RunUnconfined(t.Context(), uml.Options{MemoryMiB: 384, Timeout: guestMay,
		Disks: []uml.Disk{{Path: raw}}, Init: "/usr/lib/systemd/systemd",
		Append: append([]string{"root=/dev/ubda", "rw"}, more...)})
	if err != nil {
		t.Fatalf("boot %s: %v; its console ends with\n%s", strings.Join(more, " "), err, r.Console)
	}
	up := len(r.Lines) == 1 && string(r.Lines[0]) == upText
	restarts := bytes.Contains(r.Console, []byte("reboot: Restarting system"))
	t.Logf("%v: up %v, restarts %v, took %v, CPU %v", more, up, restarts, r.Took.Round(time.Second/10), r.CPU)
	if up == restarts {
		t.Fatalf("boot %s: up %v, restarts %v, it said %s; its console ends with\n%s", strings.Join(more, " "), up,
			restarts, r.Lines, r.Console)
	}
	return up
}

// TestFixBoots: a guest that restarts itself for ever boots after --fix, in both ways, and does it again after the
// undo, from the same bytes; the argument of the kernel that the doctor names boots it too.
func TestFixBoots(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	testenv.Need(t, uml.Program, "mkfs.ext4", "qemu-img", "systemd-nspawn")
	t.Parallel()
	dir := t.TempDir()
	image := loopingGuest(t, dir)
	shisa := built(t, module+"/cmd/shisa", false)
	run := func(want int, args ...string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), shisa, args...)
		c.Env = append(os.Environ(), "SHISA_STATE="+filepath.Join(dir, "state"))
		out, err := c.CombinedOutput()
		if c.ProcessState == nil || c.ProcessState.ExitCode() != want {
			t.Fatalf("shisa %s ends with %v, want %d: %s", strings.Join(args, " "), err, want, out)
		}
		return string(out)
	}
	was := digest(t, image)
	for range 2 {
		if stays(t, image) {
			t.Fatal("the guest does not loop")
		}
	}
	if !stays(t, image, "systemd.mask=nightly.service") {
		t.Error("the argument of the kernel does not stop the loop")
	}
	for i, way := range []string{"--fix", "--fix=unlink"} {
		file := filepath.Join(dir, fmt.Sprintf("plan%d.json", i))
		told := run(3, "doctor", "timers", "--disk", image, way, "--out", file)
		if !strings.Contains(told, "nightly.service") {
			t.Errorf("%s: the plan is %s", way, told)
		}
		run(0, "apply", file)
		mustRun(t, "qemu-img", "check", "-q", image)
		if !stays(t, image) {
			t.Errorf("%s: the guest loops all the same", way)
		}
		run(0, "undo", image)
		if digest(t, image) != was {
			t.Errorf("%s: after the undo the image has other bytes", way)
		}
	}
	if stays(t, image) {
		t.Error("after the undo the guest does not loop")
	}
	// It loops on its own disk, so that its journal has the boots: who is to blame is read there.
	raw := filepath.Join(dir, "raw")
	for range 3 {
		if boots(t, raw) {
			t.Fatal("the guest does not loop")
		}
	}
	was = digest(t, raw)
	told := run(3, "doctor", "boots", "--disk", raw)
	if !strings.Contains(told, "to blame: nightly.service") {
		t.Errorf("doctor boots says %s", told)
	}
	file := filepath.Join(dir, "boots.json")
	run(3, "doctor", "boots", "--disk", raw, "--fix", "--out", file)
	run(0, "apply", file)
	if !stays(t, raw) {
		t.Error("the guest loops after doctor boots --fix")
	}
	run(0, "undo", raw)
	if digest(t, raw) != was {
		t.Error("after the undo the disk has other bytes")
	}
	if stays(t, raw) {
		t.Error("after the undo the guest does not loop on its own disk")
	}
}

func digest(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
