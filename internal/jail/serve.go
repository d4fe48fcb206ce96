// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// What the child is asked for.
const (
	opLayout  = iota + 1
	opWithin  // disk, offset, length
	opMount   // volume
	opView    // volume
	opOpen    // volume, inode
	opEntries // volume, inode, whether with stat
	opInodes  // volume
	opExtents // volume, inode
	opXattrs  // volume, inode
	opOwners  // volume, number of ranges, ranges
	opRead    // volume, inode, offset, length
	opNext    // list
	opStop    // list
	opPieces  // volume
)

// The marks in the pages of a list.
const (
	markEnd  = iota // then an error, and nothing more
	markItem        // then an item
	markMore        // the list goes on in another page
)

// maxLists bounds the lists that are read at one time: a directory of each level, for each lane.
const maxLists = 4 * files.MaxDepth

// server answers calls. Its lists are goroutines that stand still until they are asked for more.
type server struct {
	disks []volume.Disk

	once      sync.Once
	layout    *volume.Layout
	layoutErr error

	mu     sync.Mutex
	mounts map[int64]*mounted
	lists  map[int64]*list
	last   int64

	batched atomic.Int64 // entries in all batches
}

// mounted is a file system, opened at most once.
type mounted struct {
	once sync.Once
	fs   files.FS
	err  error
}

// list gives page after page.
type list struct {
	next func() ([]byte, bool)
	stop func()
}

func newServer(set setting, windows []byte) *server {
	return &server{disks: set.disks(windows), mounts: make(map[int64]*mounted),
		lists: make(map[int64]*list)}
}

// lane answers the calls that come over one socket. Window is its shared memory. The error is
// io.EOF when the parent is gone.
func (s *server) lane(fd int, window []byte) error {
	in := make([]byte, maxMessage)
	out := make([]byte, 0, maxMessage)
	for {
		m, err := receive(fd, in)
		if err != nil {
			return err
		}
		a := message{b: out[:0]}
		s.answer(m, &a, window)
		if m.bad {
			return errMessage
		}
		if err := send(fd, a.b); err != nil {
			return err
		}
	}
}

// answer does what one call asks for.
func (s *server) answer(m, a *message, window []byte) {
	switch op := m.int(); op {
	case opNext:
		s.goOn(m.int(), a)
	case opStop:
		if l := s.take(m.int()); l != nil {
			l.stop()
		}
		a.putInt(0) // a message of no bytes is the end of the socket
	case opMount:
		fs, err := s.mount(m.int())
		a.putError(err)
		if err == nil {
			a.putString(text(fs.Info()))
		}
	case opOpen:
		f, err := s.open(m)
		a.putError(err)
		if err == nil {
			a.putStat(f.Stat())
		}
	case opRead:
		f, err := s.open(m)
		off, length := m.int(), m.int()
		n := 0
		if err == nil && off >= 0 && length >= 0 {
			n, err = f.ReadAt(window[:min(length, windowBytes)], off)
		}
		a.putInt(int64(n))
		a.putError(err)
	default:
		s.begin(s.pages(op, m), a)
	}
}

// text is JSON of our own types, which always have one.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// begin starts a list and answers with its first page.
func (s *server) begin(pages iter.Seq[[]byte], a *message) {
	next, stop := iter.Pull(pages)
	s.page(&list{next: next, stop: stop}, a)
}

// goOn answers with the next page of a list.
func (s *server) goOn(id int64, a *message) {
	l := s.take(id)
	if l == nil {
		a.putInt(0)
		a.putInt(markEnd)
		a.putError(errMessage)
		return
	}
	s.page(l, a)
}

// page answers with a page: the number of the list, 0 after the last page, and what is in it.
func (s *server) page(l *list, a *message) {
	b, more := l.next()
	if !more {
		panic("a list without an end")
	}
	id := int64(0)
	if b[0] == markMore {
		id = s.keep(l)
	} else {
		l.stop()
	}
	a.putInt(id)
	a.b = append(a.b, b[1:]...)
}

// keep remembers a list and gives its number; take forgets it again.
func (s *server) keep(l *list) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lists) >= maxLists {
		panic("too many lists are being read")
	}
	s.last++
	s.lists[s.last] = l
	return s.last
}

func (s *server) take(id int64) *list {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lists[id]
	delete(s.lists, id)
	return l
}

var errStopped = errors.New("stopped")

// inPages cuts a list into pages: the first byte of each tells whether another comes. fill calls
// item for each and gives the error that ends the list.
func inPages(fill func(item func(put func(*message)) error) error) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		page := &message{b: []byte{markMore}}
		err := fill(func(put func(*message)) error {
			page.putInt(markItem)
			put(page)
			if len(page.b) < pageBytes {
				return nil
			}
			page.putInt(markMore)
			if !yield(page.b) {
				return errStopped
			}
			page.b = append(page.b[:0], markMore)
			return nil
		})
		if errors.Is(err, errStopped) {
			return
		}
		page.b[0] = markEnd
		page.putInt(markEnd)
		page.putError(err)
		yield(page.b)
	}
}

// pages is the list that a call asks for.
func (s *server) pages(op int64, m *message) iter.Seq[[]byte] {
	ctx := context.Background()
	switch op {
	case opLayout:
		return s.inPieces(func() (any, error) {
			l, err := s.find()
			if err != nil {
				return nil, err
			}
			data := *l
			data.Disks = nil // the parent has them
			return &data, nil
		})
	case opView:
		n := m.int()
		return s.inPieces(func() (any, error) {
			fs, err := s.mount(n)
			if err != nil {
				return nil, err
			}
			return fs.View(), nil
		})
	case opWithin:
		disk, off, length := m.int(), m.int(), m.int()
		return inPages(func(item func(func(*message)) error) error {
			return s.within(int(disk), off, length, item)
		})
	case opPieces:
		n := m.int()
		return inPages(func(item func(func(*message)) error) error {
			return s.pieces(n, item)
		})
	case opInodes:
		n := m.int()
		return inPages(func(item func(func(*message)) error) error {
			fs, err := s.mount(n)
			if err != nil {
				return err
			}
			return fs.Inodes(ctx, func(st *files.Stat) error {
				return item(func(p *message) { p.putStat(st) })
			})
		})
	case opOwners:
		return s.owners(m)
	case opEntries:
		return s.entries(m)
	case opExtents:
		f, err := s.open(m)
		return inPages(func(item func(func(*message)) error) error {
			if err != nil {
				return err
			}
			return f.Extents(ctx, func(e files.Extent) error {
				return item(func(p *message) { p.putExtent(e) })
			})
		})
	case opXattrs:
		f, err := s.open(m)
		return inPages(func(item func(func(*message)) error) error {
			if err != nil {
				return err
			}
			return f.Xattrs(ctx, func(name string, value []byte) error {
				if len(value) > files.MaxXattrBytes {
					return fmt.Errorf("attribute %q is longer than can be", clip(name))
				}
				return item(func(p *message) { p.putString(name); p.putString(string(value)) })
			})
		})
	}
	m.bad = true
	return inPages(func(func(func(*message)) error) error { return errMessage })
}

// entries lists a directory, each name with the inode behind it if that is asked for.
func (s *server) entries(m *message) iter.Seq[[]byte] {
	ctx := context.Background()
	n := m.int()
	ino, plus := files.Ino(m.uint()), m.bool()
	return inPages(func(item func(func(*message)) error) error {
		fs, err := s.mount(n)
		if err != nil {
			return err
		}
		dir, err := fs.Open(ctx, ino)
		if err != nil {
			return err
		}
		b := &batch{s: s, fs: fs, plus: plus, item: item}
		defer b.drop()
		if err := dir.Entries(ctx, b.add); err != nil {
			if b.stop != nil {
				return err
			}
			return errors.Join(b.flush(), err)
		}
		return b.flush()
	})
}

// The entries of a directory are collected before their inodes are read. A batch of one directory
// has up to batchEntries, all of them together maxBatched; beyond that, batches are short.
const (
	batchEntries = 16 << 10
	batchShort   = 64
	maxBatched   = 128 << 10
)

// batch collects entries, reads their inodes in the order of their numbers, which is that of the disk,
// and gives them on in the order of the directory. A directory's order may be that of a hash: each
// inode would then lie elsewhere than the one before, and be read again and again.
type batch struct {
	s     *server
	fs    files.FS
	plus  bool
	item  func(func(*message)) error
	named []named
	held  int64 // how many of s.batched are this one's
	stop  error // what ended the list
}

type named struct {
	files.Entry
	stat *files.Stat
	err  error
}

// add takes an entry.
func (b *batch) add(e files.Entry) error {
	b.named = append(b.named, named{Entry: e})
	if n := len(b.named); b.plus && n < batchEntries {
		if int64(n) <= max(b.held, batchShort) || b.hold(int64(n)) {
			return nil
		}
	}
	return b.flush()
}

// hold asks for room for more than n entries.
func (b *batch) hold(n int64) bool {
	if b.s.batched.Add(n) > maxBatched {
		b.s.batched.Add(-n)
		return false
	}
	b.held += n
	return true
}

// drop gives the room back.
func (b *batch) drop() {
	b.s.batched.Add(-b.held)
	b.held = 0
}

// flush gives on what was collected.
func (b *batch) flush() error {
	if b.plus {
		b.open()
	}
	for i := range b.named {
		e := &b.named[i]
		if b.stop = b.item(e.put); b.stop != nil {
			return b.stop
		}
	}
	b.named = b.named[:0]
	return nil
}

// open reads the inodes.
func (b *batch) open() {
	order := make([]int, len(b.named))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(x, y int) int { return cmp.Compare(b.named[x].Ino, b.named[y].Ino) })
	for _, i := range order {
		e := &b.named[i]
		if e.Name == "." || e.Name == ".." {
			continue
		}
		f, err := b.fs.Open(context.Background(), e.Ino)
		if err != nil {
			e.err = err
			continue
		}
		st := *f.Stat() // the file itself would keep what it was read from
		e.stat = &st
	}
}

// put writes an entry with what is behind it.
func (e *named) put(p *message) {
	p.putString(e.Name)
	p.putUint(uint64(e.Ino))
	p.putInt(int64(e.Type))
	p.putBool(e.stat != nil)
	if e.stat != nil {
		p.putStat(e.stat)
		return
	}
	p.putError(e.err)
}

// owners lists what ranges of a volume are for.
func (s *server) owners(m *message) iter.Seq[[]byte] {
	n, count := m.int(), m.int()
	var ranges []files.Range
	for range min(count, maxMessage/16) {
		ranges = append(ranges, files.Range{Offset: m.int(), Length: m.int()})
	}
	return inPages(func(item func(func(*message)) error) error {
		fs, err := s.mount(n)
		if err != nil {
			return err
		}
		return fs.Owners(context.Background(), ranges, func(o files.Owner) error {
			return item(func(p *message) { p.putOwner(o) })
		})
	})
}

// within lists which volumes a range of a disk belongs to.
func (s *server) within(disk int, off, length int64, item func(func(*message)) error) error {
	l, err := s.find()
	if err != nil {
		return err
	}
	for h := range l.Within(disk, off, length) {
		if err := item(func(p *message) { p.putString(text(h)) }); err != nil {
			return err
		}
	}
	return nil
}

// pieces lists where a volume lies.
func (s *server) pieces(n int64, item func(func(*message)) error) error {
	l, err := s.find()
	if err != nil {
		return err
	}
	if n < 0 || n >= int64(len(l.Volumes)) {
		return fmt.Errorf("no volume %d", n)
	}
	v := l.Volumes[n]
	for piece := range v.Pieces(0, v.Size) {
		if err := item(func(p *message) { p.putString(text(piece)) }); err != nil {
			return err
		}
	}
	return nil
}

// inPieces gives a value as JSON in pieces.
func (s *server) inPieces(value func() (any, error)) iter.Seq[[]byte] {
	return inPages(func(item func(func(*message)) error) error {
		v, err := value()
		if err != nil {
			return err
		}
		all := text(v)
		for len(all) > 0 {
			piece := all[:min(len(all), pageBytes)]
			all = all[len(piece):]
			if err := item(func(p *message) { p.putString(piece) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// find looks at the disks, once.
func (s *server) find() (*volume.Layout, error) {
	s.once.Do(func() { s.layout, s.layoutErr = volume.Find(context.Background(), s.disks) })
	return s.layout, s.layoutErr
}

// mount opens the file system on a volume, once.
func (s *server) mount(n int64) (files.FS, error) {
	l, err := s.find()
	if err != nil {
		return nil, err
	}
	if n < 0 || n >= int64(len(l.Volumes)) {
		return nil, fmt.Errorf("no volume %d", n)
	}
	s.mu.Lock()
	m := s.mounts[n]
	if m == nil {
		m = new(mounted)
		s.mounts[n] = m
	}
	s.mu.Unlock()
	m.once.Do(func() { m.fs, m.err = OpenVolume(context.Background(), l.Volumes[n]) })
	return m.fs, m.err
}

// open gives the inode that a call names.
func (s *server) open(m *message) (files.File, error) {
	n, ino := m.int(), files.Ino(m.uint())
	fs, err := s.mount(n)
	if err != nil {
		return nil, err
	}
	return fs.Open(context.Background(), ino)
}
