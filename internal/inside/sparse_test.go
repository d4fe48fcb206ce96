// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// newSparse gives a guest with a file of a TiB that has little in it, one of many pieces, and others.
func newSparse() *oddFS {
	g := &oddFS{
		stats: map[files.Ino]files.Stat{2: {Mode: files.TypeDir | 0o755},
			3: {Mode: files.TypeRegular | 0o640, Size: 1 << 40, Links: 2, UID: 7},
			4: {Mode: files.TypeRegular | 0o644, Size: 80_000*512 + 1<<20, Links: 1},
			5: {Mode: files.TypeRegular | 0o644, Size: 3000, Links: 1},
			6: {Mode: files.TypeRegular | 0o644, Size: 1 << 20, Links: 1}},
		extents: map[files.Ino][]files.Extent{
			3: {{Offset: 0, Length: 4096}, {Offset: 1 << 30, Length: 8192},
				{Offset: 1<<30 + 8193, Length: 1 << 20, Unwritten: true}, {Offset: 1<<40 - 10, Length: 4096}},
			6: {},
		},
		entries: map[files.Ino][]files.Entry{2: {{Name: strings.Repeat("n", 180) + "\n\xff GNU_sparse.name=x", Ino: 3},
			{Name: "again", Ino: 3}, {Name: "many", Ino: 4}, {Name: "plain", Ino: 5}, {Name: "hole", Ino: 6}}},
	}
	for i := range int64(80_000) {
		g.extents[4] = append(g.extents[4], files.Extent{Offset: i * 512, Length: 1 + i%7})
	}
	return g
}

// TestTarSparse has GNU tar read an archive of files with holes.
func TestTarSparse(t *testing.T) {
	testenv.Need(t, "tar")
	guest := newSparse()
	var archive bytes.Buffer
	done, err := Tar(t.Context(), found(t, guest, "/", true), guest, &archive, nil)
	if err != nil || done.Lost+done.Unset > 0 || done.Files != 4 || done.Links != 1 {
		t.Fatalf("Tar = %+v, %v", done, err)
	}
	dir := t.TempDir()
	c := exec.Command("tar", "-x", "--no-same-owner", "-C", dir)
	c.Stdin = bytes.NewReader(archive.Bytes())
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("tar: %v %s", err, out)
	}
	for _, e := range guest.entries[2] {
		f, err := os.Open(filepath.Join(dir, e.Name))
		if err != nil {
			t.Fatal(err)
		}
		st, want := new(unix.Stat_t), guest.stats[e.Ino]
		if err := unix.Fstat(int(f.Fd()), st); err != nil {
			t.Fatal(err)
		}
		if st.Size != want.Size || st.Mode != want.Mode || e.Ino == 3 && (st.Blocks > 1000 || st.Nlink != 2) {
			t.Errorf("%q has %d bytes, mode %o, %d blocks; want %+v", e.Name, st.Size, st.Mode, st.Blocks, want)
		}
		list := guest.extents[e.Ino]
		if len(list) == 0 {
			list = []files.Extent{{Length: want.Size, Unwritten: e.Ino == 6}}
		}
		for _, x := range list {
			// A piece, and a byte on each side of it.
			b := make([]byte, min(x.Length, 5000)+2)
			n, err := f.ReadAt(b[max(1-x.Offset, 0):], max(x.Offset-1, 0))
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			for i := range b[:n] {
				at := x.Offset + int64(i) - 1
				is := byte(e.Ino)
				if x.Unwritten || at < x.Offset || at >= min(x.Offset+x.Length, want.Size) {
					is = 0
				}
				if b[i] != is {
					t.Fatalf("%q has %d at %d, want %d", e.Name, b[i], at, is)
				}
			}
		}
		f.Close()
	}
	testGoReads(t, archive.Bytes(), guest)
}

// testGoReads has Go's reader read the same: names, sizes and what follows.
func testGoReads(t *testing.T, archive []byte, guest *oddFS) {
	t.Helper()
	r, i := tar.NewReader(bytes.NewReader(archive)), 0
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		e := guest.entries[2][i]
		i++
		if want := guest.stats[e.Ino].Size; h.Name != e.Name || h.Typeflag == tar.TypeReg && h.Size != want {
			t.Errorf("%q has %d bytes, want %q with %d", h.Name, h.Size, e.Name, want)
		}
	}
	if i != len(guest.entries[2]) {
		t.Errorf("%d names, want %d", i, len(guest.entries[2]))
	}
}

// TestHashSparse: holes are zeros, and are not read; a hash of huge ones can be called off.
func TestHashSparse(t *testing.T) {
	guest := newSparse()
	f, err := guest.Open(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, f.Stat().Size)
	for _, x := range guest.extents[4] {
		for i := range x.Length {
			want[x.Offset+i] = 4
		}
	}
	told := int64(0)
	got, err := Hash(t.Context(), f, func(n int64) { told += n })
	if err != nil || got != fmt.Sprintf("%x", sha256.Sum256(want)) || told != f.Stat().Size {
		t.Errorf("Hash = %s, %v, of %d bytes", got, err, told)
	}
	ctx, cancel := context.WithCancel(t.Context())
	guest.stats[3] = files.Stat{Mode: files.TypeRegular, Size: 1<<63 - 1, Links: 1}
	if f, err = guest.Open(ctx, 3); err != nil {
		t.Fatal(err)
	}
	told = 0
	if _, err := Hash(ctx, f, func(n int64) {
		if told += n; told > 64<<20 {
			cancel()
		}
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("Hash, called off = %v", err)
	}
}

// TestResumeInto goes on with a copy whose directories have the guest's mode already, which lets
// nobody make a file in them; all else is copied.
func TestResumeInto(t *testing.T) {
	guest := &oddFS{
		stats: map[files.Ino]files.Stat{2: {Mode: files.TypeDir | 0o755}, 3: {Mode: files.TypeDir | 0o555},
			4: {Mode: files.TypeRegular | 0o644, Size: 4, Links: 1}},
		entries: map[files.Ino][]files.Entry{2: {{Name: "dir", Ino: 3}, {Name: "last", Ino: 4}},
			3: {{Name: "one", Ino: 4}, {Name: "two", Ino: 4}}},
	}
	dir := t.TempDir()
	tree, err := diskio.NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	root := found(t, guest, "/", true)
	if done, err := Copy(t.Context(), root, guest, tree, "copy", CopyOptions{}); err != nil || done.Lost > 0 {
		t.Fatalf("Copy = %+v, %v", done, err)
	}
	inner := filepath.Join(dir, "copy", "dir")
	for _, do := range []error{os.Chmod(inner, 0o755), os.Remove(filepath.Join(inner, "one")),
		os.Chmod(inner, 0o555), os.Remove(filepath.Join(dir, "copy", "last"))} {
		if do != nil {
			t.Fatal(do)
		}
	}
	plainly := asNobodySpecial(t)
	done, err := Copy(t.Context(), root, guest, tree, "copy", CopyOptions{Resume: true})
	plainly()
	if err != nil || done.Lost != 1 || done.Files != 1 || done.Kept != 3 ||
		!strings.Contains(fmt.Sprint(done.Problems), syscall.EACCES.Error()) {
		t.Errorf("Copy, resumed = %+v, %v; want one lost, one made, three kept", done, err)
	}
}

// asNobodySpecial has this goroutine obey the modes of files, as root too, until the function that it
// gives is called.
func asNobodySpecial(t *testing.T) func() {
	t.Helper()
	if os.Geteuid() != 0 {
		return func() {}
	}
	runtime.LockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&head, &before[0]); err != nil {
		t.Fatal(err)
	}
	without := before
	without[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&head, &without[0]); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Capset(&head, &before[0]); err != nil {
			t.Fatal(err)
		}
		runtime.UnlockOSThread()
	}
}
