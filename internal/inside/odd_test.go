// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/guest/files"
)

// oddFS is a file system as only a broken or a hostile guest has it.
type oddFS struct {
	stats   map[files.Ino]files.Stat
	entries map[files.Ino][]files.Entry
	// noXattrs: no extended attributes can be read.
	noXattrs error
	// extents are those of files that have others than one block.
	extents map[files.Ino][]files.Extent
}

func (o *oddFS) Info() files.Info { return files.Info{Root: 2} }
func (o *oddFS) View() files.View { return files.View{State: files.Clean} }

func (o *oddFS) Open(_ context.Context, ino files.Ino) (files.File, error) {
	st, ok := o.stats[ino]
	if !ok {
		return nil, &files.Error{What: "inode", Offset: -1, Ino: ino, Err: errors.New("is not in use")}
	}
	st.Ino = ino
	return &oddFile{o, st}, nil
}

func (o *oddFS) Inodes(_ context.Context, fn func(*files.Stat) error) error {
	for ino, st := range o.stats {
		st.Ino = ino
		if err := fn(&st); err != nil {
			return err
		}
	}
	return nil
}

func (o *oddFS) Owners(context.Context, []files.Range, func(files.Owner) error) error { return nil }

type oddFile struct {
	fs *oddFS
	st files.Stat
}

func (f *oddFile) Stat() *files.Stat { return &f.st }

// ReadAt gives the number of the inode, again and again, and zeros in holes.
func (f *oddFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.st.Size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), f.st.Size-off)
	list := f.fs.extents[f.st.Ino]
	if list == nil {
		list = []files.Extent{{Length: f.st.Size}}
	}
	clear(p[:n])
	first := sort.Search(len(list), func(i int) bool { return list[i].Offset+list[i].Length > off })
	for _, x := range list[first:] {
		if x.Offset >= off+n {
			break
		}
		for at := max(x.Offset, off); !x.Unwritten && at < min(x.Offset+x.Length, off+n); at++ {
			p[at-off] = byte(f.st.Ino)
		}
	}
	return int(n), nil
}

func (f *oddFile) Extents(_ context.Context, fn func(files.Extent) error) error {
	if list := f.fs.extents[f.st.Ino]; list != nil {
		for _, e := range list {
			if err := fn(e); err != nil {
				return err
			}
		}
		return nil
	}
	return fn(files.Extent{Length: min(f.st.Size, 4096)})
}

func (f *oddFile) Entries(_ context.Context, fn func(files.Entry) error) error {
	for _, e := range f.fs.entries[f.st.Ino] {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *oddFile) Xattrs(context.Context, func(string, []byte) error) error { return f.fs.noXattrs }

// TestTarWithoutXattrs archives a file whose extended attributes cannot be read, by both of its names.
func TestTarWithoutXattrs(t *testing.T) {
	guest := &oddFS{noXattrs: errors.New("are broken"),
		stats: map[files.Ino]files.Stat{2: {Mode: files.TypeDir | 0o755},
			3: {Mode: files.TypeRegular | 0o644, Size: 3, Links: 2}},
		entries: map[files.Ino][]files.Entry{2: {{Name: "one", Ino: 3}, {Name: "two", Ino: 3}}}}
	var archive bytes.Buffer
	done, err := Tar(t.Context(), found(t, guest, "/", true), guest, &archive, nil)
	if err != nil || done.Lost != 2 {
		t.Errorf("Tar = %+v, %v; want the attributes of two lost", done, err)
	}
	var got []string
	for r := tar.NewReader(&archive); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		got = append(got, fmt.Sprintf("%s %d %s", h.Name, h.Size, h.Linkname))
	}
	if want := "[./ 0  one 3  two 0 one]"; fmt.Sprint(got) != want {
		t.Errorf("the archive has %v, want %s", got, want)
	}
}

// TestCopyOdd copies what no healthy guest has: what cannot be made is lost, and the rest is there.
func TestCopyOdd(t *testing.T) {
	long := strings.Repeat("x", 300)
	guest := &oddFS{
		stats: map[files.Ino]files.Stat{2: {Mode: files.TypeDir | 0o755}, 3: {Mode: files.TypeDir | 0o555},
			4: {Mode: files.TypeRegular | 0o4755, Size: 5, Links: 1}, 5: {Mode: files.TypeLink | 0o777, Size: 4},
			6: {Mode: files.TypeRegular | 0o644, Size: 6, Links: 1}, 7: {Mode: files.TypeRegular, Size: 1<<63 - 1},
			8: {Mode: 0o644}, 9: {Mode: files.TypeDir | 0o755}},
		entries: map[files.Ino][]files.Entry{
			2: {{Name: "dir", Ino: 3}, {Name: "after", Ino: 6}},
			3: {{Name: ".shisa-part-6", Ino: 4}, {Name: "twice", Ino: 4}, {Name: "twice", Ino: 9},
				{Name: long, Ino: 6}, {Name: long + "d", Ino: 9}, {Name: "huge", Ino: 7}, {Name: "none", Ino: 8},
				{Name: "gone", Ino: 99}, {Name: "last", Ino: 6}, {Name: "link", Ino: 5}, {Name: "link", Ino: 9}},
			9: {{Name: "below", Ino: 6}},
		},
	}
	guest.stats[5] = files.Stat{Mode: files.TypeLink | 0o777, Size: 1} // to "\x05"
	dir := t.TempDir()
	tree, err := diskio.NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	root := found(t, guest, "/", true)
	done, err := Copy(t.Context(), root, guest, tree, "copy", CopyOptions{})
	// twice and its directory once more, both long names, huge, none, gone, link once more
	if err != nil || done.Lost != 7 || done.Files != 4 || done.Unset != 2 {
		t.Errorf("Copy = %+v, %v; want 7 lost, 4 files, 2 modes unset", done, err)
	}
	for name, want := range map[string]fs.FileMode{"dir": fs.ModeDir | 0o555, "dir/.shisa-part-6": 0o755,
		"dir/twice": 0o755, "dir/last": 0o644, "after": 0o644} {
		if st, err := os.Lstat(filepath.Join(dir, "copy", name)); err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, st, err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "copy", "dir", "twice", "below")); err == nil {
		t.Error("a directory is below a file")
	}
	if err := os.Chmod(filepath.Join(dir, "copy", "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "copy", "after"), []byte("of somebody else"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "copy", "dir", "link")
	if err := errors.Join(os.Remove(link), os.Symlink("elsewhere", link)); err != nil {
		t.Fatal(err)
	}
	done, err = Copy(t.Context(), root, guest, tree, "copy", CopyOptions{Resume: true})
	if err != nil || done.Lost != 9 {
		t.Errorf("Copy, resumed = %+v, %v; want 9 lost", done, err)
	}
	if to, err := os.Readlink(link); to != "elsewhere" {
		t.Errorf("the link that was there leads to %q, %v", to, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "copy", "after")); string(b) != "of somebody else" {
		t.Errorf("what was there is %q, %v", b, err)
	}
}

// TestParseNameAny takes any text apart: what comes out stands in it, and its disk exists.
func TestParseNameAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		arg := rapid.StringMatching(`[ab:/@]{0,12}`).Draw(t, "arg")
		have := map[string]bool{}
		for _, name := range rapid.SliceOf(rapid.StringMatching(`[ab:/@]{1,6}`)).Draw(t, "have") {
			have[name] = true
		}
		n, err := ParseName(arg, func(name string) bool { return have[name] })
		if err != nil {
			if !errors.Is(err, ErrName) && !errors.Is(err, ErrForm) {
				t.Fatalf("ParseName(%q) = %v", arg, err)
			}
			if have[arg] {
				t.Fatalf("%q exists, and is not found: %v", arg, err)
			}
			return
		}
		whole := n.Disk
		if n.Snapshot != "" {
			whole += "@" + n.Snapshot
		}
		if n.Part != "" {
			whole += ":" + n.Part
		}
		if n.Path != "" {
			whole += ":" + n.Path
		}
		if !have[n.Disk] || strings.TrimSuffix(arg, ":") != strings.TrimSuffix(whole, ":") {
			t.Fatalf("ParseName(%q) = %+v", arg, n)
		}
		if have[arg] && n.Disk != arg {
			t.Fatalf("%q exists, and is taken apart: %+v", arg, n)
		}
	})
}

// TestJoinedView joins the view of a file system whose reason to be incomplete was not kept.
func TestJoinedView(t *testing.T) {
	var one, all files.Notes
	for i := range files.MaxProblems {
		one.Note(files.Problem{What: fmt.Sprint(i), Offset: -1})
	}
	one.Note(files.Problem{What: "a directory could not be read", Offset: -1, Hides: true})
	join(&all, "part 1", one.View())
	if v := all.View(); v.State != files.Incomplete {
		t.Errorf("the view is %s, want incomplete", v.State)
	}
}
