// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestGrown has a file system that grew and was filled, all of which is in the journal alone: also the
// superblock, and what lies in groups that the one on the disk does not know.
func TestGrown(t *testing.T) {
	testenv.Need(t, "resize2fs", "e2fsck")
	const blockBytes = 1024
	small := made(t, 32*mib, "-b 1024 -J size=4 -E lazy_itable_init=0")
	debugfs(t, small, "feature needs_recovery") // its journal is empty
	before, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	before = append(before, make([]byte, 96*mib)...)
	debugfs(t, small, "feature -needs_recovery")
	grown := small
	if err := os.Truncate(grown, int64(len(before))); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("resize2fs", "-f", grown).CombinedOutput(); err != nil {
		t.Fatalf("resize2fs: %v\n%s", err, out)
	}
	want := fillGrown(t, grown)
	after, err := os.ReadFile(grown)
	if err != nil {
		t.Fatal(err)
	}
	changed := changedBlocks(t, openDisk(t, grown), before, after)
	logBlocks(t, grown, after, changed)
	crashed, err := os.ReadFile(grown)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range changed {
		copy(crashed[block*blockBytes:][:blockBytes], before[block*blockBytes:])
	}
	if err := os.WriteFile(grown, crashed, 0o600); err != nil {
		t.Fatal(err)
	}
	onDisk := int64(le32(crashed, superAt+4))
	f := openDisk(t, grown)
	got, view, err := filestest.ReadView(t.Context(), f)
	if err != nil || view.State != files.Recovered || len(view.Problems) > 0 {
		t.Errorf("%v, the view is %+v", err, view)
	}
	if onDisk != 32<<10 || f.super.blocks != 128<<10 {
		t.Errorf("%d blocks by the superblock, %d by the journal", onDisk, f.super.blocks)
	}
	for _, line := range filestest.Differences(got, want, filestest.Loose{}) {
		t.Error(line)
	}
	repair(t, grown) // e2fsck replays it, too, and finds nothing wrong
}

// fillGrown fills a file system in all of its groups, and gives what is in it.
func fillGrown(t *testing.T, disk string) filestest.Tree {
	t.Helper()
	dir, unmount := filestest.Mount(t, disk, "ext4")
	for i := range 40 { // a directory of the root goes where there is most room
		sub := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "file"), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	dir, unmount = filestest.Mount(t, disk, "ext4", "ro")
	defer unmount()
	return filestest.ReadMounted(t, dir)
}

// changedBlocks gives the blocks that differ outside of the journal.
func changedBlocks(t *testing.T, fs *FS, before, after []byte) []int64 {
	t.Helper()
	size := fs.super.blockBytes
	n, err := fs.load(t.Context(), journalIno)
	if err != nil {
		t.Fatal(err)
	}
	own := map[int64]bool{}
	if err := n.runs(t.Context(), 0, maxLogical, func(r run) error {
		for i := range r.count {
			own[r.physical+i] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var changed []int64
	for block := range int64(len(after)) / size {
		if !own[block] && !bytes.Equal(before[block*size:][:size], after[block*size:][:size]) {
			changed = append(changed, block)
		}
	}
	return changed
}

// logBlocks has debugfs write blocks into the journal, with the content that they have.
func logBlocks(t *testing.T, disk string, content []byte, blocks []int64) {
	t.Helper()
	const most = 500 // a command of debugfs has some thousand characters at most
	dir, size := t.TempDir(), int64(1024)
	commands := []string{"jo"}
	for len(blocks) > 0 {
		part := blocks[:min(len(blocks), most)]
		blocks = blocks[len(part):]
		var data []byte
		var list []string
		for _, block := range part {
			data = append(data, content[block*size:][:size]...)
			list = append(list, fmt.Sprint(block))
		}
		name := filepath.Join(dir, fmt.Sprint(len(commands)))
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		commands = append(commands, fmt.Sprintf("jw -b %s %s", strings.Join(list, ","), name))
	}
	if out := debugfs(t, disk, append(commands, "jc")...); strings.Contains(out, "while") {
		t.Fatal(out)
	}
}
