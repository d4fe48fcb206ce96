// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
)

// maxFstabBytes bounds /etc/fstab of a copy.
const maxFstabBytes = 1 << 20

// OpenDirectory opens a copy of a system's files, or a file system that is mounted, at dir. What is
// missing below /proc, /sys, /run and /dev of it is ErrNotCollected, and so is what lies where its
// /etc/fstab mounts something and the copy has nothing.
//
// A report of sos (https://github.com/sosreport/sos) is known by its directory sos_commands. It has a
// part of the files under their names, and what commands printed in sos_commands/PLUGIN/COMMAND;
// nothing that is missing in it is known to be missing on the system.
func OpenDirectory(ctx context.Context, dir string) (*Local, error) {
	return diskio.Within(ctx, 2*readTimeout, func() (*Local, error) { return openDirectory(ctx, dir) },
		func(l *Local) { l.Close() })
}

func openDirectory(ctx context.Context, dir string) (*Local, error) {
	real, err := diskio.RealPath(dir)
	if err != nil {
		return nil, err
	}
	l, err := newDirectory(ctx, real)
	if err != nil {
		return nil, err
	}
	report, err := l.report(ctx)
	if err != nil || report == "" {
		return l, err
	}
	if report != "/" { // the archive was unpacked one level deeper
		l.Close()
		if l, err = newDirectory(ctx, filepath.Join(real, report)); err != nil {
			return nil, err
		}
	}
	l.partial = true
	return l, nil
}

func newDirectory(ctx context.Context, real string) (*Local, error) {
	fd, err := unix.Open(real, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: real, Err: err}
	}
	if real == "/" {
		real = ""
	}
	l := &Local{kind: Directory, root: fd, base: real, avoid: map[string]string{},
		points: map[string]bool{}, absent: map[string]string{}, copied: !mounted(fd)}
	if err = l.know(ctx, real); err == nil {
		err = l.learnAbsent(ctx)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// mounted tells whether a directory is where a file system is mounted, whose files are no copies.
func mounted(fd int) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// report gives where in the directory a report of sos is: "/", or its only directory; "" if there is
// none.
func (l *Local) report(ctx context.Context) (string, error) {
	names, err := l.List(ctx, "/")
	if err != nil {
		return "", err
	}
	dirs := []string{}
	for _, n := range names {
		switch {
		case n.Name == "sos_commands" && n.Type.IsDir():
			return "/", nil
		case n.Type.IsDir():
			dirs = append(dirs, n.Name)
		}
	}
	if len(dirs) != 1 {
		return "", nil
	}
	_, err = l.List(ctx, "/"+dirs[0]+"/sos_commands")
	switch {
	case err == nil:
		return "/" + dirs[0], nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNotCollected), errors.Is(err, unix.ENOTDIR):
		return "", nil
	}
	return "", err
}

// learnAbsent notes the directories where the system mounts something and the copy is empty.
func (l *Local) learnAbsent(ctx context.Context) error {
	text, err := l.Read(ctx, "/etc/fstab", maxFstabBytes)
	if err != nil && !errors.Is(err, ErrTooLarge) {
		return ctx.Err() // nothing is known of its mounts: who reads fstab is told why
	}
	all, _ := linux.ParseFstab(text)
	for _, e := range all {
		if !e.Files() || e.Point == "/" || l.points[e.Point] {
			continue
		}
		names, err := l.List(ctx, e.Point)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
			l.absent[e.Point] = fmt.Sprintf("the system mounts %s at %s, which is empty here", e.Source, e.Point)
		}
	}
	return nil
}
