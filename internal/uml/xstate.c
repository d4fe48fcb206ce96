// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// What User Mode Linux 6.1 loads before its C library, so that it runs on processors with AMX.
//
// It keeps 2696 bytes of the floating-point registers of each of its processes, which is what processors have
// up to PKRU, and gives them back by PTRACE_SETREGSET. Linux takes nothing but the whole (xstateregs_set in
// arch/x86/kernel/fpu/regset.c: EFAULT otherwise), and with AMX that is 11008 bytes: the first process of the
// guest ends with "ptrace set fp regs failed, errno = 14". Here the rest is what the process has already.
//
// The kernel of the guest has one thread that does so, and none of it is interrupted by another.

typedef unsigned long size_t;

struct iovec {
	void *base;
	size_t len;
};

#define PTRACE_PEEKTEXT 1
#define PTRACE_PEEKUSER 3
#define PTRACE_GETREGSET 0x4204
#define PTRACE_SETREGSET 0x4205
#define NT_X86_XSTATE 0x202
#define SYS_PTRACE 101
#define EFAULT 14

extern int *__errno_location(void);

// whole has room for the registers of processors to come; with more it is EFAULT again.
static unsigned char whole[32768] __attribute__((aligned(64)));
static int wide; // the whole is more than is kept

static long call(long request, long pid, void *addr, void *data)
{
	register void *r10 __asm__("r10") = data;
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "0"((long)SYS_PTRACE), "D"(request), "S"(pid), "d"(addr), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
}

// set gives a process the registers that are kept of it, and leaves it those that are not.
static long set(long pid, struct iovec *kept)
{
	struct iovec all = {whole, sizeof(whole)};
	long ret = wide ? -EFAULT : call(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, kept);

	if (ret != -EFAULT)
		return ret;
	ret = call(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &all);
	if (ret)
		return ret;
	if (kept->len >= all.len)
		return -EFAULT;
	for (size_t i = 0; i < kept->len; i++)
		((volatile unsigned char *)whole)[i] = ((unsigned char *)kept->base)[i];
	ret = call(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, &all);
	wide = !ret;
	return ret;
}

// ptrace is as in the C library.
long ptrace(int request, int pid, void *addr, void *data)
{
	int peeks = request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSER;
	long word = 0, ret;

	if (request == PTRACE_SETREGSET && addr == (void *)NT_X86_XSTATE)
		ret = set(pid, data);
	else
		ret = call(request, pid, addr, peeks ? &word : data);
	if (ret < 0) {
		*__errno_location() = (int)-ret;
		return -1;
	}
	if (!peeks)
		return ret;
	*__errno_location() = 0;
	return word;
}
