// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vmdk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/imagetest"
	"github.com/shisa-vm/shisa/internal/image/vmdk"
	"github.com/shisa-vm/shisa/internal/testenv"
)

const (
	grain = 64 << 10 // what qemu makes
	none  = 0xffffffff
)

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func parse(t testing.TB, data []byte) *vmdk.Image {
	t.Helper()
	return imagetest.Opened(t, data, vmdk.Open)
}

// openAll gives the disk in data, whose extents are in the directory dir.
func openAll(data []byte, dir string) (*vmdk.Disk, error) {
	m, err := vmdk.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	var files []vmdk.File
	for _, e := range m.Extents {
		f := vmdk.File{}
		if e.Name != "" {
			b, err := os.ReadFile(filepath.Join(dir, e.Name))
			if err != nil {
				return nil, err
			}
			f = vmdk.File{R: bytes.NewReader(b), Size: int64(len(b))}
		}
		files = append(files, f)
	}
	return m.Disk(files)
}

// open is openAll for a disk that can be read.
func open(t testing.TB, data []byte, dir string) *vmdk.Disk {
	t.Helper()
	d, err := openAll(data, dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// made has qemu make an image and scribble on it.
func made(t testing.TB, options, size string, scribbles int) (path string) {
	t.Helper()
	testenv.Need(t, "qemu-img", "qemu-io")
	path = filepath.Join(testenv.DiskDir(t), "disk.vmdk")
	imagetest.Qemu(t, "", "qemu-img", "create", "-q", "-f", "vmdk", "-o", options, path, size)
	bytes := parse(t, imagetest.File(t, path)).Bytes()
	imagetest.Scribble(t, rand.New(rand.NewPCG(uint64(bytes), 3)), path, "vmdk", bytes, grain, scribbles)
	return path
}

// packed turns the image at path into a stream-optimised one.
func packed(t testing.TB, path string) string {
	t.Helper()
	to := path + ".stream.vmdk"
	imagetest.Qemu(t, "", "qemu-img", "convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized", path, to)
	return to
}

// conforms runs the suite on the image at path, and holds its content and map against qemu's.
func conforms(t *testing.T, path string) {
	t.Helper()
	diskio.RequireUnchanged(t, path)
	data, want, dir := imagetest.File(t, path), imagetest.Content(t, path, "vmdk"), filepath.Dir(path)
	imagetest.Run(t, func(t *testing.T) (image.Reader, []byte) { return open(t, data, dir), want })
	d := open(t, data, dir)
	if len(d.Notes()) > 0 {
		t.Errorf("Notes = %q, want none", d.Notes())
	}
	var got []imagetest.MapEntry
	err := d.Map(t.Context(), 0, d.Size(), func(e image.Extent) error {
		stored := e.Kind == image.Data || e.Kind == image.Compressed
		m := imagetest.MapEntry{Start: int64(e.Guest), Length: e.Length, Present: e.Kind != image.Unallocated,
			Zero: !stored, Data: stored}
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
	// In flat extents qemu looks for holes of the file, which are not told apart here.
	if m := parse(t, data); len(m.Extents) > 0 && m.Extents[0].Flat() {
		return
	}
	if diff := cmp.Diff(imagetest.QemuMap(t, path, "vmdk"), got); diff != "" {
		t.Errorf("Map (-qemu +ours):\n%s", diff)
	}
}

// TestAgainstQemu reads every kind of image that qemu-img makes, at odd sizes.
func TestAgainstQemu(t *testing.T) {
	for _, c := range []struct{ options, size string }{
		{"subformat=monolithicSparse", "9M"}, {"subformat=monolithicSparse", "1000001"},
		{"subformat=monolithicSparse,zeroed_grain=on", "40M"}, {"subformat=monolithicSparse,zeroed_grain=on", "65537"},
		{"adapter_type=lsilogic,hwversion=8,toolsversion=9", "512"}, {"adapter_type=buslogic,compat6=on", "33M"},
		{"adapter_type=legacyESX", "5M"}, {"subformat=monolithicFlat", "5M"}, {"subformat=monolithicFlat", "1000001"},
		{"subformat=twoGbMaxExtentSparse", "5M"}, {"subformat=twoGbMaxExtentSparse,zeroed_grain=on", "1000001"},
		{"subformat=twoGbMaxExtentFlat,preallocation=full", "3M"},
	} {
		t.Run(c.options+" "+c.size, func(t *testing.T) {
			path := made(t, c.options, c.size, 12)
			conforms(t, path)
			m := parse(t, imagetest.File(t, path))
			if want, _, _ := strings.Cut(strings.TrimPrefix(c.options, "subformat="), ","); strings.HasPrefix(c.options, "sub") &&
				m.CreateType != want || m.HasParent || m.CID == 0 || m.ParentCID != none {
				t.Errorf("Open = %+v", m)
			}
			if strings.Contains(c.options, "Sparse") && !strings.Contains(c.options, "two") {
				conforms(t, packed(t, path))
			}
		})
	}
}

// A disk of more than 2 GiB is in several files.
func TestSplit(t *testing.T) {
	for _, kind := range []string{"twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		t.Run(kind, func(t *testing.T) {
			testenv.Need(t, "qemu-img", "qemu-io")
			dir := testenv.DiskDir(t)
			path := filepath.Join(dir, "disk.vmdk")
			imagetest.Qemu(t, "", "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+kind, path, "5G")
			const two = 2 << 30
			args := []string{"-f", "vmdk"}
			for _, off := range []int{0, two - 512, two + 1<<20, 2*two - 65536, 2 * two, 5<<30 - 1024} {
				args = append(args, "-c", fmt.Sprintf("write -q -P %d %d 1k", 1+off>>20%250, off))
			}
			imagetest.Qemu(t, "", "qemu-io", append(args, path)...)
			raw := filepath.Join(dir, "raw")
			imagetest.Qemu(t, "", "qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw)
			want, err := diskio.Open(raw)
			if err != nil {
				t.Fatal(err)
			}
			defer want.Close()
			m := parse(t, imagetest.File(t, path))
			var files []vmdk.File
			for _, e := range m.Extents {
				f, err := diskio.Open(filepath.Join(dir, e.Name))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				files = append(files, vmdk.File{R: f, Size: f.Size()})
			}
			d, err := m.Disk(files)
			if err != nil || len(files) != 3 || d.Size() != 5<<30 || m.Bytes() != 5<<30 {
				t.Fatalf("Disk = %v, %d files, %d bytes", err, len(files), d.Size())
			}
			// Whatever is not data in the raw file is zeros.
			a, b := make([]byte, 4096), make([]byte, 4096)
			err = want.Data(t.Context(), 0, d.Size(), func(off, length int64) error {
				for off &^= 4095; length > 0; off, length = off+4096, length-4096 {
					if _, err := want.ReadAt(a, off); err != nil {
						return err
					}
					if _, err := d.ReadAt(b, off); err != nil {
						return err
					}
					imagetest.Equal(t, fmt.Sprintf("ReadAt(%#x)", off), b, a)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			part := int32(0)
			err = d.Map(t.Context(), 0, d.Size(), func(e image.Extent) error {
				if e.HasHost && (!e.InDataFile || e.Part != int32(int64(e.Guest)/two)) {
					t.Errorf("Map gives %+v", e)
				}
				part = max(part, e.Part)
				return nil
			})
			if err != nil || part != 2 {
				t.Errorf("Map = %v, up to part %d", err, part)
			}
		})
	}
}

// TestExtents has a descriptor that names parts of every kind that qemu reads.
func TestExtents(t *testing.T) {
	sparse := made(t, "zeroed_grain=on", "2M", 9)
	dir := filepath.Dir(sparse)
	at := func(name string) string { return filepath.Join(dir, name) }
	imagetest.Qemu(t, "", "qemu-img", "create", "-q", "-f", "vmdk", at("other.vmdk"), "1000448")
	imagetest.Scribble(t, rand.New(rand.NewPCG(5, 5)), at("other.vmdk"), "vmdk", 1000448, grain, 9)
	flat := make([]byte, 1<<20)
	for i := range flat {
		flat[i] = byte(i>>8) * 3
	}
	write(t, at("flat file.bin"), flat)
	write(t, at("cowd.vmdk"), cowd(100, 5))
	write(t, at("se.vmdk"), seSparse(40000))
	for name, lines := range map[string]string{
		"vmfs":                 "RW 100 VMFS \"flat file.bin\"\nRW 777 FLAT \"flat file.bin\" 13\n",
		"twoGbMaxExtentSparse": "RW 4096 SPARSE \"disk.vmdk\"\nRW 3 FLAT \"flat file.bin\" 2000\nRW 1954 SPARSE \"other.vmdk\"\n",
		"vmfsSparse":           "RW 100 VMFSSPARSE \"cowd.vmdk\"\nRW 10 FLAT \"flat file.bin\" 7\n",
		"seSparse":             "RW 40000 SESPARSE \"se.vmdk\"\nRW 10 FLAT \"flat file.bin\" 7\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := at(name + "-all.vmdk")
			write(t, path, []byte("# Disk DescriptorFile\nversion=1\nCID=123\nparentCID=ffffffff\ncreateType=\""+name+
				"\"\n\n# Extent description\n"+lines+"\nddb.adapterType = \"ide\"\n"))
			conforms(t, path)
		})
	}
	// A header in front of the descriptor.
	t.Run("embedded", func(t *testing.T) {
		p := make([]byte, 4096)
		copy(p, "KDMV")
		p[4] = 1
		p[28], p[36] = 1, 4
		copy(p[512:], "version=1\nCID=123\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 100 FLAT \"flat file.bin\" 3\n")
		write(t, at("embedded.vmdk"), p)
		conforms(t, at("embedded.vmdk"))
	})
}

// Parts that qemu leaves out, so that what follows moves, are read, or refused by their type.
func TestExtentsUnlikeQemu(t *testing.T) {
	head := "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"
	flat := bytes.Repeat([]byte{7}, 4096)
	d, err := parse(t, []byte(head+"RDONLY 2 FLAT \"f\" 0\nRW 3 ZERO\nRW 1 FLAT \"f\" 1\n")).Disk([]vmdk.File{
		{R: bytes.NewReader(flat), Size: 4096}, {}, {R: bytes.NewReader(flat), Size: 4096}})
	if err != nil {
		t.Fatal(err)
	}
	want := append(append(bytes.Clone(flat[:1024]), make([]byte, 1536)...), flat[:512]...)
	imagetest.Run(t, func(*testing.T) (image.Reader, []byte) { return d, want })
	for line, text := range map[string]string{
		"RW 3 VMFSRDM \"x\"": "VMFSRDM", "NOACCESS 3 FLAT \"x\" 0": "no access",
	} {
		p := []byte(head + line + "\n")
		if _, err := vmdk.Open(bytes.NewReader(p), int64(len(p))); !errors.Is(err, image.ErrUnsupported) ||
			!strings.Contains(err.Error(), text) {
			t.Errorf("Open(%s) = %v, want %v (%q)", line, err, image.ErrUnsupported, text)
		}
	}
}

// cowd makes an extent of version 3 of sectors sectors, with grains of grain sectors.
func cowd(sectors, grain uint32) []byte {
	le := binary.LittleEndian
	p := make([]byte, 4*512+4096*4)
	copy(p, "COWD")
	le.PutUint32(p[4:], 1)
	le.PutUint32(p[8:], 3)
	le.PutUint32(p[12:], sectors)
	le.PutUint32(p[16:], grain)
	le.PutUint32(p[20:], 3)
	le.PutUint32(p[24:], 1)
	copy(p[512:], "version=1\nCID=5\nparentCID=ffffffff\ncreateType=\"vmfsSparse\"\n")
	le.PutUint32(p[3*512:], 4)
	for i := uint32(0); i < sectors/grain; i += 2 {
		le.PutUint32(p[4*512+4*i:], uint32(len(p)/512))
		p = append(p, bytes.Repeat([]byte{byte(i + 1)}, int(grain)*512)...)
	}
	return p
}

// seSparse makes a seSparse extent of sectors sectors.
func seSparse(sectors uint64) []byte {
	const directory, tables, grains = 2, 10, 10 + 2*64
	le := binary.LittleEndian
	p := make([]byte, grains*512)
	le.PutUint64(p, 0xcafebabe)
	le.PutUint64(p[8:], 0x200000001)
	le.PutUint64(p[16:], sectors)
	le.PutUint64(p[24:], 8)
	le.PutUint64(p[32:], 64)
	le.PutUint64(p[80:], 1)
	le.PutUint64(p[88:], 1)
	le.PutUint64(p[128:], directory)
	le.PutUint64(p[136:], 1)
	le.PutUint64(p[144:], tables)
	le.PutUint64(p[152:], 128)
	le.PutUint64(p[192:], grains)
	le.PutUint64(p[512:], 0xcafecafe)
	// The second table comes first.
	le.PutUint64(p[directory*512:], 0x1000000000000001)
	le.PutUint64(p[directory*512+8:], 0x1000000000000000)
	next := uint64(0)
	for table := range uint64(2) {
		for i := range uint64(64 * 512 / 8) {
			at := p[tables*512+(1-table)*64*512+8*i:]
			switch (i + table) % 5 {
			case 1:
				le.PutUint64(at, 1<<60)
			case 2:
				le.PutUint64(at, 2<<60)
			case 3:
				if i > 60 {
					continue
				}
				le.PutUint64(at, 3<<60|next&0xfff<<48|next>>12)
				p = append(p, bytes.Repeat([]byte{byte(next + 1)}, 4096)...)
				next++
			}
		}
	}
	return p
}

// A version 3 extent with a descriptor in it is an image in itself.
func TestCOWD(t *testing.T) {
	testenv.Need(t, "qemu-img")
	path := filepath.Join(testenv.DiskDir(t), "cowd.vmdk")
	write(t, path, cowd(103, 5))
	conforms(t, path)
}

func TestParent(t *testing.T) {
	base := made(t, "zeroed_grain=on", "3M", 5)
	over := filepath.Join(filepath.Dir(base), "over.vmdk")
	imagetest.Qemu(t, "", "qemu-img", "create", "-q", "-f", "vmdk", "-b", "disk.vmdk", "-F", "vmdk", over)
	b, m := parse(t, imagetest.File(t, base)), parse(t, imagetest.File(t, over))
	if !m.HasParent || m.Parent != "disk.vmdk" || m.ParentCID != b.CID || b.HasParent {
		t.Errorf("Open = %+v upon %+v", m, b)
	}
	// Without the name it still has one.
	p := bytes.Replace(imagetest.File(t, over), []byte("parentFileNameHint"), []byte("otherFileNameHintX"), 1)
	if m := parse(t, p); !m.HasParent || m.Parent != "" {
		t.Errorf("Open without the name = %+v", m)
	}
}

// footed moves the place of the directory of an image into a footer.
func footed(p []byte) []byte {
	le := binary.LittleEndian
	p = append(p, make([]byte, 3*512)...)
	marker := p[len(p)-3*512:]
	le.PutUint32(marker[12:], 3)
	copy(marker[512:], p[:512])
	le.PutUint64(p[56:], 1<<64-1)
	le.PutUint64(p[12:], le.Uint64(p[12:])+1) // what stands here does not count
	return p
}

func TestFooter(t *testing.T) {
	path := packed(t, made(t, "zeroed_grain=on", "3M", 9))
	write(t, path, footed(imagetest.File(t, path)))
	conforms(t, path)
	p := imagetest.File(t, path)
	p[len(p)-1024] = 0
	if _, err := vmdk.Open(bytes.NewReader(p), int64(len(p))); !errors.Is(err, image.ErrInvalid) {
		t.Errorf("Open with a broken footer = %v, want %v", err, image.ErrInvalid)
	}
}

func TestBroken(t *testing.T) {
	le := binary.LittleEndian
	path := made(t, "subformat=monolithicSparse", "100M", 8)
	data, want := imagetest.File(t, path), imagetest.Content(t, path, "vmdk")
	gd := func(p []byte) []byte { return p[le.Uint64(p[56:])*512:] }
	text := func(from, to string) func(p []byte) []byte {
		return func(p []byte) []byte { return bytes.Replace(p, []byte(from), []byte(to), 1) }
	}
	set := func(fn func(p []byte)) func(p []byte) []byte {
		return func(p []byte) []byte { fn(p); return p }
	}
	for _, c := range []struct {
		name  string
		spoil func(p []byte) []byte
		kind  error
		text  string
	}{
		{"version 4", set(func(p []byte) { p[4] = 4 }), image.ErrUnsupported, "version 4"},
		{"version 3", set(func(p []byte) { p[4] = 3 }), nil, ""},
		{"no tables", set(func(p []byte) { p[44], p[45] = 0, 0 }), image.ErrInvalid, "tables of 0"},
		{"large tables", set(func(p []byte) { p[46] = 1 }), image.ErrInvalid, "entries"},
		{"grains", set(func(p []byte) { p[27] = 1 }), image.ErrInvalid, "grains"},
		{"no grains", set(func(p []byte) { p[20] = 0 }), image.ErrInvalid, "grains of 0"},
		{"capacity", set(func(p []byte) { p[19] = 0x80 }), image.ErrInvalid, "a disk of"},
		{"largest capacity", set(func(p []byte) {
			le.PutUint64(p[12:], 1<<54-1)
			le.PutUint32(p[44:], 512)
			le.PutUint64(p[20:], 0x200000)
		}), image.ErrInvalid, "within the file"},
		{"huge directory", set(func(p []byte) { p[18] = 1 }), image.ErrUnsupported, "a directory of"},
		{"cut", func(p []byte) []byte { return p[:8192] }, image.ErrInvalid, "cut"},
		{"compression", set(func(p []byte) { p[77] = 2 }), image.ErrUnsupported, "compression 2"},
		{"directory away", set(func(p []byte) { p[60] = 1 }), nil, "the second one is used"},
		{"both directories away", set(func(p []byte) { p[60], p[52] = 1, 1 }), image.ErrInvalid, "within the file"},
		{"table away", set(func(p []byte) { gd(p)[3] = 0x7f }), nil, "1 of 4 grain tables"},
		{"no CID", text("CID=", "CIX="), image.ErrInvalid, "CID"},
		{"odd CID", text("parentCID=f", "parentCID=x"), image.ErrInvalid, `parentCID="xfffffff"`},
		{"no descriptor", set(func(p []byte) { clear(p[512 : 512+10240]) }), vmdk.ErrExtent, "without its descriptor"},
		{"descriptor away", set(func(p []byte) { p[34] = 1 }), image.ErrInvalid, "descriptor"},
		{"se", func([]byte) []byte { return seSparse(100) }, vmdk.ErrExtent, "without its descriptor"},
		{"other type", func([]byte) []byte {
			return []byte("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"fullDevice\"\nRW 1 FLAT \"/dev/sda\" 0\n")
		}, image.ErrUnsupported, "fullDevice"},
		{"empty", func([]byte) []byte { return nil }, image.ErrInvalid, "no descriptor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := c.spoil(bytes.Clone(data))
			m, err := vmdk.Open(bytes.NewReader(p), int64(len(p)))
			if imagetest.Failed(t, err, c.kind, c.text) {
				return
			}
			if notes := strings.Join(m.Notes(), "\n"); !strings.Contains(notes, c.text) || c.text == "" && notes != "" {
				t.Errorf("Notes = %q, want %q", notes, c.text)
			}
			d, err := m.Disk(nil)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, d.Size())
			if _, err := d.ReadAt(got, 0); err != nil {
				t.Error(err)
			}
			imagetest.Equal(t, "ReadAt", got, want)
		})
	}
}

func TestBadDescriptors(t *testing.T) {
	head := "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"
	for _, lines := range []string{
		"", "RW\n", "RW x FLAT \"f\" 0\n", "RW -1 FLAT \"f\" 0\n", "RW 1 FLAT \"f\"\n", "RW 1 FLAT \"f\" -1\n", "RW 1 FLAT \"\" 0\n",
		"RW 1 FLAT f 0\n", "RW 1 FLAT \"f 0\n", "RW 1 SPARSE \"f\" 0\n", "RW 1 FLAT \"" + strings.Repeat("x", 600) + "\" 0\n",
		"RW 18014398509481984 FLAT \"f\" 0\n", strings.Repeat("RW 9007199254740992 FLAT \"f\" 0\n", 2),
		"RW 1 FLAT \"f\" 18014398509481983\n", "RW 1 FLAT \"f\" 99999999999999999999\n",
		strings.Repeat("RW 1 FLAT \"f\" 0\n", 5000), "parentFileNameHint=\"" + strings.Repeat("x", 2000) + "\"\nRW 1 FLAT \"f\" 0\n",
	} {
		p := []byte(head + lines)
		if m, err := vmdk.Open(bytes.NewReader(p), int64(len(p))); !errors.Is(err, image.ErrInvalid) &&
			!errors.Is(err, image.ErrUnsupported) {
			t.Errorf("Open(%.60q) = %+v, %v, want an error", lines, m, err)
		}
	}
}

// What a broken entry stands for cannot be read, and all else can.
func TestBrokenGrain(t *testing.T) {
	le := binary.LittleEndian
	path := made(t, "subformat=monolithicSparse", "3M", 0)
	imagetest.Qemu(t, "", "qemu-io", "-f", "vmdk", "-c", "write -q -P 5 0 256k", path)
	for _, stream := range []bool{false, true} {
		if stream {
			path = packed(t, path)
		}
		data, want := imagetest.File(t, path), imagetest.Content(t, path, "vmdk")
		table := int64(le.Uint32(data[le.Uint64(data[56:])*512:])) * 512
		for name, spoil := range map[string]func(p []byte){
			"away":  func(p []byte) { le.PutUint32(p[table+4:], 1<<30) },
			"table": func(p []byte) { copy(p[le.Uint64(p[56:])*512:], "\xff\xff\xff\x7f"); p[8] &^= 2 },
			"data": func(p []byte) {
				if stream {
					p[int64(le.Uint32(p[table+4:]))*512+20] ^= 0xff
				} else {
					le.PutUint32(p[table+4:], uint32(len(p)/512))
				}
			},
			"length": func(p []byte) {
				if stream {
					p[int64(le.Uint32(p[table+4:]))*512+11] = 0xff
				} else {
					le.PutUint32(p[table+4:], 1<<31)
				}
			},
		} {
			t.Run(fmt.Sprint(name, stream), func(t *testing.T) {
				p := bytes.Clone(data)
				spoil(p)
				d := open(t, p, "")
				got := make([]byte, len(want))
				n, err := d.ReadAt(got, 0)
				var broken *image.BlockError
				if !errors.As(err, &broken) || n != int(broken.Guest) || n != grain && name != "table" {
					t.Errorf("ReadAt = %d, %v, want an error at %#x", n, err, grain)
				}
				if name != "table" {
					if _, err := d.ReadAt(got[2*grain:], 2*grain); err != nil {
						t.Error(err)
					}
					imagetest.Equal(t, "ReadAt behind it", got[2*grain:], want[2*grain:])
				}
			})
		}
	}
}

// A flat file that was cut ends in an error, not in zeros.
func TestCutFlat(t *testing.T) {
	path := made(t, "subformat=monolithicFlat", "3M", 5)
	flat := filepath.Join(filepath.Dir(path), "disk-flat.vmdk")
	if err := os.Truncate(flat, 1<<20); err != nil {
		t.Fatal(err)
	}
	d := open(t, imagetest.File(t, path), filepath.Dir(path))
	if n, err := d.ReadAt(make([]byte, 2<<20), 0); n != 1<<20 || !errors.Is(err, image.ErrBroken) {
		t.Errorf("ReadAt = %d, %v, want %d and %v", n, err, 1<<20, image.ErrBroken)
	}
}
