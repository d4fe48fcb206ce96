// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
)

// summedGPT makes the checksum of the header in b right.
func summedGPT(b []byte) {
	clear(b[16:20])
	binary.LittleEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b[:92]))
}

// gptWorld is a disk of 64 MiB with three partitions and, at its end, the backup.
func gptWorld(t *testing.T) *world {
	w := newWorld(t, 64*mib)
	w.run(t, "label: gpt\nsize=10M, name=one\nsize=10M, name=two\nsize=10M, name=three\n", "sfdisk -q DISK")
	return w
}

// edit changes n bytes of w at off.
func (w *world) edit(t testing.TB, off, n int64, change func(b []byte)) {
	t.Helper()
	b := w.bytes(t, off, n)
	change(b)
	w.write(t, off, b)
}

// copied is a copy of w but for what lies in the middle, where nothing is.
func (w *world) copied(t *testing.T) *world {
	t.Helper()
	c := newWorld(t, w.size)
	c.write(t, 0, w.bytes(t, 0, 64*kib))
	c.write(t, w.size-64*kib, w.bytes(t, w.size-64*kib, 64*kib))
	return c
}

const gptEnd = 64*mib - 512

// TestSpoiledGPT breaks a table in every way: the partitions stay, or what is missing is said.
func TestSpoiledGPT(t *testing.T) {
	flip := func(off int64) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.edit(t, off, 1, func(b []byte) { b[0] ^= 1 }) }
	}
	zeros := func(off, n int64) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.write(t, off, make([]byte, n)) }
	}
	header := func(off int64, change func(b []byte)) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			w.edit(t, off, 512, func(b []byte) { change(b); summedGPT(b) })
		}
	}
	le := binary.LittleEndian
	base := gptWorld(t)
	for _, tc := range []struct {
		name   string
		spoil  []func(*testing.T, *world)
		backup bool
		want   []string // of problems, each part of one
		parts  int      // -1: none, and the disk is a volume that says why
	}{
		{"primary header", list(flip(512 + 60)), true, list("primary GPT header: its checksum", "backup is used"), 3},
		{"primary header zero", list(zeros(512, 512)), true, list("primary GPT header: there is none; the backup is used"), 3},
		{"primary entries", list(flip(1024 + 40)), true, list("primary GPT entries: their checksum", "backup is used"), 3},
		{"backup header", list(flip(gptEnd + 60)), false, list("backup GPT header: its checksum", "primary is used"), 3},
		{"backup header zero", list(zeros(gptEnd, 512)), false, list("backup GPT header: there is none"), 3},
		{"backup entries", list(flip(gptEnd - 32*512 + 40)), false, list("backup GPT entries"), 3},
		{"both headers", list(flip(512+60), flip(gptEnd+60)), false, list("used as it stands", "primary GPT header", "backup GPT header"), 3},
		{"both entries", list(flip(1024+40), flip(gptEnd-32*512+40)), false, list("primary GPT entries", "used as it stands"), 3},
		{"primary header, backup entries", list(flip(512+60), flip(gptEnd-32*512+60)), false,
			list("primary GPT header", "backup GPT entries"), 3},
		{"both headers zero", list(zeros(512, 512), zeros(gptEnd, 512)), false, list("neither header is there"), -1},
		{"head zero", list(zeros(0, mib)), true, list("protective MBR: it is missing", "primary GPT header"), 3},
		{"head and end zero", list(zeros(0, mib), zeros(63*mib, mib)), false, nil, -1},
		{"no protective MBR", list(zeros(0, 512)), false, list("protective MBR: it is missing"), 3},
		{"no signature", list(zeros(510, 2)), false, list("protective MBR: it is missing"), 3},
		{"another backup", list(header(gptEnd, func(b []byte) { b[56] ^= 1 })), false, list("it is of another table"), 3},
		{"other entries", list(func(t *testing.T, w *world) {
			w.edit(t, gptEnd-32*512, 32*512, func(b []byte) { b[40]++ })
			sum := crc32.ChecksumIEEE(w.bytes(t, gptEnd-32*512, 128*128))
			header(gptEnd, func(b []byte) { le.PutUint32(b[88:], sum) })(t, w)
		}), false, list("its entries are not those of the primary"), 3},
		{"wrong sector", list(header(512, func(b []byte) { le.PutUint64(b[24:], 7) })), true, list("it says that it is in sector 7"), 3},
		{"many entries", list(header(512, func(b []byte) { le.PutUint32(b[80:], 1<<31) })), true, list("out of bounds"), 3},
		{"wide entries", list(header(512, func(b []byte) { le.PutUint32(b[84:], 1<<31) })), true, list("out of bounds"), 3},
		{"entries elsewhere", list(header(512, func(b []byte) { le.PutUint64(b[72:], 1<<62) })), true, list("not on the disk"), 3},
		{"long header", list(func(t *testing.T, w *world) {
			w.edit(t, 512, 512, func(b []byte) { le.PutUint32(b[12:], 1<<31) })
		}), true, list("length of 2147483648 bytes"), 3},
		{"backup elsewhere", list(header(512, func(b []byte) { le.PutUint64(b[32:], 1<<60) })), false, list("past the end of the disk"), 3},
		{"both of one place", list(header(512, func(b []byte) { le.PutUint64(b[32:], 1) })), false, list("it says"), 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := base.copied(t)
			for _, spoil := range tc.spoil {
				spoil(t, w)
			}
			l := find(t, w.disk("d"))
			for _, want := range tc.want {
				if want == "it says" {
					continue
				}
				wantProblem(t, l, want)
			}
			if tc.parts < 0 {
				v := volume(t, l, "0")
				if tc.want != nil && (v.NotExamined == "" || v.Kind == Empty) || len(l.Volumes) != 1 {
					t.Errorf("Find() = %s %q, want the disk and why it is not divided", l.text(), v.NotExamined)
				}
				return
			}
			if got := len(parts(l)); got != tc.parts {
				t.Errorf("Find() has %d partitions, want %d: %s", got, tc.parts, l.text())
			}
			if len(l.Tables) != 1 || l.Tables[0].FromBackup != tc.backup {
				t.Errorf("Find() has tables %+v, want one, of the backup: %v", l.Tables, tc.backup)
			}
		})
	}
}

func list[T any](s ...T) []T { return s }

// TestSpoiledEntries puts every kind of nonsense into sound tables.
func TestSpoiledEntries(t *testing.T) {
	le := binary.LittleEndian
	entry := func(n int64, first, last uint64) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			w.edit(t, 1024+128*n, 48, func(b []byte) {
				b[0] = 1 // of some type
				le.PutUint64(b[32:], first)
				le.PutUint64(b[40:], last)
			})
			sum := crc32.ChecksumIEEE(w.bytes(t, 1024, 128*128))
			w.edit(t, 512, 512, func(b []byte) { le.PutUint32(b[88:], sum); summedGPT(b) })
		}
	}
	base := gptWorld(t)
	for _, tc := range []struct {
		name  string
		spoil func(*testing.T, *world)
		want  string
		parts int
	}{
		{"overlap", entry(3, 3000, 4000), "it overlaps with partition 1", 4},
		{"around", entry(3, 1000, 130000), "it overlaps with partition 4", 4},
		{"past the end", entry(3, 70000, 1<<40), "past the end of the disk", 4},
		{"backwards", entry(3, 80000, 79999), "which is no range", 3},
		{"huge", entry(3, 1<<63, 1<<63+5), "which is no range", 3},
		{"on the table", entry(3, 0, 100), "not all usable", 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := base.copied(t)
			tc.spoil(t, w)
			l := find(t, w.disk("d"))
			wantProblem(t, l, tc.want)
			if got := len(parts(l)); got != tc.parts {
				t.Errorf("Find() has %d partitions, want %d: %s", got, tc.parts, l.text())
			}
			for _, v := range l.Volumes {
				if _, err := v.ReadAt(make([]byte, 512), v.Size-512); v.Start+v.Size > w.size && err == nil {
					t.Errorf("the last bytes of %s are past the end of the disk, and can be read", v.Name)
				}
			}
		})
	}
}

// TestSpoiledMBR does the same to MBRs and the chain of logical partitions.
func TestSpoiledMBR(t *testing.T) {
	// 1 at 1 MiB, 2 extended at 11 MiB: links at 22528 (5), 45056 (6), 67584 (7) of 512 bytes.
	script := "label: dos\n1: start=2048, size=10M\n2: start=22528, size=40M, type=5\n5: start=24576, size=10M\n" +
		"6: start=47104, size=10M\n7: start=69632, size=5M\n"
	const link = 22528
	base := newWorld(t, 64*mib)
	base.run(t, script, "sfdisk -q DISK")
	find0 := func(t *testing.T) (w *world, links []int64) {
		w = newWorld(t, 64*mib)
		for _, at := range []int64{0, link * 512, 45056 * 512, 67584 * 512} {
			w.write(t, at, base.bytes(t, at, mib))
		}
		l := find(t, w.disk("d"))
		for _, r := range l.Tables[0].Ranges {
			if strings.HasPrefix(r.What, "extended") {
				links = append(links, r.Offset)
			}
		}
		if len(links) != 3 || links[0] != link*512 || len(parts(l)) != 5 {
			t.Fatalf("the links are at %v, the partitions %v", links, parts(l))
		}
		return w, links
	}
	entryAt := func(w *world, sector int64, n int, kind byte, first, sectors int64) {
		w.write(t, sector+446+16*int64(n), mbrLine(kind, first, sectors))
	}
	for _, tc := range []struct {
		name  string
		spoil func(w *world, links []int64)
		want  string
		parts int
	}{
		{"loop to the start", func(w *world, l []int64) { entryAt(w, l[2], 1, 5, 0, 1000) }, "comes back to sector 22528", 5},
		{"loop to itself", func(w *world, l []int64) { entryAt(w, l[1], 1, 5, l[1]/512-link, 1000) }, "comes back to sector", 4},
		{"link outside", func(w *world, l []int64) { entryAt(w, l[1], 1, 5, 1<<31, 1000) }, "past the end of the disk", 4},
		{"link without table", func(w *world, l []int64) { w.write(t, l[1], make([]byte, 512)) }, "holds no table", 3},
		{"first link without table", func(w *world, l []int64) { w.write(t, l[0]+510, []byte{1, 2}) }, "holds no table", 2},
		{"logical past the extended", func(w *world, l []int64) { entryAt(w, l[2], 0, 0x83, 2048, 60000) },
			"goes past the end of the extended partition", 5},
		{"garbage in the fourth entry", func(w *world, l []int64) { entryAt(w, l[0], 3, 0x83, 1<<30, 1<<30) }, "", 5},
		{"two links", func(w *world, l []int64) { entryAt(w, l[0], 2, 5, l[2]/512-link, 1000) }, "", 5},
		{"overlap", func(w *world, l []int64) { entryAt(w, 0, 2, 0x83, 3000, 1000) }, "it overlaps with partition 1", 6},
		{"on the extended", func(w *world, l []int64) { entryAt(w, 0, 2, 0x83, 30000, 1000) }, "overlaps with the extended partition 2", 6},
		{"past the end", func(w *world, l []int64) { entryAt(w, 0, 2, 0x83, 1<<31, 1<<31) }, "past the end of the disk", 6},
		{"at the table", func(w *world, l []int64) { entryAt(w, 0, 2, 0x83, 0, 100) }, "it holds the table itself", 6},
		{"extended past the end", func(w *world, l []int64) { entryAt(w, 0, 1, 5, link, 1<<31) }, "past the end of the disk", 5},
		{"second extended at the first", func(w *world, l []int64) { entryAt(w, 0, 2, 5, link, 40*2048) }, "overlaps with", 9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, links := find0(t)
			tc.spoil(w, links)
			l := find(t, w.disk("d"))
			if tc.want != "" {
				wantProblem(t, l, tc.want)
			} else if len(l.Problems) > 0 {
				t.Errorf("Find() says %v, want nothing", l.Problems)
			}
			if got := len(parts(l)); got != tc.parts {
				t.Errorf("Find() has %d partitions, want %d: %s", got, tc.parts, l.text())
			}
		})
	}
	t.Run("link unreadable", func(t *testing.T) {
		w, links := find0(t)
		d := w.disk("d")
		d.Data = dead{w, links[1], links[1] + 512}
		l := find(t, d)
		wantProblem(t, l, "cannot be read")
		if len(parts(l)) != 3 || len(l.Blind) == 0 {
			t.Errorf("Find() = %s, %v", l.text(), l.Blind)
		}
	})
	t.Run("long chain", func(t *testing.T) {
		w := newWorld(t, 64*mib)
		entryAt(w, 0, 0, 5, 1, 100000)
		for i := range int64(2000) {
			at := (1 + i*8) * 512
			entryAt(w, at, 0, 0x83, 1, 4)
			entryAt(w, at, 1, 5, (i+1)*8, 8)
			w.write(t, at+510, []byte{0x55, 0xaa})
		}
		w.write(t, 510, []byte{0x55, 0xaa})
		l := find(t, w.disk("d"))
		wantProblem(t, l, "more than 256 links")
		if len(parts(l)) != 257 {
			t.Errorf("Find() has %d partitions", len(parts(l)))
		}
	})
}

// TestTableBeside: a table and something else on one disk.
func TestTableBeside(t *testing.T) {
	for _, tc := range []struct {
		name  string
		make  func(t *testing.T, w *world)
		want  []string // lines of the layout
		says  string   // of a problem
		quiet bool
	}{
		{"fat without a table", func(t *testing.T, w *world) { w.run(t, "", "mkfs.fat DISK") },
			[]string{"0 vfat"}, "", true},
		{"ntfs without a table", func(t *testing.T, w *world) { w.run(t, "", "mkntfs -q -F -Q DISK") },
			[]string{"0 ntfs"}, "", true},
		{"ext4 in the disk behind an MBR", func(t *testing.T, w *world) {
			w.run(t, "", "mkfs.ext4 -q DISK")
			w.write(t, 446, mbrLine(0x83, 2048, 2048))
			w.write(t, 510, []byte{0x55, 0xaa})
		}, []string{"0 ext4", "1 "}, "both are listed", false},
		{"ext4 with boot code", func(t *testing.T, w *world) {
			w.run(t, "", "mkfs.ext4 -q DISK")
			w.write(t, 510, []byte{0x55, 0xaa})
		}, []string{"0 ext4"}, "", true},
		{"fat with an MBR in its boot sector", func(t *testing.T, w *world) {
			w.run(t, "", "mkfs.fat DISK")
			w.write(t, 446, mbrLine(0x0c, 2048, 2048))
			w.write(t, 462, make([]byte, 48))
		}, []string{"0 vfat"}, "looks like a partition table", false},
		{"mbr over a gpt", func(t *testing.T, w *world) {
			w.run(t, "label: gpt\nsize=10M\n", "sfdisk -q DISK")
			w.write(t, 446, append(mbrLine(0x83, 2048, 2048), make([]byte, 48)...))
		}, []string{"1 empty"}, "the MBR is used", false},
		{"file system over a gpt", func(t *testing.T, w *world) {
			w.run(t, "label: gpt\nsize=10M\n", "sfdisk -q DISK")
			small := newWorld(t, 32*mib)
			small.run(t, "", "mkfs.ext4 -q -L over DISK")
			w.write(t, 0, small.bytes(t, 0, 32*mib))
		}, []string{"0 ext4"}, "it is left over", false},
		{"empty gpt", func(t *testing.T, w *world) { w.run(t, "", "sgdisk -o DISK") }, nil, "", true},
		{"empty mbr before an array of the firmware", func(t *testing.T, w *world) {
			w.run(t, "label: dos\n", "sfdisk -q DISK")
			w.write(t, w.size-1024, []byte("Intel Raid ISM Cfg Sig. "))
		}, []string{"0 isw_raid_member"}, "", true},
		{"drbd in the last partition", func(t *testing.T, w *world) {
			w.run(t, "label: dos\nsize=10M\n-\n", "sfdisk -q DISK")
			w.write(t, w.size-4096+60, []byte("\x83\x74\x02\x67"))
		}, []string{"1 unknown", "2 drbd"}, "", true},
		{"two file systems", func(t *testing.T, w *world) {
			w.run(t, "", "mkfs.ext4 -q DISK")
			w.write(t, 65536+64, []byte("_BHRfS_M"))
		}, []string{"0 btrfs"}, "signatures of btrfs and of ext4", false},
		{"hybrid with a broken gpt", func(t *testing.T, w *world) {
			w.run(t, "", "sgdisk -n 1:0:+10M -h 1 DISK")
			w.write(t, 512, make([]byte, 512))
			w.write(t, w.size-512, make([]byte, 512))
		}, []string{"0 dos", "2 unknown"}, "neither header is there", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 64*mib)
			tc.make(t, w)
			l := find(t, w.disk("d"))
			lines := slices.Collect(strings.Lines(l.text()))
			if len(lines) != len(tc.want) {
				t.Fatalf("Find() = %s, want %v", l.text(), tc.want)
			}
			for i, want := range tc.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("Find() has %q, want %q", lines[i], want)
				}
			}
			if tc.quiet && len(l.Problems) > 0 {
				t.Errorf("Find() says %v, want nothing", l.Problems)
			}
			if tc.says != "" {
				wantProblem(t, l, tc.says)
			}
		})
	}
}

// TestGrown grows and cuts a disk with a GPT.
func TestGrown(t *testing.T) {
	w := gptWorld(t)
	for _, tc := range []struct {
		size  int64
		spoil bool // the primary
		says  string
		parts int
	}{
		{100 * mib, false, fmt.Sprintf("%d before: the disk was grown", 36*mib/512), 3},
		{100 * mib, true, "primary GPT header", 3}, // found by the protective MBR
		{40 * mib, false, "past the end of the disk", 3},
		{20 * mib, false, "it ends", 3},
	} {
		d := w.disk("d")
		d.Size = tc.size
		if err := w.Truncate(max(tc.size, w.size)); err != nil {
			t.Fatal(err)
		}
		if tc.spoil {
			d.Data = over{w, 512, make([]byte, 512)}
		}
		l := find(t, d)
		wantProblem(t, l, tc.says)
		if got := len(parts(l)); got != tc.parts {
			t.Errorf("Find() of %d bytes has %d partitions, want %d", tc.size, got, tc.parts)
		}
		// What is past the size is not there, even if it could be read.
		v := volume(t, l, "3")
		there := max(0, min(v.Size, tc.size-v.Start))
		n, err := v.ReadAt(make([]byte, v.Size), 0)
		if int64(n) != there || (there < v.Size) != errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("ReadAt() of a disk of %d bytes = %d, %v, want %d", tc.size, n, err, there)
		}
	}
}

// TestSectors: a disk with an MBR whose sectors have 4096 bytes is told by what is in its partitions.
func TestSectors(t *testing.T) {
	fs := newWorld(t, 16*mib)
	fs.run(t, "", "mkfs.ext4 -q DISK")
	w := newWorld(t, 64*mib)
	w.write(t, 446, mbrLine(0x83, 256, 4096))
	w.write(t, 510, []byte{0x55, 0xaa})
	w.write(t, mib, fs.bytes(t, 0, fs.size))
	l := find(t, w.disk("d"))
	wantProblem(t, l, "of a disk with such sectors")
	if v := volume(t, l, "1"); v.Kind != Ext4 || v.Start != mib || v.Size != 16*mib {
		t.Errorf("Find() = %s", l.text())
	}
	d := w.disk("d")
	d.Sector = 512
	if v := volume(t, find(t, d), "1"); v.Start != 256*512 {
		t.Errorf("Find(sectors of 512) = %s at %d", v.Kind, v.Start)
	}
	if hits := slices.Collect(l.Within(0, mib+100, 50)); len(hits) != 1 || hits[0] != (Hit{0, 100, 50, mib + 100}) {
		t.Errorf("Within() = %v", hits)
	}
}
