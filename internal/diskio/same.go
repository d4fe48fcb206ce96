// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is here is how a sweep goes through what Learn.Known has. Most of a large pool are directories of a few files and
// of nothing else that are as they were. Those are looked at in runs: a worker takes many at once, tells of all of them
// together, and allocates nothing but their names. Whatever turns out to be otherwise is left to asKnown, and what that
// does not know to be as it was is read anew.

// runLen is how many directories a worker takes at once. While it has them, a name of theirs that does not answer keeps
// it from telling of the others; those are then looked at again.
const runLen = 64

// runFiles is how many files a directory in a run may have: their paths are all put together before.
const runFiles = 16

// unchanged is what a worker found in a run to be as it was.
type unchanged struct {
	paths []byte // of all in the run; see through
	dirs  []int32
	files []Swept
	// in is for each of files the place of its directory in dirs.
	in []int32
	// x is what the kernel told last, name what it was asked for.
	x    unix.Statx_t
	name []byte
}

// through looks at a run of directories. It tells of them at its end, so that a run in which a name does not answer can
// be taken up by another worker. It is false where this one was given up.
func (w *sweeper) through(d sweepDir) bool {
	known, u := w.r.Learn.Known, &w.same
	w.dirs, u.dirs, u.files, u.in, u.paths = w.dirs[:0], u.dirs[:0], u.files[:0], u.in[:0], u.paths[:0]
	w.mu.Lock()
	w.run, w.runSub, w.runFile, w.idle = d, 0, -1, false
	w.turn++
	w.mu.Unlock()
	for i := range d.run {
		u.paths = known.pathsOf(u.paths, d.path, &d.run[i])
	}
	paths := string(u.paths)
	for i := range d.run {
		s := &d.run[i]
		if s.dir < 0 || s.kind != unix.DT_DIR {
			continue // who made the run has told of it
		}
		path := paths[:len(d.path)+1+int(s.size)]
		hung := w.r.hangs[path] // it is left to directory
		if !hung && !w.inRun(i, -1) {
			return false
		}
		if w.r.Enter == nil || w.r.Enter(path) {
			if hung || !w.quick(&d, i, paths) {
				of := d
				of.path, of.depth, of.slot, of.known, of.run = path, d.depth+1, s.dir, s.dir, nil
				w.dirs = append(w.dirs, of)
			}
		}
		paths = paths[known.pathsLen(d.path, s):]
	}
	return w.live(w.tellRun)
}

// fewFiles gives the files of a directory that has few, and nothing else.
func (m *Memory) fewFiles(dir int32) (files []memoryFile, ok bool) {
	d := &m.dirs[dir]
	if d.subs > 0 || d.files > runFiles {
		return nil, false
	}
	return m.filesOf(d), true
}

// pathsOf writes the path of a directory in dir and those of its few files behind b, each with a zero behind it.
func (m *Memory) pathsOf(b []byte, dir string, s *memorySub) []byte {
	if s.dir < 0 || s.kind != unix.DT_DIR {
		return b
	}
	from := len(b)
	b = append(append(append(b, dir...), '/'), m.text[s.text:s.text+uint32(s.size)]...)
	to := len(b)
	b = append(b, 0)
	files, _ := m.fewFiles(s.dir)
	for i := range files {
		f := &files[i]
		b = append(append(b, b[from:to]...), '/')
		b = append(append(b, m.text[f.text:f.text+uint32(f.name)]...), 0)
	}
	return b
}

// pathsLen is how many bytes pathsOf writes.
func (m *Memory) pathsLen(dir string, s *memorySub) int {
	own := len(dir) + 1 + int(s.size)
	n := own + 1
	files, _ := m.fewFiles(s.dir)
	for i := range files {
		n += own + 1 + int(files[i].name) + 1
	}
	return n
}

// quick looks at the directory with the number i in a run, and at all that is in it. It is false if that is not as it
// was, or may not be, or is more than a few files. paths are what pathsOf wrote of it, and what follows.
func (w *sweeper) quick(d *sweepDir, i int, paths string) bool {
	s, known, u := &d.run[i], w.r.Learn.Known, &w.same
	was := &known.dirs[s.dir]
	files, few := known.fewFiles(s.dir)
	if !few || d.depth >= maxWalkDepth {
		return false
	}
	skip := len(d.root.path) // what is asked for begins behind it
	if skip > 1 {
		skip++
	}
	dir := paths[:len(d.path)+1+int(s.size)]
	if u.stat(d.root.fd, paths[skip:]) != nil || !was.is(&u.x, d.dev) {
		return false
	}
	from := len(u.files)
	rest := paths[len(dir)+1:]
	for k := range files {
		f := &files[k]
		path := rest[:len(dir)+1+int(f.name)]
		if w.r.hangs[path] || !w.inRun(i, k) || !f.known || u.stat(d.root.fd, rest[skip:]) != nil || !f.is(&u.x, was.id.Dev) {
			u.files, u.in = u.files[:from], u.in[:from]
			return false
		}
		st, born := statOfX(&u.x)
		u.files = append(u.files, Swept{Dir: dir, Name: path[len(dir)+1:], In: was.id, Stat: st, Born: born, Known: true, Tag: f.tag,
			Keep: true, path: path})
		u.in = append(u.in, int32(len(u.dirs)))
		rest = rest[len(path)+1:]
	}
	u.dirs = append(u.dirs, s.dir)
	return true
}

// tellRun tells of what is as it was, but of nothing twice, and hands on what is not.
func (w *sweeper) tellRun() {
	known, u := w.r.Learn.Known, &w.same
	w.r.mu.Lock()
	for i, k := range u.dirs {
		if w.r.visited[k] {
			u.dirs[i] = -1
			w.kept.others = append(w.kept.others, otherName{k, known.dirs[k].id})
		}
		w.r.visited[k] = true
	}
	w.r.mu.Unlock()
	for _, k := range u.dirs {
		if k >= 0 {
			was := &known.dirs[k]
			w.kept.met(was.id.Dev, was.changed)
			w.kept.same = append(w.kept.same, k)
		}
	}
	for i := range u.files {
		if f := &u.files[i]; u.dirs[u.in[i]] >= 0 {
			w.kept.met(f.Stat.Dev, f.Stat.ChangeTime.UnixNano())
			w.r.File(w.slot, f)
		}
	}
	if len(w.dirs) > 0 {
		w.queue()
	}
	w.run.run = nil
}

// inRun notes what the worker is at in a run: a directory, or a file in that. It is false where it was given up.
func (w *sweeper) inRun(sub, file int) bool {
	w.mu.Lock()
	w.runSub, w.runFile, w.idle = sub, file, false
	w.turn++
	gone := w.gone
	w.mu.Unlock()
	if w.r.asking != nil && !gone {
		w.r.asking(w.whereInRun())
	}
	return !gone
}

// whereInRun is the name that it is at in a run; its caller has mu.
func (w *sweeper) whereInRun() string {
	known, s := w.r.Learn.Known, &w.run.run[w.runSub]
	path := w.run.path + "/" + known.sub(s)
	if w.runFile >= 0 && s.dir >= 0 {
		path += "/" + known.file(&known.filesOf(&known.dirs[s.dir])[w.runFile])
	}
	return path
}

// untold is what nobody was told of because the worker was given up at a name of it; its caller has mu.
func (w *sweeper) untold() (rest []sweepDir) {
	if len(w.run.run) == 0 {
		return nil
	}
	for _, run := range [][]memorySub{w.run.run[:w.runSub], w.run.run[w.runSub+1:]} {
		if len(run) > 0 {
			d := w.run
			d.run = run
			rest = append(rest, d)
		}
	}
	return rest
}

// number gives the number of a directory in Learn.Known, -1 if it is not known; its caller has mu.
func (r *sweep) number(id ID) int32 {
	if r.visited == nil {
		return -1
	}
	if r.numbers == nil {
		r.numbers = make(map[ID]int32, len(r.visited))
		for i := range r.Learn.Known.dirs {
			r.numbers[r.Learn.Known.dirs[i].id] = int32(i)
		}
	}
	if k, ok := r.numbers[id]; ok {
		return k
	}
	return -1
}

// stat asks for a name below an open directory, without following it, past what a client of a server keeps. The name
// ends at a zero; none is the directory itself. unix.Statx would copy each name.
func (u *unchanged) stat(fd int, name string) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_FORCE_SYNC
	if name[0] == 0 {
		flags |= unix.AT_EMPTY_PATH
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(unsafe.StringData(name))), uintptr(flags),
			unix.STATX_BASIC_STATS|unix.STATX_BTIME, uintptr(unsafe.Pointer(&u.x)), 0)
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// statName is stat for a name without a zero.
func (u *unchanged) statName(fd int, name string) error {
	u.name = append(append(u.name[:0], name...), 0)
	return u.stat(fd, unsafe.String(&u.name[0], len(u.name)))
}

// asKnown looks whether a directory is as it is known, and then goes through what is known of it instead of reading its
// names. done is false if it has to be read; alive is false where the worker was given up.
func (w *sweeper) asKnown(d sweepDir) (done, alive bool) {
	w.dirs = w.dirs[:0]
	known, u := w.r.Learn.Known, &w.same
	was := &known.dirs[d.known]
	name := d.root.below(d.path)
	if w.r.asking != nil {
		w.r.asking(d.path)
	}
	if err := u.statName(d.root.fd, name); err != nil || u.x.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false, true
	}
	if !was.is(&u.x, d.dev) {
		if idOfX(&u.x) == was.id {
			w.kept.was = was // other names, or another file system, of which is to be asked what it is
		}
		return false, true
	}
	if w.r.again(was.id, d.known) {
		return true, w.live(func() { w.kept.others = append(w.kept.others, otherName{d.slot, was.id}) })
	}
	w.in = was.id
	w.kept.is(was.id, was.changed)
	subs := known.subsOf(was)
	// whole: the next sweep is to know of it what this one does.
	whole, runs := true, false
	for i := range subs {
		if subs[i].kind == unix.DT_DIR {
			whole, runs = whole && subs[i].dir >= 0, runs || subs[i].dir >= 0
		}
	}
	for i := range subs {
		s := &subs[i]
		slot := s.dir
		if s.kind != unix.DT_DIR || s.dir < 0 {
			if slot, alive = w.entry(d, known.sub(s), s.kind, false); !alive {
				return true, false
			}
		}
		if !whole {
			w.kept.addSub(known.sub(s), s.kind, slot)
		}
	}
	if runs {
		run := d
		run.run = subs
		w.dirs = append(w.dirs, run)
	}
	if len(w.dirs) > 0 && !w.live(w.queue) {
		return true, false
	}
	return true, w.sameFiles(d, name, whole)
}

// sameFiles goes through the files of a directory whose names are as they are known; whole is as in asKnown. It is false
// where the worker was given up.
func (w *sweeper) sameFiles(d sweepDir, name string, whole bool) bool {
	known, u := w.r.Learn.Known, &w.same
	was := &known.dirs[d.known]
	w.pass.begin(was.changed)
	dir := -1
	defer func() {
		if dir >= 0 {
			unix.Close(dir)
		}
	}()
	if name != "" {
		name += "/"
	}
	files := known.filesOf(was)
	for i := range files {
		f := &files[i]
		text := known.file(f)
		w.looking(d.path, text)
		if f.known && !w.hung(d.path, text) && u.statName(d.root.fd, name+text) == nil && f.is(&u.x, was.id.Dev) {
			if !w.remembered(d.path, text, f.tag, !whole) {
				return false
			}
			continue
		}
		if whole {
			whole = false
			w.kept.addKnown(known, was, i)
		}
		if dir < 0 {
			var err error
			if dir, err = openSame(d.path, was.id); err != nil {
				return w.blind(d.path, err)
			}
		}
		if w.ino = f.ino; !w.file(dir, d.path, text) {
			return false
		}
	}
	if w.pass.lost { // it is not read again here, and what the files are called by now is not known
		return w.blind(d.path, errChanged)
	}
	return w.live(func() {
		if whole {
			w.kept.same = append(w.kept.same, d.known)
		} else {
			w.kept.end(d.slot)
		}
	})
}

// addKnown keeps what is known of a directory up to the file with the number files.
func (l *learning) addKnown(known *Memory, was *memoryDir, files int) {
	for _, s := range known.subsOf(was) {
		l.addSub(known.sub(&s), s.kind, s.dir)
	}
	for _, f := range known.filesOf(was)[:files] {
		at, size := l.name(known.file(&f))
		if f.text = at; size > 0 {
			l.Memory.files = append(l.Memory.files, f)
		}
	}
}

// openSame opens a directory that was looked at before; another one is ErrChanged.
func openSame(path string, id ID) (int, error) {
	fd, err := openUnlinked(unix.AT_FDCWD, path, dirFlags)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (ID{st.Dev, st.Ino}) != id {
		err = ErrChanged
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func idOfX(x *unix.Statx_t) ID { return ID{unix.Mkdev(x.Dev_major, x.Dev_minor), x.Ino} }

// is tells whether a directory has the names that are known, and is on the device dev as is what it was met in.
func (d *memoryDir) is(x *unix.Statx_t, dev uint64) bool {
	return x.Mode&unix.S_IFMT == unix.S_IFDIR && idOfX(x) == d.id && d.id.Dev == dev &&
		x.Ctime.Sec*1e9+int64(x.Ctime.Nsec) == d.changed
}

// is tells whether a file is as it is known.
func (f *memoryFile) is(x *unix.Statx_t, dev uint64) bool {
	return x.Mode&unix.S_IFMT == unix.S_IFREG && x.Ino == f.ino && x.Ctime.Sec*1e9+int64(x.Ctime.Nsec) == f.changed &&
		int64(x.Size) == f.size && unix.Mkdev(x.Dev_major, x.Dev_minor) == dev
}

// remembered tells of a file that is as it is known, and of which same.x is. keep: it is kept by itself, and not with its
// directory.
func (w *sweeper) remembered(dir, name string, tag uint32, keep bool) bool {
	s := &w.swept
	*s = Swept{Dir: dir, Name: name, In: w.in, Known: true, Tag: tag, Keep: true}
	s.Stat, s.Born = statOfX(&w.same.x)
	return w.live(func() {
		w.r.File(w.slot, s)
		w.kept.met(s.Stat.Dev, s.Stat.ChangeTime.UnixNano())
		if keep {
			w.kept.addFile(s)
		}
	})
}

// hung tells whether an earlier sweep still waits for a name, or did when this one began: then what is known of it is not asked
// for, and it is left to file.
func (w *sweeper) hung(dir, name string) bool {
	if len(w.r.hangs) > 0 && w.r.hangs[dir+"/"+name] {
		return true
	}
	if w.r.asking != nil {
		w.r.asking(dir + "/" + name)
	}
	return false
}

// sameFile looks whether a file of a directory with other names than are known is as it is known itself.
func (w *sweeper) sameFile(dir int, dirPath, name string) (done, alive bool) {
	l := &w.kept
	if l.was == nil {
		return false, true
	}
	known := w.r.Learn.Known
	if l.files == nil {
		l.files = map[string]*memoryFile{}
		for i := range known.filesOf(l.was) {
			f := &known.filesOf(l.was)[i]
			l.files[known.file(f)] = f
		}
	}
	f := l.files[name]
	if f == nil || !f.known || w.hung(dirPath, name) || w.same.statName(dir, name) != nil || !f.is(&w.same.x, l.now.id.Dev) {
		return false, true
	}
	return true, w.remembered(dirPath, name, f.tag, true)
}

// knownSub gives the entry that is known of a directory in one with other names than are known, nil if nothing is known
// of that.
func (l *learning) knownSub(r *sweep, name string) *memorySub {
	if l.was == nil {
		return nil
	}
	if l.subs == nil {
		known, subs := r.Learn.Known, r.Learn.Known.subsOf(l.was)
		l.subs = make(map[string]*memorySub, len(subs))
		if len(subs) > 0 {
			// The names follow one another.
			from, last := subs[0].text, &subs[len(subs)-1]
			names := string(known.text[from : last.text+uint32(last.size)])
			for i := range subs {
				if s := &subs[i]; s.dir >= 0 {
					l.subs[names[s.text-from:s.text-from+uint32(s.size)]] = s
				}
			}
		}
	}
	return l.subs[name]
}

// textOf is how many bytes of names a directory has.
func (m *Memory) textOf(d *memoryDir) (n int) {
	for _, s := range m.subsOf(d) {
		n += int(s.size)
	}
	for _, f := range m.filesOf(d) {
		n += int(f.name)
	}
	return n
}
