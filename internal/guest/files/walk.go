// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package files

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
)

// Found is a name that a walk came to.
type Found struct {
	// Path is the name with those of its directories, as "/etc/passwd"; that of the root is "/".
	Path string
	// Dir is the directory that holds the name, 0 for where the walk began.
	Dir   Ino
	Entry Entry
	// File is what the name stands for; nil where it could not be opened, and Err says why.
	File File
	Err  error
}

// ErrSkip makes a walk leave out what is below the directory that was given.
var ErrSkip = errors.New("skip this directory")

// ErrMany: there is more than is gone through in a walk (MaxNames), or kept of it (MaxSetWords).
var ErrMany = errors.New("more is there than is followed")

// ErrLoop: a directory was come to a second time, or directories are deeper than MaxDepth.
var ErrLoop = errors.New("directories lead back into themselves, or deeper than is followed")

// Walk calls fn for the directory (or file) from, whose path is at, and for everything below it, in
// the order of the disk, a directory before what it holds. It keeps no list: it needs memory for a
// bit for each directory, and for a block for each level. What could not be read is given to fn
// with Err: a name that cannot be opened, or once more a directory whose entries could not all be
// read. The error is that of ctx or of fn, or ErrMany.
func Walk(ctx context.Context, fs FS, from Ino, at string, fn func(*Found) error) error {
	w := &walk{ctx: ctx, fs: fs, fn: fn, left: MaxNames}
	return w.start(from, at)
}

func (w *walk) start(from Ino, at string) error {
	w.names, _ = w.fs.(Namer)
	f := &Found{Path: at, Entry: Entry{Name: path.Base(at), Ino: from}}
	f.File, f.Err = w.fs.Open(w.ctx, from)
	return w.name(f, 0)
}

// Namer is an FS that gives the entries of a directory together with the files behind them, which
// saves a call for each where calls are dear. A file that could not be opened is nil, with its
// error; so are "." and "..", without one.
type Namer interface {
	Names(ctx context.Context, dir Ino, fn func(Entry, File, error) error) error
}

type walk struct {
	ctx   context.Context
	fs    FS
	names Namer // nil if fs is none
	fn    func(*Found) error
	up    func(dir *Found, parent Ino) // is told where ".." of a directory leads, if not nil
	dirs  Set
	left  int64 // how many names more are gone through
}

// name gives one name, and what is below it.
func (w *walk) name(f *Found, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if w.left--; w.left < 0 {
		return fmt.Errorf("%w: more than %d names", ErrMany, int64(MaxNames))
	}
	dir := f.Err == nil && f.File.Stat().IsDir()
	follow, err := w.dirs.Follow(f, depth)
	if err != nil {
		return err
	}
	if dir && !follow {
		dir, f.Err = false, &Error{What: fmt.Sprintf("directory %d", f.Entry.Ino), Offset: -1,
			Ino: f.Entry.Ino, Err: ErrLoop}
	}
	switch err := w.fn(f); {
	case errors.Is(err, ErrSkip):
		return nil
	case err != nil || !dir:
		return err
	}
	return w.below(f, depth)
}

// below gives what a directory holds.
func (w *walk) below(dir *Found, depth int) error {
	var stop error
	name := func(e Entry, file File, err error) error {
		stop = w.name(&Found{Path: strings.TrimSuffix(dir.Path, "/") + "/" + e.Name,
			Dir: dir.Entry.Ino, Entry: e, File: file, Err: err}, depth+1)
		return stop
	}
	err := w.entries(dir, name)
	switch {
	case stop != nil:
		return stop
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	case err != nil:
		again := &Found{Path: dir.Path, Dir: dir.Dir, Entry: dir.Entry, Err: err}
		if err := w.fn(again); err != nil && !errors.Is(err, ErrSkip) {
			return err
		}
	}
	return nil
}

// entries calls fn for each name in a directory but "." and "..".
func (w *walk) entries(dir *Found, fn func(Entry, File, error) error) error {
	dots := func(e Entry) bool {
		if e.Name == ".." && w.up != nil {
			w.up(dir, e.Ino)
		}
		return e.Name == "." || e.Name == ".."
	}
	if w.names != nil {
		return w.names.Names(w.ctx, dir.Entry.Ino, func(e Entry, f File, err error) error {
			if dots(e) {
				return nil
			}
			return fn(e, f, err)
		})
	}
	return dir.File.Entries(w.ctx, func(e Entry) error {
		if dots(e) {
			return nil
		}
		f, err := w.fs.Open(w.ctx, e.Ino)
		return fn(e, f, err)
	})
}

// Follow notes that a walk goes down into a directory, and tells whether it does: not a second time,
// not deeper than MaxDepth, and not along a path longer than MaxPathBytes. What is no directory is not
// followed. The error is ErrMany.
func (s *Set) Follow(f *Found, depth int) (bool, error) {
	switch {
	case f.Err != nil || f.File == nil || !f.File.Stat().IsDir() || s.Has(f.Entry.Ino):
		return false, nil
	case depth > MaxDepth || len(f.Path) > MaxPathBytes:
		return false, nil
	case !s.Add(f.Entry.Ino):
		return false, fmt.Errorf("%w: more directories than are kept in mind", ErrMany)
	}
	return true, nil
}

// Set is a set of inodes that takes a bit for each where their numbers lie close together, as they
// do on a disk. The zero value is empty.
type Set struct {
	words map[Ino]uint64
	n     int64
}

// Add reports whether ino was not in the set yet. A set that is full takes no more: see Full.
func (s *Set) Add(ino Ino) bool {
	word, known := s.words[ino>>6]
	if word>>(ino&63)&1 != 0 || !known && s.Full() {
		return false
	}
	if s.words == nil {
		s.words = make(map[Ino]uint64)
	}
	s.words[ino>>6] |= 1 << (ino & 63)
	s.n++
	return true
}

// Full reports whether the set has all the words that it may have (MaxSetWords).
func (s *Set) Full() bool { return len(s.words) >= MaxSetWords }

// Has reports whether ino is in the set.
func (s *Set) Has(ino Ino) bool { return s.words[ino>>6]>>(ino&63)&1 != 0 }

// Len is how many it holds.
func (s *Set) Len() int64 { return s.n }
