// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestOwners holds what Owners says of a whole volume against the extents of its files, and against
// debugfs.
func TestOwners(t *testing.T) {
	testenv.Need(t, "debugfs", "dumpe2fs")
	for _, v := range []variant{
		{name: "4k", mkfs: "-b 4096"},
		{name: "1k", mkfs: "-b 1024 -O meta_bg,^resize_inode,mmp", tune: "-O quota"},
		{name: "1k, groups of which nothing was used", mkfs: "-b 1024 -O uninit_bg"},
		{name: "bigalloc", mkfs: "-b 4096 -O bigalloc,inline_data,orphan_file -C 65536"},
		{name: "sparse_super2", mkfs: "-b 2048 -O sparse_super2,ea_inode,^has_journal"},
		{name: "ext3", mkfs: "-b 1024", kind: "ext3"},
		{name: "ext2", mkfs: "-b 4096 -O ^sparse_super,^resize_inode", kind: "ext2"},
	} {
		t.Run(v.name, func(t *testing.T) {
			v.size = 64*mib + 5000
			disk := v.make(t, func(dir string) { fillSmall(t, dir) })
			fs := openDisk(t, disk)
			owners := allOwners(t, fs, []files.Range{{Length: v.size}}, v.size)
			free := int64(0)
			for _, o := range owners {
				switch o.Use {
				case files.UseFree:
					free += o.Range.Length
				case files.UseUnknown:
					t.Errorf("0x%x+0x%x is unknown: %s", o.Range.Offset, o.Range.Length, o.What)
				}
			}
			if info := fs.Info(); free != info.FreeBytes {
				t.Errorf("%d bytes are free, want %d", free, info.FreeBytes)
			}
			claimed := extentsOwned(t, fs, owners)
			debugfsAgrees(t, disk, fs, owners)
			if claimed == 0 {
				t.Error("no file has an extent")
			}
			if view := fs.View(); len(view.Problems) > 0 {
				t.Errorf("problems: %+v", view.Problems)
			}
		})
	}
}

// allOwners collects what Owners gives, and requires that it leaves no gap in the range.
func allOwners(t *testing.T, fs *FS, ranges []files.Range, end int64) []files.Owner {
	t.Helper()
	var owners []files.Owner
	pos := ranges[0].Offset
	err := fs.Owners(t.Context(), ranges, func(o files.Owner) error {
		if o.Range.Offset != pos && (len(owners) == 0 || o.Range != owners[len(owners)-1].Range) {
			t.Errorf("owner at 0x%x, want 0x%x", o.Range.Offset, pos)
		}
		pos = o.Range.Offset + o.Range.Length
		owners = append(owners, o)
		return nil
	})
	if err != nil || pos != end {
		t.Fatalf("Owners ends at 0x%x with %v, want 0x%x", pos, err, end)
	}
	return owners
}

// extentsOwned looks for each extent of each file in owners, and gives how many there were.
func extentsOwned(t *testing.T, fs *FS, owners []files.Owner) int {
	t.Helper()
	type key struct {
		ino          files.Ino
		file, volume int64
	}
	have := map[key]int64{}
	for _, o := range owners {
		if o.Ino != 0 && o.File >= 0 {
			have[key{o.Ino, o.File, o.Range.Offset}] = o.Range.Length
		}
	}
	n := 0
	err := fs.Inodes(t.Context(), func(st *files.Stat) error {
		f, err := fs.Open(t.Context(), st.Ino)
		if err != nil {
			return err
		}
		if f.(*inode).inline() || f.(*inode).fastLink() {
			return nil
		}
		return f.Extents(t.Context(), func(e files.Extent) error {
			n++
			for done := int64(0); done < e.Length; {
				part := have[key{st.Ino, e.Offset + done, e.Volume + done}]
				if part == 0 {
					t.Errorf("inode %d: nobody has 0x%x of it at 0x%x", st.Ino, e.Offset+done, e.Volume+done)
					return nil
				}
				done += part
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// debugfsAgrees asks debugfs which inode has the first block of each part.
func debugfsAgrees(t *testing.T, disk string, fs *FS, owners []files.Owner) {
	t.Helper()
	var ask strings.Builder
	size := fs.super.blockBytes
	want := map[int64]files.Owner{}
	for _, o := range owners {
		if o.Range.Offset%size == 0 && o.Use != files.UseOutside {
			want[o.Range.Offset/size] = o
			if len(want)%100 == 1 { // debugfs reads lines of 8 KiB
				ask.WriteString("\nicheck")
			}
			fmt.Fprintf(&ask, " %d", o.Range.Offset/size)
		}
	}
	c := exec.Command("debugfs", "-f", "-", disk)
	c.Stdin = strings.NewReader(ask.String() + "\n")
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		var block int64
		var ino files.Ino
		_, err := fmt.Sscanf(s.Text(), "%d %d", &block, &ino)
		if err != nil && !strings.Contains(s.Text(), "<block not found>") {
			continue
		}
		o := want[block]
		seen++
		switch {
		case o.Ino == ino, o.Ino == 0 && ino == resizeIno, o.What == "extended attributes":
		case o.What == "rest of a cluster" && ino == 0:
		default:
			t.Errorf("block %d is of inode %d as %s (%s), debugfs says %d", block, o.Ino, o.Use, o.What, ino)
		}
	}
	if seen != len(want) {
		t.Errorf("debugfs told of %d blocks, want %d:\n%.300s", seen, len(want), out)
	}
}

// TestOwnersHalved has more claims than one pass may keep.
func TestOwnersHalved(t *testing.T) {
	left, right := halve([]files.Range{{Offset: 0, Length: 10}, {Offset: 20, Length: 30}}, 40)
	if len(left) != 2 || left[1] != (files.Range{Offset: 20, Length: 10}) || len(right) != 1 ||
		right[0] != (files.Range{Offset: 30, Length: 20}) {
		t.Errorf("halves are %v and %v", left, right)
	}
}

// TestOwnersInParts has more claims than one pass may keep, and gives the same.
func TestOwnersInParts(t *testing.T) {
	v := variant{mkfs: "-b 1024 -O bigalloc -C 4096", size: 32 * mib}
	fs := openDisk(t, v.make(t, func(dir string) { fillSmall(t, dir) }))
	const tile = 4096
	ask := func(limit int) map[int64]string {
		at := map[int64]string{}
		damage, err := fs.owners(t.Context(), []files.Range{{Length: 32 * mib}}, limit,
			func(o files.Owner) error {
				for pos := o.Range.Offset; pos < o.Range.Offset+o.Range.Length; pos += tile - pos%tile {
					at[pos] += fmt.Sprint(o.Use, o.Ino, o.What, o.File >= 0)
				}
				return nil
			})
		if err != nil || damage != nil {
			t.Fatal(err, damage)
		}
		return at
	}
	whole, parts := ask(maxClaims), ask(60)
	for at, what := range whole {
		if parts[at] != what {
			t.Errorf("0x%x is for %q, in parts for %q", at, what, parts[at])
		}
	}
}

// TestOwnersOfRanges asks for parts that touch, overlap and lie outside.
func TestOwnersOfRanges(t *testing.T) {
	v := variant{mkfs: "-b 4096", size: 32 * mib}
	disk := v.make(t, func(dir string) { fillSmall(t, dir) })
	fs := openDisk(t, disk)
	whole := allOwners(t, fs, []files.Range{{Length: 40 * mib}}, 40*mib)
	at := func(off int64) files.Owner {
		for _, o := range whole {
			if off >= o.Range.Offset && off < o.Range.Offset+o.Range.Length {
				return o
			}
		}
		return files.Owner{}
	}
	n := 0
	ranges := []files.Range{{Offset: 33 * mib, Length: 1}, {Offset: 5000, Length: 10},
		{Offset: 5005, Length: 10}, {Offset: 17*mib + 1, Length: 100_000}, {Offset: 9 * mib}}
	err := fs.Owners(t.Context(), ranges, func(o files.Owner) error {
		n++
		w := at(o.Range.Offset)
		if o.Use != w.Use || o.Ino != w.Ino || o.What != w.What ||
			o.File >= 0 && o.File-o.Range.Offset != w.File-w.Range.Offset {
			t.Errorf("owner is %+v, want as in %+v", o, w)
		}
		return nil
	})
	if err != nil || n < 3 {
		t.Errorf("%d owners, %v", n, err)
	}
	if err := fs.Owners(t.Context(), []files.Range{{Offset: -1, Length: 2}}, nil); err == nil {
		t.Error("a negative offset has owners")
	}
}
