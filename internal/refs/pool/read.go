// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// maxShields bounds what is listed: a pool has some thousand bases at most.
const maxShields = 1 << 20

// State is what a pool keeps about itself, as far as it could be read.
type State struct {
	// Bases is the directory of the bases.
	Bases string
	// Policy is nil where the pool has none: nothing was ever done in it.
	Policy *Policy
	// NoPolicy is why it could not be told which pool it is, or whether there is one; nil where there is none, or Policy. It
	// is among Unread.
	NoPolicy error
	// Shields are all, in the order of their names.
	Shields []Shield
	// Objects are the documents of bases, by inode.
	Objects map[uint64]Object
	// Audits are the entries of each node, in the order of the nodes and then of time.
	Audits []Entry
	// Pins are those that were not taken back, also those whose time is over.
	Pins []Pin
	// Held are the bases that were set aside, and those of them that were claimed.
	Held []Held
	// Intents tell of acts that are under way, or came to no end.
	Intents []Intent
	// Members are the nodes that joined, Retired those of which a person said that they do not come back,
	// Reports what each said last; all in the order of the nodes. See Nodes.
	Members []Member
	Retired []Retired
	Reports []Report
	// Unjoined are the names of the documents of nodes whose membership a person took back before they said anything, or
	// that another one took the place of.
	Unjoined []string
	// Notes are what nodes noted when they decided.
	Notes []Notes
	// Partials are files that are to become bases, or were until a power cut.
	Partials []Partial
	// Clock is what the clock of the file server said when it was last asked, zero if it never was.
	Clock time.Time
	// Odd are those of Unread that may be acts which came to no end, or bases that were set aside.
	Odd []error
	// Unread says what could not be read, or is not what it should be.
	Unread []error
}

// Latest is the latest time that is known of the clock of the file server: it shows that by now, or more.
func (s *State) Latest() time.Time {
	t := s.Clock
	for i := range s.Reports {
		if r := s.Reports[i].Time; r.After(t) {
			t = r
		}
	}
	return t
}

// Read reads what a pool keeps. No name is waited for longer than timeout. The error is that of ctx.
func Read(ctx context.Context, bases string, timeout time.Duration) (*State, error) {
	s := &State{Bases: bases, Objects: map[uint64]Object{}}
	if err := ownDir(ctx, Path(bases), timeout); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.NoPolicy, s.Unread = err, append(s.Unread, err)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return s, nil
	}
	if err := s.policy(ctx, timeout); err != nil {
		return nil, err
	}
	if err := s.clock(ctx, timeout); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		dir string
		fn  func(ctx context.Context, dir string, timeout time.Duration) error
	}{{Shields, s.shields}, {Objects, s.objects}, {Audit, s.audits},
		{Pins, s.pins}, {Quarantine, s.held(false)}, {Purge, s.held(true)}, {Journal, s.intents},
		{Members, s.members}, {Gone, s.retired}, {Nodes, s.reports}, {Noted, s.notes}, {"", s.partials}} {
		before := len(s.Unread)
		if err := part.fn(ctx, Path(bases, part.dir), timeout); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if !errors.Is(err, fs.ErrNotExist) {
				s.Unread = append(s.Unread, err)
			}
		}
		if part.dir == Journal || part.dir == Quarantine || part.dir == Purge {
			s.Odd = append(s.Odd, s.Unread[before:]...)
		}
	}
	s.Odd, s.Unread = apart(s.Odd), apart(s.Unread)
	return s, nil
}

// apart gives errors that were joined each for itself, and all that are about permission as one: of a user who may not
// read what a pool keeps there is one for every file.
func apart(all []error) (each []error) {
	var denied []error
	for len(all) > 0 {
		err := all[0]
		all = all[1:]
		several, ok := err.(interface{ Unwrap() []error })
		switch {
		case ok && errors.Join(several.Unwrap()...).Error() == err.Error(): // and not one with two causes
			all = append(slices.Clone(several.Unwrap()), all...)
		case errors.Is(err, fs.ErrPermission):
			denied = append(denied, err)
		default:
			each = append(each, err)
		}
	}
	if n := len(denied) - 1; n > 0 {
		are := "are"
		if n == 1 {
			are = "is"
		}
		denied[0] = fmt.Errorf("%w (and so %s %d more; root, or their owner, may read them)", denied[0], are, n)
		denied = denied[:1]
	}
	return append(denied, each...)
}

// ownDir returns nil for a directory of the pool. It is a symbolic link for nobody's good: what is kept there has to lie
// beside the bases, and a link that leads nowhere looks like a directory that was never made.
func ownDir(ctx context.Context, dir string, timeout time.Duration) error {
	_, err := diskio.WithinAt(ctx, dir, timeout, func() (struct{}, error) { return struct{}{}, diskio.LookDir(dir) }, nil)
	if errors.Is(err, diskio.ErrNotDirectory) {
		return fmt.Errorf("%s %w: it is no directory, or a symbolic link", dir, ErrPool)
	}
	return err
}

// policy reads which pool it is. The error is that of ctx.
func (s *State) policy(ctx context.Context, timeout time.Duration) error {
	path := Path(s.Bases, File)
	_, err := diskio.WithinAt(ctx, path, timeout, func() (diskio.Entry, error) { return diskio.LookEntry(path) }, nil)
	var text []byte
	if err == nil {
		text, err = read(ctx, path, timeout)
	}
	var p Policy
	if err == nil {
		p, err = ParsePolicy(text)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		s.NoPolicy, s.Unread = err, append(s.Unread, err)
	default:
		s.Policy = &p
	}
	return nil
}

// clock looks at the file that is touched to ask the file server for its time. The error is that of ctx.
func (s *State) clock(ctx context.Context, timeout time.Duration) error {
	path := Path(s.Bases, Clock)
	e, err := diskio.WithinAt(ctx, path, timeout, func() (diskio.Entry, error) { return diskio.LookEntry(path) }, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		s.Clock = e.ModTime
	case !errors.Is(err, fs.ErrNotExist):
		s.Unread = append(s.Unread, err)
	}
	return nil
}

// read gives a whole document.
func read(ctx context.Context, path string, timeout time.Duration) ([]byte, error) {
	return diskio.WithinAt(ctx, path, timeout, func() ([]byte, error) {
		f, err := diskio.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if f.Size() > MaxBytes {
			return nil, fmt.Errorf("%s %w: it has %d bytes", path, ErrPool, f.Size())
		}
		return io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	}, nil)
}

// listWith gives the names of the files in a directory, in their order, and tells of all that is no file. It is
// fs.ErrNotExist where there is none.
func listWith(ctx context.Context, dir string, timeout time.Duration, odd func(path string)) (names []string, err error) {
	enter := func(path string) bool { odd(path); return false }
	s := diskio.Sweep{Workers: 1, Timeout: timeout, Enter: enter,
		File: func(_ int, f *diskio.Swept) { names = append(names, f.Name) },
		Other: func(kind diskio.WalkKind, path string, e error) {
			if kind != diskio.WalkBlind {
				odd(path)
			} else if !errors.Is(e, fs.ErrNotExist) || path == dir {
				err = errors.Join(err, e) // else a name that was taken away meanwhile
			}
		}}
	if e := s.Run(ctx, []string{dir}); e != nil {
		return nil, e
	}
	if len(names) > maxShields {
		return nil, fmt.Errorf("%s %w: it has more than %d names", dir, ErrPool, maxShields)
	}
	slices.Sort(names)
	return names, err
}

func (s *State) shields(ctx context.Context, dir string, timeout time.Duration) error {
	names, odd := listAll(ctx, dir, timeout)
	for _, n := range names {
		inode, name, ok := ParseShieldName(n)
		path := filepath.Join(dir, n)
		if !ok {
			s.Unread = append(s.Unread, fmt.Errorf("%s %w: a shield is called INODE.NAME", path, ErrPool))
			continue
		}
		st, err := diskio.WithinAt(ctx, path, timeout, func() (diskio.Entry, error) { return diskio.LookEntry(path) }, nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			continue // it was taken away meanwhile
		case err != nil:
			s.Unread = append(s.Unread, err)
			continue
		case st.Ino != inode:
			// It was copied with the directory: a file of its own, not the base's.
			s.Unread = append(s.Unread, fmt.Errorf("%s %w: it is inode %d", path, ErrPool, st.Ino))
			continue
		}
		s.Shields = append(s.Shields, Shield{Name: name, Path: path, ID: st.ID, SizeBytes: st.SizeBytes,
			AllocatedBytes: st.AllocatedBytes, Modified: st.ModTime, Changed: st.ChangeTime, Links: st.Links})
	}
	return odd
}

func (s *State) objects(ctx context.Context, dir string, timeout time.Duration) error {
	names, odd := listAll(ctx, dir, timeout)
	for _, n := range names {
		if unfinished(n) {
			continue
		}
		path := filepath.Join(dir, n)
		text, err := read(ctx, path, timeout)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var o Object
		if err == nil {
			o, err = ParseObject(path, text)
		}
		if err == nil && ObjectName(o.Inode) != n {
			err = fmt.Errorf("%s %w: it is about inode %d", path, ErrPool, o.Inode)
		}
		if err != nil {
			s.Unread = append(s.Unread, err)
			continue
		}
		s.Objects[o.Inode] = o
	}
	return odd
}

func (s *State) audits(ctx context.Context, dir string, timeout time.Duration) error {
	names, odd := listAll(ctx, dir, timeout)
	for _, n := range names {
		if IsDamaged(n) {
			continue
		}
		all, _, err := ReadAuditFile(ctx, filepath.Join(dir, n), timeout)
		s.Audits = append(s.Audits, all...)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.Unread = append(s.Unread, err)
		}
	}
	slices.SortStableFunc(s.Audits, func(a, b Entry) int { return cmp.Compare(a.Time.UnixNano(), b.Time.UnixNano()) })
	return odd
}

// AuditOf reads what the audits of all nodes say about one base, in the order of time. What could not be read, does
// not follow its chain, or has no end is in unread; the error is that of ctx.
func AuditOf(ctx context.Context, bases, name string, timeout time.Duration) (all []Entry, unread []error, err error) {
	dir, told := Path(bases, Audit), Valid(name)
	var names []string
	if err = ownDir(ctx, Path(bases), timeout); err == nil {
		names, err = listAll(ctx, dir, timeout)
	}
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		unread = append(unread, err)
	}
	for _, n := range names {
		path := filepath.Join(dir, n)
		some, cut, err := readAuditFile(ctx, path, timeout, func(e *Entry) bool { return e.Name == told })
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		all = append(all, some...)
		if cut {
			err = fmt.Errorf("%s: its last line has no end", path)
		}
		if err != nil {
			unread = append(unread, err)
		}
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	return all, unread, nil
}

// ReadAuditFile reads the audit of one node. Entries before the first that is wrong come with the error; cut
// is as for ReadAudit.
func ReadAuditFile(ctx context.Context, path string, timeout time.Duration) (all []Entry, cut bool, err error) {
	return readAuditFile(ctx, path, timeout, func(*Entry) bool { return true })
}

// readAuditFile is ReadAuditFile for the entries that are wanted.
func readAuditFile(ctx context.Context, path string, timeout time.Duration, want func(*Entry) bool) ([]Entry, bool, error) {
	type result struct {
		all []Entry
		cut bool
		err error
	}
	r, err := diskio.WithinAt(ctx, path, timeout, func() (r result, err error) {
		f, err := diskio.Open(path)
		if err != nil {
			return result{}, err
		}
		defer f.Close()
		r.cut, r.err = eachEntry(io.NewSectionReader(f, 0, f.Size()), func(e *Entry) {
			if want(e) {
				r.all = append(r.all, *e)
			}
		})
		if r.err != nil {
			r.err = fmt.Errorf("%s: %w", path, r.err)
		}
		return r, nil
	}, nil)
	return r.all, r.cut, errors.Join(err, r.err)
}

// ShieldsOf gives the shields of a base by its name.
func (s *State) ShieldsOf(name string) (all []Shield) {
	for _, h := range s.Shields {
		if h.Name == name {
			all = append(all, h)
		}
	}
	return all
}

// Alone gives the files that have no other names than shields, each by the first of those.
func (s *State) Alone() (all []Shield) {
	names := map[diskio.ID]uint64{}
	for i := range s.Shields {
		names[s.Shields[i].ID]++
	}
	for _, h := range s.Shields {
		if names[h.ID] >= h.Links {
			all = append(all, h)
			names[h.ID] = 0
		}
	}
	return all
}

// IsAlone tells whether the file of a shield has no other names than shields.
func (s *State) IsAlone(h *Shield) bool {
	names := uint64(0)
	for i := range s.Shields {
		if s.Shields[i].ID == h.ID {
			names++
		}
	}
	return names >= h.Links
}
