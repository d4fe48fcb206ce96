// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Waits tells whether a thread of a process waits in the kernel and can be neither stopped nor ended
// (state D, proc(5)). A process that ended is fs.ErrNotExist.
func (h *Host) Waits(ctx context.Context, pid int) (bool, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	threads, err := h.names(ctx, dir)
	if err != nil {
		return false, err
	}
	for _, tid := range threads {
		stat, err := readSome(h.root+dir+"/"+tid+"/stat", maxStatBytes)
		if vanished(err) {
			continue // the thread ended
		}
		if err != nil {
			return false, err
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 0 && string(fields[0]) == "D" {
			return true, nil
		}
	}
	return false, nil
}

// ServesFUSE tells whether a process has /dev/fuse open, by which file systems are served.
func (h *Host) ServesFUSE(ctx context.Context, pid int) (bool, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	fds, err := h.names(ctx, dir)
	if err != nil {
		return false, err
	}
	for _, fd := range fds {
		to, err := os.Readlink(h.root + dir + "/" + fd)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return false, err
		}
		if to == "/dev/fuse" {
			return true, nil
		}
	}
	return false, nil
}
