// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

// System calls, as all programs but the iterators see them: by which task, with which arguments.
#pragma once
#include "kern.h"

#define TEXT 160       // bytes kept of an argument that is a string
#define CALLS 512      // system calls that have a class

#define NOINLINE static __attribute__((noinline, unused))
// Verified once by itself, whoever calls it: where much is said of a task, it is said by these. Memory
// is given by pointers to structs, which may be NULL; addresses of the kernel are numbers.
#define GLOBAL __attribute__((noinline)) int

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct task_struct___engine {
	u64 start_time, start_boottime;
	struct css_set *cgroups;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct kernfs_node {
	const char *name;
};

struct kernfs_node___old {
	struct kernfs_node *parent;
};

struct kernfs_node___new { // 6.15
	struct kernfs_node *__parent;
};

struct thread_info___x86 {
	u32 status;
};

struct task_struct___x86 {
	struct thread_info___x86 thread_info;
};

// What a task entered the kernel with.
struct pt_regs___x86 {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax; // number of the system call
	unsigned long ip, sp;
};

struct pt_regs___arm64 {
	u64 regs[31], sp, pc, orig_x0;
	s32 syscallno;
};

#pragma clang attribute pop

static void *(*bpf_get_current_task_btf)(void) = (void *)158;
static long (*bpf_task_pt_regs)(struct task_struct *task) = (void *)175;

// Classes of system calls: which argument says what; filled in from user space.
#define C_TEXT 0x7      // 1 + the argument that is a path, 0: none
#define C_FD 0x38       // 1 + the argument that is a descriptor, shifted by 3
#define C_UMOUNT 0x40
#define C_STAT 0x80     // its result is a struct stat at argument C_BUF
#define C_STATX 0x100   // its result is a struct statx at argument C_BUF
#define C_BUF 0xe00     // the argument, shifted by 9
#define C_OPEN 0x1000   // it returns a descriptor
#define C_CLOSE 0x2000  // it drops the file at C_FD
#define C_CHDIR 0x4000  // it drops the working directory
#define C_EXIT 0x8000   // the task ends
#define C_STATFS 0x10000
#define C_FORK 0x20000  // it makes a task

// What could not be told, by reason. Nothing is lost silently.
#define LOST_RING 0   // the ring buffer was full
#define LOST_TABLE 1  // a table was full
#define LOST_COMPAT 2 // 32-bit calls that were not looked at
#define LOST_SEEN 3   // not lost: how often an engine ran for a reference
#define LOST_MAX 8

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, LOST_MAX);
	TYPE(key, u32);
	TYPE(value, u64);
} lost SEC(".maps");

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, CALLS);
	TYPE(key, u32);
	TYPE(value, u32);
} classes SEC(".maps");

const volatile u32 compat_umount = 52, compat_oldumount = 22; // umount2 and umount of i386

INLINE void count_lost(u32 which, u64 n)
{
	u64 *v = bpf_map_lookup_elem(&lost, &which);

	if (v)
		*v += n;
}

#define has(type, member) field_exists(((type *)0)->member)

INLINE struct task_struct *me(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

// user_regs gives the registers with which the task entered the kernel.
INLINE void *user_regs(void)
{
	return (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
}

INLINE s64 call_number(void *regs)
{
	if (has(struct pt_regs___x86, orig_ax))
		return get((struct pt_regs___x86 *)regs, orig_ax);
	return get((struct pt_regs___arm64 *)regs, syscallno);
}

INLINE void call_args(u64 *args, void *regs)
{
	if (has(struct pt_regs___x86, orig_ax)) {
		struct pt_regs___x86 *r = regs;

		args[0] = get(r, di);
		args[1] = get(r, si);
		args[2] = get(r, dx);
		args[3] = get(r, r10);
		args[4] = get(r, r8);
		args[5] = get(r, r9);
		return;
	}
	struct pt_regs___arm64 *r = regs;

	args[0] = get(r, orig_x0);
	for (int i = 1; i < 6; i++)
		args[i] = get(r, regs[i]);
}

// argument gives one of six arguments, 0 for others. An index that is no constant is followed by newer
// verifiers only (6.1 refuses it), and compilers like to make one.
INLINE u64 argument(const u64 args[6], u64 n)
{
	u64 v = 0;

#pragma unroll
	for (int i = 0; i < 6; i++)
		if (n == i) {
			v = args[i];
			asm volatile("" : "+r"(v));
		}
	return v;
}

// user_at gives instruction and stack pointer, which tell two system calls of one task apart.
INLINE void user_at(u64 at[2], void *regs)
{
	if (has(struct pt_regs___x86, orig_ax)) {
		at[0] = get((struct pt_regs___x86 *)regs, ip);
		at[1] = get((struct pt_regs___x86 *)regs, sp);
		return;
	}
	at[0] = get((struct pt_regs___arm64 *)regs, pc);
	at[1] = get((struct pt_regs___arm64 *)regs, sp);
}

INLINE u32 class_of(s64 nr)
{
	u32 k = nr;

	if (nr < 0 || nr >= CALLS)
		return 0;
	u32 *c = bpf_map_lookup_elem(&classes, &k);

	return c ? *c : 0;
}

// compat tells of a 32-bit system call. TS_COMPAT is in thread_info of x86 only.
INLINE int compat(void)
{
	if (!has(struct thread_info___x86, status))
		return 0;
	struct task_struct *t = me();

	return !!(get((struct task_struct___x86 *)t, thread_info.status) & 2);
}

// file_of gives the file behind a descriptor of the current task.
INLINE struct file *file_of(u64 fd)
{
	struct files_struct *files = get(me(), files);

	if (!files)
		return NULL;
	struct fdtable *t = get(files, fdt);

	if (fd >= get(t, max_fds))
		return NULL;
	return peek(get(t, fd) + fd);
}

// raw is what a raw tracepoint is given.
struct raw {
	u64 args[2];
};
