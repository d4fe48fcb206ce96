// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/guest/ext4"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestFold: in a directory of ext4 that does not care for case, a mount finds what a lookup of package
// inside finds; where that cannot tell whether the guest finds a name, the mount says so.
func TestFold(t *testing.T) {
	testenv.Need(t, "mkfs.ext4", "debugfs")
	from := t.TempDir()
	for _, name := range []string{"any/Readme.TXT", "any/Ärger/File", "any/Fuß", "exact/Readme.TXT", "ascii/File",
		"ascii/two/X"} {
		name = filepath.Join(from, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	disk := filestest.Make(t, t.TempDir(), 16<<20, "mkfs.ext4", "-q", "-F", "-O", "casefold", "-E", "encoding=utf8",
		"-d", from, "DISK")
	c := exec.Command("debugfs", "-w", "-f", "-", disk)
	c.Stdin = strings.NewReader("sif /any flags 0x40080000\nsif /ascii flags 0x40080000\nsif /any/Ärger flags 0x40080000\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v %s", err, out)
	}
	f, err := diskio.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := ext4.Open(t.Context(), f, f.Size())
	if err != nil {
		t.Fatal(err)
	}
	dir, logged := shown(t, fsys)
	for path, cannotTell := range map[string]bool{"/any/Readme.TXT": false, "/any/README.txt": false,
		"/any/ärger/FILE": false, "/any/none": false, "/any/fuss": true, "/any/A\u0308rger": true,
		"/exact/README.txt": false, "/ANY/Readme.TXT": false, "/ascii/FILE": false, "/ascii/fuss": false,
		"/ascii/two/X": false, "/ascii/TWO/X": false} {
		want, err := inside.Lookup(t.Context(), fsys, path, true)
		if err != nil && !errors.Is(err, inside.ErrPath) {
			t.Fatal(err)
		}
		st, statErr := os.Lstat(dir + path)
		switch {
		case cannotTell && !errors.Is(statErr, unix.EIO):
			t.Errorf("Lstat(%q) = %v, want EIO", path, statErr)
		case cannotTell:
		case err != nil && !errors.Is(statErr, fs.ErrNotExist):
			t.Errorf("Lstat(%q) = %v, want that it is not there", path, statErr)
		case err == nil && statErr != nil:
			t.Errorf("Lstat(%q) = %v, want %s", path, statErr, want.Path)
		case err == nil:
			if ino := st.Sys().(*syscall.Stat_t); ino.Ino != uint64(want.Entry.Ino) {
				t.Errorf("Lstat(%q) is inode %d, want %d of %s", path, ino.Ino, want.Entry.Ino, want.Path)
			}
		}
	}
	if lines := logged(); len(lines) != 2 || !strings.Contains(lines[0], "does not care for case") {
		t.Errorf("told is %q, want the two names that nothing can be said of", lines)
	}
}

// TestEach: all entries are met until it is said to be enough, however many are kept at once.
func TestEach(t *testing.T) {
	names := []string{"a", "b", "", "c", "d", "e"} // no path can have the empty one
	broken := errors.New("broken")
	for _, limit := range []int{1, 3, 5, 100} {
		for _, err := range []error{nil, broken} {
			read := func(fn func(files.Entry) error) error {
				for i, name := range names {
					if err := fn(files.Entry{Name: name, Ino: files.Ino(i + 10)}); err != nil {
						return err
					}
				}
				return err
			}
			s := listings{limit: limit}
			s.kept.limit = maxListingBytes
			var met []string
			got := s.each(2, read, func(e files.Entry) bool { met = append(met, e.Name); return true })
			if !slices.Equal(met, []string{"a", "b", "c", "d", "e"}) || err != nil && !errors.Is(got, broken) {
				t.Errorf("each with %d kept = %q, %v, want %v", limit, met, got, err)
			}
			met = nil
			got = s.each(2, read, func(e files.Entry) bool { met = append(met, e.Name); return e.Name != "b" })
			if !slices.Equal(met, []string{"a", "b"}) || got != nil {
				t.Errorf("each with %d kept, until b = %q, %v", limit, met, got)
			}
		}
	}
}
