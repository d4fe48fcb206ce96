// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"sync/atomic"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// scattered is a disk of zeros with bytes at some places. It counts what is read.
type scattered struct {
	parts map[int64][]byte
	read  *atomic.Int64
}

func (s scattered) ReadAt(p []byte, off int64) (int, error) {
	s.read.Add(int64(len(p)))
	clear(p)
	for at, b := range s.parts {
		if from := max(at, off); from < min(at+int64(len(b)), off+int64(len(p))) {
			copy(p[from-off:], b[from-at:])
		}
	}
	return len(p), nil
}

// summed gives b with the checksums of what it looks like made right, so that fuzzing gets past them.
func summed(b []byte) []byte {
	b = append(make([]byte, 0, len(b)), b...)
	for at := 0; at+512 <= len(b); at += 512 {
		s := b[at:]
		switch {
		case string(s[:8]) == gptMagic && len(s) >= 1024:
			if n := int(le32(s, 80)&0xff) * 128; n <= len(s)-512 && n > 0 {
				binary.LittleEndian.PutUint32(s[88:], crc32.ChecksumIEEE(s[512:][:n]))
			}
			binary.LittleEndian.PutUint32(s[12:], 92)
			summedGPT(s)
		case string(s[:8]) == lvmLabel:
			binary.LittleEndian.PutUint32(s[16:], lvmCRC(s[20:512]))
		case string(s[4:20]) == lvmMagic:
			from, length := le64(s, 40), le64(s, 48)
			if from < uint64(len(s)) && length <= uint64(len(s))-from {
				binary.LittleEndian.PutUint32(s[56:], lvmCRC(s[from:from+length]))
			}
			binary.LittleEndian.PutUint32(s, lvmCRC(s[4:512]))
		case le32(s, 0) == mdMagic && le32(s, 4) == 1:
			n := int(min(le32(s, 220), mdMaxMembers))
			if 256+2*n <= len(s) {
				binary.LittleEndian.PutUint32(s[216:], mdSum1(s[:256+2*n]))
			}
		}
	}
	return b
}

// lvmSeedDisk is the head of a physical volume with a text, laid out as lvm.go says.
func lvmSeedDisk(text string) []byte {
	area1 := uint64(len(text)+1023)&^511 + 512
	b := make([]byte, 4096+area1)
	label := b[512:]
	copy(label, lvmLabel)
	binary.LittleEndian.PutUint64(label[8:], 1)
	binary.LittleEndian.PutUint32(label[20:], 32)
	copy(label[24:], lvmType)
	copy(label[32:], "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA1")
	binary.LittleEndian.PutUint64(label[72:], 4096+area1)
	binary.LittleEndian.PutUint64(label[104:], 4096)
	binary.LittleEndian.PutUint64(label[112:], area1)
	area := b[4096:]
	copy(area[4:], lvmMagic)
	binary.LittleEndian.PutUint64(area[24:], 4096)
	binary.LittleEndian.PutUint64(area[32:], area1)
	binary.LittleEndian.PutUint64(area[40:], 512)
	binary.LittleEndian.PutUint64(area[48:], uint64(len(text)))
	copy(area[512:], text)
	return summed(b)
}

const seedText = `vg { id = "VVVV" seqno = 3 extent_size = 64
physical_volumes { pv0 { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA1" pe_start = 24 pe_count = 100 } }
logical_volumes { lv { id = "L" status = ["VISIBLE"]
segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 2 stripe_size = 8 stripes = ["pv0", 0, "pv0", 9] }
segment2 { start_extent = 4 extent_count = 3 type = "striped" stripe_count = 1 stripes = ["pv0", 2] } } } }`

// FuzzFind takes whatever bytes for disks, at the places where tables and superblocks are.
func FuzzFind(f *testing.F) {
	mbr := make([]byte, 512)
	copy(mbr[446:], mbrLine(0x83, 2048, 1<<16))
	copy(mbr[462:], mbrLine(5, 1, 1<<20))
	mbr[510], mbr[511] = 0x55, 0xaa
	f.Add(mbr, uint8(0), uint8(7))
	gpt := make([]byte, 4096)
	copy(gpt, gptMagic)
	binary.LittleEndian.PutUint32(gpt[80:], 20)
	binary.LittleEndian.PutUint32(gpt[84:], 128)
	binary.LittleEndian.PutUint64(gpt[24:], 1)
	binary.LittleEndian.PutUint64(gpt[32:], 2047)
	binary.LittleEndian.PutUint64(gpt[48:], 2000)
	binary.LittleEndian.PutUint64(gpt[72:], 2)
	gpt[512] = 1
	binary.LittleEndian.PutUint64(gpt[512+32:], 40)
	binary.LittleEndian.PutUint64(gpt[512+40:], 2000)
	f.Add(gpt, uint8(1), uint8(0))
	f.Add(lvmSeedDisk(seedText), uint8(0), uint8(9))
	for _, r := range []raid{
		{level: 1, disks: 2, name: "x:1", used: mib, data: 64 * kib, size: mib, roles: []int{0, 1}},
		{level: 0, disks: 1, chunk: 4096, data: 64 * kib, size: mib, roles: []int{0}},
	} {
		r.version = "1.2"
		file, err := os.Create(f.TempDir() + "/disk")
		if err != nil {
			f.Fatal(err)
		}
		w := &world{file, 4 * mib}
		r.write(f, w, 0, 4*mib, 0)
		b := w.bytes(f, 4096, 4096)
		file.Close()
		f.Add(b, uint8(3), uint8(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, where, and uint8) {
		size := 2*mib + int64(and)*512
		places := []int64{0, 512, 1024, 4096, 64 * kib, mib, mib + 512, mib + 4096, size - 64*kib, size - 8*kib, size - 512}
		var read atomic.Int64
		var given []Disk
		for i := range 1 + int(where)/100 {
			parts := map[int64][]byte{places[int(where)%len(places)]: summed(b)}
			if i == 0 {
				parts[places[int(and)%len(places)]] = b
			}
			given = append(given, Disk{Name: "d", Data: scattered{parts, &read}, Size: size})
		}
		l, err := Find(t.Context(), given)
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Volumes) > maxVolumes || len(l.Problems) > maxProblems+1 || len(l.Blind) > maxBlind+1 {
			t.Errorf("%d volumes, %d problems, %d blind spots", len(l.Volumes), len(l.Problems), len(l.Blind))
		}
		if read.Load() > 2*maxReadBytes {
			t.Errorf("%d bytes were read", read.Load())
		}
		checkLayout(t, l)
		for _, v := range l.Volumes[:min(len(l.Volumes), 50)] {
			readAnywhere(t, l, v)
		}
	})
}

// readAnywhere reads at some places of v, and wants places of the disks that are on them.
func readAnywhere(t *testing.T, l *Layout, v *Volume) {
	buf := make([]byte, 3000)
	for _, off := range []int64{0, 511, v.Size / 3, v.Size - 100, v.Size, maxBytes} {
		n, err := v.ReadAt(buf, max(0, off))
		if n < 0 || n > len(buf) || n < len(buf) && err == nil {
			t.Errorf("ReadAt(%s, %d) = %d, %v", v.Name, off, n, err)
		}
		pieces, covered := 0, max(0, off)
		for p := range v.Pieces(max(0, off), 5000) {
			if p.Length <= 0 || p.Offset < off || p.Offset+p.Length > v.Size || p.Disk >= len(l.Disks) ||
				p.Disk < 0 && p.Missing == "" || p.Offset > covered {
				t.Errorf("Pieces(%s, %d) has %+v", v.Name, off, p)
			}
			covered = max(covered, p.Offset+p.Length)
			if pieces++; pieces > 1000 {
				break
			}
		}
		if want := min(max(off, 0)+5000, v.Size); pieces <= 1000 && off < v.Size && covered < want {
			t.Errorf("Pieces(%s, %d) end at %d, want %d", v.Name, off, covered, want)
		}
	}
	hits := 0
	for range l.Within(0, 0, 1<<20) {
		if hits++; hits > 1000 {
			break
		}
	}
}

// TestFlips turns bits in what a layout of tables, a group and a mirror rests on: nothing panics, and
// there are never fewer volumes than before without a problem, a blind spot or a volume that says that
// it is not examined.
func TestFlips(t *testing.T) {
	w := newWorld(t, 24*mib)
	w.run(t, "label: gpt\nstart=2048, size=4M\nsize=4M\nsize=4M\n", "sfdisk -q DISK")
	w.write(t, mib, lvmSeedDisk(seedText))
	r := raid{version: "1.2", level: 1, disks: 1, name: "m", used: mib, data: mib, size: 3 * mib, roles: []int{0}}
	r.write(t, w, 5*mib, 4*mib, 0)
	step := testenv.Rounds(911, 151, 5) // bits from one to the next
	flips(t, w, 5, step, [][2]int64{{446, 2048}, {mib + 512, 512}, {mib + 4096, 512 + int64(len(seedText))},
		{5*mib + 4096, 260}, {24*mib - 33*512, 1024}, {24*mib - 512, 512}})
	w = newWorld(t, 24*mib)
	w.run(t, "label: dos\n1: start=2048, size=4M\n2: start=10240, size=12M, type=5\n5: start=12288, size=2M\n"+
		"6: start=18432, size=2M\n", "sfdisk -q DISK")
	chain := find(t, w.disk("d")).Tables[0].Ranges
	flips(t, w, 4, step, [][2]int64{{440, 72}, {chain[1].Offset + 440, 72}, {chain[2].Offset + 440, 72}})
}

// flips turns every so many bits in areas of w, which has some volumes and nothing wrong.
func flips(t *testing.T, w *world, volumes, step int, areas [][2]int64) {
	t.Helper()
	whole := find(t, w.disk("d"))
	if got := len(whole.Volumes); got != volumes || len(whole.Problems) > 0 {
		t.Fatalf("Find() = %s %v", whole.text(), whole.Problems)
	}
	for _, area := range areas {
		for bit := area[0] * 8; bit < (area[0]+area[1])*8; bit += int64(step) {
			at := bit / 8
			b := w.bytes(t, at, 1)
			b[0] ^= 1 << (bit % 8)
			d := w.disk("d")
			d.Data = over{w, at, b}
			l, err := Find(t.Context(), []Disk{d})
			if err != nil {
				t.Fatal(err)
			}
			said := len(l.Problems) + len(l.Blind)
			for _, v := range l.Volumes {
				if v.NotExamined != "" {
					said++
				}
			}
			if len(l.Volumes) < len(whole.Volumes) && said == 0 {
				t.Errorf("with bit %d of byte %#x turned there are %d volumes, not %d, and nothing is said:\n%s",
					bit%8, at, len(l.Volumes), len(whole.Volumes), l.text())
			}
		}
	}
}
