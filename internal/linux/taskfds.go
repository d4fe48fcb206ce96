// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// descriptors adds the descriptors of a thread that no thread before it has. Threads mostly share
// them; one that does not is told by its numbers, and where all files are asked for by their names.
func (w *walker) descriptors(pid, tid, links int, seen *held) error {
	fds, err := openDirectory(links, "fd")
	if err != nil {
		return endedThread(err)
	}
	defer unix.Close(fds)
	var numbers []int
	err = eachName(fds, func(name string) error {
		if fd, err := strconv.Atoi(name); err == nil && fd >= 0 {
			numbers = append(numbers, fd)
		}
		return nil // "." and ".." are none
	})
	if err != nil {
		return endedThread(err)
	}
	again := seen.fds != nil
	if again && !w.o.Files && !slices.ContainsFunc(numbers, func(fd int) bool { return seen.fds[fd] == "" }) {
		return nil
	}
	if seen.fds == nil {
		seen.fds = map[int]string{}
	}
	for _, fd := range numbers {
		text, err := w.readlink(fds, strconv.Itoa(fd))
		switch {
		case gone(err) || err == nil && seen.fds[fd] == text && text != "":
			continue
		case err != nil:
			return err
		}
		if seen.fds[fd] == "" {
			seen.fds[fd] = text
		}
		if err := w.descriptor(pid, tid, fd, links, text); err != nil {
			return err
		}
	}
	return nil
}

// descriptor adds one descriptor if it is of a kind that is asked for.
func (w *walker) descriptor(pid, tid, fd, links int, text string) error {
	u := Use{PID: pid, TID: tid, FD: fd, Path: text}
	limit := int64(0) // how much of its fdinfo is worth reading
	switch {
	case text == "" || text[0] == '/':
		if !w.o.Files {
			return nil
		}
		u.Kind, limit = UseFD, maxFdinfoBytes
	case strings.HasPrefix(text, "socket:["):
		u.Kind = UseSocket
		if u.Inode, _ = namespaceID(text, "socket"); w.o.Files {
			limit = maxFdinfoBytes
		}
	case text == "anon_inode:[io_uring]":
		u.Kind, limit = UseRing, maxRingBytes
	case text == "anon_inode:[fanotify]":
		u.Kind, limit = UseFanotify, maxRingBytes
	case strings.HasPrefix(text, "mnt:["):
		u.Kind = UseNamespace
		u.Inode, _ = namespaceID(text, "mnt")
	default:
		return nil
	}
	if limit > 0 {
		info, err := w.fdinfo(links, fd, limit)
		if gone(err) {
			return nil
		} else if err != nil {
			return err
		}
		u.Info = ParseFdinfo(info)
	}
	return w.add(u)
}

// fdinfo reads what the kernel tells of a descriptor. What comes of a short one is good until the
// next call.
func (w *walker) fdinfo(links, fd int, limit int64) ([]byte, error) {
	name := "fdinfo/" + strconv.Itoa(fd)
	in, err := openAgain(links, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(in)
	var all []byte
	for {
		n, err := unix.Read(in, w.info[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		case limit <= maxFdinfoBytes:
			return w.info[:max(n, 0)], nil
		case n <= 0 || int64(len(all)) >= limit:
			return all, nil
		}
		all = append(all, w.info[:n]...)
	}
}
