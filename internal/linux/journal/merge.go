// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"time"
)

// mergeSlack is how long before its first entry a file is begun. Files that follow each other are
// read one after the other so, and need the memory of one.
const mergeSlack = time.Hour

// Merge hands the entries of many files of one machine to fn as one stream, with the index of the
// file that each comes from. What is in more than one file, as after a file was copied or set
// aside, is given once, from the file that has it undamaged. The order is that of journalctl: by
// number where files continue each other, by the time since the boot within a boot, else by time.
//
// It ends as Entries does; the damage is that of each file.
func Merge(ctx context.Context, files []*File, o Options, fn func(file int, e *Entry) error) (
	[]Damage, error,
) {
	m := &merger{sources: make([]source, len(files)), backward: o.Backward}
	for i, f := range files {
		m.sources[i].file = f
		m.sources[i].peek()
	}
	err := m.run(ctx, o, fn)
	damage := make([]Damage, len(files))
	for i := range m.sources {
		s := &m.sources[i]
		if s.stop != nil {
			s.stop()
		}
		damage[i] = s.damage
		if err == nil {
			err = s.err
		}
	}
	if errors.Is(err, ErrStop) {
		err = nil
	}
	return damage, err
}

type merger struct {
	sources  []source
	backward bool
}

// source is a file with its next entry.
type source struct {
	file   *File
	head   *Entry // nil at the end
	ends   *ends  // nil where they cannot be told
	next   func() (*Entry, bool)
	stop   func()
	damage Damage
	err    error
}

func (s *source) begin(ctx context.Context, o Options) {
	s.next, s.stop = iter.Pull(func(yield func(*Entry) bool) {
		s.damage, s.err = s.file.Entries(ctx, o, func(e *Entry) error {
			if !yield(e) {
				return ErrStop
			}
			return nil
		})
	})
	s.advance()
}

func (s *source) advance() { s.head, _ = s.next() }

func (m *merger) run(ctx context.Context, o Options, fn func(file int, e *Entry) error) error {
	for {
		best := m.best()
		if m.begin(ctx, o, best) {
			continue
		}
		if best < 0 {
			return nil
		}
		give, copies := best, m.copies(best)
		for _, i := range copies {
			if m.sources[give].head.Damaged && !m.sources[i].head.Damaged {
				give = i
			}
		}
		if err := fn(give, m.sources[give].head); err != nil {
			return err
		}
		for _, i := range append(copies, best) {
			s := &m.sources[i]
			if s.advance(); s.err != nil {
				return s.err
			}
		}
	}
}

// copies are the other files whose next entry is that of best.
func (m *merger) copies(best int) (copies []int) {
	for i := range m.sources {
		if h := m.sources[i].head; i != best && h != nil && same(h, m.sources[best].head) {
			copies = append(copies, i)
		}
	}
	return copies
}

// best is the file whose entry is next, -1 for none.
func (m *merger) best() int {
	best := -1
	for i := range m.sources {
		if m.sources[i].head == nil {
			continue
		}
		if best >= 0 {
			c := order(m.sources[i].head, m.sources[best].head)
			if m.backward {
				c = -c
			}
			if c >= 0 {
				continue
			}
		}
		best = i
	}
	return best
}

// begin begins files that may have something before the entry of best, and tells whether it did.
func (m *merger) begin(ctx context.Context, o Options, best int) (did bool) {
	for i := range m.sources {
		s := &m.sources[i]
		if s.next == nil && (best < 0 || s.before(m.sources[best].head, m.backward)) {
			s.begin(ctx, o)
			did = true
			if best < 0 {
				return true // one, to have something to compare with
			}
		}
	}
	return did
}

// ends are the first and the last time and number of a file.
type ends struct {
	first, last             time.Time
	firstSeqnum, lastSeqnum uint64
}

// peek looks where a file begins and ends: what the header says may be wrong.
func (s *source) peek() {
	r := &reader{f: s.file}
	l := r.list(0, s.file.arrays, s.file.entries)
	_, _, a, ok := l.near(0)
	_, _, z, ok2 := l.near(l.n - 1)
	if !ok || !ok2 || l.missing > 0 {
		return
	}
	h := &s.file.header
	s.ends = &ends{first: moment(a.realtime), last: moment(z.realtime),
		firstSeqnum: min(a.seqnum, h.FirstSeqnum), lastSeqnum: max(z.seqnum, h.LastSeqnum)}
	if h.First.Before(s.ends.first) {
		s.ends.first = h.First
	}
	if h.Last.After(s.ends.last) {
		s.ends.last = h.Last
	}
}

// before tells whether a file may have an entry that comes before e.
func (s *source) before(e *Entry, backward bool) bool {
	if s.ends == nil {
		return true
	}
	ours := s.file.header.SeqnumID == e.SeqnumID
	if backward {
		return s.ends.last.After(e.Realtime.Add(-mergeSlack)) || ours && s.ends.lastSeqnum >= e.Seqnum
	}
	return s.ends.first.Before(e.Realtime.Add(mergeSlack)) || ours && s.ends.firstSeqnum <= e.Seqnum
}

// order compares entries of two files (journal_file_compare_locations of systemd 252).
func order(a, b *Entry) int {
	if a.SeqnumID == b.SeqnumID && a.Seqnum != b.Seqnum {
		return cmp.Compare(a.Seqnum, b.Seqnum)
	}
	if a.Boot == b.Boot && a.Monotonic != b.Monotonic {
		return cmp.Compare(a.Monotonic, b.Monotonic)
	}
	return cmp.Or(a.Realtime.Compare(b.Realtime), cmp.Compare(a.XorHash, b.XorHash))
}

// same tells whether entries of two files are one: they have the same values, and the same number
// or, where a file was written anew, the same times.
func same(a, b *Entry) bool {
	if a.XorHash != b.XorHash {
		return false
	}
	if a.SeqnumID == b.SeqnumID {
		return a.Seqnum == b.Seqnum
	}
	return a.Boot == b.Boot && a.Monotonic == b.Monotonic && a.Realtime.Equal(b.Realtime)
}
