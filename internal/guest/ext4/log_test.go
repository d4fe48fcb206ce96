// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// logFirst is the first of the blocks that the logs of tests are for.
const logFirst = 9000

// writeLog makes a file system whose journal holds what script writes into it, by the commands of
// debugfs. In these DATA1 to DATA4 are files of four blocks each.
func writeLog(t *testing.T, mkfs, open string, sequence uint32, script ...string) string {
	t.Helper()
	testenv.Need(t, "debugfs", "e2fsck")
	dir := t.TempDir()
	args := append(append([]string{"mkfs.ext4", "-q", "-F"}, strings.Fields(mkfs)...), "DISK")
	disk := filestest.Make(t, dir, 16*mib, args...)
	commands := open + "\n" + strings.Join(script, "\n") + "\njc\n"
	size := int(openDisk(t, disk).super.blockBytes)
	for n := 1; n <= 4; n++ {
		var data []byte
		for block := range 4 {
			b := bytes.Repeat([]byte{byte(16*n + block)}, size)
			if block == 2 { // has to be escaped
				binary.BigEndian.PutUint32(b, journalMagic)
			}
			data = append(data, b...)
		}
		name := filepath.Join(dir, fmt.Sprintf("data%d", n))
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		commands = strings.ReplaceAll(commands, fmt.Sprintf("DATA%d", n), name)
	}
	if sequence != 0 {
		patchLog(t, disk, 0, func(b []byte) { binary.BigEndian.PutUint32(b[24:], sequence) })
	}
	c := exec.Command("debugfs", "-w", "-f", "-", disk)
	c.Stdin = strings.NewReader(commands)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	return disk
}

// patchLog changes a block of the journal.
func patchLog(t *testing.T, disk string, block int64, change func([]byte)) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
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
		t.Fatal(err)
	}
	n, err := fs.load(t.Context(), journalIno)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(-1)
	if err := n.runs(t.Context(), block, maxLogical, func(r run) error {
		at = r.physical * fs.super.blockBytes
		return errEnough
	}); err != nil || at < 0 {
		t.Fatalf("block %d of the journal: %v", block, err)
	}
	b := make([]byte, fs.super.blockBytes)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	change(b)
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// logged reads the blocks that the logs are for.
func readLogged(t *testing.T, volume io.ReaderAt, size int64) [][]byte {
	t.Helper()
	var blocks [][]byte
	for n := range int64(8) {
		b := make([]byte, size)
		if _, err := volume.ReadAt(b, (logFirst+n)*size); err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	return blocks
}

// fsckReplays has e2fsck replay the journal of a copy, and gives the blocks that the logs are for.
// It tells whether e2fsck found the journal whole.
func fsckReplays(t *testing.T, disk string, size int64) (blocks [][]byte, whole bool) {
	t.Helper()
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "second")
	if err := os.WriteFile(second, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("e2fsck", "-fy", "-E", "journal_only", second).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	f, err := os.Open(second)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := strings.ToLower(string(out))
	return readLogged(t, f, size), !strings.Contains(text, "corrupt") &&
		!strings.Contains(text, "error") && !strings.Contains(text, "invalid") &&
		!strings.Contains(text, "checksum")
}

// logCase is a journal.
type logCase struct {
	name, mkfs, open string
	sequence         uint32
	script           []string
	damage           func(t *testing.T, disk string)
	whole            bool // e2fsck finds nothing wrong
	// lost: it takes what was damaged for the end of the log, and something went on behind it.
	lost bool
}

// plainLog has overwritten, revoked and escaped blocks, and a transaction without a commit.
var plainLog = []string{
	"jw -b 9000,9001,9002,9003 DATA1",
	"jw -b 9004,9005,9006,9007 DATA2",
	"jw -r 9001,9005",
	"jw -b 9001,9000,9006 DATA3",
	"jw -b 9002,9003 -c DATA4",
}

// flipIn gives the change of one bit in a block of the journal.
func flipIn(block int64, at int) func(t *testing.T, disk string) {
	return func(t *testing.T, disk string) {
		patchLog(t, disk, block, func(b []byte) { b[at] ^= 0x10 })
	}
}

var logCases = []logCase{
	{name: "no-csum", mkfs: "-b 1024 -O ^metadata_csum,^64bit", open: "jo", whole: true},
	{name: "64bit", mkfs: "-b 1024 -O ^metadata_csum,64bit", open: "jo", whole: true},
	{name: "v1", mkfs: "-b 1024 -O ^metadata_csum,^64bit", open: "jo -c -v 1", whole: true,
		script: []string{plainLog[0], plainLog[1], plainLog[3], plainLog[4]}},
	{name: "v2", mkfs: "-b 1024 -O ^64bit", open: "jo -c -v 2", whole: true},
	{name: "v2-64bit", mkfs: "-b 1024 -O 64bit", open: "jo -c -v 2", whole: true},
	{name: "v3", mkfs: "-b 1024", open: "jo -c -v 3", whole: true},
	{name: "v3-no-64bit", mkfs: "-b 1024 -O ^64bit", open: "jo -c -v 3", whole: true},
	{name: "wrap", mkfs: "-b 1024 -O ^metadata_csum", open: "jo", sequence: 0xfffffffe, whole: true},
	{name: "v3-descriptor", mkfs: "-b 1024", open: "jo -c -v 3", damage: flipIn(1, 20)},
	{name: "v3-data", mkfs: "-b 1024", open: "jo -c -v 3", damage: flipIn(2, 20)},
	{name: "v3-commit", mkfs: "-b 1024", open: "jo -c -v 3", damage: flipIn(12, 30)},
	{name: "v3-revoke", mkfs: "-b 1024", open: "jo -c -v 3", damage: flipIn(13, 18)},
	{name: "v3-super", mkfs: "-b 1024", open: "jo -c -v 3", damage: flipIn(0, 27)},
	{name: "v2-data", mkfs: "-b 1024", open: "jo -c -v 2", damage: flipIn(2, 20)},
	{name: "v1-data", mkfs: "-b 1024 -O ^metadata_csum,^64bit", open: "jo -c -v 1",
		damage: flipIn(9, 20)},
	{name: "v3-last-commit", mkfs: "-b 1024", open: "jo -c -v 3", damage: flipIn(19, 30)},
	{name: "v3-async", mkfs: "-b 1024", open: "jo -c -v 3", whole: true, lost: true,
		damage: func(t *testing.T, disk string) {
			flipIn(19, 30)(t, disk)
			patchLog(t, disk, 0, func(b []byte) {
				b[43] |= journalAsync
				copy(b[journalSuperSumAt:], []byte{0, 0, 0, 0})
				binary.BigEndian.PutUint32(b[journalSuperSumAt:], sum32(^uint32(0), b[:1024]))
			})
		}},
	{name: "kind", mkfs: "-b 1024 -O ^metadata_csum", open: "jo", damage: flipIn(7, 7), whole: true,
		lost: true},
	{name: "commit-kind", mkfs: "-b 1024 -O ^metadata_csum", open: "jo", damage: flipIn(19, 7),
		whole: true, lost: true},
	{name: "commit-number", mkfs: "-b 1024 -O ^metadata_csum", open: "jo", damage: flipIn(19, 11),
		whole: true, lost: true},
	{name: "v3-commit-number", mkfs: "-b 1024", open: "jo -c -v 3", damage: flipIn(19, 11), whole: true,
		lost: true},
	{name: "first-number", mkfs: "-b 1024 -O ^metadata_csum", open: "jo", damage: flipIn(0, 27),
		whole: true, lost: true},
	{name: "no-start", mkfs: "-b 1024 -O ^metadata_csum", open: "jo", whole: true, lost: true,
		damage: func(t *testing.T, disk string) {
			patchLog(t, disk, 0, func(b []byte) { clear(b[28:32]) })
		}},
	{name: "no-checksums", mkfs: "-b 1024", open: "jo -c -v 3", lost: true,
		damage: flipIn(0, 43)},
}

// TestLogs replays logs that debugfs wrote, and holds the blocks against what e2fsck makes of them.
func TestLogs(t *testing.T) {
	for _, tc := range logCases {
		t.Run(tc.name, func(t *testing.T) {
			script := tc.script
			if script == nil {
				script = plainLog
			}
			disk := writeLog(t, tc.mkfs+" -N 64 -J size=2", tc.open, tc.sequence, script...)
			if tc.damage != nil {
				tc.damage(t, disk)
			}
			fs := openDisk(t, disk)
			view := fs.View()
			want, whole := fsckReplays(t, disk, fs.super.blockBytes)
			if got := view.State != files.Incomplete; got != (tc.whole && !tc.lost) || whole != tc.whole {
				t.Errorf("the log is whole: %v, e2fsck says %v, want %v, %v: %+v", got, whole,
					tc.whole && !tc.lost, tc.whole, view.Problems)
			}
			for i, got := range readLogged(t, fs.meta.volume, fs.super.blockBytes) {
				if !bytes.Equal(got, want[i]) {
					t.Errorf("block %d begins %x, e2fsck makes it %x", logFirst+i, got[:8], want[i][:8])
				}
			}
			t.Logf("%s, %d transactions, %d blocks; %v", view.State, view.Transactions, view.Blocks,
				view.Problems)
		})
	}
}

// TestJournalCopy replays a log whose inode is gone: the superblock has its map.
func TestJournalCopy(t *testing.T) {
	for _, mkfs := range []string{"-b 1024", "-b 1024 -O ^extents,^64bit,^metadata_csum"} {
		t.Run(mkfs, func(t *testing.T) {
			disk := writeLog(t, mkfs+" -N 64 -J size=2", "jo", 0, plainLog...)
			want, _ := fsckReplays(t, disk, 1024)
			debugfs(t, disk, "clri <8>")
			fs := openDisk(t, disk)
			if view := fs.View(); view.Transactions != 4 || view.State != files.Recovered ||
				!strings.Contains(fmt.Sprint(view.Problems), "the copy of its map") {
				t.Errorf("the view is %+v, want 4 transactions by the copy", view)
			}
			for i, got := range readLogged(t, fs.meta.volume, 1024) {
				if !bytes.Equal(got, want[i]) {
					t.Errorf("block %d begins %x, want %x", logFirst+i, got[:8], want[i][:8])
				}
			}
		})
	}
}

// TestNamedJournal has tune2fs add a journal to a file system that is mounted: it is a file then.
func TestNamedJournal(t *testing.T) {
	testenv.Need(t, "tune2fs", "findmnt")
	disk := filestest.Make(t, t.TempDir(), 32*mib, "mkfs.ext2", "-q", "DISK")
	dir, unmount := filestest.Mount(t, disk, "ext2")
	device, err := exec.Command("findmnt", "-n", "-o", "SOURCE", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tune2fs", "-j", strings.TrimSpace(string(device))).CombinedOutput()
	if err != nil {
		t.Fatalf("tune2fs: %v\n%s", err, out)
	}
	unmount()
	fs := openDisk(t, disk)
	count, view, err := files.Survey(t.Context(), fs, nil)
	if err != nil || view.State != files.Clean || count.Reached != count.Inodes {
		t.Errorf("%+v, %+v, %v; want clean", count, view, err)
	}
	if journal := named(t, fs, "/.journal"); journal.stat.Ino != fs.super.journal() {
		t.Errorf("/.journal is inode %d, the journal is %d", journal.stat.Ino, fs.super.journal())
	}
}
