// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qcow2_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// bitmapped gives an image with bitmaps made by qemu, with some bits set.
func bitmapped(t *testing.T) (path string, img []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "64M")
	run(t, "qemu-img", "bitmap", "--add", "-g", "512", path, "fine")
	run(t, "qemu-img", "bitmap", "--add", path, "second, with a comma")
	run(t, "qemu-img", "bitmap", "--add", "--disable", "-g", "1M", path, "off")
	run(t, "qemu-io", "-c", "write 0 1M", "-c", "write 40M 2M", path)
	img, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, img
}

func readBitmaps(t testing.TB, img []byte) (*qcow2.Header, []qcow2.Bitmap, error) {
	t.Helper()
	r := bytes.NewReader(img)
	h, err := qcow2.ReadHeader(r, r.Size())
	if err != nil {
		t.Fatal(err)
	}
	b, err := qcow2.ReadBitmaps(r, r.Size(), h)
	if err == nil {
		err = errors.Join(qcow2.LoadBitmaps(r, r.Size(), h, b)...)
	}
	return h, b, err
}

func TestBitmapsAgainstQemu(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path, img := bitmapped(t)
	type bitmap struct {
		Name        string   `json:"name"`
		Granularity int64    `json:"granularity"`
		Flags       []string `json:"flags"`
	}
	var info struct {
		Specific struct {
			Data struct {
				Bitmaps []bitmap `json:"bitmaps"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(run(t, "qemu-img", "info", "--output=json", path), &info); err != nil {
		t.Fatal(err)
	}
	h, list, err := readBitmaps(t, img)
	if err != nil {
		t.Fatal(err)
	}
	var got []bitmap
	for _, b := range list {
		flags := []string{}
		if b.InUse {
			flags = append(flags, "in-use")
		}
		if b.Auto {
			flags = append(flags, "auto")
		}
		got = append(got, bitmap{b.Name, 1 << b.GranularityBits, flags})
	}
	if diff := cmp.Diff(info.Specific.Data.Bitmaps, got); diff != "" || len(got) != 3 {
		t.Errorf("ReadBitmaps (-qemu +got):\n%s", diff)
	}
	used := 0
	err = qcow2.ReadBitmapTable(bytes.NewReader(img), int64(len(img)), h, &list[0],
		func(first int64, entries []uint64) error {
			for i, e := range entries {
				if e&qcow2.OffsetMask != 0 || e == 1 {
					used++
					if at := (first + int64(i)) * 4096 * 8 * 512; at != 0 && at != 32<<20 {
						t.Errorf("entry %d is %#x: nothing was written there", first+int64(i), e)
					}
				}
			}
			return nil
		})
	if err != nil || used != 2 {
		t.Errorf("ReadBitmapTable = %v with %d clusters in use, want 2", err, used)
	}
}

func TestBitmapsIgnored(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	_, img := bitmapped(t)
	h, list, err := readBitmaps(t, with(img, edit{88, uint64(0)}))
	if err != nil || len(list) != 0 || h.Bitmaps == nil || h.Bitmaps.Trusted {
		t.Errorf("ReadBitmaps without the feature bit = %v, %v, want none", list, err)
	}
	if _, list, err = readBitmaps(t, plain(t, "cluster_size=4k")); err != nil || list != nil {
		t.Errorf("ReadBitmaps of an image without = %v, %v, want none", list, err)
	}
}

// refusedFor gives the findings which say that qemu refuses an image for its bitmaps.
func refusedFor(t *testing.T, img []byte) []finding.Finding {
	t.Helper()
	return slices.DeleteFunc(checkBytes(t, img).Findings, func(f finding.Finding) bool {
		return f.Code != finding.QC17.Code || f.Kind != "refused"
	})
}

func TestBitmapRefusals(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	_, img := bitmapped(t)
	h, list, err := readBitmaps(t, img)
	if err != nil {
		t.Fatal(err)
	}
	dir, size, table := int(h.Bitmaps.DirOff), int(h.Bitmaps.DirSize), int(list[0].TableOff)
	second := int(list[1].EntryOff)
	// the extension: after the head that says so
	at := bytes.Index(img, []byte("\x23\x85\x28\x75")) + 8
	count, dirSize := at, at+8
	for _, c := range []struct {
		name  string
		edits []edit
		off   int
	}{
		{"directory of no bytes", []edit{{dirSize, uint64(0)}}, dir},
		{"directory cut off", []edit{{dirSize, uint64(size - 8)}}, int(list[2].EntryOff)},
		{"directory cut off in a head", []edit{{dirSize, uint64(second - dir + 16)}}, second},
		{"directory with a tail", []edit{{dirSize, uint64(size + 8)}}, dir + size},
		{"directory elsewhere", []edit{{dirSize + 8, uint64(1 << 40)}}, 1 << 40},
		{"more than said", []edit{{count, uint32(2)}}, int(list[2].EntryOff)},
		{"fewer than said", []edit{{count, uint32(4)}}, dir},
		{"no table", []edit{{dir, uint64(0)}}, dir},
		{"misaligned table", []edit{{dir, uint64(table + 512)}}, dir},
		{"empty table", []edit{{dir + 8, uint32(0)}}, dir},
		{"huge table", []edit{{dir + 8, uint32(math.MaxUint32)}}, dir},
		{"too much data", []edit{{dir + 8, uint32(qcow2.MaxBitmapBytes/4096 + 1)}}, dir},
		{"unknown flag", []edit{{dir + 12, uint32(4)}}, dir},
		{"unknown type", []edit{{dir + 16, uint8(2)}}, dir},
		{"granularity 8", []edit{{dir + 17, uint8(8)}}, dir},
		{"granularity 32", []edit{{dir + 17, uint8(32)}}, dir},
		{"long name", []edit{{dir + 18, uint16(1024)}, {dirSize, uint64(4096)}}, dir},
		{"name out of the directory", []edit{{dir + 18, uint16(1000)}}, dir},
		{"extra data", []edit{{dir + 20, uint32(8)}}, dir + 20},
		{"extra data of 4 GiB", []edit{{dir + 20, uint32(math.MaxUint32)}}, dir + 20},
		{"extra data of 1 GiB", []edit{{dir + 20, uint32(1 << 30)}}, dir},
		{"table too short for the disk", []edit{{dir + 8, uint32(3)}}, dir},
		{"table too long for the disk", []edit{{dir + 8, uint32(5)}}, dir},
		{"two of one name", []edit{{second + 24, "fine\x00"}}, second},
		{"reserved bits in the table", []edit{{table, uint64(1 << 56)}}, table},
		{"ones with an offset", []edit{{table, uint64(table | 1)}}, table},
		{"misaligned cluster", []edit{{table + 8, uint64(512)}}, table + 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := with(img, c.edits...)
			_, _, err := readBitmaps(t, bad)
			var refused *qcow2.OpenError
			if !errors.As(err, &refused) || int(refused.Off) != c.off {
				t.Fatalf("ReadBitmaps = %v, want an OpenError at %#x", err, c.off)
			}
			if said := qemuRefuses(t, bad); refused.Qemu == "" ||
				!strings.Contains(said, refused.Qemu) {
				t.Errorf("qemu-img says %q, want %q in it", said, refused.Qemu)
			}
			if list := refusedFor(t, bad); len(list) != 1 || list[0].Severity != finding.Danger ||
				list[0].Certainty != finding.Sure || !strings.Contains(list[0].Next, "shisa repair") {
				t.Errorf("Check() = %+v, want one sure danger, for qemu refuses the image", list)
			}
		})
	}
}

// TestBitmapEach: a bitmap behind a broken one is judged by itself. qemu tells the first; of each that is left broken alone it
// says what is said of it here.
func TestBitmapEach(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	_, img := bitmapped(t)
	h, list, err := readBitmaps(t, img)
	if err != nil {
		t.Fatal(err)
	}
	faults := map[int]edit{
		0: {int(list[0].TableOff), uint64(1 << 56)},
		1: {int(list[1].TableOff), uint64(512)},
		2: {int(list[2].EntryOff) + 8, uint32(2)},
	}
	for _, which := range [][]int{{0, 1, 2}, {0, 2}, {1, 2}, {0, 1}, {0}, {1}, {2}} {
		var edits []edit
		for _, i := range which {
			edits = append(edits, faults[i])
		}
		bad := with(img, edits...)
		r := bytes.NewReader(bad)
		list, err := qcow2.ReadBitmaps(r, r.Size(), h)
		if err != nil || len(list) != 3 {
			t.Fatalf("%v: ReadBitmaps = %v, %v", which, list, err)
		}
		said := qemuRefuses(t, bad)
		errs := qcow2.LoadBitmaps(r, r.Size(), h, list)
		found := refusedFor(t, bad)
		if len(found) != len(which) {
			t.Errorf("%v: Check() = %+v, want one for each", which, found)
		}
		for i, err := range errs {
			var refused *qcow2.OpenError
			if errors.As(err, &refused) != slices.Contains(which, i) {
				t.Errorf("%v: LoadBitmaps of %d = %v", which, i, err)
			}
			if refused == nil {
				continue
			}
			if i == which[0] != strings.Contains(said, refused.Qemu) {
				t.Errorf("%v: qemu-img says %q, and of bitmap %d is said %q", which, said, i, refused.Qemu)
			}
			if !slices.ContainsFunc(found, func(f finding.Finding) bool { return f.Host[0].Offset == int64(refused.Off) }) {
				t.Errorf("%v: Check() = %+v, want one at %#x", which, found, refused.Off)
			}
		}
	}
}

// What qemu accepts, we accept.
func TestBitmapOddities(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	_, img := bitmapped(t)
	_, list, err := readBitmaps(t, img)
	if err != nil {
		t.Fatal(err)
	}
	dir, table, second := int(list[0].EntryOff), int(list[0].TableOff), int(list[1].EntryOff)
	for _, c := range []struct {
		name  string
		edits []edit
	}{
		{"in use with a table of the wrong length",
			[]edit{{dir + 12, uint32(1)}, {dir + 8, uint32(1)}}},
		{"in use with a broken table", []edit{{dir + 12, uint32(3)}, {table, uint64(1 << 56)}}},
		{"in use and of the same name", []edit{{second + 24, "fine\x00"}, {second + 12,
			uint32(1)}}},
		{"ones without an offset", []edit{{table, uint64(1)}}},
		{"table past the end of the file", []edit{{dir, uint64(1 << 40)}}},
		{"cluster past the end of the file", []edit{{table, uint64(1 << 40)}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			odd := with(img, c.edits...)
			if _, list, err := readBitmaps(t, odd); err != nil || len(list) != 3 {
				t.Errorf("ReadBitmaps = %v, %v, want 3", list, err)
			}
			if said := qemuRefuses(t, odd); said != "" {
				t.Errorf("qemu-img refuses it: %s", said)
			}
			if list := refusedFor(t, odd); len(list) != 0 {
				t.Errorf("Check() = %+v, but qemu takes the image", list)
			}
		})
	}
}

func TestBitmapsUnreadable(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	_, img := bitmapped(t)
	h, list, err := readBitmaps(t, img)
	if err != nil {
		t.Fatal(err)
	}
	r := &counting{r: bytes.NewReader(img), fail: int64(h.Bitmaps.DirOff) + 5}
	if _, err := qcow2.ReadBitmaps(r, int64(len(img)), h); !errors.Is(err, qcow2.ErrRead) ||
		!errors.Is(err, errBadSector) {
		t.Errorf("ReadBitmaps with a bad sector = %v, want %v", err, qcow2.ErrRead)
	}
	r.fail = int64(list[0].TableOff)
	if err := qcow2.LoadBitmaps(r, int64(len(img)), h, list)[0]; !errors.Is(err, qcow2.ErrRead) ||
		!errors.Is(err, errBadSector) {
		t.Errorf("LoadBitmaps with a bad sector = %v, want %v", err, qcow2.ErrRead)
	}
	// A check cannot tell then, and finds nothing for which bitmaps would be given up.
	for _, r.fail = range []int64{int64(h.Bitmaps.DirOff) + 5, int64(list[0].TableOff)} {
		res, err := qcow2.Check(t.Context(), r, int64(len(img)), qcow2.CheckOptions{DataFileBytes: -1})
		if err != nil || len(res.Blind) != 1 || slices.ContainsFunc(res.Findings, func(f finding.Finding) bool {
			return f.Code == finding.QC17.Code
		}) {
			t.Errorf("Check() with a bad sector at %#x = %+v, %v, want a blind spot and no %s", r.fail, res, err, finding.QC17.Code)
		}
	}
	stop := errors.New("stop")
	if err := qcow2.ReadBitmapTable(bytes.NewReader(img), int64(len(img)), h, &list[0],
		func(int64, []uint64) error { return stop }); err != stop {
		t.Errorf("ReadBitmapTable with a failing fn = %v, want %v", err, stop)
	}
}

// A directory of 64 MiB claimed by a small file costs little: its first entry is zeros.
func TestBitmapsCostLittle(t *testing.T) {
	testenv.Need(t, "qemu-img")
	img := with(plain(t, "cluster_size=64k"), edit{88, uint64(1)},
		ext(112, extBitmaps, 24, be32s(65535, 0)+be64(qcow2.MaxBitmapDirBytes, 1<<40)))
	r := bytes.NewReader(img)
	h, err := qcow2.ReadHeader(r, r.Size())
	if err != nil {
		t.Fatal(err)
	}
	used := memory(func() { _, err = qcow2.ReadBitmaps(r, r.Size(), h) })
	if err == nil || used > 64<<10 {
		t.Errorf("ReadBitmaps = %v and takes %d bytes, want an error and 64 KiB at most", err, used)
	}
}
