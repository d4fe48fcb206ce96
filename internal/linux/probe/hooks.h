// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

// The engines fentry and kprobe: the kernel's own functions that take and drop references of mounts,
// and those that a umount asks whether there are any. Only functions are hooked that are called from
// another file of the kernel (fs/namespace.c, fs/pnode.c, security/security.c), which no compiler can
// have made part of their callers.
//
// One source for two objects: with BREAKPOINTS the functions are met by kprobes, which know the
// arguments at the begin of a function and the result at its end, and else by trampolines, which know
// both at the end.
#pragma once
#include "hold.h"

const volatile u32 any = 0; // tell of all mounts

// ids are the mounts that are asked for.
struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, 64);
	TYPE(key, u32);
	TYPE(value, u32);
} ids SEC(".maps");

struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 1024);
	TYPE(key, u64);
	TYPE(value, struct window);
} windows SEC(".maps");

// Functions whose begin is noted for their end.
enum {
	IN_COUNT,
	IN_BUSY,
	IN_LEGITIMIZE,
	IN_MNTPUT,
};

struct inside {
	u64 arg, ts;
};

struct within {
	u32 tid, function;
};

struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 8192);
	TYPE(key, struct within);
	TYPE(value, struct inside);
} begun SEC(".maps");

NOINLINE int begin(u32 function, u64 arg)
{
	struct within k = {(u32)bpf_get_current_pid_tgid(), function};
	struct inside v = {arg, bpf_ktime_get_ns()};

	bpf_map_update_elem(&begun, &k, &v, 0);
	return 0;
}

INLINE struct inside begin_of(u32 function)
{
	struct within k = {(u32)bpf_get_current_pid_tgid(), function};
	struct inside v = {}, *at = bpf_map_lookup_elem(&begun, &k);

	if (at) {
		v = *at;
		bpf_map_delete_elem(&begun, &k);
	}
	return v;
}

INLINE int wanted(struct mount *m)
{
	u32 id;

	if (any)
		return 1;
	id = get(m, mnt_id);
	return !!bpf_map_lookup_elem(&ids, &id);
}

INLINE struct window *window_of(u64 mount)
{
	struct window none = {}, *w = bpf_map_lookup_elem(&windows, &mount);

	if (w)
		return w;
	if (bpf_map_update_elem(&windows, &mount, &none, 1 /* BPF_NOEXIST */))
		count_lost(LOST_TABLE, 1);
	return bpf_map_lookup_elem(&windows, &mount);
}

INLINE struct umounting *mine(void)
{
	u64 tid = (u32)bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&umounts, &tid);
}

// sb_umount: a umount has found its mount and is allowed to go on.
INLINE int sb_umount(struct vfsmount *v)
{
	struct umounting u = {};
	u64 tid = (u32)bpf_get_current_pid_tgid();
	struct mount *m = mount_of(v);

	if (!m || !wanted(m))
		return 0;
	u.mount = (u64)m;
	u.ts = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&umounts, &tid, &u, 0))
		count_lost(LOST_TABLE, 1);
	return 0;
}

// busy_begins: from here to busy_ends the kernel counts.
INLINE int busy_begins(u64 mount)
{
	struct umounting *u = mine();
	struct window *w;

	if (!u || u->mount != mount || u->from)
		return 0;
	u->from = bpf_ktime_get_ns();
	w = window_of(mount);
	if (w)
		__sync_fetch_and_add(&w->active, 1);
	return 0;
}

INLINE int busy_ends(u64 mount)
{
	struct umounting *u = mine();
	struct window *w;

	if (!u || u->mount != mount || !u->from || u->to)
		return 0;
	u->to = bpf_ktime_get_ns();
	w = bpf_map_lookup_elem(&windows, &mount);
	if (w && w->active) {
		w->last_from = u->from;
		w->last_to = u->to;
		__sync_fetch_and_add(&w->active, -1);
	}
	return 0;
}

// counted: what the kernel counted, of the mount or of a peer of it.
INLINE int counted(u64 mount, s64 count)
{
	struct umounting *u = mine();
	struct window *w;

	if (!u || !u->from || u->to || !mount)
		return 0;
	if (mount == u->mount) {
		u->count = count;
		return 0;
	}
	if (count <= 1)
		return 0;
	u->peer = mount;
	w = window_of(mount);
	if (w) {
		w->last_from = u->from;
		w->last_to = bpf_ktime_get_ns();
	}
	return 0;
}

INLINE int umount_ends(void *ctx, s64 ret)
{
	u64 tid = (u32)bpf_get_current_pid_tgid();
	struct umounting *at = bpf_map_lookup_elem(&umounts, &tid);
	struct full *f;

	if (!at)
		return 0;
	struct umounting u = *at;
	struct mount *m = (struct mount *)u.mount;

	bpf_map_delete_elem(&umounts, &tid);
	f = new_event(EV_UMOUNT);
	if (!f)
		return 0;
	if (u.to)
		f->e.ts = u.to;
	f->e.since = u.from ? u.from : u.ts;
	f->e.ret = ret;
	f->e.flags = F_RET;
	if (u.count) {
		f->e.count = u.count;
		f->e.before = u.count;
		f->e.flags |= F_COUNT;
	}
	f->e.peer = u.peer;
	about(&f->e);
	// A mount that is gone may not be there any more.
	if (ret) {
		mounted(&f->e, m);
		names(f->e.where, &m->mnt, get(m, mnt.mnt_root));
	} else {
		f->e.mount = u.mount;
		f->e.mnt_id = get(m, mnt_id);
	}
	read_call(&f->e.got);
	f->e.let.nr = -1;
	f->e.nlet = kernel_stack(ctx, f->e.let_frames);
	user_stack(f);
	bpf_ringbuf_submit(f, 0);
	return 0;
}

INLINE int gets(void *ctx, struct vfsmount *v, u64 ts)
{
	struct mount *m = mount_of(v);

	if (!m || in_umount() || !wanted(m))
		return 0;
	taken(ctx, (u64)m, ts);
	return 0;
}

INLINE int puts(void *ctx, struct vfsmount *v)
{
	struct mount *m = mount_of(v);
	u64 k = (u64)m;
	struct window none = {}, *w;

	if (!m || in_umount())
		return 0;
	w = bpf_map_lookup_elem(&windows, &k);
	if (!w) {
		if (!wanted(m))
			return 0;
		w = &none;
	}
	count_lost(LOST_SEEN, 1);
	return dropped(ctx, m, w, bpf_ktime_get_ns(), -1);
}

#ifdef BREAKPOINTS
#define BEGIN(name, function) SEC("kprobe/" function) int name(void *ctx)
#define END(name, function) SEC("kretprobe/" function) int name(void *ctx)
#define ARG0 first_arg(ctx)
#define RET(n) result(ctx)

INLINE u64 first_arg(void *regs)
{
	if (has(struct pt_regs___x86, orig_ax))
		return get((struct pt_regs___x86 *)regs, di);
	return get((struct pt_regs___arm64 *)regs, regs[0]);
}

INLINE u64 result(void *regs)
{
	if (has(struct pt_regs___x86, orig_ax))
		return get((struct pt_regs___x86 *)regs, ax);
	return get((struct pt_regs___arm64 *)regs, regs[0]);
}

BEGIN(count_begin, "mnt_get_count")
{
	return mine() ? begin(IN_COUNT, ARG0) : 0;
}

BEGIN(mntput_begin, "mntput")
{
	return begin(IN_MNTPUT, ARG0);
}

#define ARG_AT_END(function) begin_of(function).arg
#else
#define BEGIN(name, function) SEC("fentry/" function) int name(u64 *ctx)
#define END(name, function) SEC("fexit/" function) int name(u64 *ctx)
#define ARG0 number(ctx[0])
#define RET(args) ctx[args]
#define ARG_AT_END(function) ARG0

// number makes a number of what the verifier knows to be a pointer.
INLINE u64 number(u64 pointer)
{
	u64 n = 0;

	bpf_probe_read_kernel(&n, sizeof(n), &pointer);
	return n;
}
#endif

BEGIN(security_begin, "security_sb_umount")
{
	return sb_umount((struct vfsmount *)ARG0);
}

BEGIN(busy_begin, "propagate_mount_busy")
{
	u64 m = ARG0;

	begin(IN_BUSY, m);
	return busy_begins(m);
}

END(busy_end, "propagate_mount_busy")
{
	return busy_ends(begin_of(IN_BUSY).arg);
}

END(count_end, "mnt_get_count")
{
	if (!mine())
		return 0;
	u64 m = ARG_AT_END(IN_COUNT);

	return counted(m, (s32)RET(1));
}

END(umount_end, "path_umount")
{
	return umount_ends(ctx, (s32)RET(2));
}

// The reference is taken somewhere in the function: at its begin at the earliest.
BEGIN(legitimize_begin, "__legitimize_mnt")
{
	return begin(IN_LEGITIMIZE, ARG0);
}

END(legitimize_end, "__legitimize_mnt")
{
	struct inside at = begin_of(IN_LEGITIMIZE);

	if ((s32)RET(2) || !at.ts)
		return 0;
	return gets(ctx, (struct vfsmount *)at.arg, at.ts);
}

BEGIN(mntget_begin, "mntget")
{
	return gets(ctx, (struct vfsmount *)ARG0, bpf_ktime_get_ns());
}

// It is dropped somewhere in the function: at its end at the latest.
END(mntput_end, "mntput")
{
	return puts(ctx, (struct vfsmount *)ARG_AT_END(IN_MNTPUT));
}

char _license[] SEC("license") = "Dual MIT/GPL";
