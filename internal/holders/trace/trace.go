// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package trace tells who made a umount fail when nobody is there any more to be found: it watches,
// from before the umount on, who takes and drops references of a mount, and says whose they were at the
// moment when the kernel counted them. It also tells, before anything fails, who looks at mounts again
// and again.
//
// There are four ways to watch, package probe's engines. None works on every kernel, so each is tried
// on a mount of its own first; what it missed there is said with every result.
package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
)

const (
	// Auto is the engine that is not named: the first of Names that works.
	Auto = "auto"
	// openTimeout is how long a mount is waited for when it is opened by its name, which the watch
	// engine needs for a moment.
	openTimeout = 2 * time.Second
	// maxRecent bounds the events that are kept for umounts to come, some 2 KiB each, maxStacks those that
	// have a program's stack, of 16 KiB.
	maxRecent, maxStacks = 8192, 1024
	// maxPending bounds the failed umounts that are waited with, and those that nobody takes.
	maxPending = 1024
)

// ErrEnded: nothing is watched any more, for errors.Is.
var ErrEnded = errors.New("nothing is watched any more")

// Options say what is watched. The zero value watches every umount of the host.
type Options struct {
	Host *linux.Host
	// Mounts are those of this process's namespace that are watched, all if there are none.
	Mounts []linux.Mount
	// Engine is one of package probe's, or Auto, for which the others are tried as well: Others tells what
	// they would see and cost. First, where there are any, goes before it: the first of these that works is
	// taken, and those behind it are not tried.
	Engine string
	First  []string
	// Scan looks who holds a mount, by its number, at the moment when its umount failed. It may be
	// nil; then those who hold it for good are only counted.
	Scan func(ctx context.Context, mountID int) (*holders.Report, error)
	// Stacks names the frames of stacks, nil for none.
	Stacks Stacks
	// Moment is called as soon as a umount failed, with what is known then: no holders yet. One call
	// at a time; a failure that comes meanwhile has a note.
	Moment func(ctx context.Context, f Failure)
	// Ring is the size of the kernel's buffer in bytes, a power of two; 0 is 8 MiB.
	Ring uint32
}

// Trace watches.
type Trace struct {
	o      Options
	engine *probe.Engine
	state  EngineState
	others []EngineState
	clock  clock
	own    uint64 // inode of this process's mount namespace

	events  chan probe.Event
	out     chan Failure
	tell    chan chan []Failure
	look    chan chan error
	done    chan struct{} // the loop has ended
	cancel  context.CancelFunc
	readErr error
	readers chan struct{}

	// Only the loop uses these.
	places  places
	recent  []probe.Event
	heard   int64 // when the latest event was that was taken
	pending []*pending
	ready   []Failure
	cut     atomic.Int64 // events and failures that were dropped here
	moments *moments

	mu       sync.Mutex
	followed error // why a mount that came back is not watched
	closed   bool
	last     Lost
}

// Start tries the engines and begins to watch with the first that works, or the one that is named. It
// takes up to some seconds. The error says of each why it does not work. Only one engine is at work at a
// time, also while they are tried.
func Start(ctx context.Context, o Options) (*Trace, error) {
	t := &Trace{o: o, events: make(chan probe.Event, 64), out: make(chan Failure),
		tell: make(chan chan []Failure), look: make(chan chan error), done: make(chan struct{}), readers: make(chan struct{}),
		places: placesOf(o.Mounts)}
	var err error
	if t.clock, err = newClock(); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/mnt", &st); err == nil {
		t.own = st.Ino
	}
	if err := t.choose(ctx); err != nil {
		return nil, err
	}
	// What is watched goes on after the call that began it: Close ends it.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t.cancel = cancel
	t.moments = newMoments(run, o)
	go t.read(run)
	go t.loop(run)
	return t, nil
}

// Engine says what it is watched with, and what that sees; Others has the others that were tried, in
// their order: those that do not work, and what those would see and cost that do.
func (t *Trace) Engine() EngineState   { return t.state }
func (t *Trace) Others() []EngineState { return t.others }

// choose opens the first engine that passes its trial.
func (t *Trace) choose(ctx context.Context) error {
	names, auto := []string{t.o.Engine}, t.o.Engine == "" || t.o.Engine == Auto
	if len(t.o.First) > 0 {
		names, auto = t.o.First, false
	} else if auto {
		names = Names()
	}
	for _, name := range names {
		s := Try(ctx, name)
		if err := ctx.Err(); err != nil {
			return err
		}
		// One that is at work would be measured with those that are tried after it.
		if !auto && t.use(ctx, &s) {
			return nil
		}
		t.others = append(t.others, s)
	}
	for i := range t.others {
		if auto && t.use(ctx, &t.others[i]) {
			t.others = slices.Delete(t.others, i, i+1)
			return nil
		}
	}
	none := &NoEngineError{}
	for _, s := range t.others {
		none.Reasons = append(none.Reasons, fmt.Errorf("%s: %s", s.Name, s.Reason))
	}
	return none
}

// use begins to watch with an engine that passed its trial. Where it cannot, its state says why.
func (t *Trace) use(ctx context.Context, s *EngineState) bool {
	if !s.Usable {
		return false
	}
	e, err := t.open(ctx, s.Name)
	if err != nil {
		s.Usable, s.Reason = false, err.Error()
		return false
	}
	t.engine, t.state = e, *s
	return true
}

// NoEngineError says of each engine why it does not work here.
type NoEngineError struct{ Reasons []error }

func (e *NoEngineError) Error() string {
	text := "no engine works here"
	for _, r := range e.Reasons {
		text += "; " + r.Error()
	}
	return text
}

// open attaches an engine to the mounts that are asked for.
func (t *Trace) open(ctx context.Context, name string) (*probe.Engine, error) {
	var targets []probe.Target
	for _, m := range t.places.now {
		x, err := target(ctx, name, m.Mount)
		if err != nil {
			return nil, err
		}
		if x.File != nil {
			defer x.File.Close() // it is only open for its number
		}
		targets = append(targets, x)
	}
	return probe.Open(name, targets, t.o.Ring)
}

// target is a mount as an engine wants it.
func target(ctx context.Context, engine string, m linux.Mount) (probe.Target, error) {
	x := probe.Target{ID: m.ID, Dev: m.Dev, Path: m.Point}
	if engine != probe.Watch {
		return x, nil
	}
	var err error
	x.File, err = diskio.Within(ctx, openTimeout, func() (*os.File, error) {
		return pathOnly(m.Point)
	}, func(f *os.File) { f.Close() })
	if err != nil {
		return x, fmt.Errorf("open %s: %w", m.Point, err)
	}
	return x, nil
}

// pathOnly opens a name without opening what it stands for.
func pathOnly(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// read takes the events out of the kernel's buffer, so that it does not run over while the loop
// works.
func (t *Trace) read(ctx context.Context) {
	defer close(t.readers)
	defer close(t.events)
	for {
		e, err := t.engine.Read()
		if err != nil {
			if !errors.Is(err, probe.ErrClosed) {
				t.readErr = err
			}
			return
		}
		select {
		case t.events <- e:
		case <-ctx.Done():
			return
		}
	}
}

// Next waits for a failed umount. It is ErrEnded after Close.
func (t *Trace) Next(ctx context.Context) (Failure, error) {
	select {
	case f, ok := <-t.out:
		if !ok {
			return Failure{}, errors.Join(ErrEnded, t.readErr)
		}
		return f, nil
	case <-ctx.Done():
		return Failure{}, ctx.Err()
	}
}

// Tell waits a moment for those who are just letting go, and gives all failures that Next did not. It
// is for those who are done with their umounts.
func (t *Trace) Tell(ctx context.Context) []Failure {
	timer := time.NewTimer(tellWait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.done:
	case <-ctx.Done():
	}
	answer := make(chan []Failure, 1)
	select {
	case t.tell <- answer:
		return <-answer
	case <-t.done:
		return t.ready
	}
}

// Follow looks at once whether something is mounted again where a mount was unmounted, and watches it
// from then on. By itself that is done every second.
func (t *Trace) Follow(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case t.look <- answer:
		return <-answer
	case <-t.done:
		return ErrEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unwatched says why a mount that came back is not watched, nil if all are.
func (t *Trace) Unwatched() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.followed
}

// Lost says how much was not told of, since the kernel's buffers or our own were full.
func (t *Trace) Lost() (Lost, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return t.last, nil
	}
	c, err := t.engine.Counters()
	l := Lost{Drops: c.Drops + t.cut.Load(), Tables: c.Full, Compat: c.Compat}
	if t.o.Stacks != nil {
		l.Programs = t.o.Stacks.Lost()
	}
	return l, err
}

// Lost is what an engine could not tell of.
type Lost struct {
	// Drops are events that did not fit into the kernel's buffer, Tables what did not fit into its
	// tables, Compat 32-bit system calls that were not looked at. Programs are records of what programs
	// had mapped: the stack of one that is gone may have no names.
	Drops    int64 `json:"drops"`
	Tables   int64 `json:"tables"`
	Compat   int64 `json:"compat"`
	Programs int64 `json:"programs"`
}

// Count is all of it.
func (l Lost) Count() int64 { return l.Drops + l.Tables + l.Compat + l.Programs }

// Close ends the watching. Lost gives what it gave last.
func (t *Trace) Close() error {
	t.cancel()
	<-t.done
	last, err := t.Lost()
	t.mu.Lock()
	t.closed, t.last = true, last
	t.mu.Unlock()
	err = errors.Join(err, t.engine.Close())
	<-t.readers
	t.moments.wait()
	return err
}
