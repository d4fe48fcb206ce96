// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/linux/klog"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestDevicesAreRecognised has arrays, paths and disks of a guest fail: what its kernel says of each is
// known.
func TestDevicesAreRecognised(t *testing.T) {
	testenv.NeedGuest(t)
	m := klog.New()
	t.Run("md", func(t *testing.T) {
		one, two := newLoop(t), newLoop(t)
		command(t, "mdadm", "--create", "/dev/md8", "--run", "--level=1", "--raid-devices=2", "--metadata=1.2",
			"--assume-clean", one, two)
		defer command(t, "mdadm", "--stop", "/dev/md8")
		said := listen(t, "md8", "md")
		command(t, "mdadm", "/dev/md8", "--fail", one)
		hears(t, m, said, "md.fail")
	})
	t.Run("multipath", func(t *testing.T) {
		dev := newLoop(t)
		number := strings.TrimSpace(command(t, "cat", "/sys/class/block/"+filepath.Base(dev)+"/dev"))
		command(t, "dmsetup", "--noudevsync", "--noudevrules", "create", "paths", "--table",
			"0 65536 multipath 0 0 1 1 round-robin 0 1 1 "+number+" 1000")
		defer command(t, "dmsetup", "--noudevsync", "--noudevrules", "remove", "paths")
		said := listen(t, "multipath")
		command(t, "dmsetup", "message", "paths", "0", "fail_path "+number)
		hears(t, m, said, "mpath.failing")
		command(t, "dmsetup", "message", "paths", "0", "reinstate_path "+number)
		hears(t, m, said, "mpath.back")
	})
	t.Run("scsi", func(t *testing.T) {
		all, err := filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*")
		if err != nil || len(all) == 0 {
			t.Fatalf("no disk of scsi_debug: %v", err)
		}
		disk := filepath.Base(all[0])
		for name, value := range map[string]string{all[0] + "/device/timeout": "1", all[0] + "/device/eh_timeout": "1",
			"/sys/bus/pseudo/drivers/scsi_debug/every_nth": "1", "/sys/bus/pseudo/drivers/scsi_debug/opts": "4"} {
			if err := os.WriteFile(name, []byte(value), 0o200); err != nil {
				t.Fatal(err)
			}
		}
		said := listen(t, disk, "sd")
		// It fails, as it is to.
		_ = exec.Command("dd", "if=/dev/zero", "of=/dev/"+disk, "bs=4096", "count=1", "oflag=direct").Run()
		hears(t, m, said, "scsi.offline", "scsi.result", "blk.io")
	})
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), "MDADM_NO_UDEV=1", "DM_DISABLE_UDEV=1")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// newLoop makes a device of a file of 32 MiB.
func newLoop(t *testing.T) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, 32<<20); err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(command(t, "losetup", "--find", "--show", p))
	t.Cleanup(func() { command(t, "losetup", "--detach", dev) })
	return dev
}

// listen gives what the kernel says from now on that has one of the words.
func listen(t *testing.T, words ...string) func() []faultfs.Message {
	t.Helper()
	log, err := faultfs.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return func() []faultfs.Message {
		all, lost, err := log.Read(words...)
		if err != nil || lost {
			t.Fatalf("the kernel's log: lost %v, %v", lost, err)
		}
		return all
	}
}

// hears waits until messages of all these forms came. All that came have a form, and none that is an error
// is a note.
func hears(t *testing.T, m *klog.Matcher, said func() []faultfs.Message, want ...string) {
	t.Helper()
	var seen []string
	missing := func(f string) bool { return !slices.Contains(seen, f) }
	for end := time.Now().Add(5 * time.Minute); slices.ContainsFunc(want, missing); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("heard %v, want %v", seen, want)
		}
		for _, x := range said() {
			got, ok := m.Match("kernel", x.Text)
			if !ok || strings.HasSuffix(got.Form.Name, ".note") && x.Level < 4 {
				t.Errorf("%q of level %d: %v", x.Text, x.Level, got.Form)
				continue
			}
			t.Logf("%s: %s", got.Form.Name, x.Text)
			seen = append(seen, got.Form.Name)
		}
	}
}
