// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
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
			u.r.Notes = append(u.r.Notes, "whether the device is free cannot be told: "+why)
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
	if u.Scan == nil || unix.Major(u.mount.Dev) == 0 {
		return nil
	}
	node, err := u.Host.BlockOf(u.mount.Dev)
	if err != nil {
		u.r.Notes = append(u.r.Notes, "name the device: "+err.Error())
		return nil
	}
	// The mount is gone: who pins it is asked of the device.
	report, err := u.Scan(ctx, "/dev/"+node)
	if err != nil {
		u.r.Notes = append(u.r.Notes, "look who pins the device: "+err.Error())
	}
	u.r.Report = report
	return ctx.Err()
}

// free tells whether the file system is gone; why says that it cannot be told.
func (u *unmount) free(ctx context.Context) (free bool, why string) {
	if u.Alive != nil {
		alive, err := u.Alive(ctx, u.mount.Dev)
		if err == nil {
			return !alive, ""
		}
		why = err.Error()
	}
	if unix.Major(u.mount.Dev) == 0 {
		return false, cmp.Or(why, "a file system without a block device, and the kernel's list of file "+
			"systems cannot be read")
	}
	node, err := u.Host.BlockOf(u.mount.Dev)
	if err != nil {
		return false, err.Error()
	}
	// A file system that is mounted claims its device alone (open(2), O_EXCL).
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
