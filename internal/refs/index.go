// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
)

// The form of an index, which is a cache and no evidence: a version that is not this one's is not read. All numbers
// are little-endian; a text is its length and its bytes.
//
//	0  "shisaidx"    8  version    12  CRC-32C of all that follows
//	16  when the scan began, in nanoseconds of Unix time
//	    the directory of the bases, the number of roots and each of them
//	    the number of results; each is a byte (1: the beginning of the file does not tell), format, backing name, data file
//	    what diskio.Memory.Append wrote
const (
	indexMagic   = "shisaidx"
	indexVersion = 2
	indexHead    = 16
	// MaxIndexBytes bounds an index: some two million overlays.
	MaxIndexBytes = 256 << 20
	maxResults    = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errIndex are the reasons for which an index is not used.
var (
	errIndexDamaged = errors.New("the index is damaged")
	errIndexVersion = errors.New("the index is another version's")
	errIndexOther   = errors.New("the index is another pool's")
	errIndexAhead   = errors.New("the index is from the future: the clock was set back")
)

// result is what the beginning of a file told. odd: that it does not tell.
type result struct {
	header
	odd bool
}

// heads are what the beginnings of files told, each once.
type heads struct {
	all []result
	at  map[result]uint32
}

// number gives the number of a result.
func (h *heads) number(r result) uint32 {
	n, ok := h.at[r]
	if ok {
		return n
	}
	if h.at == nil {
		h.at = map[result]uint32{}
	}
	n = uint32(len(h.all))
	h.all, h.at[r] = append(h.all, r), n
	return n
}

// index is what a census has of an earlier one, and what it keeps for the next.
type index struct {
	key   string
	learn diskio.Learning
	began time.Time
	// old are the results of the earlier census.
	old []result

	mu sync.Mutex
	// heads are of all files. The first ones are those of the earlier census.
	heads
}

// indexKey is under what the index of a pool is kept.
func indexKey(bases string, roots []string) string {
	h := sha256.New()
	for _, s := range append([]string{bases}, roots...) {
		fmt.Fprintf(h, "%d %s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// remember gets what an earlier census kept. Whatever is wrong with that is a note, and all is read.
func (t *taking) remember() {
	if t.o.Index == nil {
		return
	}
	x := &index{key: indexKey(t.c.Bases, t.c.Roots), began: t.o.Now()}
	t.index = x
	x.learn.Now = x.began
	b, err := t.o.Index(x.key)
	switch {
	case err == nil && len(b) == 0:
		return
	case err == nil:
		err = x.parse(b, t.c.Bases, t.c.Roots)
	}
	if err != nil {
		x.learn.Known, x.heads = nil, heads{}
		t.c.IndexNotes = append(t.c.IndexNotes, reason(err))
		return
	}
	t.c.Indexed = true
	x.old = slices.Clip(x.all) // what is added to the others is not seen here
	x.at = make(map[result]uint32, len(x.all))
	for i, r := range x.all {
		x.at[r] = uint32(i)
	}
}

// tag is number for several workers at once.
func (x *index) tag(r result) uint32 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.number(r)
}

// keep notes what is to be kept for the next census.
func (t *taking) keep() {
	x := t.index
	if x == nil {
		return
	}
	for _, dir := range x.learn.Distrusted {
		t.c.IndexNotes = append(t.c.IndexNotes, dir+": its file system does not tell inodes and times that can be trusted: "+
			"nothing is remembered there")
	}
	slices.Sort(t.c.IndexNotes)
	switch {
	case x.learn.Same && t.c.Indexed: // what was kept is right
	case x.learn.Seen == nil || len(x.all) > maxResults:
		t.c.IndexNotes = append(t.c.IndexNotes, "there is too much to be remembered")
	default:
		if b := x.text(t.c.Bases, t.c.Roots); len(b) <= MaxIndexBytes {
			t.c.next, t.c.nextKey = b, x.key
		} else {
			t.c.IndexNotes = append(t.c.IndexNotes, "there is too much to be remembered")
		}
	}
}

// Next is what is to be kept for the next census of the pool, and under which name: Options.Index is to give it then. It
// is nil if there is nothing new.
func (c *Census) Next() (key string, index []byte) { return c.nextKey, c.next }

// text writes an index.
func (x *index) text(bases string, roots []string) []byte {
	var used []result
	number := make([]uint32, len(x.all)) // and one more, 0 for those that are not used yet
	x.learn.Seen.Retag(func(tag uint32) uint32 {
		if number[tag] == 0 {
			used = append(used, x.all[tag])
			number[tag] = uint32(len(used))
		}
		return number[tag] - 1
	})
	le := binary.LittleEndian
	b := append([]byte(indexMagic), make([]byte, indexHead-len(indexMagic))...)
	b = le.AppendUint64(b, uint64(x.began.UnixNano()))
	word := func(s string) { b = append(le.AppendUint32(b, uint32(len(s))), s...) }
	word(bases)
	b = le.AppendUint32(b, uint32(len(roots)))
	for _, r := range roots {
		word(r)
	}
	b = le.AppendUint32(b, uint32(len(used)))
	for i := range used {
		r := &used[i]
		odd := byte(0)
		if r.odd {
			odd = 1
		}
		b = append(b, odd)
		word(string(r.format))
		word(r.backing)
		word(r.data)
	}
	b = x.learn.Seen.Append(b)
	le.PutUint32(b[len(indexMagic):], indexVersion)
	le.PutUint32(b[len(indexMagic)+4:], crc32.Checksum(b[indexHead:], castagnoli))
	return b
}

// parse reads an index.
func (x *index) parse(b []byte, bases string, roots []string) error {
	le := binary.LittleEndian
	switch {
	case len(b) < indexHead || len(b) > MaxIndexBytes || !bytes.HasPrefix(b, []byte(indexMagic)):
		return errIndexDamaged
	case le.Uint32(b[len(indexMagic):]) != indexVersion:
		return errIndexVersion
	case le.Uint32(b[len(indexMagic)+4:]) != crc32.Checksum(b[indexHead:], castagnoli):
		return errIndexDamaged
	}
	p := indexParser{b: b[indexHead:]}
	began := int64(p.number(8))
	same := p.word() == bases
	count := p.number(4)
	same = same && count == uint64(len(roots))
	for i := uint64(0); i < count && !p.wrong; i++ {
		r := p.word()
		same = same && r == roots[i]
	}
	results := p.number(4)
	for i := uint64(0); i < results && !p.wrong; i++ {
		r := result{odd: p.number(1) == 1}
		r.format, r.backing, r.data = image.Format(p.word()), p.word(), p.word()
		x.all = append(x.all, r)
	}
	var err error
	switch {
	case p.wrong || results > maxResults:
		return errIndexDamaged
	case !same:
		return errIndexOther
	case began > x.began.UnixNano():
		return errIndexAhead
	}
	if x.learn.Known, err = diskio.ParseMemory(p.b, uint32(results)); err != nil {
		return fmt.Errorf("%w: %w", errIndexDamaged, err)
	}
	return nil
}

// indexParser reads numbers and texts; wrong: there are not as many.
type indexParser struct {
	b     []byte
	wrong bool
}

func (p *indexParser) number(bytes int) (n uint64) {
	for i, c := range p.take(uint64(bytes)) {
		n |= uint64(c) << (8 * i)
	}
	return n
}

func (p *indexParser) word() string { return string(p.take(p.number(4))) }

func (p *indexParser) take(n uint64) []byte {
	if n > uint64(len(p.b)) {
		p.wrong, p.b = true, nil
		return nil
	}
	t := p.b[:n]
	p.b = p.b[n:]
	return t
}

// told gives what the beginning of a file tells, and its number: what it told when it was read last, if it is as it was
// then. The error is errMore, or why the file is no image that can be understood; such a file has no number, and is never
// remembered.
func (t *taking) told(w *found, f *diskio.Swept) (uint32, *header, error) {
	if f.Known {
		r := &t.index.old[f.Tag]
		if r.odd {
			return f.Tag, &r.header, errMore
		}
		return f.Tag, &r.header, nil
	}
	h, err := parse(f.Head, f.Stat.SizeBytes, f.Name)
	if err != nil && !errors.Is(err, errMore) {
		return 0, &h, err
	}
	if err == nil && headed(h.backing, h.backingFormat) {
		err = errMore // what it rests on is told of by header
	}
	h.backingFormat = ""
	if err != nil {
		h.backing, h.data = "", ""
	}
	r := result{h, err != nil}
	if t.index == nil {
		return w.heads.number(r), &h, err
	}
	f.Tag, f.Keep = t.index.tag(r), true
	return f.Tag, &h, err
}
