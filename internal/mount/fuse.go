// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// fuseName is the type of our mounts in /proc/self/mountinfo, behind "fuse.".
	fuseName = "shisa"
	// maxReadBytes is the longest read that the kernel asks for at once.
	maxReadBytes = 1 << 20
	// maxBackground is how many reads ahead the kernel may have under way.
	maxBackground = 32
)

// access says who may do what with a FUSE file system.
type access struct {
	flags      uintptr // of mount(2), where root mounts it
	allowOther bool    // lets users in beside the one who mounts it
	writable   bool    // for those who are not root; root's is in flags
}

// serve mounts a FUSE file system and serves it until it is unmounted.
func serve(raw fuse.RawFileSystem, dir, source string, a access) (*fuse.Server, error) {
	opts := &fuse.MountOptions{
		Name: fuseName, FsName: cmp.Or(printable(source), fuseName),
		AllowOther: a.allowOther, EnableAcl: a.allowOther,
		MaxWrite: maxReadBytes, MaxBackground: maxBackground,
		// Nothing changes: the kernel may keep what it has.
		ExplicitDataCacheControl: true, EnableSymlinkCaching: true, DisableSplice: true,
		Logger: log.New(io.Discard, "", 0),
	}
	at := dir
	if os.Geteuid() != 0 {
		opts.Options = []string{"nodev", "nosuid", "noexec"} // fusermount3 mounts
		if !a.writable {
			opts.Options = append(opts.Options, "ro")
		}
	} else {
		fd, err := mountFuse(dir, opts, a.flags)
		if err != nil {
			return nil, err
		}
		at = fmt.Sprintf("/dev/fd/%d", fd)
	}
	server, err := fuse.NewServer(raw, at, opts)
	if err == nil {
		go server.Serve()
		err = noPoll(dir)
	}
	if err != nil {
		if gone := unmount(dir, true); gone != nil && !notMounted(gone) {
			err = errors.Join(err, gone)
		}
		return nil, err
	}
	return server, nil
}

// mountFuse mounts as root and gives the connection. The module could do that too, but leaves the
// connection open to programs that this one starts: the file system would not end with this process.
func mountFuse(dir string, opts *fuse.MountOptions, flags uintptr) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,max_read=%d", fd, os.Geteuid(),
		os.Getegid(), opts.MaxWrite)
	if opts.AllowOther {
		data += ",allow_other,default_permissions"
	}
	if err := unix.Mount(opts.FsName, dir, "fuse."+fuseName, flags, data); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// printable is a source as the tables of mounts can show it.
func printable(source string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return '?'
		}
		return r
	}, source)
}

// noPoll asks once whether a file of a file system can be polled. The kernel then knows that it
// cannot, and asks no more: the runtime of Go asks it of each file that this process opens there,
// while nothing else runs that could answer. The name is known to the module.
func noPoll(dir string) error {
	fd, err := unix.Open(dir+"/.go-fuse-epoll-hack", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return errors.Join(err, unix.Close(fd))
}

// readAhead lets the kernel read as much ahead as it reads at once. Only root may; without it all is
// as right, and slower.
func readAhead(dev string) {
	name := "/sys/class/bdi/" + dev + "/read_ahead_kb"
	if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
		_, _ = fmt.Fprint(f, maxReadBytes>>10)
		_ = f.Close()
	}
}
