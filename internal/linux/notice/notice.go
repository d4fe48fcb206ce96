// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package notice tells which names of a directory are taken away, and by whom, by fanotify(7) with the
// directory's handle and the name (Linux 5.9). It needs CAP_SYS_ADMIN, which also has the kernel tell the
// process. What other machines do to a directory that they share with this one is not seen.
//
// Each event is (linux/fanotify.h):
//
//	 0  length of it all   4  version  6  length of this part   8  mask   16  descriptor, none here   20  process
//	24  records: type, padding, length (2 bytes); of type 2: file system (8), length of the handle, its
//	    type, the handle, the name with a zero at its end
package notice

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
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
	// Command is its command line, and Unit the unit of systemd that it belongs to; "" if it was gone
	// before it could be looked at.
	Command string
	Unit    string
}

// Watcher watches one directory.
type Watcher struct {
	f    *os.File
	host *linux.Host
	buf  []byte
	rest []byte
	now  func() time.Time
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
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_DFID_NAME|
		unix.FAN_UNLIMITED_QUEUE, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%w: fanotify_init: %w", ErrNot, err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_ONLYDIR, masks, unix.AT_FDCWD, dir); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil, &fs.PathError{Op: "watch", Path: dir, Err: err}
		}
		return nil, fmt.Errorf("%w: %s: fanotify_mark: %w", ErrNot, dir, err)
	}
	return &Watcher{f: os.NewFile(uintptr(fd), "fanotify"), host: host, buf: make([]byte, 64<<10), now: time.Now}, nil
}

// Close ends watching; who waits in Next is woken up.
func (w *Watcher) Close() error { return w.f.Close() }

// Next waits for something to happen. The error is that of ctx, or of the kernel.
func (w *Watcher) Next(ctx context.Context) (Event, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		for len(w.rest) >= metadataBytes {
			e, ok, n := parse(w.rest)
			w.rest = w.rest[n:]
			if !ok {
				continue
			}
			e.Time = w.now().UTC()
			w.who(ctx, &e)
			return e, nil
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

// who looks at the process, as long as it is there.
func (w *Watcher) who(ctx context.Context, e *Event) {
	if e.PID <= 0 {
		return
	}
	d, err := w.host.Detail(ctx, e.PID)
	if err != nil {
		return // it is not known any more
	}
	e.Command, e.Unit = d.Command(), d.Place.Unit
	if len(d.Args) > 0 {
		e.Command = join(d.Args)
	}
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

// parse reads one event and tells how long it is. It is not ok if it says nothing that is told.
func parse(b []byte) (e Event, ok bool, n int) {
	n = int(binary.NativeEndian.Uint32(b))
	head := int(binary.NativeEndian.Uint16(b[6:]))
	if n < metadataBytes || n > len(b) || head < metadataBytes || head > n || b[4] != unix.FANOTIFY_METADATA_VERSION {
		return Event{Kind: Lost}, true, len(b) // it is not understood, and nor is what follows
	}
	mask := binary.NativeEndian.Uint64(b[8:])
	e.PID = int(int32(binary.NativeEndian.Uint32(b[20:])))
	switch {
	case mask&unix.FAN_Q_OVERFLOW != 0:
		return Event{Kind: Lost}, true, n
	case mask&(unix.FAN_DELETE_SELF|unix.FAN_MOVE_SELF) != 0:
		e.Kind = Gone
		return e, true, n
	}
	e.Name = name(b[head:n])
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

// name takes the name out of the records of an event.
func name(b []byte) string {
	const head, handle = 4, 12 + 8
	for len(b) >= head {
		n := int(binary.NativeEndian.Uint16(b[2:]))
		if n < head || n > len(b) {
			return ""
		}
		if b[0] == dfidName && n >= handle {
			at := handle + int(binary.NativeEndian.Uint32(b[12:]))
			if at < handle || at > n {
				return ""
			}
			text, _, _ := bytes.Cut(b[at:n], []byte{0})
			return string(text)
		}
		b = b[n:]
	}
	return ""
}
