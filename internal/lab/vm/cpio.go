// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
)

// archive writes a cpio archive in the form that Linux unpacks at its start, "newc": Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst.
//
//	"070701" | 13 numbers of 8 hex digits | name NUL | 0..3 NUL | data | 0..3 NUL | next
//	ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check
//
// Header with name, and data, are filled up to 4 bytes each. "TRAILER!!!" is the last name.
type archive struct {
	w    *bufio.Writer
	ino  uint32
	made map[string]bool // the names in it
	err  error
}

const (
	cpioMagic   = "070701"
	cpioHeader  = 110 // bytes
	cpioTrailer = "TRAILER!!!"

	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), made: map[string]bool{"": true}}
}

// dir adds a directory and those above it, if they are not there.
func (a *archive) dir(name string) {
	name = inner(name)
	if a.made[name] {
		return
	}
	a.dir(path.Dir("/" + name))
	a.entry(name, modeDir|0o755, 0, strings.NewReader(""))
}

// link adds a symbolic link.
func (a *archive) link(name, to string) {
	a.dir(path.Dir(name))
	a.entry(inner(name), modeLink|0o777, int64(len(to)), strings.NewReader(to))
}

// file adds a file of so many bytes.
func (a *archive) file(name string, perm uint32, sizeBytes int64, data io.Reader) {
	a.dir(path.Dir(name))
	a.entry(inner(name), modeFile|perm, sizeBytes, data)
}

// inner is a name as it stands in the archive: without a slash before it, "" for the root.
func inner(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

func (a *archive) entry(name string, mode uint32, sizeBytes int64, data io.Reader) {
	switch {
	case a.err != nil:
		return
	case a.made[name]:
		a.err = fmt.Errorf("cpio: %q is there already", name)
		return
	case sizeBytes > math.MaxUint32:
		a.err = fmt.Errorf("cpio: %q has %d bytes, more than the format has room for", name, sizeBytes)
		return
	}
	a.made[name] = true
	a.ino++
	a.header(name, a.ino, mode, sizeBytes)
	n, err := io.Copy(a.w, io.LimitReader(data, sizeBytes))
	if err == nil && n < sizeBytes {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		a.err = fmt.Errorf("cpio: add %q: %w", name, errors.Join(err, a.err))
		return
	}
	a.fill(sizeBytes)
}

func (a *archive) header(name string, ino, mode uint32, sizeBytes int64) {
	links := 1
	if mode&modeDir == modeDir {
		links = 2
	}
	_, err := fmt.Fprintf(a.w, cpioMagic+"%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		ino, mode, 0, 0, links, 0, sizeBytes, 0, 0, 0, 0, len(name)+1, 0, name)
	a.err = errors.Join(a.err, err)
	a.fill(int64(cpioHeader + len(name) + 1))
}

// fill writes NULs after n bytes, up to a multiple of 4.
func (a *archive) fill(n int64) {
	if _, err := a.w.WriteString("\x00\x00\x00"[:-n&3]); err != nil {
		a.err = errors.Join(a.err, err)
	}
}

// close ends the archive and tells the first thing that went wrong.
func (a *archive) close() error {
	if a.err != nil {
		return a.err
	}
	a.header(cpioTrailer, 0, 0, 0)
	return errors.Join(a.err, a.w.Flush())
}
