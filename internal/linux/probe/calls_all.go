// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import "golang.org/x/sys/unix"

// allCalls are the system calls that every processor has.
func allCalls() []call {
	return []call{
		{unix.SYS_UMOUNT2, "umount2", pathAt(0) | classUmount},
		{unix.SYS_OPENAT, "openat", pathAt(1) | classOpen},
		{unix.SYS_OPENAT2, "openat2", pathAt(1) | classOpen},
		{unix.SYS_CLOSE, "close", fdAt(0) | classClose},
		{unix.SYS_DUP3, "dup3", fdAt(1) | classClose},
		{unix.SYS_FSTAT, "fstat", fdAt(0) | bufAt(1) | classStat},
		{unix.SYS_STATX, "statx", pathAt(1) | bufAt(4) | classStatx},
		{unix.SYS_STATFS, "statfs", pathAt(0) | classStatfs},
		{unix.SYS_FSTATFS, "fstatfs", fdAt(0) | classStatfs},
		{unix.SYS_CHDIR, "chdir", pathAt(0) | classChdir},
		{unix.SYS_FCHDIR, "fchdir", fdAt(0) | classChdir},
		{unix.SYS_CHROOT, "chroot", pathAt(0)},
		{unix.SYS_EXECVE, "execve", pathAt(0)},
		{unix.SYS_EXECVEAT, "execveat", pathAt(1)},
		{unix.SYS_EXIT, "exit", classExit},
		{unix.SYS_EXIT_GROUP, "exit_group", classExit},
		{unix.SYS_FACCESSAT, "faccessat", pathAt(1)},
		{unix.SYS_FACCESSAT2, "faccessat2", pathAt(1)},
		{unix.SYS_READLINKAT, "readlinkat", pathAt(1)},
		{unix.SYS_GETDENTS64, "getdents64", fdAt(0)},
		{unix.SYS_MKDIRAT, "mkdirat", pathAt(1)},
		{unix.SYS_UNLINKAT, "unlinkat", pathAt(1)},
		{unix.SYS_RENAMEAT2, "renameat2", pathAt(1)},
		{unix.SYS_LINKAT, "linkat", pathAt(1)},
		{unix.SYS_SYMLINKAT, "symlinkat", pathAt(2)},
		{unix.SYS_FCHMODAT, "fchmodat", pathAt(1)},
		{unix.SYS_FCHOWNAT, "fchownat", pathAt(1)},
		{unix.SYS_UTIMENSAT, "utimensat", pathAt(1)},
		{unix.SYS_TRUNCATE, "truncate", pathAt(0)},
		{unix.SYS_MOUNT, "mount", pathAt(1)},
		{unix.SYS_GETXATTR, "getxattr", pathAt(0)},
		{unix.SYS_LGETXATTR, "lgetxattr", pathAt(0)},
		{unix.SYS_LISTXATTR, "listxattr", pathAt(0)},
		{unix.SYS_LLISTXATTR, "llistxattr", pathAt(0)},
		{unix.SYS_SETXATTR, "setxattr", pathAt(0)},
		{unix.SYS_INOTIFY_ADD_WATCH, "inotify_add_watch", pathAt(1)},
		{unix.SYS_NAME_TO_HANDLE_AT, "name_to_handle_at", pathAt(1)},
		// Without a class: only their names are told.
		{unix.SYS_READ, "read", 0},
		{unix.SYS_WRITE, "write", 0},
		{unix.SYS_MMAP, "mmap", 0},
		{unix.SYS_MUNMAP, "munmap", 0},
		{unix.SYS_CLOSE_RANGE, "close_range", 0},
		{unix.SYS_IO_URING_ENTER, "io_uring_enter", 0},
		{unix.SYS_RECVMSG, "recvmsg", 0},
		{unix.SYS_SETNS, "setns", 0},
		{unix.SYS_UNSHARE, "unshare", 0},
		{unix.SYS_OPEN_TREE, "open_tree", pathAt(1)},
		{unix.SYS_MOVE_MOUNT, "move_mount", pathAt(1)},
	}
}
