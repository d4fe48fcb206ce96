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
	"strings"
	"time"
)

// Errors of opening a file for repair, for errors.Is.
var (
	// ErrInUse: another program uses the file. The error is an *InUseError.
	ErrInUse = errors.New("is in use")
	// ErrNoLocks: the file system keeps no locks, so nobody can tell whether the file is in use.
	ErrNoLocks = errors.New("the file system keeps no locks")
	// ErrNoSync: the file system cannot be told to write the names in a directory to the disk, so
	// nobody knows whether a new file is found after a power cut.
	ErrNoSync = errors.New("the file system writes no directory to the disk when told to")
)

// InUseError is ErrInUse with what the lock bytes of the file say.
type InUseError struct {
	Path  string
	State LockState
	// Kernel: the kernel itself uses the block device, for a mount, a volume group or the like.
	Kernel bool
}

func (e *InUseError) Error() string {
	if e.Kernel {
		return e.Path + " is in use by the kernel of this host (mounted, or part of another device)"
	}
	return fmt.Sprintf("%s is in use by another program (%s)", e.Path, e.State)
}

// Is makes errors.Is(e, ErrInUse) true.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// Permissions names what the other program does with the file, "" where it only forbids.
func (e *InUseError) Permissions() string {
	var used []string
	for p := range numPermissions {
		if e.State.Used[p] {
			used = append(used, p.String())
		}
	}
	return strings.Join(used, ", ")
}

// Identity tells a file apart from all others, also after its inode number was given away again.
type Identity struct {
	Stat
	// Born is when the file was made; zero where the file system does not say.
	Born time.Time
	// Owner is the user that the file belongs to, and Public whether every user may write to it.
	Owner  uint32
	Public bool
}

// Same reports whether both are the same file. The number of a device may change when the host
// starts again, the time of birth does not.
func (i Identity) Same(j Identity) bool {
	if i.Ino != j.Ino {
		return false
	}
	if !i.Born.IsZero() && !j.Born.IsZero() {
		return i.Born.Equal(j.Born)
	}
	return i.Dev == j.Dev
}

// Trusts reports whether what stands in another file may decide what is written to i: its owner is
// root, the user of this program, or one who may write to i anyhow.
func (i Identity) Trusts(j Identity) bool {
	if i.Public {
		return true
	}
	return !j.Public && (j.Owner == 0 || j.Owner == i.Owner || int64(j.Owner) == int64(os.Geteuid()))
}

// Readable is a file open for reading.
type Readable interface {
	io.ReaderAt
	io.Closer
	// Identity looks at the file as it is now.
	Identity() (Identity, error)
}

// Writable is a file open for a change. It may be used by one goroutine at a time.
type Writable interface {
	Readable
	io.WriterAt
	// Truncate makes the file shorter, or longer by zeros.
	Truncate(sizeBytes int64) error
	// Sync returns when all that was written is on the disk. After an error nobody knows what is;
	// a later success says nothing of what was written before the error.
	Sync() error
	// DropCache makes later reads come from the disk, where the kernel and the file system can do
	// that; where they cannot it does nothing.
	DropCache() error
}

// Looker is the half of a Disk that changes nothing.
type Looker interface {
	// Open opens a file for reading; the errors are those of the function Open.
	Open(path string) (Readable, error)
	// List gives the paths of the regular files in dir, and of all directories below it with deep,
	// whose names keep wants; sorted. What could not be read is told by the error, beside the paths.
	// A path that is no directory is ErrNotDirectory.
	List(ctx context.Context, dir string, deep bool, keep func(name string) bool) ([]string, error)
	// RealPath is the absolute path without symbolic links.
	RealPath(path string) (string, error)
	// LookAt says what a name itself is: a symbolic link at its end is not followed.
	LookAt(path string) (Named, error)
	// ReadLink gives where a symbolic link leads to.
	ReadLink(path string) (string, error)
	// Room is how much may still be written to the file system of path.
	Room(path string) (Room, error)
}

// Named is what a name leads to, without a symbolic link being followed.
type Named struct {
	// Mode is the type, and the permissions with setuid, setgid and sticky.
	Mode         fs.FileMode
	Owner, Group uint32
	SizeBytes    int64
	// Links is how many names the file has.
	Links uint64
}

// Room is the space of a file system.
type Room struct {
	// FreeBytes may still be written by this program, of TotalBytes that there are in all.
	FreeBytes, TotalBytes int64
	// Dev is the device that it is mounted as.
	Dev uint64
}

// Shared reports whether both are of one file system. Several that take their space from one pool
// are devices of their own, and tell the same numbers.
func (r Room) Shared(s Room) bool {
	return r.Dev == s.Dev || r.FreeBytes == s.FreeBytes && r.TotalBytes == s.TotalBytes
}

// ErrNotDirectory: the name is something else than a directory.
var ErrNotDirectory = errors.New("is not a directory")

// Opener opens existing files for a change. Both follow no symbolic link, not even on the way.
type Opener interface {
	// OpenForRepair opens a regular file or block device and takes the lock bytes that QEMU takes
	// to write. Beside the errors of Open they are ErrInUse and ErrNoLocks.
	OpenForRepair(path string) (Writable, error)
	// OpenWithoutLocks is OpenForRepair that takes no locks and sees none.
	OpenWithoutLocks(path string) (Writable, error)
}

// Names changes names. A change of a name is on the disk for sure after SyncDir of its directory.
type Names interface {
	// CreateNew makes a file with the mode perm, whatever the umask, and opens it, locked where the
	// file system keeps locks. An existing
	// name is never touched: the error is then fs.ErrExist.
	CreateNew(path string, perm fs.FileMode) (Writable, error)
	// MakeLink makes a symbolic link. An existing name is never touched, as by CreateNew.
	MakeLink(to, path string) error
	// Rename gives a file another name in the same directory; who had that name loses it.
	Rename(from, to string) error
	// Remove removes the name of a file.
	Remove(path string) error
	// MakeDir makes a directory and those above it that are missing, with the mode perm. It returns
	// when the name of the directory is on the disk, also where it was there before.
	MakeDir(path string, perm fs.FileMode) error
	// SyncDir returns when the names in the directory are on the disk; ErrNoSync where that cannot be
	// had.
	SyncDir(path string) error
}

// Disk is all that a change of files needs of the machine. Host is the real one; tests have others,
// which lose power.
type Disk interface {
	Looker
	Opener
	Names
}
