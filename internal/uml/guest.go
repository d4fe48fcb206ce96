// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ReportPath is the line on which a guest says what came of it, in the guest.
const ReportPath = "/dev/ttyS0"

// DiskPath is disk n of Options.Disks, in the guest.
func DiskPath(n int) string { return "/dev/ubd" + string(rune('a'+n)) }

// Prepare mounts what a first process needs: /dev, /proc, /sys, and a file system in memory on /run and /tmp.
// It is for a first process in the guest.
func Prepare() error {
	if os.Getpid() != 1 {
		return errors.New("only the first process of a guest does this")
	}
	for _, m := range []struct{ fs, at string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	} {
		err := unix.Mount(m.fs, m.at, m.fs, unix.MS_NOSUID, "")
		// The kernel may have mounted it by itself.
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.at, err)
		}
	}
	return nil
}

// Reporter says what a guest has to say. It is for programs in the guest, and safe for several goroutines.
type Reporter struct {
	mu sync.Mutex
	f  *os.File
}

// NewReporter opens the line of the report.
func NewReporter() (*Reporter, error) {
	f, err := os.OpenFile(ReportPath, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", ReportPath, err), f.Close())
	}
	return &Reporter{f: f}, nil
}

// Say says one line: v as JSON. It has left the guest when Say returns.
func (r *Reporter) Say(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.f.Write(append(line, '\n')); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(r.f.Fd()), unix.TCSBRK, 1)
}

// Close lets go of the line.
func (r *Reporter) Close() error { return r.f.Close() }

// PowerOff writes what the guest has in memory to its disks, and ends the guest. It returns only if that
// is not allowed.
func PowerOff() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
