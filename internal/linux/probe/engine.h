// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

// What the engines share: the event that they give, and how a task is written down while it lives.
// Everything that is told of a task is in the event, since it may be gone when somebody reads it.
#pragma once
#include "calls.h"

#define FRAMES 24      // frames kept of a kernel stack
#define COMMAND 256    // bytes kept of a command line
#define NAMES 8        // names kept of a path, the last first
#define NAME 48        // bytes kept of one name
#define GROUPS 3       // names kept of a control group, the innermost first
#define GROUP 96       // bytes kept of such a name: docker-<64 digits>.scope has 77
#define REGS 34        // x86-64 has 17, arm64 33
#define STACK 16384    // bytes kept of a user's stack
#define STACK_STEP 512 // read at once: what is not in memory ends the copy
#define DEPTH 4        // references of one task on one mount that are told apart
#define THREADS 8      // threads of one process that hold a mount and are found by the process
#define FORKING 100000000ULL // far more than it takes to copy a task, ns
// How long after a failed umount the drop of a reference is told, ns: lasting holders are found by
// looking, so this is for those that come and go.
#define SETTLE 1000000000ULL

// Kinds of events.
#define EV_UMOUNT 1  // a umount ended
#define EV_HOLD 2    // a reference that a umount may have met was dropped
#define EV_SUSPECT 3 // a system call that overlapped a umount

// Flags of events.
#define F_KERNEL 1       // a thread of the kernel
#define F_COMPAT 2       // a 32-bit system call: its number has another meaning
#define F_ATTACHED 4     // after the umount the mount is still there
#define F_CHILDREN 8     // there are mounts on it
#define F_SAME_CALL 16   // taken and dropped in one system call: the stack is that of both
#define F_RET 32         // ret was read, not concluded
#define F_COUNT 64       // count was read
#define F_RELEASE 128    // what the call was about held the mount until now: a file, a directory
#define F_IN_FLIGHT 256  // the umount had not ended yet
#define F_PEER 512       // the mount that was busy is a peer of the one asked for
#define F_EARLY 1024     // it was there already when the watching began

struct call {
	s64 nr; // -1: none
	u64 args[6];
	u8 text[TEXT];
};

struct event {
	u32 kind, flags;
	u64 ts;    // CLOCK_MONOTONIC, ns: the drop of the reference, the end of the umount's check
	u64 since; // when the reference was taken, the umount began; 0: not seen
	u64 start; // of the task, CLOCK_BOOTTIME, ns
	u64 mount, super, unique, peer;
	s64 count; // references at the check, or left after the drop
	s64 before; // references when the umount began
	s32 ret, mnt_id;
	u32 dev, mount_ns;
	u32 pid, tid, ppid, uid;
	u32 mntns, cpu;
	u32 ngot, nlet, ncommand, nstack;
	u8 comm[16], pcomm[16];
	struct call got, let; // the system calls that took and dropped it
	u64 got_frames[FRAMES], let_frames[FRAMES];
	u8 command[COMMAND];
	u8 exe[NAMES][NAME];
	u8 where[NAMES][NAME]; // of the mount point, or of the file that was dropped
	u8 group[GROUPS][GROUP];
	u64 regs[REGS];
};

struct names {
	u8 name[NAMES][NAME];
};

struct full {
	struct event e;
	u8 stack[STACK];
};

// mode is set while an engine is tried: it tells of everything then, not only around a umount.
struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, u32);
} mode SEC(".maps");

INLINE int tells_all(void)
{
	u32 zero = 0, *all = bpf_map_lookup_elem(&mode, &zero);

	return all && *all;
}

struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, 8 << 20);
} events SEC(".maps");

GLOBAL read_call(struct call *c)
{
	void *regs;

	if (!c)
		return 0;
	regs = user_regs();
	c->nr = call_number(regs);
	call_args(c->args, regs);
	c->text[0] = 0;
	u32 text = class_of(c->nr) & C_TEXT;

	if (text && text < 7)
		bpf_probe_read_user_str(c->text, TEXT, (void *)argument(c->args, text - 1));
	return 0;
}

// in_umount tells whether the current system call is umount or umount2.
INLINE int in_umount(void)
{
	s64 nr = call_number(user_regs());

	if (compat())
		return nr == compat_umount || nr == compat_oldumount;
	return !!(class_of(nr) & C_UMOUNT);
}

// write_names writes the names of a path, the last first, up to the root of the task's namespace.
GLOBAL write_names(struct names *to, u64 vfs, u64 dentry)
{
	struct mount *m = container((struct vfsmount *)vfs, struct mount, mnt);
	struct dentry *d = (struct dentry *)dentry;
	int n = 0;

	if (!to)
		return 0;
	for (int i = 0; i < 2 * NAMES && n < NAMES; i++) {
		struct dentry *up = get(d, d_parent);

		if (d == get(m, mnt.mnt_root) || d == up) {
			struct mount *below = get(m, mnt_parent);

			if (!below || below == m)
				break;
			d = get(m, mnt_mountpoint);
			m = below;
			continue;
		}
		if (n >= 0 && n < NAMES)
			bpf_probe_read_kernel_str(to->name[n], NAME, get(d, d_name.name));
		n++;
		d = up;
	}
	return n;
}

INLINE void names(u8 to[NAMES][NAME], struct vfsmount *vfs, struct dentry *d)
{
	write_names((struct names *)to, (u64)vfs, (u64)d);
}

INLINE struct kernfs_node *above(struct kernfs_node *k)
{
	if (has(struct kernfs_node___new, __parent))
		return get((struct kernfs_node___new *)k, __parent);
	return get((struct kernfs_node___old *)k, parent);
}

// command_of copies the command line of the current task, and gives how much of it was in memory.
INLINE u32 command_of(struct mm_struct *mm, u8 to[COMMAND])
{
	if (!mm)
		return 0;
	u64 at = get(mm, arg_start), n = get(mm, arg_end) - at;

	if (n > COMMAND)
		n = COMMAND;
	return bpf_probe_read_user(to, n, (void *)at) ? 0 : n;
}

// about writes down the current task.
GLOBAL about(struct event *e)
{
	struct task_struct *t = me(), *up;
	struct mm_struct *mm;
	struct kernfs_node *k;

	if (!e)
		return 0;
	u64 id = bpf_get_current_pid_tgid();

	e->pid = id >> 32;
	e->tid = id;
	e->uid = bpf_get_current_uid_gid();
	e->cpu = bpf_get_smp_processor_id();
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	up = get(t, real_parent);
	e->ppid = get(up, tgid);
	bpf_probe_read_kernel(e->pcomm, sizeof(e->pcomm), &up->comm);
	e->start = get((struct task_struct___engine *)t, start_boottime);
	// A task that ends may have left its namespaces.
	struct nsproxy *ns = get(t, nsproxy);

	if (ns)
		e->mntns = get(get(ns, mnt_ns), ns.inum);
	k = get(get(get((struct task_struct___engine *)t, cgroups), dfl_cgrp), kn);
	for (int i = 0; i < GROUPS && k; i++) {
		bpf_probe_read_kernel_str(e->group[i], GROUP, get(k, name));
		k = above(k);
	}
	mm = get(t, mm);
	if (!mm) {
		if (get(t, flags) & 0x00200000 /* PF_KTHREAD */)
			e->flags |= F_KERNEL;
		return 0;
	}
	e->ncommand = command_of(mm, e->command);
	struct file *exe = get(mm, exe_file);

	if (exe)
		names(e->exe, get(exe, f_path.mnt), get(exe, f_path.dentry));
	return 0;
}

// unique_of gives the number of a mount that no other ever gets, 0 before 6.8.
INLINE u64 unique_of(struct mount *m)
{
	if (!has(struct mount___unique, mnt_id_unique))
		return 0;
	return get((struct mount___unique *)m, mnt_id_unique);
}

// write_mount writes down a mount.
GLOBAL write_mount(struct event *e, u64 mount)
{
	struct mount *m = (struct mount *)mount;

	if (!e)
		return 0;
	struct super_block *s = get(m, mnt.mnt_sb);
	struct mnt_namespace *ns = get(m, mnt_ns);

	e->mount = (u64)m;
	e->super = (u64)s;
	e->dev = get(s, s_dev);
	e->mnt_id = get(m, mnt_id);
	e->unique = unique_of(m);
	if (ns && ns != (void *)-22 /* MNT_NS_INTERNAL */) {
		e->mount_ns = get(ns, ns.inum);
		e->flags |= F_ATTACHED;
	}
	if (get(m, mnt_mounts.next) != &m->mnt_mounts)
		e->flags |= F_CHILDREN;
	return 0;
}

INLINE void mounted(struct event *e, struct mount *m)
{
	write_mount(e, (u64)m);
}

// user_stack copies registers and the stack above them, to be unwound later.
GLOBAL user_stack(struct full *f)
{
	void *regs = user_regs();
	u64 sp;
	u32 n = 0;

	if (!f)
		return 0;
	if (has(struct pt_regs___x86, orig_ax)) {
		// In the order of DWARF: System V ABI, AMD64 supplement, figure 3.36.
		struct pt_regs___x86 *r = regs;
		u64 *to = f->e.regs;

		to[0] = get(r, ax); to[1] = get(r, dx); to[2] = get(r, cx); to[3] = get(r, bx);
		to[4] = get(r, si); to[5] = get(r, di); to[6] = get(r, bp); to[7] = get(r, sp);
		to[8] = get(r, r8); to[9] = get(r, r9); to[10] = get(r, r10); to[11] = get(r, r11);
		to[12] = get(r, r12); to[13] = get(r, r13); to[14] = get(r, r14); to[15] = get(r, r15);
		to[16] = get(r, ip);
		sp = to[7];
	} else {
		struct pt_regs___arm64 *r = regs;

		for (int i = 0; i < 31; i++)
			f->e.regs[i] = get(r, regs[i]);
		f->e.regs[31] = get(r, sp);
		f->e.regs[32] = get(r, pc);
		sp = f->e.regs[31];
	}
	for (int i = 0; i < STACK / STACK_STEP; i++) {
		if (bpf_probe_read_user(f->stack + i * STACK_STEP, STACK_STEP, (void *)(sp + i * STACK_STEP)))
			break;
		n += STACK_STEP;
	}
	f->e.nstack = n;
	return 0;
}

// roomy tells whether the ring is less than half full: only then an event has the user's stack, which is
// six times as much as all else of it.
INLINE int roomy(void)
{
	return bpf_ringbuf_query(&events, 0 /* BPF_RB_AVAIL_DATA */) * 2 <
	       bpf_ringbuf_query(&events, 1 /* BPF_RB_RING_SIZE */);
}

INLINE void begin_event(struct event *e, u32 kind)
{
	for (int i = 0; i < sizeof(*e) / 8; i++)
		((volatile u64 *)e)[i] = 0;
	e->kind = kind;
	e->ts = bpf_ktime_get_ns();
}

// new_event takes room for an event. The size of what is taken is what is written: zero first.
INLINE struct full *new_event(u32 kind)
{
	struct full *f;

	// Before 6.15 a full lock of the ring is given up at once: several tries, not a wait. Each try is
	// looked at once only: older verifiers (6.1) forget at the second look that there was one.
#pragma unroll
	for (int i = 0; i < 4; i++) {
		f = bpf_ringbuf_reserve(&events, sizeof(*f), 0);
		if (f)
			goto reserved;
	}
	count_lost(LOST_RING, 1);
	return NULL;
reserved:
	begin_event(&f->e, kind);
	return f;
}

INLINE u32 kernel_stack(void *ctx, u64 *to)
{
	s64 n = bpf_get_stack(ctx, to, FRAMES * 8, 0);

	return n > 0 ? (u32)n / 8 : 0;
}
