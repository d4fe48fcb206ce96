// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// The syscall engine: which system calls overlap a umount. It needs no more than two tracepoints
// that every kernel has, and knows a call's file system by the device number in its result, by the
// file behind a descriptor, or by the path. What it tells of are suspects: that a call overlapped a
// umount does not prove that it held the mount; a file or directory that was let go afterwards does.
#include "suspects.h"

#define TARGETS 8

// devices are those that are asked for.
struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, TARGETS);
	TYPE(key, u32);
	TYPE(value, u32);
} devices SEC(".maps");

struct prefix {
	u32 bits;
	u8 text[TEXT];
};

struct place {
	u32 dev, len;
};

// places are where they are mounted. The longest that a path begins with is found.
struct {
	UINT(type, 11 /* BPF_MAP_TYPE_LPM_TRIE */);
	UINT(max_entries, TARGETS);
	UINT(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	TYPE(key, struct prefix);
	TYPE(value, struct place);
} places SEC(".maps");

const volatile u32 any = 0; // tell of all devices

const volatile s64 own_umount = 0; // the number of umount2
const volatile u32 own_space = 0;  // the mount namespace of the mounts that are asked for, 0: any

// begun is when a task entered the system call that it is in. It is written only when a umount is
// under way or failed a moment ago: what was not noted began before that. The arguments are read at
// the end, and only where they matter.
struct begun {
	u64 ts;
	s64 nr;
};

struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 16384);
	TYPE(key, u32);
	TYPE(value, struct begun);
} calls SEC(".maps");

struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, 1024);
	TYPE(key, u32);
	TYPE(value, struct entered);
} umounts SEC(".maps");

// young tells when files of the devices that are asked for were opened: one opened after a umount failed
// did not make it fail.
struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 8192);
	TYPE(key, u64);
	TYPE(value, u64);
} young SEC(".maps");

// quiet tells that nobody unmounts, nor did a moment ago: nearly always. Then a system call costs two
// runs of a program that looks here and ends.
INLINE int quiet(void)
{
	return !*(volatile u64 *)&seen.active && !*(volatile u64 *)&seen.failed && !tells_all();
}

// since gives when a file was opened or a directory entered, 0: before any umount failed.
INLINE u64 since(u64 k)
{
	u64 *ts = bpf_map_lookup_elem(&young, &k);

	return ts ? *ts : 0;
}

// of_cwd is the key in young of a process's directory: no address of a file.
INLINE u64 of_cwd(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

INLINE u32 dev_of(struct vfsmount *v)
{
	return v ? get(get(v, mnt_sb), s_dev) : 0;
}

// wanted tells whether a device is one that was asked for.
INLINE int wanted(u32 dev)
{
	return any || bpf_map_lookup_elem(&devices, &dev);
}

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct prefix);
} scratch SEC(".maps");

// recent tells whether a umount is under way, or failed a moment ago.
INLINE int recent(struct umounted *u, u64 now)
{
	return u->active || (u->failed && now - u->failed < SETTLE) || tells_all();
}

// encoded gives the kernel's own form of a device number from that of a struct stat.
INLINE u32 encoded(u64 major, u64 minor)
{
	return (u32)(major << 20 | minor);
}

// concerns gives the device that a call that ended was about, 0: not known.
NOINLINE u32 concerns(struct entered *c, s64 ret)
{
	u32 class, zero = 0;

	if (!c)
		return 0;
	class = class_of(c->nr);
	u64 n = (class & C_BUF) >> 9;

	if (ret == 0 && n < 6 && class & C_STAT) {
		u64 dev = 0;

		bpf_probe_read_user(&dev, sizeof(dev), (void *)argument(c->args, n));
		// new_encode_dev: the minor number has its upper bits above the major one.
		return encoded((dev & 0xfff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xfff00));
	}
	if (ret == 0 && n < 6 && class & C_STATX) {
		u32 dev[2] = {}; // stx_dev_major and stx_dev_minor: include/uapi/linux/stat.h

		bpf_probe_read_user(dev, sizeof(dev), (void *)(argument(c->args, n) + 0x88));
		return encoded(dev[0], dev[1]);
	}
	u64 fd = (class & C_FD) >> 3;
	struct file *f = NULL;

	if (class & C_OPEN && ret >= 0)
		f = file_of(ret);
	else if (fd && fd < 7)
		f = file_of(argument(c->args, fd - 1));
	if (f)
		return dev_of(get(f, f_path.mnt));
	u32 text = class & C_TEXT;

	if (!text || text > 6)
		return 0;
	struct prefix *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s)
		return 0;
	s->text[0] = 0;
	bpf_probe_read_user_str(s->text, TEXT, (void *)argument(c->args, text - 1));
	if (s->text[0] != '/')
		return s->text[0] ? dev_of(get(get(me(), fs), pwd.mnt)) : 0;
	s->bits = TEXT * 8;
	struct place *p = bpf_map_lookup_elem(&places, s);

	if (!p || p->len >= TEXT || (s->text[p->len] && s->text[p->len] != '/'))
		return 0;
	return p->dev;
}

// held tells whether a path is in a mount that was asked for.
INLINE int held(struct path *p)
{
	struct vfsmount *v = get(p, mnt);

	return v && wanted(dev_of(v));
}

// held_file gives the path of a file that is, by its descriptor.
NOINLINE struct path *held_file(u64 fd)
{
	struct file *f = file_of(fd);

	return f && held(&f->f_path) ? &f->f_path : NULL;
}

// lets_go finds what a call of the class drops, before it is dropped.
NOINLINE struct path *lets_go(u32 class, u64 fd)
{
	struct path *p = NULL;

	if (class & C_CLOSE)
		return held_file(fd);
	struct fs_struct *fs = get(me(), fs);

	if (fs && held(&fs->pwd))
		return &fs->pwd;
	if (!(class & C_EXIT))
		return NULL;
	struct mm_struct *mm = get(me(), mm);
	struct file *exe = mm ? get(mm, exe_file) : NULL;

	if (exe && held(&exe->f_path))
		return &exe->f_path;
	for (u64 i = 0; i < 64 && !p; i++) // more descriptors than short programs have
		p = held_file(i);
	return p;
}

INLINE int drops(void *ctx, struct entered *c, u32 class)
{
	u64 fd = (class & C_FD) >> 3;
	struct path *p = lets_go(class, argument(c->args, fd - 1));

	if (!p)
		return 0;
	struct fs_struct *fs = get(me(), fs);

	c->number = fs && p == &fs->pwd ? since(of_cwd()) : since((u64)p - field_offset(struct file, f_path));
	tell(ctx, c, dev_of(get(p, mnt)), F_RELEASE, p);
	return 0;
}

// note writes over what the task wrote before, which takes less than an update. Only the task itself
// does so.
NOINLINE int note(u32 tid, u64 ts, s64 nr)
{
	struct begun *old = bpf_map_lookup_elem(&calls, &tid);

	if (old) {
		old->ts = ts;
		old->nr = nr;
		return 0;
	}
	struct begun b = {ts, nr};

	return bpf_map_update_elem(&calls, &tid, &b, 0);
}

SEC("raw_tp/sys_enter") int enter(struct raw *ctx)
{
	s64 nr = ctx->args[1];

	if (nr != own_umount && nr != compat_umount && nr != compat_oldumount && quiet())
		return 0;
	u32 class = class_of(nr), tid = bpf_get_current_pid_tgid();
	struct umounted *u = state();
	struct entered c = {};

	if (compat()) {
		// Their numbers mean other calls; only umounts of theirs are known.
		if (nr == compat_umount || nr == compat_oldumount)
			class = C_UMOUNT | 1;
		else if (u->active) {
			count_lost(LOST_COMPAT, 1);
			return 0;
		} else
			return 0;
	}
	if (!class)
		return 0;
	c.ts = bpf_ktime_get_ns();
	c.nr = nr;
	if (!(class & C_UMOUNT) && !recent(u, c.ts)) {
		u->failed = 0;
		return 0;
	}
	if (!(class & (C_UMOUNT | C_CLOSE | C_CHDIR | C_EXIT)))
		return note(tid, c.ts, nr);
	call_args(c.args, (void *)ctx->args[0]);
	if (class & C_UMOUNT) {
		// In another namespace it is about another mount.
		if (own_space && get(get(get(me(), nsproxy), mnt_ns), ns.inum) != own_space)
			return 0;
		c.number = u->suspects;
		__sync_fetch_and_add(&u->number, 1);
		u->from = c.ts;
		// Counted off by the task that counted it on, and by none else.
		__sync_fetch_and_add(&u->active, 1);
		if (bpf_map_update_elem(&umounts, &tid, &c, 1)) {
			__sync_fetch_and_add(&u->active, -1);
			count_lost(LOST_TABLE, 1);
		}
		return 0;
	}
	drops(ctx, &c, class);
	return class & C_CHDIR ? note(tid, c.ts, nr) : 0;
}

// umount_event writes down a umount of the current task that ended.
NOINLINE int umount_event(struct event *e, u64 from, u64 now, s64 ret)
{
	if (!e)
		return 0;
	begin_event(e, EV_UMOUNT);
	e->ts = now;
	e->since = from;
	e->ret = ret;
	e->flags = F_RET | (compat() ? F_COMPAT : 0);
	about(e);
	read_call(&e->got);
	struct fs_struct *fs = get(me(), fs);

	// Where a relative path begins.
	if (fs)
		names(e->where, get(fs, pwd.mnt), get(fs, pwd.dentry));
	e->let.nr = -1;
	return 0;
}

INLINE int umount_ends(struct umounted *u, u32 tid, s64 ret)
{
	struct entered *c = bpf_map_lookup_elem(&umounts, &tid);

	if (!c)
		return 0; // it began before we did
	u64 from = c->ts, first = c->number, now = bpf_ktime_get_ns();
	int busy = ret == -16 /* EBUSY */;

	bpf_map_delete_elem(&umounts, &tid);
	if (busy) {
		u->failed = now; // before it is over: no moment is quiet in between
		__sync_fetch_and_add(&u->failures, 1);
	}
	__sync_fetch_and_add(&u->active, -1);
	if (ret && !busy)
		return 0; // it was refused for what nobody else does
	if (busy)
		give_kept(u, first, from);
	if (busy && roomy()) {
		struct full *f = new_event(EV_UMOUNT);

		if (!f)
			return 0;
		umount_event(&f->e, from, now, ret);
		user_stack(f);
		bpf_ringbuf_submit(f, 0);
		return 0;
	}
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count_lost(LOST_RING, 1);
		return 0;
	}
	umount_event(e, from, now, ret);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

SEC("raw_tp/sys_exit") int leave(struct raw *ctx)
{
	if (quiet())
		return 0;
	s64 nr = call_number((void *)ctx->args[0]), ret = ctx->args[1];
	u32 class = class_of(nr), tid = bpf_get_current_pid_tgid();
	struct umounted *u = state();

	if (compat())
		class = nr == compat_umount || nr == compat_oldumount ? C_UMOUNT : 0;
	if (!class || class & (C_CLOSE | C_EXIT))
		return 0;
	if (class & C_UMOUNT)
		return umount_ends(u, tid, ret);
	struct begun *b = bpf_map_lookup_elem(&calls, &tid);
	struct entered full = {b && b->nr == nr ? b->ts : 0, nr}, *c = &full;
	if (class & C_OPEN && ret >= 0) {
		struct path *p = held_file(ret);
		u64 k = (u64)p - field_offset(struct file, f_path), v = c->ts;

		if (p)
			bpf_map_update_elem(&young, &k, &v, 0);
	}
	if (class & C_CHDIR && ret == 0) {
		u64 k = of_cwd(), v = c->ts;

		bpf_map_update_elem(&young, &k, &v, 0);
	}
	if (!u->active && c->ts > u->failed && !tells_all())
		return 0;
	call_args(full.args, (void *)ctx->args[0]);
	u32 dev = concerns(c, ret);

	if (dev && wanted(dev))
		tell(ctx, c, dev, 0, NULL);
	return 0;
}

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sigaction___kernel {
	void *sa_handler;
};

struct k_sigaction {
	struct sigaction___kernel sa;
};

#pragma clang attribute pop

#define SIGKILL 9
// What is not handled and ends nobody: CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH.
#define HARMLESS (1ULL << 17 | 1ULL << 18 | 1ULL << 19 | 1ULL << 20 | 1ULL << 21 | 1ULL << 22 | \
		  1ULL << 23 | 1ULL << 28)

// A task that a signal ends makes no call that says so, and when its end is told of its memory is gone
// with the program that it ran.
SEC("raw_tp/signal_deliver") int killed(void *ctx)
{
	u64 *args = ctx; // int sig, struct kernel_siginfo *info, struct k_sigaction *ka
	struct umounted *u = state();
	struct entered c = {};

	if (quiet())
		return 0;
	u64 sig = (u32)args[0];
	struct k_sigaction *ka = (void *)args[2];

	if (sig != SIGKILL && (sig > 63 || HARMLESS >> sig & 1 || get(ka, sa.sa_handler)))
		return 0;
	c.ts = bpf_ktime_get_ns();
	c.nr = -1;
	if (recent(u, c.ts))
		drops(ctx, &c, C_EXIT);
	return 0;
}

// What it had open is there still.
SEC("raw_tp/sched_process_exit") int gone(struct raw *ctx)
{
	struct umounted *u = state();
	struct entered c = {};
	u32 tid = bpf_get_current_pid_tgid();

	if (quiet())
		return 0;
	c.ts = bpf_ktime_get_ns();
	c.nr = -1;
	if (bpf_map_lookup_elem(&umounts, &tid)) { // killed within umount
		bpf_map_delete_elem(&umounts, &tid);
		__sync_fetch_and_add(&u->active, -1);
	}
	if (recent(u, c.ts))
		drops(ctx, &c, C_EXIT);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
