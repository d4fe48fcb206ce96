// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"bytes"
	"errors"
	"io"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// compareStep is how much is read of both images at once; it shows in where qemu-img begins anew.
const compareStep = 2 << 20

// compare is qemu-img compare.
func (s *session) compare(argv []string) int {
	f := &imageFlags{cache: defaultCache}
	g := newGetopt(argv, "hf:F:T:pqsU", []longOption{
		{"help", false, 'h'}, {"object", true, optObject}, {"image-opts", false, optImageOpts},
		{"force-share", false, 'U'},
	}, s.env.Posix)
	for c := g.next(); c != optEnd; c = g.next() {
		if c == 's' {
			f.strict = true
			continue
		}
		if err := s.common(f, g, c, codeCannotOpen); err != nil {
			return codeOf(err)
		}
	}
	names := g.operands()
	if len(names) != 2 {
		return s.usage("Expecting two image file names")
	}
	p := &progress{s: s, shown: f.progress && !f.quiet}
	defer p.end()
	direct, ok := s.direct(f.cache)
	if !ok {
		return codeCannotOpen
	}
	c := &comparison{s: s, f: f, p: p}
	formats, given := []string{f.format, f.format2}, []bool{f.hasFormat, f.hasFormat2}
	for i := range c.side {
		gr, n, fl := s.openImage(names[i], formats[i], given[i], f, openFlags{noCache: direct})
		if fl != nil {
			s.reportOpen(names[i], fl)
			return codeCannotOpen
		}
		defer n.close()
		// Strict mode shows whether a piece ends at the end of the disk, progress how long each is.
		gr.coarse = !f.strict && !f.progress
		c.side[i] = compareSide{gr, n, names[i], nil}
	}
	return c.run()
}

// compareSide is one of two images.
type compareSide struct {
	g    *graph
	n    *node
	name string
	buf  []byte
}

type comparison struct {
	s    *session
	f    *imageFlags
	p    *progress
	side [2]compareSide
	// total is the larger of the two sizes.
	total int64
}

func (c *comparison) run() int {
	a, b := c.side[0].n.length, c.side[1].n.length
	c.total = max(a, b)
	c.p.add(0)
	if c.f.strict && a != b {
		c.tell("Strict mode: Image size mismatch!\n")
		return codeDiffers
	}
	off := int64(0)
	for off < min(a, b) {
		n, code := c.common(off)
		if code != codeOK {
			return code
		}
		off += n
		c.p.add(float32(n) / float32(c.total) * 100)
	}
	if a != b {
		c.tell("Warning: Image size mismatch!\n")
		longer := &c.side[0]
		if b > a {
			longer = &c.side[1]
		}
		for off < c.total {
			n, code := c.beyond(longer, off)
			if code != codeOK {
				return code
			}
			off += n
			c.p.add(float32(n) / float32(c.total) * 100)
		}
	}
	c.tell("Images are identical.\n")
	return codeOK
}

// tell prints the outcome, unless nothing shall be printed.
func (c *comparison) tell(format string, args ...any) {
	if !c.f.quiet {
		c.s.printf(format, args...)
	}
}

// common compares a piece at off that both images have, and tells how long it was.
func (c *comparison) common(off int64) (int64, int) {
	var st [2]status
	for i := range c.side {
		var code int
		if st[i], code = c.status(&c.side[i], off, c.side[i].n.length-off); code != codeOK {
			return 0, code
		}
	}
	n := min(st[0].n, st[1].n)
	if c.f.strict && st[0].flags != st[1].flags {
		c.tell("Strict mode: Offset %d block status mismatch!\n", off)
		return 0, codeDiffers
	}
	has := [2]bool{st[0].flags&allocated != 0, st[1].flags&allocated != 0}
	switch {
	case st[0].flags&st[1].flags&isZero != 0:
	case has[0] && has[1]:
		n = min(n, compareStep)
		for i := range c.side {
			if code := c.read(&c.side[i], off, n, st[i]); code != codeOK {
				return 0, code
			}
		}
		if at := firstDifference(c.side[0].buf, c.side[1].buf); at >= 0 {
			c.tell("Content mismatch at offset %d!\n", off+at)
			return 0, codeDiffers
		}
	case has[0] != has[1]:
		n = min(n, compareStep)
		i := 0
		if has[1] {
			i = 1
		}
		return n, c.wantZeros(&c.side[i], off, n, st[i])
	}
	return n, codeOK
}

// beyond looks at a piece of the longer image behind the end of the other.
func (c *comparison) beyond(side *compareSide, off int64) (int64, int) {
	st, code := c.status(side, off, c.total-off)
	if code != codeOK || st.flags&allocated == 0 || st.flags&isZero != 0 {
		return st.n, code
	}
	n := min(st.n, compareStep)
	return n, c.wantZeros(side, off, n, st)
}

func (c *comparison) status(side *compareSide, off, bytes int64) (status, int) {
	if c.s.ctx.Err() != nil {
		return status{}, codeInterrupted
	}
	st, err := side.g.statusAbove(side.n, off, bytes)
	if err != nil {
		c.s.report("Sector allocation test failed for %s", side.name)
		return st, codeCannotMap
	}
	return st, codeOK
}

// wantZeros reads a piece, which has to be all zeros.
func (c *comparison) wantZeros(side *compareSide, off, n int64, st status) int {
	if code := c.read(side, off, n, st); code != codeOK {
		return code
	}
	for i, b := range side.buf {
		if b != 0 {
			c.tell("Content mismatch at offset %d!\n", off+int64(i))
			return codeDiffers
		}
	}
	return codeOK
}

// read fills the buffer of side with n bytes of its disk at off, of which st is known.
func (c *comparison) read(side *compareSide, off, n int64, st status) int {
	if side.buf == nil {
		side.buf = make([]byte, compareStep)
	}
	side.buf = side.buf[:n]
	if err := readGuest(side.buf, off, st); err != nil {
		text := strerror(err)
		if errors.Is(err, qcow2.ErrEncrypted) {
			text = "the data is encrypted, and this program decrypts nothing"
		}
		c.s.report("Error while reading offset %d of %s: %s", off, side.name, text)
		return codeCannotRead
	}
	return codeOK
}

// readGuest reads from the layer that a block status came from.
func readGuest(p []byte, off int64, st status) error {
	n := st.from
	switch {
	case st.flags&isZero != 0 && st.flags&isData == 0:
		clear(p)
		return nil
	case n.encrypted:
		return qcow2.ErrEncrypted
	case st.flags&offsetValid != 0:
		r, size := st.file.bytes()
		return readPadded(r, size, p, st.off)
	}
	q := n.q
	if q.disk == nil {
		data, size := n.data.bytes()
		d, err := qcow2.NewDisk(q.r, q.size, q.h, qcow2.DiskOptions{Data: data, DataBytes: size})
		if err != nil {
			return err
		}
		q.disk = d
	}
	return readPadded(q.disk, q.h.SizeBytes, p, off)
}

// readPadded reads p; what is past the end are zeros.
func readPadded(r io.ReaderAt, size int64, p []byte, off int64) error {
	n := max(min(int64(len(p)), size-off), 0)
	got := 0
	if n > 0 {
		var err error
		got, err = r.ReadAt(p[:n], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	clear(p[got:])
	return nil
}

// firstDifference is the place of the first sector that differs, -1 if none does. Where the first
// sector of the piece is the same, qemu names the first that is not.
func firstDifference(a, b []byte) int64 {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := 0; i < len(a); i += sector {
		end := min(i+sector, len(a))
		if !bytes.Equal(a[i:end], b[i:end]) {
			return int64(i)
		}
	}
	return -1
}
