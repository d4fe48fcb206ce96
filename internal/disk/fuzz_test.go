// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// maxFuzzRead is how much may be read to look at a small image: as many tables as its map has
// entries below, and what is compared with it.
const maxFuzzRead = 32 << 20

// FuzzChain opens whatever bytes as an image on top of a sound base. Nothing may panic, hang, or
// change the files, and what the map calls zeros must read as zeros.
func FuzzChain(f *testing.F) {
	// Small clusters make small inputs, of which more can be tried.
	plain := overlayBytes(9, "base", "raw")
	f.Add(plain)
	f.Add(overlayBytes(9, "top", "qcow2"))
	f.Add(overlayBytes(9, `json:{"driver":"raw","file":{"filename":"base"}}`, ""))
	f.Add(overlayBytes(9, "../../etc/passwd", "raw"))
	withL2 := append(bytes.Clone(plain), make([]byte, 1024)...)
	for i, entry := range []uint64{1<<63 | 2048, 1, 1<<63 | 2560, 2560 | 1, 1<<62 | 2600} {
		at := 2048 + 8*i
		if i == 0 {
			at = 3 * 512
		}
		binary.BigEndian.PutUint64(withL2[at:], entry)
	}
	f.Add(withL2)
	f.Add(withL2[:3*512+8])
	descriptor := "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 99 FLAT \"base\" 5\nRW 9 ZERO\n"
	f.Add([]byte(descriptor))
	f.Add([]byte(strings.Replace(descriptor, "ffffffff\n", "2\nparentFileNameHint=\"base\"\n", 1)))
	f.Add([]byte(strings.Replace(descriptor, "base", "nbd:base", 1)))
	sparse := make([]byte, 4<<10)
	copy(sparse, "KDMV\x01\x00\x00\x00\x05\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x01")
	sparse[44], sparse[56] = 8, 2
	copy(sparse[512:], descriptor[:strings.Index(descriptor, "RW")])
	copy(sparse[1024:], "\x03\x00\x00\x00")
	copy(sparse[1536:], "\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00")
	f.Add(sparse)
	base := make([]byte, 1<<19)
	for i := range base {
		base[i] = byte(i>>9) | 1
	}
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "base"), base, 0o644); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		top := filepath.Join(dir, "top")
		if err := os.WriteFile(top, image, 0o644); err != nil {
			t.Fatal(err)
		}
		diskio.RequireUnchanged(t, top, filepath.Join(dir, "base"))
		n := testenv.Read(t, func() { look(t, top) })
		if n > maxFuzzRead {
			t.Errorf("an image of %d bytes made us read %d", len(image), n)
		}
	})
}

// look describes, maps and reads the image at top.
func look(t *testing.T, top string) {
	t.Helper()
	if _, err := Describe(t.Context(), []string{top}, Options{}); err != nil {
		t.Errorf("Describe() = %v", err)
	}
	c, err := Open(t.Context(), top, Options{})
	if err != nil {
		return
	}
	defer c.Close()
	budget := int64(8 << 20) // what is read to compare the map with
	buf := make([]byte, 64<<10)
	pos, n := int64(0), 0
	// Tables that all name the same table make a map that is much longer than the file, as in
	// qemu. It can be interrupted at any time.
	enough := errors.New("enough")
	err = c.Map(t.Context(), 0, 1<<40, func(e *Entry) error {
		if n++; n > 100000 {
			return enough
		}
		if int64(e.Start) != pos || e.Length <= 0 {
			t.Fatalf("Map() goes on with %+v, want %#x", *e, pos)
		}
		pos += e.Length
		if p := buf[:min(e.Length, int64(len(buf)))]; e.Zero && budget > 0 {
			budget -= int64(len(p))
			if _, err := c.ReadAt(p, int64(e.Start)); err != nil && err != io.EOF {
				t.Errorf("ReadAt(%#x), zero by the map, = %v", e.Start, err)
			} else if len(bytes.TrimLeft(p, "\x00")) > 0 {
				t.Errorf("ReadAt(%#x) is not zero, %+v", e.Start, *e)
			}
		}
		return nil
	})
	if want := min(c.Size(), 1<<40); err == nil && pos != want {
		t.Errorf("Map() ends at %#x, want %#x", pos, want)
	}
}
