// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// explained are the faults that xfs_repair finds and a view need not say, each with the reason. What is
// damaged is one thing, so that a fault that is told after one of these follows from it.
var explained = []struct{ fault, reason string }{
	{`(xfs_dir3_leaf1|xfs_dir3_leafn|xfs_da3_node|xfs_dir3_free) block|^(corrupt|free).*directory tree|` +
		`^leaf block|^free block`,
		"the tables of hashes are an index: names are read from the blocks that hold them, which have " +
			"checksums in version 5, and are held against the tables in version 4 where these can be read"},
	{`corruption detected .* xfs_dir3_(block|data) block`,
		"the table of free space in a block, whose names can all be read"},
	{`xfs_sb block|^superblock has bad CRC for ag|secondary superblocks|^bad on-disk superblock [1-9]|` +
		`^secondary superblock|^Superblock has bad magic number|in superblock [1-9]|` +
		`unused portion of (primary|secondary) superblock`,
		"copies of the superblock are read where the first one is damaged; in version 4 one is compared; " +
			"nobody reads what is unused"},
	{`^bad nblocks \d+ for inode`, "it is shown as a mount shows it; extents have a count of their own"},
	{`corruption detected .* xfs_bmbt block|sibling pointer|would clear forw/back pointers`,
		"blocks of a btree, and leaves, are come to from the root, not from their neighbours"},
	{`^Bad flags set in inode|^(directory|file) flags set on non-|^Bad extent size hint|` +
		`^Bad CoW extent size hint`, "they steer who writes"},
	{`would reset (usedbytes|first used)`, "what is free in a leaf, whose entries can all be read"},
	{`^size of .* inode \d+ != 0`, "a mount does not show it"},
	{`^inode \d+ not rt bitmap`, "nobody reads that flag of another inode"},
	{`would clear obsolete nlink field in version 2`, "the count of version 1, which nobody reads then"},
	{`xfs_dquot block`, "quotas are not read"},
	{`^bad attribute format \d+ in inode`, "of an inode without attributes"},
	{`^realtime (bitmap|summary) inode \d+ has bad size`, "it is no file that is shown"},
	{`would fix ftype mismatch \((0|[89]|\d\d+)/`, "a type that there is not is shown as not known"},
}

// stricter is what a view says of what xfs_repair takes for clean. What else is said then follows from it.
var stricter = []struct{ problem, reason string }{
	{`extent \d+ is beyond the end: .* 0x[0-9a-f]{12,}`,
		"xfs_repair cuts the number of the group to 32 bits; the kernel refuses it"},
	{`a value has \d{6,} bytes`, "xfs_repair takes any length; no system call gives more than 64 KiB"},
	{`^directory .* is the only one of the directory, which has \d+ bytes|` +
		`^directory .* has \d+ bytes, its blocks end at`,
		"xfs_repair does not hold the size of a directory against its blocks; the kernel refuses one of a " +
			"single block"},
}

// repairNoise is what xfs_repair prints besides faults: its steps, and what it would do.
var repairNoise = regexp.MustCompile(`^(Phase \d.*|- .*|No modify flag set.*|Cannot get host.*|` +
	`Repair may fail.*|the image and the host.*|would (have )?.*|)$`)

// faults runs xfs_repair, which changes nothing, and gives the lines that state a fault, and what it
// printed.
func faults(t *testing.T, disk string) (lines []string, text string) {
	t.Helper()
	out, err := exec.Command("xfs_repair", "-n", "-f", disk).CombinedOutput()
	exit := new(exec.ExitError)
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	text = string(out)
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !repairNoise.MatchString(line) {
			lines = append(lines, line)
		}
	}
	if err != nil && len(lines) == 0 {
		lines = append(lines, fmt.Sprintf("%v: %q", err, regexp.MustCompile("(?m)^.*would .*$").FindString(text)))
	}
	return lines, text
}

// said looks at all of a file system, and gives what the view says of it.
func said(t *testing.T, disk string) []string {
	t.Helper()
	file, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), file, st.Size())
	if err != nil {
		return []string{err.Error()}
	}
	// What these cannot read is in the view.
	_, view, err := files.Survey(t.Context(), f, func(f *files.Found) error {
		if f.File != nil {
			_ = f.File.Extents(t.Context(), func(files.Extent) error { return nil })
			_ = f.File.Xattrs(t.Context(), func(string, []byte) error { return nil })
			_, _ = f.File.ReadAt(make([]byte, min(max(f.File.Stat().Size, 1), 1<<20)), 0)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	_ = f.Owners(t.Context(), []files.Range{{Length: st.Size()}}, func(o files.Owner) error {
		if o.Use == files.UseUnknown {
			list = append(list, o.What)
		}
		return nil
	})
	for _, p := range append(view.Problems, f.View().Problems...) {
		list = append(list, p.What)
	}
	return list
}

// judge holds what a view says of a damaged file system against what xfs_repair says. It gives
// whether that finds a fault that a view must say.
func judge(t *testing.T, name, disk string) bool {
	t.Helper()
	lines, text := faults(t, disk)
	ours := said(t, disk)
	serious := ""
	if len(lines) > 0 {
		serious = lines[0]
	}
	for _, e := range explained {
		if regexp.MustCompile(e.fault).MatchString(serious) {
			serious = ""
		}
	}
	if serious != "" && len(ours) == 0 {
		t.Errorf("%s: the view has no problem, xfs_repair says %q:\n%.900s", name, serious, text)
	}
	known := len(lines) > 0 || len(ours) == 0
	for _, s := range stricter {
		known = known || slices.ContainsFunc(ours, regexp.MustCompile(s.problem).MatchString)
	}
	if !known {
		t.Errorf("%s: the view says %q, and xfs_repair finds no fault", name, ours)
	}
	return serious != ""
}

// TestSecondSpoilt turns single bits over and clears blocks, in what tells of files.
func TestSecondSpoilt(t *testing.T) {
	testenv.Need(t, "xfs_repair")
	for _, a := range zoo() {
		quick := a.name == "v5 1k rmapbt" || a.name == "v4" || a.name == "v5" || a.name == "v4 512"
		if a.crashed || !quick && !testenv.Long() {
			continue // xfs_repair replays no log
		}
		t.Run(a.name, func(t *testing.T) {
			rounds := 25
			if testenv.Long() {
				rounds = 200
			}
			disk := unpacked(t, a)
			if judge(t, "intact", disk) {
				t.Fatal("xfs_repair finds faults in what is intact")
			}
			parts := spoilable(t, open(t, disk))
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			serious := 0
			for seed := range uint64(rounds) {
				rng := rand.New(rand.NewPCG(seed, 0xf5))
				r := parts[rng.IntN(len(parts))]
				whole := make([]byte, r.Length)
				if _, err := f.ReadAt(whole, r.Offset); err != nil {
					t.Fatal(err)
				}
				b := []byte(string(whole))
				name := fmt.Sprintf("seed %d: %d bytes cleared at 0x%x", seed, len(b), r.Offset)
				if rng.IntN(6) == 0 {
					clear(b)
				} else {
					bit := rng.IntN(8 * len(b))
					b[bit/8] ^= 1 << (bit % 8)
					name = fmt.Sprintf("seed %d: bit %d at 0x%x", seed, bit, r.Offset)
				}
				if _, err := f.WriteAt(b, r.Offset); err != nil {
					t.Fatal(err)
				}
				if judge(t, name, disk) {
					serious++
				}
				if _, err := f.WriteAt(whole, r.Offset); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d of %d rounds have faults", serious, rounds)
			if serious < rounds/8 {
				t.Errorf("%d of %d rounds have faults, want more", serious, rounds)
			}
		})
	}
}

// TestSpoiltBits has single bits of version 4, which are found without a checksum. xfs_repair finds
// each of them, and TestSecondSpoilt found that the view did not say so.
func TestSpoiltBits(t *testing.T) {
	for _, tc := range []struct {
		name, disk string
		off, bit   int64
		want       string
	}{
		{"version of an AGF", "v4-512", 0x200, 32, "AGF of group 0: has version"},
		{"version of an AGI", "v4", 0x1400400, 36, "AGI of group 1: has version"},
		{"key of a root", "v4-512", 0x5100, 893, "key 0 of"},
		{"link without its first block", "v4", 0x1761500, 846, "has no blocks from 0 to 8192"},
		{"name that is there twice", "v4-1k-log-version-1", 0x4800, 1089, `two entries with the name "1"`},
		{"place of a name", "v4-1k-log-version-1", 0x4600, 861, "which is before"},
		{"nanoseconds", "v4", 0x175e100, 359, "nanoseconds"},
		{"free blocks", "v4-1k-log-version-1", 0x1400800, 172, "has a record of 1066412 blocks"},
		{"access control list", "v4", 0xfbf00, 1701, "permissions 0x20"},
		{"length of an access control list", "v4", 0xfbf00, 8*0x9a + 2, "does not fit its 64 bytes"},
		{"names of a leaf", "v4-1k-log-version-1", 0x1ac00, 135, "whose names begin at byte"},
		{"free piece of a leaf", "v4", 0xfb000, 8*20 + 7, "free ones from byte"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := image(t, "testdata/zoo/"+tc.disk+".gz")
			img[tc.off+tc.bit/8] ^= 1 << (tc.bit % 8)
			disk := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(disk, img, 0o600); err != nil {
				t.Fatal(err)
			}
			if all := said(t, disk); !strings.Contains(strings.Join(all, "\n"), tc.want) {
				t.Errorf("the view says %q, want %q", all, tc.want)
			}
		})
	}
}

// spoilable gives parts of the metadata that are in use: inodes more often than the rest. Parts that
// are all zeros, as most of a directory or of a leaf are, and values that are in blocks of their own
// without a checksum, tell nothing that could be found to be wrong.
func spoilable(t *testing.T, f *FS) []files.Range {
	t.Helper()
	var parts []files.Range
	used := func(r files.Range) bool {
		b, err := f.read(r.Offset, r.Length)
		if err != nil {
			t.Fatal(err)
		}
		return !bytes.Equal(b, make([]byte, len(b)))
	}
	value := func(off int64) bool {
		b, err := f.read(off, f.block)
		if err != nil {
			t.Fatal(err)
		}
		magic := be16(b, 8)
		return !f.v5 && magic != attrLeafMagic && magic != daNodeMagic
	}
	if err := f.Owners(t.Context(), []files.Range{{Length: f.size}}, func(o files.Owner) error {
		// What is free is read from the btree by block, and inodes have parts of their own below.
		if o.Use == files.UseMetadata && !strings.HasPrefix(o.What, "inode chunk") &&
			!strings.HasPrefix(o.What, bySizeTree().name) {
			parts = append(parts, files.Range{Offset: o.Range.Offset, Length: min(o.Range.Length, 512)})
		}
		if o.Use != files.UseInode {
			return nil
		}
		for at := o.Range.Offset; at < o.Range.Offset+o.Range.Length; at += 256 {
			r := files.Range{Offset: at, Length: 256}
			if !used(r) || o.What == "extended attributes" && value(at-at%f.block) {
				continue
			}
			parts = append(parts, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.eachInode(t.Context(), func(n *inode) error {
		if f.isSpecial(n.ino) {
			return nil // nobody is shown these
		}
		parts = append(parts, files.Range{Offset: n.off, Length: 256})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return parts
}
