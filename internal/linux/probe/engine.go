// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// event is generated with one object only; a test holds that the others have the same.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type event watch watch.c -- -O2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel window window.c -- -O2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel fentry fentry.c -- -O2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel kprobe kprobe.c -- -O2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel pollers pollers.c -- -O2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel removers removers.c -- -O2 -Wall -Werror

// The engines, by what they see with.
const (
	Fentry  = "fentry"  // trampolines at the kernel's functions
	Kprobe  = "kprobe"  // breakpoints at the same functions
	Watch   = "watch"   // a data watchpoint on the counter of at most MaxWatched mounts
	Syscall = "syscall" // the window of a umount, and the system calls in it
)

// ErrClosed: the engine was closed.
var ErrClosed = errors.New("the engine is closed")

// Target is a mount that an engine is to tell of.
type Target struct {
	ID   int    // of the mount, as in mountinfo
	Dev  uint64 // as in struct stat
	Path string // where it is mounted, absolute; "" if that does not matter
	// File is open on the mount, for the engine that needs the mount's address. It may be closed, and
	// for a umount to succeed must be, as soon as the engine is open.
	File *os.File
}

// Engine tells who refers to mounts when they are unmounted. One task may read events while another
// closes it.
type Engine struct {
	name string
	ring *ringbuf.Reader
	lost *ebpf.Map
	mode *ebpf.Map
	// follow puts a mount in the place of another.
	follow func(place int, t Target) error
	// underWay reads how many umounts the engine believes to be under way.
	underWay func() (int64, error)
	shut     []io.Closer
}

// Counters is what an engine says of itself.
type Counters struct {
	// Drops are events that did not fit into the ring buffer, Full what did not fit into a table,
	// Compat 32-bit system calls that were not looked at.
	Drops, Full, Compat int64
	// Seen is how many changes of references the engine looked at, UnderWay how many umounts have
	// begun and not ended.
	Seen, UnderWay int64
}

// Open loads one engine and attaches it. Without targets it tells of every umount of the host, which
// the watch engine cannot. An error matches ErrRefused where the kernel does not have what the engine
// needs.
func Open(name string, targets []Target, ringBytes uint32) (*Engine, error) {
	e := &Engine{name: name}
	var err error
	switch name {
	case Fentry:
		err = e.openFentry(targets, ringBytes)
	case Kprobe:
		err = e.openKprobe(targets, ringBytes)
	case Watch:
		err = e.openWatch(targets, ringBytes)
	case Syscall:
		err = e.openWindow(targets, ringBytes)
	default:
		err = fmt.Errorf("%q is no engine", name)
	}
	if err != nil {
		e.Close()
		return nil, fmt.Errorf("engine %s: %w", name, err)
	}
	return e, nil
}

// Follow tells of another mount from now on in place of one of the targets, which was unmounted. Its
// file is as in Open.
func (e *Engine) Follow(place int, t Target) error {
	if err := e.follow(place, t); err != nil {
		return fmt.Errorf("engine %s: follow mount %d: %w", e.name, t.ID, err)
	}
	return nil
}

// Name is the engine's own.
func (e *Engine) Name() string { return e.name }

// Read waits for an event. After Close it returns ErrClosed.
func (e *Engine) Read() (Event, error) {
	r, err := e.ring.Read()
	if errors.Is(err, ringbuf.ErrClosed) {
		return Event{}, ErrClosed
	}
	if err != nil {
		return Event{}, fmt.Errorf("engine %s: read the ring buffer: %w", e.name, err)
	}
	return decode(r.RawSample)
}

// Pending is how many bytes of events wait to be read.
func (e *Engine) Pending() int { return e.ring.AvailableBytes() }

// Counters reads what the engine lost so far, and what it saw.
func (e *Engine) Counters() (Counters, error) {
	c, err := countersOf(e.lost)
	if err == nil {
		c.UnderWay, err = e.underWay()
	}
	if err != nil {
		err = fmt.Errorf("engine %s: %w", e.name, err)
	}
	return c, err
}

func countersOf(lost *ebpf.Map) (c Counters, err error) {
	for i, to := range []*int64{&c.Drops, &c.Full, &c.Compat, &c.Seen} {
		var each []uint64
		if err := lost.Lookup(uint32(i), &each); err != nil {
			return c, fmt.Errorf("read the counters: %w", err)
		}
		for _, n := range each {
			*to += int64(n)
		}
	}
	return c, nil
}

// Close takes the engine off the kernel. A Read that waits returns.
func (e *Engine) Close() error {
	var errs []error
	for _, c := range e.shut {
		errs = append(errs, c.Close())
	}
	e.shut = nil
	return errors.Join(errs...)
}

// TellAll makes the engine tell of every reference that is dropped, not only of those that a umount
// may have met. It is for trying the engine.
func (e *Engine) TellAll(all bool) error {
	v := uint32(0)
	if all {
		v = 1
	}
	return e.mode.Put(uint32(0), v)
}

// start opens the ring buffer.
func (e *Engine) start(events, lost, mode *ebpf.Map) error {
	r, err := ringbuf.NewReader(events)
	if err != nil {
		return fmt.Errorf("open the ring buffer: %w", err)
	}
	e.ring, e.lost, e.mode = r, lost, mode
	e.shut = append([]io.Closer{r}, e.shut...)
	return nil
}

// resize sets how much the ring buffer holds, a power of two of pages; 0 leaves it as it is.
func resize(spec *ebpf.CollectionSpec, ringBytes uint32) {
	if ringBytes > 0 {
		spec.Maps["events"].MaxEntries = ringBytes
	}
}

// fill notes the classes of system calls.
func fill(classes *ebpf.Map) error {
	for _, c := range calls() {
		if c.nr >= maxCalls || c.class == 0 {
			continue
		}
		if err := classes.Put(uint32(c.nr), c.class); err != nil {
			return fmt.Errorf("note what %s does: %w", c.name, err)
		}
	}
	return nil
}
