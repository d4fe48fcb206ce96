// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/vhost"
	"github.com/shisa-vm/shisa/internal/uml"
)

// umlRoot is the first argument of these tests when they are the first process of a guest whose root is a disk that
// QEMU's block layer serves; the second names the file with the plan.
const umlRoot = "root-of-a-guest"

// rootPlan is what the first process does before it becomes systemd.
type rootPlan struct {
	Modules []string `json:"modules"`
	// AheadSeconds is how far the clock of the guest's hardware is ahead of that of the host.
	AheadSeconds int64 `json:"ahead_seconds"`
	// Run are files below /run, which is in memory; a text that begins with "->" is a link.
	Run map[string]string `json:"run"`
}

// guestClock is how a guest's clock goes. What its hardware's shows is ahead of the right time, as one is that shows local
// time; what systemd makes of that, a daemon of the guest's sets right by a step a while after the start, if there is any.
type guestClock struct{ ahead, step time.Duration }

// staysUnit tells the host that the machine stays up, a while after all was started, and ends it. It is not on the
// disk, where it would be one more unit that takes the machine down.
const staysUnit = "[Unit]\nAfter=multi-user.target\n[Service]\nExecStart=/bin/sh -c 'systemctl is-system-running --wait; " +
	"sleep 8; echo " + upText + " >/dev/ttyS0; sleep 1; systemctl poweroff'\n"

// served boots a guest whose root is the ext4 of a qcow2 image, served by QEMU's block layer, with the image's systemd,
// and tells whether it stays up: else it restarts itself. Arguments are words for the kernel's command line.
func served(t *testing.T, programs, image string, clock guestClock, arguments ...string) bool {
	t.Helper()
	modules, err := uml.Modules(uml.ModulesDir, vhost.Module)
	if err != nil {
		t.Fatal(err)
	}
	p := rootPlan{Modules: modules, AheadSeconds: int64(clock.ahead / time.Second), Run: map[string]string{
		"systemd/system/stays.service":                         staysUnit,
		"systemd/system/multi-user.target.wants/stays.service": "->../stays.service"}}
	if clock.step != 0 {
		p.Run[stepFile] = fmt.Sprint(int64(clock.step / time.Second))
	}
	plan, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "plan.json")
	if err := os.WriteFile(file, plan, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := vhost.Serve(image, "qcow2")
	if err != nil {
		t.Fatal(err)
	}
	r, err := uml.RunUnconfined(t.Context(), uml.Options{Root: "/", Init: filepath.Join(programs, "tests"),
		Args: []string{umlRoot, file}, MemoryMiB: 256, Timeout: guestMay, Append: append(arguments, d.Argument())})
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatalf("boot %s: %v; its console ends with\n%s", strings.Join(arguments, " "), err, r.Console)
	}
	stays := len(r.Lines) == 1 && string(r.Lines[0]) == upText
	restarts := bytes.Contains(r.Console, []byte("reboot: Restarting system"))
	t.Logf("%v %v: up %v, restarts %v, took %v, CPU %v", arguments, clock, stays, restarts, r.Took.Round(time.Second/10), r.CPU)
	if stays == restarts {
		t.Fatalf("boot %s: up %v, restarts %v, it said %s; its console ends with\n%s", strings.Join(arguments, " "), stays,
			restarts, r.Lines, r.Console)
	}
	return stays
}

// umlSystemd is the first process of such a guest. It becomes systemd, or ends the guest.
func umlSystemd(plan string) {
	fmt.Println("first process:", becomeSystemd(plan))
	fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func becomeSystemd(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var p rootPlan
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	for _, m := range p.Modules {
		if err := uml.Load(m, ""); err != nil {
			return err
		}
	}
	// All is done before the old root is left, which the disk covers then.
	const root = "/mnt"
	if err := unix.Mount(vhost.Device, root, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", vhost.Device, err)
	}
	for _, fs := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(fs.kind, root+fs.at, fs.kind, unix.MS_NOSUID, ""); err != nil {
			return fmt.Errorf("mount %s: %w", fs.at, err)
		}
	}
	for name, text := range p.Run {
		if err := writeRun(filepath.Join(root, "run", name), text); err != nil {
			return err
		}
	}
	// This guest has no other clock than its kernel's: that of the host is not touched.
	now := unix.NsecToTimespec(time.Now().UnixNano() + p.AheadSeconds*int64(time.Second))
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	if err := errors.Join(unix.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	const systemd = "/usr/lib/systemd/systemd"
	return unix.Exec(systemd, []string{systemd}, []string{"PATH=/usr/sbin:/usr/bin", "TERM=linux"})
}

// writeRun writes a file, or a link if its text begins with "->".
func writeRun(name, text string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if to, link := strings.CutPrefix(text, "->"); link {
		return os.Symlink(to, name)
	}
	return os.WriteFile(name, []byte(text), 0o644)
}
