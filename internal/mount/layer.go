// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// pageBytes is the unit in which a layer keeps what is written.
const pageBytes = 4096

// ErrFull: the kernel's driver wrote more than the layer in memory may hold.
var ErrFull = errors.New("the layer in memory is full")

// layer is a volume that can be written to: what is written stays in memory.
type layer struct {
	under io.ReaderAt
	size  int64
	limit int64 // of bytes in pages
	full  atomic.Bool

	mu    sync.RWMutex
	pages map[int64]*[pageBytes]byte
}

func newLayer(under io.ReaderAt, size, limit int64) *layer {
	return &layer{under: under, size: size, limit: limit, pages: make(map[int64]*[pageBytes]byte)}
}

// ReadAt is io.ReaderAt.
func (l *layer) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= l.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > l.size-off {
		p, end = p[:l.size-off], io.EOF
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if page := l.pages[at/pageBytes]; page != nil {
			done += copy(p[done:], page[at%pageBytes:])
			continue
		}
		next := (at/pageBytes + 1) * pageBytes
		for next < off+int64(len(p)) && l.pages[next/pageBytes] == nil {
			next += pageBytes
		}
		n, err := readFull(l.under, p[done:min(len(p), int(next-off))], at)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, end
}

// readFull reads all of p, since what is short is an error here.
func readFull(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return n, nil
	case err == nil || errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("read %d bytes at %#x of the volume: %w", len(p), off, err)
}

// WriteAt is io.WriterAt. The errors are ErrFull and those of reading.
func (l *layer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > l.size || int64(len(p)) > l.size-off {
		return 0, io.ErrShortWrite
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		page := l.pages[at/pageBytes]
		if page == nil {
			if int64(len(l.pages)+1)*pageBytes > l.limit {
				l.full.Store(true)
				return done, ErrFull
			}
			page = new([pageBytes]byte)
			if at%pageBytes != 0 || len(p)-done < pageBytes {
				begin := at - at%pageBytes
				if _, err := readFull(l.under, page[:min(pageBytes, l.size-begin)], begin); err != nil {
					return done, err
				}
			}
			l.pages[at/pageBytes] = page
		}
		done += copy(page[at%pageBytes:], p[done:])
	}
	return done, nil
}

// diskName is the one file of the directory that a layer is served in, and diskNode its node.
const (
	diskName = "disk"
	diskNode = 2
)

// diskFile serves a layer as a file, for a loop device.
type diskFile struct {
	fuse.RawFileSystem
	layer *layer
	notes notes
	mode  uint32 // permissions of the file; 0 is 0600
	name  string // of the file; "" is diskName
}

func (d *diskFile) attr(id uint64, out *fuse.Attr) fuse.Status {
	switch id {
	case fuse.FUSE_ROOT_ID:
		*out = fuse.Attr{Ino: id, Mode: unix.S_IFDIR | 0o700, Nlink: 2, Blksize: pageBytes}
		out.Owner = fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	case diskNode:
		*out = fuse.Attr{Ino: id, Mode: unix.S_IFREG | cmp.Or(d.mode, 0o600), Nlink: 1, Blksize: pageBytes,
			Size: uint64(d.layer.size), Blocks: uint64(d.layer.size) / sectorBytes}
		out.Owner = fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	default:
		return fuse.ENOENT
	}
	return fuse.OK
}

func (d *diskFile) Lookup(_ stop, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != fuse.FUSE_ROOT_ID || name != cmp.Or(d.name, diskName) {
		return fuse.ENOENT
	}
	out.NodeId, out.Generation = diskNode, 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	return d.attr(diskNode, &out.Attr)
}

func (d *diskFile) GetAttr(_ stop, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(forever)
	return d.attr(in.NodeId, &out.Attr)
}

// SetAttr takes new times, which writing sets, and nothing else.
func (d *diskFile) SetAttr(_ stop, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if _, ok := in.GetSize(); ok {
		return fuse.EPERM
	}
	return d.attr(in.NodeId, &out.Attr)
}

func (d *diskFile) Open(_ stop, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (d *diskFile) Read(_ stop, in *fuse.ReadIn, p []byte) (fuse.ReadResult, fuse.Status) {
	n, err := d.layer.ReadAt(p[:min(len(p), int(in.Size))], int64(in.Offset))
	if err != nil && !errors.Is(err, io.EOF) {
		d.notes.add("the disk", err)
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(p[:n]), fuse.OK
}

func (d *diskFile) Write(_ stop, in *fuse.WriteIn, p []byte) (uint32, fuse.Status) {
	n, err := d.layer.WriteAt(p, int64(in.Offset))
	switch {
	case errors.Is(err, ErrFull):
		return uint32(n), fuse.Status(unix.ENOSPC)
	case err != nil:
		d.notes.add("the disk", err)
		return uint32(n), fuse.EIO
	}
	return uint32(n), fuse.OK
}

func (d *diskFile) Fsync(stop, *fuse.FsyncIn) fuse.Status { return fuse.OK }
func (d *diskFile) Flush(stop, *fuse.FlushIn) fuse.Status { return fuse.OK }
func (d *diskFile) StatFs(_ stop, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = pageBytes, pageBytes, longestName
	return fuse.OK
}
