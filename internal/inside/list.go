// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// The bounds of putting names in order. They hold for all directories together that a walk is in; a
// directory gets half of what is left, so that those below it find room too. One that has more names
// is given in the order of the disk, which needs no memory.
const (
	// maxSorted names take some 70 MiB; a directory by itself gets 100,000.
	maxSorted = 200_000
	// maxSortedBytes bounds their paths: of a directory that lies deep, each is long.
	maxSortedBytes = 64 << 20
)

// room is what names that are put in order may still take.
type room struct{ names, bytes int }

// newRoom is that of a walk that has not begun.
func newRoom() *room { return &room{maxSorted, maxSortedBytes} }

// Directory calls fn for each name in a directory but "." and "..", in the order of their bytes (see
// maxSorted). What could not be read of the directory is the error, after all that could.
func Directory(ctx context.Context, fs files.FS, dir *files.Found, fn func(*files.Found) error) error {
	return newRoom().directory(ctx, fs, dir, fn)
}

// ordered are names of one directory that wait to be put in order.
type ordered struct {
	fn    func(*files.Found) error
	names []*files.Found
	left  room // what they may still take
	large bool // they do not fit: names are given on as they come
}

func (o *ordered) add(f *files.Found) error {
	if o.large {
		return o.fn(f)
	}
	o.names = append(o.names, f)
	o.left.names--
	o.left.bytes -= len(f.Path)
	if o.left.names > 0 && o.left.bytes > 0 {
		return nil
	}
	o.large = true
	return each(o.names, o.fn)
}

func (r *room) directory(ctx context.Context, fs files.FS, dir *files.Found,
	fn func(*files.Found) error,
) error {
	mine := room{r.names / 2, r.bytes / 2}
	r.names, r.bytes = r.names-mine.names, r.bytes-mine.bytes
	defer func() { r.names, r.bytes = r.names+mine.names, r.bytes+mine.bytes }()
	o := ordered{fn: fn, left: mine, large: mine.names == 0 || mine.bytes == 0}
	first := true
	var read, stop error
	err := files.Walk(ctx, fs, dir.Entry.Ino, dir.Path, func(f *files.Found) error {
		switch {
		case first:
			first = false
			read = f.Err
			return nil
		case f.Entry.Ino == dir.Entry.Ino && f.Path == dir.Path:
			read = f.Err // it could not be read to its end
			return nil
		}
		if stop = o.add(f); stop != nil {
			return stop
		}
		if f.File != nil && f.File.Stat().IsDir() {
			return files.ErrSkip
		}
		return nil
	})
	if stop != nil || err != nil {
		return errors.Join(stop, err)
	}
	if !o.large {
		slices.SortFunc(o.names, func(a, b *files.Found) int { return strings.Compare(a.Path, b.Path) })
		if err := each(o.names, fn); err != nil {
			return err
		}
	}
	if read != nil {
		return fmt.Errorf("%s: %w", dir.Path, read)
	}
	return nil
}

func each(all []*files.Found, fn func(*files.Found) error) error {
	for _, f := range all {
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

// Recursive calls fn for what is in a directory, as Directory does, and then for what is in each
// directory there, and so on. What could not be read of a directory comes as that directory, with
// Err. The error is that of ctx or of fn, or files.ErrMany.
func Recursive(ctx context.Context, fs files.FS, dir *files.Found, fn func(*files.Found) error) error {
	r := &recursion{ctx: ctx, fs: fs, room: newRoom(), fn: fn, left: room{maxWaiting, maxWaitingBytes}}
	r.seen.Add(dir.Entry.Ino)
	return r.list(dir, 0)
}

// How many directories of all levels are kept in mind until their turn comes, with how long paths.
// Where there are more, the directory that they are in is read once more instead.
const (
	maxWaiting      = 100_000
	maxWaitingBytes = 32 << 20
)

type recursion struct {
	ctx  context.Context
	fs   files.FS
	room *room
	fn   func(*files.Found) error
	// seen are all directories that were met, entered those whose turn came.
	seen, entered files.Set
	left          room // for directories that wait for their turn
}

// list gives what is in a directory, and then what is below it.
func (r *recursion) list(dir *files.Found, depth int) error {
	var below []*files.Found
	bytes := 0 // of their paths
	defer func() { r.left.names += len(below); r.left.bytes += bytes }()
	again := false // there were too many to keep
	var stop error
	err := r.room.directory(r.ctx, r.fs, dir, func(f *files.Found) error {
		if f.File != nil && f.File.Stat().IsDir() {
			follow, err := r.seen.Follow(f, depth+1)
			switch {
			case err != nil:
				stop = err
				return stop
			case !follow:
				f.Err = files.ErrLoop
			case r.left.names > 0 && r.left.bytes >= len(f.Path):
				r.left.names--
				r.left.bytes -= len(f.Path)
				bytes += len(f.Path)
				below = append(below, f)
			default:
				again = true
			}
		}
		stop = r.fn(f)
		return stop
	})
	if stop != nil || r.ctx.Err() != nil {
		return errors.Join(stop, r.ctx.Err())
	}
	if err != nil {
		once := *dir
		once.Err = err
		if err := r.fn(&once); err != nil {
			return err
		}
	}
	for _, f := range below {
		if err := r.enter(f, depth); err != nil {
			return err
		}
	}
	if !again {
		return nil
	}
	// What could not be read of it was said the first time.
	_ = r.room.directory(r.ctx, r.fs, dir, func(f *files.Found) error {
		if f.File != nil && f.File.Stat().IsDir() && r.seen.Has(f.Entry.Ino) {
			stop = r.enter(f, depth)
		}
		return stop
	})
	return errors.Join(stop, r.ctx.Err())
}

// enter lists a directory when its turn has come, and not a second time.
func (r *recursion) enter(dir *files.Found, depth int) error {
	if follow, err := r.entered.Follow(dir, depth+1); err != nil || !follow {
		return err
	}
	return r.list(dir, depth+1)
}

// Level is a name of a sorted walk with its place.
type Level struct {
	*files.Found
	// Depth is 0 for where the walk began; Last: no name follows in the same directory.
	Depth int
	Last  bool
}

// SortedOptions bound a sorted walk.
type SortedOptions struct {
	// Depth is how far down it goes, 0 without a bound. Directories: nothing else is given.
	Depth       int
	Directories bool
}

// Sorted calls fn for a file or directory and all below it: each directory before what it holds, in
// the order of names. What could not be read of a directory comes once more as that directory, with
// Err. The error is that of ctx or of fn, or files.ErrMany.
func Sorted(ctx context.Context, fs files.FS, from *files.Found, o SortedOptions,
	fn func(Level) error,
) error {
	s := &sorted{ctx: ctx, fs: fs, o: o, fn: fn, room: newRoom()}
	return s.one(Level{Found: from, Last: true})
}

type sorted struct {
	ctx  context.Context
	fs   files.FS
	o    SortedOptions
	fn   func(Level) error
	dirs files.Set
	room *room
}

func (s *sorted) one(l Level) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	dir := l.Err == nil && l.File.Stat().IsDir()
	follow, err := s.dirs.Follow(l.Found, l.Depth)
	if err != nil {
		return err
	}
	if dir && !follow {
		dir, l.Err = false, files.ErrLoop
	}
	if err := s.fn(l); err != nil || !dir || s.o.Depth > 0 && l.Depth == s.o.Depth {
		return err
	}
	// One name is held back, so that the last one is known as such.
	var held *files.Found
	var stop error
	next := func(f *files.Found, last bool) error {
		stop = s.one(Level{Found: f, Depth: l.Depth + 1, Last: last})
		return stop
	}
	err = s.room.directory(s.ctx, s.fs, l.Found, func(f *files.Found) error {
		if s.o.Directories && f.File != nil && !f.File.Stat().IsDir() {
			return nil
		}
		before := held
		held = f
		if before == nil {
			return nil
		}
		return next(before, false)
	})
	if stop == nil && held != nil {
		_ = next(held, true) // it is in stop
	}
	switch {
	case stop != nil:
		return stop
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	case err != nil:
		again := *l.Found
		again.Err = err
		return s.fn(Level{Found: &again, Depth: l.Depth, Last: l.Last})
	}
	return nil
}

// ErrNotFile: only regular files have content that can be printed.
var ErrNotFile = errors.New("is no regular file")

// Cat writes the content of a regular file. The errors are ErrNotFile, and those of reading and
// writing.
func Cat(ctx context.Context, f *files.Found, w io.Writer) error {
	st := f.File.Stat()
	if !st.IsRegular() {
		return fmt.Errorf("%s %w", f.Path, ErrNotFile)
	}
	buf := make([]byte, min(blockBytes, max(st.Size, 1)))
	for off := int64(0); off < st.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(int64(len(buf)), st.Size-off)]
		n, err := f.File.ReadAt(part, off)
		if _, err := w.Write(part[:n]); err != nil {
			return err
		}
		off += int64(n)
		if n < len(part) {
			return fmt.Errorf("at %d: %w", off, errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	return nil
}

// Wanted says which names a search gives: those that all of its conditions hold for. The zero value
// gives all.
type Wanted struct {
	// Name is a pattern of path.Match for the last part of the path, Path one for the whole; "" takes
	// all.
	Name, Path string
	// Type is one of f, d, l, b, c, p, s; 0 takes all.
	Type byte
	// Newer and Older bound the time of the last change of content, unless they are zero.
	Newer, Older time.Time
	// Larger and Smaller bound the size of regular files in bytes, unless they are 0.
	Larger, Smaller int64
	// UIDs and GIDs are the owners; nil takes all.
	UIDs, GIDs []uint32
}

// Ready tells whether the patterns are well formed: path.ErrBadPattern if not.
func (w *Wanted) Ready() error {
	for _, p := range []string{w.Name, w.Path} {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
	}
	return nil
}

// Takes tells whether a name is wanted. One whose inode could not be read is judged by its name.
func (w *Wanted) Takes(f *files.Found) bool {
	if w.Name != "" && !matches(w.Name, path.Base(f.Path)) || w.Path != "" && !matches(w.Path, f.Path) {
		return false
	}
	if f.File == nil {
		return true
	}
	st := f.File.Stat()
	changed := Time(st.Mtime)
	switch {
	case w.Type != 0 && w.Type != TypeLetter(st.Mode),
		!w.Newer.IsZero() && !changed.After(w.Newer), !w.Older.IsZero() && !changed.Before(w.Older),
		(w.Larger > 0 || w.Smaller > 0) && !st.IsRegular(),
		w.Larger > 0 && st.Size <= w.Larger, w.Smaller > 0 && st.Size >= w.Smaller,
		w.UIDs != nil && !slices.Contains(w.UIDs, st.UID), w.GIDs != nil && !slices.Contains(w.GIDs, st.GID):
		return false
	}
	return true
}

func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// Checksums tells whether each directory has a checksum, so that what it lost is seen when it is read.
func Checksums(fs files.FS) bool {
	return slices.ContainsFunc(fs.Info().Features, func(name string) bool {
		return name == "metadata_csum" || name == "v5"
	})
}

// TypeLetter gives the letter that find(1) and ls(1) have for a type; f for a regular file.
func TypeLetter(mode uint32) byte {
	switch mode & files.TypeMask {
	case files.TypeDir:
		return 'd'
	case files.TypeLink:
		return 'l'
	case files.TypeBlock:
		return 'b'
	case files.TypeChar:
		return 'c'
	case files.TypeFIFO:
		return 'p'
	case files.TypeSocket:
		return 's'
	}
	return 'f'
}
