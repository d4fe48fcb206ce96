// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// RecordBytes is how long a buffer has to be for every record of the kernel's messages.
const RecordBytes = maxRecordBytes

// FollowRing opens the kernel's messages (Documentation/ABI/testing/dev-kmsg) behind what is there now. Each
// read gives one record and waits for it; EPIPE says that some were overwritten before they were read. Close
// ends a read that waits.
func FollowRing() (*os.File, error) {
	// Of a descriptor that does not block a read waits in the runtime's poll.
	fd, err := unix.Open(kernelRing, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: kernelRing, Err: err}
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "seek", Path: kernelRing, Err: err}
	}
	return os.NewFile(uintptr(fd), kernelRing), nil
}
