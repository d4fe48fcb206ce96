// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
)

// Seen is what the kernel shows of a mounted disk, each thing as it says it.
type Seen struct {
	Options string // of the mount, from mountinfo
	Super   string // of the file system, from there
	// What system calls on the mount end with, 0 for well: stat and statfs of the mount point, a
	// list of its names, 4 KiB written to a new file that never gets a name.
	Stat, Statfs, List, Write unix.Errno
	// ReadOnly: statfs says so (ST_RDONLY).
	ReadOnly bool
	// Free, Available and Inodes are what statfs counts as free: bytes, bytes for others than root,
	// and inodes.
	Free, Available, Inodes int64
	// Sys are the files below /sys/fs that have something to say about errors, by name.
	Sys map[string]string
}

// Look tells what the kernel shows of the disk. It touches the mount, so it hangs with it.
func (d *Disk) Look() (Seen, error) {
	var s Seen
	if err := d.lookAtTable(&s); err != nil {
		return s, err
	}
	s.Stat = errnoOf(unix.Stat(d.Mount, new(unix.Stat_t)))
	var st unix.Statfs_t
	s.Statfs = errnoOf(unix.Statfs(d.Mount, &st))
	s.ReadOnly = st.Flags&unix.ST_RDONLY != 0
	s.Free, s.Available = int64(st.Bfree)*st.Bsize, int64(st.Bavail)*st.Bsize
	s.Inodes = int64(st.Ffree)
	_, err := os.ReadDir(d.Mount)
	s.List = errnoOf(err)
	s.Write = errnoOf(tryToWrite(d.Mount))
	return s, d.lookAtSys(&s)
}

// lookAtTable takes what the table of mounts says. It touches nothing.
func (d *Disk) lookAtTable(s *Seen) error {
	mounts, err := linux.Open("").Mounts(context.Background(), 0)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Point == d.Mount {
			s.Options, s.Super = m.Options, m.Super
			return nil
		}
	}
	return fmt.Errorf("%s is not mounted", d.Mount)
}

// tryToWrite writes into a file without a name.
func tryToWrite(dir string) error {
	fd, err := unix.Open(dir, unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, make([]byte, blockBytes))
	return errors.Join(err, unix.Close(fd))
}

// sysDirs are the directories below /sys/fs that a file system has.
func (d *Disk) sysDirs() ([]string, error) {
	if d.Type != "btrfs" {
		return []string{"/sys/fs/" + d.Type + "/" + d.Name}, nil
	}
	devices, err := filepath.Glob("/sys/fs/btrfs/*/devices/" + d.Name)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, dev := range devices {
		fs := filepath.Dir(filepath.Dir(dev))
		dirs = append(dirs, fs, fs+"/devinfo/1")
	}
	return dirs, nil
}

// telling are the names of the files of those directories that are read.
func telling() []string {
	return []string{"errors_count", "warning_count", "msg_count", "first_error_func",
		"first_error_errcode", "first_error_time", "last_error_func", "last_error_errcode",
		"error/fail_at_unmount", "error/metadata/EIO/max_retries", "error_stats", "missing"}
}

func (d *Disk) lookAtSys(s *Seen) error {
	s.Sys = map[string]string{}
	dirs, err := d.sysDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		for _, name := range telling() {
			text, err := os.ReadFile(dir + "/" + name)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			s.Sys[name] = strings.Join(strings.Fields(string(text)), " ")
		}
	}
	return nil
}
