// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package guest

import (
	"fmt"
	"strings"
	"testing"
)

// TestPlaces cuts file systems made by their own tools into pieces, and wants no false proof, and
// proofs for as many as a format can have.
func TestPlaces(t *testing.T) {
	files := tree(t, 40, 60)
	protofile := proto(t, 60, 60)
	for _, tc := range []struct {
		name, mkfs string
		size       int64
		kind       Kind
		spans      []int64
		proved     int // percent of the pieces of the first span, at least
	}{
		{"ext2", "mkfs.ext4 -q -F -O none,sparse_super -b 4096 -d TREE DISK", 4 * gib, Ext2, []int64{128 * mib}, 15},
		{"ext3 1k", "mkfs.ext3 -q -F -b 1024 -d TREE DISK", gib, Ext3, []int64{32 * mib, 128 * mib}, 15},
		{"ext4 default", "mkfs.ext4 -q -F -d TREE DISK", 16 * gib, Ext4, []int64{512 * mib, 128 * mib, 2 * mib}, 25},
		{"ext4 1k", "mkfs.ext4 -q -F -b 1024 -O 64bit,flex_bg -d TREE DISK", gib, Ext4, []int64{128 * mib, 32 * mib}, 25},
		{"ext4 2k", "mkfs.ext4 -q -F -b 2048 -d TREE DISK", 2 * gib, Ext4, []int64{128 * mib}, 25},
		{"ext4 32bit", "mkfs.ext4 -q -F -O ^64bit -d TREE DISK", 4 * gib, Ext4, []int64{512 * mib}, 25},
		{"ext4 without checksums", "mkfs.ext4 -q -F -O ^metadata_csum -d TREE DISK", 4 * gib, Ext4, []int64{512 * mib}, 25},
		{"ext4 sparse_super2", "mkfs.ext4 -q -F -O sparse_super2 -d TREE DISK", 4 * gib, Ext4, []int64{512 * mib}, 25},
		{"ext4 meta_bg", "mkfs.ext4 -q -F -O meta_bg,^resize_inode -d TREE DISK", 4 * gib, Ext4, []int64{512 * mib}, 25},
		{"ext4 bigalloc", "mkfs.ext4 -q -F -O bigalloc -d TREE DISK", 8 * gib, Ext4, []int64{512 * mib}, 3},
		{"ext4 no flex_bg", "mkfs.ext4 -q -F -O ^flex_bg -d TREE DISK", 4 * gib, Ext4, []int64{512 * mib}, 25},
		{"ext4 odd groups", "mkfs.ext4 -q -F -g 20000 -d TREE DISK", 4 * gib, Ext4, []int64{128 * mib}, 15},
		{"xfs v5", "mkfs.xfs -q -f -p PROTO DISK", 8 * gib, XFS, []int64{512 * mib, 128 * mib, 2 * mib}, 25},
		{"xfs v5 1k", "mkfs.xfs -q -f -b size=1024 -p PROTO DISK", 2 * gib, XFS, []int64{128 * mib}, 25},
		{"xfs v5 4k sectors", "mkfs.xfs -q -f -s size=4096 -p PROTO DISK", 4 * gib, XFS, []int64{512 * mib}, 25},
		{"xfs v5 64k", "mkfs.xfs -q -f -b size=65536 -p PROTO DISK", 8 * gib, XFS, []int64{512 * mib}, 25},
		{"xfs v5 inodes of 1k, wide directories", "mkfs.xfs -q -f -i size=1024 -n size=16384 -p PROTO DISK", 4 * gib, XFS, []int64{512 * mib}, 25},
		{"xfs v4", "mkfs.xfs -q -f -m crc=0 -p PROTO DISK", 8 * gib, XFS, []int64{512 * mib, 128 * mib}, 25},
		{"xfs v4 512", "mkfs.xfs -q -f -m crc=0 -b size=512 -p PROTO DISK", 2 * gib, XFS, []int64{128 * mib}, 15},
		{"xfs v5 16 groups", "mkfs.xfs -q -f -d agcount=16 -p PROTO DISK", 8 * gib, XFS, []int64{512 * mib}, 90},
		{"btrfs", "mkfs.btrfs -q -f --rootdir TREE DISK", 8 * gib, Btrfs, []int64{512 * mib, 128 * mib, 32 * mib}, 50},
		{"btrfs single, 4k nodes", "mkfs.btrfs -q -f -m single -n 4096 --rootdir TREE DISK", 4 * gib, Btrfs, []int64{512 * mib}, 50},
		{"btrfs sha256", "mkfs.btrfs -q -f --csum sha256 --rootdir TREE DISK", 4 * gib, Btrfs, []int64{512 * mib}, 50},
		{"btrfs mixed", "mkfs.btrfs -q -f --mixed --rootdir TREE DISK", 2 * gib, Btrfs, []int64{512 * mib}, 25},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.size)
			w.mkfs(t, strings.NewReplacer("TREE", files, "PROTO", protofile).Replace(tc.mkfs))
			vols, blind, err := Volumes(t.Context(), w, w.size)
			if err != nil || len(vols) != 1 || vols[0].Kind != tc.kind || len(blind) > 0 {
				t.Fatalf("Volumes() = %+v, %v, %v, want one of %s", vols, blind, err, tc.kind)
			}
			if vols[0].Length > tc.size || vols[0].Length < tc.size-16*mib {
				t.Errorf("Volumes() has a length of %d, want about %d", vols[0].Length, tc.size)
			}
			for i, span := range tc.spans {
				s := w.prove(t, span)
				t.Logf("span %d MiB: %s", span/mib, s)
				if i == 0 && s.proved*100 < tc.proved*s.pieces || s.cut > 0 {
					t.Errorf("span %d MiB: %s, want %d %%, none cut short", span/mib, s, tc.proved)
				}
			}
		})
	}
}

// TestPartitions puts file systems into partitions of every kind of table.
func TestPartitions(t *testing.T) {
	files := tree(t, 20, 40)
	protofile := proto(t, 30, 30)
	const size = 12 * gib
	ext, xfs, btrfs := newWorld(t, 4*gib), newWorld(t, 4*gib-3*mib), newWorld(t, 3*gib)
	ext.mkfs(t, "mkfs.ext4 -q -F -d "+files+" DISK")
	xfs.mkfs(t, "mkfs.xfs -q -f -p "+protofile+" DISK")
	btrfs.mkfs(t, "mkfs.btrfs -q -f --rootdir "+files+" DISK")
	for _, tc := range []struct {
		name, label, script string
		starts              [3]int64
		table               Kind
	}{
		{"gpt", "gpt", "start=2048,size=4GiB\nstart=8390656,size=4GiB\nsize=3GiB",
			[3]int64{mib, 4097 * mib, 8193 * mib}, GPT},
		{"mbr", "dos", "start=2048,size=4GiB\nstart=8390656,size=4GiB\nsize=3GiB",
			[3]int64{mib, 4097 * mib, 8193 * mib}, ""},
		{"mbr, logical", "dos", "start=63,size=4GiB\nstart=8390656,type=5\nstart=8392704,size=4GiB\nstart=16783360,size=3GiB",
			[3]int64{63 * 512, 4098 * mib, 8195 * mib}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, size)
			run(t, "label: "+tc.label+"\n"+tc.script+"\n", "sfdisk", "-q", w.Name())
			for i, v := range []*world{ext, xfs, btrfs} {
				w.put(t, v, tc.starts[i])
			}
			vols, blind, err := Volumes(t.Context(), w, w.size)
			if err != nil || len(blind) > 0 {
				t.Fatal(err, blind)
			}
			var got []string
			for _, v := range vols {
				if v.Kind != Other {
					got = append(got, fmt.Sprintf("%s at %#x", v.Kind, v.Start))
				}
			}
			var want []string
			if tc.table != "" {
				want = append(want, string(tc.table)+" at 0x0")
			}
			for i, k := range []Kind{Ext4, XFS, Btrfs} {
				want = append(want, fmt.Sprintf("%s at %#x", k, tc.starts[i]))
			}
			if strings.Join(got, ", ") != strings.Join(want, ", ") {
				t.Errorf("Volumes() = %s, want %s", got, want)
			}
			for _, span := range []int64{512 * mib, 128 * mib} {
				t.Logf("span %d MiB: %s", span/mib, w.prove(t, span))
			}
		})
	}
}
