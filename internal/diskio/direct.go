// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"io"
	"unsafe"
)

const (
	// directAlign is what reads past the page cache are aligned to: the largest sector of any disk.
	directAlign = 4096
	// maxBounce bounds the buffer of one read that is not aligned.
	maxBounce = 1 << 20
)

func aligned(n uintptr) bool { return n%directAlign == 0 }

// readDirect reads past the page cache: as it is where everything is aligned, and through a buffer
// of its own where something is not.
func (f *File) readDirect(p []byte, off int64) (int, error) {
	if len(p) == 0 || off < 0 || aligned(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) &&
		aligned(uintptr(off)) && aligned(uintptr(len(p))) {
		return f.f.ReadAt(p, off)
	}
	whole := min(maxBounce, (len(p)+3*directAlign)&^(directAlign-1))
	buf := make([]byte, whole+directAlign)
	if odd := int(uintptr(unsafe.Pointer(unsafe.SliceData(buf))) % directAlign); odd != 0 {
		buf = buf[directAlign-odd:]
	}
	buf = buf[:whole]
	done := 0
	for done < len(p) {
		at := off + int64(done)
		skip := int(at % directAlign)
		want := min(whole, (skip+len(p)-done+directAlign-1)&^(directAlign-1))
		n, err := f.f.ReadAt(buf[:want], at-int64(skip))
		if n > skip {
			done += copy(p[done:], buf[skip:n])
		}
		switch {
		case done == len(p):
			return done, nil
		case errors.Is(err, io.EOF) || err == nil && n < want:
			return done, io.EOF
		case err != nil:
			return done, err
		}
	}
	return done, nil
}
