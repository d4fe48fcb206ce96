// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"errors"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// maxFuzzRead bounds what a walk reads of a file of that size, and what Merge does of two.
func maxFuzzRead(size int) int64 { return 64<<20 + 1024*int64(size) }

// FuzzJournal: whatever the bytes are, each walk ends, reads a bounded number of bytes, and gives
// each entry once; and of two copies of a file Merge gives no entry twice.
func FuzzJournal(f *testing.F) {
	for _, c := range [][2]bool{{false, false}, {true, true}} {
		m := seeded(c[0], c[1], 9)
		w, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
		if err != nil {
			f.Fatal(err)
		}
		text := "TRACE=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		m.packed(text, packedZstd, w.EncodeAll([]byte(text), nil))
		w.Close()
		m.packed("L=aaaaaaaaa", packedLZ4, append(le.AppendUint64(nil, 11), 0x33, 'L', '=', 'a', 1, 0, 0x10, 'a'))
		m.entry(10, uint64(at(10).UnixMicro()), 10, ID{2}, text, "L=aaaaaaaaa", "_TRANSPORT=kernel")
		f.Add(m.bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		for name, w := range walks {
			for _, backward := range []bool{false, true} {
				r := &counted{r: bytes.NewReader(b)}
				file, err := Open(r, int64(len(b)))
				if err != nil {
					if !errors.Is(err, ErrNotJournal) && !errors.Is(err, ErrUnsupported) {
						t.Fatal(err)
					}
					return
				}
				seen := map[int64]bool{}
				w.o.Backward = backward
				d, err := file.Entries(t.Context(), w.o, func(e *Entry) error {
					if seen[e.Offset] {
						t.Errorf("%s, backward %v: 0x%x is given twice", name, backward, e.Offset)
					}
					seen[e.Offset] = true
					if !e.Damaged && !w.want(e) {
						t.Errorf("%s, backward %v: gives %s", name, backward, text(e))
					}
					return nil
				})
				if err != nil || r.n > maxFuzzRead(len(b)) {
					t.Errorf("%s, backward %v: %v, read %d bytes of %d", name, backward, err, r.n, len(b))
				}
				if d.Lost < 0 || d.Hurt < 0 || d.Unlinked < 0 || len(d.Spots) > maxSpots+8 {
					t.Errorf("%s, backward %v: %+v", name, backward, d)
				}
			}
		}
		files := []*File{open(t, b), open(t, b)}
		seen := map[int64]bool{}
		if _, err := Merge(t.Context(), files, Options{}, func(_ int, e *Entry) error {
			if seen[e.Offset] && !e.Damaged {
				t.Errorf("Merge: 0x%x is given twice", e.Offset)
			}
			seen[e.Offset] = true
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}
