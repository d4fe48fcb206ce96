// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxRecordBytes is more than a record of /dev/kmsg has (PRINTK_MESSAGE_MAX is 2048).
	maxRecordBytes = 8 << 10
	// maxMessages bounds what is read at once: the log of a machine is at most some ten thousand.
	maxMessages = 1 << 17
)

// Message is one that the kernel wrote to its log.
type Message struct {
	Seq   int64
	Since time.Duration // from the start of the machine
	Level int           // of syslog(3): 0 to 7
	Text  string        // the message alone, without the names of devices that may follow it
}

// Log is the kernel's log from a moment on.
type Log struct{ file *os.File }

// OpenLog begins to listen now: what was written before is not given. It is ErrUnavailable where
// this user may not read the log.
func OpenLog() (*Log, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) {
		err = errors.Join(err, ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("open /dev/kmsg: %w", err)
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		return nil, errors.Join(fmt.Errorf("go to the end of /dev/kmsg: %w", err), unix.Close(fd))
	}
	return &Log{os.NewFile(uintptr(fd), "/dev/kmsg")}, nil
}

// Read gives what was written since the last call that has one of the words in it: a name of a
// device, as a whole word. Without words it gives all. lost is set where the kernel overwrote
// messages before they were read.
func (l *Log) Read(words ...string) (all []Message, lost bool, err error) {
	// By the raw descriptor: nothing is waited for.
	conn, err := l.file.SyscallConn()
	if err != nil {
		return nil, false, err
	}
	record := make([]byte, maxRecordBytes)
	for range maxMessages {
		var n int
		var readErr error
		if err := conn.Control(func(fd uintptr) { n, readErr = unix.Read(int(fd), record) }); err != nil {
			return all, lost, err
		}
		switch {
		case errors.Is(readErr, unix.EAGAIN):
			return all, lost, nil
		case errors.Is(readErr, unix.EPIPE):
			lost = true
			continue
		case errors.Is(readErr, unix.EINTR):
			continue
		case readErr != nil:
			return all, lost, fmt.Errorf("read /dev/kmsg: %w", readErr)
		}
		m, ok := parseMessage(record[:n])
		if !ok {
			return all, lost, fmt.Errorf("/dev/kmsg gave %.80q", record[:n])
		}
		named := func(w string) bool { return hasWord(m.Text, w) }
		if len(words) == 0 || slices.ContainsFunc(words, named) {
			all = append(all, m)
		}
	}
	return all, true, nil
}

// Close ends it.
func (l *Log) Close() error { return l.file.Close() }

// parseMessage reads a record of /dev/kmsg: "level,sequence,microseconds,flags[,...];text" and
// lines that begin with a blank after that (Documentation/ABI/testing/dev-kmsg).
func parseMessage(record []byte) (m Message, ok bool) {
	line, _, _ := bytes.Cut(record, []byte{'\n'})
	head, text, found := strings.Cut(string(line), ";")
	fields := strings.Split(head, ",")
	if !found || len(fields) < 4 {
		return m, false
	}
	var n [3]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(fields[i], 10, 64); err != nil || n[i] < 0 {
			return m, false
		}
	}
	return Message{Seq: n[1], Since: time.Duration(n[2]) * time.Microsecond, Level: int(n[0] & 7),
		Text: text}, true
}

// hasWord tells whether a word stands in a text, not as a part of a longer one: loop1 is not in
// loop12, and it is in (loop1): and in loop1-8.
func hasWord(text, word string) bool {
	for from := 0; ; {
		i := strings.Index(text[from:], word)
		if i < 0 || word == "" {
			return false
		}
		begin, end := from+i, from+i+len(word)
		if !inWord(text, begin-1) && !inWord(text, end) {
			return true
		}
		from = begin + 1
	}
}

func inWord(text string, i int) bool {
	if i < 0 || i >= len(text) {
		return false
	}
	c := text[i]
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}
