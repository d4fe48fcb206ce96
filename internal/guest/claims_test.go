// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
)

// gptHeaderOf makes a header with a right checksum.
func gptHeaderOf(my, other, entries uint64, sum uint32) []byte {
	b := make([]byte, 512)
	copy(b, "EFI PART")
	binary.LittleEndian.PutUint32(b[8:], 0x10000)
	binary.LittleEndian.PutUint32(b[12:], 92)
	binary.LittleEndian.PutUint64(b[24:], my)
	binary.LittleEndian.PutUint64(b[32:], other)
	copy(b[56:], "the disk's GUID.")
	binary.LittleEndian.PutUint64(b[72:], entries)
	binary.LittleEndian.PutUint32(b[80:], 128)
	binary.LittleEndian.PutUint32(b[84:], 128)
	binary.LittleEndian.PutUint32(b[88:], sum)
	binary.LittleEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b[:92]))
	return b
}

// gpt4k is a disk of so many sectors of 4096 bytes with an empty GPT. sfdisk makes such a table on
// a device only.
func gpt4k(t testing.TB, sectors int64) *world {
	t.Helper()
	w := newWorld(t, sectors*4096)
	sum := crc32.ChecksumIEEE(make([]byte, 128*128))
	last := uint64(sectors - 1)
	for at, b := range map[int64][]byte{
		4096:                 gptHeaderOf(1, last, 2, sum),
		(sectors - 1) * 4096: gptHeaderOf(last, 1, last-4, sum),
	} {
		if _, err := w.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// interesting gives blocks of every kind from real file systems, one of each claim.
func interesting(t testing.TB) [][]byte {
	t.Helper()
	files, protofile := tree(t, 3, 30), proto(t, 3, 200)
	found := map[string][]byte{}
	for _, command := range []string{
		"mkfs.ext4 -q -F -d " + files + " DISK", "mkfs.ext3 -q -F DISK",
		"mkfs.xfs -q -f -m rmapbt=1,reflink=1 -b size=1024 -p " + protofile + " DISK",
		"mkfs.xfs -q -f -m crc=0 DISK", "mkfs.btrfs -q -f -n 4096 --rootdir " + files + " DISK",
		"sgdisk -n 1:2048:+1M DISK",
	} {
		w := newWorld(t, 400*mib)
		w.mkfs(t, command)
		for _, r := range w.data(t, 0, w.size) {
			b := make([]byte, r.Length+64<<10)
			if _, err := w.ReadAt(b, r.Offset); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			for at := int64(0); at < r.Length; at += 512 {
				for _, c := range Claims(b[at:][:64<<10]) {
					if c.Kind == Ext4 || c.Kind == Ext3 {
						c.What = "superblock"
					}
					k := fmt.Sprint(c.Kind, c.What, c.Unit, c.Checked)
					if found[k] == nil {
						found[k] = slices.Clone(b[at:][:min(64<<10, max(c.At+c.Length, 512))])
					}
				}
			}
		}
	}
	var all [][]byte
	for _, k := range slices.Sorted(maps.Keys(found)) {
		all = append(all, found[k])
	}
	return all
}

// TestClaims holds every kind of block against each byte of it being wrong: where there is a
// checksum no claim may be left.
func TestClaims(t *testing.T) {
	blocks := interesting(t)
	if len(blocks) < 25 {
		t.Errorf("only %d kinds of blocks were found", len(blocks))
	}
	if os.Getenv("SHISA_UPDATE") == "1" {
		writeSeeds(t, blocks)
	}
	for _, b := range blocks {
		want := Claims(b)
		for _, c := range want {
			t.Logf("%s %s, by %d, checked %v", c.Kind, c.What, c.Unit, c.Checked)
		}
		for at := 0; at < len(b); at += 1 + at/64 {
			b[at] ^= 0x40
			for _, c := range Claims(b) {
				inside := int64(at) >= c.At && int64(at) < c.At+c.Length
				if c.Kind == GPT && at-int(c.At) >= 92 {
					inside = false // the checksum is of the header, not of its sector
				}
				if inside && c.Checked {
					t.Errorf("Claims() with byte %d wrong has %s %s", at, c.Kind, c.What)
				}
			}
			b[at] ^= 0x40
		}
		for n := range len(b) {
			if n > 1024 && n%512 != 0 {
				continue
			}
			Claims(b[:n])
		}
	}
}

// seedFile has the blocks of TestClaims that are small, each with its length before it. Fuzzing
// starts from them: its workers start too often, and end too roughly, to run the tools.
const seedFile = "testdata/blocks.gz"

// writeSeeds makes the file anew.
func writeSeeds(t *testing.T, blocks [][]byte) {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	for _, b := range blocks {
		if len(b) > 4096 {
			continue // small inputs, of which more can be tried
		}
		if _, err := z.Write(binary.LittleEndian.AppendUint16(nil, uint16(len(b)))); err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(seedFile, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// seeds reads the file.
func seeds(t testing.TB) [][]byte {
	t.Helper()
	var blocks [][]byte
	all := unzip(t, seedFile)
	for len(all) >= 2 {
		n := 2 + int(binary.LittleEndian.Uint16(all))
		if n > len(all) {
			t.Fatalf("%s ends too early", seedFile)
		}
		blocks = append(blocks, all[2:n])
		all = all[n:]
	}
	return blocks
}

func FuzzClaims(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Add(gptHeaderOf(1, 99, 2, 0))
	f.Add(gptHeaderOf(1<<63, 1, 2, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, fixed := range [][]byte{b, summed(b)} {
			before := bytes.Clone(fixed)
			for _, c := range Claims(fixed) {
				if c.At < 0 || c.Length <= 0 || c.At+c.Length > int64(len(fixed)) {
					t.Errorf("a claim of [%d, +%d) in %d bytes", c.At, c.Length, len(fixed))
				}
				v, _ := Volume{Kind: Unknown, Start: mib, Length: maxBytes / 4, Room: maxBytes / 4}.become(&c)
				v.gpt = c.gpt
				for _, at := range v.Places(&c) {
					if at < 0 || at > maxBytes {
						t.Errorf("a place at %d", at)
					}
				}
			}
			if !bytes.Equal(before, fixed) {
				t.Error("Claims changed what it read")
			}
		}
	})
}

// summed gives b with the checksum of every kind of block that it looks like made right, so that
// fuzzing gets past it.
func summed(b []byte) []byte {
	b = bytes.Clone(b)
	put := func(n, crc int) {
		if n <= len(b) {
			binary.LittleEndian.PutUint32(b[crc:], crc32c(b[:n], crc))
		}
	}
	if len(b) < 1024 {
		return b
	}
	if string(b[:8]) == "EFI PART" {
		clear(b[16:20])
		binary.LittleEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b[:min(512, max(92, int(le32(b, 12)&0x1ff)))]))
		return b
	}
	if le16(b, 56) == extMagic {
		binary.LittleEndian.PutUint32(b[1020:], rawCRC(^uint32(0), b[:1020]))
		return b
	}
	if string(b[:4]) == xfsSuper {
		put(int(be16(b, 102)&0x7e00|512), 224)
	} else if form, ok := xfsBlock(b); ok {
		put(1024, form.crc)
	} else if b[0] == 'I' && b[1] == 'N' {
		put(512, 100)
	} else if len(b) >= btrfsSuperBytes {
		clear(b[:32])
		binary.LittleEndian.PutUint32(b, crc32.Checksum(b[32:min(len(b), btrfsSuperBytes)], castagnoli()))
	}
	return b
}

// FuzzVolumes takes whatever bytes for a disk, with superblocks and tables at their places so that
// small inputs reach far.
func FuzzVolumes(f *testing.F) {
	for i, b := range seeds(f) {
		f.Add(b, uint8(i))
	}
	head := make([]byte, 512)
	head[510], head[511] = 0x55, 0xaa
	for i, kind := range []byte{0x83, 0x05} {
		e := head[446+16*i:]
		e[4] = kind
		binary.LittleEndian.PutUint32(e[8:], uint32(2048*i+2048))
		binary.LittleEndian.PutUint32(e[12:], 1<<20)
	}
	f.Add(head, uint8(0))
	f.Add(head, uint8(0x50))
	f.Add(unzip(f, "testdata/lvm.gz")[:8192], uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, where uint8) {
		places := []int64{0, 512, 1024, 4096, 64 * kib, mib, mib + 1024, mib + 64*kib, 63 * 512, 64 * mib, 128 * mib, gib - 512}
		disk := scattered{places[int(where)%len(places)]: b, places[int(where/16)%len(places)]: summed(b)}
		size := gib + int64(where)*512
		vols, blind, err := Volumes(t.Context(), disk, size)
		if err != nil || len(blind) > maxBlind+1 || len(vols) > 3*maxVolumes {
			t.Fatalf("Volumes() = %d, %d, %v", len(vols), len(blind), err)
		}
		for _, v := range vols {
			if v.Start < 0 || v.Length < 0 || v.Room < 0 || v.Start > maxBytes || v.Length > maxBytes {
				t.Errorf("a volume from %d on of %d bytes in %d", v.Start, v.Length, v.Room)
			}
		}
		if _, _, err := DiskSizes(t.Context(), disk, 8*mib); err != nil {
			t.Error(err)
		}
		p := Piece{Data: disk, SpanBytes: 32 * mib, DiskBytes: size,
			Mapped: []finding.Range{{Length: 2 * mib}, {Offset: 32*mib - 4096, Length: 4096}}}
		ev, err := Proofs(t.Context(), vols, p)
		if err != nil || ev.ReadBytes > MaxPieceBytes {
			t.Fatalf("Proofs() = %+v, %v", ev, err)
		}
		for _, proof := range ev.Proofs {
			if proof.Base < 0 || proof.Base%p.SpanBytes != 0 || proof.Base >= size || proof.Count < 1 {
				t.Errorf("Proofs() has %+v", proof)
			}
		}
	})
}

// scattered is a disk of zeros with bytes at some places.
type scattered map[int64][]byte

func (s scattered) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, b := range s {
		if from := max(at, off); from < min(at+int64(len(b)), off+int64(len(p))) {
			copy(p[from-off:], b[from-at:])
		}
	}
	return len(p), nil
}
