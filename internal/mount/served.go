// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

const (
	// forever is how long the kernel may keep what it was told: nothing changes.
	forever = 365 * 24 * time.Hour
	// maxNodeBytes bounds the inodes that are kept with their attributes.
	maxNodeBytes = 64 << 20
	// longestName is what statfs gives; guests' file systems have no longer ones.
	longestName = 255
)

// stop tells that nobody waits for an answer any more. It is not listened to: signals arrive while
// programs read, each answer is at hand soon, and a reader in another process cannot be stopped in
// the middle of one without ending it.
type stop = <-chan struct{}

// served answers the kernel. The number of a node is that of the guest's inode, so no table of nodes
// has to be kept; only 1, which is the root for FUSE, and the guest's root change places. What is
// not answered here, such as changes, never comes: the mount is read-only.
type served struct {
	fuse.RawFileSystem
	fs    files.FS
	info  files.Info
	notes notes
	nodes cache[*node]
	lists listings
}

func newServed(fsys files.FS, log func(string)) *served {
	s := &served{RawFileSystem: fuse.NewDefaultRawFileSystem(), fs: fsys, info: fsys.Info(),
		notes: notes{log: log}, nodes: cache[*node]{limit: maxNodeBytes},
		lists: listings{limit: maxListed}}
	s.lists.kept.limit = maxListingBytes
	return s
}

// other gives the node of an inode, and the inode of a node.
func (s *served) other(n uint64) uint64 {
	switch n {
	case fuse.FUSE_ROOT_ID:
		return uint64(s.info.Root)
	case uint64(s.info.Root):
		return fuse.FUSE_ROOT_ID
	}
	return n
}

// open gives the inode of a node.
func (s *served) open(id uint64) (*node, fuse.Status) {
	n, err := s.node(files.Ino(s.other(id)))
	if err != nil {
		return nil, s.fail(fmt.Sprintf("inode %d", s.other(id)), err)
	}
	return n, fuse.OK
}

// node opens an inode, or gives one that was.
func (s *served) node(ino files.Ino) (*node, error) {
	if n, ok := s.nodes.get(ino); ok {
		return n, nil
	}
	f, err := s.fs.Open(context.Background(), ino)
	if err != nil {
		return nil, err
	}
	return s.keep(ino, f)
}

// keep keeps an inode that was opened, unless the kernel could do nothing with it.
func (s *served) keep(ino files.Ino, f files.File) (*node, error) {
	n := &node{ino: ino, file: f}
	st := f.Stat()
	switch {
	case st.Size < 0:
		return nil, fmt.Errorf("its size is %d", st.Size)
	case !known(st.Mode):
		return nil, fmt.Errorf("its mode is 0%o, which is of no type", st.Mode)
	}
	s.nodes.put(ino, n, nodeBytes)
	return n, nil
}

// known reports whether a mode is of a type that inodes have.
func known(mode uint32) bool {
	switch mode & files.TypeMask {
	case files.TypeSocket, files.TypeLink, files.TypeRegular, files.TypeBlock, files.TypeDir,
		files.TypeChar, files.TypeFIFO:
		return true
	}
	return false
}

// fail notes what could not be read, and gives the status of the call.
func (s *served) fail(what string, err error) fuse.Status {
	s.notes.add(what, err)
	return fuse.EIO
}

func (s *served) attr(st *files.Stat, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: uint64(st.Ino), Size: uint64(st.Size), Blocks: uint64(st.Sectors), Mode: st.Mode,
		Nlink: st.Links, Owner: fuse.Owner{Uid: st.UID, Gid: st.GID},
		// Times before 1970 are negative for the kernel too.
		Atime: uint64(st.Atime.Seconds), Atimensec: st.Atime.Nanoseconds,
		Mtime: uint64(st.Mtime.Seconds), Mtimensec: st.Mtime.Nanoseconds,
		Ctime: uint64(st.Ctime.Seconds), Ctimensec: st.Ctime.Nanoseconds,
		// new_encode_dev of the kernel (linux/kdev_t.h): 12 bits of major, 20 of minor.
		Rdev:    st.Minor&0xff | st.Major<<8 | st.Minor&^0xff<<12,
		Blksize: uint32(s.info.BlockBytes),
	}
}

// entry answers with an inode.
func (s *served) entry(n *node, out *fuse.EntryOut) {
	out.NodeId = s.other(uint64(n.ino))
	if out.NodeId != fuse.FUSE_ROOT_ID { // the kernel wants none of the root
		out.Generation = uint64(n.file.Stat().Generation)
	}
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	s.attr(n.file.Stat(), &out.Attr)
}

func (s *served) Lookup(_ stop, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir := files.Ino(s.other(h.NodeId))
	ino, found, err := s.lists.find(dir, name, s.names(dir))
	if err == nil && !found {
		ino, found, err = s.folded(dir, name)
	}
	switch {
	case err != nil:
		return s.fail(fmt.Sprintf("directory %d", dir), err)
	case !found:
		// A node of 0 with a time says for how long there is no such name.
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	n, err := s.node(ino)
	if err != nil {
		return s.fail(fmt.Sprintf("%q in directory %d, inode %d", name, dir, ino), err)
	}
	s.entry(n, out)
	return fuse.OK
}

// folded looks for a name that is not there as it is written, in a directory of a guest that does not
// care for case. It is an error if the guest may find it by rules that are not known here.
func (s *served) folded(dir files.Ino, name string) (files.Ino, bool, error) {
	n, err := s.node(dir)
	if err != nil {
		return 0, false, err
	}
	fold := files.FoldOf(s.info, n.file.Stat())
	if fold == files.FoldNone {
		return 0, false, nil
	}
	ino, found, unsure := files.Ino(0), false, false
	err = s.lists.each(dir, s.names(dir), func(e files.Entry) bool {
		found = fold.Same(e.Name, name)
		ino = e.Ino
		unsure = unsure || fold.Unsure(e.Name, name)
		return !found
	})
	switch {
	case found:
		return ino, true, nil
	case err == nil && unsure:
		err = fmt.Errorf("%q: the guest does not care for case here, and may find it by rules of Unicode that "+
			"are not known", name)
	}
	return 0, false, err
}

// names reads a directory for its names alone.
func (s *served) names(dir files.Ino) entries {
	return func(fn func(files.Entry) error) error {
		n, err := s.node(dir)
		if err != nil {
			return err
		}
		return n.file.Entries(context.Background(), fn)
	}
}

// nodesOf reads a directory with its inodes, where that is cheaper than to open each.
func (s *served) nodesOf(dir files.Ino) entries {
	namer, ok := s.fs.(files.Namer)
	if !ok {
		return s.names(dir)
	}
	return func(fn func(files.Entry) error) error {
		return namer.Names(context.Background(), dir, func(e files.Entry, f files.File, _ error) error {
			if f != nil {
				// What is wrong with one is told when somebody asks for it.
				_, _ = s.keep(e.Ino, f)
			}
			return fn(e)
		})
	}
}

func (s *served) GetAttr(_ stop, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, status := s.open(in.NodeId)
	if status.Ok() {
		out.SetTimeout(forever)
		s.attr(n.file.Stat(), &out.Attr)
	}
	return status
}

// Statx tells when an inode was made, which GetAttr cannot.
func (s *served) Statx(_ stop, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n, status := s.open(in.NodeId)
	if !status.Ok() {
		return status
	}
	st := n.file.Stat()
	out.SetTimeout(forever)
	out.Statx = fuse.Statx{
		Mask: unix.STATX_BASIC_STATS, Blksize: uint32(s.info.BlockBytes), Nlink: st.Links,
		Uid: st.UID, Gid: st.GID, Mode: uint16(st.Mode), Ino: uint64(st.Ino), Size: uint64(st.Size),
		Blocks: uint64(st.Sectors), Atime: sxTime(st.Atime), Mtime: sxTime(st.Mtime),
		Ctime: sxTime(st.Ctime), RdevMajor: st.Major, RdevMinor: st.Minor,
	}
	if st.Birth != (files.Time{}) {
		out.Mask |= unix.STATX_BTIME
		out.Btime = sxTime(st.Birth)
	}
	return fuse.OK
}

func sxTime(t files.Time) fuse.SxTime {
	return fuse.SxTime{Sec: uint64(t.Seconds), Nsec: t.Nanoseconds}
}

func (s *served) Readlink(_ stop, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, status := s.open(h.NodeId)
	if !status.Ok() {
		return nil, status
	}
	size := n.file.Stat().Size
	err := error(unix.ENAMETOOLONG)
	if size < files.MaxLinkBytes {
		to := make([]byte, size)
		if _, err = io.ReadFull(io.NewSectionReader(n.file, 0, size), to); err == nil {
			return to, fuse.OK
		}
	}
	return nil, s.fail(fmt.Sprintf("target of link %d", n.ino), err)
}

// Open leaves nothing to be kept for each open file: the kernel calls it once.
func (s *served) Open(stop, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir is as Open.
func (s *served) OpenDir(stop, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

func (s *served) Read(_ stop, in *fuse.ReadIn, p []byte) (fuse.ReadResult, fuse.Status) {
	n, status := s.open(in.NodeId)
	if !status.Ok() {
		return nil, status
	}
	// What is longer than the file would make the kernel believe that it is shorter.
	size, off := n.file.Stat().Size, int64(in.Offset)
	p = p[:max(0, min(int64(len(p)), int64(in.Size), size-off))]
	if len(p) == 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	got, err := n.file.ReadAt(p, off)
	if got < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, s.fail(fmt.Sprintf("%d bytes at %d of inode %d", len(p), off, n.ino), err)
	}
	return fuse.ReadResultData(p), fuse.OK
}

// Lseek finds data and holes.
func (s *served) Lseek(_ stop, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n, status := s.open(in.NodeId)
	if !status.Ok() {
		return status
	}
	off, size := int64(in.Offset), n.file.Stat().Size
	if off < 0 || off >= size {
		return fuse.Status(unix.ENXIO)
	}
	begin, end, err := n.data(off)
	if err != nil {
		return s.fail(fmt.Sprintf("extents of inode %d", n.ino), err)
	}
	switch {
	case in.Whence == unix.SEEK_DATA && begin >= size:
		return fuse.Status(unix.ENXIO)
	case in.Whence == unix.SEEK_DATA:
		off = max(off, begin)
	case in.Whence == unix.SEEK_HOLE && begin <= off:
		off = min(end, size)
	case in.Whence != unix.SEEK_HOLE:
		return fuse.EINVAL
	}
	out.Offset = uint64(off)
	return fuse.OK
}

func (s *served) ReadDir(_ stop, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(in, s.names, func(e fuse.DirEntry) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus gives the inodes with the names, so that those who ask for both need not ask again.
func (s *served) ReadDirPlus(_ stop, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(in, s.nodesOf, func(e fuse.DirEntry) bool {
		to := out.AddDirLookupEntry(e)
		if to == nil || e.Name == "." || e.Name == ".." {
			return to != nil
		}
		n, err := s.node(files.Ino(e.Ino))
		if err != nil {
			// Without an inode the kernel asks for the name when somebody needs it; that is noted then.
			return true
		}
		s.entry(n, to)
		out.FixMode(n.file.Stat().Mode)
		return true
	})
}

// readDir gives the entries from an offset on, which is the number of an entry. What could not be
// read of a directory is an error behind the last of them.
func (s *served) readDir(
	in *fuse.ReadIn, read func(files.Ino) entries, add func(fuse.DirEntry) bool,
) fuse.Status {
	dir := files.Ino(s.other(in.NodeId))
	number := int64(in.Offset)
	if number < 0 {
		return fuse.EINVAL
	}
	for given := 0; ; given++ {
		l := s.lists.at(dir, number, read(dir))
		i := int(min(number-l.first, int64(len(l.entries))))
		if i == len(l.entries) {
			if l.err == nil || given > 0 {
				return fuse.OK
			}
			s.lists.kept.drop(dir) // the next one may be able to read it
			return s.fail(fmt.Sprintf("directory %d", dir), l.err)
		}
		e := &l.entries[i]
		if !add(fuse.DirEntry{Name: l.name(i), Ino: uint64(e.ino), Mode: e.typ,
			Off: uint64(number) + 1}) {
			return fuse.OK
		}
		number++
	}
}

func (s *served) GetXAttr(_ stop, h *fuse.InHeader, name string, p []byte) (uint32, fuse.Status) {
	attrs, status, err := s.xattrs(h)
	if !status.Ok() {
		return 0, status
	}
	for _, a := range attrs {
		if a.name == name {
			return give(p, a.value)
		}
	}
	if err != nil {
		return 0, s.fail(fmt.Sprintf("attributes of inode %d", s.other(h.NodeId)), err)
	}
	return 0, fuse.ENOATTR
}

func (s *served) ListXAttr(_ stop, h *fuse.InHeader, p []byte) (uint32, fuse.Status) {
	attrs, status, err := s.xattrs(h)
	if status.Ok() && err != nil {
		status = s.fail(fmt.Sprintf("attributes of inode %d", s.other(h.NodeId)), err)
	}
	if !status.Ok() {
		return 0, status
	}
	var names []byte
	for _, a := range attrs {
		// As on a disk: those who may not read them do not see them.
		if h.Uid == 0 || !strings.HasPrefix(a.name, "trusted.") {
			names = append(append(names, a.name...), 0)
		}
	}
	return give(p, []byte(names))
}

// give answers with a value, or only with its length if nothing is there to take it.
func give(p, value []byte) (uint32, fuse.Status) {
	if len(p) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(p, value)), fuse.OK
}

func (s *served) xattrs(h *fuse.InHeader) ([]xattr, fuse.Status, error) {
	n, status := s.open(h.NodeId)
	if !status.Ok() {
		return nil, status, nil
	}
	attrs, err := n.xattrs(func(bytes int64) { s.nodes.put(n.ino, n, bytes) })
	return attrs, fuse.OK, err
}

// Ioctl gives the flags of an inode, as lsattr shows them.
func (s *served) Ioctl(
	_ stop, in *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, p []byte,
) fuse.Status {
	if in.Cmd != unix.FS_IOC_GETFLAGS || len(p) < 4 {
		return fuse.Status(unix.ENOTTY)
	}
	n, status := s.open(in.NodeId)
	if status.Ok() {
		binary.NativeEndian.PutUint32(p, n.file.Stat().Flags)
	}
	return status
}

func (s *served) StatFs(_ stop, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	block := max(1, s.info.BlockBytes)
	*out = fuse.StatfsOut{
		Blocks: uint64(s.info.SizeBytes / block), Bfree: uint64(s.info.FreeBytes / block),
		Bavail: uint64(s.info.FreeBytes / block), Files: uint64(s.info.Inodes),
		Ffree: uint64(s.info.FreeInodes), Bsize: uint32(block), Frsize: uint32(block),
		NameLen: longestName,
	}
	return fuse.OK
}
