// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vmdk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// The differences from qemu-img, as doc/formats/vmdk.md lists them. Should one go away in another
// version of qemu, the test fails, and the page is to be changed.
func TestDifferences(t *testing.T) {
	le := binary.LittleEndian
	sparse := made(t, "subformat=monolithicSparse", "3M", 0)
	imagetest.Qemu(t, "", "qemu-io", "-f", "vmdk", "-c", "write -q -P 5 0 3M", sparse)
	whole, dir := imagetest.File(t, sparse), testenv.DiskDir(t)
	flat := bytes.Repeat([]byte{1}, 4096)
	copy(flat[512:], bytes.Repeat([]byte{2}, 512))
	write(t, filepath.Join(dir, "flat"), flat)
	lines := func(extents string) []byte {
		return []byte("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n" + extents)
	}
	changed := func(fn func(p []byte, gd, gt int64)) []byte {
		p := bytes.Clone(whole)
		gd := int64(le.Uint64(p[56:])) * 512
		fn(p, gd, int64(le.Uint32(p[gd:]))*512)
		return p
	}
	for _, c := range []struct {
		name string
		data []byte
		// qemu is how many bytes of a disk qemu shows, and the first byte of it; ours is the same, with
		// -1 for an error.
		qemu, ours [2]int
	}{
		{"zero part", lines("RW 1 ZERO\nRW 1 FLAT \"flat\" 0\n"), [2]int{512, 1}, [2]int{1024, 0}},
		{"read-only part", lines("RDONLY 1 FLAT \"flat\" 0\nRW 1 FLAT \"flat\" 1\n"), [2]int{512, 2}, [2]int{1024, 1}},
		{"unknown part", lines("RW 1 VMFSRDM \"flat\"\nRW 1 FLAT \"flat\" 1\n"), [2]int{512, 2}, [2]int{-1, 0}},
		{"blank line", lines("\nRW 1 FLAT \"flat\" 0\n"), [2]int{1024, 1}, [2]int{512, 1}},
		{"grain away", changed(func(p []byte, _, gt int64) { le.PutUint32(p[gt:], 1<<30) }), [2]int{3 << 20, 0}, [2]int{3 << 20, -1}},
		{"table away", changed(func(p []byte, gd, _ int64) { le.PutUint32(p[gd:], 1<<30); p[8] &^= 2 }),
			[2]int{3 << 20, 0}, [2]int{3 << 20, -1}},
		{"table in the second directory", changed(func(p []byte, gd, _ int64) { le.PutUint32(p[gd:], 1<<30) }),
			[2]int{3 << 20, 0}, [2]int{3 << 20, 5}},
		{"directory away", changed(func(p []byte, _, _ int64) { le.PutUint64(p[56:], 1<<30); p[8] &^= 2 }),
			[2]int{3 << 20, 0}, [2]int{-1, 0}},
		{"flat file ends", lines("RW 9 FLAT \"flat\" 8\n"), [2]int{9 * 512, 0}, [2]int{9 * 512, -1}},
		{"parent without a name", bytes.Replace(whole, []byte("parentCID=ffffffff"), []byte("parentCID=12345678"), 1),
			[2]int{3 << 20, 5}, [2]int{3 << 20, 5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-")+".vmdk")
			write(t, path, c.data)
			want := imagetest.Content(t, path, "vmdk")
			if got := [2]int{len(want), int(want[0])}; got != c.qemu {
				t.Errorf("qemu-img shows %d bytes that begin with %d, and once %v", got[0], got[1], c.qemu)
			}
			if got, err := ours(t, path); got != c.ours {
				t.Errorf("we show %d bytes that begin with %d (%v), want %v", got[0], got[1], err, c.ours)
			}
		})
	}
}

// ours is how many bytes the disk has, and the first of them, with -1 for an error.
func ours(t *testing.T, path string) ([2]int, error) {
	data := imagetest.File(t, path)
	m, err := openAll(data, filepath.Dir(path))
	if err != nil {
		if !imagetest.Refusal(err) {
			t.Error(err)
		}
		return [2]int{-1, 0}, err
	}
	p := make([]byte, 1)
	if _, err := m.ReadAt(p, 0); errors.Is(err, image.ErrBroken) {
		return [2]int{int(m.Size()), -1}, err
	} else if err != nil {
		return [2]int{}, fmt.Errorf("unexpected: %w", err)
	}
	return [2]int{int(m.Size()), int(p[0])}, nil
}

// A version 3 extent that stands alone, one of a disk in several files, and a descriptor for which there
// is another file than qemu would take are refused by qemu, too.
func TestRefusedByBoth(t *testing.T) {
	testenv.Need(t, "qemu-img")
	dir := testenv.DiskDir(t)
	head := "version=1\nCID=1\nparentCID=ffffffff\n"
	bare := cowd(10, 5)
	clear(bare[512:1024])
	for name, data := range map[string][]byte{
		"bare": bare, "type": []byte(head + "createType=\"fullDevice\"\nRW 1 FLAT \"x\" 0\n"),
		"no type": []byte(head + "RW 1 FLAT \"x\" 0\n"), "no CID": []byte("version=1\ncreateType=\"vmfs\"\nRW 1 VMFS \"no CID\"\n"),
		"journal": nil,
	} {
		if data == nil {
			se := seSparse(100)
			se[512+24] = 1
			write(t, filepath.Join(dir, "se"), se)
			data = []byte(head + "createType=\"seSparse\"\nRW 100 SESPARSE \"se\"\n")
		}
		path := filepath.Join(dir, name)
		write(t, path, data)
		if !imagetest.Refused(t, path, "vmdk") {
			t.Errorf("qemu-img reads %s", name)
		}
		if _, err := openAll(data, dir); !imagetest.Refusal(err) {
			t.Errorf("%s: %v, want it to be refused", name, err)
		}
	}
}
