// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vpc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/vpc"
	"github.com/shisa-vm/shisa/internal/testenv"
)

const block = 2 << 20 // the blocks that qemu makes

// made has qemu make an image and scribble on it, and gives its bytes and those of its disk.
func made(t testing.TB, options, size string, scribbles int) (data, want []byte, path string) {
	t.Helper()
	return imagetest.Make(t, imagetest.Made{Format: "vpc", Options: options, Size: size,
		Scribbles: scribbles, Unit: block}, vpc.Open)
}

func open(t testing.TB, data []byte) *vpc.Disk {
	t.Helper()
	return imagetest.Opened(t, data, vpc.Open)
}

// TestAgainstQemu reads every kind of image that qemu-img makes, at odd sizes.
func TestAgainstQemu(t *testing.T) {
	for _, options := range []string{"", "force_size=on", "subformat=fixed", "subformat=fixed,force_size=on",
		"subformat=fixed,preallocation=full"} {
		for _, size := range []string{"512", "1000001", "6M", "11000320"} {
			t.Run(options+" "+size, func(t *testing.T) {
				data, want, path := made(t, options, size, 12)
				diskio.RequireUnchanged(t, path)
				imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) { return open(t, data), want })
				d := open(t, data)
				if len(d.Notes()) > 0 || d.Missing() != 0 {
					t.Errorf("Notes = %q, Missing = %d, want none", d.Notes(), d.Missing())
				}
				sameMap(t, d, imagetest.QemuMap(t, path, "vpc"))
			})
		}
	}
}

// sameMap holds the map of d against that of qemu. That of a fixed disk knows the holes of the file,
// which are not told apart here.
func sameMap(t *testing.T, d *vpc.Disk, want []imagetest.MapEntry) {
	t.Helper()
	var got []imagetest.MapEntry
	err := d.Map(t.Context(), 0, d.Size(), func(e image.Extent) error {
		m := imagetest.MapEntry{Start: int64(e.Guest), Length: e.Length, Present: true, Zero: e.Kind == image.Zero,
			Data: e.Kind == image.Data}
		if e.HasHost {
			host := int64(e.Host)
			m.Offset = &host
		}
		got = append(got, m)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d.Kind() == vpc.Fixed {
		var length int64
		for _, m := range want {
			length += m.Length
			if !m.Data || m.Offset == nil || *m.Offset != m.Start {
				t.Errorf("the map of qemu has %+v", m)
			}
		}
		want = []imagetest.MapEntry{want[0]}
		want[0].Length, want[0].Zero = length, false
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Map (-qemu +ours):\n%s", diff)
	}
}

// sum makes the checksum of the footer or header at off right.
func sum(p []byte, off, at, n int) {
	s := uint32(0)
	for i, b := range p[off : off+n] {
		if i < at || i >= at+4 {
			s += uint32(b)
		}
	}
	binary.BigEndian.PutUint32(p[off+at:], ^s)
}

func TestBroken(t *testing.T) {
	be := binary.BigEndian
	data, want, _ := made(t, "", "6M", 8)
	last := len(data) - 512
	for _, c := range []struct {
		name  string
		spoil func(p []byte) []byte
		kind  error  // of Open
		text  string // of the error or the note
	}{
		{"front footer", func(p []byte) []byte { p[30] ^= 1; return p }, nil, "the footer at the end is used"},
		{"front magic", func(p []byte) []byte { p[0] ^= 1; return p }, nil, "the footer at the end is used"},
		{"end footer", func(p []byte) []byte { p[last+30] ^= 1; return p }, nil, "its copy at the front is used"},
		{"no end", func(p []byte) []byte { return p[:last] }, nil, "its copy at the front is used"},
		{"both footers", func(p []byte) []byte { p[30] ^= 1; p[last+30] ^= 1; return p }, image.ErrInvalid, "checksum"},
		{"header's sum", func(p []byte) []byte { p[512+200] ^= 1; return p }, nil, "header at 0x200 has the checksum"},
		{"header's magic", func(p []byte) []byte { p[512] ^= 1; return p }, image.ErrInvalid, "cxsparse"},
		{"differencing", func(p []byte) []byte {
			be.PutUint32(p[60:], 4)
			sum(p, 0, 64, 512)
			return p
		}, image.ErrUnsupported, "a differencing disk"},
		{"unknown type", func(p []byte) []byte {
			be.PutUint32(p[60:], 9)
			sum(p, 0, 64, 512)
			return p
		}, image.ErrUnsupported, "type 9"},
		{"block of 3 bytes", func(p []byte) []byte { be.PutUint32(p[512+32:], 3); return p }, image.ErrInvalid, "blocks of 3"},
		{"few blocks", func(p []byte) []byte { be.PutUint32(p[512+28:], 1); return p }, image.ErrInvalid, "1 blocks"},
		{"table away", func(p []byte) []byte { be.PutUint64(p[512+16:], 1<<63); return p }, image.ErrInvalid, "block table"},
		{"header away", func(p []byte) []byte {
			be.PutUint64(p[16:], 1<<40)
			sum(p, 0, 64, 512)
			return p
		}, image.ErrInvalid, "past the end"},
		{"empty", func(p []byte) []byte { return p[:0] }, image.ErrInvalid, "less than a footer"},
		{"no image", func(p []byte) []byte { return make([]byte, 4096) }, image.ErrInvalid, "conectix"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := c.spoil(bytes.Clone(data))
			d, err := vpc.Open(bytes.NewReader(p), int64(len(p)))
			if imagetest.Failed(t, err, c.kind, c.text) {
				return
			}
			if notes := strings.Join(d.Notes(), "\n"); !strings.Contains(notes, c.text) {
				t.Errorf("Notes = %q, want %q", notes, c.text)
			}
			got := make([]byte, d.Size())
			if n, err := d.ReadAt(got, 0); err != nil {
				t.Errorf("ReadAt = %d, %v", n, err)
			}
			imagetest.Equal(t, "ReadAt", got, want)
		})
	}
}

// A block whose entry cannot be right is an error, and the others can be read.
func TestBrokenBlock(t *testing.T) {
	be := binary.BigEndian
	data, want, _ := made(t, "", "6M", 30)
	table := int(be.Uint64(data[512+16:]))
	for entry, text := range map[uint32]string{1 << 20: "past the end", 0: "copy of the footer", 2: "block table"} {
		p := bytes.Clone(data)
		be.PutUint32(p[table+4:], entry)
		d := open(t, p)
		got := make([]byte, len(want))
		n, err := d.ReadAt(got, 0)
		var broken *image.BlockError
		if !errors.As(err, &broken) || n != block || broken.Guest != block || !strings.Contains(err.Error(), text) {
			t.Errorf("ReadAt with entry %#x = %d, %v, want an error at %#x: %s", entry, n, err, block, text)
		}
		if _, err := d.ReadAt(got[2*block:], 2*block); err != nil {
			t.Error(err)
		}
		imagetest.Equal(t, "ReadAt behind it", got[2*block:], want[2*block:])
		last := image.Extent{}
		err = d.Map(t.Context(), 0, d.Size(), func(e image.Extent) error { last = e; return nil })
		if !errors.As(err, &broken) || int64(last.Guest)+last.Length != block {
			t.Errorf("Map with entry %#x = %v after %+v", entry, err, last)
		}
	}
}

// A fixed disk that was cut in front of its footer is said to lack bytes.
func TestCutFixed(t *testing.T) {
	data, want, _ := made(t, "subformat=fixed", "3M", 8)
	p := append(bytes.Clone(data[:1<<20]), data[len(data)-512:]...)
	d := open(t, p)
	if len(d.Notes()) != 1 {
		t.Errorf("Notes = %q, want one", d.Notes())
	}
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Error(err)
	}
	imagetest.Equal(t, "ReadAt", got[:1<<20], want[:1<<20])
	imagetest.Equal(t, "ReadAt", got[1<<20:], make([]byte, len(want)-1<<20))
	if d.Missing() != int64(len(want)-1<<20) {
		t.Errorf("Missing = %d, want %d", d.Missing(), len(want)-1<<20)
	}
}

// look does with an image whatever can be done.
func look(t *testing.T, data []byte) { imagetest.Look(t, data, vpc.Open) }

func TestSpoiled(t *testing.T) {
	data, _, _ := made(t, "", "40M", 3)
	end := int64(len(data))
	places := [][2]int64{{0, 96}, {512, 64}, {1536, 96}, {end - 512, 96}}
	imagetest.Spoil(t, data, places, testenv.Rounds(100, 1000, 20000), 16<<20, func(p []byte) { look(t, p) })
	// Most of all with a checksum that is right.
	imagetest.Spoil(t, data, places[:2], testenv.Rounds(100, 1000, 20000), 16<<20, func(p []byte) {
		sum(p, 0, 64, 512)
		look(t, p)
	})
}

func small(t testing.TB) []byte {
	p := make([]byte, 4096)
	be := binary.BigEndian
	copy(p, "conectix")
	be.PutUint64(p[16:], 512)
	copy(p[28:], "win ")
	be.PutUint64(p[48:], 2048)
	be.PutUint32(p[60:], 3)
	sum(p, 0, 64, 512)
	copy(p[512:], "cxsparse")
	be.PutUint64(p[512+16:], 1536)
	be.PutUint32(p[512+28:], 4)
	be.PutUint32(p[512+32:], 512)
	sum(p, 512, 36, 1024)
	for i, e := range []uint32{0xffffffff, 4, 0xffffffff, 6} {
		be.PutUint32(p[1536+4*i:], e)
	}
	return p
}

func fuzz(f *testing.F, fn func(t *testing.T, p []byte)) {
	p := small(f)
	f.Add(p)
	f.Add(p[3584:])
	fixed := bytes.Clone(p)
	binary.BigEndian.PutUint32(fixed[60:], 2)
	sum(fixed, 0, 64, 512)
	f.Add(append(make([]byte, 2048), fixed[:512]...))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<20 {
			return
		}
		before := bytes.Clone(p)
		fn(t, p)
		if len(p) >= 512 { // sums that are right let more of the rest be seen
			sum(p, 0, 64, 512)
			fn(t, p)
			copy(p, before[:512])
		}
		if !bytes.Equal(p, before) {
			t.Error("the input was changed")
		}
	})
}

func FuzzHeader(f *testing.F) {
	fuzz(f, func(t *testing.T, p []byte) {
		if d, err := vpc.Open(bytes.NewReader(p), int64(len(p))); err == nil {
			_ = fmt.Sprint(d.Kind(), d.Maker(), d.BlockBytes(), d.Notes())
		} else if !imagetest.Refusal(err) {
			t.Errorf("Open = %v", err)
		}
	})
}

func FuzzMap(f *testing.F) { fuzz(f, look) }

// The differences from qemu-img, as doc/formats/vpc.md lists them: what qemu refuses, and what it shows of
// a broken image.
func TestDifferences(t *testing.T) {
	be := binary.BigEndian
	data, want, path := made(t, "", "6M", 30)
	table := int(be.Uint64(data[512+16:]))
	content := func(p []byte) []byte {
		t.Helper()
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		if imagetest.Refused(t, path, "vpc") {
			return nil
		}
		return imagetest.Content(t, path, "vpc")
	}
	p := bytes.Clone(data)
	p[30] ^= 1
	if content(p) != nil {
		t.Error("qemu-img reads an image with a damaged copy of the footer")
	}
	p = bytes.Clone(data)
	be.PutUint32(p[table+4:], 1<<20)
	if content(p) != nil {
		t.Error("qemu-img reads an image with a block past the end of the file")
	}
	p = bytes.Clone(data)
	be.PutUint32(p[table+4:], 0)
	if got := content(p); len(got) != len(want) || bytes.Equal(got, want) {
		t.Error("qemu-img does not read a block that lies on the footer")
	}
	data, want, path = made(t, "subformat=fixed", "3M", 8)
	p = append(bytes.Clone(data[:1<<20]), data[len(data)-512:]...)
	if got := content(p); len(got) != len(want) || !bytes.HasPrefix(got[1<<20:], []byte("conectix")) {
		t.Error("qemu-img does not show the footer of a fixed disk that is cut")
	}
}
