// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package loop makes loop devices; loop(4).
package loop

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// tries is how often a free device is looked for: others may take it first.
const tries = 64

// Options say what a device is to be like.
type Options struct {
	Flags       uint32 // LO_FLAGS_* of linux/loop.h, beside LO_FLAGS_AUTOCLEAR
	SectorBytes uint32 // 0 is what the kernel chooses
	Name        string // what it says that its file is called; at most 63 bytes
}

// Path is where a device is.
func Path(number int) string { return fmt.Sprintf("/dev/loop%d", number) }

// Attach makes a loop device on an open file, and gives the device, open for reading and writing, and
// its number. It is there for as long as anybody has it open, also when this process is killed. The
// file may be closed.
func Attach(file int, o Options) (fd, number int, err error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("open /dev/loop-control: %w", err)
	}
	defer unix.Close(control)
	config := unix.LoopConfig{Fd: uint32(file), Size: o.SectorBytes,
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | o.Flags}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], o.Name)
	for range tries {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return -1, -1, fmt.Errorf("look for a free loop device: %w", err)
		}
		fd, err := unix.Open(Path(n), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, -1, fmt.Errorf("open %s: %w", Path(n), err)
		}
		err = unix.IoctlLoopConfigure(fd, &config)
		if err == nil {
			return fd, n, nil
		}
		if err = errors.Join(err, unix.Close(fd)); !errors.Is(err, unix.EBUSY) {
			return -1, -1, fmt.Errorf("set up %s: %w", Path(n), err)
		}
	}
	return -1, -1, errors.New("other programs take every free loop device first")
}
