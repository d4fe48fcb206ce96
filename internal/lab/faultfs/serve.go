// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"maps"
	"math"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// stop tells that nobody waits for an answer any more. A request that hangs hangs on: it is the
// caller that then waits in state D.
type stop = <-chan struct{}

const (
	blockBytes = 4096
	noFlush    = 1 << 5 // FOPEN_NOFLUSH, linux/fuse.h
	// attrSeconds is how long the kernel keeps what it knows of a cached file.
	attrSeconds = 3600
)

// directory answers the kernel: one directory with files whose names never change. What it does not
// answer is not supported.
type directory struct {
	fuse.RawFileSystem
	names []string // of the files, in order: the node of the n-th is n+2, the directory is 1
	files []*file
}

func newDirectory(files map[string]*file) *directory {
	d := &directory{RawFileSystem: fuse.NewDefaultRawFileSystem(),
		names: slices.Sorted(maps.Keys(files))}
	for _, name := range d.names {
		d.files = append(d.files, files[name])
	}
	return d
}

// file gives that of a node, nil for the directory.
func (d *directory) file(node uint64) (*file, fuse.Status) {
	switch {
	case node == fuse.FUSE_ROOT_ID:
		return nil, fuse.OK
	case node-2 < uint64(len(d.files)):
		return d.files[node-2], fuse.OK
	}
	return nil, fuse.ENOENT
}

// look asks the rules of a file about a request for what is known of it. Those of the directory are
// those of its first file: one rule is enough to stop all that looks.
func (d *directory) look(node uint64) (*file, fuse.Status) {
	f, st := d.file(node)
	asked := f
	if asked == nil && len(d.files) > 0 {
		asked = d.files[0]
	}
	if st.Ok() && asked != nil {
		_, errno := asked.ask(Look, 0, 0)
		st = fuse.Status(errno)
	}
	return f, st
}

func (d *directory) attr(node uint64, f *file, out *fuse.Attr) fuse.Status {
	*out = fuse.Attr{Ino: node, Mode: unix.S_IFDIR | 0o755, Nlink: 1, Blksize: blockBytes}
	if f == nil {
		return fuse.OK
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.store.Fd()), &st); err != nil {
		return fuse.Status(errnoOf(err))
	}
	out.Mode, out.Size, out.Blocks = unix.S_IFREG|0o600, uint64(st.Size), uint64(st.Blocks)
	return fuse.OK
}

func (d *directory) Lookup(_ stop, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	i, found := slices.BinarySearch(d.names, name)
	if !found || h.NodeId != fuse.FUSE_ROOT_ID {
		return fuse.ENOENT
	}
	out.NodeId, out.Generation = uint64(i+2), 1
	f, st := d.look(out.NodeId)
	if f != nil && f.cached {
		out.AttrValid = attrSeconds
	}
	if st.Ok() {
		st = d.attr(out.NodeId, f, &out.Attr)
	}
	return st
}

func (d *directory) GetAttr(_ stop, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f, st := d.look(in.NodeId)
	if f != nil && f.cached {
		out.AttrValid = attrSeconds
	}
	if st.Ok() {
		st = d.attr(in.NodeId, f, &out.Attr)
	}
	return st
}

// SetAttr lets times and modes be set, and forgets them; no file changes its size.
func (d *directory) SetAttr(_ stop, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	f, st := d.file(in.NodeId)
	if _, sized := in.GetSize(); sized {
		return fuse.EPERM
	}
	if st.Ok() {
		st = d.attr(in.NodeId, f, &out.Attr)
	}
	return st
}

func (d *directory) Open(_ stop, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f, st := d.look(in.NodeId)
	// To close a file is no request: nobody is to hang for having it open.
	out.OpenFlags = noFlush
	if st.Ok() && f != nil && !f.cached {
		// Each read and write of the loop device above comes here, and its error goes back there.
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	return st
}

func (d *directory) Read(_ stop, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f, st := d.file(in.NodeId)
	if !st.Ok() || f == nil || in.Offset > math.MaxInt64 {
		return nil, fuse.EINVAL
	}
	n, errno := f.readAt(buf, int64(in.Offset))
	if errno != 0 {
		return nil, fuse.Status(errno)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (d *directory) Write(_ stop, in *fuse.WriteIn, p []byte) (uint32, fuse.Status) {
	f, st := d.file(in.NodeId)
	if !st.Ok() || f == nil || in.Offset > math.MaxInt64 {
		return 0, fuse.EINVAL
	}
	if errno := f.writeAt(p, int64(in.Offset)); errno != 0 {
		return 0, fuse.Status(errno)
	}
	return uint32(len(p)), fuse.OK
}

// Fallocate serves what a loop device makes of discard and of writing zeros.
func (d *directory) Fallocate(_ stop, in *fuse.FallocateIn) fuse.Status {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	f, st := d.file(in.NodeId)
	switch {
	case !st.Ok() || f == nil || in.Offset > math.MaxInt64 || in.Length > math.MaxInt64:
		return fuse.EINVAL
	case in.Mode == unix.FALLOC_FL_PUNCH_HOLE|keep, in.Mode == unix.FALLOC_FL_ZERO_RANGE|keep:
		return fuse.Status(f.discard(int64(in.Offset), int64(in.Length)))
	}
	return fuse.Status(unix.EOPNOTSUPP)
}

func (d *directory) Fsync(_ stop, in *fuse.FsyncIn) fuse.Status {
	f, st := d.file(in.NodeId)
	if st.Ok() && f != nil {
		st = fuse.Status(f.sync())
	}
	return st
}

// Flush is what close does.
func (d *directory) Flush(_ stop, _ *fuse.FlushIn) fuse.Status { return fuse.OK }

func (d *directory) OpenDir(_ stop, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	_, st := d.look(in.NodeId)
	return st
}

func (d *directory) ReadDir(_ stop, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	for i := in.Offset; i < uint64(len(d.names)); i++ {
		e := fuse.DirEntry{Name: d.names[i], Ino: i + 2, Mode: unix.S_IFREG, Off: i + 1}
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

func (d *directory) StatFs(_ stop, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if len(d.files) == 0 {
		return fuse.OK
	}
	if _, st := d.look(fuse.FUSE_ROOT_ID); !st.Ok() {
		return st
	}
	var st unix.Statfs_t
	err := unix.Fstatfs(int(d.files[0].store.Fd()), &st)
	if err != nil {
		return fuse.Status(errnoOf(err))
	}
	*out = fuse.StatfsOut{Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files,
		Ffree: st.Ffree, Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize), NameLen: 255}
	return fuse.OK
}
