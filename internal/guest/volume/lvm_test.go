// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The groups here are made by LVM's own tools on loop devices, without device mapper, which the
// kernel may lack: `--driverloaded n` changes metadata only. The judge of where a logical volume
// lies is `lvs -o seg_pe_ranges` with `pvs -o pe_start`.

// lvmWorld is some disks with LVM's tools bound to them.
type lvmWorld struct {
	disks []*world
	devs  []string
	dir   string
}

const lvmExtent = 128 * kib

// newLVM makes n disks of 12 MiB, filled with stamps that tell disk and place, and attaches them.
func newLVM(t *testing.T, n int) *lvmWorld {
	t.Helper()
	l := &lvmWorld{dir: t.TempDir()}
	for i := range n {
		w := newWorld(t, 12*mib)
		w.stamp(t, i)
		l.disks = append(l.disks, w)
		l.devs = append(l.devs, w.loop(t))
	}
	conf := fmt.Sprintf(`devices { filter=[%s"r|.*|"] use_devicesfile=0 hints="none" obtain_device_list_from_udev=0 }
global { locking_dir="%s" use_lvmpolld=0 }
backup { backup=0 archive=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
`, func() (s string) {
		for _, d := range l.devs {
			s += fmt.Sprintf(`"a|^%s$|",`, d)
		}
		return s
	}(), l.dir)
	if err := os.WriteFile(filepath.Join(l.dir, "lvm.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LVM_SYSTEM_DIR", l.dir)
	t.Setenv("LVM_SUPPRESS_FD_WARNINGS", "1")
	return l
}

// stamp fills w so that every 8 bytes tell the disk and the place.
func (w *world) stamp(t testing.TB, disk int) {
	t.Helper()
	b := make([]byte, mib)
	for at := int64(0); at < w.size; at += mib {
		for i := int64(0); i < mib; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], stampAt(disk, at+i))
		}
		w.write(t, at, b[:min(mib, w.size-at)])
	}
}

// stampAt is what the 8 bytes at a place of a disk say.
func stampAt(disk int, at int64) uint64 { return uint64(disk+1)<<56 | 0x5a<<48 | uint64(at) }

// lvm runs one of LVM's commands. DEV0, DEV1 stand for the devices.
func (l *lvmWorld) lvm(t *testing.T, command string) string {
	t.Helper()
	for i, d := range l.devs {
		command = strings.ReplaceAll(command, fmt.Sprintf("DEV%d", i), d)
	}
	args := strings.Fields(command)
	return run(t, "", append([]string{args[0], "--driverloaded", "n"}, args[1:]...)...)
}

// create makes physical volumes of all disks, a group of them, and logical volumes as lvcreate is
// told.
func (l *lvmWorld) create(t *testing.T, lvs ...string) {
	t.Helper()
	devs := strings.Join(l.devs, " ")
	l.lvm(t, "pvcreate -q -ff -y --metadatasize 64k --dataalignment 64k "+devs)
	l.lvm(t, "vgcreate -q -s 128k vg "+devs)
	for _, lv := range lvs {
		l.lvm(t, "lvcreate -q -an -Zn -Wn "+lv)
	}
}

// given is the disks as Find takes them.
func (l *lvmWorld) given() []Disk {
	var disks []Disk
	for i, w := range l.disks {
		disks = append(disks, w.disk(fmt.Sprintf("disk%d", i)))
	}
	return disks
}

// volume gives the volume of a name.
func volume(t testing.TB, l *Layout, name string) *Volume {
	t.Helper()
	for _, v := range l.Volumes {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("Find() has no volume %q: %s", name, l.text())
	return nil
}

// expect gives the stamps that a logical volume should have, by what lvs and pvs say.
func (l *lvmWorld) expect(t *testing.T, name string) []uint64 {
	t.Helper()
	disk, start := map[string]int{}, map[string]int64{}
	for i, d := range l.devs {
		disk[d] = i
		n, err := strconv.ParseInt(strings.TrimSpace(l.lvm(t, "pvs --noheadings --nosuffix --units b -o pe_start "+d)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		start[d] = n
	}
	var want []uint64
	one := regexp.MustCompile(`(\S+):(\d+)-(\d+)`)
	out := l.lvm(t, "lvs --noheadings --nosuffix --units b -O seg_start_pe -o stripe_size,seg_pe_ranges vg/"+name)
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		chunk, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		type area struct {
			disk   int
			at, to int64
		}
		var areas []area
		for _, m := range one.FindAllStringSubmatch(line, -1) {
			first, _ := strconv.ParseInt(m[2], 10, 64)
			last, _ := strconv.ParseInt(m[3], 10, 64)
			areas = append(areas, area{disk[m[1]], start[m[1]] + first*lvmExtent, start[m[1]] + (last+1)*lvmExtent})
		}
		if chunk == 0 {
			chunk = areas[0].to - areas[0].at
		}
		for areas[len(areas)-1].at < areas[len(areas)-1].to {
			for i := range areas {
				for n := int64(0); n < chunk; n += 8 {
					want = append(want, stampAt(areas[i].disk, areas[i].at+n))
				}
				areas[i].at += chunk
			}
		}
	}
	return want
}

// wantStamps reads all of v and compares it, and what Pieces and Within say of it.
func wantStamps(t *testing.T, l *Layout, v *Volume, want []uint64) {
	t.Helper()
	if v.Size != int64(len(want))*8 {
		t.Fatalf("volume %s has %d bytes, want %d", v.Name, v.Size, len(want)*8)
	}
	b := make([]byte, v.Size)
	if n, err := v.ReadAt(b, 0); n != len(b) || err != nil {
		t.Fatalf("ReadAt(%s) = %d, %v", v.Name, n, err)
	}
	for i, w := range want {
		if got := le64(b, i*8); got != w {
			t.Fatalf("volume %s at %#x = %#x, want %#x", v.Name, i*8, got, w)
		}
	}
	end := int64(0)
	for p := range v.Pieces(0, v.Size) {
		if p.Offset != end || want[p.Offset/8] != stampAt(p.Disk, p.At) {
			t.Fatalf("Pieces(%s) has %+v after %#x, want %#x there", v.Name, p, end, want[p.Offset/8])
		}
		end += p.Length
		back := slices.ContainsFunc(slices.Collect(l.Within(p.Disk, p.At, p.Length)), func(h Hit) bool {
			return l.Volumes[h.Volume] == v && h.Offset == p.Offset && h.Length == p.Length && h.At == p.At
		})
		if !back {
			t.Fatalf("Within(%d, %#x, %d) does not name %s at %#x", p.Disk, p.At, p.Length, v.Name, p.Offset)
		}
	}
	if end != v.Size {
		t.Errorf("Pieces(%s) end at %#x, want %#x", v.Name, end, v.Size)
	}
	if n, err := v.ReadAt(make([]byte, 16), v.Size-8); n != 8 || err != io.EOF {
		t.Errorf("ReadAt(%s) at its end = %d, %v, want 8, EOF", v.Name, n, err)
	}
}

func TestLVM(t *testing.T) {
	l := newLVM(t, 3)
	l.create(t, "-l 5 -n root vg DEV0:10-12 DEV2:3-4", "-l 12 -i 3 -I 64 -n stripe vg", "-l 8 -i 2 -I 4 -n fine vg",
		"-l 3 -n my-data_1 vg")
	l.lvm(t, "lvextend -q -l +4 vg/root DEV1:7-8 DEV0:0-40")
	l.lvm(t, "lvextend -q -i 2 -I 8 -l +4 vg/stripe")
	round := func() bool {
		area := l.disks[0].bytes(t, 4096, 512)
		return le64(area, 40)+le64(area, 48) > le64(area, 32)
	}
	for i := 0; !round(); i++ { // until the text goes round in its area
		if i == 200 {
			t.Fatal("the text does not go round")
		}
		l.lvm(t, fmt.Sprintf("vgchange -q --addtag tag%d vg", i))
	}
	layout := find(t, l.given()...)
	for _, p := range layout.Problems {
		t.Errorf("Find() problem %s", p)
	}
	for _, name := range []string{"root", "stripe", "fine", "my-data_1"} {
		v := volume(t, layout, "vg/"+name)
		wantStamps(t, layout, v, l.expect(t, name))
		if v.Kind != Unknown || len(v.In) == 0 {
			t.Errorf("volume %s is %s in %v, want unknown in physical volumes", v.Name, v.Kind, v.In)
		}
	}
	t.Run("the order does not matter", func(t *testing.T) {
		given := l.given()
		slices.Reverse(given)
		got := find(t, given...)
		if v := volume(t, got, "vg/root"); v.Size != 9*lvmExtent {
			t.Errorf("vg/root has %d bytes", v.Size)
		}
	})
	t.Run("missing", func(t *testing.T) { missingPV(t, l) })
	t.Run("damaged", func(t *testing.T) { damagedLVM(t, l) })
	t.Run("twice", func(t *testing.T) {
		got := find(t, append(l.given(), l.disks[1].disk("copy"))...)
		wantProblem(t, got, "is there twice")
		wantStamps(t, got, volume(t, got, "vg/root"), l.expect(t, "root"))
	})
	t.Run("older", func(t *testing.T) { olderLVM(t, l) })
}

// missingPV leaves out one disk: what is on it gives an error, and not zeros.
func missingPV(t *testing.T, l *lvmWorld) {
	got := find(t, l.given()[0], l.given()[2])
	wantProblem(t, got, "is not given")
	v := volume(t, got, "vg/root")
	want := l.expect(t, "root")
	for at := int64(0); at < v.Size; at += lvmExtent {
		b := make([]byte, lvmExtent)
		n, err := v.ReadAt(b, at)
		disk := int(want[at/8]>>56) - 1
		switch {
		case disk == 1 && (n != 0 || !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "not given")):
			t.Errorf("ReadAt(%#x) = %d, %v, want an error that says that a disk is missing", at, n, err)
		case disk != 1 && (err != nil || (disk == 0 && le64(b, 0) != want[at/8])):
			t.Errorf("ReadAt(%#x) = %#x, %v, want %#x", at, le64(b, 0), err, want[at/8])
		}
	}
	for _, name := range []string{"vg/stripe", "vg/fine"} {
		var lost int64
		for p := range volume(t, got, name).Pieces(0, 4*lvmExtent) {
			if p.Disk < 0 {
				lost += p.Length
			}
		}
		if lost == 0 {
			t.Errorf("Pieces(%s) say that all is there, and a stripe is not given", name)
		}
	}
}

// damagedLVM spoils metadata areas: one leaves the group as it is, all leave the disks unexplained.
func damagedLVM(t *testing.T, l *lvmWorld) {
	for _, tc := range []struct {
		name    string
		spoil   func(b []byte)
		problem string
	}{
		{"text", func(b []byte) { clear(b[4096+512:]) }, "checksum of the text"},
		{"header", func(b []byte) { b[4096+30]++ }, "header is wrong"},
		{"magic", func(b []byte) { b[4096+8]++ }, "does not begin as one"},
		{"bounds", func(b []byte) {
			binary.LittleEndian.PutUint64(b[4096+40:], 1<<40)
			binary.LittleEndian.PutUint32(b[4096:], lvmCRC(b[4100:4608]))
		}, "out of bounds"},
		{"label", func(b []byte) { b[512+40]++ }, "label of LVM"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			head := l.disks[1].bytes(t, 0, 128*kib)
			tc.spoil(head)
			given := l.given()
			given[1].Data = over{given[1].Data, 0, head}
			got := find(t, given...)
			wantProblem(t, got, tc.problem)
			v := volume(t, got, "vg/root")
			if tc.name != "label" {
				wantStamps(t, got, v, l.expect(t, "root"))
			}
			alone := find(t, given[1])
			wantProblem(t, alone, tc.problem)
			if v := volume(t, alone, "0"); v.Kind != LVM2Member || v.NotExamined == "" {
				t.Errorf("Find(spoiled) = %s, %q, want a physical volume that is not examined", v.Kind, v.NotExamined)
			}
		})
	}
}

// olderLVM gives a disk from before the last change with the others, first and last: the newest
// text counts.
func olderLVM(t *testing.T, l *lvmWorld) {
	old := l.disks[0].bytes(t, 0, 128*kib)
	l.lvm(t, "lvextend -q -l +2 vg/my-data_1")
	want := l.expect(t, "my-data_1")
	for _, reverse := range []bool{false, true} {
		given := l.given()
		given[0].Data = over{given[0].Data, 0, old}
		if reverse {
			slices.Reverse(given)
		}
		got := find(t, given...)
		wantProblem(t, got, "is elsewhere: that is used")
		if v := volume(t, got, "vg/my-data_1"); v.Size != int64(len(want))*8 {
			t.Errorf("with an old text, vg/my-data_1 has %d bytes, want %d", v.Size, len(want)*8)
		}
	}
}

// over is a disk with some bytes of it replaced.
type over struct {
	io.ReaderAt
	at int64
	b  []byte
}

func (o over) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.ReaderAt.ReadAt(p, off)
	from, to := max(off, o.at), min(off+int64(n), o.at+int64(len(o.b)))
	if from < to {
		copy(p[from-off:to-off], o.b[from-o.at:to-o.at])
	}
	return n, err
}

// wantProblem wants a problem that says something.
func wantProblem(t testing.TB, l *Layout, text string) {
	t.Helper()
	if !slices.ContainsFunc(l.Problems, func(p Problem) bool { return strings.Contains(p.String(), text) }) {
		t.Errorf("Find() has no problem that says %q, only %v", text, l.Problems)
	}
}

// TestLVMPlaces: metadata areas at both ends, on some physical volumes only, or on none.
func TestLVMPlaces(t *testing.T) {
	l := newLVM(t, 3)
	l.lvm(t, "pvcreate -q -ff -y --metadatacopies 2 --metadatasize 64k DEV0")
	l.lvm(t, "pvcreate -q -ff -y --metadatacopies 0 DEV1 DEV2")
	l.lvm(t, "vgcreate -q -s 128k vg DEV0 DEV1")
	l.lvm(t, "lvcreate -q -an -Zn -Wn -l 6 -i 2 -I 32 -n lv vg")
	got := find(t, l.given()...)
	wantStamps(t, got, volume(t, got, "vg/lv"), l.expect(t, "lv"))
	if v := got.Volumes[2]; v.Kind != LVM2Member || v.NotExamined == "" {
		t.Errorf("a physical volume without metadata of no known group is %s, %q", v.Kind, v.NotExamined)
	}
	alone := find(t, l.given()[1])
	if v := alone.Volumes[0]; v.NotExamined == "" {
		t.Errorf("a physical volume without metadata says nothing of what is not examined")
	}
	head := make([]byte, 256*kib)
	copy(head, l.disks[0].bytes(t, 0, 4*kib)) // the label stays, the first area is lost, the second is at the end
	given := l.given()
	given[0].Data = over{given[0].Data, 0, head}
	got = find(t, given...)
	wantProblem(t, got, "does not begin as one")
	wantStamps(t, got, volume(t, got, "vg/lv"), l.expect(t, "lv"))
}

// notRead are logical volumes of kinds that are not read, in the words of LVM's text, as vgcfgrestore
// takes them; lvs names the kinds.
const notRead = `
	pool { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA1" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 4 type = "thin-pool" metadata = "pool_tmeta" pool = "pool_tdata"
			transaction_id = 1 chunk_size = 128 discards = "passdown" zero_new_blocks = 1 } }
	thin { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA2" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 80 type = "thin" thin_pool = "pool" transaction_id = 0 device_id = 1 } }
	pool_tmeta { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA3" status = ["READ", "WRITE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 50] } }
	pool_tdata { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA4" status = ["READ", "WRITE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 1 stripes = ["pv0", 51] } }
	raid { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA5" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 2 type = "raid1" device_count = 2 region_size = 256
			raids = ["raid_rmeta_0", "raid_rimage_0", "raid_rmeta_1", "raid_rimage_1"] } }
	raid_rmeta_0 { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA6" status = ["READ", "WRITE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 57] } }
	raid_rimage_0 { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA7" status = ["READ", "WRITE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 58] } }
	raid_rmeta_1 { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA8" status = ["READ", "WRITE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv1", 57] } }
	raid_rimage_1 { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA9" status = ["READ", "WRITE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv1", 58] } }
	snap { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAB1" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 62] } }
	snapshot0 { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAB2" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 2 type = "snapshot" chunk_size = 8 origin = "root" cow_store = "snap" } }
	error { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAB3" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
		segment1 { start_extent = 0 extent_count = 2 type = "error" } }
`

func TestLVMNotRead(t *testing.T) {
	l := newLVM(t, 2)
	l.create(t, "-l 5 -n root vg DEV0")
	file := filepath.Join(l.dir, "text")
	l.lvm(t, "vgcfgbackup -f "+file+" vg")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), "logical_volumes {", "logical_volumes {"+notRead, 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l.lvm(t, "vgcfgrestore --force -f "+file+" vg")
	want := map[string]string{}
	for line := range strings.Lines(l.lvm(t, "lvs --noheadings -o name,segtype,lv_attr vg")) {
		f := strings.Fields(line)
		want["vg/"+f[0]] = f[1] + " volume: not read"
	}
	want["vg/root"], want["vg/snap"] = "", "snapshot of root: not read" // lvs says linear, with the attribute "s"
	got := map[string]string{}
	layout := find(t, l.given()...)
	for _, v := range layout.Volumes {
		if v.Kind == LVM2Member {
			continue
		}
		got[v.Name] = v.NotExamined
		if v.Kind == Unknown {
			got[v.Name] = ""
		}
		if v.Kind == NotRead {
			if n, err := v.ReadAt(make([]byte, 512), 0); n != 0 || !errors.Is(err, ErrMissing) {
				t.Errorf("ReadAt(%s) = %d, %v, want an error", v.Name, n, err)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Find() (-lvs +got)\n%s", diff)
	}
	if v := volume(t, layout, "vg/thin"); v.Size != 80*lvmExtent {
		t.Errorf("vg/thin has %d bytes, want %d", v.Size, 80*lvmExtent)
	}
	wantStamps(t, layout, volume(t, layout, "vg/root"), l.expect(t, "root"))
}

// TestLVMText: a text with a right checksum that is not understood in full is not used in part.
func TestLVMText(t *testing.T) {
	many := strings.Builder{}
	for i := range maxLVMParts / 3 {
		fmt.Fprintf(&many, "%x{}", i)
	}
	half := strings.ReplaceAll(seedText, `"pv0", 9`, `"pv0", 1000000`)
	for _, tc := range []struct{ name, text, want string }{
		{"cut", seedText[:len(seedText)-2], "ends inside of a section"},
		{"too many ends", seedText + "}", "ends more sections"},
		{"deep", strings.Repeat("a {", 9) + strings.Repeat("}", 9), "deep"},
		{"many parts", seedText + many.String(), "more than 524288 parts"},
		{"no extents", strings.ReplaceAll(seedText, "extent_size = 64", "extent_size = 0"), "size of its extents"},
		{"huge extents", strings.ReplaceAll(seedText, "extent_size = 64", "extent_size = 9999999999999999999999"), "size of its extents"},
		{"overlap", strings.ReplaceAll(seedText, "start_extent = 4", "start_extent = 3"), "overlaps"},
		{"gap", strings.ReplaceAll(seedText, "start_extent = 4", "start_extent = 40"), "no segment holds"},
		{"past the end", half, "past the end of the physical volume"},
		{"negative", strings.ReplaceAll(seedText, "extent_count = ", "extent_count = -"), "makes no sense"},
		{"missing", strings.ReplaceAll(seedText, "pe_start = 24", `pe_start = 24 flags = ["MISSING"]`), "was changed while it was away"},
		{"itself", strings.ReplaceAll(seedText, "stripe_count = 1 ", "stripe_count = 9 "), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 24*mib)
			w.write(t, 0, lvmSeedDisk(tc.text))
			l := find(t, w.disk("d"))
			said := fmt.Sprint(l.Problems) + notExamined(l)
			if !strings.Contains(said, tc.want) {
				t.Errorf("Find() says %q, want %q", said, tc.want)
			}
			for _, v := range l.Volumes {
				b := make([]byte, v.Size)
				n, err := v.ReadAt(b, 0)
				if v.Name == "vg/lv" && n == len(b) && err == nil && v.NotExamined == "" {
					t.Errorf("all of %s can be read", v.Name)
				}
			}
			if len(l.Volumes) == 1 && l.Volumes[0].NotExamined == "" {
				t.Errorf("Find() = %s, and nothing says why there is no more", l.text())
			}
		})
	}
	t.Run("in itself", func(t *testing.T) {
		w := newWorld(t, 24*mib)
		b := lvmSeedDisk(strings.ReplaceAll(seedText, "pe_start = 24", "pe_start = 0"))
		w.write(t, 0, b)
		l := find(t, w.disk("d"))
		if len(l.Volumes) > 4 {
			t.Errorf("Find() = %s", l.text())
		}
	})
}
