// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// counted is a file system that notes how often the next inode lies before the last one.
type counted struct {
	files.FS
	last files.Ino
	back int
}

type countedFile struct {
	files.File
	st files.Stat
}

func (f *countedFile) Stat() *files.Stat { return &f.st }

var errOdd = errors.New("cannot be read")

func (c *counted) Open(_ context.Context, ino files.Ino) (files.File, error) {
	if ino < c.last {
		c.back++
	}
	c.last = ino
	if ino%1000 == 0 {
		return nil, errOdd
	}
	return &countedFile{st: files.Stat{Ino: ino}}, nil
}

// TestBatch: entries come out in the order of the directory, each with its own inode, and the inodes
// are read in the order of their numbers as far as there is room.
func TestBatch(t *testing.T) {
	const entries = 40_000
	for _, tc := range []struct {
		name  string
		taken int64
		back  int // at most
	}{
		{"room", 0, entries / batchEntries},
		{"no room", maxBatched, entries / batchShort},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, fs := new(server), new(counted)
			s.batched.Store(tc.taken)
			seen, unread := 0, 0
			b := &batch{s: s, fs: fs, plus: true}
			b.item = func(put func(*message)) error {
				m := new(message)
				put(m)
				name, ino := m.string(), files.Ino(m.uint())
				m.int()
				if want := fmt.Sprintf("name %d", seen); name != want {
					return fmt.Errorf("entry %q, want %q", name, want)
				}
				if m.bool() {
					if st := m.stat(); st.Ino != ino {
						t.Errorf("%s is inode %d, and comes with %d", name, ino, st.Ino)
					}
				} else if err := m.error(); err == nil || err.Error() != errOdd.Error() {
					t.Errorf("%s comes with %v", name, err)
				} else {
					unread++
				}
				seen++
				return nil
			}
			for i := range entries {
				// A step that has no divisor with the number of entries meets each inode once.
				ino := files.Ino(i*7919%entries + 1)
				if err := b.add(files.Entry{Name: fmt.Sprintf("name %d", i), Ino: ino}); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.flush(); err != nil {
				t.Fatal(err)
			}
			b.drop()
			if seen != entries || unread != entries/1000 || fs.back > tc.back {
				t.Errorf("%d entries, %d unread, %d times back, want %d, %d, at most %d", seen, unread,
					fs.back, entries, entries/1000, tc.back)
			}
			if left := s.batched.Load(); left != tc.taken {
				t.Errorf("%d entries are held at the end, want %d", left, tc.taken)
			}
		})
	}
}
