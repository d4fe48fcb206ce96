// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// What a list of open files costs. The text of a link of /proc/PID/fd costs a microsecond, its
// fdinfo some more, and much more where the file has many locks: the kernel goes through all locks
// of a file for each descriptor of it, so that ten thousand descriptors of one image which hold a
// lock each would take it minutes. Descriptors of one process that have the same name are therefore
// read one by one only until some were alike.
const (
	// maxOpenFiles bounds the table; a busy hypervisor has some ten thousand.
	maxOpenFiles = 1 << 20
	// maxFdinfoBytes is enough for the lines before the locks, and some of those.
	maxFdinfoBytes = 4 << 10
	// maxAlike is how many descriptors of one process with one name are read one by one if all of
	// them are the same file. Two files have one name only where a mount hides another one.
	maxAlike = 8
	// censusBudget ends a list that takes too long; 20000 descriptors take about 0.1 s.
	censusBudget = 5 * time.Second
)

// errCut ends a list that is long enough.
var errCut = errors.New("the list of open files was cut")

// lister fills a Census.
type lister struct {
	c    *Census
	ctx  context.Context
	proc int // descriptor of /proc
	end  time.Time
	// cut says why the list was ended before its end, "" if it was not.
	cut string
	// mute are the mounts that did not answer.
	mute map[uint64]bool

	text [unix.PathMax + 1]byte
	info [maxFdinfoBytes]byte
}

// names are the descriptors of one process with one name.
type names struct {
	at    []int // in Census.files
	mixed bool  // they are not all the same file
}

// process adds the open files of one process. Its error is errCut or that of ctx.
func (l *lister) process(pid int, name string) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	fds, err := openDirectory(l.proc, name+"/fd")
	if err == nil {
		defer unix.Close(fds)
		seen := map[string]*names{}
		err = eachName(fds, func(fd string) error { return l.descriptor(pid, fds, fd, seen) })
	}
	switch {
	case errors.Is(err, errCut), l.ctx.Err() != nil:
		return err
	case err == nil:
		l.c.Processes++
	case vanished(err):
	case l.harmless(pid, name):
		l.c.Processes++
	default:
		l.c.Protected++
		l.c.hidden = append(l.c.hidden, pid)
	}
	return nil
}

// harmless reports whether a process has no disk open although its files cannot be listed: a thread
// of the kernel and a process that has ended have no files at all, and the first process of a host
// starts the others and runs no machine itself. What anybody may read of a process tells so.
func (l *lister) harmless(pid int, name string) bool {
	fd, err := openAgain(l.proc, name+"/stat", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, l.info[:])
	if err != nil {
		return false
	}
	if fileless(l.info[:max(0, n)]) {
		return true
	}
	if pid != 1 || !l.c.host.wholeHost() {
		return false
	}
	p, err := l.c.host.Process(l.ctx, pid)
	return err == nil && !p.Emulator()
}

// kernelThread is PF_KTHREAD of include/linux/sched.h.
const kernelThread = 0x00200000

// fileless reports whether a line of /proc/PID/stat is of a thread of the kernel or of a process that
// has ended. The name may hold anything, so what follows is behind the last parenthesis:
//
//	2 (kthreadd) S 0 0 0 0 -1 2129984 ...      state, parent, group, session, terminal, its group, flags
func fileless(stat []byte) bool {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return false
	}
	fields := bytes.Fields(stat[i+1:])
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	state := string(fields[0])
	return err == nil && (flags&kernelThread != 0 || state == "Z" || state == "X")
}

// descriptor adds one open file if it has a name and may be a disk.
func (l *lister) descriptor(pid, fds int, name string, seen map[string]*names) error {
	fd, err := strconv.Atoi(name)
	if err != nil || fd < 0 {
		return nil
	}
	switch {
	case len(l.c.files) >= maxOpenFiles:
		l.cut = fmt.Sprintf("more than %d files are open, the others were left out", maxOpenFiles)
		return errCut
	case fd%64 == 0 && time.Now().After(l.end):
		l.cut = fmt.Sprintf("listing open files took longer than %v, the others were left out", censusBudget)
		return errCut
	}
	n, err := unix.Readlinkat(fds, name, l.text[:])
	switch {
	case errors.Is(err, unix.ENAMETOOLONG):
		n = 0 // a name that the kernel does not tell: its inode does
	case err == nil && l.text[0] != '/':
		if string(l.text[:n]) == "anon_inode:kvm-vm" {
			l.c.machines[pid] = true
		}
		return nil
	case gone(err):
		return nil
	case err != nil:
		return err
	}
	text := string(l.text[:n])
	if boring(text) {
		return nil
	}
	same := seen[text]
	if same == nil {
		same = &names{mixed: text == "" || !l.c.host.live}
		seen[text] = same
	}
	if !same.mixed && len(same.at) >= maxAlike {
		return l.alike(fds, name, same)
	}
	return l.read(pid, fd, text, same)
}

// read reads one descriptor.
func (l *lister) read(pid, fd int, text string, same *names) error {
	f := OpenFile{PID: pid, FD: fd}
	f.Path, f.Deleted = strings.CutSuffix(text, " (deleted)")
	info, err := l.fdinfo(pid, fd)
	if gone(err) {
		return nil
	} else if err != nil {
		return err
	}
	f.fdinfo(info)
	if f.Ino == 0 && l.c.host.live {
		if err := l.through(&f); gone(err) {
			return nil
		}
	}
	if len(same.at) > 0 {
		a := l.c.files[same.at[0]]
		same.mixed = same.mixed || a.Ino != f.Ino || a.Mount != f.Mount
	}
	// The next file of the same name may be another one.
	same.mixed = same.mixed || f.Deleted || f.Ino == 0 || f.Mount == 0
	same.at = append(same.at, len(l.c.files))
	l.c.add(f)
	return nil
}

// alike takes in a descriptor of a file that is in the table often enough: only whether it is open
// for writing is new, which the permissions of the link tell (proc(5), /proc/pid/fd).
func (l *lister) alike(fds int, name string, same *names) error {
	if l.c.files[same.at[0]].Writing {
		return nil
	}
	var st unix.Stat_t
	err := unix.Fstatat(fds, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if gone(err) {
		return nil
	} else if err != nil {
		return err
	}
	if st.Mode&0o200 != 0 {
		for _, i := range same.at {
			l.c.files[i].Writing = true
		}
	}
	return nil
}

// fdinfo reads what the kernel tells about a descriptor. The result is good until the next call.
func (l *lister) fdinfo(pid, fd int) ([]byte, error) {
	name := strconv.Itoa(pid) + "/fdinfo/" + strconv.Itoa(fd)
	// Below the root of somebody else's evidence a name may be anything, a FIFO too.
	in, err := openAgain(l.proc, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/proc/" + name, Err: err}
	}
	defer unix.Close(in)
	for {
		n, err := unix.Read(in, l.info[:])
		if errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return nil, &fs.PathError{Op: "read", Path: "/proc/" + name, Err: err}
		}
		return l.info[:n], nil
	}
}

// through looks at the file itself, before Linux 5.14. The only error is that it was closed.
func (l *lister) through(f *OpenFile) error {
	if l.mute[f.Mount] {
		return nil
	}
	link := fmt.Sprintf("%s/proc/%d/fd/%d", l.c.host.root, f.PID, f.FD)
	st, err := diskio.WithinAt(l.ctx, link, processTimeout, func() (diskio.Stat, error) { return lookThrough(link) }, nil)
	switch {
	case gone(err):
		return err
	case err != nil:
		l.mute[f.Mount] = true // it is known by its name
	default:
		f.Ino, f.Dev = st.ID.Ino, st.ID.Dev
	}
	return nil
}

// gone reports whether a descriptor was closed meanwhile.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) }

// openDirectory opens a directory in at, and nothing else.
func openDirectory(at int, name string) (int, error) {
	fd, err := openAgain(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

func openAgain(at int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// eachName calls fn for each name in an open directory, until that returns an error.
func eachName(dir int, fn func(name string) error) error {
	buf := make([]byte, 8<<10)
	var list []string
	for {
		n, err := unix.ReadDirent(dir, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || n <= 0 {
			return err
		}
		_, _, list = unix.ParseDirent(buf[:n], -1, list[:0])
		for _, name := range list {
			if err := fn(name); err != nil {
				return err
			}
		}
	}
}
