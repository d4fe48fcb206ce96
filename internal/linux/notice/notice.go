// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package notice tells which names of a directory are taken away, and by whom, by fanotify(7) with the
// directory's handle and the name (Linux 5.9). It needs CAP_SYS_ADMIN, which also has the kernel tell the
// process. What other machines do to a directory that they share with this one is not seen.
//
// A process may have ended before its event is read, as rm has nearly always. Its command line is then known by a
// program in the kernel that writes down, as the system call begins, who takes a name away. Where the kernel does not
// load that, /proc is asked, and a descriptor of the process (Linux 5.15) says whether it was that one.
//
// Each event is (linux/fanotify.h):
//
//	 0  length of it all   4  version  6  length of this part   8  mask   16  descriptor, none here   20  process
//	24  records: type, padding, length (2 bytes); of type 2: file system (8), length of the handle, its
//	    type, the handle, the name with a zero at its end; of type 4: a descriptor of the process
package notice

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

// ErrNot: the kernel cannot tell, or this user may not ask.
var ErrNot = errors.New("nobody can tell who removes names here")

// Kind is what happened to a name.
type Kind string

// The kinds.
const (
	Removed Kind = "removed"
	// MovedAway: it has another name, here or elsewhere.
	MovedAway Kind = "moved_away"
	// Appeared: there is a new file of that name, or one was moved to it.
	Appeared Kind = "appeared"
	// Gone: the directory itself is not there any more.
	Gone Kind = "gone"
	// Lost: there was more than could be told; look at everything.
	Lost Kind = "lost"
)

// Event is something that happened.
type Event struct {
	Time time.Time
	Kind Kind
	// Name is in the directory, "" for Gone and Lost.
	Name string
	// PID is the process, 0 if it is not known.
	PID int
	// Command is its command line, and Unit the unit of systemd that it belongs to; Command is "" if it has
	// ended, and nobody wrote that down.
	Command string
	Unit    string
}

// Watcher watches one directory.
type Watcher struct {
	f    *os.File
	host *linux.Host
	// removers knows processes that have ended, nil where it cannot be had: then unsure says why. told: the kernel
	// gives descriptors of processes.
	removers *probe.Removers
	unsure   error
	told     bool
	buf      []byte
	rest     []byte
	now      func() time.Time
}

const (
	metadataBytes = 24
	dfidName      = unix.FAN_EVENT_INFO_TYPE_DFID_NAME
	masks         = unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO | unix.FAN_CREATE | unix.FAN_DELETE_SELF |
		unix.FAN_MOVE_SELF | unix.FAN_ONDIR
)

// Watch begins to watch a directory. What happens from then on is told. The error is ErrNot where the kernel does
// not tell.
func Watch(dir string, host *linux.Host) (*Watcher, error) {
	const flags = unix.FAN_CLASS_NOTIF | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK | unix.FAN_REPORT_DFID_NAME |
		unix.FAN_UNLIMITED_QUEUE
	fd, err := unix.FanotifyInit(flags|unix.FAN_REPORT_PIDFD, unix.O_RDONLY|unix.O_CLOEXEC)
	told := err == nil
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.FanotifyInit(flags, unix.O_RDONLY|unix.O_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: fanotify_init: %w", ErrNot, err)
	}
	w := &Watcher{f: os.NewFile(uintptr(fd), "fanotify"), host: host, told: told, buf: make([]byte, 64<<10), now: time.Now}
	// Before the mark: who removes a name is written down sooner than its event is told.
	w.removers, w.unsure = probe.OpenRemovers()
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_ONLYDIR, masks, unix.AT_FDCWD, dir); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			err = &fs.PathError{Op: "watch", Path: dir, Err: err}
		} else {
			err = fmt.Errorf("%w: %s: fanotify_mark: %w", ErrNot, dir, err)
		}
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Unsure says why the command of a process that has ended is not known, nil where it is.
func (w *Watcher) Unsure() error { return w.unsure }

// Close ends watching; who waits in Next is woken up.
func (w *Watcher) Close() error {
	err := w.f.Close()
	for len(w.rest) >= metadataBytes {
		e, _, n := parse(w.rest)
		e.forget()
		w.rest = w.rest[n:]
	}
	if w.removers != nil {
		err = errors.Join(err, w.removers.Close())
	}
	return err
}

// Next waits for something to happen. The error is that of ctx, or of the kernel.
func (w *Watcher) Next(ctx context.Context) (Event, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		for len(w.rest) >= metadataBytes {
			e, ok, n := parse(w.rest)
			w.rest = w.rest[n:]
			if ok {
				e.Time = w.now().UTC()
				w.who(ctx, &e)
			}
			e.forget()
			if ok {
				return e.Event, nil
			}
		}
		n, err := w.f.Read(w.buf)
		if ctx.Err() != nil {
			return Event{}, ctx.Err()
		}
		if err != nil {
			return Event{}, err
		}
		w.rest = w.buf[:n]
	}
}

// who tells what the process is that an event names.
func (w *Watcher) who(ctx context.Context, e *parsed) {
	if e.PID <= 0 {
		return
	}
	// What does not remove is not written down, and an entry may be of another process that had the number.
	if (e.Kind == Removed || e.Kind == MovedAway) && w.removers != nil {
		r, ok, err := w.removers.Of(e.PID)
		if err == nil && ok {
			e.Command, e.Unit = commandOf(&r), unitOf(&r)
			return
		}
	}
	d, err := w.host.Detail(ctx, e.PID)
	if err != nil || w.told && !e.lives() {
		return // it has ended, and the number may be another's by now
	}
	e.Command, e.Unit = d.Command(), d.Place.Unit
	if len(d.Args) > 0 {
		e.Command = join(d.Args)
	}
}

// commandOf is the command line of a process, or its name where it has none, as a thread of the kernel.
func commandOf(r *probe.Remover) string {
	if len(r.Command) == 0 {
		return r.Comm
	}
	s := join(r.Command)
	if r.Cut {
		s += "..."
	}
	return s
}

func unitOf(r *probe.Remover) string {
	groups := slices.Clone(r.Groups)
	slices.Reverse(groups)
	return linux.ParseCgroup("0::/" + strings.Join(groups, "/") + "\n").Unit
}

// maxCommand bounds what is told of a command line.
const maxCommand = 1000

func join(args []string) string {
	s := ""
	for i, a := range args {
		if i > 0 {
			s += " "
		}
		if s += a; len(s) > maxCommand {
			return s[:maxCommand] + "..."
		}
	}
	return s
}

// parsed is an event with the descriptor of its process, -1 where there is none.
type parsed struct {
	Event
	pidfd int
}

// forget closes the descriptor.
func (e *parsed) forget() {
	if e.pidfd >= 0 {
		unix.Close(e.pidfd)
		e.pidfd = -1
	}
}

// lives tells whether the process has not ended, so that what its number says is said of it.
func (e *parsed) lives() bool {
	return e.pidfd >= 0 && unix.PidfdSendSignal(e.pidfd, 0, nil, 0) == nil
}

// parse reads one event and tells how long it is. It is not ok if it says nothing that is told.
func parse(b []byte) (e parsed, ok bool, n int) {
	e.pidfd = -1
	n = int(binary.NativeEndian.Uint32(b))
	head := int(binary.NativeEndian.Uint16(b[6:]))
	if n < metadataBytes || n > len(b) || head < metadataBytes || head > n || b[4] != unix.FANOTIFY_METADATA_VERSION {
		return parsed{Event{Kind: Lost}, -1}, true, len(b) // it is not understood, and nor is what follows
	}
	mask := binary.NativeEndian.Uint64(b[8:])
	e.Name, e.pidfd = records(b[head:n])
	e.PID = int(int32(binary.NativeEndian.Uint32(b[20:])))
	switch {
	case mask&unix.FAN_Q_OVERFLOW != 0:
		e.Kind, e.Name = Lost, ""
		return e, true, n
	case mask&(unix.FAN_DELETE_SELF|unix.FAN_MOVE_SELF) != 0:
		e.Kind, e.Name = Gone, ""
		return e, true, n
	}
	switch {
	case e.Name == "" || e.Name == ".":
		return e, false, n
	case mask&unix.FAN_DELETE != 0:
		e.Kind = Removed
	case mask&unix.FAN_MOVED_FROM != 0:
		e.Kind = MovedAway
	case mask&(unix.FAN_CREATE|unix.FAN_MOVED_TO) != 0:
		e.Kind = Appeared
	default:
		return e, false, n
	}
	return e, true, n
}

// records takes the name and the descriptor of the process out of the records of an event.
func records(b []byte) (name string, pidfd int) {
	const head, handle, pidfdBytes = 4, 12 + 8, 8
	pidfd = -1
	for len(b) >= head {
		n := int(binary.NativeEndian.Uint16(b[2:]))
		if n < head || n > len(b) {
			return name, pidfd
		}
		switch {
		case b[0] == dfidName && n >= handle:
			at := handle + int(binary.NativeEndian.Uint32(b[12:]))
			if at >= handle && at <= n {
				text, _, _ := bytes.Cut(b[at:n], []byte{0})
				name = string(text)
			}
		case b[0] == unix.FAN_EVENT_INFO_TYPE_PIDFD && n >= pidfdBytes:
			// FAN_NOPIDFD where it has ended, FAN_EPIDFD where none could be made.
			pidfd = max(int(int32(binary.NativeEndian.Uint32(b[4:]))), -1)
		}
		b = b[n:]
	}
	return name, pidfd
}
