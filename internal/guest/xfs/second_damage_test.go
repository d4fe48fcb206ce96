// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
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
		`^secondary superblock|^Superblock has bad magic number`,
		"copies of the superblock are read where the first one is damaged; in version 4 one is compared"},
	{`^bad nblocks \d+ for inode`, "it is shown as a mount shows it; extents have a count of their own"},
	{`corruption detected .* xfs_bmbt block|sibling pointer`,
		"blocks of a btree are come to from the root, not from their neighbours"},
	{`^Bad flags set in inode|^Bad extent size hint|^Bad CoW extent size hint`, "they steer who writes"},
	{`^bad attribute format \d+ in inode`, "of an inode without attributes"},
	{`^realtime (bitmap|summary) inode \d+ has bad size`, "it is no file that is shown"},
	{`would fix ftype mismatch \((0|[89]|\d\d+)/`, "a type that there is not is shown as not known"},
}

// stricter is what a view says of what xfs_repair takes for clean.
var stricter = []struct{ problem, reason string }{
	{`extent \d+ is beyond the end: .* 0x[0-9a-f]{12,}`,
		"xfs_repair cuts the number of the group to 32 bits; the kernel refuses it"},
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
	for _, problem := range ours {
		known := len(lines) > 0
		for _, s := range stricter {
			known = known || regexp.MustCompile(s.problem).MatchString(problem)
		}
		if !known {
			t.Errorf("%s: the view says %q, and xfs_repair finds no fault", name, problem)
		}
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
			if serious < rounds/8 {
				t.Errorf("%d of %d rounds have faults, want more", serious, rounds)
			}
		})
	}
}

// spoilable gives parts of the metadata: inodes more often than the rest.
func spoilable(t *testing.T, f *FS) []files.Range {
	t.Helper()
	var parts []files.Range
	if err := f.Owners(t.Context(), []files.Range{{Length: f.size}}, func(o files.Owner) error {
		if o.Use == files.UseMetadata && !strings.HasPrefix(o.What, "inode chunk") {
			parts = append(parts, files.Range{Offset: o.Range.Offset, Length: min(o.Range.Length, 512)})
		}
		if o.Use != files.UseInode {
			return nil
		}
		for at := o.Range.Offset; at < o.Range.Offset+o.Range.Length; at += 256 {
			parts = append(parts, files.Range{Offset: at, Length: 256})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.eachInode(t.Context(), func(n *inode) error {
		parts = append(parts, files.Range{Offset: n.off, Length: 256})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return parts
}
