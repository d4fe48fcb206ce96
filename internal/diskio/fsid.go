// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The questions for the UUID of a file system, where statfs does not give it (linux/fs/xfs/libxfs/xfs_fs.h,
// linux/include/uapi/linux/btrfs.h).
const (
	// xfsGeometry is XFS_IOC_FSGEOMETRY_V1, _IOR('X', 100, 112 bytes), with the UUID at byte 64.
	xfsGeometry       = 0x80705864
	xfsGeometryBytes  = 112
	xfsGeometryUUID   = 64
	btrfsInfo         = 0x8400941f // BTRFS_IOC_FS_INFO, _IOR(0x94, 31, 1024 bytes), with the UUID at byte 16
	btrfsInfoBytes    = 1024
	btrfsInfoUUID     = 16
	bytesOfUUID       = 16
	digitsOfFSID      = 16
	digitsOfMagic     = 8
	hexadecimalPrefix = "0x"
)

// FileSystem tells a file system from others.
type FileSystem struct {
	// Type is its magic number, with 0x.
	Type string
	// ID is its UUID for XFS and btrfs, else the f_fsid of statfs, both as digits of hexadecimal; "" where the file
	// system has none, as NFS and FUSE, or another one each time that it is mounted, as tmpfs.
	ID string
	// Dev is the number of its device as long as it is mounted.
	Dev uint64
}

// FileSystemOf says on which file system a directory lies. XFS says the number of its device by statfs, which may be
// another at the next start of the machine, and btrfs something else for each subvolume: those are asked for their
// UUID. It waits as long as the storage does not answer.
func FileSystemOf(dir string) (FileSystem, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return FileSystem{}, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return FileSystem{}, &fs.PathError{Op: "ask for the file system of", Path: dir, Err: err}
	}
	var at unix.Stat_t
	if err := unix.Fstat(fd, &at); err != nil {
		return FileSystem{}, &fs.PathError{Op: "ask for the file system of", Path: dir, Err: err}
	}
	f := FileSystem{Type: fmt.Sprintf("%s%0*x", hexadecimalPrefix, digitsOfMagic, uint32(st.Type)), Dev: at.Dev}
	switch uint32(st.Type) {
	case unix.XFS_SUPER_MAGIC:
		f.ID, err = uuidBy(fd, xfsGeometry, xfsGeometryBytes, xfsGeometryUUID)
	case unix.BTRFS_SUPER_MAGIC:
		f.ID, err = uuidBy(fd, btrfsInfo, btrfsInfoBytes, btrfsInfoUUID)
	case unix.TMPFS_MAGIC: // a random one (mm/shmem.c, shmem_fill_super)
	default:
		if n := uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32; n != 0 {
			var b [digitsOfFSID / 2]byte
			binary.LittleEndian.PutUint64(b[:], n)
			f.ID = hex.EncodeToString(b[:])
		}
	}
	if err != nil {
		return FileSystem{}, &fs.PathError{Op: "ask for the file system of", Path: dir, Err: err}
	}
	return f, nil
}

// uuidBy asks a file system for its UUID by a call that fills size bytes, and has it at off.
func uuidBy(fd int, call uintptr, size, off int) (string, error) {
	b := make([]byte, size)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), call, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return "", errno
	}
	return hex.EncodeToString(b[off : off+bytesOfUUID]), nil
}
