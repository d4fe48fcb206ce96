// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
)

// devicePause is how often a device is looked at.
const devicePause = 10 * time.Millisecond

// device waits until the file system is gone, and sets the state by that.
func (u *unmount) device(ctx context.Context) error {
	for {
		free, why := u.free(ctx)
		switch {
		case free && u.r.State == Detached:
			u.r.State = Done
			return nil
		case free:
			return nil
		case why != "":
			u.r.State = Unknown
			u.r.Notes = append(u.r.Notes, "whether the file system is gone cannot be told: "+why)
			return nil
		}
		left := time.Until(u.deadline)
		if left <= 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(devicePause, left)):
		}
	}
	u.r.State = Pinned
	report, err := u.scanSystem(ctx)
	if err != nil {
		u.r.Notes = append(u.r.Notes, "look who keeps the file system: "+err.Error())
	}
	u.r.Report = report
	return ctx.Err()
}

// scanSystem looks who keeps the file system. The mount is gone, so that is asked of its device, or of
// the file system itself where it has none.
func (u *unmount) scanSystem(ctx context.Context) (*holders.Report, error) {
	if unix.Major(u.mount.Dev) == 0 {
		if u.ScanSystem == nil {
			return nil, nil
		}
		return u.ScanSystem(ctx, u.mount)
	}
	if u.Scan == nil {
		return nil, nil
	}
	node, err := u.Host.BlockOf(u.mount.Dev)
	if err != nil {
		return nil, err
	}
	return u.Scan(ctx, "/dev/"+node)
}

// free tells whether the file system is gone and its device can be used; why says that it cannot be
// told.
func (u *unmount) free(ctx context.Context) (free bool, why string) {
	alive, err := u.system.alive(ctx)
	switch {
	case alive:
		return false, ""
	case unix.Major(u.mount.Dev) == 0:
		return err == nil, errText(err)
	}
	node, nodeErr := u.Host.BlockOf(u.mount.Dev)
	if nodeErr != nil {
		// A device that is gone, as a loop device that goes with its last user, holds no file system.
		return err == nil, errText(err)
	}
	// A file system that is mounted claims its device alone (open(2), O_EXCL), and so do others.
	fd, err := unix.Open("/dev/"+node, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		return true, errText(unix.Close(fd))
	case errors.Is(err, unix.EBUSY):
		return false, ""
	}
	return false, fmt.Sprintf("open /dev/%s: %v", node, err)
}

func errText(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}
