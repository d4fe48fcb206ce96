// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package files is what a guest's file system holds, in the words that all file systems share:
// inodes, names, extents, and how much of it could be read. internal/guest/ext4 and
// internal/guest/xfs fill it; what walks trees, copies files out or looks for the file behind a
// broken cluster reads it and does not ask which file system it is.
//
// Two rules hold for whoever implements [FS]:
//
//   - What could not be read is said twice: the call that met it ends with an error, and the view
//     becomes [Incomplete] with the [Problem]. Nobody gets a shorter list without both.
//   - Nothing is believed for its size. Each loop, depth and allocation is bounded by the size of
//     the volume or by a named limit.
package files

import (
	"context"
	"fmt"
	"io"
)

// Ino is the number of an inode.
type Ino uint64

// State says how much a view can be relied on.
type State string

const (
	// Clean: the file system was unmounted, or nothing was in its journal that is not in its place.
	Clean State = "clean"
	// Recovered: what the journal held was replayed, in memory; the view is the one that a mount
	// would give.
	Recovered State = "recovered"
	// Incomplete: something could not be read, does not fit together, or was not replayed. What is
	// listed is there; more may have been.
	Incomplete State = "incomplete"
)

// The bounds of what is kept about one file system.
const (
	// MaxProblems is how many problems a view keeps; the others are counted.
	MaxProblems = 1000
	// MaxNameBytes is the longest name of a file system that is known here, with room.
	MaxNameBytes = 1024
	// MaxDepth is how deep directories are followed. The kernel has no bound, but a path of this
	// many names is longer than any system call takes.
	MaxDepth = 4096
	// MaxPathBytes is how long the path of a directory is that is followed: a walk keeps that of each
	// level, and Linux takes 4096 bytes at once.
	MaxPathBytes = 64 << 10
	// MaxNames is how many names a walk comes to: no disk holds more that somebody waits for, and a
	// reader that was taken over could go on for ever.
	MaxNames = 1 << 32
	// MaxSetWords is how many words a Set has, of 64 inodes each. It takes 80 MiB then.
	MaxSetWords = 2 << 20
	// MaxXattrBytes is the longest value of an extended attribute that Linux allows.
	MaxXattrBytes = 64 << 10
	// MaxLinkBytes is the longest target of a symbolic link that Linux allows.
	MaxLinkBytes = 4096
)

// Info describes a file system.
type Info struct {
	// Kind is the name that Linux gives it: "ext2", "ext3", "ext4", "xfs".
	Kind  string `json:"kind"`
	Label string `json:"label"`
	UUID  string `json:"uuid"`
	// BlockBytes is the size of a block, and of what it counts its space in.
	BlockBytes int64 `json:"block_bytes"`
	// SizeBytes is its length, FreeBytes what statfs would give as free.
	SizeBytes  int64 `json:"size_bytes"`
	FreeBytes  int64 `json:"free_bytes"`
	Inodes     int64 `json:"inodes"`
	FreeInodes int64 `json:"free_inodes"`
	// Root is the inode of its first directory.
	Root Ino `json:"root"`
	// Features are its features by the names of its tools, in the order of its superblock.
	Features []string `json:"features"`
	// Record is what it keeps of itself, as of before its journal was replayed.
	Record Record `json:"record"`
}

// Record is what a file system writes down about what happened to it. XFS keeps no more than Dirty.
// Times are in seconds since 1970, 0 where there is none.
type Record struct {
	// Dirty: it was not unmounted, and its journal says so.
	Dirty bool `json:"dirty"`
	// State is that of ext4: "clean", "not clean", "errors"; OnError is what the kernel does at an
	// error, "continue", "remount-ro" or "panic". Both are "" for others.
	State   string `json:"state"`
	OnError string `json:"on_error"`
	// Errors is how many were met since the last check; First and Last are two of them.
	Errors int64 `json:"errors"`
	First  Fault `json:"first"`
	Last   Fault `json:"last"`
	// Aborted is the error for which the kernel gave the journal up, 0 if it did not.
	Aborted int64 `json:"aborted"`
	// Made, Mounted, Written and Checked are when that was done last.
	Made    int64 `json:"made"`
	Mounted int64 `json:"mounted"`
	Written int64 `json:"written"`
	Checked int64 `json:"checked"`
	// ReservedBytes is how much is kept free for root.
	ReservedBytes int64 `json:"reserved_bytes"`
	// At is the directory where it was mounted last.
	At string `json:"at"`
}

// Fault is an error that a file system noted.
type Fault struct {
	Time int64 `json:"time"`
	// Func and Line are the place in the kernel, Code is the kernel's word for the error by number.
	Func  string `json:"func"`
	Line  int64  `json:"line"`
	Code  int64  `json:"code"`
	Ino   Ino    `json:"ino"`
	Block int64  `json:"block"`
}

// View is the state of what was read so far, with its reasons.
type View struct {
	State State `json:"state"`
	// Transactions and Blocks say how much of the journal was replayed.
	Transactions int64 `json:"transactions"`
	Blocks       int64 `json:"blocks"`
	// Problems are at most MaxProblems; More is how many there were beyond.
	Problems []Problem `json:"problems"`
	More     int64     `json:"more"`
}

// Problem is a reason why a view is incomplete, or damage that does not hide anything.
type Problem struct {
	// What is wrong, as one sentence without a full stop: "inode 17: checksum is 0x12, want 0x34".
	What string `json:"what"`
	// Offset is its place on the volume in bytes, -1 where it has none; Length is 0 with -1.
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	// Ino is the inode that is hurt by it, 0 where none is known.
	Ino Ino `json:"ino"`
	// Hides: something may be missing from the view, or be wrong in it. Without it the damage is in
	// what no file needs, such as a second copy.
	Hides bool `json:"hides"`
}

// FS is a file system that is being looked into. It may be used by several goroutines at once.
// Errors are those of ctx, or *[Error].
type FS interface {
	// Info describes it. It reads nothing.
	Info() Info
	// View gives the state of what was read so far.
	View() View
	// Open gives an inode. It is an error if it is not in use.
	Open(ctx context.Context, ino Ino) (File, error)
	// Inodes calls fn for each inode in use that files can have, in ascending order, with those that
	// no directory names (orphans); a *Stat is valid during the call only. It reads on after an
	// inode that cannot be read, and ends with the first error in that case. It ends at once with
	// an error of fn.
	Inodes(ctx context.Context, fn func(*Stat) error) error
	// Owners calls fn with what each part of [offset, offset+length) of the volume is for, in
	// ascending order and without gaps. It may have to read all inodes for the first call.
	Owners(ctx context.Context, ranges []Range, fn func(Owner) error) error
}

// File is an inode.
type File interface {
	Stat() *Stat
	// ReadAt reads the content of a regular file, and the target of a symbolic link; other types
	// have none and give io.EOF. Holes and unwritten extents are zeros.
	io.ReaderAt
	// Extents calls fn for where the content lies, in ascending order of Extent.Offset; what is
	// between two extents, and behind the last up to the size, is a hole.
	Extents(ctx context.Context, fn func(Extent) error) error
	// Entries calls fn for the entries of a directory in the order of the disk, with "." and "..".
	// It reads on after a block that cannot be read, and ends with the first error in that case.
	Entries(ctx context.Context, fn func(Entry) error) error
	// Xattrs calls fn for the extended attributes, by their full names as "user.comment" and
	// "system.posix_acl_access", with the values that the kernel would give.
	Xattrs(ctx context.Context, fn func(name string, value []byte) error) error
}

// Stat is what stat(2) tells of an inode, and what belongs to it.
type Stat struct {
	Ino Ino
	// Mode is st_mode: the type in the bits of S_IFMT, and the permissions.
	Mode  uint32
	Links uint32
	UID   uint32
	GID   uint32
	// Size is in bytes; Sectors is st_blocks, in units of 512 bytes.
	Size    int64
	Sectors int64
	// Major and Minor are those of a device node.
	Major, Minor uint32
	// Times; Birth is the zero Time where the file system does not keep it. Deleted is when an
	// orphan lost its last name, as far as the file system says so.
	Atime, Mtime, Ctime, Birth, Deleted Time
	Generation                          uint32
	// Flags are those of FS_IOC_GETFLAGS, as lsattr shows them.
	Flags uint32
	// Project is the project id of its quota.
	Project uint32
}

// The types of an inode in Stat.Mode, as in inode(7).
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeLink    = 0o120000
	TypeRegular = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFIFO    = 0o010000
)

// IsDir reports whether it is a directory.
func (s *Stat) IsDir() bool { return s.Mode&TypeMask == TypeDir }

// IsRegular reports whether it is a regular file.
func (s *Stat) IsRegular() bool { return s.Mode&TypeMask == TypeRegular }

// Time is a time of a file: seconds since 1970 in UTC and nanoseconds, as they are on the disk.
// They are kept apart since a disk can hold times that time.Time prints wrongly.
type Time struct {
	Seconds     int64
	Nanoseconds uint32
}

// Entry is a name in a directory.
type Entry struct {
	// Name is as it is on the disk, of any bytes.
	Name string
	Ino  Ino
	// Type is one of the types of an inode's mode, 0 where the directory does not tell.
	Type uint32
}

// Extent is a part of a file's content and its place.
type Extent struct {
	// Offset is its position in the file, Length its length, both in bytes. The last one may reach
	// beyond the size of the file.
	Offset, Length int64
	// Volume is its position on the volume, in bytes. Inline content (in the inode) has its place
	// too; it may be in two pieces.
	Volume int64
	// Unwritten: the space is reserved and reads as zeros.
	Unwritten bool
	// Shared: other files, or other places of the same, may use the same bytes (reflink).
	Shared bool
}

// Range is a part of the volume, in bytes.
type Range struct {
	Offset, Length int64
}

// Use says what a part of a volume is for.
type Use string

const (
	// UseData: content of the inode Owner.Ino, at Owner.File.
	UseData Use = "data"
	// UseReserved: space of a file that was never written: unwritten, or beyond its end.
	UseReserved Use = "reserved"
	// UseInode: a block that says where the content of Owner.Ino lies, its directory, or its extended
	// attributes; Owner.What says which.
	UseInode Use = "inode_metadata"
	// UseMetadata: of the file system as a whole; Owner.What names it, as "inode table of group 3".
	UseMetadata Use = "metadata"
	// UseJournal: the journal.
	UseJournal Use = "journal"
	// UseFree: free space: no file is hurt.
	UseFree Use = "free"
	// UseOutside: beyond the end of the file system.
	UseOutside Use = "outside"
	// UseUnknown: what the file system says could not be read, or contradicts itself.
	UseUnknown Use = "unknown"
)

// Owner says what a part of the volume is for.
type Owner struct {
	Range Range
	Use   Use
	// Ino is 0 where no inode owns it. A part that several own (reflink) is given several times.
	Ino Ino
	// File is the position in the file that the range begins at, in bytes; -1 where it has none.
	File int64
	// What names metadata, or says why nothing is known.
	What string
}

// Error is what could not be read, and where.
type Error struct {
	// What was being read, as "directory block 3 of inode 17".
	What string
	// Offset is the place on the volume in bytes, -1 where it has none.
	Offset int64
	Ino    Ino
	Err    error

	noted bool // by Notes.Fail
}

func (e *Error) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("%s: %v", e.What, e.Err)
	}
	return fmt.Sprintf("%s at 0x%x: %v", e.What, e.Offset, e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }
