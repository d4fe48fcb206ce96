// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"slices"
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
	// Learn, if set, leaves out what an earlier sweep saw and is as it was then.
	Learn *Learning

	// In tests opening is told of each file before it is opened, asking of each name that is known before it is asked for.
	opening, asking func(path string)
}

// Swept is a file that a sweep met. It is good until the function that is told of it returns.
type Swept struct {
	// Dir is its directory, without symbolic links, and In which one that is: a directory may be mounted at several places,
	// and is met at one of them.
	Dir, Name string
	In        ID
	Stat      Stat
	// Born is when it was made, zero where its file system does not keep that.
	Born time.Time
	// Head is the beginning of the file.
	Head []byte
	// Known: the file is as it was when it was read, and is not read again: Head is nil, and Tag what was made of it
	// then.
	Known bool
	// Tag and Keep are set by the function that is told of it: with Keep, Tag is remembered for the next sweep. What is
	// remembered of a file that is Known stays as it is.
	Tag  uint32
	Keep bool

	path string // "" for one that is yet to be put together
}

// Path is its name. Dir and Name may be parts of it, so that who keeps it keeps no more.
func (f *Swept) Path() string {
	if f.path == "" {
		f.path = f.Dir + "/" + f.Name
		f.Dir, f.Name = f.path[:len(f.Dir)], f.path[len(f.Dir)+1:]
	}
	return f.path
}

// Slots is how many workers there may be, those included that replace others.
func (s *Sweep) Slots() int { return s.Workers + maxMute }

// Run sweeps through directories, which may be symbolic links; those below them are told and not
// followed. A directory that was visited before is left out. What cannot be read is told as
// WalkBlind; the error is that of ctx.
func (s *Sweep) Run(ctx context.Context, dirs []string) error {
	r := &sweep{Sweep: s, seen: map[ID]bool{}, timeout: s.Timeout, trust: map[uint64]trust{}, hash: maphash.MakeSeed(),
		hung: hungOf(ctx)}
	r.hangs = r.hung.swept()
	if s.Learn != nil && s.Learn.Known != nil {
		n := len(s.Learn.Known.dirs)
		r.visited = make([]bool, n)
		r.slots.Store(int32(n))
	}
	r.more = sync.NewCond(&r.mu)
	r.users.Add(1)
	defer r.leave()
	for _, dir := range dirs {
		real, err := WithinAt(ctx, dir, s.Timeout, func() (string, error) { return RealPath(dir) }, nil)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.blind(dir, err)
			continue
		}
		d := sweepDir{path: real, dev: ^uint64(0), slot: r.slot(), known: -1}
		if err := r.openRoot(ctx, &d); err != nil {
			return err
		}
		r.queue = append(r.queue, d)
	}
	roots := slices.Clone(r.queue)
	r.open = len(r.queue)
	for range s.Workers {
		r.start()
	}
	err := r.watch(ctx)
	if err == nil {
		r.answers()
	}
	if err == nil && s.Learn != nil {
		r.learned(roots)
	}
	return err
}

// sweepDir is a directory that is yet to be read. dev is the device of the one that it was met in.
type sweepDir struct {
	path  string
	dev   uint64
	depth int
	// slot is its number in the sweep, known what Learn.Known has of it, below root; -1 and nil for nothing. Where
	// something is known, the two are the same.
	slot, known int32
	root        *sweepRoot
	// run, if there is any, are directories in it of which something is known: they are to be looked at, and not it.
	run []memorySub
}

// sweep is a sweep under way.
type sweep struct {
	*Sweep
	timeout time.Duration
	// hung are looks of earlier sweeps that did not come back, hangs their paths.
	hung  *hung
	hangs map[string]bool

	hash maphash.Seed // of pass

	mu    sync.Mutex
	more  *sync.Cond // something changed in what follows
	queue []sweepDir
	open  int // directories that were met and not read to the end
	ended bool
	seen  map[ID]bool
	alive int
	anew  map[string]bool // those of hangs that are looked at once more

	told    sync.Mutex // Other is called
	workers []*sweeper // only by watch and Run
	mute    int

	// What follows is for Learn. slots is how many directories have a number; roots are closed by the last of the
	// users; fresh: something was read.
	slots atomic.Int32
	users atomic.Int32
	fresh atomic.Bool
	roots []*sweepRoot
	// Under mu: trust is by device; visited tells of the directories that are known by their numbers, which numbers
	// gives, once somebody needs them.
	trust   map[uint64]trust
	visited []bool
	numbers map[ID]int32
}

// slot gives a directory its number.
func (r *sweep) slot() int32 { return r.slots.Add(1) - 1 }

// sweeper is one worker.
type sweeper struct {
	r    *sweep
	slot int
	head []byte
	// names is what the kernel told of a directory, dirs are those among them.
	names []byte
	dirs  []sweepDir
	swept Swept
	in    ID     // the directory that is read
	ino   uint64 // of the name that it is at
	pass  pass
	// What follows is for Learn. kept is what it keeps, runs is what it hands on, same what it found to be as it was.
	kept learning
	runs []memorySub
	same unchanged

	mu sync.Mutex
	// at is the name that it is at, in the directory dir, and turn how many it was at before; idle while it waits
	// for work. Each name takes no more than this: most take some microseconds.
	dir, at string
	turn    uint64
	idle    bool
	// run is what it is at instead, if there is any of it, and there the entry and file with these numbers, which may
	// be -1.
	run             sweepDir
	runSub, runFile int
	// gone: it was given up at the path stuck, from which it is back or not. It is set, and things are told, under mu.
	gone  bool
	stuck string
	back  bool // under hung.mu

	// seen is the turn that the watch met it at, since when, and how often it did again. Only the watch has these.
	seen  uint64
	since time.Time
	stood int
}

// dirFlags open a directory, and nothing else.
const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOFOLLOW

// dirBytes is how much of a directory is read at once, some hundred names.
const dirBytes = 32 << 10

func (r *sweep) start() {
	w := &sweeper{r: r, slot: len(r.workers), head: make([]byte, r.HeadBytes), names: make([]byte, dirBytes), idle: true}
	r.workers = append(r.workers, w)
	r.mu.Lock()
	r.alive++
	r.mu.Unlock()
	r.users.Add(1)
	go w.work()
}

// watch waits for the end, and gives up who hangs.
func (r *sweep) watch(ctx context.Context) error {
	stop := context.AfterFunc(ctx, r.end)
	defer stop()
	ticker := time.NewTicker(max(r.timeout/parts, time.Millisecond))
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

// giveUp gives a worker up that waits too long for a name. How long that is, is counted in parts, as Within does.
func (r *sweep) giveUp(w *sweeper) {
	if !w.mu.TryLock() {
		return // it tells of something
	}
	if w.stood++; w.idle || w.turn != w.seen {
		w.seen, w.since, w.stood = w.turn, time.Now(), 0
	}
	dead := !w.gone && !w.idle && w.stood >= parts
	w.gone = w.gone || dead
	path := ""
	var rest []sweepDir
	if dead {
		path, rest = w.where(), w.untold()
		w.stuck = path
		r.hung.gaveUp(lookFor[Swept]{path}, w.since, &w.back)
	}
	w.mu.Unlock()
	if !dead {
		return
	}
	r.blind(path, ErrTimeout)
	r.mu.Lock()
	delete(r.anew, path)
	r.queue, r.open = append(r.queue, rest...), r.open+len(rest)
	r.more.Broadcast()
	r.mu.Unlock()
	r.mute++
	if r.mute < maxMute {
		r.start()
	} else {
		r.mu.Lock()
		rest := r.queue
		r.queue, r.open = nil, r.open-len(r.queue)
		r.mu.Unlock()
		for _, d := range rest {
			r.leftOut(d)
		}
	}
	r.mu.Lock()
	r.open--
	r.alive--
	r.more.Broadcast()
	r.mu.Unlock()
}

// leftOut tells of directories that nobody looks at any more.
func (r *sweep) leftOut(d sweepDir) {
	if len(d.run) == 0 {
		r.blind(d.path, ErrLeftOut)
	}
	for i := range d.run {
		r.blind(d.path+"/"+r.Learn.Known.sub(&d.run[i]), ErrLeftOut)
	}
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
	last := &r.queue[len(r.queue)-1]
	d = *last
	if len(d.run) > runLen {
		d.run, last.run = d.run[:runLen], d.run[runLen:]
		r.open++
		return d, true
	}
	r.queue = r.queue[:len(r.queue)-1]
	return d, true
}

func (w *sweeper) work() {
	defer w.r.leave()
	for {
		d, ok := w.r.next()
		if !ok {
			break
		}
		if !w.directory(d) || !w.waits() {
			w.r.hung.answered(lookFor[Swept]{w.stuck}, &w.back)
			return // it was given up, and is not counted any more
		}
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
	return w.live(func() {
		w.kept.bad = true // what could not be read is never remembered
		w.r.blind(path, err)
	})
}

// looking notes what the worker is at: a name in a directory, or that itself.
func (w *sweeper) looking(dir, name string) {
	w.mu.Lock()
	w.dir, w.at, w.idle, w.run.run = dir, name, false, nil
	w.turn++
	w.mu.Unlock()
}

// waits notes that it has nothing to do. It is false where the worker was given up when all was told.
func (w *sweeper) waits() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle, w.run.run = true, nil
	return !w.gone
}

// where is the name that it is at; its caller has mu.
func (w *sweeper) where() string {
	if len(w.run.run) > 0 {
		return w.whereInRun()
	}
	if w.at == "" {
		return w.dir
	}
	return w.dir + "/" + w.at
}

// directory reads one directory; it is false where the worker was given up.
func (w *sweeper) directory(d sweepDir) bool {
	if len(d.run) > 0 {
		return w.through(d)
	}
	w.looking(d.path, "")
	if d.depth > maxWalkDepth {
		return w.blind(d.path, ErrTooDeep)
	}
	if err := w.r.hanging(d.path); err != nil {
		return w.blind(d.path, err)
	}
	if w.r.Learn != nil {
		w.kept.begin()
		if d.known >= 0 {
			if done, alive := w.asKnown(d); done || !alive {
				return alive
			}
		}
	}
	fd, err := openUnlinked(unix.AT_FDCWD, d.path, dirFlags)
	if err != nil {
		return w.blind(d.path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return w.blind(d.path, err)
	}
	id := ID{st.Dev, st.Ino}
	if w.r.again(id, -1) {
		return w.live(func() { w.kept.others = append(w.kept.others, otherName{d.slot, id}) })
	}
	w.in = id
	w.pass.begin(st.Ctim.Nano())
	w.r.fresh.Store(true)
	if w.r.Learn != nil {
		w.kept.is(id, st.Ctim.Nano())
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
		w.r.trusts(id.Dev, sfs.Type, d.path)
	}
	d.dev = id.Dev
	return w.all(fd, d, auto)
}

// again tells whether a directory was visited before, and notes that it is. known is its number in Learn.Known, -1 for
// one that was read anew.
func (r *sweep) again(id ID, known int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known < 0 {
		known = r.number(id)
	}
	if known >= 0 {
		was := r.visited[known]
		r.visited[known] = true
		return was
	}
	was := r.seen[id]
	r.seen[id] = true
	return was
}

// all goes through an open directory. What the kernel tells of it is taken as it comes: for a hundred thousand
// directories of one file each, an os.File takes as long as all the rest.
func (w *sweeper) all(dir int, d sweepDir, auto bool) bool {
	for {
		n, err := unix.ReadDirent(dir, w.names)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return w.blind(d.path, err)
		case n == 0:
			more, err := w.reread(dir)
			if err != nil {
				return w.blind(d.path, err)
			}
			if more {
				continue
			}
			return w.live(func() { w.kept.end(d.slot) })
		}
		w.pass.calls++
		// Directories first: a file that hangs must not keep them from being looked into.
		for _, directories := range []bool{true, false} {
			ok, err := w.batch(dir, d, w.names[:n], auto, directories)
			if !ok {
				return false
			}
			if err != nil {
				return w.blind(d.path, err)
			}
		}
		w.looking(d.path, "")
	}
}

// The form in which the kernel tells of the names in a directory (getdents64(2)); the numbers have the byte order of
// the machine:
//
//	0  inode     8  position     16  length of the entry     18  type     19  name, with a zero at its end
const (
	direntLen, direntType, direntName = 16, 18, 19
)

// errDirent: the kernel, or who stands for it, told of a directory in a form that cannot be.
var errDirent = errors.New("its entries are not in the form of getdents64(2)")

// batch looks at what one call told of a directory: at its directories, or at all else.
func (w *sweeper) batch(dir int, d sweepDir, b []byte, auto, directories bool) (ok bool, err error) {
	w.dirs, w.runs = w.dirs[:0], nil
	for len(b) > 0 {
		if len(b) <= direntName {
			return true, errDirent
		}
		n := int(binary.NativeEndian.Uint16(b[direntLen:]))
		if n <= direntName || n > len(b) {
			return true, errDirent
		}
		name, _, _ := bytes.Cut(b[direntName:n], []byte{0})
		kind := b[direntType]
		w.ino = binary.NativeEndian.Uint64(b)
		b = b[n:]
		if (kind == unix.DT_DIR) != directories || string(name) == "." || string(name) == ".." {
			continue
		}
		if w.met(d.dev, name, kind) {
			continue
		}
		if !w.name(dir, d, name, kind, auto) {
			return false, nil
		}
	}
	if len(w.runs) > 0 {
		d.run, w.runs = w.runs, nil
		w.dirs = append(w.dirs, d)
	}
	return len(w.dirs) == 0 || w.live(w.queue), nil
}

// queue hands the directories that were met on.
func (w *sweeper) queue() {
	w.r.mu.Lock()
	w.r.queue = append(w.r.queue, w.dirs...)
	w.r.open += len(w.dirs)
	w.r.more.Broadcast()
	w.r.mu.Unlock()
}

// name looks at one entry of a directory.
func (w *sweeper) name(dir int, d sweepDir, name []byte, kind byte, auto bool) bool {
	if kind == unix.DT_UNKNOWN {
		var gone bool
		var err error
		if kind, gone, err = w.kindOf(dir, d.path, string(name)); gone {
			return w.moved(dir, d.path, string(name))
		} else if err != nil {
			return w.blind(d.path+"/"+string(name), err)
		}
	}
	if kind != unix.DT_REG {
		return w.newEntry(d, string(name), kind, auto)
	}
	if done, alive := w.sameFile(dir, d.path, string(name)); done {
		return alive
	}
	return w.file(dir, d.path, string(name))
}

// newEntry goes on with an entry of the directory d, which is read anew. A directory of which something is known is
// left for a run.
func (w *sweeper) newEntry(d sweepDir, name string, kind byte, auto bool) bool {
	slot, alive := int32(-1), true
	if was := w.kept.knownSub(w.r, name); was != nil && kind == unix.DT_DIR && !auto {
		slot = was.dir
		w.runs = append(w.runs, *was)
	} else {
		slot, alive = w.entry(d, name, kind, auto)
	}
	if w.r.Learn != nil {
		w.kept.addSub(name, kind, slot)
	}
	return alive
}

// entry goes on with an entry of the directory d that is no regular file, and of which nothing is known. It gives the
// number that a directory has from now on, -1 for what is none.
func (w *sweeper) entry(d sweepDir, name string, kind byte, auto bool) (slot int32, alive bool) {
	path := d.path + "/" + name
	switch {
	case kind == unix.DT_DIR && auto:
		return -1, w.blind(path, ErrAutomount)
	case kind == unix.DT_DIR && w.r.Enter != nil && !w.r.Enter(path):
		return -1, true
	case kind == unix.DT_DIR:
		d.path, d.depth, d.slot, d.known, d.run = path, d.depth+1, w.r.slot(), -1, nil
		w.dirs = append(w.dirs, d)
		return d.slot, true
	case kind == unix.DT_LNK:
		return -1, w.live(func() { w.r.tell(WalkSymlink, path, nil) })
	}
	return -1, w.live(func() { w.r.tell(WalkSpecial, path, nil) })
}

// kindOf asks for what some file systems do not tell with the names. gone: it was removed since.
func (w *sweeper) kindOf(dir int, dirPath, name string) (kind byte, gone bool, err error) {
	if len(w.r.hangs) > 0 {
		if err := w.r.hanging(dirPath + "/" + name); err != nil {
			return 0, false, err
		}
	}
	w.looking(dirPath, name)
	var st unix.Stat_t
	err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, true, nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		kind = unix.DT_REG
	case unix.S_IFDIR:
		kind = unix.DT_DIR
	case unix.S_IFLNK:
		kind = unix.DT_LNK
	default:
		kind = unix.DT_CHR // whichever: it is not opened
	}
	return kind, false, err
}

// file reads the beginning of a file.
func (w *sweeper) file(dir int, dirPath, name string) bool {
	s := &w.swept
	*s = Swept{Dir: dirPath, Name: name, In: w.in}
	w.r.fresh.Store(true)
	if len(w.r.hangs) > 0 {
		if err := w.r.hanging(s.Path()); err != nil {
			return w.blind(s.Path(), err)
		}
	}
	w.looking(dirPath, name)
	if w.r.opening != nil {
		w.r.opening(s.Path())
	}
	fd, err := openQuietly(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY)
	if errors.Is(err, unix.ENOENT) {
		return w.moved(dir, dirPath, name)
	}
	if err != nil {
		return w.blind(s.Path(), err)
	}
	defer unix.Close(fd)
	if s.Stat, s.Born, err = statRegular(fd); err != nil {
		return w.blind(s.Path(), err)
	}
	n := 0
	for n < len(w.head) && int64(n) < s.Stat.SizeBytes {
		k, err := unix.Pread(fd, w.head[n:], int64(n))
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
	s.Head = w.head[:n]
	return w.live(func() {
		w.r.File(w.slot, s)
		if w.r.Learn != nil {
			w.kept.addFile(s)
		}
	})
}

// statRegular looks at an open file; one that is no regular file is ErrChanged.
func statRegular(fd int) (Stat, time.Time, error) {
	var x unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		// The kernel is older than 4.11, or a filter of system calls knows none that young.
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return Stat{}, time.Time{}, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return Stat{}, time.Time{}, ErrChanged
		}
		return statOf(&st), time.Time{}, nil
	}
	if err != nil {
		return Stat{}, time.Time{}, err
	}
	if x.Mode&unix.S_IFMT != unix.S_IFREG {
		return Stat{}, time.Time{}, ErrChanged
	}
	st, born := statOfX(&x)
	return st, born, nil
}

// statOfX gives what statx(2) told, and when the file was made, zero where that is not kept.
func statOfX(x *unix.Statx_t) (Stat, time.Time) {
	at := func(t unix.StatxTimestamp) time.Time { return timeOf(t.Sec, int64(t.Nsec)) }
	st := Stat{ID: ID{unix.Mkdev(x.Dev_major, x.Dev_minor), x.Ino}, SizeBytes: int64(x.Size), AllocatedBytes: int64(x.Blocks) * 512,
		ModTime: at(x.Mtime), ChangeTime: at(x.Ctime)}
	if x.Mask&unix.STATX_BTIME == 0 || x.Btime.Sec <= 0 {
		return st, time.Time{}
	}
	return st, at(x.Btime)
}
