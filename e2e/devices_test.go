// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestDevices has devices made of a device, by device mapper, md and a network block device's server,
// and holds that the program says who keeps it, what is mounted of them, and that it is free then.
func TestDevices(t *testing.T) {
	testenv.NeedGuest(t)
	t.Run("mapper", func(t *testing.T) {
		dev := newLoop(t)
		run(t, "dmsetup", "--noudevsync", "--noudevrules", "create", "held",
			"--table", "0 65536 linear "+dev+" 0")
		at := newFilesystem(t, "/dev/mapper/held")
		held := want{holders.DeviceHolder, "dm-0", "/dev/mapper/held on " + dev}
		asked(t, dev, 3, held, want{holders.Mounted, "", at})
		run(t, "umount", at)
		asked(t, dev, 3, held)
		run(t, "dmsetup", "--noudevsync", "--noudevrules", "remove", "held")
		asked(t, dev, 0)
	})
	t.Run("md", func(t *testing.T) {
		one, two := newLoop(t), newLoop(t)
		run(t, "mdadm", "--create", "/dev/md7", "--run", "--level=1", "--raid-devices=2",
			"--metadata=1.2", "--assume-clean", one, two)
		at := newFilesystem(t, "/dev/md7")
		asked(t, two, 3, want{holders.MD, "md7", two}, want{holders.Mounted, "", at})
		run(t, "umount", at)
		run(t, "mdadm", "--stop", "/dev/md7")
		asked(t, one, 0)
	})
	t.Run("nbd", func(t *testing.T) {
		image := filepath.Join(t.TempDir(), "disk.raw")
		if err := os.WriteFile(image, make([]byte, 32<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "qemu-nbd", "--connect=/dev/nbd0", "--format=raw", image)
		asked(t, "/dev/nbd0", 3, want{holders.Served, "nbd0", "/dev/nbd0"})
		run(t, "qemu-nbd", "--disconnect", "/dev/nbd0")
		asked(t, "/dev/nbd0", 0)
	})
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), "MDADM_NO_UDEV=1", "DM_DISABLE_UDEV=1")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// newLoop makes a device of a file of 32 MiB.
func newLoop(t *testing.T) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(32 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	dev := run(t, "losetup", "--find", "--show", f.Name())
	t.Cleanup(func() { run(t, "losetup", "--detach", dev) })
	return dev
}

// newFilesystem makes one on a device, and mounts it.
func newFilesystem(t *testing.T, dev string) string {
	t.Helper()
	run(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
	at := t.TempDir()
	if err := unix.Mount(dev, at, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	return at
}

// want is a holder that is to be named.
type want struct {
	kind         holders.Kind
	device, path string
}

// asked has the program say who keeps a device. What is let go of may take the kernel a moment.
func asked(t *testing.T, dev string, status int, named ...want) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		var words strings.Builder
		c := exec.Command("shisa", "holders", "--json", dev)
		c.Stderr = &words
		out, _ := c.Output() // its status is looked at
		var said struct {
			Holders []holders.Holder `json:"holders"`
		}
		if err := json.Unmarshal(out, &said); err != nil {
			t.Fatalf("%v: %s %s", err, out, words.String())
		}
		if c.ProcessState.ExitCode() == status && all(said.Holders, named) {
			return
		}
		if len(named) > 0 || time.Now().After(end) {
			t.Fatalf("%s ended with %d, want %d with %+v:\n%s%s", dev, c.ProcessState.ExitCode(), status, named,
				out, words.String())
		}
	}
}

func all(got []holders.Holder, named []want) bool {
	for _, w := range named {
		if !slices.ContainsFunc(got, func(h holders.Holder) bool {
			return h.Kind == w.kind && h.Device == w.device && strings.Contains(h.Path, w.path)
		}) {
			return false
		}
	}
	return true
}
