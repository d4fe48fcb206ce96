// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestSecondCrash holds what is read of a disk that was copied while it was written to against what
// e2fsck makes of it, whose replay is not that of the kernel.
func TestSecondCrash(t *testing.T) {
	testenv.Need(t, "e2fsck")
	for _, tc := range []struct{ name, kind, mkfs string }{
		{"4k", "ext4", "-b 4096 -J size=8"},
		{"no-csum", "ext4", "-b 1024 -O ^metadata_csum,orphan_file"},
		{"ext3", "ext3", "-b 1024 -J size=4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			copies := 2
			if testenv.Long() {
				copies = 30
			}
			mkfs := append([]string{"mkfs." + tc.kind, "-q", "-F"}, strings.Fields(tc.mkfs)...)
			recovered := 0
			filestest.Crash(t, tc.kind, 128*mib, append(mkfs, "DISK"), copies, 23,
				func(disk string, _ filestest.Tree) {
					got, view, err := filestest.ReadView(t.Context(), openDisk(t, disk))
					if err != nil {
						t.Fatal(err)
					}
					if view.State == files.Recovered {
						recovered++
					}
					repair(t, disk)
					dir, unmount := filestest.Mount(t, disk, tc.kind, "ro")
					want := filestest.ReadMounted(t, dir)
					unmount()
					for _, line := range filestest.Differences(got, want, filestest.Loose{}) {
						t.Error(line)
					}
					if view.State == files.Incomplete {
						t.Errorf("incomplete: %+v", view.Problems[:min(4, len(view.Problems))])
					}
				})
			if recovered == 0 {
				t.Errorf("none of %d copies had something to replay", copies)
			}
		})
	}
}

// repair has e2fsck replay the journal; it may put right what a crash leaves, and nothing else: not make an extent tree
// shorter, which takes a block away from the file.
func repair(t *testing.T, disk string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-f", "-y", "-E", "no_optimize_extents", disk).CombinedOutput()
	if exit := new(exec.ExitError); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); crashNoise(line) {
			continue
		}
		t.Errorf("e2fsck says %q", line)
	}
}

// crashNoise tells whether a line of e2fsck is of what each crash leaves: a journal, orphans, and
// counts that the kernel keeps in memory.
func crashNoise(line string) bool {
	if fsckNoise.MatchString(line) {
		return true
	}
	for _, part := range []string{"recovering journal", "Clearing orphaned inode", "Truncating orphaned inode",
		"count wrong", "Fix? yes", "FILE SYSTEM WAS MODIFIED", "Clear? yes", "(uid=", "orphan_present",
		"Orphan file"} {
		if strings.Contains(line, part) {
			return true
		}
	}
	return false
}

// TestSecondDamaged makes one thing wrong after the other, with right checksums.
func TestSecondDamaged(t *testing.T) {
	testenv.Need(t, "debugfs", "e2fsck")
	for _, tc := range []struct {
		name, mkfs string
		commands   []string
		// clean: that is no fault, or one that need not be said.
		clean bool
	}{
		{"links too many", "", []string{"sif /small/file1 links_count 4"}, false},
		{"links too few", "", []string{"sif /small/file0 links_count 2"}, false},
		{"links of a directory", "", []string{"sif /small links_count 9"}, false},
		{"free inode", "", []string{"freei /small/file1"}, false},
		{"inode in use by nobody", "", []string{"seti <120>"}, false},
		{"cleared inode", "", []string{"clri /small/file1"}, false},
		{"name without inode", "", []string{"ln <125> /ghost"}, false},
		{"inode without name", "", []string{"unlink /small/file1"}, false},
		{"directory without name", "", []string{"unlink /small/in"}, false},
		{"directory twice", "", []string{"ln /small/in /again"}, false},
		{"mode", "", []string{"sif /small/file1 mode 0070000"}, false},
		{"another type", "", []string{"sif /small/file1 mode 0140644"}, false},
		{"short file", "", []string{"sif /fragmented size 100"}, false},
		{"short directory", "", []string{"sif /big size 1024"}, false},
		{"long directory", "", []string{"sif /big size 65536"}, false},
		{"free blocks in use", "", []string{"freeb 1000 7000"}, false},
		{"blocks of nobody", "", []string{"setb 7000 20"}, false},
		{"block of another", "^extent,^64bit", []string{"sif /small/file1 block[0] BLOCK"}, false},
		{"block far away", "^extent,^64bit", []string{"sif /small/file1 block[0] 99999"}, false},
		{"block of metadata", "^extent,^64bit", []string{"sif /small/file1 block[0] 2"}, false},
		{"block of a map cleared", "^extent,^64bit", []string{"zap -p 0 LEAF"}, false},
		{"extents of a map spoilt", "", []string{"zap -p 0xff -o 12 -l 40 LEAF"}, false},
		{"attributes far away", "", []string{"sif /small/file1 file_acl 99999"}, false},
		{"attributes that are none", "", []string{"sif /small/file1 file_acl BLOCK"}, false},
		{"inode table cleared", "", []string{"zap -p 0 TABLE"}, false},
		{"journal cleared", "", []string{"clri <8>"}, false},
		{"orphans that do not end", "", []string{"unlink /small/file1", "sif <INO> links_count 0",
			"sif <INO> dtime INO", "ssv last_orphan INO"}, false},
		// Without a checksum this is how a map is known to be whole; otherwise it is only shown.
		{"counted blocks", "^metadata_csum", []string{"sif /small/file1 blocks 44"}, false},
		{"count of free blocks", "", []string{"ssv free_blocks_count 7"}, true},
		{"count of free inodes", "", []string{"set_bg 0 free_inodes_count 7", "set_bg 0 checksum calc"}, false},
		{"flags of inline data", "", []string{"sif /small/file1 flags 0x10000000"}, false},
		{"errors noted", "", []string{"ssv state 3", "ssv error_count 7"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mkfs := "-b 1024"
			if tc.mkfs != "" {
				mkfs += " -O " + tc.mkfs
			}
			disk := secondDisk(t, mkfs)
			fs := openDisk(t, disk)
			file, fragmented := named(t, fs, "/small/file1"), named(t, fs, "/fragmented")
			block := int64(0)
			if err := fragmented.runs(t.Context(), 0, 1, func(r run) error {
				block = r.physical
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			words := strings.NewReplacer("BLOCK", fmt.Sprint(block), "INO", fmt.Sprint(file.stat.Ino),
				"LEAF", fmt.Sprint(leafOf(t, fragmented)), "TABLE", fmt.Sprint(fs.groups[0].table+1))
			debugfs(t, disk, words.Replace(strings.Join(tc.commands, "\n")))
			if serious := judge(t, tc.name, disk); serious == tc.clean {
				lines, _ := faults(t, disk)
				t.Errorf("e2fsck finds %q, of which one is to be said: %v, want %v", lines, serious, !tc.clean)
			}
		})
	}
}
