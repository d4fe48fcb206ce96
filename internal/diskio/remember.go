// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Magic numbers of file systems that x/sys does not name, as they stand in their code in the kernel (fs/jfs, fs/gfs2, fs/ocfs2).
const (
	jfsMagic   = 0x3153464a
	gfs2Magic  = 0x01161970
	ocfs2Magic = 0x7461636f
)

// trustOf says how far the times and inode numbers of a file system are to be trusted. One that is not known is not
// trusted: overlayfs shows those of whichever layer a file is in, FUSE what a program makes up.
func trustOf(magic int64) trust {
	switch magic {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC, jfsMagic:
		return trustLocal
	case unix.NFS_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, gfs2Magic, ocfs2Magic:
		return trustServer
	}
	return trustNone
}

// learning is what a worker keeps of the directories that it has read to the end.
type learning struct {
	Memory
	// slots are the numbers of the directories in the sweep, beside dirs; a memorySub has such a number too.
	slots []int32
	// newest is the youngest ctime that was met on each device, in nanoseconds.
	newest map[uint64]int64

	// now is the directory that is being read; its entries are the last ones. bad: it is not remembered.
	now memoryDir
	bad bool
	// was is what was known of it, nil for nothing; byName are its entries, where its names are read anew.
	was   *memoryDir
	files map[string]*memoryFile
	subs  map[string]*memorySub
	// same are the numbers of directories that are as they are known, with all that is in them; others are directories
	// that were visited before by another name, which have a number by each.
	same   []int32
	others []otherName
	// dev is the device of which newest is at hand, newestOf, unless dev is 0.
	dev      uint64
	newestOf int64
}

// otherName is a number of a directory that has several.
type otherName struct {
	slot int32
	id   ID
}

// begin forgets what was kept of a directory that was not read to the end.
func (l *learning) begin() {
	if n := len(l.dirs); n > 0 {
		d := &l.dirs[n-1]
		l.cut(d.sub+d.subs, d.file+d.files)
	} else {
		l.cut(0, 0)
	}
	l.bad, l.was, l.files, l.subs = false, nil, nil, nil
}

// cut cuts the entries off behind those of the last directory that is kept.
func (l *learning) cut(sub, file int32) {
	l.Memory.subs, l.Memory.files = l.Memory.subs[:sub], l.Memory.files[:file]
	l.now = memoryDir{sub: sub, file: file}
}

// is says which directory it is.
func (l *learning) is(id ID, changed int64) {
	l.now.id, l.now.changed = id, changed
	l.met(id.Dev, changed)
}

// met notes a time of a device.
func (l *learning) met(dev uint64, changed int64) {
	if dev == l.dev && dev != 0 && changed <= l.newestOf {
		return
	}
	if l.newest == nil {
		l.newest = map[uint64]int64{}
	}
	old, ok := l.newest[dev]
	if !ok || changed > old {
		old = changed
		l.newest[dev] = changed
	}
	l.dev, l.newestOf = dev, old
}

// name keeps the text of a name.
func (l *learning) name(name string) (at uint32, size uint8) {
	if len(name) > 255 || len(l.text) > maxMemoryText-255 || len(l.Memory.files)+len(l.Memory.subs) >= maxMemory {
		l.bad = true
		return 0, 0
	}
	at = uint32(len(l.text))
	l.text = append(l.text, name...)
	return at, uint8(len(name))
}

// addSub keeps an entry that is no file. slot is the number of a directory in the sweep, -1 for none.
func (l *learning) addSub(name string, kind uint8, slot int32) {
	at, size := l.name(name)
	if !l.bad {
		l.Memory.subs = append(l.Memory.subs, memorySub{text: at, dir: slot, size: size, kind: kind})
	}
}

// addFile keeps a file as it was when it was read.
func (l *learning) addFile(s *Swept) {
	l.met(s.Stat.Dev, s.Stat.ChangeTime.UnixNano())
	at, size := l.name(s.Name)
	if !l.bad {
		l.Memory.files = append(l.Memory.files, memoryFile{ino: s.Stat.Ino, changed: s.Stat.ChangeTime.UnixNano(), size: s.Stat.SizeBytes,
			text: at, tag: s.Tag, name: size, known: s.Keep && s.Stat.Dev == l.now.id.Dev})
	}
}

// end keeps the directory with the number slot, which was read to the end.
func (l *learning) end(slot int32) {
	if l.bad || len(l.dirs) >= maxMemory {
		return
	}
	l.now.subs, l.now.files = int32(len(l.Memory.subs))-l.now.sub, int32(len(l.Memory.files))-l.now.file
	l.dirs, l.slots = append(l.dirs, l.now), append(l.slots, slot)
}

// learned puts together what the workers kept, without what is not to be trusted yet. What one that was given up kept
// is left out: it may come back, and go on.
func (r *sweep) learned(roots []sweepDir) {
	r.Learn.Same = !r.fresh.Load()
	if r.Learn.Same {
		r.Learn.Seen = r.Learn.Known
		return
	}
	newest := map[uint64]int64{}
	var all []*learning
	known := r.Learn.Known
	dirs, subs, files, text := 0, 0, 0, 0
	for _, w := range r.workers {
		w.mu.Lock()
		gone := w.gone
		w.mu.Unlock()
		if gone {
			continue
		}
		w.kept.begin()
		for dev, t := range w.kept.newest {
			if old, ok := newest[dev]; !ok || t > old {
				newest[dev] = t
			}
		}
		all = append(all, &w.kept)
		dirs, subs = dirs+len(w.kept.dirs), subs+len(w.kept.Memory.subs)
		files, text = files+len(w.kept.Memory.files), text+len(w.kept.text)
		for _, k := range w.kept.same {
			d := &known.dirs[k]
			dirs, subs, files, text = dirs+1, subs+int(d.subs), files+int(d.files), text+known.textOf(d)
		}
	}
	if max(dirs, subs, files) > maxMemory || text > maxMemoryText {
		return
	}
	until := map[uint64]int64{}
	for dev, t := range newest {
		until[dev] = r.trusted(dev, t)
	}
	m := &Memory{dirs: make([]memoryDir, 0, dirs), subs: make([]memorySub, 0, subs), files: make([]memoryFile, 0, files),
		text: make([]byte, 0, text)}
	at := slices.Repeat([]int32{-1}, int(r.slots.Load()))
	for _, l := range all {
		for i := range l.dirs {
			m.add(&l.Memory, &l.dirs[i], l.slots[i], until, at)
		}
		for _, k := range l.same {
			m.add(known, &known.dirs[k], k, until, at)
		}
	}
	m.others(all, at)
	for i := range m.subs {
		if s := &m.subs[i]; s.dir >= 0 {
			s.dir = at[s.dir]
		}
	}
	for _, d := range roots {
		m.roots = append(m.roots, memoryRoot{d.path, at[d.slot]})
	}
	r.Learn.Seen = m
}

// others gives directories that were visited before by another name their place by that as well.
func (m *Memory) others(all []*learning, at []int32) {
	var places map[ID]int32
	for _, l := range all {
		for _, o := range l.others {
			if at[o.slot] >= 0 {
				continue
			}
			if places == nil {
				places = make(map[ID]int32, len(m.dirs))
				for i := range m.dirs {
					places[m.dirs[i].id] = int32(i)
				}
			}
			if place, ok := places[o.id]; ok {
				at[o.slot] = place
			}
		}
	}
}

// add adds a directory of another memory, and what is in it, if it was changed before the times of until, by devices. at
// gets its place by its number.
func (m *Memory) add(from *Memory, of *memoryDir, slot int32, until map[uint64]int64, at []int32) {
	d := *of
	limit := until[d.id.Dev]
	if d.changed >= limit {
		return
	}
	at[slot] = int32(len(m.dirs))
	subs, files := from.subsOf(&d), from.filesOf(&d)
	d.sub, d.file = int32(len(m.subs)), int32(len(m.files))
	m.dirs = append(m.dirs, d)
	for _, s := range subs {
		text := from.text[s.text : s.text+uint32(s.size)]
		s.text = uint32(len(m.text))
		m.text = append(m.text, text...)
		m.subs = append(m.subs, s)
	}
	for _, f := range files {
		text := from.text[f.text : f.text+uint32(f.name)]
		f.text, f.known = uint32(len(m.text)), f.known && f.changed < limit
		m.text = append(m.text, text...)
		m.files = append(m.files, f)
	}
}

// trusted gives the time from which on changes on a device are too young to be trusted to have been seen whole, in
// nanoseconds. The clock is that of the file system: of a local one the kernel's, as it was when the sweep began; of a
// server's, which nobody can ask without writing there, the youngest time that was met: it is no later than now. A
// time from the future is none.
func (r *sweep) trusted(dev uint64, newest int64) int64 {
	began := r.Learn.Now.UnixNano()
	switch trust := r.trust[dev]; trust {
	case trustLocal:
		return began - int64(trust)
	case trustServer:
		return min(began, newest) - int64(trust)
	}
	return -1 << 63
}

// Learning is how a sweep uses what an earlier one saw, and what it sees itself for the next one.
type Learning struct {
	// Known is what an earlier sweep saw, nil for nothing.
	Known *Memory
	// Now is the time at which this one begins, by the clock of the kernel.
	Now time.Time

	// Seen is what it saw, set at its end; nil if that is too much to be remembered.
	Seen *Memory
	// Distrusted are directories, one on each file system whose times and inode numbers are not to be trusted: nothing
	// below is remembered.
	Distrusted []string
	// Same: all that was looked at was as Known has it.
	Same bool
}

// trusts learns how far the file system of an open directory is to be trusted.
func (r *sweep) trusts(dev uint64, magic int64, path string) {
	if r.Learn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.trust[dev]; ok {
		return
	}
	if r.trust[dev] = trustOf(magic); r.trust[dev] == trustNone {
		r.Learn.Distrusted = append(r.Learn.Distrusted, path)
	}
}

// sweepRoot is an open directory that a sweep began at: what is known below is looked up from there, which takes the
// kernel fewer steps than a path from the root of all.
type sweepRoot struct {
	path string
	fd   int
}

// openRoot opens a root of which something is known. Where that fails, or its file system is not to be trusted, all is
// read. The error is that of ctx.
func (r *sweep) openRoot(ctx context.Context, d *sweepDir) error {
	if r.Learn == nil {
		return nil
	}
	known := r.Learn.Known.root(d.path)
	if known < 0 {
		return nil
	}
	type opened struct {
		root *sweepRoot
		dev  uint64
		fs   int64
	}
	o, err := WithinAt(ctx, d.path, r.timeout, func() (opened, error) {
		fd, err := openUnlinked(unix.AT_FDCWD, d.path, dirFlags)
		if err != nil {
			return opened{}, err
		}
		var st unix.Stat_t
		var sfs unix.Statfs_t
		if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &sfs)); err != nil {
			unix.Close(fd)
			return opened{}, err
		}
		return opened{&sweepRoot{d.path, fd}, st.Dev, sfs.Type}, nil
	}, func(o opened) { unix.Close(o.root.fd) })
	if err != nil {
		return ctx.Err()
	}
	r.roots = append(r.roots, o.root)
	if trustOf(o.fs) == trustNone {
		return nil
	}
	r.trusts(o.dev, o.fs, d.path)
	d.root, d.known, d.slot, d.dev = o.root, known, known, o.dev
	return nil
}

// leave is for a worker that ends, and for the sweep. The last one closes the roots: one that was given up may still
// wait for an answer below one.
func (r *sweep) leave() {
	if r.users.Add(-1) > 0 {
		return
	}
	for _, root := range r.roots {
		unix.Close(root.fd)
	}
}

// below gives a path as it is called from the root.
func (s *sweepRoot) below(path string) string {
	return strings.TrimPrefix(path[len(s.path):], "/")
}
