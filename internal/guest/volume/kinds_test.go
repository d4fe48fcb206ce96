// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// kinds are commands that fill a disk. blkid is the judge of what it is then.
var kinds = []struct {
	name    string
	size    int64
	command string
	read    bool // it is not refused
}{
	{"ext2", 16 * mib, "mkfs.ext2 -q -L two DISK", true},
	{"ext3", 32 * mib, "mkfs.ext3 -q -L three DISK", true},
	{"ext4", 32 * mib, "mkfs.ext4 -q -L four DISK", true},
	{"ext4-1k", 32 * mib, "mkfs.ext4 -q -b 1024 -O ^metadata_csum,^64bit DISK", true},
	{"journal", 32 * mib, "mke2fs -q -O journal_dev -L log DISK", false},
	{"xfs", 400 * mib, "mkfs.xfs -q -L some DISK", true},
	{"xfs-4", 400 * mib, "mkfs.xfs -q -m crc=0,finobt=0 DISK", true},
	{"btrfs", 200 * mib, "mkfs.btrfs -q -L butter DISK", false},
	{"swap", 4 * mib, "mkswap -q -L swappy DISK", true},
	{"swap-64k", 4 * mib, "mkswap -q -p 65536 DISK", true},
	{"fat12", 4 * mib, "mkfs.fat -F 12 -n TWELVE DISK", false},
	{"fat16", 32 * mib, "mkfs.fat -F 16 -n SIXTEEN DISK", false},
	{"fat32", 64 * mib, "mkfs.fat -F 32 -n THIRTYTWO DISK", false},
	{"exfat", 32 * mib, "mkfs.exfat -n ex DISK", false},
	{"ntfs", 16 * mib, "mkntfs -q -F -Q -L windows DISK", false},
	{"f2fs", 64 * mib, "mkfs.f2fs -q -l flash DISK", false},
	{"luks1", 32 * mib, "cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 DISK KEY", false},
	{"luks2", 32 * mib, "cryptsetup -q luksFormat --type luks2 --label crypt --pbkdf pbkdf2 --pbkdf-force-iterations 1000 DISK KEY", false},
	{"bcache", 16 * mib, "make-bcache -B DISK", false},
	{"jfs", 32 * mib, "mkfs.jfs -q -L journaled DISK", false},
	{"nilfs2", 200 * mib, "mkfs.nilfs2 -q -L nil DISK", false},
	{"udf", 32 * mib, "mkudffs -l universal DISK", false},
	{"iso", 0, "genisoimage -quiet -V COMPACT -o DISK FILES", false},
	{"squashfs", 0, "mksquashfs FILES DISK -noappend -quiet -no-progress", false},
	{"erofs", 0, "mkfs.erofs --quiet DISK FILES", false},
}

func TestKinds(t *testing.T) {
	files := t.TempDir()
	key := filepath.Join(files, "key")
	if err := os.WriteFile(key, []byte("a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range kinds {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.size)
			w.run(t, "", strings.NewReplacer("KEY", key, "FILES", files).Replace(tc.command))
			size, err := w.Seek(0, io.SeekEnd)
			if err != nil {
				t.Fatal(err)
			}
			w.size = size
			l := find(t, w.disk("d"))
			if len(l.Volumes) != 1 || len(l.Problems)+len(l.Blind)+len(l.Tables) > 0 {
				t.Fatalf("Find() = %s %v %v %v", l.text(), l.Problems, l.Blind, l.Tables)
			}
			v := l.Volumes[0]
			says := w.blkid(t)
			want := map[string]string{"TYPE": says["TYPE"], "LABEL": says["LABEL"], "UUID": says["UUID"]}
			if tc.name == "udf" || tc.name == "iso" {
				want["UUID"], want["LABEL"] = v.UUID, v.Label // these are made of other fields
			}
			if tc.name == "ntfs" || tc.name == "exfat" {
				want["LABEL"] = "" // it stands in a file, which is not read
			}
			got := map[string]string{"TYPE": string(v.Kind), "LABEL": v.Label, "UUID": v.UUID}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Find() (-blkid +got)\n%s", diff)
			}
			if tc.read != (v.NotExamined == "") {
				t.Errorf("NotExamined is %q, want read %v", v.NotExamined, tc.read)
			}
			// In a partition it is the same.
			p := newWorld(t, w.size+3*mib)
			p.write(t, 446, mbrLine(0x83, 2048, w.size/512))
			p.write(t, 510, []byte{0x55, 0xaa})
			p.write(t, mib, w.bytes(t, 0, min(w.size, 2*mib)))
			if tail := w.size - 2*mib; tail > 0 {
				p.write(t, mib+w.size-min(tail, mib), w.bytes(t, w.size-min(tail, mib), min(tail, mib)))
			}
			in := volume(t, find(t, p.disk("d")), "1")
			if in.Kind != v.Kind || in.UUID != v.UUID {
				t.Errorf("in a partition it is %s %s, want %s %s", in.Kind, in.UUID, v.Kind, v.UUID)
			}
		})
	}
}

// mbrLine is an entry of an MBR.
func mbrLine(kind byte, first, sectors int64) []byte {
	b := make([]byte, 16)
	b[4] = kind
	binary.LittleEndian.PutUint32(b[8:], uint32(first))
	binary.LittleEndian.PutUint32(b[12:], uint32(sectors))
	return b
}

// blkid is what `blkid -p` says of w.
func (w *world) blkid(t *testing.T) map[string]string {
	t.Helper()
	says := map[string]string{}
	for line := range strings.Lines(w.run(t, "", "blkid -p -o export DISK")) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		says[k] = strings.ReplaceAll(v, `\ `, " ")
	}
	return says
}

// TestKindsByHand are those that no tool here makes, each by its format's documentation.
func TestKindsByHand(t *testing.T) {
	put := func(off int64, s string) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.write(t, off, []byte(s)) }
	}
	for _, tc := range []struct {
		name       string
		make       func(*testing.T, *world)
		kind       Kind
		note, not_ string // parts of Note and NotExamined
	}{
		{"nothing", func(*testing.T, *world) {}, Unknown, "", "the first 524288 and the last 786432 of 67108864 bytes"},
		{"data", put(3000, "data"), Unknown, "", "nothing that is known"},
		{"data at the end", put(64*mib-4, "data"), Unknown, "", "nothing that is known"},
		{"hibernated", func(t *testing.T, w *world) {
			w.run(t, "", "mkswap -q DISK")
			w.write(t, 4086, []byte("S1SUSPEND\x00"))
		}, Swap, "hibernated", ""},
		{"hibernated by a user's program", put(4086, "ULSUSPEND"), Swap, "hibernated", ""},
		{"zfs", func(t *testing.T, w *world) { w.write(t, 16<<10, zfsLabel()) }, ZFS, "", "not read"},
		{"zfs, last label", func(t *testing.T, w *world) { w.write(t, 64*mib-240<<10, zfsLabel()) }, ZFS, "", "not read"},
		{"bitlocker", put(0, "\xeb\x58\x90-FVE-FS-"), bitLocker, "", "encrypted (BitLocker)"},
		{"luks2, second header", func(t *testing.T, w *world) {
			w.write(t, 16<<10, []byte("SKUL\xba\xbe\x00\x02"))
		}, LUKS, "first header is lost", "encrypted (LUKS2)"},
		{"bcachefs", put(4096+24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"), "bcachefs", "", "not read"},
		{"drbd", put(64*mib-4096+60, "\x83\x74\x02\x67"), "drbd", "", "not read"},
		{"isw", put(64*mib-1024, "Intel Raid ISM Cfg Sig. 1.1"), "isw_raid_member", "", "not read"},
		{"ddf", put(64*mib-512, "\xde\x11\xde\x11"), "ddf_raid_member", "", "not read"},
		{"external log of xfs", func(t *testing.T, w *world) {
			b := make([]byte, 512)
			binary.BigEndian.PutUint32(b, 0xfeedbabe)
			binary.BigEndian.PutUint32(b[8:], 2)
			binary.BigEndian.PutUint32(b[300:], 1)
			w.write(t, 0, b)
		}, "xfs_external_log", "", "not read"},
		{"reiserfs", put(65536+52, "ReIsEr2Fs"), "reiserfs", "", "not read"},
		{"ufs", put(65536+1372, "\x19\x01\x54\x19"), "ufs", "", "not read"},
		{"apfs", put(32, "NXSB"), "apfs", "", "not read"},
		{"hfsplus", put(1024, "H+\x00\x04"), "hfsplus", "", "not read"},
		{"lvm1", put(0, "HM\x01\x00"), "LVM1_member", "", "not read"},
		{"bsd", func(t *testing.T, w *world) {
			w.write(t, 512, []byte("WEV\x82"))
			w.write(t, 512+132, []byte("WEV\x82"))
		},
			tabBSD, "", "BSD disklabel"},
		{"sun", func(t *testing.T, w *world) { w.run(t, "label: sun\nsize=10M\n", "sfdisk -q DISK") }, tabSun, "", "Sun disklabel"},
		{"sgi", func(t *testing.T, w *world) { w.run(t, "label: sgi\nsize=10M\n", "sfdisk -q DISK") }, tabSGI, "", "SGI"},
		{"mac", func(t *testing.T, w *world) {
			w.run(t, "", "parted -s DISK mklabel mac mkpart primary ext2 1MiB 20MiB")
		}, tabMac, "", "Apple"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 64*mib)
			tc.make(t, w)
			l := find(t, w.disk("d"))
			if len(l.Volumes) != 1 {
				t.Fatalf("Find() = %s", l.text())
			}
			v := l.Volumes[0]
			if v.Kind != tc.kind || !strings.Contains(v.Note, tc.note) || !strings.Contains(v.NotExamined, tc.not_) ||
				tc.not_ == "" && v.NotExamined != "" {
				t.Errorf("Find() = %s, %q, %q, want %s, %q, %q", v.Kind, v.Note, v.NotExamined, tc.kind, tc.note, tc.not_)
			}
		})
	}
}

// TestInPartition are divisions of partitions, which are not read.
func TestInPartition(t *testing.T) {
	for _, tc := range []struct {
		name string
		kind byte
		at   int64
		text string
		want Kind
	}{
		{"bsd", 0xa5, 512, "WEV\x82" + strings.Repeat("\x00", 128) + "WEV\x82", tabBSD},
		{"solaris", 0xbf, 512 + 12, "\xee\xde\x0d\x60", tabSolaris},
		{"windows", 0x42, 3072, "PRIVHEAD", tabLDM},
		{"mbr", 0x83, 446, string(mbrLine(0x83, 100, 100)) + strings.Repeat("\x00", 48) + "\x55\xaa", MBR},
		{"nothing", 0x83, 446, "nothing", Unknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 32*mib)
			w.write(t, 446, mbrLine(tc.kind, 2048, 40960))
			w.write(t, 510, []byte{0x55, 0xaa})
			w.write(t, mib+tc.at, []byte(tc.text))
			l := find(t, w.disk("d"))
			if v := volume(t, l, "1"); v.Kind != tc.want || v.NotExamined == "" || len(l.Volumes) != 1 {
				t.Errorf("Find() = %s, %q; want %s and why", l.text(), v.NotExamined, tc.want)
			}
		})
	}
}

// zfsLabel is the list of a label as far as it is looked at.
func zfsLabel() []byte {
	b := []byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}
	pair := func(name string, value ...byte) {
		for len(name)%4 != 0 {
			name += "\x00"
		}
		size := 12 + len(name) + len(value)
		b = binary.BigEndian.AppendUint32(b, uint32(size))
		b = binary.BigEndian.AppendUint32(b, uint32(size))
		b = binary.BigEndian.AppendUint32(b, uint32(len(strings.TrimRight(name, "\x00"))))
		b = append(append(b, name...), value...)
	}
	pair("version", 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x13, 0x88)
	pair("name", 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 4, 't', 'a', 'n', 'k')
	pair("pool_guid", 0, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
}

// TestUnreadable: what cannot be read is unknown and a blind spot, never empty.
func TestUnreadable(t *testing.T) {
	w := newWorld(t, 64*mib)
	w.run(t, "label: gpt\nsize=10M\nsize=10M\nsize=10M\n", "sfdisk -q DISK")
	for _, tc := range []struct{ from, to int64 }{{11 * mib, 11*mib + 4096}, {21*mib - 512, 21 * mib}, {11 * mib, 21 * mib}} {
		t.Run(fmt.Sprint(tc.from), func(t *testing.T) {
			d := w.disk("d")
			d.Data = dead{w, tc.from, tc.to}
			l := find(t, d)
			if v := volume(t, l, "2"); v.Kind != Unknown || v.NotExamined == "" || len(l.Blind) == 0 {
				t.Errorf("Find() = %s, %q, %d blind spots; want unknown and why", v.Kind, v.NotExamined, len(l.Blind))
			}
			if v := volume(t, l, "3"); v.Kind != Unknown || !strings.Contains(v.NotExamined, "zeros") {
				t.Errorf("Find() = %s for the next partition", v.Kind)
			}
		})
	}
	t.Run("first sector", func(t *testing.T) {
		d := w.disk("d")
		d.Data = dead{w, 0, 512}
		l := find(t, d)
		wantProblem(t, l, "protective MBR: it cannot be read")
		if len(parts(l)) != 3 || len(l.Blind) == 0 {
			t.Errorf("Find() = %s with %d blind spots", l.text(), len(l.Blind))
		}
	})
	t.Run("all", func(t *testing.T) {
		d := w.disk("d")
		d.Data = dead{w, 0, w.size}
		l := find(t, d)
		if v := volume(t, l, "0"); v.Kind != Unknown || len(l.Blind) == 0 {
			t.Errorf("Find(dead disk) = %s with %d blind spots", v.Kind, len(l.Blind))
		}
	})
}
