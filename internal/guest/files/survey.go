// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package files

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// The bounds of a survey.
const (
	// maxLinked is how many inodes with several names are counted; beyond, their names are not
	// compared with their link counts, and the survey says so.
	maxLinked = 1 << 20
	// maxUnreached is how many inodes without a name are listed; all are counted.
	maxUnreached = 1000
)

// Count is what a survey counted.
type Count struct {
	// Names is how many names there are, Inodes how many inodes are in use, Reached how many of them
	// have a name.
	Names, Inodes, Reached int64
	// Orphans are in use without a name and say so themselves: they were open when they were
	// removed. Their space is OrphanBytes.
	Orphans, OrphanBytes int64
	// Unreached have links by their own count, but no name; UnreachedInos lists the first of them.
	Unreached, UnreachedBytes int64
	UnreachedInos             []Ino
}

// Survey walks over everything and holds what has names against what is in use: the one way to know
// that a list is whole where a file system has no checksums. fn gets what Walk gives; it may be
// nil. The view is that of the file system with what the survey found; the error is that of ctx or
// fn.
func Survey(ctx context.Context, fs FS, fn func(*Found) error) (*Count, View, error) {
	s := survey{count: new(Count), left: make(map[Ino]int64)}
	w := &walk{ctx: ctx, fs: fs, up: s.up, left: MaxNames, fn: func(f *Found) error {
		s.name(f)
		if fn == nil {
			return nil
		}
		err := fn(f)
		if errors.Is(err, ErrSkip) && len(s.open) > 0 {
			s.open[len(s.open)-1].partial = true
		}
		return err
	}}
	if err := w.start(fs.Info().Root, "/"); err != nil {
		return s.count, s.view(fs), err
	}
	s.leave(0)
	err := fs.Inodes(ctx, func(st *Stat) error {
		if s.inode(st); s.count.Inodes > MaxNames {
			return fmt.Errorf("%w: more than %d inodes", ErrMany, int64(MaxNames))
		}
		return ctx.Err()
	})
	if ctx.Err() != nil {
		return s.count, s.view(fs), ctx.Err()
	}
	if err != nil {
		s.fail("reading all inodes", err)
	}
	s.judge()
	return s.count, s.view(fs), nil
}

type survey struct {
	count   *Count
	reached Set
	left    map[Ino]int64 // inodes with several links: how many names are still to come
	skipped bool          // there were too many of those
	many    bool          // there were too many inodes to keep in mind
	open    []openDir     // the directories that the walk is in, the root first
	notes   Notes
}

// openDir is a directory whose names are being read.
type openDir struct {
	ino     Ino
	links   uint32
	subs    int64 // directories in it
	partial bool  // not all of its names are known
}

// enter notes that the walk came to a name.
func (s *survey) enter(f *Found) {
	if f.File == nil {
		// A name that cannot be opened may be a directory; or it is a directory once more whose names
		// could not all be read.
		for i := range s.open {
			if d := &s.open[i]; d.ino == f.Dir || d.ino == f.Entry.Ino {
				d.partial = true
			}
		}
		return
	}
	depth := len(s.open)
	for depth > 0 && s.open[depth-1].ino != f.Dir {
		depth--
	}
	s.leave(depth)
	if st := f.File.Stat(); st.IsDir() {
		if depth > 0 {
			s.open[depth-1].subs++
		}
		s.open = append(s.open, openDir{ino: st.Ino, links: st.Links, partial: f.Err != nil})
	}
}

// leave notes that the walk is done with the directories from a depth on. Each has a link by its
// name, one by its own ".", and one by ".." of each directory in it; ext4 counts 1 where that is
// more than it can count.
func (s *survey) leave(depth int) {
	for _, d := range s.open[depth:] {
		if !d.partial && int64(d.links) != d.subs+2 && d.links != 1 {
			s.notes.Note(Problem{What: fmt.Sprintf("directory inode %d has %d links, and holds %d "+
				"directories", d.ino, d.links, d.subs), Offset: -1, Ino: d.ino})
		}
	}
	s.open = s.open[:depth]
}

// up is told where ".." of a directory leads: to the one that holds its name, and of the root to
// itself.
func (s *survey) up(dir *Found, parent Ino) {
	want := dir.Dir
	if want == 0 {
		want = dir.Entry.Ino
	}
	if parent != want {
		s.notes.Note(Problem{What: fmt.Sprintf("directory inode %d: %q leads to inode %d, and its name is "+
			"in inode %d", dir.Entry.Ino, "..", parent, want), Offset: -1, Ino: dir.Entry.Ino})
	}
}

// name counts a name that the walk came to.
func (s *survey) name(f *Found) {
	s.enter(f)
	if f.Err != nil {
		s.fail(fmt.Sprintf("%q", f.Path), f.Err)
	}
	if f.File == nil {
		return
	}
	s.count.Names++
	first := s.reached.Add(f.Entry.Ino)
	if !first && !s.reached.Has(f.Entry.Ino) {
		s.many = true // what is not kept in mind is not compared
		return
	}
	st := f.File.Stat()
	if t := f.Entry.Type; t != 0 && t != st.Mode&TypeMask {
		s.notes.Note(Problem{What: fmt.Sprintf("inode %d has mode 0%o, its name in directory %d says "+
			"type 0%o", st.Ino, st.Mode, f.Dir, t), Offset: -1, Ino: st.Ino, Hides: true})
	}
	if st.IsDir() || st.Links < 2 && first {
		return
	}
	switch _, known := s.left[f.Entry.Ino]; {
	case known:
		s.left[f.Entry.Ino]--
	case !first && st.Links < 2:
		s.notes.Note(Problem{What: fmt.Sprintf("inode %d has more names than links (%d)",
			f.Entry.Ino, st.Links), Offset: -1, Ino: f.Entry.Ino})
	case len(s.left) == maxLinked:
		s.skipped = true
	default:
		s.left[f.Entry.Ino] = int64(st.Links) - 1
	}
}

// fail notes what could not be read. What the file system noted itself is not noted again.
func (s *survey) fail(what string, err error) {
	known := new(Error)
	if errors.As(err, &known) && !errors.Is(err, ErrLoop) {
		return
	}
	s.notes.Note(Problem{What: fmt.Sprintf("%s: %v", what, err), Offset: -1, Hides: true})
}

// inode counts an inode that is in use.
func (s *survey) inode(st *Stat) {
	s.count.Inodes++
	switch {
	case s.many && !s.reached.Has(st.Ino):
	case s.reached.Has(st.Ino):
		s.count.Reached++
	case st.Links == 0:
		s.count.Orphans++
		s.count.OrphanBytes += st.Sectors * 512
	default:
		s.count.Unreached++
		s.count.UnreachedBytes += st.Sectors * 512
		if len(s.count.UnreachedInos) < maxUnreached {
			s.count.UnreachedInos = append(s.count.UnreachedInos, st.Ino)
		}
	}
}

// judge notes what does not fit together.
func (s *survey) judge() {
	if s.many {
		s.notes.Note(Problem{What: "the inodes in use lie too far apart to keep all in mind: names were not " +
			"held against them", Offset: -1, Hides: true})
	}
	if n := s.count.Unreached; n > 0 {
		s.notes.Note(Problem{What: fmt.Sprintf("%d inodes are in use and have no name, the first is "+
			"%d", n, s.count.UnreachedInos[0]), Offset: -1, Ino: s.count.UnreachedInos[0], Hides: true})
	}
	if n := s.reached.Len() - s.count.Reached; n > 0 && !s.many {
		s.notes.Note(Problem{What: fmt.Sprintf("%d inodes have names and are not in use", n),
			Offset: -1, Hides: true})
	}
	for _, ino := range slices.Sorted(maps.Keys(s.left)) {
		if left := s.left[ino]; left != 0 {
			s.notes.Note(Problem{What: fmt.Sprintf("inode %d: its link count and its names differ by %d",
				ino, left), Offset: -1, Ino: ino, Hides: left > 0})
		}
	}
	if s.skipped {
		s.notes.Note(Problem{What: fmt.Sprintf("more than %d files have several names: these were "+
			"not counted", maxLinked), Offset: -1, Hides: true})
	}
}

// view is that of the file system with what was noted here.
func (s *survey) view(fs FS) View {
	v := fs.View()
	own := s.notes.View()
	if own.State == Incomplete {
		v.State = Incomplete
	}
	for _, p := range own.Problems {
		if len(v.Problems) == MaxProblems {
			v.More++
			continue
		}
		v.Problems = append(v.Problems, p)
	}
	v.More += own.More
	return v
}
