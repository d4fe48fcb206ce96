// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// What goes over the sockets. Each is of the kind SOCK_SEQPACKET, which keeps messages apart. A
// message is a sequence of numbers (eight bytes, little endian) and strings (a number and so many
// bytes). Both ends are this program, so that there are no versions; all the same neither believes
// the other: what does not parse ends the child.
//
//	call      op, numbers of the op               parent to child, on a lane
//	answer    results, or an error                child to parent
//	read      disk, offset, length                child to parent, on a feed
//	fed       bytes that were read, an error      parent to child; the bytes are in shared memory
const (
	// maxMessage bounds a message; the longest is an attribute of 64 KiB, and unix(7)
	// allows about 200 KiB without more privileges.
	maxMessage = 160 << 10
	// pageBytes is how much of a list goes into one message; what begins below it is completed.
	pageBytes = 16 << 10
	// windowBytes is the shared memory of each lane and feed.
	windowBytes = 1 << 20
)

// errMessage: a message does not parse.
var errMessage = errors.New("the reader of the guest's disk sent what makes no sense")

// message is one that is being written or read.
type message struct {
	b   []byte
	bad bool
}

func (m *message) putInt(v int64)     { m.b = binary.LittleEndian.AppendUint64(m.b, uint64(v)) }
func (m *message) putUint(v uint64)   { m.b = binary.LittleEndian.AppendUint64(m.b, v) }
func (m *message) putString(s string) { m.putInt(int64(len(s))); m.b = append(m.b, s...) }
func (m *message) putBool(v bool) {
	if v {
		m.putInt(1)
		return
	}
	m.putInt(0)
}

func (m *message) uint() uint64 {
	if len(m.b) < 8 {
		m.bad = true
		return 0
	}
	v := binary.LittleEndian.Uint64(m.b)
	m.b = m.b[8:]
	return v
}

func (m *message) int() int64 { return int64(m.uint()) }
func (m *message) bool() bool { return m.uint() != 0 }

func (m *message) string() string {
	n := m.uint()
	if n > uint64(len(m.b)) {
		m.bad = true
		return ""
	}
	s := string(m.b[:n])
	m.b = m.b[n:]
	return s
}

// putError writes err, which may be nil. Of an error other than *files.Error only the text is kept.
func (m *message) putError(err error) {
	known := new(files.Error)
	switch {
	case err == nil:
		m.putInt(0)
	case errors.Is(err, io.EOF):
		m.putInt(1)
	case errors.As(err, &known):
		m.putInt(2)
		m.putString(clip(known.What))
		m.putInt(known.Offset)
		m.putUint(uint64(known.Ino))
		m.putString(clip(fmt.Sprint(known.Err)))
	default:
		m.putInt(3)
		m.putString(clip(err.Error()))
	}
}

// clip bounds the text of an error, which may quote the guest.
func clip(s string) string { return s[:min(len(s), 2000)] }

// error reads an error; it is nil where there was none.
func (m *message) error() error {
	switch m.int() {
	case 0:
		return nil
	case 1:
		return io.EOF
	case 2:
		e := &files.Error{What: m.string(), Offset: m.int(), Ino: files.Ino(m.uint())}
		e.Err = errors.New(m.string())
		return e
	case 3:
		return errors.New(m.string())
	}
	m.bad = true
	return errMessage
}

func (m *message) putTime(t files.Time) {
	m.putInt(t.Seconds)
	m.putInt(int64(t.Nanoseconds))
}

func (m *message) time() files.Time {
	return files.Time{Seconds: m.int(), Nanoseconds: uint32(m.int())}
}

func (m *message) putStat(s *files.Stat) {
	m.putUint(uint64(s.Ino))
	m.putInt(int64(s.Mode))
	m.putInt(int64(s.Links))
	m.putInt(int64(s.UID))
	m.putInt(int64(s.GID))
	m.putInt(s.Size)
	m.putInt(s.Sectors)
	m.putInt(int64(s.Major))
	m.putInt(int64(s.Minor))
	for _, t := range []files.Time{s.Atime, s.Mtime, s.Ctime, s.Birth, s.Deleted} {
		m.putTime(t)
	}
	m.putInt(int64(s.Generation))
	m.putInt(int64(s.Flags))
	m.putInt(int64(s.Project))
}

func (m *message) stat() *files.Stat {
	s := &files.Stat{Ino: files.Ino(m.uint()), Mode: uint32(m.int()), Links: uint32(m.int()),
		UID: uint32(m.int()), GID: uint32(m.int()), Size: m.int(), Sectors: m.int(),
		Major: uint32(m.int()), Minor: uint32(m.int())}
	for _, t := range []*files.Time{&s.Atime, &s.Mtime, &s.Ctime, &s.Birth, &s.Deleted} {
		*t = m.time()
	}
	s.Generation, s.Flags, s.Project = uint32(m.int()), uint32(m.int()), uint32(m.int())
	m.bad = m.bad || s.Size < 0 || s.Sectors < 0 || s.Sectors > math.MaxInt64/512
	return s
}

func (m *message) putExtent(e files.Extent) {
	m.putInt(e.Offset)
	m.putInt(e.Length)
	m.putInt(e.Volume)
	m.putBool(e.Unwritten)
	m.putBool(e.Shared)
}

func (m *message) extent() files.Extent {
	e := files.Extent{Offset: m.int(), Length: m.int(), Volume: m.int(), Unwritten: m.bool(),
		Shared: m.bool()}
	m.bad = m.bad || !inside(e.Offset, e.Length)
	return e
}

func (m *message) putOwner(o files.Owner) {
	m.putInt(o.Range.Offset)
	m.putInt(o.Range.Length)
	m.putString(string(o.Use))
	m.putUint(uint64(o.Ino))
	m.putInt(o.File)
	m.putString(clip(o.What))
}

func (m *message) owner() files.Owner {
	o := files.Owner{Range: files.Range{Offset: m.int(), Length: m.int()},
		Use: files.Use(m.string()), Ino: files.Ino(m.uint()), File: m.int(), What: m.string()}
	m.bad = m.bad || !inside(o.Range.Offset, o.Range.Length)
	return o
}

// inside reports whether a range begins and ends where something can be.
func inside(off, length int64) bool {
	return off >= 0 && length >= 0 && off <= math.MaxInt64-length
}

// send sends a message over a socket, and receive takes one; both wait. Receive gives io.EOF when
// the other end is gone.
func send(fd int, b []byte) error {
	for {
		_, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR:
		case err == unix.EPIPE || err == unix.ECONNRESET:
			return io.EOF
		default:
			return err
		}
	}
}

func receive(fd int, buf []byte) (*message, error) {
	for {
		n, _, flags, _, err := unix.Recvmsg(fd, buf, nil, 0)
		switch {
		case err == unix.EINTR:
		case err == unix.ECONNRESET:
			return nil, io.EOF
		case err != nil:
			return nil, err
		case n == 0:
			return nil, io.EOF
		case flags&unix.MSG_TRUNC != 0:
			return nil, errMessage
		default:
			return &message{b: buf[:n]}, nil
		}
	}
}
