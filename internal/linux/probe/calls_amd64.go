// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import "golang.org/x/sys/unix"

// userRegs is how many registers DWARF numbers: rax to r15, and the return address.
const userRegs = 17

func calls() []call {
	return append(allCalls(),
		call{unix.SYS_OPEN, "open", pathAt(0) | classOpen},
		call{unix.SYS_CREAT, "creat", pathAt(0) | classOpen},
		call{unix.SYS_STAT, "stat", pathAt(0) | bufAt(1) | classStat},
		call{unix.SYS_LSTAT, "lstat", pathAt(0) | bufAt(1) | classStat},
		call{unix.SYS_NEWFSTATAT, "newfstatat", pathAt(1) | bufAt(2) | classStat},
		call{unix.SYS_ACCESS, "access", pathAt(0)},
		call{unix.SYS_READLINK, "readlink", pathAt(0)},
		call{unix.SYS_MKDIR, "mkdir", pathAt(0)},
		call{unix.SYS_RMDIR, "rmdir", pathAt(0)},
		call{unix.SYS_UNLINK, "unlink", pathAt(0) | classRemove},
		call{unix.SYS_RENAME, "rename", pathAt(0) | classRemove},
		call{unix.SYS_MKNOD, "mknod", pathAt(0)},
		call{unix.SYS_UTIME, "utime", pathAt(0)},
		call{unix.SYS_UTIMES, "utimes", pathAt(0)},
		call{unix.SYS_FUTIMESAT, "futimesat", pathAt(1)},
		call{unix.SYS_FORK, "fork", classFork},
		call{unix.SYS_VFORK, "vfork", classFork},
		call{unix.SYS_POLL, "poll", 0},
		call{unix.SYS_EPOLL_WAIT, "epoll_wait", 0},
		call{unix.SYS_PAUSE, "pause", 0},
		call{unix.SYS_LINK, "link", pathAt(0)},
		call{unix.SYS_SYMLINK, "symlink", pathAt(1)},
		call{unix.SYS_CHMOD, "chmod", pathAt(0)},
		call{unix.SYS_CHOWN, "chown", pathAt(0)},
		call{unix.SYS_LCHOWN, "lchown", pathAt(0)},
		call{unix.SYS_DUP2, "dup2", fdAt(1) | classClose},
	)
}
