// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vdi_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/vdi"
	"github.com/shisa-vm/shisa/internal/testenv"
)

const block = 1 << 20

// made has qemu make an image and scribble on it, and gives its bytes and those of its disk.
func made(t testing.TB, options, size string, scribbles int) (data, want []byte, path string) {
	t.Helper()
	return imagetest.Make(t, imagetest.Made{Format: "vdi", Options: options, Size: size,
		Scribbles: scribbles, Unit: block}, vdi.Open)
}

func open(t testing.TB, data []byte) *vdi.Disk {
	t.Helper()
	return imagetest.Opened(t, data, vdi.Open)
}

// TestAgainstQemu reads both kinds of images that qemu-img makes, at odd sizes.
func TestAgainstQemu(t *testing.T) {
	for _, c := range []struct {
		options, size string
		scribbles     int
	}{
		{"static=off", "8M", 6}, {"static=off", "1000001", 3}, {"static=off", "512", 1}, {"static=off", "20M", 0},
		{"static=on", "5M", 4}, {"static=on", "3000320", 4},
	} {
		t.Run(c.options+" "+c.size, func(t *testing.T) {
			data, want, path := made(t, c.options, c.size, c.scribbles)
			diskio.RequireUnchanged(t, path)
			imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) { return open(t, data), want })
			d := open(t, data)
			if fixed := strings.Contains(c.options, "static=on"); d.Fixed() != fixed {
				t.Errorf("Fixed = %v, want %v", d.Fixed(), fixed)
			}
			if d.Fixed() {
				return // there qemu looks for holes of the file, which are not told apart here
			}
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
			if diff := cmp.Diff(imagetest.QemuMap(t, path, "vdi"), got); diff != "" || err != nil {
				t.Errorf("Map (-qemu +ours), %v:\n%s", err, diff)
			}
		})
	}
}

func TestBroken(t *testing.T) {
	le := binary.LittleEndian
	data, _, _ := made(t, "static=off", "5M", 3)
	for name, c := range map[string]struct {
		spoil func(p []byte) []byte
		kind  error
		text  string
	}{
		"magic":   {func(p []byte) []byte { p[0x40] = 0; return p }, image.ErrInvalid, "magic"},
		"version": {func(p []byte) []byte { p[0x44] = 2; return p }, image.ErrUnsupported, "version 1.2"},
		"blocks":  {func(p []byte) []byte { p[0x178] = 1; return p }, image.ErrUnsupported, "blocks of"},
		"parent":  {func(p []byte) []byte { p[0x1b8] = 1; return p }, image.ErrUnsupported, "differencing"},
		"place":   {func(p []byte) []byte { p[0x154] = 1; return p }, image.ErrInvalid, "the map is at"},
		"size":    {func(p []byte) []byte { p[0x173] = 1; return p }, image.ErrInvalid, "a disk of"},
		"many":    {func(p []byte) []byte { p[0x183] = 0xff; return p }, image.ErrInvalid, "a disk of"},
		"cut":     {func(p []byte) []byte { return p[:512] }, image.ErrInvalid, "past the end"},
		"empty":   {func(p []byte) []byte { return nil }, image.ErrInvalid, "magic"},
	} {
		p := c.spoil(bytes.Clone(data))
		if _, err := vdi.Open(bytes.NewReader(p), int64(len(p))); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("Open with a broken %s = %v, want %v (%q)", name, err, c.kind, c.text)
		}
	}
	for entry, text := range map[uint32]string{1 << 20: "past the end", 0xfffffffd: "past the end"} {
		p := bytes.Clone(data)
		le.PutUint32(p[0x200+4:], entry)
		var broken *image.BlockError
		if n, err := open(t, p).ReadAt(make([]byte, 2*block), 0); n != block || !errors.As(err, &broken) ||
			broken.Guest != block || !strings.Contains(err.Error(), text) {
			t.Errorf("ReadAt with entry %#x = %d, %v", entry, n, err)
		}
	}
	p := bytes.Clone(data)
	le.PutUint32(p[0x158:], 0)
	le.PutUint32(p[0x200:], 0)
	if n, err := open(t, p).ReadAt(make([]byte, block), 0); n != 0 || !errors.Is(err, image.ErrBroken) {
		t.Errorf("ReadAt of a block on the header = %d, %v", n, err)
	}
}

// look does with an image whatever can be done.
func look(t *testing.T, data []byte) { imagetest.Look(t, data, vdi.Open) }

func TestSpoiled(t *testing.T) {
	data, _, _ := made(t, "static=off", "5M", 3)
	imagetest.Spoil(t, data, [][2]int64{{0x40, 0x190}, {0x150, 0x40}, {0x200, 20}}, testenv.Rounds(200, 2000, 20000), 16<<20,
		func(p []byte) { look(t, p) })
}

func fuzz(f *testing.F, fn func(t *testing.T, p []byte)) {
	le := binary.LittleEndian
	p := make([]byte, 1024+700)
	for off, v := range map[int]uint32{0x40: 0xbeda107f, 0x44: 0x10001, 0x4c: 1, 0x154: 512, 0x158: 1024, 0x168: 512,
		0x170: 3<<20 + 512, 0x178: 1 << 20, 0x180: 4} {
		le.PutUint32(p[off:], v)
	}
	for i, e := range []uint32{0xffffffff, 0xfffffffe, 1, 0} {
		le.PutUint32(p[512+4*i:], e)
	}
	f.Add(p)
	f.Add(p[:600])
	f.Fuzz(func(t *testing.T, p []byte) { imagetest.Unchanged(t, p, fn) })
}

func FuzzHeader(f *testing.F) {
	fuzz(f, func(t *testing.T, p []byte) {
		d, err := vdi.Open(bytes.NewReader(p), int64(len(p)))
		if err == nil && d.Size() < 0 || err != nil && !imagetest.Refusal(err) {
			t.Errorf("Open = %v", err)
		}
	})
}

func FuzzMap(f *testing.F) { fuzz(f, look) }

// The differences from qemu-img, as doc/formats/vdi.md lists them.
func TestDifferences(t *testing.T) {
	le := binary.LittleEndian
	data, _, path := made(t, "static=off", "5M", 3)
	content := func(spoil func(p []byte)) []byte {
		t.Helper()
		p := bytes.Clone(data)
		spoil(p)
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		return imagetest.Content(t, path, "vdi")
	}
	if got := content(func(p []byte) { le.PutUint32(p[0x200:], 1<<20) }); !bytes.Equal(got[:block], make([]byte, block)) {
		t.Error("qemu-img does not show zeros for a block past the end of the file")
	}
	if got := content(func(p []byte) { le.PutUint32(p[0x158:], 0); le.PutUint32(p[0x200:], 0) }); got[0x44] != 1 {
		t.Error("qemu-img does not show the header for a block that lies on it")
	}
}
