// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// TestPatched changes one thing in a file system, and looks for what the view says of it.
func TestPatched(t *testing.T) {
	value := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(value, bytes.Repeat([]byte("a value "), 400), 0o600); err != nil {
		t.Fatal(err)
	}
	far := []string{"ea_set -f " + value + " /short user.long"}
	near := []string{"ea_set /short user.near " + strings.Repeat("v", 300)}
	for _, tc := range []struct {
		name, mkfs string
		commands   []string
		patch      func(t *testing.T, disk string, fs *FS, short, fragmented *inode)
		text       string
	}{
		{"free-count", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, fs *FS, _, _ *inode) {
				patch(t, disk, fs.groups[0].inodeBitmap*1024+fs.super.inodesPerGroup/8-1, []byte{0x80})
			}, "its descriptor says"},
		{"bitmap-checksum", "", nil,
			func(t *testing.T, disk string, fs *FS, _, _ *inode) {
				patch(t, disk, fs.groups[0].inodeBitmap*1024+fs.super.inodesPerGroup/8-1, []byte{0x80})
			}, "inode bitmap of group 0: checksum"},
		{"links-and-free", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, fs *FS, short, _ *inode) {
				at := (int64(short.stat.Ino) - 1) % fs.super.inodesPerGroup
				group := (int64(short.stat.Ino) - 1) / fs.super.inodesPerGroup
				b, err := fs.inodeBitmap(t.Context(), group)
				if err != nil {
					t.Fatal(err)
				}
				patch(t, disk, fs.groups[group].inodeBitmap*1024+at/8, []byte{b[at/8] &^ (1 << (at % 8))})
			}, "has links, and is free"},
		{"attribute-block", "", near,
			func(t *testing.T, disk string, _ *FS, short, _ *inode) {
				patch(t, disk, short.attrBlock()*1024+1020, []byte("x"))
			}, "extended attributes of inode"},
		{"journal-without-feature", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, fs *FS, _, _ *inode) {
				patch(t, disk, superAt+92, []byte{fs.super.raw[92] &^ compatJournal})
				patch(t, disk, superAt+96, []byte{fs.super.raw[96] | incompatRecover})
			}, "is to be replayed, and that there is none"},
		{"attribute-inode", "-O ea_inode", far,
			func(t *testing.T, disk string, _ *FS, _, _ *inode) {
				b, err := os.ReadFile(disk)
				if err != nil {
					t.Fatal(err)
				}
				patch(t, disk, int64(bytes.Index(b, []byte("a value "))), []byte("A"))
			}, "value in inode"},
		{"zone", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, fs *FS, _, fragmented *inode) {
				e := binary.LittleEndian.AppendUint32(nil, uint32(fs.groups[0].table+1))
				patch(t, disk, leafOf(t, fragmented)*1024+12*3+8, e)
			}, "are metadata of the file system"},
		{"repeated", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, _ *FS, _, fragmented *inode) {
				var b []byte
				for n := range uint32(2) {
					b = binary.LittleEndian.AppendUint32(b, 10_000+n*20_000)
					b = binary.LittleEndian.AppendUint32(b, 10_000)
					b = binary.LittleEndian.AppendUint32(b, 5000)
				}
				at := leafOf(t, fragmented) * 1024
				patch(t, disk, at+2, []byte{3, 0})
				patch(t, disk, at+12*2, b)
			}, errTooMany.Error()},
		{"attribute-hash", "-O ^metadata_csum", near,
			func(t *testing.T, disk string, _ *FS, short, _ *inode) {
				patch(t, disk, short.attrBlock()*1024+1020, []byte("x"))
			}, "does not fit its hash"},
		{"attribute-elsewhere", "-O ^metadata_csum", near,
			func(t *testing.T, disk string, _ *FS, short, _ *inode) {
				patch(t, disk, short.attrBlock()*1024+attrHeader+6, []byte{0x10})
			}, "extended attributes of inode"},
		{"attribute-magic", "-O ^metadata_csum", []string{"ea_set /short user.here v"},
			func(t *testing.T, disk string, _ *FS, short, _ *inode) {
				patch(t, disk, short.at+oldInodeBytes+short.extra, []byte{1})
			}, "magic in the inode is 0xea020001"},
		{"fewer-extents", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, _ *FS, _, fragmented *inode) {
				patch(t, disk, leafOf(t, fragmented)*1024+2, []byte{50})
			}, "by its own count"},
		{"socket", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, _ *FS, _, fragmented *inode) {
				patch(t, disk, fragmented.at+1, []byte{0xc1})
			}, "by its own count"},
		{"type", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, _ *FS, short, _ *inode) {
				patch(t, disk, short.at+1, []byte{0x61})
			}, "its name in directory 2 says type 0120000"},
		{"directory-size", "-O ^metadata_csum,^dir_index", nil,
			func(t *testing.T, disk string, fs *FS, _, _ *inode) {
				patch(t, disk, named(t, fs, "/dir3").at+5, []byte{4})
			}, "blocks by its size, and blocks from"},
		{"bitmap-place", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, fs *FS, _, _ *inode) {
				elsewhere := uint32(fs.groups[0].table + fs.super.tableBlocks())
				patch(t, disk, 2048, binary.LittleEndian.AppendUint32(nil, elsewhere))
			}, "block bitmap of group 0: block"},
		{"bitmap-count", "-O ^metadata_csum", nil,
			func(t *testing.T, disk string, fs *FS, _, _ *inode) {
				patch(t, disk, fs.groups[1].blockBitmap*1024+1000, []byte{1})
			}, "clusters are free, its descriptor says"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := made(t, 16*mib, tc.mkfs+" -b 1024", tc.commands...)
			fs := openDisk(t, disk)
			short, fragmented := named(t, fs, "/short"), named(t, fs, "/fragmented")
			if problems := readMaps(t, fs); len(problems) > 0 {
				t.Fatalf("before the patch: %+v", problems)
			}
			tc.patch(t, disk, fs, short, fragmented)
			if got := fmt.Sprint(readMaps(t, openDisk(t, disk))); !strings.Contains(got, tc.text) {
				t.Errorf("problems are %s, want %q", got, tc.text)
			}
		})
	}
}

// named gives the inode of a path.
func named(t *testing.T, fs *FS, path string) *inode {
	t.Helper()
	var found *inode
	if err := files.Walk(t.Context(), fs, rootIno, "/", func(f *files.Found) error {
		if f.Path == path {
			found = f.File.(*inode)
		}
		return nil
	}); err != nil || found == nil {
		t.Fatalf("%s is not there: %v", path, err)
	}
	return found
}

// leafOf gives the last block of an extent tree.
func leafOf(t *testing.T, n *inode) int64 {
	t.Helper()
	leaf := int64(-1)
	w := &mapWalk{ctx: t.Context(), n: n, to: maxLogical, each: func(run) error { return nil },
		tree: func(block int64) error {
			leaf = block
			return nil
		}}
	if err := w.walk(); err != nil || leaf < 0 {
		t.Fatal("no extent block", err)
	}
	return leaf
}

// readMaps reads all names, maps, attributes and owners, and gives what was noted.
func readMaps(t *testing.T, fs *FS) []files.Problem {
	t.Helper()
	_, survey, err := files.Survey(t.Context(), fs, func(f *files.Found) error {
		if f.File != nil {
			_ = f.File.Extents(t.Context(), func(files.Extent) error { return nil })
			_ = f.File.Xattrs(t.Context(), func(string, []byte) error { return nil })
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all := []files.Range{{Length: fs.super.blocks * fs.super.blockBytes}}
	_ = fs.Owners(t.Context(), all, func(files.Owner) error { return nil })
	return append(survey.Problems, fs.View().Problems...)
}
