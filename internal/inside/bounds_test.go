// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// liar is a file system that lists whatever it wants: entries gives the names of a directory, of
// which those with a capital letter are directories.
type liar struct {
	entries func(dir files.Ino, fn func(name string, ino files.Ino) error) error
}

type lie struct {
	fs *liar
	st files.Stat
}

func (l *liar) Info() files.Info {
	return files.Info{Kind: "ext4", Root: 2, SizeBytes: 1 << 40, Features: []string{}}
}
func (l *liar) View() files.View { return files.View{State: files.Clean} }

func (l *liar) Open(_ context.Context, ino files.Ino) (files.File, error) {
	st := files.Stat{Ino: ino, Mode: files.TypeDir, Links: 2}
	if ino&1 != 0 {
		st.Mode, st.Links = files.TypeRegular, 1
	}
	return &lie{l, st}, nil
}

func (l *liar) Inodes(context.Context, func(*files.Stat) error) error { return nil }

func (l *liar) Owners(_ context.Context, ranges []files.Range, fn func(files.Owner) error) error {
	return fn(files.Owner{Range: ranges[0], Use: files.UseData, Ino: 1})
}

func (f *lie) Stat() *files.Stat                 { return &f.st }
func (f *lie) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

func (f *lie) Extents(context.Context, func(files.Extent) error) error { return nil }

func (f *lie) Xattrs(context.Context, func(string, []byte) error) error { return nil }

func (f *lie) Entries(ctx context.Context, fn func(files.Entry) error) error {
	return f.fs.entries(f.st.Ino, func(name string, ino files.Ino) error {
		return errors.Join(ctx.Err(), fn(files.Entry{Name: name, Ino: ino}))
	})
}

// heap is what is in use of the heap, in MiB.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc >> 20)
}

// TestManyDirectories lists a directory of more directories than are kept in mind: each has its turn,
// and once.
func TestManyDirectories(t *testing.T) {
	const many = maxWaiting + 1000
	fs := &liar{func(dir files.Ino, fn func(string, files.Ino) error) error {
		if dir != 2 {
			return fn("file", dir+1)
		}
		for i := range many {
			if err := fn(fmt.Sprint("D", i), files.Ino(4+2*i)); err != nil {
				return err
			}
		}
		return fn("Dagain", 4)
	}}
	root := found(t, fs, "/", true)
	for name, list := range map[string]func(fn func(*files.Found) error) error{
		"Recursive": func(fn func(*files.Found) error) error { return Recursive(t.Context(), fs, root, fn) },
		"Sorted": func(fn func(*files.Found) error) error {
			return Sorted(t.Context(), fs, root, SortedOptions{}, func(l Level) error { return fn(l.Found) })
		},
	} {
		dirs, regular, loops := 0, 0, 0
		if err := list(func(f *files.Found) error {
			switch {
			case errors.Is(f.Err, files.ErrLoop):
				loops++
			case f.Entry.Name == "file":
				regular++
			case f.Path != "/":
				dirs++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if dirs != many || regular != many || loops != 1 {
			t.Errorf("%s gives %d directories, %d files, %d again; want %d of each, 1 again", name, dirs, regular,
				loops, many)
		}
	}
}

// TestDeepAndWide goes down directories that have many names at each level: what is kept of all levels
// together is bounded.
func TestDeepAndWide(t *testing.T) {
	const levels, wide = 40, 30_000
	name := strings.Repeat("n", 200)
	fs := &liar{func(dir files.Ino, fn func(string, files.Ino) error) error {
		if dir > 2*levels {
			return nil
		}
		for i := range wide {
			if err := fn(fmt.Sprint(name, i), 1); err != nil {
				return err
			}
		}
		return fn("Down", dir+2)
	}}
	root := found(t, fs, "/", true)
	before, most, names := heap(), int64(0), 0
	if err := Sorted(t.Context(), fs, root, SortedOptions{}, func(l Level) error {
		if names++; l.Depth == levels && names%(wide/2) == 0 {
			most = max(most, heap()-before)
		}
		return l.Err
	}); err != nil {
		t.Fatal(err)
	}
	if want := levels*(wide+1) + 1; names != want {
		t.Errorf("%d names, want %d", names, want)
	}
	if most > 160 {
		t.Errorf("%d MiB are kept at the deepest level", most)
	}
}

// TestDeepPaths ends where paths get longer than is followed.
func TestDeepPaths(t *testing.T) {
	name := strings.Repeat("N", 1000)
	fs := &liar{func(dir files.Ino, fn func(string, files.Ino) error) error { return fn(name, dir+2) }}
	var last *files.Found
	if err := files.Walk(t.Context(), fs, 2, "/", func(f *files.Found) error { last = f; return nil }); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(last.Err, files.ErrLoop) || len(last.Path) > files.MaxPathBytes+2000 {
		t.Errorf("the walk ends with a path of %d bytes, %v", len(last.Path), last.Err)
	}
}

// TestNamesWithoutEnd: of a file with more names than are kept, the others are counted.
func TestNamesWithoutEnd(t *testing.T) {
	long := strings.Repeat("x", 1000)
	fs := &liar{func(_ files.Ino, fn func(string, files.Ino) error) error {
		for i := range 100_000 {
			if err := fn(fmt.Sprint(long, i), files.Ino(2*(i%5000)+1)); err != nil {
				return err
			}
		}
		return nil
	}}
	var all files.Set
	for i := range 5000 {
		all.Add(files.Ino(2*i + 1))
	}
	paths, err := Paths(t.Context(), fs, &all)
	if err != nil {
		t.Fatal(err)
	}
	size, names := 0, int64(0)
	for _, n := range paths {
		if len(n.Paths) > maxPaths {
			t.Fatalf("%d names of one file are kept", len(n.Paths))
		}
		names += int64(len(n.Paths)) + n.Cut
		for _, p := range n.Paths {
			size += len(p)
		}
	}
	if names != 100_000 || size > maxPathBytes || size < maxPathBytes/2 {
		t.Errorf("%d names, %d bytes of them are kept", names, size)
	}
}

// TestManyLinks: files with several names are followed up to a bound, and it is told which are not.
func TestManyLinks(t *testing.T) {
	var l links
	long := strings.Repeat("x", 1<<20)
	st := func(i int) *files.Stat { return &files.Stat{Ino: files.Ino(i), Mode: files.TypeRegular, Links: 2} }
	for i := range maxLinkedBytes / len(long) {
		for name := range 2 {
			if !l.remember(st(i), long) {
				t.Fatalf("name %d of the file %d is not followed", name, i)
			}
		}
	}
	if l.remember(st(1<<20), long) || !l.remember(st(0), long) {
		t.Error("there is no bound")
	}
}
