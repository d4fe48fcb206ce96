// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package filestest

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"runtime"
	"runtime/metrics"
	"slices"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

const (
	// readBytes is how much content is read at once, maxContent how much of one file system: a
	// spoilt one without checksums may have files of any length.
	readBytes  = 64 << 10
	maxContent = 16 << 20
	// useUnit is what parts of the volume are compared in, in bytes.
	useUnit = 512
)

// errNames: a spoilt file system has many times the names of the intact one.
var errNames = errors.New("it lists for ever")

// listing is all that a reader shows.
type listing struct {
	view  files.View
	names int
	// paths are the names with what they stand for, inodes what belongs to those.
	paths  map[string]node
	inodes map[files.Ino]*counts
	used   []uint64 // a bit for each unit of the volume that is not said to be free
}

// node is what a name stands for. Contents and lists are hashed.
type node struct {
	stat                    files.Stat
	content, attrs, extents uint64
	attributes              int
	mapped                  int64 // bytes
}

// counts is how long the lists of an inode are.
type counts struct {
	node
	links, entries int
}

// list reads everything, up to so many names.
func (s *sweep) list(ctx context.Context, fs files.FS, most int) (*listing, error) {
	l := &listing{paths: make(map[string]node), inodes: make(map[files.Ino]*counts)}
	of := func(ino files.Ino) *counts {
		if l.inodes[ino] == nil {
			l.inodes[ino] = new(counts)
		}
		return l.inodes[ino]
	}
	content := int64(maxContent)
	_, view, err := files.Survey(ctx, fs, func(f *files.Found) error {
		s.meter.look()
		if f.File == nil {
			return nil
		}
		if l.names++; l.names > most {
			return fmt.Errorf("%w: more than %d names", errNames, most)
		}
		c := of(f.Entry.Ino)
		if c.links++; c.links == 1 {
			c.node = s.node(ctx, f.File, &content)
		}
		of(f.Dir).entries++
		l.paths[f.Path] = c.node
		return nil
	})
	if err != nil {
		return l, err
	}
	l.view = view
	if err := l.owners(ctx, fs, s.disk.Size()); err != nil {
		return l, err
	}
	// What reading contents and owners noted came after the view of the walk.
	if fs.View().State == files.Incomplete {
		l.view.State = files.Incomplete
	}
	return l, nil
}

// hashSeed is the same for all hashes, which are compared with one another.
var hashSeed = maphash.MakeSeed()

// node reads what belongs to an inode. What cannot be read is noted in the view.
func (s *sweep) node(ctx context.Context, f files.File, content *int64) node {
	n := node{stat: *f.Stat()}
	var all maphash.Hash
	all.SetSeed(hashSeed)
	noted := f.Xattrs(ctx, func(name string, value []byte) error {
		n.attributes++
		// Sums, since their order is of no consequence.
		n.attrs += maphash.Comparable(hashSeed, name) ^ maphash.Bytes(hashSeed, value)*3
		return nil
	})
	var extents []files.Extent
	noted = errors.Join(noted, f.Extents(ctx, func(e files.Extent) error {
		n.mapped += e.Length
		n.extents = n.extents*31 + maphash.Comparable(hashSeed, e)
		if len(extents) < maxContent/useUnit {
			extents = append(extents, e)
		}
		return nil
	}))
	if t := n.stat.Mode & files.TypeMask; t != files.TypeRegular && t != files.TypeLink {
		return n
	}
	if len(extents) == 0 && !n.stat.IsRegular() {
		extents = append(extents, files.Extent{Length: files.MaxLinkBytes})
	}
	done := int64(0) // what is between small extents is read with them
	for _, e := range extents {
		end := min(e.Offset+e.Length, n.stat.Size)
		for at := max(e.Offset, done); at < end && *content > 0 && !e.Unwritten; done = at {
			part := s.buf[:min(n.stat.Size-at, readBytes)]
			k, err := f.ReadAt(part, at)
			all.Write(part[:k])
			if noted = errors.Join(noted, err); k == 0 {
				break
			}
			at, *content = at+int64(k), *content-int64(k)
		}
	}
	if noted == nil || *content <= 0 {
		n.content = all.Sum64()
	} else {
		n.content = 1 + all.Sum64() // an error, which is in the view
	}
	return n
}

// owners asks what each part of the volume is for.
func (l *listing) owners(ctx context.Context, fs files.FS, size int64) error {
	l.used = make([]uint64, size/useUnit/64+1)
	last := int64(0)
	err := fs.Owners(ctx, []files.Range{{Length: size}}, func(o files.Owner) error {
		end := o.Range.Offset + o.Range.Length
		if o.Range.Offset > last || o.Range.Length <= 0 || end > size {
			return fmt.Errorf("owners give %+v after 0x%x", o, last)
		}
		last = max(last, end)
		if o.Use == files.UseFree || o.Use == files.UseOutside {
			return nil
		}
		for unit := o.Range.Offset / useUnit; unit*useUnit < end; unit++ {
			if unit%64 == 0 && (unit+64)*useUnit <= end {
				l.used[unit/64] = ^uint64(0)
				unit += 63
				continue
			}
			l.used[unit/64] |= 1 << (unit % 64)
		}
		return nil
	})
	if known := new(files.Error); err == nil || errors.As(err, &known) {
		if last != size {
			return fmt.Errorf("owners end at 0x%x, want 0x%x", last, size)
		}
		return nil // it is in the view
	}
	return err
}

// differs names the first difference of two listings.
func (l *listing) differs(want *listing) string {
	for _, p := range slices.Sorted(maps.Keys(want.paths)) {
		if have, in := l.paths[p]; !in {
			return fmt.Sprintf("%q is not listed", p)
		} else if w := want.paths[p]; have != w {
			return fmt.Sprintf("%q is %+v, want %+v", p, have, w)
		}
	}
	if len(l.paths) > len(want.paths) {
		return fmt.Sprintf("%d names are listed, want %d", len(l.paths), len(want.paths))
	}
	return ""
}

// lacks names what is shorter: an inode that is not there any more or has fewer names, a directory
// with fewer entries, a file with fewer attributes or less of its map, and space that was in use
// and is called free. This is what must be said even where there are no checksums.
//
// Not in it is what makes no list shorter and what no other part of such a file system tells: names
// that read otherwise, contents, times, owners, permissions, and the size of a regular file, since
// one with holes or space beyond its end may have any.
func (l *listing) lacks(want *listing) string {
	for _, ino := range slices.Sorted(maps.Keys(want.inodes)) {
		c, w := l.inodes[ino], want.inodes[ino]
		switch {
		case c == nil || c.links < w.links:
			return fmt.Sprintf("inode %d has lost names of %d", ino, w.links)
		case c.entries < w.entries:
			return fmt.Sprintf("directory inode %d has %d entries, want %d", ino, c.entries, w.entries)
		case c.attributes < w.attributes:
			return fmt.Sprintf("inode %d has %d extended attributes, want %d", ino, c.attributes,
				w.attributes)
		case c.mapped < w.mapped:
			return fmt.Sprintf("inode %d has extents of %d bytes, want %d", ino, c.mapped, w.mapped)
		}
	}
	for i, w := range want.used {
		if w&^l.used[i] != 0 {
			return fmt.Sprintf("around 0x%x is called free, and was in use", i*64*useUnit)
		}
	}
	return ""
}

// meter watches the memory of the program.
type meter struct {
	watched      bool
	before, peak int64 // heap in use
	first        int64 // bytes that were taken in all when it began
	sample       []metrics.Sample
}

func newMeter() *meter {
	return &meter{sample: []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}, {Name: "/gc/heap/allocs:bytes"}}}
}

func (m *meter) now() (inUse, taken int64) {
	metrics.Read(m.sample)
	return int64(m.sample[0].Value.Uint64() + m.sample[1].Value.Uint64()),
		int64(m.sample[2].Value.Uint64())
}

// begin counts what is taken from now on.
func (m *meter) begin() { _, m.first = m.now() }

// taken is how much was taken since then, whether or not it was given back.
func (m *meter) taken() int64 {
	_, taken := m.now()
	return taken - m.first
}

// watch takes note of how much is in use from now on, beyond what is in use now.
func (m *meter) watch() {
	runtime.GC()
	m.before, _ = m.now()
	m.watched, m.peak = true, 0
}

// look looks how much is in use.
func (m *meter) look() {
	if m != nil && m.watched {
		inUse, _ := m.now()
		m.peak = max(m.peak, inUse-m.before)
	}
}
