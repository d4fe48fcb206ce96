// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ext4

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
)

// The small file systems that fuzzing starts from. SHISA_UPDATE=1 makes them anew.
var fuzzBases = []struct {
	name, mkfs string
	size       int64
	log        string // how debugfs opens the journal, if it is to have something in it
}{
	{"ext4", "-b 1024 -N 64 -O ^has_journal,^resize_inode,inline_data", 256 << 10, ""},
	{"ext2", "-b 1024 -N 64 -O none,filetype,dir_index", 256 << 10, ""},
	{"bigalloc", "-b 1024 -N 64 -O ^has_journal,^resize_inode,bigalloc,ea_inode -C 4096", 512 << 10,
		""},
	{"log", "-b 1024 -N 32 -O ^metadata_csum -J size=1", 3 << 20, "jo"},
	{"log-csum", "-b 1024 -N 32 -O ^resize_inode -J size=1", 3 << 20, "jo -c -v 3"},
}

// TestFuzzBases holds that the small file systems are whole, and makes them.
func TestFuzzBases(t *testing.T) {
	for _, base := range fuzzBases {
		name := filepath.Join("testdata", base.name+".gz")
		if os.Getenv("SHISA_UPDATE") == "1" {
			makeBase(t, name, base.mkfs, base.size, base.log)
		}
		b := readBase(t, base.name)
		fs, err := Open(t.Context(), bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		count, view, err := files.Survey(t.Context(), fs, nil)
		if err != nil || count.Names < 5 || view.State == files.Incomplete {
			t.Errorf("%s has %d names, %v, %+v", base.name, count.Names, err, view)
		}
		if want := base.log != ""; want != (view.State == files.Recovered) {
			t.Errorf("%s is %s", base.name, view.State)
		}
	}
}

func makeBase(t *testing.T, name, mkfs string, size int64, log string) {
	t.Helper()
	from := t.TempDir()
	for _, f := range []string{"a", "b/c", "b/" + strings.Repeat("d", 100), "b/e/f"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(from, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(from, f), bytes.Repeat([]byte(f), 700), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args := append([]string{"mkfs.ext4", "-q", "-F", "-d", from}, strings.Fields(mkfs)...)
	disk := filestest.Make(t, t.TempDir(), size, append(args, "DISK")...)
	debugfs(t, disk, "ea_set /a user.x value")
	if log != "" {
		data := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(data, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		debugfs(t, disk, log, "jw -b 2900,2901,2902 "+data, "jw -r 2901", "jw -b 2901 "+data, "jc")
	}
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err = z.Write(b)
	if err := errors.Join(err, z.Close(), os.WriteFile(name, packed.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func readBase(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// applyPatches writes patches over a disk: three bytes of offset into it, one of length, the bytes.
func applyPatches(b, patches []byte) {
	for len(patches) > 4 {
		at := int(patches[0]) | int(patches[1])<<8 | int(patches[2])<<16
		n := min(int(patches[3]), len(patches)-4)
		if at < len(b) {
			copy(b[at:], patches[4:4+n])
		}
		patches = patches[4+n:]
	}
}

// readEverything reads all that there is, to a bound.
func readEverything(t *testing.T, b []byte) {
	t.Helper()
	ctx := t.Context()
	fs, err := Open(ctx, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return
	}
	fs.Info()
	names := 0
	buf := make([]byte, 64<<10)
	tooMany := errors.New("too many")
	_, _, err = files.Survey(ctx, fs, func(f *files.Found) error {
		if names++; names > 10_000 {
			return tooMany
		}
		if f.File == nil {
			return nil
		}
		size := f.File.Stat().Size
		for _, off := range []int64{0, size / 2, max(0, size-100)} {
			if n, err := f.File.ReadAt(buf, off); n < 0 || n > len(buf) || n < len(buf) && err == nil {
				t.Errorf("ReadAt gives %d, %v", n, err)
			}
		}
		_ = f.File.Xattrs(ctx, func(string, []byte) error { return nil })
		return nil
	})
	if err != nil && !errors.Is(err, tooMany) {
		t.Errorf("Survey ends with %v", err)
	}
	pos := int64(0)
	err = fs.Owners(ctx, []files.Range{{Length: int64(len(b))}}, func(o files.Owner) error {
		if o.Range.Length <= 0 || o.Range.Offset > pos {
			t.Errorf("owner of 0x%x+0x%x, want 0x%x", o.Range.Offset, o.Range.Length, pos)
		}
		pos = max(pos, o.Range.Offset+o.Range.Length)
		return nil
	})
	if known := new(files.Error); err != nil && !errors.As(err, &known) {
		t.Errorf("Owners ends with %v", err)
	}
	if pos != int64(len(b)) {
		t.Errorf("Owners end at 0x%x", pos)
	}
}

// FuzzOpen changes bytes of small file systems, from their superblock on.
func FuzzOpen(f *testing.F) {
	var bases [][]byte
	for _, base := range fuzzBases {
		if base.log == "" {
			bases = append(bases, readBase(f, base.name))
		}
	}
	f.Add(uint8(0), []byte(nil))
	f.Add(uint8(1), []byte{0x00, 0x04, 0x00, 4, 1, 2, 3, 4})                // number of inodes
	f.Add(uint8(0), []byte{0x18, 0x04, 0x00, 1, 6})                         // block size
	f.Add(uint8(1), []byte{0x28, 0x04, 0x00, 4, 8, 0, 0, 0})                // inodes of a group
	f.Add(uint8(2), []byte{0x04, 0x04, 0x00, 4, 255, 255, 255, 255})        // number of blocks
	f.Add(uint8(1), []byte{0x08, 0x08, 0x00, 4, 5, 0, 0, 0})                // inode table
	f.Add(uint8(1), []byte{0x58, 0x04, 0x00, 2, 0, 4})                      // size of an inode
	f.Add(uint8(1), bytes.Repeat([]byte{0x00, 0x20, 0x00, 2, 255, 255}, 9)) // an inode
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		b := bytes.Clone(bases[int(which)%len(bases)])
		applyPatches(b, patches)
		readEverything(t, b)
	})
}

// FuzzReplay changes bytes of journals.
func FuzzReplay(f *testing.F) {
	var (
		bases [][]byte
		logs  []int
	)
	for _, base := range fuzzBases {
		if base.log == "" {
			continue
		}
		b := readBase(f, base.name)
		at := bytes.Index(b, []byte{0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 4})
		if at < 0 {
			f.Fatal("no journal")
		}
		bases, logs = append(bases, b), append(logs, at)
	}
	f.Add(uint8(0), []byte(nil))
	f.Add(uint8(0), []byte{0x1c, 0, 0, 4, 0, 0, 1, 0})       // where the log begins
	f.Add(uint8(0), []byte{0x28, 0, 0, 4, 0, 0, 0, 0x3f})    // features
	f.Add(uint8(1), []byte{0x07, 0x04, 0, 1, 5})             // a revocation
	f.Add(uint8(0), []byte{0x0c, 0x14, 0, 4, 255, 0, 0, 0})  // its length
	f.Add(uint8(0), []byte{0x13, 0x04, 0, 1, 2})             // flags of a tag
	f.Add(uint8(0), []byte{0x0c, 0x04, 0, 4, 0, 0, 0, 1})    // a block
	f.Add(uint8(0), []byte{0x10, 0, 0, 4, 0, 0xff, 0xff, 0}) // length
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		i := int(which) % len(bases)
		b := bytes.Clone(bases[i])
		applyPatches(b[logs[i]:], patches)
		readEverything(t, b)
	})
}
