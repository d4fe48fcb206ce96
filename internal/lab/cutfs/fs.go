// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cutfs

import (
	"maps"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// stop tells that nobody waits for an answer any more. No answer here takes long.
type stop = <-chan struct{}

// files answers the kernel. What it does not answer, such as extended attributes and locks, the
// kernel takes as not there, or does itself: locks work as on a local file system.
type files struct {
	fuse.RawFileSystem
	mu   sync.Mutex
	disk *disk
	lies lies
}

// node gives the node that a call is about: EIO after the power cut.
func (f *files) node(id uint64) (*node, fuse.Status) {
	if f.disk.cut {
		return nil, fuse.EIO
	}
	if n := f.disk.now.nodes[id]; n != nil {
		return n, fuse.OK
	}
	return nil, fuse.ENOENT
}

// change makes a change and gives the status of the call.
func (f *files) change(c change) fuse.Status {
	if !f.disk.do(c) {
		return fuse.EIO
	}
	return fuse.OK
}

func (f *files) attr(id uint64, n *node, out *fuse.Attr) {
	*out = fuse.Attr{Ino: id, Mode: n.mode, Nlink: 1, Blksize: pageBytes}
	out.SetTimes(&n.mtime, &n.mtime, &n.ctime)
	switch {
	case n.data != nil:
		out.Nlink = n.links
		out.Size = uint64(n.data.size)
		out.Blocks = uint64(len(n.data.pages)) * pageBytes / 512
	case n.target != "":
		out.Size = uint64(len(n.target))
	}
}

// entry answers with a node. The kernel keeps nothing: after the cut everything has to fail.
func (f *files) entry(id uint64, out *fuse.EntryOut) {
	out.NodeId, out.Generation = id, 1
	f.attr(id, f.disk.now.nodes[id], &out.Attr)
}

func (f *files) Lookup(_ stop, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, st := f.node(h.NodeId)
	if !st.Ok() {
		return st
	}
	id, ok := dir.names[name]
	if !ok || f.disk.now.nodes[id] == nil {
		return fuse.ENOENT
	}
	f.entry(id, out)
	return fuse.OK
}

func (f *files) GetAttr(_ stop, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, st := f.node(in.NodeId)
	if st.Ok() {
		f.attr(in.NodeId, n, &out.Attr)
	}
	return st
}

func (f *files) SetAttr(_ stop, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, st := f.node(in.NodeId)
	if size, ok := in.GetSize(); ok && st.Ok() {
		if n.data == nil || size > maxFileBytes {
			return fuse.Status(unix.EFBIG)
		}
		st = f.change(change{kind: opTruncate, node: in.NodeId, n: int64(size)})
	}
	if mode, ok := in.GetMode(); ok && st.Ok() {
		st = f.change(change{kind: opMode, node: in.NodeId, mode: mode})
	}
	if at, ok := in.GetMTime(); ok && st.Ok() {
		st = f.change(change{kind: opTime, node: in.NodeId, mtime: at})
	}
	if st.Ok() {
		f.attr(in.NodeId, n, &out.Attr)
	}
	return st
}

// make makes a node under a new name.
func (f *files) make(dir uint64, c change) (uint64, fuse.Status) {
	d, st := f.node(dir)
	if !st.Ok() {
		return 0, st
	}
	if _, taken := d.names[c.name]; taken {
		return 0, fuse.Status(unix.EEXIST)
	}
	c.kind, c.dir, c.node = opNew, dir, f.disk.now.last+1
	return c.node, f.change(c)
}

func (f *files) Mknod(_ stop, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if in.Mode&unix.S_IFMT != unix.S_IFREG {
		return fuse.EPERM
	}
	return f.makeEntry(in.NodeId, change{name: name, mode: in.Mode}, out)
}

func (f *files) Mkdir(_ stop, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.makeEntry(in.NodeId, change{name: name, mode: unix.S_IFDIR | in.Mode&0o7777}, out)
}

func (f *files) Symlink(_ stop, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	return f.makeEntry(h.NodeId, change{name: name, mode: unix.S_IFLNK | 0o777, target: to}, out)
}

func (f *files) makeEntry(dir uint64, c change, out *fuse.EntryOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	id, st := f.make(dir, c)
	if st.Ok() {
		f.entry(id, out)
	}
	return st
}

func (f *files) Create(_ stop, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	c := change{name: name, mode: unix.S_IFREG | in.Mode&0o7777}
	return f.makeEntry(in.NodeId, c, &out.EntryOut)
}

func (f *files) Link(_ stop, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, st := f.node(in.NodeId)
	if !st.Ok() {
		return st
	}
	if _, taken := dir.names[name]; taken {
		return fuse.Status(unix.EEXIST)
	}
	st = f.rename(change{kind: opLink, dir: in.NodeId, name: name, node: in.Oldnodeid})
	if st.Ok() {
		f.entry(in.Oldnodeid, out)
	}
	return st
}

func (f *files) Readlink(_ stop, h *fuse.InHeader) ([]byte, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, st := f.node(h.NodeId)
	if !st.Ok() {
		return nil, st
	}
	return []byte(n.target), fuse.OK
}

func (f *files) Unlink(_ stop, h *fuse.InHeader, name string) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unlink(h.NodeId, name)
}

func (f *files) Rmdir(_ stop, h *fuse.InHeader, name string) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	if dir, st := f.node(h.NodeId); st.Ok() {
		if n := f.disk.now.nodes[dir.names[name]]; n != nil && len(n.names) > 0 {
			return fuse.Status(unix.ENOTEMPTY)
		}
	}
	return f.unlink(h.NodeId, name)
}

func (f *files) unlink(dir uint64, name string) fuse.Status {
	d, st := f.node(dir)
	if !st.Ok() {
		return st
	}
	id, ok := d.names[name]
	if !ok {
		return fuse.ENOENT
	}
	return f.rename(change{kind: opUnlink, dir: dir, name: name, node: id})
}

func (f *files) Rename(_ stop, in *fuse.RenameIn, from, to string) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, st := f.node(in.NodeId)
	if !st.Ok() {
		return st
	}
	toDir, st := f.node(in.Newdir)
	if !st.Ok() {
		return st
	}
	id, ok := dir.names[from]
	if !ok {
		return fuse.ENOENT
	}
	old, taken := toDir.names[to]
	switch {
	case in.Flags&unix.RENAME_NOREPLACE != 0 && taken:
		return fuse.Status(unix.EEXIST)
	case in.Flags&^unix.RENAME_NOREPLACE != 0:
		return fuse.EINVAL
	case taken && old == id:
		return fuse.OK
	case taken && len(f.disk.now.nodes[old].names) > 0:
		return fuse.Status(unix.ENOTEMPTY)
	}
	return f.rename(change{kind: opRename, dir: in.NodeId, name: from, toDir: in.Newdir, toName: to,
		node: id})
}

func (f *files) Open(_ stop, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Past the page cache, which would go on answering after the cut.
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	_, st := f.node(in.NodeId)
	if st.Ok() && in.Flags&unix.O_TRUNC != 0 {
		st = f.change(change{kind: opTruncate, node: in.NodeId})
	}
	return st
}

func (f *files) Read(_ stop, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, st := f.node(in.NodeId)
	if !st.Ok() {
		return nil, st
	}
	return fuse.ReadResultData(buf[:n.data.readAt(buf, int64(in.Offset))]), fuse.OK
}

func (f *files) Write(_ stop, in *fuse.WriteIn, p []byte) (uint32, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if in.Offset > maxFileBytes {
		return 0, fuse.Status(unix.EFBIG)
	}
	_, st := f.node(in.NodeId)
	if st.Ok() {
		st = f.change(change{kind: opWrite, node: in.NodeId, off: int64(in.Offset), data: p})
	}
	if !st.Ok() {
		return 0, st
	}
	return uint32(len(p)), fuse.OK
}

func (f *files) Fallocate(_ stop, in *fuse.FallocateIn) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, st := f.node(in.NodeId)
	if !st.Ok() {
		return st
	}
	if in.Offset > maxFileBytes || in.Length > maxFileBytes {
		return fuse.Status(unix.EFBIG)
	}
	off, length := int64(in.Offset), int64(in.Length)
	const keep = unix.FALLOC_FL_KEEP_SIZE
	switch in.Mode {
	case keep:
		return fuse.OK // there is always room
	case 0:
		return f.change(change{kind: opGrow, node: in.NodeId, n: off + length})
	case unix.FALLOC_FL_PUNCH_HOLE | keep, unix.FALLOC_FL_ZERO_RANGE | keep:
		return f.change(change{kind: opZero, node: in.NodeId, off: off, n: length})
	case unix.FALLOC_FL_ZERO_RANGE:
		if off+length > n.data.size {
			if st := f.change(change{kind: opGrow, node: in.NodeId, n: off + length}); !st.Ok() {
				return st
			}
		}
		return f.change(change{kind: opZero, node: in.NodeId, off: off, n: length})
	}
	return fuse.Status(unix.EOPNOTSUPP)
}

func (f *files) Lseek(_ stop, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, st := f.node(in.NodeId)
	if !st.Ok() {
		return st
	}
	off, ok := n.data.seek(int64(in.Offset), in.Whence == unix.SEEK_DATA)
	if !ok {
		return fuse.Status(unix.ENXIO)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

func (f *files) Fsync(_ stop, in *fuse.FsyncIn) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, st := f.node(in.NodeId)
	if st.Ok() {
		f.disk.sync(in.NodeId)
	}
	return st
}

func (f *files) FsyncDir(cancel stop, in *fuse.FsyncIn) fuse.Status {
	return f.Fsync(cancel, in)
}

// Flush is what close does: no sync, but it tells of the cut.
func (f *files) Flush(_ stop, in *fuse.FlushIn) fuse.Status { return f.alive(in.NodeId) }

func (f *files) Access(_ stop, in *fuse.AccessIn) fuse.Status { return f.alive(in.NodeId) }

func (f *files) alive(id uint64) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, st := f.node(id)
	return st
}

func (f *files) OpenDir(_ stop, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	return f.alive(in.NodeId)
}

func (f *files) ReadDir(_ stop, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, st := f.node(in.NodeId)
	if !st.Ok() {
		return st
	}
	names := slices.Sorted(maps.Keys(dir.names))
	for i := in.Offset; i < uint64(len(names)); i++ {
		id := dir.names[names[i]]
		n := f.disk.now.nodes[id]
		if n != nil && !out.AddDirEntry(fuse.DirEntry{Name: names[i], Ino: id, Mode: n.mode, Off: i + 1}) {
			break
		}
	}
	return fuse.OK
}

func (f *files) StatFs(_ stop, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const blocks = maxFileBytes / pageBytes
	*out = fuse.StatfsOut{Blocks: blocks, Bfree: blocks, Bavail: blocks, Files: 1 << 30, Ffree: 1 << 30,
		Bsize: pageBytes, Frsize: pageBytes, NameLen: 255}
	return f.alive(in.NodeId)
}
