// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package lab

import "os"

// sinkBytes is how much of what follows on each other is written at once.
const sinkBytes = 1 << 20

// sink writes a sparse file: what nobody puts stays a hole. The first error stays and comes out at
// the end.
type sink struct {
	f   *os.File
	off int64 // place of buf
	buf []byte
	err error
}

func (s *sink) put(off int64, p []byte) {
	if len(s.buf) > 0 && (off != s.off+int64(len(s.buf)) || len(s.buf)+len(p) > sinkBytes) {
		s.flush()
	}
	if len(s.buf) == 0 {
		s.off = off
	}
	s.buf = append(s.buf, p...)
}

func (s *sink) flush() {
	if s.err == nil {
		_, s.err = s.f.WriteAt(s.buf, s.off)
	}
	s.buf = s.buf[:0]
}

// close writes the rest and sets the length of the file.
func (s *sink) close(size int64) error {
	s.flush()
	if s.err == nil {
		s.err = s.f.Truncate(size)
	}
	return s.err
}
