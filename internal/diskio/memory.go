// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// Memory is what a sweep saw of directories and files, for the next one: a directory whose inode and ctime are the
// same has the same names, and a file whose inode, ctime and size are has the same beginning. Times that a program can
// set (mtime) are not asked. It takes some 140 bytes for a directory with one file.
//
// A file that is changed twice within one tick of its file system's clock has the same ctime after both. So nothing is
// remembered that was changed shortly before it was looked at (see trust), by the clock that sets ctime.
type Memory struct {
	roots []memoryRoot
	dirs  []memoryDir
	subs  []memorySub
	files []memoryFile
	text  []byte // the names, one after the other
}

// memoryRoot is a directory that a sweep began at.
type memoryRoot struct {
	path string
	dir  int32
}

// memoryDir is a directory: its entries begin at sub and file, and there are as many.
type memoryDir struct {
	id          ID
	changed     int64 // ctime in nanoseconds of Unix time
	sub, file   int32
	subs, files int32
}

// memorySub is an entry that is no regular file. dir is the directory that it is, -1 if nothing is known of that.
type memorySub struct {
	text uint32
	dir  int32
	size uint8 // of the name in bytes
	kind uint8 // DT_DIR, DT_LNK or another
}

// memoryFile is a regular file, on the device of its directory. known: tag is what who read it made of it.
type memoryFile struct {
	ino           uint64
	changed, size int64
	text          uint32
	tag           uint32
	name          uint8 // length of the name in bytes
	known         bool
}

const (
	// maxMemory bounds the directories, the other entries and the files that are remembered.
	maxMemory = 4 << 20
	// maxMemoryText bounds the names together.
	maxMemoryText = 1 << 28
)

func (m *Memory) sub(s *memorySub) string { return string(m.text[s.text : s.text+uint32(s.size)]) }

func (m *Memory) file(f *memoryFile) string { return string(m.text[f.text : f.text+uint32(f.name)]) }

func (m *Memory) subsOf(d *memoryDir) []memorySub { return m.subs[d.sub : d.sub+d.subs] }

func (m *Memory) filesOf(d *memoryDir) []memoryFile { return m.files[d.file : d.file+d.files] }

// root gives the directory of a path that a sweep began at, -1 if it is not known. m may be nil.
func (m *Memory) root(path string) int32 {
	if m != nil {
		for _, r := range m.roots {
			if r.path == path {
				return r.dir
			}
		}
	}
	return -1
}

// Retag gives every file that is known the tag that fn makes of its own.
func (m *Memory) Retag(fn func(tag uint32) uint32) {
	for i := range m.files {
		if f := &m.files[i]; f.known {
			f.tag = fn(f.tag)
		}
	}
}

// The form of a memory in a file: five counts (roots, directories, other entries, files, bytes of names), then all of
// each kind in their order; all numbers are little-endian. Each root is the length of its path, its directory and the
// path; names of entries stand at the end: for each directory those of its other entries, then those of its files.
const (
	memoryHead     = 5 * 4
	memoryRootSize = 2 * 4
	memoryDirSize  = 3*8 + 2*4
	memorySubSize  = 4 + 2
	memoryFileSize = 3*8 + 4 + 2
)

// errMemory: what should be a memory is none.
var errMemory = errors.New("it is not in its form")

// Append writes the memory behind b.
func (m *Memory) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = slices.Grow(b, memoryHead+len(m.roots)*1024+len(m.dirs)*memoryDirSize+len(m.subs)*memorySubSize+
		len(m.files)*memoryFileSize+len(m.text))
	for _, n := range []int{len(m.roots), len(m.dirs), len(m.subs), len(m.files), len(m.text)} {
		b = le.AppendUint32(b, uint32(n))
	}
	for _, r := range m.roots {
		b = le.AppendUint32(b, uint32(len(r.path)))
		b = le.AppendUint32(b, uint32(r.dir))
		b = append(b, r.path...)
	}
	for i := range m.dirs {
		d := &m.dirs[i]
		b = le.AppendUint64(b, d.id.Dev)
		b = le.AppendUint64(b, d.id.Ino)
		b = le.AppendUint64(b, uint64(d.changed))
		b = le.AppendUint32(b, uint32(d.subs))
		b = le.AppendUint32(b, uint32(d.files))
	}
	for i := range m.subs {
		s := &m.subs[i]
		b = append(le.AppendUint32(b, uint32(s.dir)), s.size, s.kind)
	}
	for i := range m.files {
		f := &m.files[i]
		b = le.AppendUint64(b, f.ino)
		b = le.AppendUint64(b, uint64(f.changed))
		b = le.AppendUint64(b, uint64(f.size))
		b = append(le.AppendUint32(b, f.tag), f.name, 0)
		if f.known {
			b[len(b)-1] = 1
		}
	}
	for i := range m.dirs {
		for _, s := range m.subsOf(&m.dirs[i]) {
			b = append(b, m.text[s.text:s.text+uint32(s.size)]...)
		}
		for _, f := range m.filesOf(&m.dirs[i]) {
			b = append(b, m.text[f.text:f.text+uint32(f.name)]...)
		}
	}
	return b
}

// ParseMemory reads what Append wrote, all of b. tags is how many there are: those of its files are below.
func ParseMemory(b []byte, tags uint32) (*Memory, error) {
	p := memoryParser{b: b}
	counts := [5]int{}
	for i := range counts {
		counts[i] = int(p.u32())
	}
	limits := [5]int{maxMemory, maxMemory, maxMemory, maxMemory, maxMemoryText}
	need := 0
	for i, size := range [5]int{memoryRootSize, memoryDirSize, memorySubSize, memoryFileSize, 1} {
		if counts[i] > limits[i] {
			return nil, errMemory
		}
		need += counts[i] * size
	}
	if need > len(b) {
		return nil, errMemory
	}
	m := &Memory{dirs: make([]memoryDir, counts[1]), subs: make([]memorySub, counts[2]), files: make([]memoryFile, counts[3])}
	for range counts[0] {
		size, dir := int(p.u32()), int32(p.u32())
		m.roots = append(m.roots, memoryRoot{string(p.take(size)), dir})
		p.is(dir >= -1 && int(dir) < counts[1])
	}
	p.entries(m, tags)
	m.text = p.take(counts[4])
	p.names(m)
	if p.wrong || len(p.b) > 0 {
		return nil, errMemory
	}
	return m, nil
}

// memoryParser reads a memory; wrong: it is none.
type memoryParser struct {
	b     []byte
	wrong bool
}

func (p *memoryParser) is(right bool) { p.wrong = p.wrong || !right }

// take gives the next n bytes, nil where there are not as many.
func (p *memoryParser) take(n int) []byte {
	if n < 0 || n > len(p.b) {
		p.wrong, p.b = true, nil
		return nil
	}
	t := p.b[:n]
	p.b = p.b[n:]
	return t
}

func (p *memoryParser) u8() uint8 {
	if t := p.take(1); t != nil {
		return t[0]
	}
	return 0
}

func (p *memoryParser) u32() uint32 {
	if t := p.take(4); t != nil {
		return binary.LittleEndian.Uint32(t)
	}
	return 0
}

func (p *memoryParser) u64() uint64 {
	if t := p.take(8); t != nil {
		return binary.LittleEndian.Uint64(t)
	}
	return 0
}

// entries reads the directories and what is in them.
func (p *memoryParser) entries(m *Memory, tags uint32) {
	sub, file := 0, 0
	for i := range m.dirs {
		d := &m.dirs[i]
		d.id, d.changed = ID{p.u64(), p.u64()}, int64(p.u64())
		subs, files := int(p.u32()), int(p.u32())
		if subs > len(m.subs)-sub || files > len(m.files)-file {
			p.wrong = true
			return
		}
		d.sub, d.subs, d.file, d.files = int32(sub), int32(subs), int32(file), int32(files)
		sub, file = sub+subs, file+files
	}
	p.is(sub == len(m.subs) && file == len(m.files))
	for i := range m.subs {
		s := &m.subs[i]
		s.dir, s.size, s.kind = int32(p.u32()), p.u8(), p.u8()
		p.is(s.dir >= -1 && int(s.dir) < len(m.dirs) && s.size > 0)
	}
	for i := range m.files {
		f := &m.files[i]
		f.ino, f.changed, f.size = p.u64(), int64(p.u64()), int64(p.u64())
		f.tag, f.name, f.known = p.u32(), p.u8(), p.u8() == 1
		p.is(f.name > 0 && (f.tag < tags || !f.known))
	}
}

// names finds each name; none leads out of its directory.
func (p *memoryParser) names(m *Memory) {
	at := 0
	next := func(size uint8) uint32 {
		from := at
		if at += int(size); at > len(m.text) {
			p.wrong, at = true, len(m.text)
			return 0
		}
		p.is(plainName(m.text[from:at]))
		return uint32(from)
	}
	for i := range m.dirs {
		subs, files := m.subsOf(&m.dirs[i]), m.filesOf(&m.dirs[i])
		for k := range subs {
			subs[k].text = next(subs[k].size)
		}
		for k := range files {
			files[k].text = next(files[k].name)
		}
	}
	p.is(at == len(m.text))
}

// plainName tells whether a name is that of an entry of a directory.
func plainName(b []byte) bool {
	for _, c := range b {
		if c == '/' || c == 0 {
			return false
		}
	}
	return len(b) > 0 && string(b) != "." && string(b) != ".."
}

// trust is how long a change has to lie back so that a look afterwards is trusted to have seen it whole, by the clock
// of the file system that it is on.
type trust time.Duration

// The trusts of file systems by their kind. A clock of the kernel has ticks of up to ten milliseconds, some file systems
// keep times in whole seconds; what a server tells may be as old as the client keeps it.
const (
	trustLocal  = trust(2 * time.Second)
	trustServer = trust(time.Minute)
	// trustNone: inode numbers or times are made up by a program, or are those of another file system.
	trustNone = trust(-1)
)
