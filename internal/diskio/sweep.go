// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLeftOut: after too many names that did not answer, no further ones are tried.
var ErrLeftOut = fmt.Errorf("left out: %d names did not answer before", maxMute)

// Sweep reads the beginning of every regular file below some directories, a hundred thousand of them
// in seconds: many at once, and with no more than it takes to open, look, read and close. What hangs
// holds one worker, which is given up and replaced, as in a Walker.
type Sweep struct {
	// HeadBytes is how much of each file is read.
	HeadBytes int
	// Workers is how many directories are read at once.
	Workers int
	// Timeout is how long one name is waited for. What lies in its directory behind it is then not
	// looked at.
	Timeout time.Duration
	// Enter tells whether a directory is looked into; nil enters all.
	Enter func(path string) bool
	// File is told of each regular file, by several goroutines at once. worker is below Slots and
	// tells them apart.
	File func(worker int, f *Swept)
	// Other is told of all else, by one goroutine at a time. path is the name, err set for WalkBlind.
	Other func(kind WalkKind, path string, err error)

	// opening, in tests, is told of each file before it is opened.
	opening func(path string)
}

// Swept is a file that a sweep met.
type Swept struct {
	// Dir is its directory, without symbolic links.
	Dir, Name string
	Stat      Stat
	// Head is good until the function returns.
	Head []byte
}

// Path is its name.
func (f *Swept) Path() string { return f.Dir + "/" + f.Name }

// Slots is how many workers there may be, those included that replace others.
func (s *Sweep) Slots() int { return s.Workers + maxMute }

// Run sweeps through directories, which may be symbolic links; those below them are told and not
// followed. A directory that was visited before is left out. What cannot be read is told as
// WalkBlind; the error is that of ctx.
func (s *Sweep) Run(ctx context.Context, dirs []string) error {
	r := &sweep{Sweep: s, seen: map[ID]bool{}, timeout: s.Timeout}
	r.more = sync.NewCond(&r.mu)
	for _, dir := range dirs {
		real, err := Within(ctx, s.Timeout, func() (string, error) { return RealPath(dir) }, nil)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.blind(dir, err)
			continue
		}
		r.queue = append(r.queue, sweepDir{path: real, dev: ^uint64(0)})
	}
	r.open = len(r.queue)
	for range s.Workers {
		r.start()
	}
	return r.watch(ctx)
}

// sweepDir is a directory that is yet to be read. dev is the device of the one that it was met in.
type sweepDir struct {
	path  string
	dev   uint64
	depth int
}

// sweep is a sweep under way.
type sweep struct {
	*Sweep
	timeout time.Duration

	mu    sync.Mutex
	more  *sync.Cond // something changed in what follows
	queue []sweepDir
	open  int // directories that were met and not read to the end
	ended bool
	seen  map[ID]bool
	alive int

	told    sync.Mutex // Other is called
	workers []*sweeper // only by watch and Run
	mute    int
}

// sweeper is one worker.
type sweeper struct {
	r    *sweep
	slot int
	buf  []byte
	// at is the name that it is at, and since when; nil while it waits for work.
	at atomic.Pointer[sweepAt]
	// gone: it was given up. It is set, and things are told, under mu.
	mu   sync.Mutex
	gone bool
}

type sweepAt struct {
	path  string
	since time.Time
}

func (r *sweep) start() {
	w := &sweeper{r: r, slot: len(r.workers), buf: make([]byte, r.HeadBytes)}
	r.workers = append(r.workers, w)
	r.mu.Lock()
	r.alive++
	r.mu.Unlock()
	go w.work()
}

// watch waits for the end, and gives up who hangs.
func (r *sweep) watch(ctx context.Context) error {
	stop := context.AfterFunc(ctx, r.end)
	defer stop()
	ticker := time.NewTicker(max(r.timeout/4, time.Millisecond))
	defer ticker.Stop()
	over := make(chan struct{})
	go func() {
		r.mu.Lock()
		for r.alive > 0 {
			r.more.Wait()
		}
		r.mu.Unlock()
		close(over)
	}()
	for {
		select {
		case <-over:
			return ctx.Err()
		case <-ticker.C:
			for _, w := range r.workers {
				r.giveUp(w)
			}
		}
	}
}

// giveUp gives a worker up that waits too long for a name.
func (r *sweep) giveUp(w *sweeper) {
	at := w.at.Load()
	if at == nil || time.Since(at.since) < r.timeout || !w.mu.TryLock() {
		return
	}
	dead := !w.gone && w.at.Load() == at
	w.gone = w.gone || dead
	w.mu.Unlock()
	if !dead {
		return
	}
	r.blind(at.path, ErrTimeout)
	r.mute++
	if r.mute < maxMute {
		r.start()
	} else {
		r.mu.Lock()
		rest := r.queue
		r.queue, r.open = nil, r.open-len(r.queue)
		r.mu.Unlock()
		for _, d := range rest {
			r.blind(d.path, ErrLeftOut)
		}
	}
	r.mu.Lock()
	r.open--
	r.alive--
	r.more.Broadcast()
	r.mu.Unlock()
}

// end lets all workers end.
func (r *sweep) end() {
	r.mu.Lock()
	r.ended = true
	r.more.Broadcast()
	r.mu.Unlock()
}

func (r *sweep) blind(path string, err error) {
	var of *fs.PathError
	if errors.As(err, &of) {
		err = of.Err
	}
	r.tell(WalkBlind, path, &fs.PathError{Op: "read", Path: path, Err: err})
}

func (r *sweep) tell(kind WalkKind, path string, err error) {
	r.told.Lock()
	defer r.told.Unlock()
	r.Other(kind, path, err)
}

// next gives the next directory, or says that there is none and never will be.
func (r *sweep) next() (d sweepDir, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) == 0 && r.open > 0 && !r.ended {
		r.more.Wait()
	}
	if r.ended || len(r.queue) == 0 {
		return d, false
	}
	d = r.queue[len(r.queue)-1]
	r.queue = r.queue[:len(r.queue)-1]
	return d, true
}

func (w *sweeper) work() {
	for {
		d, ok := w.r.next()
		if !ok {
			break
		}
		if !w.directory(d) {
			return // it was given up, and is not counted any more
		}
		w.at.Store(nil)
		w.r.mu.Lock()
		w.r.open--
		if w.r.open == 0 {
			w.r.more.Broadcast()
		}
		w.r.mu.Unlock()
	}
	w.r.mu.Lock()
	w.r.alive--
	w.r.more.Broadcast()
	w.r.mu.Unlock()
}

// live runs fn, which tells of something, unless the worker was given up.
func (w *sweeper) live(fn func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return false
	}
	fn()
	return true
}

func (w *sweeper) blind(path string, err error) bool {
	return w.live(func() { w.r.blind(path, err) })
}

// looking notes what the worker is at.
func (w *sweeper) looking(path string) { w.at.Store(&sweepAt{path, time.Now()}) }

// directory reads one directory; it is false where the worker was given up.
func (w *sweeper) directory(d sweepDir) bool {
	w.looking(d.path)
	if d.depth > maxWalkDepth {
		return w.blind(d.path, ErrTooDeep)
	}
	fd, err := openUnlinked(unix.AT_FDCWD, d.path,
		unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	if err != nil {
		return w.blind(d.path, err)
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return w.blind(d.path, err)
	}
	id := ID{st.Dev, st.Ino}
	w.r.mu.Lock()
	again := w.r.seen[id]
	w.r.seen[id] = true
	w.r.mu.Unlock()
	if again {
		return w.live(func() {})
	}
	auto := false
	if id.Dev != d.dev {
		var sfs unix.Statfs_t
		if err := unix.Fstatfs(fd, &sfs); err != nil {
			return w.blind(d.path, err)
		}
		if isPseudo(sfs.Type) {
			return w.live(func() { w.r.tell(WalkPseudo, d.path, nil) })
		}
		auto = sfs.Type == unix.AUTOFS_SUPER_MAGIC
	}
	return w.names(f, sweepDir{d.path, id.Dev, d.depth}, auto)
}

// names goes through an open directory.
func (w *sweeper) names(f *os.File, d sweepDir, auto bool) bool {
	for {
		entries, err := f.ReadDir(walkBatch)
		for _, e := range entries {
			if !w.name(int(f.Fd()), d, e, auto) {
				return false
			}
		}
		switch {
		case err != nil && len(entries) == 0 && errors.Is(err, io.EOF):
			return w.live(func() {})
		case err != nil:
			return w.blind(d.path, err)
		}
		w.looking(d.path)
	}
}

// name looks at one entry of a directory.
func (w *sweeper) name(dir int, d sweepDir, e fs.DirEntry, auto bool) bool {
	kind := e.Type()
	if kind == 0 {
		return w.file(dir, d.path, e.Name())
	}
	path := d.path + "/" + e.Name()
	switch {
	case kind.IsDir() && auto:
		return w.blind(path, ErrAutomount)
	case kind.IsDir():
		if w.r.Enter != nil && !w.r.Enter(path) {
			return true
		}
		return w.live(func() {
			w.r.mu.Lock()
			w.r.queue = append(w.r.queue, sweepDir{path, d.dev, d.depth + 1})
			w.r.open++
			w.r.more.Signal()
			w.r.mu.Unlock()
		})
	case kind&fs.ModeSymlink != 0:
		return w.live(func() { w.r.tell(WalkSymlink, path, nil) })
	}
	return w.live(func() { w.r.tell(WalkSpecial, path, nil) })
}

// file reads the beginning of a file.
func (w *sweeper) file(dir int, dirPath, name string) bool {
	s := Swept{Dir: dirPath, Name: name}
	w.looking(s.Path())
	if w.r.opening != nil {
		w.r.opening(s.Path())
	}
	fd, err := openQuietly(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY)
	if errors.Is(err, unix.ENOENT) {
		return w.live(func() {}) // removed since the directory was read
	}
	if err != nil {
		return w.blind(s.Path(), err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return w.blind(s.Path(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return w.blind(s.Path(), ErrChanged)
	}
	s.Stat = statOf(&st)
	n := 0
	for n < len(w.buf) && int64(n) < s.Stat.SizeBytes {
		k, err := unix.Pread(fd, w.buf[n:], int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return w.blind(s.Path(), err)
		}
		if k == 0 {
			break
		}
		n += k
	}
	s.Head = w.buf[:n]
	return w.live(func() { w.r.File(w.slot, &s) })
}
