// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// packUnit is the size of the pieces that an image is packed in, in bytes.
const packUnit = 512

// pageBytes is what a Disk keeps its content in.
const pageBytes = 4096

// Disk is an image in memory, which keeps what is not zero. It is for reading by any number.
type Disk struct {
	pages map[int64][]byte
	size  int64
}

// Size is its length in bytes.
func (d *Disk) Size() int64 { return d.size }

// ReadAt reads it.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= d.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > d.size-off {
		p, end = p[:d.size-off], io.EOF
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		part := p[done:min(len(p), done+int(pageBytes-at%pageBytes))]
		if page := d.pages[at/pageBytes]; page != nil {
			copy(part, page[at%pageBytes:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p), end
}

// Bytes gives all of it, for what wants to change it.
func (d *Disk) Bytes() []byte {
	all := make([]byte, d.size)
	for number, page := range d.pages {
		copy(all[number*pageBytes:], page)
	}
	return all
}

// Pack writes what is not zero of a disk into a compressed file: 8 bytes position in units of 512
// bytes, then 512 bytes. The last ones are always there, for its size.
func Pack(t testing.TB, disk, name string) {
	t.Helper()
	in, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	out := new(bytes.Buffer)
	z, err := gzip.NewWriterLevel(out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	b, zeros := make([]byte, packUnit), make([]byte, packUnit)
	for at := int64(0); at+packUnit <= st.Size(); at += packUnit {
		if _, err := in.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		if last := at+packUnit == st.Size(); !last && bytes.Equal(b, zeros) {
			continue
		}
		_, err := z.Write(append(binary.BigEndian.AppendUint64(nil, uint64(at/packUnit)), b...))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(z.Close(), os.MkdirAll(filepath.Dir(name), 0o755),
		os.WriteFile(name, out.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d bytes", name, out.Len())
}

// Unpack reads what Pack wrote.
func Unpack(t testing.TB, name string) *Disk {
	t.Helper()
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	d := &Disk{pages: make(map[int64][]byte)}
	for {
		var b [8 + packUnit]byte
		if _, err := io.ReadFull(z, b[:]); errors.Is(err, io.EOF) {
			return d
		} else if err != nil {
			t.Fatal(err)
		}
		at := int64(binary.BigEndian.Uint64(b[:8])) * packUnit
		page := d.pages[at/pageBytes]
		if page == nil {
			page = make([]byte, pageBytes)
			d.pages[at/pageBytes] = page
		}
		copy(page[at%pageBytes:], b[8:])
		d.size = max(d.size, at+packUnit)
	}
}
