// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// explained are the faults that e2fsck finds and a view need not say, each with the reason.
var explained = []struct{ fault, reason string }{
	{`i_faddr for inode .* should be zero`, "no kernel ever read or wrote fragments"},
	{`^Inode \d+ is in use, but has dtime set|^Root inode has dtime set|` +
		`^Inodes that were part of a corrupted orphan linked list|was part of the orphaned inode list`,
		"an inode that has names is shown as a mount shows it, whatever its time of deletion is"},
	{`i_size_high for inode .* should be zero`, "the upper half is that of a regular file alone"},
	{`i_file_acl_hi for inode .* should be zero`, "the upper half is read with 64bit alone"},
	{`HTREE directory|INDEX_FL flag set but is not a directory|lacks LARGE_DIR flag`,
		"the tree of hashes is an index: all blocks are read in their order, as the kernel does " +
			"where it is damaged, and are held against one another"},
	{`incorrect filetype \(was (0|[89]|\d\d+),`, "a type that there is not is shown as not known"},
	{`incorrect filetype .* should be 0\)`, "of a special file e2fsck takes the inode for none, for the " +
		"fault that it finds in it"},
	{`^Special .* has non-zero size`, "it is shown as a mount shows it; nothing can be read of it"},
	{`directory entry in directory inode \d+ is not NULL terminated`, "that is behind the name"},
	{`'\.\.' in .* is <The NULL inode>`, "follows from other faults"},
	{`^Corruption found in superblock\.  \((reserved_gdt_blocks|r_blocks_count) =`,
		"these are for who makes it larger, or writes"},
	{`encrypt flag but no encryption extended attribute`,
		"of a file that is empty; what holds anything is not read, and that is said"},
	{`^Invalid project quota inode`, "without the feature it is that of any file"},
	{`[Rr]evision (is apparently )?too high|Or the filesystem superblock is corrupt`,
		"the kernel reads it, and does not write it"},
	{`^Padding at end of (inode|block) bitmap is not set`, "it stands for no block and no inode"},
	{`^(Free blocks|Free inodes|Directories) count wrong`,
		"counts are shown as they stand, and no list rests on them"},
}

// stricter is what a view says of what e2fsck takes for clean.
var stricter = []struct{ problem, reason string }{
	{`depth of extents is`, "e2fsck does not look at the depth in blocks; the kernel refuses them"},
	{`in use, and no inode has it`, "a consequence of the above"},
	{`^the kernel noted \d+ errors`, "e2fsck takes that for a reason to look, and does not print it"},
}

// fsckNoise is what e2fsck prints besides faults: its steps, its questions, and its summary.
var fsckNoise = regexp.MustCompile(`^(e2fsck \d.*|Pass \d.*|[A-Z][A-Za-z /']*\? no|.*: \d+/\d+ files .*|` +
	`.*\*\*\*\*\* WARNING.*|)$`)

// follows are faults that follow from one that is named on the line after or before.
var follows = []*regexp.Regexp{
	regexp.MustCompile(`(?m)^Inode \d+, i_size is \d{10,}, should be .*\n+(?:.*LARGE_DIR.*\nFix\? no\n+)?` +
		`(?:Pass 2.*\n)?(i_size_high for inode)`),
	regexp.MustCompile(`(?m)^(Special .* has non-zero size.*\n+)Inode \d+, i_size is .*, should be 0\..*$`),
	regexp.MustCompile(`(?m)^ext2fs_check_desc: .*\n(Corruption found in superblock)`),
	regexp.MustCompile(`(?s)()The superblock could not be read or does not describe .*<device>\n`),
}

// faults runs e2fsck, which changes nothing, and gives the lines that state a fault, and what it
// printed.
func faults(t *testing.T, disk string) (lines []string, text string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-f", "-n", disk).CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	text = string(out)
	rest := text
	for _, f := range follows {
		rest = f.ReplaceAllString(rest, "$1")
	}
	for line := range strings.Lines(rest) {
		if line = strings.TrimSpace(line); !fsckNoise.MatchString(line) {
			lines = append(lines, line)
		}
	}
	if err != nil && len(lines) == 0 {
		t.Fatalf("e2fsck: %v, and no fault is in\n%s", err, out)
	}
	return lines, text
}

// said looks at all of a file system, and gives what the view says of it.
func said(t *testing.T, disk string) []string {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(t.Context(), f, st.Size())
	if err != nil {
		return []string{err.Error()}
	}
	// What these cannot read is in the view.
	_, view, err := files.Survey(t.Context(), fs, func(f *files.Found) error {
		if f.File != nil {
			_ = f.File.Extents(t.Context(), func(files.Extent) error { return nil })
			_ = f.File.Xattrs(t.Context(), func(string, []byte) error { return nil })
			_, _ = f.File.ReadAt(make([]byte, min(max(f.File.Stat().Size, 1), mib)), 0)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	_ = fs.Owners(t.Context(), []files.Range{{Length: st.Size()}}, func(o files.Owner) error {
		if o.Use == files.UseUnknown {
			list = append(list, o.What)
		}
		return nil
	})
	for _, p := range append(view.Problems, fs.View().Problems...) {
		list = append(list, p.What)
	}
	if (view.State == files.Incomplete || fs.View().State == files.Incomplete) && len(list) == 0 {
		t.Error("the view is incomplete without a reason")
	}
	return list
}

// judge holds what a view says of a damaged file system against what e2fsck says. It gives whether
// e2fsck finds a fault that a view must say.
func judge(t *testing.T, name, disk string) bool {
	t.Helper()
	lines, text := faults(t, disk)
	ours := said(t, disk)
	serious := ""
	for _, line := range lines {
		known := false
		for _, e := range explained {
			known = known || regexp.MustCompile(e.fault).MatchString(line)
		}
		if !known && serious == "" {
			serious = line
		}
	}
	if serious != "" && len(ours) == 0 {
		t.Errorf("%s: the view has no problem, e2fsck says %q:\n%.900s", name, serious, text)
	}
	for _, problem := range ours {
		known := len(lines) > 0
		for _, s := range stricter {
			known = known || regexp.MustCompile(s.problem).MatchString(problem)
		}
		if !known {
			t.Errorf("%s: the view says %q, and e2fsck finds no fault", name, problem)
		}
	}
	return serious != ""
}

// secondDisk makes a small file system with something of everything, whose directories have trees
// of hashes.
func secondDisk(t *testing.T, mkfs string) string {
	t.Helper()
	testenv.Need(t, "debugfs", "e2fsck")
	from := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"big", "small/in/deep"} {
		must(os.MkdirAll(filepath.Join(from, dir), 0o755))
	}
	for i := range 60 {
		name := filepath.Join(from, "big", fmt.Sprintf("%s%d", strings.Repeat("n", 20+i), i))
		must(os.WriteFile(name, []byte(strings.Repeat("content", i*5)), 0o644))
	}
	for i := range 3 {
		must(os.WriteFile(filepath.Join(from, fmt.Sprintf("small/file%d", i)), make([]byte, i*3000+1), 0o600))
		must(os.Link(filepath.Join(from, "small/file0"), filepath.Join(from, fmt.Sprintf("link%d", i))))
	}
	f, err := os.Create(filepath.Join(from, "fragmented"))
	must(err)
	for i := range int64(100) {
		_, err := f.WriteAt([]byte("piece"), i*8<<10)
		must(err)
	}
	must(f.Close())
	must(os.Symlink(strings.Repeat("long/", 40), filepath.Join(from, "far")))
	must(os.Symlink("short", filepath.Join(from, "near")))
	args := append([]string{"mkfs.ext4", "-q", "-F", "-N", "128", "-d", from}, strings.Fields(mkfs)...)
	disk := filestest.Make(t, t.TempDir(), 8*mib, append(args, "DISK")...)
	debugfs(t, disk, "ea_set /small/file0 user.near near", "ea_set /small/file1 user.long "+
		strings.Repeat("v", 300), "mknod pipe p", "mknod dev b 8 1")
	if out, err := exec.Command("e2fsck", "-fyD", disk).CombinedOutput(); err != nil {
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Fatalf("e2fsck: %v\n%s", err, out)
		}
	}
	if judge(t, "intact", disk) {
		t.Fatal("e2fsck finds faults in what is intact")
	}
	return disk
}

// TestSecondSpoilt turns single bits over and clears blocks, in what tells of files.
func TestSecondSpoilt(t *testing.T) {
	for _, v := range []struct{ name, mkfs string }{
		{"4k", "-b 4096"},
		{"1k inline", "-b 1024 -O inline_data"},
		{"no-csum", "-b 1024 -O ^metadata_csum,^uninit_bg"},
		{"no-csum inline", "-b 1024 -O ^metadata_csum,inline_data"},
		{"ext2", "-b 1024 -O ^metadata_csum,^extent,^has_journal,^64bit,^flex_bg"},
	} {
		t.Run(v.name, func(t *testing.T) {
			rounds := 25
			if testenv.Long() {
				rounds = 3000
			}
			disk := secondDisk(t, v.mkfs)
			parts := spoilable(t, openDisk(t, disk))
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			serious := 0
			for seed := range uint64(rounds) {
				rng := rand.New(rand.NewPCG(seed, 0x2ec))
				r := parts[rng.IntN(len(parts))]
				b := make([]byte, r.Length)
				if _, err := f.ReadAt(b, r.Offset); err != nil {
					t.Fatal(err)
				}
				whole := string(b)
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
				if _, err := f.WriteAt([]byte(whole), r.Offset); err != nil {
					t.Fatal(err)
				}
			}
			if serious < rounds/8 {
				t.Errorf("%d of %d rounds have faults, want more", serious, rounds)
			}
		})
	}
}

// spoilable gives parts of the metadata: inodes more often than the rest.
func spoilable(t *testing.T, fs *FS) []files.Range {
	t.Helper()
	var parts []files.Range
	end := fs.meta.size
	for _, o := range allOwners(t, fs, []files.Range{{Length: end}}, end) {
		if o.Use == files.UseMetadata && o.Ino == 0 && !strings.HasPrefix(o.What, "inode table") {
			parts = append(parts, files.Range{Offset: o.Range.Offset, Length: min(o.Range.Length, 1024)})
		}
		if o.Use != files.UseInode {
			continue
		}
		for at := o.Range.Offset; at < o.Range.Offset+o.Range.Length; at += 128 {
			parts = append(parts, files.Range{Offset: at, Length: 128})
		}
	}
	if err := fs.eachInode(t.Context(), func(n *inode) error {
		if !fs.own(n.stat.Ino) {
			parts = append(parts, files.Range{Offset: n.at, Length: min(int64(len(n.raw)), 160)})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return parts
}
