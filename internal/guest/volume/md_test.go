// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Arrays cannot be made without the kernel's driver, which a test machine may lack, so that their
// superblocks are written here by the documented layout (see md.go). The judge of each is `mdadm
// --examine`: it verifies the checksum and says level, UUID, offset and size of the data, and role.

// raid is an array to be made.
type raid struct {
	version string
	level   int32
	disks   int
	name    string
	chunk   int64 // bytes
	used    int64 // bytes of each member
	data    int64 // offset of the data
	size    int64 // of a member's data
	roles   []int // by number
	// change, if there, changes a superblock before its checksum is made.
	change func(number int, b []byte)
}

var arrayUUID = []byte{0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

// write puts the superblock of a member on w at a place of a device of size bytes.
func (r raid) write(t testing.TB, w *world, from, size int64, number int) {
	t.Helper()
	at := mdPlaces(size)[r.version]
	if r.version == "0.90" {
		w.write(t, from+at, r.old(number))
		return
	}
	b := make([]byte, 4096)
	le := binary.LittleEndian
	le.PutUint32(b, mdMagic)
	le.PutUint32(b[4:], 1)
	copy(b[16:], arrayUUID)
	copy(b[32:], r.name)
	le.PutUint64(b[64:], 1_600_000_000)
	le.PutUint32(b[72:], uint32(r.level))
	le.PutUint64(b[80:], uint64(r.used/512))
	le.PutUint32(b[88:], uint32(r.chunk/512))
	le.PutUint32(b[92:], uint32(r.disks))
	le.PutUint64(b[128:], uint64(r.data/512))
	le.PutUint64(b[136:], uint64(r.size/512))
	le.PutUint64(b[144:], uint64(at/512))
	le.PutUint32(b[160:], uint32(number))
	copy(b[168:], fmt.Sprintf("member %08d", number))
	le.PutUint64(b[192:], 1_600_000_100)
	le.PutUint64(b[200:], 17)
	le.PutUint64(b[208:], math.MaxUint64)
	le.PutUint32(b[220:], 128)
	for i := range 128 {
		role := mdSpare
		if i < len(r.roles) {
			role = r.roles[i]
		}
		le.PutUint16(b[256+2*i:], uint16(role))
	}
	if r.change != nil {
		r.change(number, b)
	}
	count := min(le32(b, 220), mdMaxMembers)
	le.PutUint32(b[216:], mdSum1(b[:256+2*count]))
	w.write(t, from+at, b)
}

// old makes a superblock of version 0.90.
func (r raid) old(number int) []byte {
	b := make([]byte, 4096)
	put := func(word int, v uint32) { binary.LittleEndian.PutUint32(b[4*word:], v) }
	put(0, mdMagic)
	put(2, 90)
	for i, w := range []int{5, 13, 14, 15} {
		put(w, binary.BigEndian.Uint32(arrayUUID[4*i:]))
	}
	put(6, 1_600_000_000)
	put(7, uint32(r.level))
	put(8, uint32(r.used>>10))
	put(9, uint32(r.disks))
	put(10, uint32(r.disks))
	put(11, 3) // md3
	put(32, 1_600_000_100)
	put(33, 1)
	put(34, uint32(r.disks))
	put(35, uint32(r.disks))
	put(39, 17)
	put(65, uint32(r.chunk))
	for i := range r.disks {
		for _, at := range []int{128 + 32*i, 992} {
			if at == 992 && i != number {
				continue
			}
			put(at, uint32(i))
			put(at+3, uint32(i))
			put(at+4, 6)
		}
	}
	if r.change != nil {
		r.change(number, b)
	}
	var sum uint64
	for i := 0; i < 4096; i += 4 {
		sum += uint64(le32(b, i))
	}
	put(38, uint32(sum)+uint32(sum>>32))
	return b
}

// examined is what mdadm says of a member, and of the array by it.
func examined(t *testing.T, w *world) map[string]string {
	t.Helper()
	says := map[string]string{}
	for line := range strings.Lines(w.run(t, "", "mdadm --examine DISK")) {
		if k, v, ok := strings.Cut(line, " : "); ok {
			says[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	if !strings.HasSuffix(says["Checksum"], " correct") {
		t.Fatalf("mdadm --examine: checksum %q", says["Checksum"])
	}
	return says
}

// number is the first number in what mdadm says.
func number(t *testing.T, says map[string]string, key string) int64 {
	t.Helper()
	first, _, _ := strings.Cut(says[key], " ")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		t.Fatalf("mdadm --examine: %s is %q", key, says[key])
	}
	return n
}

func TestArrays(t *testing.T) {
	const size = 8 * mib
	for _, tc := range []struct {
		name string
		raid
		volume string
		want   func(members []*member) []uint64
	}{
		{"mirror 1.2", raid{version: "1.2", level: 1, disks: 2, name: "host:boot", used: 5 * mib, data: mib, size: 6 * mib,
			roles: []int{0, 1}}, "md/boot", nil},
		{"mirror 1.1", raid{version: "1.1", level: 1, disks: 2, name: "7", used: 6 * mib, data: mib, size: 6 * mib,
			roles: []int{0, 1}}, "md7", nil},
		{"mirror 1.0", raid{version: "1.0", level: 1, disks: 3, name: "host:0", used: 7 * mib, size: 7 * mib,
			roles: []int{2, 1, 0}}, "md0", nil},
		{"mirror 0.90", raid{version: "0.90", level: 1, disks: 2, used: size - 64*kib}, "md3", nil},
		{"linear 1.2", raid{version: "1.2", level: -1, disks: 3, name: "l", chunk: 64 * kib, data: mib,
			size: 7*mib - 4096, roles: []int{1, 0, 2}}, "md/l", nil},
		{"linear 0.90", raid{version: "0.90", level: -1, disks: 2, chunk: 64 * kib, used: size - 64*kib}, "md3", nil},
		{"stripes 1.2", raid{version: "1.2", level: 0, disks: 3, name: "s", chunk: 16 * kib, data: mib,
			size: 7 * mib, roles: []int{1, 0, 2}}, "md/s", nil},
		{"stripes 0.90", raid{version: "0.90", level: 0, disks: 2, chunk: 64 * kib, used: size - 64*kib}, "md3", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var given []Disk
			for i := range tc.disks {
				w := newWorld(t, size)
				w.stamp(t, i)
				tc.write(t, w, 0, size, i)
				given = append(given, w.disk(fmt.Sprint(i)))
			}
			l := find(t, given...)
			for _, p := range l.Problems {
				t.Errorf("Find() problem %s", p)
			}
			v := volume(t, l, tc.volume)
			// Where the data of each member begins and how much it is, and its role: what mdadm says.
			begin, length, place := make([]int64, tc.disks), make([]int64, tc.disks), make([]int, tc.disks)
			var total int64
			for i := range tc.disks {
				says := examined(t, given[i].Data.(*world))
				member := volume2(l, i)
				if tc.version == "0.90" {
					length[i], place[i] = size-64*kib, i
				} else {
					if tc.version != "1.0" { // where there is none
						begin[i] = number(t, says, "Data Offset") * 512
					}
					length[i] = number(t, says, "Avail Dev Size") * 512
					place[i] = int(number(t, map[string]string{"r": strings.TrimPrefix(says["Device Role"], "Active device ")}, "r"))
				}
				if id := strings.ReplaceAll(member.UUID, "-", ""); id != strings.ReplaceAll(says[uuidKey(says)], ":", "") {
					t.Errorf("the array's UUID is %s, and for mdadm %s", id, says[uuidKey(says)])
				}
				if says["Array Size"] != "" {
					total = number(t, says, "Array Size") << 10
				}
			}
			if total != 0 && total != v.Size && tc.level == 1 {
				t.Errorf("the array has %d bytes, and for mdadm %d", v.Size, total)
			}
			want := expectArray(tc.raid, begin, length, place, v.Size)
			if tc.level == 1 {
				wantMirror(t, l, v, want, begin)
				return
			}
			wantStamps(t, l, v, want)
		})
	}
}

func uuidKey(says map[string]string) string {
	if says["Array UUID"] != "" {
		return "Array UUID"
	}
	return "UUID"
}

// volume2 gives the member on a disk.
func volume2(l *Layout, disk int) *Volume {
	for _, v := range l.Volumes {
		if v.Disk == disk && v.Kind == RAIDMember {
			return v
		}
	}
	return &Volume{}
}

// expectArray gives the stamps of an array by the places of its members.
func expectArray(r raid, begin, length []int64, place []int, size int64) []uint64 {
	at := make([]int, len(place)) // number by place
	for i, p := range place {
		at[p] = i
	}
	var want []uint64
	switch r.level {
	case 1:
		for n := int64(0); n < size; n += 8 {
			want = append(want, stampAt(at[0], begin[at[0]]+n))
		}
	case -1:
		for _, m := range at {
			for n := int64(0); n < length[m]/r.chunk*r.chunk; n += 8 {
				want = append(want, stampAt(m, begin[m]+n))
			}
		}
	case 0:
		for row := int64(0); row < length[0]/r.chunk; row++ {
			for _, m := range at {
				for n := int64(0); n < r.chunk; n += 8 {
					want = append(want, stampAt(m, begin[m]+row*r.chunk+n))
				}
			}
		}
	}
	return want
}

// wantMirror is wantStamps for a mirror, whose members have different stamps here.
func wantMirror(t *testing.T, l *Layout, v *Volume, want []uint64, begin []int64) {
	t.Helper()
	b := make([]byte, v.Size)
	if n, err := v.ReadAt(b, 0); n != len(b) || err != nil || n != len(want)*8 {
		t.Fatalf("ReadAt(%s) = %d, %v, want %d bytes", v.Name, n, err, len(want)*8)
	}
	for i, w := range want {
		if got := le64(b, i*8); got != w {
			t.Fatalf("%s at %#x = %#x, want %#x", v.Name, i*8, got, w)
		}
	}
	copies := 0
	for p := range v.Pieces(4096, 8192) {
		if p.Offset != 4096 || p.Length != 8192 || p.At != begin[p.Disk]+4096 || p.Copy != copies {
			t.Errorf("Pieces(4096, 8192) has %+v", p)
		}
		copies++
	}
	if copies != len(begin) {
		t.Errorf("Pieces() gives %d copies, want %d", copies, len(begin))
	}
}

// TestArrayMembers: what is wrong with members is said, and no stale byte is read.
func TestArrayMembers(t *testing.T) {
	const size = 8 * mib
	base := raid{version: "1.2", level: 1, disks: 2, name: "m", used: 5 * mib, data: mib, size: 6 * mib, roles: []int{0, 1}}
	le := binary.LittleEndian
	for _, tc := range []struct {
		name    string
		change  func(number int, b []byte)
		given   []int
		problem string
		first   uint64 // stamp at the beginning; 0: none
		at      int64
	}{
		{"stale", func(n int, b []byte) { le.PutUint64(b[200:], uint64(10+5*n)) }, []int{0, 1}, "is stale (10 events, the newest has 15)",
			stampAt(1, mib), 0},
		{"one event behind", func(n int, b []byte) { le.PutUint64(b[200:], uint64(10+n)) }, []int{0, 1}, "", stampAt(0, mib), 0},
		{"one of two", nil, []int{1}, "whether one of them is newer cannot be told", stampAt(0, mib), 0},
		{"faulty", func(n int, b []byte) {
			if n == 1 {
				le.PutUint16(b[256:], 0xfffe)
				le.PutUint64(b[200:], 18)
			}
		}, []int{0, 1}, "has it as faulty", stampAt(1, mib), 0},
		{"recovering", func(n int, b []byte) {
			if n == 0 {
				le.PutUint32(b[8:], mdRecovering)
			}
		}, []int{0, 1}, "being recovered", stampAt(1, mib), 0},
		{"not in sync", func(n int, b []byte) { le.PutUint64(b[208:], 100) }, []int{0, 1}, "may differ", stampAt(0, mib), 0},
		{"bad blocks", func(n int, b []byte) {
			if n == 0 {
				le.PutUint32(b[8:], mdBadBlocks)
				le.PutUint16(b[186:], 8)
				le.PutUint32(b[188:], 16)
			}
		}, []int{0, 1}, "list of bad blocks", stampAt(1, mib+8192), 8192},
		{"reshaped", func(n int, b []byte) { le.PutUint32(b[8:], mdReshaping) }, []int{0, 1}, "reshaped", 0, 0},
		{"unknown features", func(n int, b []byte) { le.PutUint32(b[8:], 1<<20) }, []int{0, 1}, "unknown features 0x100000", 0, 0},
		{"RAID 5", func(n int, b []byte) { le.PutUint32(b[72:], 5) }, []int{0, 1}, "", 0, 0},
		{"RAID 10", func(n int, b []byte) { le.PutUint32(b[72:], 10); le.PutUint32(b[76:], 0x102) }, []int{0, 1}, "", 0, 0},
		{"container", func(n int, b []byte) { le.PutUint32(b[72:], uint32(0xfffe7960)) }, []int{0, 1}, "", 0, 0},
		{"no members", func(n int, b []byte) { le.PutUint32(b[92:], 0) }, []int{0, 1}, "is not in the array", 0, 0},
		{"too many roles", func(n int, b []byte) { le.PutUint32(b[220:], 5000) }, []int{0, 1}, "do not fit", 0, 0},
		{"linear without one", func(n int, b []byte) { le.PutUint32(b[72:], 0xffffffff) }, []int{1}, "are not given", 0, 0},
		{"stripes without one", func(n int, b []byte) { le.PutUint32(b[72:], 0); le.PutUint32(b[88:], 8) }, []int{1}, "are not given", 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := base
			r.change = tc.change
			var given []Disk
			for _, i := range tc.given {
				w := newWorld(t, size)
				w.stamp(t, i)
				r.write(t, w, 0, size, i)
				w.write(t, 4096+16*512, binary.LittleEndian.AppendUint64(nil, (2048+16)<<10|4)) // a bad block
				w.write(t, 4096+16*512+8, binary.LittleEndian.AppendUint64(nil, math.MaxUint64))
				given = append(given, w.disk(fmt.Sprint(i)))
			}
			l := find(t, given...)
			if tc.problem != "" && !strings.Contains(fmt.Sprint(l.Problems)+notExamined(l), tc.problem) {
				t.Errorf("Find() says %v, want %q", l.Problems, tc.problem)
			}
			if tc.problem == "" && len(l.Problems) > 0 {
				t.Errorf("Find() says %v, want nothing", l.Problems)
			}
			doubt := slices.ContainsFunc(l.Problems, func(p Problem) bool { return p.Doubt })
			if doubt != (tc.name == "one of two") {
				t.Errorf("in doubt: %v, %v", doubt, l.Problems)
			}
			v := volume(t, l, "md/m")
			b := make([]byte, 8)
			_, err := v.ReadAt(b, tc.at)
			if tc.first == 0 {
				if err == nil || v.Kind != NotRead || v.NotExamined == "" {
					t.Errorf("the array is %s, %q, and gives %#x, %v; want an error", v.Kind, v.NotExamined, le64(b, 0), err)
				}
				return
			}
			want := tc.first
			if tc.name == "one of two" {
				want = stampAt(1, mib)
			}
			if err != nil || le64(b, 0) != want {
				t.Errorf("ReadAt(%#x) = %#x, %v, want %#x", tc.at, le64(b, 0), err, want)
			}
		})
	}
}

// TestOldArrayMembers: in version 0.90 only a member that is active and in sync is read, and the newest
// superblock says which those are.
func TestOldArrayMembers(t *testing.T) {
	const size = 4 * mib
	for _, state := range []uint32{0, 1, 2, 4, 6} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			r := raid{version: "0.90", level: 1, disks: 2, used: size - 64*kib}
			r.change = func(n int, b []byte) { binary.LittleEndian.PutUint32(b[4*(128+4):], state) }
			var given []Disk
			for i := range 2 {
				w := newWorld(t, size)
				w.stamp(t, i)
				b := r.old(i)
				if order == binary.BigEndian { // each word turned, and the halves of the events with them
					for at := 0; at < len(b); at += 4 {
						binary.BigEndian.PutUint32(b[at:], le32(b, at))
					}
					events := append([]byte{}, b[39*4:41*4]...)
					copy(b[39*4:], events[4:])
					copy(b[40*4:], events[:4])
				}
				w.write(t, size-64*kib, b)
				given = append(given, w.disk(fmt.Sprint(i)))
			}
			b := make([]byte, 8)
			_, err := volume(t, find(t, given...), "md3").ReadAt(b, 0)
			want := stampAt(1, 0)
			if state == 6 {
				want = stampAt(0, 0)
			}
			if err != nil || le64(b, 0) != want {
				t.Errorf("%v, state %d: ReadAt() = %#x, %v, want %#x", order, state, le64(b, 0), err, want)
			}
		}
	}
}

func notExamined(l *Layout) (s string) {
	for _, v := range l.Volumes {
		s += v.NotExamined + "\n"
	}
	return s
}

// TestNested: logical volumes on a mirror of partitions, with a file system; a mirror of disks that is
// divided; and each table and superblock belongs to one of them only.
func TestNested(t *testing.T) {
	const size = 48 * mib
	t.Run("lvm on md on partitions", func(t *testing.T) {
		// The group is made on a loop device of the array's size, and then put into the members.
		inner := newLVM(t, 1)
		inner.create(t, "-l 40 -n root vg")
		fs := newWorld(t, 40*lvmExtent)
		fs.run(t, "", "mkfs.ext4 -q -L top DISK")
		pv := inner.disks[0]
		pv.write(t, 128*kib, fs.bytes(t, 0, fs.size))
		var given []Disk
		for i := range 2 {
			w := newWorld(t, size)
			w.run(t, "label: gpt\nsize=4M\nsize=20M, type=raid\n", "sfdisk -q DISK")
			r := raid{version: "1.2", level: 1, disks: 2, name: "0", used: pv.size, data: mib, size: 19 * mib,
				roles: []int{0, 1}}
			r.write(t, w, 5*mib, 20*mib, i)
			w.write(t, 5*mib+mib, pv.bytes(t, 0, pv.size))
			given = append(given, w.disk(fmt.Sprint("disk", i)))
		}
		l := find(t, given...)
		got := l.text()
		want := "disk1p1 unknown 1048576+4194304\ndisk1p2 linux_raid_member 5242880+20971520\n" +
			"disk2p1 unknown 1048576+4194304\ndisk2p2 linux_raid_member 5242880+20971520\n" +
			"md0 LVM2_member -1+12582912\nvg/root ext4 -1+5242880\n"
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Find() (-want +got)\n%s", diff)
		}
		var short []string
		for _, v := range l.Volumes {
			short = append(short, v.Short())
		}
		if diff := cmp.Diff([]string{"1", "2", "1", "2", "", ""}, short); diff != "" {
			t.Errorf("Short() (-want +got)\n%s", diff)
		}
		v := volume(t, l, "vg/root")
		if v.Label != "top" {
			t.Errorf("the label is %q", v.Label)
		}
		b := make([]byte, v.Size)
		if _, err := v.ReadAt(b, 0); err != nil || string(b) != string(fs.bytes(t, 0, fs.size)) {
			t.Errorf("ReadAt(vg/root) is not the file system, %v", err)
		}
		var hits []string
		for h := range l.Within(1, 6*mib+128*kib+1024, 512) {
			hits = append(hits, fmt.Sprintf("%s %d+%d", l.Volumes[h.Volume].Name, h.Offset, h.Length))
		}
		if diff := cmp.Diff([]string{"disk2p2 1180672+512", "md0 132096+512", "vg/root 1024+512"}, hits); diff != "" {
			t.Errorf("Within() (-want +got)\n%s", diff)
		}
		given[0].Data = dead{given[0].Data, 6 * mib, size}
		l = find(t, given...)
		if _, err := volume(t, l, "vg/root").ReadAt(make([]byte, mib), 0); err != nil {
			t.Errorf("ReadAt() with one dead member: %v", err)
		}
	})
	t.Run("divided logical volume", func(t *testing.T) {
		l := newLVM(t, 1)
		l.create(t, "-l 40 -n disk vg")
		inner := newWorld(t, 40*lvmExtent)
		inner.run(t, "label: gpt\nsize=1M\n-\n", "sfdisk -q DISK")
		inner.write(t, 2*mib+1080, []byte{0x53, 0xef}) // too little for ext4
		l.disks[0].write(t, 128*kib, inner.bytes(t, 0, inner.size))
		got := find(t, l.given()...)
		want := "0 LVM2_member 0+12582912\nvg/disk gpt 131072+5242880\nvg/diskp1 empty 1179648+1048576\n" +
			"vg/diskp2 unknown 2228224+2097152\n"
		if diff := cmp.Diff(want, got.text()); diff != "" {
			t.Errorf("Find() (-want +got)\n%s", diff)
		}
		if got.Tables[0].In != 1 || got.Volumes[2].In[0] != 1 {
			t.Errorf("the table is in %d, its partition in %v", got.Tables[0].In, got.Volumes[2].In)
		}
	})
	for _, version := range []string{"1.0", "0.90"} {
		t.Run("divided array "+version, func(t *testing.T) {
			var given []Disk
			r := raid{version: version, level: 1, disks: 2, name: "3", used: size - mib, size: size - mib, roles: []int{0, 1}}
			for i := range 2 {
				w := newWorld(t, size)
				w.run(t, "label: dos\nsize=4M\nsize=20M\n", "sfdisk -q DISK")
				r.write(t, w, 0, size, i)
				given = append(given, w.disk(fmt.Sprint("disk", i)))
			}
			want := "disk1 linux_raid_member 0+50331648\ndisk2 linux_raid_member 0+50331648\nmd3 dos -1+49283072\n" +
				"md3p1 unknown -1+4194304\nmd3p2 unknown -1+20971520\n"
			l := find(t, given...)
			if diff := cmp.Diff(want, l.text()); diff != "" {
				t.Errorf("Find() (-want +got)\n%s", diff)
			}
			if l.Tables[0].In != 2 || l.Tables[0].Disk != -1 {
				t.Errorf("the table is in %d on %d", l.Tables[0].In, l.Tables[0].Disk)
			}
		})
	}
	t.Run("0.90 at the end of the last partition", func(t *testing.T) {
		w := newWorld(t, size)
		w.run(t, "label: dos\nsize=4M\n-\n", "sfdisk -q DISK")
		r := raid{version: "0.90", level: 1, disks: 2, used: 40 * mib}
		r.write(t, w, 5*mib, size-5*mib, 0)
		want := "1 unknown 1048576+4194304\n2 linux_raid_member 5242880+45088768\nmd3 unknown 5242880+41943040\n"
		if diff := cmp.Diff(want, find(t, w.disk("d")).text()); diff != "" {
			t.Errorf("Find() (-want +got)\n%s", diff)
		}
	})
}

// dead is a disk of which a range gives an error.
type dead struct {
	w interface {
		ReadAt([]byte, int64) (int, error)
	}
	from, to int64
}

var errDead = errors.New("input/output error")

func (d dead) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.w.ReadAt(p, off)
	if from, to := max(0, d.from-off), min(int64(n), d.to-off); from < to {
		return int(from), errDead
	}
	return n, err
}
