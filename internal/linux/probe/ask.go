// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Bounds of what the kernel may make us keep and do.
const (
	// maxRecords is what one call may be answered with: more processes, files or mounts than any
	// machine has, some 300 MB of records.
	maxRecords = 4 << 20
	// maxRounds bounds how often questions are asked on, at 64 mounts or 128 files a time.
	maxRounds = 1 << 16
)

// ErrChanged means that what was looked at did not hold still, however often it was looked at.
var ErrChanged = errors.New("it changes while it is read")

// question and found are the same in all objects, see question.h.
type (
	question = mountsQuestion
	found    = mountsFound
)

const (
	foundMore    = uint16(mountsFoundKindFOUND_MORE)
	foundBelow   = uint16(mountsFoundKindFOUND_BELOW)
	foundLost    = uint16(mountsFoundKindFOUND_LOST)
	foundUnknown = uint16(mountsFoundKindFOUND_UNKNOWN)
	foundTask    = uint16(mountsFoundKindFOUND_TASK)
	foundFile    = uint16(mountsFoundKindFOUND_FILE)
	foundPath    = uint16(mountsFoundKindFOUND_PATH)
	foundSocket  = uint16(mountsFoundKindFOUND_SOCKET)
	foundMessage = uint16(mountsFoundKindFOUND_MESSAGE)
	foundEvent   = uint16(mountsFoundKindFOUND_EVENT)
	foundKernel  = uint16(mountsFoundKindFOUND_ANONYMOUS)
	foundSpace   = uint16(mountsFoundKindFOUND_NAMESPACE)
	foundMount   = uint16(mountsFoundKindFOUND_MOUNT)
	foundSuper   = uint16(mountsFoundKindFOUND_SUPER)
	foundNumber  = uint16(mountsFoundKindFOUND_NUMBER)
	foundName    = uint16(mountsFoundKindFOUND_NAME)
)

// headerBytes is the size of struct header, which begins each record: the number of the question,
// the kind of the record and its size.
const headerBytes = 8

// record is one thing that a program found.
type record struct {
	question int // of those that were asked
	kind     uint16
	data     []byte // with its header, valid until the next record
}

// into fills a struct of the object with the record.
func (r record) into(to any) error {
	if _, err := binary.Decode(r.data, binary.NativeEndian, to); err != nil {
		return fmt.Errorf("decode a record of kind %d with %d bytes: %w", r.kind, len(r.data), err)
	}
	return nil
}

// desk is where the programs of one object are asked.
type desk struct {
	mu        sync.Mutex
	questions *ebpf.Map
	pass      *ebpf.Variable
	passes    uint32
	keys      []uint32
	links     map[*ebpf.Program]*link.Iter
	buf       []byte
}

func newDesk(questions *ebpf.Map, pass *ebpf.Variable) *desk {
	d := &desk{questions: questions, pass: pass, links: map[*ebpf.Program]*link.Iter{},
		keys: make([]uint32, questions.MaxEntries()), buf: make([]byte, 64<<10)}
	for i := range d.keys {
		d.keys[i] = uint32(i)
	}
	return d
}

func (d *desk) close() error {
	var errs []error
	for _, l := range d.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// ask has p answer all questions and gives every record to got. What a program could not do in one
// run it is asked again, so records of one question come in their order, those of several mixed.
// It waits for nothing but the processor.
func (d *desk) ask(ctx context.Context, p *ebpf.Program, qs []question,
	got func(record) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	type pending struct {
		question
		number int
	}
	todo := make([]pending, len(qs))
	for i, q := range qs {
		todo[i] = pending{q, i}
	}
	records := 0
	for round := 0; len(todo) > 0; round++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if round > maxRounds+len(qs) {
			return fmt.Errorf("ask %s: more than %d times", p, round)
		}
		now := todo[:min(len(todo), len(d.keys))]
		var again []pending
		batch := make([]question, len(now))
		for i := range now {
			batch[i] = now[i].question
		}
		if err := d.put(batch); err != nil {
			return err
		}
		err := d.run(p, d.questions, func(r record) error {
			if records++; records > maxRecords {
				return fmt.Errorf("ask %s: more than %d records", p, maxRecords)
			}
			if r.question >= len(now) {
				return fmt.Errorf("ask %s: an answer to question %d of %d", p, r.question, len(now))
			}
			asked := now[r.question]
			r.question = asked.number
			if r.kind != foundMore && r.kind != foundBelow {
				return got(r)
			}
			var f found
			if err := r.into(&f); err != nil {
				return err
			}
			q := asked.question
			q.From = f.Extra
			if f.Flags != 0 {
				q.Want = f.Flags
			}
			switch {
			case r.kind == foundBelow:
				q.Addr, q.Flags = f.Addr, 1
			case f.Addr != 0: // the way up a path
				q.Addr, q.Also, q.Super, q.Flags = f.Addr, f.Mnt, 0, q.Flags&^uint32(pathFirst)
			}
			again = append(again, pending{q, asked.number})
			return nil
		})
		if err != nil {
			return err
		}
		todo = append(again, todo[len(now):]...)
	}
	return nil
}

func (d *desk) put(qs []question) error {
	d.passes++
	for i := range qs {
		qs[i].Number, qs[i].Pass = uint32(i), d.passes
	}
	if _, err := d.questions.BatchUpdate(d.keys[:len(qs)], qs, nil); err != nil {
		return fmt.Errorf("write %d questions: %w", len(qs), err)
	}
	if err := d.pass.Set(d.passes); err != nil {
		return fmt.Errorf("write that there are questions: %w", err)
	}
	return nil
}

// run runs the iterator p once, over the elements of m if that is not nil.
func (d *desk) run(p *ebpf.Program, m *ebpf.Map, got func(record) error) error {
	l := d.links[p]
	if l == nil {
		var err error
		if l, err = link.AttachIter(link.IterOptions{Program: p, Map: m}); err != nil {
			return fmt.Errorf("attach the iterator %s: %w: %w", p, ErrRefused, err)
		}
		d.links[p] = l
	}
	r, err := l.Open()
	if err != nil {
		return fmt.Errorf("open the iterator %s: %w", p, err)
	}
	defer r.Close()
	for kept := 0; ; {
		n, err := r.Read(d.buf[kept:])
		rest, bad := split(d.buf[:kept+n], got)
		if bad != nil {
			return bad
		}
		kept = copy(d.buf, rest)
		switch {
		case err == io.EOF && kept > 0:
			return fmt.Errorf("read the iterator %s: %d bytes of a record are missing", p, kept)
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read the iterator %s: %w", p, err)
		}
	}
}

// split gives the whole records in data to got, and gives back what is left.
func split(data []byte, got func(record) error) ([]byte, error) {
	for len(data) >= headerBytes {
		size := int(binary.NativeEndian.Uint16(data[6:]))
		if size < headerBytes {
			return nil, fmt.Errorf("read the iterator: a record of %d bytes", size)
		}
		if size > len(data) {
			break
		}
		r := record{question: int(binary.NativeEndian.Uint32(data)),
			kind: binary.NativeEndian.Uint16(data[4:]), data: data[:size]}
		if err := got(r); err != nil {
			return nil, err
		}
		data = data[size:]
	}
	return data, nil
}

// maxAnswer bounds the bytes that one run of a program may answer with.
const maxAnswer = 64 << 20

// answers runs an iterator, over the elements of m if that is not nil, and gives all that it wrote.
func answers(p *ebpf.Program, m *ebpf.Map) ([]byte, error) {
	l, err := link.AttachIter(link.IterOptions{Program: p, Map: m})
	if err != nil {
		return nil, fmt.Errorf("attach the iterator %s: %w: %w", p, ErrRefused, err)
	}
	defer l.Close()
	r, err := l.Open()
	if err != nil {
		return nil, fmt.Errorf("open the iterator %s: %w", p, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the iterator %s: %w", p, err)
	}
	if len(data) > maxAnswer {
		return nil, fmt.Errorf("read the iterator %s: more than %d bytes", p, maxAnswer)
	}
	return data, nil
}
