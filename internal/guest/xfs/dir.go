// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package xfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// A directory, by "Directories" and xfs_da_format.h. A small one stands in the inode:
//
//	0 count  1 count with 8-byte numbers  2 parent (4 or 8 bytes), then entries:
//	0 length of the name  1 offset (2): its place if it were in a block  3 name, type (1, if ftype), inode (4 or 8)
//
// A larger one is a file of three parts: data from 0 on, the hash table from 32 GiB on, the table
// of free space from 64 GiB on. All names are in the data blocks:
//
//	0 magic  4 three longest free pieces (16 bytes in all)
//	version 5: 0 magic  4 CRC  8 address  16 LSN  24 UUID  40 inode  48 three free pieces (64 in all)
//	entry: 0 inode (8)  8 length of the name  9 name, type (1, if ftype), fill, its own position (2)
//	       each a multiple of 8 bytes
//	free:  0 0xffff  2 length  at its end its own position (2)
//
// If there is one block alone, its hash table is at its end: entries of 8 bytes (hash, position of
// the name in units of 8 bytes), then their count and how many of them are unused.
const (
	dirBlockMagic  = 0x58443242 // "XD2B": one block with its hash table
	dirDataMagic   = 0x58443244 // "XD2D"
	dirBlockMagic5 = 0x58444233 // "XDB3"
	dirDataMagic5  = 0x58444433 // "XDD3"
	dirFreeMagic5  = 0x58444633 // "XDF3"
	dirLeafStart   = 32 << 30   // bytes
	dirFreeStart   = 64 << 30
	dirFreeTag     = 0xffff

	leaf1Magic, leafNMagic    = 0xd2f1, 0xd2ff // hash tables
	leaf1Magic5, leafNMagic5  = 0x3df1, 0x3dff
	daNodeMagic, daNodeMagic5 = 0xfebe, 0x3ebe
)

// dirType gives the type of an inode's mode for the type in an entry.
func dirType(t byte) uint32 {
	types := [...]uint32{0, files.TypeRegular, files.TypeDir, files.TypeChar, files.TypeBlock,
		files.TypeFIFO, files.TypeSocket, files.TypeLink}
	if int(t) < len(types) {
		return types[t]
	}
	return 0
}

// dirWalk is one pass over a directory.
type dirWalk struct {
	n        *inode
	ctx      context.Context
	fn       func(files.Entry) error
	number   int64  // of the directory block, in the directory
	sum      uint64 // of hashes and positions of names, compared with that of the hash table
	names    int64
	dots     int
	compared bool  // with the hash table of its only block
	first    error // what was met first
}

// maxHeld bounds the blocks of directories, and of their btrees, that are being read at once, as a
// walk does with a directory and those that it is in.
const maxHeld = 96 << 20

var errHeld = errors.New("lies deeper in others than is kept in mind")

// entries reads all entries of a directory. It reads on after a block that cannot be read.
func (n *inode) entries(ctx context.Context, fn func(files.Entry) error) error {
	if !n.stat.IsDir() {
		return &files.Error{What: fmt.Sprintf("inode %d", n.ino), Offset: n.off, Ino: n.stat.Ino,
			Err: errors.New("is not a directory")}
	}
	w := &dirWalk{n: n, ctx: ctx, fn: fn}
	if n.format == formatLocal {
		return w.short()
	}
	cost := n.f.dirBlock
	if n.format == formatBtree {
		cost += min(int64(be16(n.raw, n.head())), maxBmapLevel) * n.f.block
	}
	defer n.f.held.Add(-cost)
	if n.f.held.Add(cost) > maxHeld {
		return n.f.fail(w.what(), n.off, n.ino, errHeld)
	}
	err := w.long()
	if w.first == nil || err != nil && !damage(err) {
		return err
	}
	return w.first
}

func (w *dirWalk) what() string { return fmt.Sprintf("directory of inode %d", w.n.ino) }

// bad notes damage and lets the walk go on.
func (w *dirWalk) bad(off int64, err error) {
	err = w.n.f.fail(w.what(), off, w.n.ino, err)
	if w.first == nil {
		w.first = err
	}
}

// short reads a directory that stands in the inode.
func (w *dirWalk) short() error {
	k := w.n.dataFork()
	size := w.n.stat.Size
	if size > int64(len(k.raw)) || size < 6 {
		return w.n.f.fail(w.what(), k.off, w.n.ino, fmt.Errorf("of %d bytes in the inode, which has "+
			"%d for it", size, len(k.raw)))
	}
	b := k.raw[:size]
	count, width := int(b[0]), 4
	if b[1] != 0 {
		width = 8
	}
	if len(b) < 2+width {
		return w.n.f.fail(w.what(), k.off, w.n.ino, errors.New("is cut off"))
	}
	parent := shortInode(b[2:], width)
	if err := w.entry(".", w.n.ino, files.TypeDir, k.off); err != nil {
		return err
	}
	if err := w.entry("..", parent, files.TypeDir, k.off); err != nil {
		return err
	}
	pos, more := 2+width, width
	if w.n.f.ftype {
		more++
	}
	place := w.dataHead() + w.entryBytes(1) + w.entryBytes(2)
	seen := map[string]bool{} // there is no hash table that a name could be held against
	for i := range count {
		if pos+3 > len(b) || pos+3+int(b[pos])+more > len(b) {
			w.bad(k.off, fmt.Errorf("entry %d of %d is cut off", i, count))
			return w.first
		}
		end := pos + 3 + int(b[pos])
		name := string(b[pos+3 : end])
		if at := int(be16(b, pos+1)); at < place {
			w.bad(k.off, fmt.Errorf("entry %q has its place in a block at %d, which is before %d", name, at,
				place))
		} else {
			place = at + w.entryBytes(len(name))
		}
		if seen[name] {
			w.bad(k.off, fmt.Errorf("has two entries with the name %q", name))
		}
		seen[name] = true
		kind := uint32(0)
		if w.n.f.ftype {
			kind = dirType(b[end])
		}
		if err := w.entry(name, shortInode(b[end+more-width:], width), kind, k.off); err != nil {
			return err
		}
		pos = end + more
	}
	if pos != len(b) {
		w.bad(k.off, fmt.Errorf("has %d bytes, its %d entries %d", len(b), count, pos))
	} else if table := 8*(count+2) + 8; int64(place+table) > w.n.f.dirBlock {
		w.bad(k.off, fmt.Errorf("its %d entries would end in a block at %d of %d", count, place+table,
			w.n.f.dirBlock))
	}
	return w.first
}

// dataHead is how long the head of a data block is.
func (w *dirWalk) dataHead() int {
	if w.n.f.v5 {
		return 64
	}
	return 16
}

// entryBytes is how long an entry with a name of n bytes is in a data block.
func (w *dirWalk) entryBytes(n int) int {
	n += 9 + 2
	if w.n.f.ftype {
		n++
	}
	return (n + 7) &^ 7
}

func shortInode(b []byte, width int) uint64 {
	if width == 8 {
		return be64(b, 0)
	}
	return uint64(be32(b, 0))
}

// entry hands out a name after looking at it.
func (w *dirWalk) entry(name string, ino uint64, kind uint32, off int64) error {
	w.names++
	switch {
	case name == "" || strings.ContainsAny(name, "/\x00"):
		w.bad(off, fmt.Errorf("has an entry with the name %q", name))
		return nil
	case name == "." || name == "..":
		w.dots++
	}
	used, err := w.n.f.inUse(w.ctx, ino)
	switch {
	case err != nil && !damage(err):
		return err
	case err == nil && (!used || w.n.f.isSpecial(ino)):
		w.bad(off, fmt.Errorf("entry %q leads to inode %d, which is not in use", name, ino))
	}
	e := files.Entry{Name: name, Ino: files.Ino(ino), Type: kind}
	if err := w.fn(e); err != nil {
		return &halt{err}
	}
	return nil
}

// long reads a directory that has blocks of its own.
func (w *dirWalk) long() error {
	f := w.n.f
	end := int64(0)
	blocks := dirBlocks{f: f, n: w.n, limit: dirLeafStart, fn: func(number int64, b []byte, off int64,
		err error) error {
		end = (number + 1) * f.dirBlock
		w.number = number
		if err == nil {
			err = w.data(b, off)
		}
		if err != nil {
			if !noted(err) {
				w.bad(off, fmt.Errorf("block %d: %w", number, err))
				return nil
			}
			return err
		}
		return nil
	}}
	if err := blocks.walk(w.ctx); err != nil {
		return err
	}
	if w.first != nil {
		return w.first
	}
	if end != w.n.stat.Size {
		w.bad(w.n.off, fmt.Errorf("has %d bytes, its blocks end at %d", w.n.stat.Size, end))
	} else if w.dots != 2 {
		w.bad(w.n.off, fmt.Errorf("has %d entries for itself and its parent, want 2", w.dots))
	} else if !f.v5 && !w.compared {
		return w.compareHashes()
	}
	return w.first
}

// noted tells whether err went through fail already, or is one of the caller's or of a context.
func noted(err error) bool {
	return damage(err) || errors.As(err, new(*halt)) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded)
}

// data reads the entries of a data block.
func (w *dirWalk) data(b []byte, off int64) error {
	f := w.n.f
	head, one, more := w.dataHead(), uint32(dirBlockMagic), uint32(dirDataMagic)
	if f.v5 {
		one, more = dirBlockMagic5, dirDataMagic5
	}
	magic := be32(b, 0)
	if magic != one && magic != more {
		return fmt.Errorf("begins with 0x%x, want 0x%x or 0x%x", magic, more, one)
	}
	if err := f.verify(b, dirForm(), off, w.n.ino); err != nil {
		return err
	}
	end, table := len(b), []byte(nil)
	if magic == one {
		if w.n.stat.Size != f.dirBlock {
			return fmt.Errorf("is the only one of the directory, which has %d bytes", w.n.stat.Size)
		}
		count := int64(be32(b, len(b)-8))
		if count > int64(len(b)-8-head)/8 {
			return fmt.Errorf("has a hash table of %d entries", count)
		}
		end = len(b) - 8 - int(count)*8
		table = b[end : len(b)-8]
	} else if w.n.stat.Size == f.dirBlock && w.number > 0 {
		return errors.New("is beyond the end of the directory")
	}
	for pos := head; pos < end; {
		n, err := w.item(b[:end], pos, off)
		if err != nil {
			return err
		}
		pos += n
	}
	if magic == one {
		w.subtract(table)
		return w.differs()
	}
	return nil
}

// item reads one entry or free piece and gives its length.
func (w *dirWalk) item(b []byte, pos int, off int64) (int, error) {
	if pos+8 > len(b) {
		return 0, fmt.Errorf("entry at byte %d is cut off", pos)
	}
	size := 0
	if be16(b, pos) == dirFreeTag {
		size = int(be16(b, pos+2))
		if size == 0 || size%8 != 0 || pos+size > len(b) {
			return 0, fmt.Errorf("free piece at byte %d has %d bytes", pos, size)
		}
	} else {
		if pos+12 > len(b) {
			return 0, fmt.Errorf("entry at byte %d is cut off", pos)
		}
		size = w.entryBytes(int(b[pos+8]))
		if pos+size > len(b) {
			return 0, fmt.Errorf("entry at byte %d is cut off", pos)
		}
	}
	if tag := int(be16(b, pos+size-2)); tag != pos {
		return 0, fmt.Errorf("entry at byte %d says that it is at byte %d", pos, tag)
	}
	if be16(b, pos) == dirFreeTag {
		return size, nil
	}
	end := pos + 9 + int(b[pos+8])
	name := string(b[pos+9 : end])
	kind := uint32(0)
	if w.n.f.ftype {
		kind = dirType(b[end])
	}
	address := uint64(w.number)*uint64(w.n.f.dirBlock) + uint64(pos)
	w.sum += mix(nameHash(name, w.n.f.ci), uint32(address/8))
	return size, w.entry(name, be64(b, pos), kind, off+int64(pos))
}

// mix makes one number of a hash and a position, so that sums of them tell sets apart.
func mix(hash, address uint32) uint64 {
	x := uint64(hash)<<32 | uint64(address)
	x ^= x >> 31
	x *= 0x9e3779b97f4a7c15
	x ^= x >> 29
	return x * 0xbf58476d1ce4e5b9
}

// nameHash is xfs_da_hashname, and xfs_ascii_ci_hashname where upper and lower case are the same.
func nameHash(name string, ci bool) uint32 {
	rol := func(x uint32, by uint) uint32 { return x<<by | x>>(32-by) }
	hash := uint32(0)
	if ci {
		for i := range len(name) {
			c := name[i]
			if c >= 'A' && c <= 'Z' {
				c += 'a' - 'A'
			}
			hash = uint32(c) ^ rol(hash, 7)
		}
		return hash
	}
	for ; len(name) >= 4; name = name[4:] {
		hash = uint32(name[0])<<21 ^ uint32(name[1])<<14 ^ uint32(name[2])<<7 ^ uint32(name[3]) ^
			rol(hash, 28)
	}
	switch len(name) {
	case 3:
		return uint32(name[0])<<14 ^ uint32(name[1])<<7 ^ uint32(name[2]) ^ rol(hash, 21)
	case 2:
		return uint32(name[0])<<7 ^ uint32(name[1]) ^ rol(hash, 14)
	case 1:
		return uint32(name[0]) ^ rol(hash, 7)
	}
	return hash
}

// subtract takes the entries of a hash table from the sum of the names that were met.
func (w *dirWalk) subtract(table []byte) {
	for i := 0; i+8 <= len(table); i += 8 {
		if address := be32(table, i+4); address != 0 {
			w.names--
			w.sum -= mix(be32(table, i), address)
		}
	}
	w.compared = true
}

// differs tells whether the names that were met were not those of the hash table.
func (w *dirWalk) differs() error {
	if w.names != 0 || w.sum != 0 {
		return fmt.Errorf("its names are not those of its hash table (%d more)", w.names)
	}
	return nil
}

// compareHashes reads the hash table of a larger directory and holds it against the names. That is
// for version 4, whose data blocks have no checksums.
func (w *dirWalk) compareHashes() error {
	f := w.n.f
	var failed error
	blocks := dirBlocks{f: f, n: w.n, start: dirLeafStart, limit: dirFreeStart, fn: func(number int64,
		b []byte, off int64, err error) error {
		if err == nil {
			err = w.hashes(b)
		}
		if err != nil && failed == nil {
			failed = f.fail(w.what(), off, w.n.ino, fmt.Errorf("block %d: %w", number, err))
		}
		return nil
	}}
	if err := blocks.walk(w.ctx); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if err := w.differs(); err != nil {
		return f.fail(w.what(), w.n.off, w.n.ino, err)
	}
	return nil
}

// hashes takes one block of the hash table of version 4 into account.
func (w *dirWalk) hashes(b []byte) error {
	switch be16(b, 8) {
	case daNodeMagic:
		return nil
	case leaf1Magic, leafNMagic:
		count := int(be16(b, 12))
		if count > (len(b)-16)/8 {
			return fmt.Errorf("has a hash table of %d entries", count)
		}
		w.subtract(b[16 : 16+8*count])
		return nil
	}
	return fmt.Errorf("begins with 0x%x, which is not part of a hash table", be16(b, 8))
}

// dirBlocks is one pass over the blocks of a directory from start to limit, in bytes of its fork.
type dirBlocks struct {
	f            *FS
	n            *inode
	start, limit int64
	// fn gets a block with its number and place, or what kept it from being read.
	fn    func(number int64, b []byte, off int64, err error) error
	count int64

	number int64 // of the block that is being put together
	parts  []byte
	off    int64
}

// walk reads the blocks in order.
func (d *dirBlocks) walk(ctx context.Context) error {
	f := d.f
	d.number = -1
	w := forkWalk{n: d.n, fork: d.n.dataFork(), from: uint64(d.start) >> f.blockLog}
	w.fn = func(e *extent) error {
		for i := int64(0); i < e.count; {
			at := int64(e.file)<<f.blockLog + i<<f.blockLog
			if e.file >= uint64(d.limit)>>f.blockLog || at >= d.limit {
				return errEnough
			}
			n, err := d.part(ctx, at, e, i)
			if err != nil {
				return err
			}
			i += n
		}
		return nil
	}
	err := w.walk(ctx)
	if h := new(halt); errors.As(err, &h) && h == errEnough {
		err = nil
	}
	if err == nil || damage(err) {
		if stop := d.flush(); stop != nil {
			return stop
		}
	}
	return err
}

// part takes the blocks of an extent from its block i on that belong to one directory block, and
// gives how many these are.
func (d *dirBlocks) part(ctx context.Context, at int64, e *extent, i int64) (int64, error) {
	f := d.f
	number, within := at/f.dirBlock, at%f.dirBlock
	n := min(f.dirBlock-within, (e.count-i)<<f.blockLog)
	if number != d.number {
		if err := d.flush(); err != nil {
			return 0, err
		}
		d.number, d.parts = number, nil
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	off, _ := f.extentPlace(e.start, e.count)
	off += i << f.blockLog
	b, err := f.read(off, n)
	if err != nil {
		d.number, d.parts = -1, nil
		d.count++
		if e := d.fn(number, nil, off, err); e != nil {
			return 0, e
		}
		return n >> f.blockLog, nil
	}
	switch {
	case int64(len(d.parts)) != within:
		return n >> f.blockLog, nil // a part before it is missing: flush says so
	case within == 0:
		// A walk keeps it while it is below one of its names: not the window that it is in.
		d.parts, d.off = bytes.Clone(b), off
	default:
		d.parts = append(d.parts[:len(d.parts):len(d.parts)], b...)
	}
	return n >> f.blockLog, nil
}

// flush hands out the block that was put together.
func (d *dirBlocks) flush() error {
	number := d.number
	d.number = -1
	if number < 0 {
		return nil
	}
	d.count++
	if int64(len(d.parts)) != d.f.dirBlock {
		return d.fn(number, nil, -1, fmt.Errorf("has %d of %d bytes", len(d.parts), d.f.dirBlock))
	}
	return d.fn(number, d.parts, d.off, nil)
}
