// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The offsets in struct seccomp_data (linux/seccomp.h).
const (
	seccompNumber = 0
	seccompArch   = 4
	seccompFirst  = 16 // the low half of the first argument, of which pids and flags have no more
	seccompFourth = 40 // and of the fourth
	// bitsX32 is set in the numbers of amd64's x32 calls, which are none of ours.
	bitsX32 = 0x40000000
)

// allowed are the system calls of a Go program that computes, and sends and receives on sockets that
// are open: memory, threads, clocks. Nothing opens, connects, executes, traces or ends another
// process: fcntl(2) is none of them since F_SETOWN and F_SETSIG send signals too. Those that an
// architecture has beyond are in allowedHere.
var allowed = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_CLOSE,
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MPROTECT, unix.SYS_BRK,
	unix.SYS_FUTEX, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_SET_ROBUST_LIST,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	unix.SYS_GETPID, unix.SYS_GETEUID, unix.SYS_GETTID, unix.SYS_RESTART_SYSCALL,
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_GETTIMEOFDAY,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETRANDOM,
	unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EVENTFD2,
	unix.SYS_RSEQ, unix.SYS_WRITEV,
}

// filter is a program of classic BPF for the process pid: calls of this architecture that are allowed pass, all others
// fail with ENOSYS, which whoever tries a new call takes for an old kernel.
func filter(pid int) []unix.SockFilter {
	calls := append(append([]uint32{}, allowed...), allowedHere...)
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		jset = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	p := []unix.SockFilter{
		{Code: load, K: seccompArch},
		{Code: jeq, Jt: 1, K: auditArch},
		{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: seccompNumber},
		{Code: jge, Jt: uint8(len(calls) + 9), K: bitsX32},
		// A clone is a thread, never a process.
		{Code: jeq, Jf: 2, K: unix.SYS_CLONE},
		{Code: load, K: seccompFirst},
		{Code: jset, Jt: uint8(len(calls) + 7), Jf: uint8(len(calls) + 6), K: unix.CLONE_THREAD},
		// The runtime sends signals to its own threads; others may be processes of the same user.
		{Code: jeq, Jf: 2, K: unix.SYS_TGKILL},
		{Code: load, K: seccompFirst},
		{Code: jeq, Jt: uint8(len(calls) + 4), Jf: uint8(len(calls) + 3), K: uint32(pid)},
		// RLIMIT_DATA counts all other memory that can be written.
		{Code: jeq, Jf: 2, K: unix.SYS_MMAP},
		{Code: load, K: seccompFourth},
		{Code: jset, Jt: uint8(len(calls)), Jf: uint8(len(calls) + 1), K: unix.MAP_SHARED | unix.MAP_GROWSDOWN},
	}
	for i, nr := range calls {
		p = append(p, unix.SockFilter{Code: jeq, Jt: uint8(len(calls) - i), K: nr})
	}
	return append(p,
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
}

// confine makes the filter that of all threads, for ever. It needs no privilege after
// PR_SET_NO_NEW_PRIVS.
func confine() error {
	p := filter(unix.Getpid())
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
