// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2

import (
	"cmp"
	"io"
)

// windowBytes is how much of a table is held at once while it is walked from front to back.
const windowBytes = 64 << 10

// window reads a file mostly forwards. What lies past its end reads as zeros, as in qemu, and costs
// neither memory nor a read: a header of 512 bytes may name a table of many megabytes.
type window struct {
	r    io.ReaderAt
	size int64
	step int64 // bytes read at once, 0 for windowBytes
	off  int64 // what buf holds begins here
	buf  []byte
	zero [64]byte
}

// at gives the n bytes at off, valid until the next call; n is at most windowBytes.
func (w *window) at(off int64, n int) ([]byte, error) {
	if off >= w.off && off-w.off <= int64(len(w.buf)-n) {
		return w.buf[off-w.off:][:n], nil
	}
	if off >= w.size && n <= len(w.zero) {
		return w.zero[:n], nil
	}
	step := cmp.Or(w.step, windowBytes)
	want := max(n, int(min(step, max(w.size-off, 0))))
	if cap(w.buf) < want {
		w.buf = make([]byte, want)
	}
	w.buf = w.buf[:want]
	if _, err := readPadded(w.r, w.buf, off, w.size); err != nil {
		w.buf = w.buf[:0]
		return nil, err
	}
	w.off = off
	return w.buf[:n], nil
}

// text gives the n bytes at off up to the first zero, as qemu takes C strings.
func (w *window) text(off int64, n int) (string, error) {
	// Past the end of the file only zeros follow.
	n = int(min(int64(n), max(w.size-off, 0)))
	if n == 0 {
		return "", nil
	}
	p, err := w.at(off, n)
	if err != nil {
		return "", err
	}
	return cString(p), nil
}

// cString is p up to its first zero byte.
func cString(p []byte) string {
	for i, c := range p {
		if c == 0 {
			return string(p[:i])
		}
	}
	return string(p)
}
