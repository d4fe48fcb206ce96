// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vmdk_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/vmdk"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// look does with an image whatever can be done; all its extents are the file data itself.
func look(t *testing.T, data []byte) {
	r := bytes.NewReader(data)
	m, err := vmdk.Open(r, r.Size())
	if err != nil {
		if !imagetest.Refusal(err) {
			t.Errorf("Open = %v", err)
		}
		return
	}
	files := make([]vmdk.File, len(m.Extents))
	for i := range files {
		files[i] = vmdk.File{R: r, Size: r.Size()}
	}
	d, err := m.Disk(files)
	if err != nil {
		if !imagetest.Refusal(err) {
			t.Errorf("Disk = %v", err)
		}
		return
	}
	imagetest.Walk(t, d, 300, imagetest.Broken)
}

func TestSpoiled(t *testing.T) {
	sparse := made(t, "zeroed_grain=on", "40M", 9)
	over := append(footed(imagetest.File(t, packed(t, sparse))), 0)
	over = over[:len(over)-1]
	le := binary.LittleEndian
	for _, data := range [][]byte{imagetest.File(t, sparse), over, cowd(100, 5), seSparse(40000)} {
		end := int64(len(data))
		spots := [][2]int64{{0, 80}, {512, 350}}
		switch string(data[:4]) {
		case "KDMV":
			gd := int64(le.Uint64(data[48:])) * 512
			gt := int64(le.Uint32(data[gd:])) * 512
			spots = append(spots, [2]int64{gd, 8}, [2]int64{gt, 64}, [2]int64{end - 1536, 16}, [2]int64{end - 1024, 80})
			grain := int64(le.Uint32(data[gt:])) * 512
			spots = append(spots, [2]int64{grain, 40})
		case "COWD":
			spots = append(spots, [2]int64{3 * 512, 8}, [2]int64{4 * 512, 64})
		default:
			spots = [][2]int64{{0, 208}, {512, 32}, {1024, 24}, {10 * 512, 200}}
			header := []byte("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"seSparse\"\nRW 40000 SESPARSE \"x\"\n")
			imagetest.Spoil(t, data, spots, testenv.Rounds(60, 500, 10000), 64<<20, func(p []byte) {
				m := parse(t, header)
				d, err := m.Disk([]vmdk.File{{R: bytes.NewReader(p), Size: end}})
				if err == nil {
					imagetest.Walk(t, d, 300, imagetest.Broken)
				} else if !imagetest.Refusal(err) {
					t.Errorf("Disk = %v", err)
				}
			})
			continue
		}
		imagetest.Spoil(t, data, spots, testenv.Rounds(60, 500, 10000), 64<<20, func(p []byte) { look(t, p) })
	}
}

// small is a sparse image with grains of one sector; packed ones are those of a stream-optimised one.
func small(flags uint32, compression uint16) []byte {
	le := binary.LittleEndian
	p := make([]byte, 8*512)
	copy(p, "KDMV")
	le.PutUint32(p[4:], 1)
	le.PutUint32(p[8:], flags)
	le.PutUint64(p[12:], 9)
	le.PutUint64(p[20:], 1)
	le.PutUint64(p[28:], 1)
	le.PutUint64(p[36:], 1)
	le.PutUint32(p[44:], 5)
	le.PutUint64(p[48:], 3)
	le.PutUint64(p[56:], 2)
	le.PutUint16(p[77:], compression)
	copy(p[512:], "version=1\nCID=5\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n")
	for _, gd := range []int{2 * 512, 3 * 512} {
		le.PutUint32(p[gd:], 4)
		le.PutUint32(p[gd+4:], 5)
	}
	for i, e := range []uint32{6, 0, 1, 7, 6} {
		le.PutUint32(p[4*512+4*i:], e)
	}
	copy(p[6*512:], "\x00\x00\x00\x00\x00\x00\x00\x00\x0e\x00\x00\x00\x78\x9c\x63\x60\x18\x05\xa3\x60\x14\x00\x00\x02\x00\x00\x01")
	return p
}

func fuzz(f *testing.F, fn func(t *testing.T, p []byte)) {
	f.Add(small(3, 0))
	f.Add(small(7, 0))
	f.Add(small(3|3<<16, 1))
	f.Add(footed(small(3, 0)))
	f.Add(cowd(10, 5)[:4*512+64])
	f.Add([]byte("# x\nversion=1\nCID=1\nparentCID=2\nparentFileNameHint=\"y\"\ncreateType=\"twoGbMaxExtentSparse\"\n" +
		"RW 5 FLAT \"f\" 0\nRW 5 SPARSE \"f\"\nRW 4 ZERO\nRW 7 SESPARSE \"s\"\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<20 {
			return
		}
		imagetest.Unchanged(t, p, fn)
	})
}

func FuzzHeader(f *testing.F) {
	fuzz(f, func(t *testing.T, p []byte) {
		r := bytes.NewReader(p)
		m, err := vmdk.Open(r, r.Size())
		if err != nil {
			if !imagetest.Refusal(err) {
				t.Errorf("Open = %v", err)
			}
			return
		}
		if m.Bytes() < 0 || m.GrainBytes() < 0 || len(m.Extents) > 4096 {
			t.Errorf("Open = %d bytes, grains of %d, %d extents", m.Bytes(), m.GrainBytes(), len(m.Extents))
		}
	})
}

func FuzzMap(f *testing.F) { fuzz(f, look) }

// FuzzExtent has the input as an extent that a descriptor names, of each kind.
func FuzzExtent(f *testing.F) {
	fuzz(f, func(t *testing.T, p []byte) {
		for _, kind := range []string{"SPARSE", "SESPARSE", "VMFS"} {
			m := parse(t, []byte("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW 9 "+kind+" \"x\"\n"))
			d, err := m.Disk([]vmdk.File{{R: bytes.NewReader(p), Size: int64(len(p))}})
			switch {
			case err == nil:
				imagetest.Walk(t, d, 300, imagetest.Broken)
				n, err := d.ReadAt(make([]byte, 5000), 0)
				if err != nil && err != io.EOF && !imagetest.Broken(err) || n < 0 {
					t.Errorf("ReadAt = %d, %v", n, err)
				}
			case !imagetest.Refusal(err):
				t.Errorf("Disk = %v", err)
			}
		}
	})
}
