// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// fault is an error in qemu's words: one message, and hints that are printed below it.
type fault struct {
	msg  string
	hint string // whole lines
	// format is the name of an image format that is recognised but cannot be read here; "" if the
	// fault is another one.
	format string
	// bare: it is about the command line, so the name of an image has no place before it.
	bare bool
}

func (f *fault) Error() string { return f.msg }

func faultf(format string, args ...any) *fault { return &fault{msg: fmt.Sprintf(format, args...)} }

// errnoFault is a message with the text of a system error behind it.
func errnoFault(err error, format string, args ...any) *fault {
	return faultf("%s: %s", fmt.Sprintf(format, args...), strerror(err))
}

// within puts f behind a prefix, keeping its hints.
func (f *fault) within(prefix string) *fault {
	if f == nil {
		return nil
	}
	g := *f
	g.msg = prefix + f.msg
	return &g
}

// errnoOf is the system error behind err. qemu turns whatever else goes wrong with a file into EIO.
func errnoOf(err error) syscall.Errno {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return syscall.EIO
}

// strerror is the text of the C library for the system error behind err: that of package syscall
// with a capital letter.
func strerror(err error) string {
	text := errnoOf(err).Error()
	if text == "" {
		return text
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
