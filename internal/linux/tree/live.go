// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
)

// kernelRing is the device with the kernel's messages (Documentation/ABI/testing/dev-kmsg of the
// kernel). Read gives all that it holds, a record after the other, and does not wait for more.
const kernelRing = "/dev/kmsg"

// maxRecordBytes is more than a record of it can have (CONSOLE_EXT_LOG_MAX, 8192).
const maxRecordBytes = 16 << 10

// OpenLive opens the files of the running system. Nothing is touched that lies on a mount of a server,
// a cluster, an automounter or FUSE, as far as it is one now: such a name is ErrAvoided. The file system
// of / is always read.
func OpenLive(ctx context.Context) (*Local, error) {
	l := &Local{kind: Live, avoid: map[string]string{}, points: map[string]bool{}}
	if err := l.know(ctx, ""); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	l.root = fd
	return l, nil
}

// know takes the mounts below base from the table of this process.
func (l *Local) know(ctx context.Context, base string) error {
	mounts, err := linux.Open("").Mounts(ctx, 0)
	if err != nil {
		return fmt.Errorf("what is mounted here is not known, and so not what may be touched: %w", err)
	}
	for _, m := range mounts {
		point, in := strings.CutPrefix(m.Point, base)
		if !in || !path.IsAbs(point) || point == "/" {
			continue
		}
		l.points[point] = true
		if why := linux.MayHang(m.Type); why != "" {
			l.avoid[point] = fmt.Sprintf("%s is a mount of type %s, which waits for %s", m.Point, m.Type, why)
		}
	}
	return nil
}

// readRing reads what the kernel keeps of its messages. Each read gives one record.
func readRing(limit int64) ([]byte, error) {
	fd, err := unix.Open(kernelRing, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: kernelRing, Err: err}
	}
	defer unix.Close(fd)
	var all []byte
	record := make([]byte, maxRecordBytes)
	for {
		n, err := unix.Read(fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return all, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
			continue // overwritten meanwhile: the next read gives the oldest that is left
		case err != nil:
			return all, &fs.PathError{Op: "read", Path: kernelRing, Err: err}
		case int64(len(all)+n) > limit:
			return all, &fs.PathError{Op: "read", Path: kernelRing, Err: ErrTooLarge}
		}
		all = append(all, record[:n]...)
	}
}
