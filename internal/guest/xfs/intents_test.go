// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// intentBytes is an intent with its head and 64-bit words behind it.
func intentBytes(kind uint16, number uint64, words ...uint64) item {
	le := binary.LittleEndian
	b := le.AppendUint16(nil, kind)
	b = le.AppendUint16(b, 1)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, number)
	for _, w := range words {
		b = le.AppendUint64(b, w)
	}
	return item{kind: kind, total: 1, regions: [][]byte{b}}
}

// TestIntents has changes in the log that were begun and not done: what a file holds depends on some
// of them.
func TestIntents(t *testing.T) {
	for name, tc := range map[string]struct {
		begun item
		done  uint16 // the type that ends it
		what  string // the reason for an incomplete view
	}{
		"extents to free":  {intentBytes(itemEFI, 7, 20, 3), itemEFD, ""},
		"reverse map":      {intentBytes(itemRUI, 7, 20, 3, 4, 5), itemRUI + 1, ""},
		"reference counts": {intentBytes(itemCUI, 7, 20, 3), itemCUI + 1, ""},
		"extents":          {intentBytes(itemBUI, 7, 132, 3, 4, 5), itemBUI + 1, "inode 132: the log has a change of its extents"},
		"exchange":         {intentBytes(itemXMI, 7, 132, 133), itemXMI + 1, "inode 132: the log has an exchange"},
		"attribute":        {intentBytes(itemATTRI, 7, 132, 1), itemATTRI + 1, "a change of its extended attributes"},
		"parent":           {intentBytes(itemATTRI, 7, 132, 4), itemATTRI + 1, ""},
	} {
		for _, done := range []bool{false, true} {
			f := openBytes(t, image(t, "testdata/v5.gz"))
			r := &replay{j: &journal{f: f}, intents: map[uint64]item{}}
			items := []item{tc.begun}
			if done {
				items = append(items, intentBytes(tc.done, 7))
			}
			for i := range items {
				if err := r.item(&items[i], 1); err != nil {
					t.Fatal(err)
				}
			}
			r.pending()
			v := f.View()
			switch {
			case done || tc.what == "":
				if v.State != files.Clean {
					t.Errorf("%s, done %v: the view is %+v, want clean", name, done, v)
				}
			case v.State != files.Incomplete || !strings.Contains(v.Problems[0].What, tc.what):
				t.Errorf("%s: the view is %+v, want incomplete for %q", name, v, tc.what)
			}
			if freed := len(f.freed); freed != 0 && (done || tc.begun.kind != itemEFI) || freed != 1 &&
				!done && tc.begun.kind == itemEFI {
				t.Errorf("%s, done %v: %d extents are free", name, done, freed)
			}
		}
	}
}

// TestRealtime has a file on a realtime device: what it holds is not read, and that is said.
func TestRealtime(t *testing.T) {
	img := image(t, "testdata/v5.gz")
	f := openBytes(t, img)
	var ino files.Ino
	if err := f.Inodes(t.Context(), func(s *files.Stat) error {
		if s.IsRegular() && s.Size > 0 {
			ino = s.Ino
		}
		return nil
	}); err != nil || ino == 0 {
		t.Fatalf("inode %d, %v", ino, err)
	}
	off, _ := f.inodePlace(uint64(ino))
	raw := img[off:][:f.super.inode]
	raw[91] |= flagRealtime
	setChecksum(raw, 100)
	f = openBytes(t, img)
	n, err := f.Open(t.Context(), ino)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.ReadAt(make([]byte, 10), 0); got != 0 || err == nil || err == io.EOF {
		t.Errorf("ReadAt = %d, %v; want an error", got, err)
	}
	if v := f.View(); v.State != files.Incomplete || !strings.Contains(v.Problems[0].What, "realtime") {
		t.Errorf("the view is %+v, want incomplete for the realtime device", v)
	}
}
