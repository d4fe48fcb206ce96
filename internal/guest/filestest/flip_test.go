// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// fake is a file system of one block of metadata, a directory and three files. When its block is
// not as it was, it does what it is told to.
type fake struct {
	volume io.ReaderAt
	spoilt bool
	evil   string
	held   []byte
	notes  files.Notes
}

// openFake gives an OpenFS for fakes that do something evil.
func openFake(evil string) OpenFS {
	return func(_ context.Context, volume io.ReaderAt, _ int64) (files.FS, error) {
		f := &fake{volume: volume}
		b := make([]byte, 512)
		if _, err := volume.ReadAt(b, 0); err != nil {
			return nil, err
		}
		if !bytes.Equal(b, bytes.Repeat([]byte{1}, len(b))) {
			f.spoilt, f.evil = true, evil
		}
		switch f.evil {
		case "refuse":
			return nil, errors.New("refused")
		case "panic":
			panic("evil")
		case "say":
			f.notes.Note(files.Problem{What: "spoilt", Hides: true})
		case "reads":
			for {
				if _, err := volume.ReadAt(b, 0); err != nil {
					return f, nil
				}
			}
		case "holds":
			f.held = make([]byte, MaxFlipBytes+1<<20)
		case "takes":
			for range 300 {
				f.held = make([]byte, 1<<20)
				if _, err := volume.ReadAt(f.held[:1], 0); err != nil {
					return nil, err
				}
			}
		}
		return f, nil
	}
}

func (f *fake) Info() files.Info { return files.Info{Root: 2} }
func (f *fake) View() files.View { return f.notes.View() }

func (f *fake) Open(_ context.Context, ino files.Ino) (files.File, error) {
	_, err := f.volume.ReadAt(make([]byte, 1), 0)
	return &fakeFile{f, files.Stat{Ino: ino, Mode: map[bool]uint32{true: files.TypeDir,
		false: files.TypeRegular}[ino == 2], Links: 1}}, err
}

func (f *fake) Inodes(_ context.Context, fn func(*files.Stat) error) error {
	for ino := files.Ino(2); ino < 6; ino++ {
		if f.evil == "loses" && ino == 5 {
			break
		}
		if err := fn(&files.Stat{Ino: ino, Links: 1}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Owners(_ context.Context, r []files.Range, fn func(files.Owner) error) error {
	use := files.UseMetadata
	if f.evil == "frees" {
		use = files.UseFree
	}
	return errors.Join(fn(files.Owner{Range: files.Range{Length: 512}, Use: use, What: "block"}),
		fn(files.Owner{Range: files.Range{Offset: 512, Length: r[0].Length - 512}, Use: files.UseFree}))
}

type fakeFile struct {
	*fake
	stat files.Stat
}

func (f *fakeFile) Stat() *files.Stat                       { return &f.stat }
func (f *fakeFile) ReadAt(p []byte, off int64) (int, error) { return 0, io.EOF }

func (f *fakeFile) Extents(context.Context, func(files.Extent) error) error { return nil }

func (f *fakeFile) Xattrs(_ context.Context, fn func(string, []byte) error) error {
	if f.evil == "differs" {
		return fn("user.more", nil)
	}
	return nil
}

func (f *fakeFile) Entries(_ context.Context, fn func(files.Entry) error) error {
	for i := 0; i < 3 || f.evil == "lists"; i++ {
		if f.evil == "loses" && i == 2 {
			break
		}
		if err := fn(files.Entry{Name: fmt.Sprint(i), Ino: files.Ino(3 + i%3)}); err != nil {
			return err
		}
	}
	return nil
}

// TestFlipsFindings holds that a sweep finds what it is there for, and nothing else.
func TestFlipsFindings(t *testing.T) {
	block := append(bytes.Repeat([]byte{1}, 512), make([]byte, pageBytes-512)...)
	d := &Disk{pages: map[int64][]byte{0: block}, size: 1 << 20}
	for _, tc := range []struct {
		evil, want string
		checked    bool
	}{
		{"nothing", "", true},
		{"refuse", "", true},
		{"say", "", true},
		{"takes", "", true},
		{"panic", "panic: evil", true},
		{"reads", "it read more than", true},
		{"lists", "it lists for ever", true},
		{"holds", "bytes of heap are in use", true},
		{"loses", "is not listed", true},
		{"loses", "directory inode 2 has 2 entries, want 3", false},
		{"frees", "is called free, and was in use", true},
		{"differs", "want", true},
		{"differs", "", false},
	} {
		t.Run(fmt.Sprint(tc.evil, tc.checked), func(t *testing.T) {
			s, err := newSweep(t.Context(), d, openFake(tc.evil), tc.checked)
			if err != nil {
				t.Fatal(err)
			}
			got := s.round(t.Context(), 77)
			if !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
				t.Errorf("the round finds %q, want %q", got, tc.want)
			}
			if tc.evil == "takes" && s.taken < MaxFlipBytes {
				t.Errorf("%d bytes were taken, want more than %d", s.taken, MaxFlipBytes)
			}
		})
	}
}

// TestPick holds that each kind of metadata gets its share, and a seed always gives the same bits.
func TestPick(t *testing.T) {
	d := &Disk{pages: map[int64][]byte{0: bytes.Repeat([]byte{1}, pageBytes)}, size: 1 << 20}
	s := &sweep{disk: d, kinds: []kind{{"small", []files.Range{{Length: 100}}},
		{"large", []files.Range{{Offset: 4096, Length: 512 << 10}}}}}
	small := 0
	for round := range uint64(1000) {
		bit := s.pick(random(3, round))
		if again := s.pick(random(3, round)); again != bit {
			t.Fatalf("round %d gives bit %d, then %d", round, bit, again)
		}
		if s.kindOf(bit/8) == "small" {
			small++
		} else if s.kindOf(bit/8) != "large" {
			t.Fatalf("bit %d is no metadata", bit)
		}
	}
	if small < 400 || small > 600 {
		t.Errorf("%d of 1000 flips are in the smaller of two kinds, want about half", small)
	}
}

// TestDisk holds an image that was packed against what it was packed from.
func TestDisk(t *testing.T) {
	d := &Disk{pages: map[int64][]byte{1: bytes.Repeat([]byte{7}, pageBytes)}, size: 3 * pageBytes}
	p := make([]byte, pageBytes)
	if n, err := d.ReadAt(p, pageBytes-10); n != len(p) || err != nil || p[9] != 0 || p[10] != 7 {
		t.Errorf("ReadAt = %d, %v, %d %d", n, err, p[9], p[10])
	}
	if n, err := d.ReadAt(p, 3*pageBytes-10); n != 10 || err != io.EOF {
		t.Errorf("ReadAt at the end = %d, %v, want 10, EOF", n, err)
	}
	dir := t.TempDir()
	disk := Make(t, dir, 1<<20, "mkfs.ext4", "-q", "-F", "DISK")
	Pack(t, disk, dir+"/packed")
	f := Unpack(t, dir+"/packed")
	whole, err := os.ReadFile(disk)
	if err != nil || f.Size() != 1<<20 || !bytes.Equal(f.Bytes(), whole) {
		t.Errorf("%d bytes are other than what was packed: %v", f.Size(), err)
	}
}
