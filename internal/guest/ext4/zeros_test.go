// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// TestLinkZero has a zero in the target of a symbolic link, in the inode and in a block.
func TestLinkZero(t *testing.T) {
	disk := made(t, 16*mib, "-b 1024 -O ^metadata_csum")
	fs := openDisk(t, disk)
	short, long := named(t, fs, "/short"), named(t, fs, "/link")
	block := int64(0)
	if err := long.runs(t.Context(), 0, 1, func(r run) error {
		block = r.physical
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	read := func(n *inode) error {
		_, err := n.ReadAt(make([]byte, n.stat.Size), 0)
		return err
	}
	if err := read(short); err != nil {
		t.Fatal(err)
	}
	if err := read(long); err != nil {
		t.Fatal(err)
	}
	patch(t, disk, short.at+blockArea+2, []byte{0})
	patch(t, disk, block*1024+50, []byte{0})
	fs = openDisk(t, disk)
	for path, want := range map[string]string{"/short": "of 5 bytes has a zero at 2",
		"/link": "of 200 bytes has a zero at 50"} {
		if err := read(named(t, fs, path)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if v := fs.View(); v.State != files.Incomplete || len(v.Problems) != 2 {
		t.Errorf("the view is %+v", v)
	}
}

// TestEntryType has an entry of a directory with a type that there is not.
func TestEntryType(t *testing.T) {
	disk := made(t, 16*mib, "-b 1024 -O ^metadata_csum")
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte("\x05\x07short"))
	if at < 0 {
		t.Fatal("no entry")
	}
	patch(t, disk, int64(at)+1, []byte{8})
	fs := openDisk(t, disk)
	there := false
	root, err := fs.Open(t.Context(), rootIno)
	if err != nil {
		t.Fatal(err)
	}
	err = root.Entries(t.Context(), func(e files.Entry) error {
		there = there || e.Name == "short" && e.Type == 0
		return nil
	})
	if want := `entry "short" has type 8, which is none`; err == nil || !strings.Contains(err.Error(), want) ||
		!there || fs.View().State != files.Incomplete {
		t.Errorf("%v, the entry is there: %v, the view is %+v; want %q", err, there, fs.View(), want)
	}
}
