// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

// References on a mount, as watch, fentry and kprobe see them: each get and put with the task that
// did it. A reference is told of when it is dropped and a umount may have met it; everything else
// stays in a table.
#pragma once
#include "engine.h"

// window is when umounts looked at a mount's references.
struct window {
	u64 active;             // umounts under way
	u64 last_from, last_to; // of the last that ended
	// How many references were seen being taken and not yet being dropped.
	u64 known;
	u64 whole; // no reference was taken unseen since the watching began
};

struct key {
	u64 mount;
	u64 tid;
};

struct hold {
	u64 ts;
	u64 depth; // 1 for the first
	u64 at[2];
	struct call call;
	u64 frames[FRAMES];
	u64 nframes;
};

// holds has the references of one task on one mount, the newest last: an open takes two and gives
// one back, so that the first event does not tell.
struct holds {
	u64 depth;
	// The command line when the first was taken: a task that ends has none any more.
	u32 ncommand, pad;
	u8 command[COMMAND];
	struct hold hold[DEPTH];
};

struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 4096);
	TYPE(key, struct key);
	TYPE(value, struct holds);
} held SEC(".maps");

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct holds);
} nothing SEC(".maps");

// family has the threads of a process that hold a mount: what one of them took, another may drop.
struct family {
	u32 tid[THREADS]; // each at its number modulo THREADS
};

struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 2048);
	TYPE(key, struct key); // with the number of the process
	TYPE(value, struct family);
} families SEC(".maps");

// handed has what processes took for their children: a directory is the child's from the fork on.
struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 1024);
	TYPE(key, struct key); // with the number of the process
	TYPE(value, struct holds);
} handed SEC(".maps");

// umounting is one umount under way, by its task.
struct umounting {
	u64 mount;
	u64 ts;      // begin
	u64 from, to; // of the check, 0: not seen
	s64 depth;   // watch: its own references
	u64 callers[2]; // watch: of the function that took the first
	s64 before, count;
	u64 peer;
	u64 state;
};

struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, 1024);
	TYPE(key, u64); // tid
	TYPE(value, struct umounting);
} umounts SEC(".maps");

// begins notes that the current thread holds a mount, ends that it does not any more.
INLINE void begins(u64 mount)
{
	u64 id = bpf_get_current_pid_tgid();
	struct key k = {mount, id >> 32};
	struct family *f = bpf_map_lookup_elem(&families, &k), fresh = {};

	if (!f) {
		fresh.tid[(u32)id % THREADS] = id;
		bpf_map_update_elem(&families, &k, &fresh, 0);
		return;
	}
	f->tid[(u32)id % THREADS] = id;
}

INLINE void ends(u64 mount)
{
	u64 id = bpf_get_current_pid_tgid();
	struct key k = {mount, id >> 32};
	struct family *f = bpf_map_lookup_elem(&families, &k);

	if (f && f->tid[(u32)id % THREADS] == (u32)id)
		f->tid[(u32)id % THREADS] = 0;
}

// of_family gives what a thread of the current process holds, and its key.
NOINLINE struct holds *of_family(struct key *k)
{
	struct key all = {k->mount, bpf_get_current_pid_tgid() >> 32};
	struct family *f = bpf_map_lookup_elem(&families, &all);

	for (u32 i = 0; f && i < THREADS; i++) {
		k->tid = f->tid[i];
		struct holds *h = k->tid ? bpf_map_lookup_elem(&held, k) : NULL;

		if (h && h->depth)
			return h;
	}
	return NULL;
}

// inherited gives what a process took for the current one when it made that. Each is given once.
NOINLINE struct hold *inherited(u64 mount, u32 tgid)
{
	struct key k = {mount, tgid};
	struct holds *h = bpf_map_lookup_elem(&handed, &k);
	struct hold *best = NULL;
	u64 born = get((struct task_struct___engine *)get(me(), group_leader), start_time);

	for (int i = 0; h && i < DEPTH; i++) {
		struct hold *t = &h->hold[i];

		if (t->depth && t->ts <= born && born - t->ts < FORKING && (!best || t->ts > best->ts))
			best = t;
	}
	if (best)
		best->depth = 0;
	return best;
}

// forks tells whether the current system call makes a task.
INLINE int forks(void)
{
	return !!(class_of(call_number(user_regs())) & C_FORK);
}

// taken notes a reference that the current task took. since: not later than that, ns.
NOINLINE int taken(void *ctx, u64 mount, u64 since)
{
	u64 id = bpf_get_current_pid_tgid();
	struct key k = {mount, forks() ? id >> 32 : (u32)id};
	void *map = forks() ? (void *)&handed : (void *)&held;
	u32 zero = 0;
	struct holds *h = bpf_map_lookup_elem(map, &k);

	if (!h) {
		void *none = bpf_map_lookup_elem(&nothing, &zero);

		if (!none)
			return 0;
		if (bpf_map_update_elem(map, &k, none, 1 /* BPF_NOEXIST */)) {
			count_lost(LOST_TABLE, 1);
			return 0;
		}
		h = bpf_map_lookup_elem(map, &k);
		if (!h)
			return 0;
		h->ncommand = command_of(get(me(), mm), h->command);
	}
	u64 n = h->depth++;
	// What is not dropped by who took it stays, so the newest ones are kept.
	struct hold *t = &h->hold[n % DEPTH];

	if (n == 0 && !forks())
		begins(mount);
	t->ts = since;
	t->depth = n + 1;
	user_at(t->at, user_regs());
	read_call(&t->call);
	t->nframes = kernel_stack(ctx, t->frames);
	return 1;
}

// newest takes off what the current task drops, NULL if that is not known: its own newest reference,
// one of another thread, or what it was given at birth. h: what is left where it was.
INLINE struct hold *newest(struct key *k, struct holds **h)
{
	struct task_struct *up;
	struct hold *t;

	if (forks()) // it did not come to be
		return inherited(k->mount, bpf_get_current_pid_tgid() >> 32);
	*h = bpf_map_lookup_elem(&held, k);
	if (!*h || !(*h)->depth)
		*h = of_family(k);
	if (!*h) {
		up = get(me(), real_parent);
		return inherited(k->mount, get(up, tgid));
	}
	u64 n = --(*h)->depth;

	t = &(*h)->hold[n % DEPTH];
	return t->depth == n + 1 ? t : NULL; // or newer ones took its place
}

// dropped takes the newest reference of the current task off, and tells of it if a umount may have
// met it. now: not later than that, ns; left: how many references the mount has now, -1 if that is
// not known.
NOINLINE int dropped(void *ctx, struct mount *m, struct window *w, u64 now, s64 left)
{
	struct key k = {(u64)m, (u32)bpf_get_current_pid_tgid()};
	struct holds *h = NULL;
	struct hold *t = newest(&k, &h);
	u64 since = t ? t->ts : 0, early = 0;
	struct full *f;

	if (!t && !h)
		early = w->whole && !w->known;
	else if (w->known)
		__sync_fetch_and_add(&w->known, -1);
	if (w->active || (w->last_to && since <= w->last_to && (s64)(now - w->last_to) < (s64)SETTLE) || tells_all()) {
		f = new_event(EV_HOLD);
		if (f) {
			u64 at[2];

			f->e.ts = now;
			f->e.since = since;
			if (early)
				f->e.flags |= F_EARLY;
			about(&f->e);
			mounted(&f->e, m);
			if (left >= 0) {
				f->e.count = left;
				f->e.flags |= F_COUNT;
			}
			read_call(&f->e.let);
			f->e.nlet = kernel_stack(ctx, f->e.let_frames);
			f->e.got.nr = -1;
			if (h && !f->e.ncommand) {
				bpf_probe_read_kernel(f->e.command, COMMAND, h->command);
				f->e.ncommand = h->ncommand;
			}
			if (t) {
				user_at(at, user_regs());
				if (at[0] == t->at[0] && at[1] == t->at[1])
					f->e.flags |= F_SAME_CALL;
				bpf_probe_read_kernel(&f->e.got, sizeof(f->e.got), &t->call);
				bpf_probe_read_kernel(f->e.got_frames, sizeof(f->e.got_frames), t->frames);
				f->e.ngot = t->nframes;
			}
			user_stack(f);
			bpf_ringbuf_submit(f, 0);
		}
	}
	if (h && h->depth == 0) {
		bpf_map_delete_elem(&held, &k);
		ends((u64)m);
	}
	return 0;
}
