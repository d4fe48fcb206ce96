// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/loop"
)

// sectorBytes is the size of a loop device's sectors.
const sectorBytes = 512

// loopDevice is a loop device that we made. The kernel takes it away by itself when nobody has it
// open any more: also when this process is killed.
type loopDevice struct {
	fd     int
	number int
}

func (l *loopDevice) path() string { return loop.Path(l.number) }

// makeLoop makes a loop device on an open file, with a name that marks it as ours.
func makeLoop(file int, marker string) (*loopDevice, error) {
	fd, n, err := loop.Attach(file, loop.Options{SectorBytes: sectorBytes, Name: marker})
	if err != nil {
		return nil, err
	}
	return &loopDevice{fd, n}, nil
}

// close lets go of the device and waits until the kernel has taken it away. Programs that look at
// every new device, as udev does, may have it open for a moment.
func (l *loopDevice) close() error {
	err := unix.IoctlSetInt(l.fd, unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		err = nil
	}
	if err = errors.Join(err, unix.Close(l.fd)); err != nil {
		return fmt.Errorf("take away %s: %w", l.path(), err)
	}
	return nil
}

// gone waits until the device is on no file any more.
func (l *loopDevice) gone(marker string) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if ours, err := marked(l.number, marker); err == nil && !ours {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// loops gives the numbers of the loop devices that bear the record's mark.
func (r *record) loops() ([]int, error) {
	if r.Marker == "" {
		return nil, nil
	}
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range names {
		n, err := strconv.Atoi(strings.TrimPrefix(strings.Split(name, "/")[3], "loop"))
		if err != nil {
			return nil, fmt.Errorf("%s has no number: %w", name, err)
		}
		ours, err := marked(n, r.Marker)
		if err != nil {
			return nil, err
		}
		if ours {
			all = append(all, n)
		}
	}
	return all, nil
}

// marked reports whether a loop device is in use and bears a mark: its file is called so, and the device itself.
// Only the name of its file is asked of a device that is not ours. The kernel has that, and asks nobody; about the
// rest LOOP_GET_STATUS64 asks the file system, which may never answer.
func marked(number int, marker string) (bool, error) {
	file, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", number))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return false, nil // it was taken away just now
	case err != nil:
		return false, err
	}
	if path.Base(strings.TrimSuffix(string(file), "\n")) != marker {
		return false, nil
	}
	fd, err := unix.Open(loop.Path(number), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "open", Path: loop.Path(number), Err: err}
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	switch {
	case errors.Is(err, unix.ENXIO):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ask %s for its file: %w", loop.Path(number), err)
	}
	name, _, _ := bytes.Cut(info.File_name[:], []byte{0})
	return string(name) == marker, nil
}

// clearLoop takes a loop device off its file, now or when nobody uses it any more.
func clearLoop(number int) error {
	fd, err := unix.Open(loop.Path(number), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: loop.Path(number), Err: err}
	}
	err = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		err = nil
	}
	return errors.Join(err, unix.Close(fd))
}
