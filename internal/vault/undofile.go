// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
)

// Undo is an open undo file. Opening it read all of it once and found it whole.
type Undo struct {
	path  string
	id    diskio.Identity
	bytes int64
	r     diskio.Readable
	w     diskio.Writable // nil where it is open for reading only
	h     *header
	meta  *Receipt
	// start is where the records of each kind begin; the last one is where the trailer does.
	start  [numKinds + 1]int64
	seq    [numKinds]uint32
	states []stateEntry
	// sure: the last state is on the disk.
	sure bool
}

// Path is the path of the undo file.
func (u *Undo) Path() string { return u.path }

// ID is that of the plan.
func (u *Undo) ID() string { return u.h.idText() }

// SizeBefore and SizeAfter are the lengths of the image before and after the change.
func (u *Undo) SizeBefore() int64 { return u.h.before }

// SizeAfter is the length of the image after the change.
func (u *Undo) SizeAfter() int64 { return u.h.after }

// TrustedFor returns ErrForeign unless what the file says may be written to an image: whoever may
// write to the directory of an image can put a file there that looks like an undo file.
func (u *Undo) TrustedFor(image diskio.Identity) error { return trusted(u.path, u.id, image) }

func trusted(path string, undo, image diskio.Identity) error {
	if image.Trusts(undo) {
		return nil
	}
	who := fmt.Sprintf("user %d, who may not write to the image", undo.Owner)
	if undo.Public {
		who = "everybody: all users may write to it"
	}
	return fmt.Errorf("undo file %s %w (%s); move it away, or give it to root if you know who made it",
		path, ErrForeign, who)
}

// State is how far the change came.
func (u *Undo) State() State { return u.states[len(u.states)-1].state }

// Receipt gives a copy of the receipt as it stood when the undo file was made, with the state and
// the path that the undo file has now.
func (u *Undo) Receipt() *Receipt {
	r := *u.meta // a copy: u.meta stays as it was read
	applyStates(&r, u.states)
	r.setUndo(u.path)
	r.UndoBytes = u.bytes
	return &r
}

// applyStates sets the state and the times of a receipt.
func applyStates(r *Receipt, states []stateEntry) {
	for _, s := range states {
		at := s.at
		r.State = s.state
		switch s.state {
		case Committed, RolledBack:
			r.Finished = &at
		case Undone:
			r.Undone = &at
		}
	}
}

// Close closes the file.
func (u *Undo) Close() error { return u.r.Close() }

// Advance notes on the disk that the change has come to a state. After an error nobody knows
// whether it was noted.
func (u *Undo) Advance(s State, now time.Time) error {
	if !s.follows(u.State()) {
		return fmt.Errorf("undo file %s: %s cannot follow %s", u.path, s, u.State())
	}
	if err := u.Confirm(); err != nil {
		return err
	}
	e := stateEntry{u.h.id, uint32(len(u.states)), s, now.UTC()}
	if err := u.writeState(e); err != nil {
		u.sure = false
		return err
	}
	u.states = append(u.states, e)
	return nil
}

// Confirm makes sure that the last state is on the disk, and no later one: where an attempt to write
// one failed, the memory of the machine and the disk may tell different states. Nothing may be
// written to the image before that, for it is the state on the disk that tells, after a power cut,
// what the image may hold.
func (u *Undo) Confirm() error {
	if u.sure {
		return nil
	}
	err := u.writeState(u.states[len(u.states)-1])
	u.sure = err == nil
	return err
}

// writeState writes a state, and that there is none after it.
func (u *Undo) writeState(e stateEntry) error {
	if u.w == nil {
		return fmt.Errorf("undo file %s: open for reading only", u.path)
	}
	b := encodeState(e.id, e.seq, e.state, e.at)
	if e.seq+1 < roomStates && !u.sure {
		b = append(b, make([]byte, sectorBytes)...)
	}
	_, err := u.w.WriteAt(b, u.h.statesAt()+int64(e.seq)*sectorBytes)
	if err == nil {
		err = u.w.Sync()
	}
	if err != nil {
		return fmt.Errorf("note %s in the undo file %s: %w", e.state, u.path, err)
	}
	return nil
}

// Records calls fn for each record of a kind, in the order of the plan.
func (u *Undo) Records(ctx context.Context, k Kind, fn func(Record) error) error {
	from, to := u.start[k], u.start[k+1]
	rr := &recordReader{r: buffered(faultReader{io.NewSectionReader(u.r, from, to-from)}, to-from),
		seq: u.seq[k]}
	for at := from; at < to; {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, n, err := rr.next(to - at)
		if err == nil {
			err = u.h.check(r)
		}
		var failed *readError
		switch {
		case errors.As(err, &failed):
			return fmt.Errorf("read the undo file %s: %w", u.path, err)
		case err != nil:
			return fmt.Errorf("undo file %s %w: %w", u.path, ErrDamaged, err)
		}
		if err := fn(r); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// Watches calls fn for each range that the plan relied on.
func (u *Undo) Watches(ctx context.Context, fn func(Watch) error) error {
	return u.Records(ctx, KindWatch, func(r Record) error { return fn(r.watch()) })
}

// readAhead is how much of an undo file is read at once.
const readAhead = 1 << 18

// buffered reads ahead in r, which is size bytes long.
func buffered(r io.Reader, size int64) *bufio.Reader {
	return bufio.NewReaderSize(r, int(min(readAhead, max(size, sectorBytes))))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordReader reads records one after the other into the same memory.
type recordReader struct {
	r   *bufio.Reader
	seq uint32
	buf []byte
}

// next reads a record that is at most limit bytes long, and gives its length.
func (rr *recordReader) next(limit int64) (Record, int64, error) {
	var head [recordHead]byte
	if limit < recordHead {
		return Record{}, 0, fmt.Errorf("record %d has no room", rr.seq)
	}
	if _, err := io.ReadFull(rr.r, head[:]); err != nil {
		return Record{}, 0, fmt.Errorf("record %d: %w", rr.seq, err)
	}
	r, oldLen, newLen, err := decodeHead(head[:], rr.seq)
	if err != nil {
		return r, 0, err
	}
	n := int64(recordHead + oldLen + newLen)
	if n > limit {
		return r, 0, fmt.Errorf("record %d has %d bytes, %d are left", rr.seq, n, limit)
	}
	if cap(rr.buf) < oldLen+newLen {
		rr.buf = make([]byte, oldLen+newLen)
	}
	rr.buf = rr.buf[:oldLen+newLen]
	if _, err := io.ReadFull(rr.r, rr.buf); err != nil {
		return r, 0, fmt.Errorf("record %d: %w", rr.seq, err)
	}
	want := binary.LittleEndian.Uint32(head[12:])
	clear(head[12:16])
	if got := crc32.Update(plan.Checksum(head[:]), castagnoli, rr.buf); got != want {
		return r, 0, fmt.Errorf("record %d: its checksum is %#x, want %#x", rr.seq, got, want)
	}
	r.Old, r.New = rr.buf[:oldLen:oldLen], rr.buf[oldLen:]
	rr.seq++
	return r, n, nil
}

// OpenUndo opens an undo file for reading and reads all of it. The errors are ErrNotUndo,
// ErrPartial, ErrDamaged and ErrNewer, and those of opening.
func (v *Vault) OpenUndo(ctx context.Context, path string) (*Undo, error) {
	f, err := v.disk.Open(path)
	if err != nil {
		return nil, err
	}
	u, err := readUndo(ctx, path, f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return u, nil
}

// OpenUndoToAdvance is OpenUndo that also permits to note states. Further errors are those of
// diskio.OpenForRepair; with alone, which is for those who do not hold the image itself, also that
// the file system keeps no locks.
func (v *Vault) OpenUndoToAdvance(ctx context.Context, path string, alone bool) (*Undo, error) {
	f, err := v.disk.OpenForRepair(path)
	if errors.Is(err, diskio.ErrNoLocks) && !alone {
		// Who changes an image holds the lock of that; this one is a second door.
		f, err = v.disk.OpenWithoutLocks(path)
	}
	if err != nil {
		return nil, err
	}
	u, err := readUndo(ctx, path, f)
	if err != nil {
		f.Close()
		return nil, err
	}
	u.w = f
	return u, nil
}

// readUndo reads an undo file whole.
func readUndo(ctx context.Context, path string, f diskio.Readable) (*Undo, error) {
	id, err := f.Identity()
	if err != nil {
		return nil, err
	}
	u := &Undo{path: path, id: id, r: f, bytes: id.SizeBytes}
	err = u.read(ctx, id.SizeBytes)
	if err == nil {
		err = u.readStates(id.SizeBytes)
	}
	if err != nil {
		return nil, judge(ctx, path, f, id.SizeBytes, err)
	}
	return u, nil
}

// judge says what a fault in an undo file means. A file in which no state says that the change was
// begun is a part of one, and the image was not touched; any other is damaged and may be needed.
func judge(ctx context.Context, path string, f io.ReaderAt, size int64, fault error) error {
	if errors.Is(fault, ErrNotUndo) || errors.Is(fault, ErrNewer) || ctx.Err() != nil {
		return fmt.Errorf("%s: %w", path, fault)
	}
	var failed *readError
	if errors.As(fault, &failed) {
		return fmt.Errorf("read the undo file %s: %w", path, fault)
	}
	begun, err := wasBegun(ctx, f, size)
	switch {
	case err != nil:
		return fmt.Errorf("read the undo file %s: %w", path, err)
	case begun:
		return fmt.Errorf("undo file %s %w: %w", path, ErrDamaged, fault)
	}
	return fmt.Errorf("%s: %w (%w)", path, ErrPartial, fault)
}

// readError is a fault of the storage, not of the bytes.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// faultReader marks the errors of reading as those of the storage.
type faultReader struct{ r io.Reader }

func (f faultReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &readError{err}
	}
	return n, err
}

// maxSearched is in how much of a file wasBegun looks. No undo file is nearly so long, but a file of
// holes may be, and would be read for years.
const maxSearched = 16 << 30

// wasBegun looks in the whole file for a state that comes after prepared. In a file that is too long
// for that there may be one.
func wasBegun(ctx context.Context, f io.ReaderAt, size int64) (bool, error) {
	if size > maxSearched {
		return true, nil
	}
	r := buffered(io.NewSectionReader(f, 0, size), size)
	var b [sectorBytes]byte
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		_, err := io.ReadFull(r, b[:])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if e, ok := decodeState(b[:]); ok && e.state != Prepared {
			return true, nil
		}
	}
}

// readHeader reads the header and the receipt.
func (u *Undo) readHeader(r io.Reader, size int64) error {
	var b [sectorBytes]byte
	if n, err := io.ReadFull(r, b[:]); err != nil {
		if n >= 8 && string(b[:8]) != headerMagic && !allZero(b[:n]) {
			return fmt.Errorf("%w: it begins %q", ErrNotUndo, b[:8])
		}
		return fmt.Errorf("its header: %w", err)
	}
	var err error
	if u.h, err = decodeHeader(b[:], size); err != nil {
		return err
	}
	// The buffer grows with what is there; the length was held against that of the file.
	var raw bytes.Buffer
	if _, err := io.CopyN(&raw, r, u.h.metaBytes); err != nil {
		return fmt.Errorf("its receipt: %w", err)
	}
	if plan.Checksum(raw.Bytes()) != u.h.metaCRC {
		return fmt.Errorf("the checksum of its receipt is wrong")
	}
	u.meta = new(Receipt)
	if err := decodeReceipt(raw.Bytes(), u.meta); err != nil {
		return fmt.Errorf("its receipt: %w", err)
	}
	if u.meta.ID != u.h.idText() || u.meta.SizeAfterBytes != u.h.after ||
		u.meta.Object.SizeBytes != u.h.before {
		return fmt.Errorf("its receipt is that of another change")
	}
	return nil
}

// read reads all up to the trailer, and holds it against that.
func (u *Undo) read(ctx context.Context, size int64) error {
	sum := sha256.New()
	in := buffered(faultReader{io.NewSectionReader(u.r, 0, size)}, size)
	if err := u.readHeader(io.TeeReader(in, sum), size); err != nil {
		return err
	}
	end := u.h.endBytes - trailerBytes
	records := io.TeeReader(io.LimitReader(in, end-sectorBytes-u.h.metaBytes), sum)
	rr := &recordReader{r: bufio.NewReaderSize(records, sectorBytes)}
	kind, at := Kind(0), sectorBytes+u.h.metaBytes
	u.start[0] = at
	for at < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		seq := rr.seq
		rec, n, err := rr.next(end - at)
		if err == nil {
			err = u.h.check(rec)
		}
		if err != nil {
			return err
		}
		switch {
		case rec.Kind < kind:
			return fmt.Errorf("record %d, of %v, comes too late", seq, rec.Kind)
		case rec.Kind == kind && seq > u.seq[kind] && (kind == KindFence || kind == KindSwitch):
			return fmt.Errorf("record %d is a second one of %v", seq, rec.Kind)
		}
		for kind < rec.Kind {
			kind++
			u.start[kind], u.seq[kind] = at, seq
		}
		at += n
	}
	for kind++; kind <= numKinds; kind++ {
		u.start[kind] = end
	}
	var trailer [trailerBytes]byte
	if _, err := io.ReadFull(in, trailer[:]); err != nil {
		return fmt.Errorf("its trailer: %w", err)
	}
	count, want, err := decodeTrailer(trailer[:])
	switch {
	case err != nil:
		return err
	case count != uint64(rr.seq):
		return fmt.Errorf("it has %d records, want %d", rr.seq, count)
	case !bytes.Equal(want, sum.Sum(nil)):
		return fmt.Errorf("its SHA-256 is not the one in its trailer")
	}
	return nil
}

// readStates reads the states after the trailer. One that is torn was never finished and does not
// count.
func (u *Undo) readStates(size int64) error {
	states, err := statesOf(u.r, u.h, size)
	u.states = states
	return err
}

func statesOf(r io.ReaderAt, h *header, size int64) ([]stateEntry, error) {
	var states []stateEntry
	last, ended := State(""), false
	for i := range int64(roomStates) {
		var b [sectorBytes]byte
		at := h.statesAt() + i*sectorBytes
		if at > size-sectorBytes {
			break
		}
		if _, err := r.ReadAt(b[:], at); err != nil && !errors.Is(err, io.EOF) {
			return nil, &readError{err}
		}
		e, ok := decodeState(b[:])
		switch {
		case !ok:
			ended = true
			continue
		case ended || e.id != h.id || e.seq != uint32(i) || !e.state.follows(last):
			return nil, fmt.Errorf("its state %d is %s, after %q", i, e.state, last)
		}
		states, last = append(states, e), e.state
	}
	if len(states) == 0 {
		return nil, errors.New("it has no state")
	}
	return states, nil
}

// Peeked is what Peek sees of an undo file.
type Peeked struct {
	State   State
	Bytes   int64
	Receipt *Receipt
	path    string
	id      diskio.Identity
}

// TrustedFor is that of Undo.
func (p Peeked) TrustedFor(image diskio.Identity) error { return trusted(p.path, p.id, image) }

// Peek reads the receipt and the states of an undo file, and not its records. The errors are those
// of OpenUndo; Bytes is set for all but errors of opening.
func (v *Vault) Peek(ctx context.Context, path string) (Peeked, error) {
	f, err := v.disk.Open(path)
	if err != nil {
		return Peeked{}, err
	}
	defer f.Close()
	id, err := f.Identity()
	if err != nil {
		return Peeked{}, err
	}
	p := Peeked{Bytes: id.SizeBytes, path: path, id: id}
	u := &Undo{path: path, id: id, r: f, bytes: id.SizeBytes}
	in := faultReader{io.NewSectionReader(f, 0, id.SizeBytes)}
	if err = u.readHeader(in, id.SizeBytes); err == nil {
		err = u.readStates(id.SizeBytes)
	}
	if err != nil {
		return p, judge(ctx, path, f, id.SizeBytes, err)
	}
	p.Receipt = u.Receipt()
	p.State = p.Receipt.State
	return p, nil
}
