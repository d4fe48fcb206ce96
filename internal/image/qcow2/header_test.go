// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// edit writes big-endian numbers into an image.
type edit struct {
	off   int
	value any // uint8, uint16, uint32, uint64 or string
}

// with gives a copy of an image with edits.
func with(img []byte, edits ...edit) []byte {
	img = bytes.Clone(img)
	for _, e := range edits {
		if s, ok := e.value.(string); ok {
			copy(img[e.off:], s)
			continue
		}
		if _, err := binary.Encode(img[e.off:], binary.BigEndian, e.value); err != nil {
			panic(err) // a table of this file is wrong
		}
	}
	return img
}

// ext is a header extension at off, with data of that length.
func ext(off int, typ uint32, length int, data string) edit {
	head := binary.BigEndian.AppendUint32(nil, typ)
	head = binary.BigEndian.AppendUint32(head, uint32(length))
	return edit{off, string(head) + data}
}

const (
	extBackingFormat = 0xe2792aca
	extFeatures      = 0x6803f857
	extCrypt         = 0x0537be77
	extBitmaps       = 0x23852875
	extDataFile      = 0x44415441
)

func be64(n ...uint64) string {
	var p []byte
	for _, v := range n {
		p = binary.BigEndian.AppendUint64(p, v)
	}
	return string(p)
}

func be32s(n ...uint32) string {
	var p []byte
	for _, v := range n {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	return string(p)
}

// plain gives an image of qemu-img create with these options, of 10 MiB.
func plain(t testing.TB, options string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	args := []string{"create", "-q", "-f", "qcow2", "-o", options, path, "10M"}
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
	img, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// refusals are headers that must be refused, made from an image of version 3 with clusters of 64
// KiB whose header has 112 bytes, followed by extensions.
var refusals = []struct {
	name  string
	edits []edit
	kind  error
	off   int64
	// here: qemu says something else first, or nothing at all.
	here bool
}{
	{name: "magic", edits: []edit{{0, uint32(0)}}, kind: qcow2.ErrNotQcow2, off: 0},
	{name: "version 1", edits: []edit{{4, uint32(1)}}, kind: qcow2.ErrUnsupported, off: 4},
	{name: "version 4", edits: []edit{{4, uint32(4)}}, kind: qcow2.ErrUnsupported, off: 4},
	{name: "cluster_bits 8", edits: []edit{{20, uint32(8)}}, kind: qcow2.ErrHeader, off: 20},
	{name: "cluster_bits 22", edits: []edit{{20, uint32(22)}}, kind: qcow2.ErrHeader, off: 20},
	{name: "cluster_bits 2^31", edits: []edit{{20, uint32(1 << 31)}}, kind: qcow2.ErrHeader,
		off: 20},
	{name: "header length 103", edits: []edit{{100, uint32(103)}}, kind: qcow2.ErrHeader, off: 100},
	{name: "header length over a cluster", edits: []edit{{100, uint32(65544)}},
		kind: qcow2.ErrHeader, off: 100},
	{name: "backing name outside", edits: []edit{{8, uint64(65537)}}, kind: qcow2.ErrHeader,
		off: 8},
	{name: "compression 2", edits: []edit{{104, uint8(2)}}, kind: qcow2.ErrUnsupported, off: 104},
	{name: "compression without its bit", edits: []edit{{104, uint8(1)}}, kind: qcow2.ErrHeader,
		off: 104},
	{name: "compression bit without a type", edits: []edit{{72, uint64(8)}}, kind: qcow2.ErrHeader,
		off: 104},
	{name: "unknown feature", edits: []edit{{72, uint64(1 << 40)}}, kind: qcow2.ErrUnsupported,
		off: 72},
	{name: "named feature", kind: qcow2.ErrUnsupported, off: 72,
		edits: []edit{{72, uint64(1<<40 | 1<<41 | 1<<63)},
			ext(112, extFeatures, 96, "\x00\x28mirrored"), {168, "\x00\x3fhighest bit"}}},
	{name: "named feature in a table after a fault", kind: qcow2.ErrUnsupported, off: 72,
		edits: []edit{{72, uint64(1 << 40)},
			ext(112, extFeatures, 48, "\x00\x28mirrored"), ext(168, extBackingFormat, 100, "")}},
	{name: "feature of another type has its name", kind: qcow2.ErrUnsupported, off: 72,
		edits: []edit{{72, uint64(1 << 40)},
			ext(112, extFeatures, 48, "\x01\x28mirrored")}},
	{name: "subclusters of 256 bytes", edits: []edit{{72, uint64(16)}, {20, uint32(13)}},
		kind: qcow2.ErrHeader, off: 20},
	{name: "refcount_order 7", edits: []edit{{96, uint32(7)}}, kind: qcow2.ErrHeader, off: 96},
	{name: "refcount table too large", edits: []edit{{56, uint32(129)}}, kind: qcow2.ErrHeader,
		off: 48},
	{name: "refcount table misaligned", edits: []edit{{48, uint64(65536 + 512)}},
		kind: qcow2.ErrHeader, off: 48},
	{name: "refcount table at the end of numbers",
		edits: []edit{{48, uint64(1<<63 - 65536)},
			{56, uint32(2)}}, kind: qcow2.ErrHeader, off: 48},
	{name: "encryption 3", edits: []edit{{32, uint32(3)}}, kind: qcow2.ErrUnsupported, off: 32},
	{name: "encryption 2^31", edits: []edit{{32, uint32(1 << 31)}}, kind: qcow2.ErrUnsupported,
		off: 32},
	{name: "L1 table too large", edits: []edit{{36, uint32(4<<20 + 1)}}, kind: qcow2.ErrHeader,
		off: 40},
	{name: "L1 table misaligned", edits: []edit{{40, uint64(1)}}, kind: qcow2.ErrHeader, off: 40},
	{name: "L1 table at a negative offset", edits: []edit{{40, uint64(1 << 63)}},
		kind: qcow2.ErrHeader, off: 40},
	{name: "L1 table too small", edits: []edit{{36, uint32(0)}}, kind: qcow2.ErrHeader, off: 36},
	{name: "L1 table too small for 2 EiB", edits: []edit{{24, uint64(1 << 61)}},
		kind: qcow2.ErrHeader, off: 24},
	{name: "size 2^63", edits: []edit{{24, uint64(1 << 63)}}, kind: qcow2.ErrHeader, off: 24},
	{name: "size that wraps around", edits: []edit{{24, ^uint64(0)}, {36, uint32(8)}},
		kind: qcow2.ErrHeader, off: 24},
	{name: "extension too long", edits: []edit{ext(112, 0x12345678, 65536, "")},
		kind: qcow2.ErrHeader, off: 112},
	{name: "extension of 4 GiB", edits: []edit{ext(112, 0x12345678, 1<<32-1, "")},
		kind: qcow2.ErrHeader, off: 112},
	{name: "extension cut off by the backing name",
		edits: []edit{{8, uint64(116)}, {16, uint32(1)},
			ext(112, 1, 0, "")}, kind: qcow2.ErrHeader, off: 112},
	{name: "backing format of 16 bytes", edits: []edit{ext(112, extBackingFormat, 16, "")},
		kind: qcow2.ErrHeader, off: 112},
	{name: "encryption header without encryption", edits: []edit{ext(112, extCrypt, 16, "")},
		kind: qcow2.ErrHeader, off: 112},
	{name: "encryption header of 8 bytes", edits: []edit{{32, uint32(2)}, ext(112, extCrypt, 8,
		"")}, kind: qcow2.ErrHeader, off: 112},
	{name: "encryption header misaligned", edits: []edit{{32, uint32(2)}, ext(112, extCrypt, 16,
		be64(1000, 4096))}, kind: qcow2.ErrHeader, off: 112},
	{name: "encryption header far away", here: true,
		edits: []edit{{32, uint32(2)}, ext(112, extCrypt, 16, be64(1<<60,
			4096))}, kind: qcow2.ErrHeader, off: 112},
	{name: "bitmaps of 16 bytes", edits: []edit{{88, uint64(1)}, ext(112, extBitmaps, 16, "")},
		kind: qcow2.ErrHeader, off: 112},
	{name: "bitmaps of 16 bytes without their bit", edits: []edit{ext(112, extBitmaps, 16, "")},
		kind: qcow2.ErrHeader, off: 112},
	{name: "bitmaps reserved", edits: []edit{{88, uint64(1)}, ext(112, extBitmaps, 24, be32s(1,
		1)+be64(32, 65536))}, kind: qcow2.ErrHeader, off: 112},
	{name: "bitmaps too many", edits: []edit{{88, uint64(1)}, ext(112, extBitmaps, 24, be32s(65536,
		0)+be64(32, 65536))}, kind: qcow2.ErrHeader, off: 112},
	{name: "bitmaps none", edits: []edit{{88, uint64(1)}, ext(112, extBitmaps, 24, be32s(0,
		0)+be64(32, 65536))}, kind: qcow2.ErrHeader, off: 112},
	{name: "bitmaps misaligned", edits: []edit{{88, uint64(1)}, ext(112, extBitmaps, 24, be32s(1,
		0)+be64(32, 65537))}, kind: qcow2.ErrHeader, off: 112},
	{name: "bitmaps directory too large", edits: []edit{{88, uint64(1)}, ext(112, extBitmaps, 24,
		be32s(1, 0)+be64(1<<40, 65536))}, kind: qcow2.ErrHeader, off: 112},
	{name: "bitmaps directory at the end of numbers", here: true,
		edits: []edit{{88, uint64(1)}, ext(112, extBitmaps, 24, be32s(1, 0)+be64(32,
			1<<63))}, kind: qcow2.ErrHeader, off: 112},
	{name: "backing name too long", edits: []edit{{8, uint64(1024)}, {16, uint32(1024)}, ext(112, 0,
		0, "")}, kind: qcow2.ErrHeader, off: 16},
	{name: "backing name over the cluster", edits: []edit{{8, uint64(65500)}, {16, uint32(37)},
		ext(112, 0, 0, "")}, kind: qcow2.ErrHeader, off: 16},
}

func TestHeaderRefusals(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := plain(t, "cluster_size=64k")
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			bad := with(img, c.edits...)
			before := bytes.Clone(bad)
			_, err := qcow2.ReadHeader(bytes.NewReader(bad), int64(len(bad)))
			var refused *qcow2.OpenError
			if !errors.As(err, &refused) || !errors.Is(err, c.kind) || int64(refused.Off) != c.off {
				t.Fatalf("ReadHeader = %v, want %v at %#x", err, c.kind, c.off)
			}
			if !bytes.Equal(bad, before) {
				t.Error("the image was changed")
			}
			said := qemuRefuses(t, bad)
			switch {
			case said == "":
				t.Errorf("qemu-img opens it; ReadHeader = %v", err)
			case c.here:
			case refused.Qemu == "" || !strings.Contains(said, refused.Qemu):
				t.Errorf("qemu-img says %q, want %q in it", said, refused.Qemu)
			}
		})
	}
}

// qemuRefuses is what qemu-img info says about an image that it cannot open, and "" if it can.
func qemuRefuses(t *testing.T, img []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bad.qcow2")
	if err := os.WriteFile(path, img, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "qemu-img", "info", "-f", "qcow2",
		path).CombinedOutput()
	if err == nil {
		return ""
	}
	return string(out)
}

// What qemu-img check looks at itself, info and others refuse; ReadHeader leaves it to its caller.
var laterRefusals = []string{
	"does not contain a reference count table", "Snapshot table", "snapshot table", "Missing CRYPTO header",
	"'data-file' is required", "data-file-raw requires a data file", "bitmap", "Bitmap", "Unable to read LUKS",
	"LUKS", "encryption header", "Could not open backing", "Could not initialize refcount", "AES",
}

// Random headers: we accept and refuse what qemu does, with its words.
func TestHeaderAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img")
	bases := [][]byte{plain(t, "cluster_size=64k"), plain(t, "compat=0.10,cluster_size=4k"),
		plain(t, "cluster_size=512"),
		with(plain(t, "cluster_size=2M,extended_l2=on"), ext(112, extDataFile, 5, "a.raw"),
			ext(128, extBitmaps, 24, be32s(2, 0)+be64(64, 4<<20)))}
	rnd := rand.New(rand.NewPCG(8, 8))
	for range testenv.Rounds(40, 150, 3000) {
		img := bytes.Clone(bases[rnd.IntN(len(bases))])
		for range 1 + rnd.IntN(3) {
			at := rnd.IntN(128)
			if rnd.IntN(4) == 0 {
				at = 4 + rnd.IntN(4)*4 // a field that matters
			}
			img[at] ^= 1 << rnd.IntN(8)
		}
		_, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
		said := qemuRefuses(t, img)
		later := false
		for _, s := range laterRefusals {
			later = later || strings.Contains(said, s)
		}
		var refused *qcow2.OpenError
		switch {
		case err == nil && said != "" && !later:
			t.Errorf("ReadHeader accepts what qemu-img refuses: %s\n%x", said, img[:160])
		case err != nil && said == "":
			t.Errorf("ReadHeader refuses what qemu-img accepts: %v\n%x", err, img[:160])
		case err != nil && !later && (!errors.As(err, &refused) || !strings.Contains(said,
			refused.Qemu)):
			t.Errorf("ReadHeader = %v, qemu-img says %s\n%x", err, said, img[:160])
		}
	}
}

func TestHeaderOfEverything(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := with(plain(t, "cluster_size=64k"),
		edit{8, uint64(4096)}, edit{16, uint32(9)}, edit{4096, "base.img\x00x"}, edit{24,
			uint64(10<<20 + 100)},
		ext(112, extBackingFormat, 5, "qcow2\x00\x00\x00"), ext(128, 0x11223344, 3, ""), ext(144,
			extFeatures, 96, "\x01\x00lazy refcounts"),
		edit{200, "\x02\x3fhigh"}, ext(248, extBitmaps, 24, be32s(3, 0)+be64(100, 1<<16)), ext(280,
			extDataFile, 8, "data.raw"), ext(296, 0, 0, ""))
	h, err := qcow2.ReadHeader(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	want := &qcow2.Header{
		Version: 3, ClusterBits: 16, SizeBytes: 10 << 20, L1Off: 3 << 16, L1Entries: 1, ReftableOff: 1 << 16, ReftableClusters: 1,
		RefcountOrder: 4, Length: 112, HasBacking: true, Backing: "base.img", BackingFormat: "qcow2", DataFile: "data.raw",
		Bitmaps:           &qcow2.BitmapsExt{Count: 3, DirOff: 1 << 16, DirSize: 100},
		UnknownExtensions: []uint32{0x11223344},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("ReadHeader (-want +got):\n%s", diff)
	}
}

// counting counts what is read.
type counting struct {
	r     io.ReaderAt
	bytes atomic.Int64 // a check reads with several goroutines
	fail  int64        // reading at this offset fails
}

var errBadSector = errors.New("bad sector")

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	if c.fail > 0 && off <= c.fail && c.fail < off+int64(len(p)) {
		return 0, errBadSector
	}
	c.bytes.Add(int64(len(p)))
	return c.r.ReadAt(p, off)
}

// A header that claims clusters of 2 MiB must not make us read 2 MiB.
func TestHeaderReadsLittle(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := plain(t, "cluster_size=2M")
	c := &counting{r: bytes.NewReader(img)}
	if _, err := qcow2.ReadHeader(c, int64(len(img))); err != nil || c.bytes.Load() > 8192 {
		t.Errorf("ReadHeader reads %d bytes, %v, want 8192 at most", c.bytes.Load(), err)
	}
}

func TestHeaderUnreadable(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := with(plain(t, "cluster_size=64k"), edit{8, uint64(30000)}, edit{16, uint32(4)})
	for _, fail := range []int64{10, 200, 30001} {
		c := &counting{r: bytes.NewReader(img), fail: fail}
		_, err := qcow2.ReadHeader(c, int64(len(img)))
		if !errors.Is(err, qcow2.ErrRead) || !errors.Is(err, errBadSector) {
			t.Errorf("ReadHeader with a bad sector at %d = %v, want %v", fail, err, qcow2.ErrRead)
		}
	}
}

// Cut off anywhere, an image gives an error or a header, and never costs more than a little.
func TestHeaderCutOff(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := plain(t, "cluster_size=64k")
	for n := range 400 {
		_, err := qcow2.ReadHeader(bytes.NewReader(img[:n]), int64(n))
		var refused *qcow2.OpenError
		if !errors.As(err, &refused) && (err != nil || n < 100) {
			t.Errorf("ReadHeader of %d bytes = %v, want an OpenError", n, err)
		}
		if end := fmt.Sprintf("the file ends after %d bytes", n); n >= 8 && n < 104 && !strings.Contains(fmt.Sprint(err), end) {
			t.Errorf("ReadHeader of %d bytes = %v, want %q", n, err, end)
		}
	}
}
