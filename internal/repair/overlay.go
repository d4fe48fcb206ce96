// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package repair

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/shisa-vm/shisa/internal/plan"
)

const (
	// blockBytes is the piece of the file whose changes are kept together.
	blockBytes = 64 << 10
	// wordBytes is the unit in which the overlay holds what is written: a table entry.
	wordBytes = 8
	// wordCost is about what one changed word takes of the memory.
	wordCost = 24
)

// ErrMemory: the change is larger than the memory allowed.
var ErrMemory = errors.New("the change needs more memory than is allowed")

// word is a changed word of a block.
type word struct {
	no    uint16 // its place in the block
	phase uint8  // the phase in which it is written, as an index in plan.Phases
	bytes [wordBytes]byte
}

// overlay is a file of which only what was written lies in memory. Nothing reaches the file itself.
// It is safe for several readers at once, not for a reader and a writer.
type overlay struct {
	base     io.ReaderAt
	baseSize int64
	size     int64
	limit    int64 // of the memory for words
	used     int64
	blocks   map[int64][]word // ordered by place
	// touched are the blocks that were written to since settle was called, last the newest of them.
	touched map[int64]bool
	last    int64
}

func newOverlay(base io.ReaderAt, size, limitBytes int64) *overlay {
	return &overlay{base: base, baseSize: size, size: size, limit: limitBytes,
		blocks: map[int64][]word{}, touched: map[int64]bool{}, last: -1}
}

// settle takes what was written so far for known: changed tells of later writes.
func (o *overlay) settle() {
	clear(o.touched)
	o.last = -1
}

// changed reports whether something was written to a range, or near it, since settle was called.
func (o *overlay) changed(off, length int64) bool {
	for no := off / blockBytes; no <= (off+length-1)/blockBytes; no++ {
		if o.touched[no] {
			return true
		}
	}
	return false
}

// ReadAt is io.ReaderAt.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	n := max(0, min(int64(len(p)), o.size-off))
	if err := o.readBase(p[:n], off); err != nil {
		return 0, err
	}
	if len(o.blocks) > 0 && n > 0 {
		for no := off / blockBytes; no <= (off+n-1)/blockBytes; no++ {
			patch(p[:n], off, no, o.blocks[no])
		}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// patch puts the words of block no into p, which was read at off.
func patch(p []byte, off, no int64, words []word) {
	i := 0
	if first := off - no*blockBytes; first > 0 {
		i, _ = slices.BinarySearchFunc(words, uint16(first/wordBytes), compareWord)
	}
	for ; i < len(words); i++ {
		at := no*blockBytes + int64(words[i].no)*wordBytes - off
		switch {
		case at >= int64(len(p)):
			return
		case at >= 0:
			copy(p[at:], words[i].bytes[:])
		default:
			copy(p, words[i].bytes[-at:])
		}
	}
}

func compareWord(w word, no uint16) int { return int(w.no) - int(no) }

// readBase fills p from the file below; what lies behind its end is zeros.
func (o *overlay) readBase(p []byte, off int64) error {
	n := int(max(0, min(int64(len(p)), o.baseSize-off)))
	if n > 0 {
		if m, err := o.base.ReadAt(p[:n], off); m < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	clear(p[n:])
	return nil
}

// Data calls fn for the parts of a range that are not holes, ascending.
func (o *overlay) Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error {
	below, ok := o.base.(interface {
		Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error
	})
	if !ok || length <= 0 || o.written(off, length) {
		return fn(off, length)
	}
	return below.Data(ctx, off, length, fn)
}

// written reports whether something was written to a range or near it.
func (o *overlay) written(off, length int64) bool {
	first, last := off/blockBytes, (off+length-1)/blockBytes
	if last-first > int64(len(o.blocks)) {
		for no := range o.blocks {
			if first <= no && no <= last {
				return true
			}
		}
		return false
	}
	for no := first; no <= last; no++ {
		if len(o.blocks[no]) > 0 {
			return true
		}
	}
	return false
}

// write puts p at off. What it does not change costs nothing, unless it is new space.
func (o *overlay) write(phase plan.Phase, p []byte, off int64) error {
	o.size = max(o.size, off+int64(len(p)))
	if len(p) == wordBytes && off%wordBytes == 0 {
		return o.set(uint8(slices.Index(plan.Phases(), phase)), off, [wordBytes]byte(p))
	}
	first := off &^ (wordBytes - 1)
	end := (off + int64(len(p)) + wordBytes - 1) &^ (wordBytes - 1)
	old := make([]byte, end-first)
	if _, err := o.ReadAt(old[:min(int64(len(old)), o.size-first)], first); err != nil {
		return fmt.Errorf("read what is to be changed at %#x: %w", first, err)
	}
	now := slices.Clone(old)
	copy(now[off-first:], p)
	return o.replace(phase, first, old, now)
}

// replace puts what differs from old in now at off, a multiple of wordBytes. old must be what is
// there.
func (o *overlay) replace(phase plan.Phase, off int64, old, now []byte) error {
	no := uint8(slices.Index(plan.Phases(), phase))
	for i := int64(0); i < int64(len(now)); i += wordBytes {
		v := [wordBytes]byte(now[i:])
		if at := off + i; v != [wordBytes]byte(old[i:]) || at+wordBytes > o.baseSize && v != [wordBytes]byte{} {
			if err := o.set(no, at, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// set writes one word.
func (o *overlay) set(phase uint8, at int64, v [wordBytes]byte) error {
	no := at / blockBytes
	if no != o.last {
		o.touched[no], o.last = true, no
	}
	words := o.blocks[no]
	in := uint16(at % blockBytes / wordBytes)
	i := len(words)
	if i > 0 && words[i-1].no >= in {
		i, _ = slices.BinarySearchFunc(words, in, compareWord)
	}
	if i < len(words) && words[i].no == in {
		w := &words[i]
		w.bytes = v
		// What was counted once stays with the counts: they come first.
		if phase != lowerNo || w.phase != countNo {
			w.phase = phase
		}
		return nil
	}
	if o.used += wordCost; o.used > o.limit {
		return fmt.Errorf("%w (%d bytes)", ErrMemory, o.limit)
	}
	o.blocks[no] = slices.Insert(words, i, word{in, phase, v})
	return nil
}

var (
	countNo = uint8(slices.Index(plan.Phases(), plan.Count))
	lowerNo = uint8(slices.Index(plan.Phases(), plan.Lower))
)

// grow makes the file longer: what is new reads as zeros.
func (o *overlay) grow(size int64) { o.size = max(o.size, size) }

// gapBytes: changes of one phase that are so near to one another become one write.
const gapBytes = 2 * wordBytes

// writes gives what differs from the file below, in the order in which it is to be written, without
// the first sector.
func (o *overlay) writes(ctx context.Context) ([]plan.Write, error) {
	nos := make([]int64, 0, len(o.blocks))
	for no := range o.blocks {
		nos = append(nos, no)
	}
	slices.Sort(nos)
	byPhase := o.writeLists()
	old, now := make([]byte, blockBytes), make([]byte, blockBytes)
	for _, no := range nos {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := o.readBase(old, no*blockBytes); err != nil {
			return nil, fmt.Errorf("read what is to be changed at %#x: %w", no*blockBytes, err)
		}
		copy(now, old)
		patch(now, no*blockBytes, no, o.blocks[no])
		o.blockWrites(byPhase, no, old, now)
	}
	var all []plan.Write
	for _, list := range byPhase {
		if len(all) == 0 {
			all = list.writes
		} else {
			all = append(all, list.writes...)
		}
	}
	return all, nil
}

// writeLists makes an empty list for each phase, with room for as many writes as there will be, or a
// few more: in lists that grow, so many would be copied again and again.
func (o *overlay) writeLists() []writeList {
	lists, counts := make([]writeList, len(plan.Phases())), make([]int, len(plan.Phases()))
	for no, words := range o.blocks {
		for i, w := range words {
			off := no*blockBytes + int64(w.no)*wordBytes
			ph := o.phaseOf(w.phase, off)
			if i == 0 || int64(w.no-words[i-1].no-1)*wordBytes > gapBytes ||
				o.phaseOf(words[i-1].phase, off-wordBytes) != ph {
				counts[ph]++
			}
		}
	}
	for i, phase := range plan.Phases() {
		// The first sector's write follows the last one.
		lists[i] = writeList{phase: phase, writes: make([]plan.Write, 0, counts[i]+1)}
	}
	return lists
}

// blockWrites adds what one block has to byPhase.
func (o *overlay) blockWrites(byPhase []writeList, no int64, old, now []byte) {
	words := o.blocks[no]
	for i := 0; i < len(words); {
		from := int64(words[i].no) * wordBytes
		off := no*blockBytes + from
		if off < plan.SectorBytes || !o.differs(off, old[from:from+wordBytes], now[from:from+wordBytes]) {
			i++
			continue
		}
		ph, to := o.phaseOf(words[i].phase, off), from+wordBytes
		for i++; i < len(words); i++ {
			at := int64(words[i].no) * wordBytes
			if at-to > gapBytes || o.phaseOf(words[i].phase, no*blockBytes+at) != ph {
				break
			}
			if o.differs(no*blockBytes+at, old[at:at+wordBytes], now[at:at+wordBytes]) {
				to = at + wordBytes
			}
		}
		to = min(to, o.size-no*blockBytes) // the file's last word may be cut
		byPhase[ph].add(off, old[from:to], now[from:to], o.baseSize)
	}
}

// differs reports whether a word at off is to be written: it changes, or is new.
func (o *overlay) differs(off int64, old, now []byte) bool {
	return !bytes.Equal(old, now) || off+wordBytes > o.baseSize
}

// phaseOf is the phase in which a word is written: what lies behind the end of the file is new,
// whatever it is.
func (o *overlay) phaseOf(no uint8, off int64) uint8 {
	if off >= o.baseSize {
		return 0
	}
	return no
}

// writeList gathers writes. A repair has many small ones, so their bytes lie together.
type writeList struct {
	phase  plan.Phase
	writes []plan.Write
	room   []byte
}

// add adds a write, joined to the last one where it continues it. size is the length of the file.
func (l *writeList) add(off int64, old, p []byte, size int64) {
	old = old[:max(0, min(int64(len(old)), size-off))]
	if n := len(l.writes); n > 0 {
		if w := &l.writes[n-1]; w.End() == off && len(w.New)+len(p) <= plan.MaxWriteBytes &&
			(off < size || w.Offset >= size) {
			w.Old, w.New = append(w.Old, old...), append(w.New, p...)
			return
		}
	}
	l.writes = append(l.writes, plan.Write{Phase: l.phase, Offset: off, Old: l.keep(old), New: l.keep(p)})
}

// keep gives a copy of p. To append to it makes a copy of its own.
func (l *writeList) keep(p []byte) []byte {
	if len(l.room) < len(p) {
		l.room = make([]byte, max(len(p), blockBytes))
	}
	q := l.room[:copy(l.room, p):len(p)]
	l.room = l.room[len(p):]
	return q
}

// recorder remembers what was read of a file, and a digest of it.
type recorder struct {
	r    io.ReaderAt
	mu   sync.Mutex
	seen map[readRange]uint32
	// full: more was read than is remembered.
	full bool
}

type readRange struct{ off, length int64 }

// maxRelied bounds the ranges that a plan says it relies on.
const maxRelied = 1 << 22

func newRecorder(r io.ReaderAt) *recorder {
	return &recorder{r: r, seen: map[readRange]uint32{}}
}

// ReadAt is io.ReaderAt.
func (d *recorder) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.r.ReadAt(p, off)
	key := readRange{off, int64(n)}
	d.mu.Lock()
	_, known := d.seen[key]
	d.mu.Unlock()
	if known || n == 0 {
		return n, err
	}
	sum := plan.Checksum(p[:n])
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.seen) < maxRelied {
		d.seen[key] = sum
	} else {
		d.full = true
	}
	return n, err
}

// Data passes on where the file has data.
func (d *recorder) Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error {
	if below, ok := d.r.(interface {
		Data(ctx context.Context, off, length int64, fn func(off, length int64) error) error
	}); ok {
		return below.Data(ctx, off, length, fn)
	}
	return fn(off, length)
}

// digests gives what was read, ascending. A range that lies within another is left out.
func (d *recorder) digests() []plan.Digest {
	list := make([]plan.Digest, 0, len(d.seen))
	for k, sum := range d.seen {
		list = append(list, plan.Digest{Offset: k.off, Length: k.length, CRC32C: sum})
	}
	slices.SortFunc(list, func(a, b plan.Digest) int {
		if a.Offset != b.Offset {
			return compareInt(a.Offset, b.Offset)
		}
		return compareInt(b.Length, a.Length)
	})
	kept, end := list[:0], int64(0)
	for _, x := range list {
		if x.Offset+x.Length > end {
			kept = append(kept, x)
			end = x.Offset + x.Length
		}
	}
	return kept
}

func compareInt(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
