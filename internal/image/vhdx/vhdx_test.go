// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vhdx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/vhdx"
	"github.com/shisa-vm/shisa/internal/testenv"
)

const mib = 1 << 20

func open(t testing.TB, data []byte) *vhdx.Disk {
	t.Helper()
	return imagetest.Opened(t, data, vhdx.Open)
}

// made has qemu make an image and scribble on it, and gives its bytes and those of its disk.
func made(t testing.TB, options, size string, scribbles int) (data, want []byte, path string) {
	t.Helper()
	return imagetest.Make(t, imagetest.Made{Format: "vhdx", Options: options, Size: size,
		Scribbles: scribbles, Unit: mib}, vhdx.Open)
}

// TestAgainstQemu reads every kind of image that qemu-img makes, at odd sizes.
func TestAgainstQemu(t *testing.T) {
	for _, c := range []struct{ options, size string }{
		{"", "9M"}, {"", "1000001"}, {"block_size=1M", "512"}, {"block_size=1M", "5243392"},
		{"block_size=2M,log_size=3M", "7M"}, {"block_size=1M,block_state_zero=off", "6M"},
		{"subformat=fixed", "5M"}, {"subformat=fixed,preallocation=full", "3M"}, {"block_size=32M", "33M"},
	} {
		t.Run(c.options+" "+c.size, func(t *testing.T) {
			data, want, path := made(t, c.options, c.size, 9)
			diskio.RequireUnchanged(t, path)
			imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) { return open(t, data), want })
			d := open(t, data)
			if len(d.Notes()) > 0 || d.Log() != (vhdx.Log{}) || d.SectorBytes() != 512 {
				t.Errorf("Notes = %q, Log = %+v, sectors of %d bytes", d.Notes(), d.Log(), d.SectorBytes())
			}
			if fixed := strings.Contains(c.options, "fixed"); d.Fixed() != fixed {
				t.Errorf("Fixed = %v, want %v", d.Fixed(), fixed)
			}
			// qemu 7.2 does not know what is allocated in an image of this format: all of it is one
			// range of data without an offset.
			m := imagetest.QemuMap(t, path, "vhdx")
			if len(m) != 1 || m[0].Length != d.Size() || !m[0].Data || m[0].Zero || m[0].Offset != nil {
				t.Errorf("the map of qemu is %+v: it knows more than it did", m)
			}
		})
	}
}

// The words for bitmaps of sectors stand between those of blocks: with blocks of 256 MiB every 16.
func TestManyBlocks(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(testenv.DiskDir(t), "disk.vhdx")
	imagetest.Qemu(t, "", "qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=256M", path, "64G")
	args := []string{"-f", "vhdx"}
	places := []int64{15 << 28, 16 << 28, 17<<28 + 512, 255 << 28}
	for i, p := range places {
		args = append(args, "-c", fmt.Sprintf("write -q -P %d %d 1k", 1+i, p))
	}
	imagetest.Qemu(t, "", "qemu-io", append(args, path)...)
	f, err := diskio.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := vhdx.Open(f, f.Size())
	if err != nil {
		t.Fatal(err)
	}
	for i, off := range places {
		p := make([]byte, 2048)
		if _, err := d.ReadAt(p, off-512); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 2048)
		copy(want[512:], bytes.Repeat([]byte{byte(1 + i)}, 1024))
		imagetest.Equal(t, "ReadAt", p, want)
	}
}

// sum makes the checksum of the structure p right.
func sum(p []byte) {
	clear(p[4:8])
	binary.LittleEndian.PutUint32(p[4:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
}

const (
	head1, head2 = 64 << 10, 128 << 10
	regi1, regi2 = 192 << 10, 256 << 10
	headLen      = 4 << 10
	tableLen     = 64 << 10
)

// places of an image, as its region table has them.
type places struct{ bat, meta int64 }

func placesOf(data []byte) places {
	le := binary.LittleEndian
	var p places
	for i := range 2 {
		e := data[regi1+16+32*i:]
		if e[0] == 0x66 {
			p.bat = int64(le.Uint64(e[16:]))
		} else {
			p.meta = int64(le.Uint64(e[16:]))
		}
	}
	return p
}

// item gives the metadata with that GUID's first byte.
func (pl places) item(data []byte, first byte) []byte {
	le := binary.LittleEndian
	for i := range 5 {
		if e := data[pl.meta+32+32*int64(i):]; e[0] == first {
			return data[pl.meta+int64(le.Uint32(e[16:])):]
		}
	}
	return nil
}

func TestBroken(t *testing.T) {
	le := binary.LittleEndian
	data, want, _ := made(t, "block_size=1M", "6M", 8)
	pl := placesOf(data)
	region := func(p []byte, fn func(e []byte)) {
		for i := range 2 {
			if e := p[regi1+16+32*i:]; e[0] == 0x66 {
				fn(e)
			}
		}
		sum(p[regi1 : regi1+tableLen])
	}
	older, newer := head1, head2
	if le.Uint64(data[head1+8:]) > le.Uint64(data[head2+8:]) {
		older, newer = newer, older
	}
	for _, c := range []struct {
		name  string
		spoil func(p []byte)
		kind  error
		text  string
	}{
		{"magic", func(p []byte) { p[0] = 0 }, image.ErrInvalid, "vhdxfile"},
		{"newer header", func(p []byte) { p[newer+100] ^= 1 }, nil, "not valid: the other one is used"},
		{"older header", func(p []byte) { p[older+100] ^= 1 }, nil, "not valid: the other one is used"},
		{"both headers", func(p []byte) { p[older+100] ^= 1; p[newer] ^= 1 }, image.ErrInvalid, "neither of the two headers"},
		{"version 2", func(p []byte) { p[newer+66] = 2; sum(p[newer : newer+headLen]) }, image.ErrUnsupported, "version 2"},
		{"same number", func(p []byte) {
			copy(p[newer+8:newer+16], p[older+8:])
			sum(p[newer : newer+headLen])
			p[older+20] ^= 1
			sum(p[older : older+headLen])
		}, image.ErrInvalid, "same number"},
		{"region table", func(p []byte) { p[regi1+100] ^= 1 }, nil, "the region table at 0x30000 is not valid"},
		{"both region tables", func(p []byte) { p[regi1+100] ^= 1; p[regi2+100] ^= 1 }, image.ErrInvalid, "region tables"},
		{"unknown region", func(p []byte) { region(p, func(e []byte) { e[1] ^= 1; e[28] = 1 }) }, image.ErrUnsupported, "2dc27666-f623"},
		{"region away", func(p []byte) { region(p, func(e []byte) { e[23] = 0x7f }) }, image.ErrInvalid, "does not lie within"},
		{"region on region", func(p []byte) { region(p, func(e []byte) { le.PutUint64(e[16:], uint64(pl.meta)) }) },
			image.ErrInvalid, "overlaps"},
		{"many regions", func(p []byte) { le.PutUint32(p[regi1+8:], 1<<31); sum(p[regi1 : regi1+tableLen]) },
			image.ErrInvalid, "entries"},
		{"no metadata", func(p []byte) { p[pl.meta] = 0 }, image.ErrInvalid, "no table of metadata"},
		{"unknown metadata", func(p []byte) { p[pl.meta+32] ^= 1 }, image.ErrUnsupported, "the metadata"},
		{"differencing", func(p []byte) { pl.item(p, 0x37)[4] |= 2 }, image.ErrUnsupported, "differencing"},
		{"block of 3 MiB", func(p []byte) { le.PutUint32(pl.item(p, 0x37), 3*mib) }, image.ErrInvalid, "blocks of 3145728"},
		{"large disk", func(p []byte) { le.PutUint64(pl.item(p, 0x24), 1<<50) }, image.ErrInvalid, "a disk of"},
		{"small table", func(p []byte) { le.PutUint64(pl.item(p, 0x24), 1<<45) }, image.ErrInvalid, "block table has"},
		{"odd sectors", func(p []byte) { le.PutUint32(pl.item(p, 0x1d), 1024) }, image.ErrInvalid, "sectors of 1024"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := bytes.Clone(data)
			c.spoil(p)
			d, err := vhdx.Open(bytes.NewReader(p), int64(len(p)))
			if imagetest.Failed(t, err, c.kind, c.text) {
				return
			}
			if notes := strings.Join(d.Notes(), "\n"); !strings.Contains(notes, c.text) {
				t.Errorf("Notes = %q, want %q", notes, c.text)
			}
			got := make([]byte, d.Size())
			if _, err := d.ReadAt(got, 0); err != nil {
				t.Error(err)
			}
			imagetest.Equal(t, "ReadAt", got, want)
		})
	}
}

// Sectors of 4096 bytes change how many blocks one bitmap is for.
func TestLargeSectors(t *testing.T) {
	data, want, _ := made(t, "block_size=1M", "6M", 8)
	binary.LittleEndian.PutUint32(placesOf(data).item(data, 0x1d), 4096)
	imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) { return open(t, data), want })
}

// A block whose entry cannot be right is an error, and the others can be read.
func TestBrokenBlock(t *testing.T) {
	data, want, _ := made(t, "block_size=1M", "6M", 20)
	pl := placesOf(data)
	for entry, text := range map[uint64]string{
		1<<40 | 6: "within the file", 6: "within the file", uint64(pl.bat) | 6: "overlaps", 1<<20 | 6: "overlaps",
		7<<20 | 7: "in part", 4: "no state 4", 1<<63 | 6: "within the file",
	} {
		p := bytes.Clone(data)
		binary.LittleEndian.PutUint64(p[pl.bat+8:], entry)
		d := open(t, p)
		got := make([]byte, len(want))
		n, err := d.ReadAt(got, 0)
		var broken *image.BlockError
		if !errors.As(err, &broken) || n != mib || broken.Guest != mib || !strings.Contains(err.Error(), text) {
			t.Errorf("ReadAt with entry %#x = %d, %v, want an error at %#x: %s", entry, n, err, mib, text)
		}
		if _, err := d.ReadAt(got[2*mib:], 2*mib); err != nil {
			t.Error(err)
		}
		imagetest.Equal(t, "ReadAt behind it", got[2*mib:], want[2*mib:])
	}
	for state := range uint64(6) {
		if state == 4 {
			continue
		}
		p := bytes.Clone(data)
		binary.LittleEndian.PutUint64(p[pl.bat+8:], 7<<20|state)
		got := make([]byte, mib)
		if _, err := open(t, p).ReadAt(got, mib); err != nil {
			t.Errorf("state %d: %v", state, err)
		}
		imagetest.Equal(t, "ReadAt", got, make([]byte, mib))
	}
}

// look does with an image whatever can be done.
func look(t *testing.T, data []byte) { imagetest.Look(t, data, vhdx.Open) }

// TestSpoiled changes bytes of the metadata, with checksums that are right or wrong.
func TestSpoiled(t *testing.T) {
	data, _, _ := made(t, "block_size=1M", "6M", 3)
	pl := placesOf(data)
	spots := [][2]int64{{head1, 96}, {head2, 96}, {regi1, 96}, {pl.meta, 32 + 5*32}, {pl.meta + tableLen, 48}, {pl.bat, 64}}
	imagetest.Spoil(t, data, spots, testenv.Rounds(50, 300, 5000), 32<<20, func(p []byte) { look(t, p) })
	imagetest.Spoil(t, data, spots, testenv.Rounds(100, 1000, 20000), 32<<20, func(p []byte) {
		sum(p[head1 : head1+headLen])
		sum(p[head2 : head2+headLen])
		sum(p[regi1 : regi1+tableLen])
		look(t, p)
	})
}

// The differences from qemu-img, as doc/formats/vhdx.md lists them, beside those of the log: what qemu
// refuses, and what of it is read here.
func TestDifferences(t *testing.T) {
	le := binary.LittleEndian
	data, want, path := made(t, "block_size=1M", "6M", 8)
	pl := placesOf(data)
	for name, spoil := range map[string]func(p []byte){
		"region table": func(p []byte) { p[regi1+100] ^= 1 },
		"block away":   func(p []byte) { le.PutUint64(p[pl.bat+8*5:], 1<<40|6) },
		"sectors":      func(p []byte) { le.PutUint32(pl.item(p, 0x1d), 4096) },
	} {
		p := bytes.Clone(data)
		spoil(p)
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		if !imagetest.Refused(t, path, "vhdx") {
			t.Errorf("%s: qemu-img reads the image, and once refused it", name)
		}
		got := make([]byte, 5*mib)
		if _, err := open(t, p).ReadAt(got, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		imagetest.Equal(t, name, got, want[:5*mib])
	}
}
