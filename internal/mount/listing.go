// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

const (
	// maxListed is how many entries of a directory are kept at once. A larger directory is read in
	// windows of this many, each time from its beginning, and each name is looked for from there.
	maxListed = 400_000
	// maxListingBytes bounds all listings that are kept.
	maxListingBytes = 96 << 20
	// entryBytes is about what an entry takes beside its name, with its place in the index.
	entryBytes = 24 + 48
)

// errEnough ends the reading of a directory when a window is full.
var errEnough = errors.New("enough")

// listing is a window of the entries of a directory.
type listing struct {
	first   int64 // the number of its first entry
	names   string
	entries []listed
	more    bool  // entries follow
	err     error // what could not be read of the directory, told at its end

	indexed sync.Once
	index   map[string]int
}

type listed struct {
	end int // of its name in names
	ino files.Ino
	typ uint32
}

// entries calls a function for each entry of a directory.
type entries func(func(files.Entry) error) error

// readListing reads the entries of a directory from number first on.
func readListing(dir files.Ino, read entries, first int64, limit int) *listing {
	l := &listing{first: first}
	var names strings.Builder
	var odd error
	number := int64(0)
	err := read(func(e files.Entry) error {
		if err := wrong(e.Name); err != nil {
			// The kernel takes no such name, and would not show the others either.
			odd = fmt.Errorf("directory %d: %w (inode %d)", dir, err, e.Ino)
			return nil
		}
		number++
		if number <= first {
			return nil
		}
		if len(l.entries) == limit {
			l.more = true
			return errEnough
		}
		names.WriteString(e.Name)
		l.entries = append(l.entries, listed{names.Len(), e.Ino, e.Type})
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		l.err = err
	}
	if l.err == nil {
		l.err = odd
	}
	l.names = names.String()
	return l
}

// wrong says why no path can have a name in it.
func wrong(name string) error {
	switch {
	case name == "":
		return errors.New("a name is empty")
	case len(name) > files.MaxNameBytes:
		return fmt.Errorf("a name is %d bytes long", len(name))
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("the name %q has a byte that names cannot have", name)
	}
	return nil
}

func (l *listing) bytes() int64 { return int64(len(l.names)) + int64(len(l.entries))*entryBytes }

// name is that of entry i of the window.
func (l *listing) name(i int) string {
	begin := 0
	if i > 0 {
		begin = l.entries[i-1].end
	}
	return l.names[begin:l.entries[i].end]
}

// whole reports whether it has all entries of the directory that could be read.
func (l *listing) whole() bool { return l.first == 0 && !l.more }

// holds reports whether it tells what comes at entry number n: an entry, or the end.
func (l *listing) holds(n int64) bool {
	return n >= l.first && (n < l.first+int64(len(l.entries)) || !l.more)
}

// find looks for a name among its entries.
func (l *listing) find(name string) (files.Ino, bool) {
	l.indexed.Do(func() {
		l.index = make(map[string]int, len(l.entries))
		for i := range l.entries {
			// Of two entries of the same name the first counts, as for the kernel.
			if _, again := l.index[l.name(i)]; !again {
				l.index[l.name(i)] = i
			}
		}
	})
	i, ok := l.index[name]
	if !ok {
		return 0, false
	}
	return l.entries[i].ino, true
}

// listings keeps the listings that were used last.
type listings struct {
	limit int // of entries in a window
	kept  cache[*listing]
	// One at a time reads a directory: who looks for many names in a large one waits for it.
	mu      sync.Mutex
	reading map[files.Ino]chan struct{}
}

// at gives a listing of the directory that holds entry number n.
func (s *listings) at(dir files.Ino, n int64, read entries) *listing {
	for {
		l, ok := s.kept.get(dir)
		if ok && l.holds(n) {
			return l
		}
		s.mu.Lock()
		wait := s.reading[dir]
		if wait == nil {
			if s.reading == nil {
				s.reading = make(map[files.Ino]chan struct{})
			}
			s.reading[dir] = make(chan struct{})
		}
		s.mu.Unlock()
		if wait == nil {
			return s.window(dir, n, read)
		}
		<-wait
	}
}

// window reads a window while others wait.
func (s *listings) window(dir files.Ino, n int64, read entries) *listing {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.reading[dir])
		delete(s.reading, dir)
	}()
	// Somebody else may have read it since this one looked.
	if l, ok := s.kept.get(dir); ok && l.holds(n) {
		return l
	}
	l := readListing(dir, read, n, s.limit)
	s.kept.put(dir, l, l.bytes())
	return l
}

// find looks for a name. It is an error if a part of the directory that may hold it cannot be read.
func (s *listings) find(dir files.Ino, name string, read entries) (files.Ino, bool, error) {
	l, ok := s.kept.get(dir)
	if !ok {
		l = s.at(dir, 0, read)
	}
	if ino, ok := l.find(name); ok {
		return ino, true, nil
	}
	if !l.whole() {
		return search(name, read)
	}
	if l.err != nil {
		s.kept.drop(dir) // the next one may be able to read it
	}
	return 0, false, l.err
}

// each calls fn for each entry of a directory until it says no. It is an error if a part of the directory
// cannot be read.
func (s *listings) each(dir files.Ino, read entries, fn func(files.Entry) bool) error {
	l := s.at(dir, 0, read)
	if l.whole() {
		for i, e := range l.entries {
			if !fn(files.Entry{Name: l.name(i), Ino: e.ino, Type: e.typ}) {
				return nil
			}
		}
		return l.err
	}
	err := read(func(e files.Entry) error {
		if wrong(e.Name) == nil && !fn(e) {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// search looks for a name from the beginning of a directory that is too large to be kept.
func search(name string, read entries) (ino files.Ino, found bool, err error) {
	err = read(func(e files.Entry) error {
		if e.Name == name {
			ino, found = e.Ino, true
			return errEnough
		}
		return nil
	})
	if found {
		err = nil
	}
	return ino, found, err
}
