// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// The watch engine: a data watchpoint of the processor on a mount's own reference counter. The
// counter is per CPU, so each CPU watches its own word, and a write of it traps whichever function
// of the kernel did it. Mounts that are not watched cost nothing.
#include "hold.h"
#include "percpu.h"

#define SLOTS 4     // watchpoints of a processor
#define CPUS 1024   // more are refused by the loader

const volatile u32 cpus = 1;

// cell is one CPU's word of a watched counter.
struct cell {
	u64 addr;   // of the word, 0: none
	s32 last;   // its value after the last write that was told of here
	u32 writes; // how many these are
	// Another CPU saw the next write at that time, before it was told of here. at: its number, and 1.
	u64 seen;
	u32 seen_at, pad;
};

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, SLOTS * CPUS);
	TYPE(key, u32);
	TYPE(value, struct cell);
} cells SEC(".maps");

struct watched {
	u64 mount; // struct mount, 0: none
	u64 pcp;
	u32 id, gone;
	u32 armed, pad; // all CPUs watch it
	struct window window;
	// For user space, written once.
	u32 dev, ns;
	u64 super, unique;
};

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, SLOTS);
	TYPE(key, u32);
	TYPE(value, struct watched);
} watches SEC(".maps");

// total adds up the counter, as mnt_get_count does. A write on another CPU may be there, while the
// trap that tells of it is on its way: it was not later than now.
NOINLINE s64 total(u32 slot, u64 now)
{
	s64 sum = 0;

	for (u32 i = 0; i < CPUS && i < cpus; i++) {
		u32 k = slot * CPUS + i;
		struct cell *c = bpf_map_lookup_elem(&cells, &k);
		s32 v = 0;

		if (!c || !c->addr)
			continue;
		u32 writes = *(volatile u32 *)&c->writes;

		bpf_probe_read_kernel(&v, sizeof(v), (void *)c->addr);
		sum += v;
		if (v != *(volatile s32 *)&c->last) {
			*(volatile u64 *)&c->seen = now;
			*(volatile u32 *)&c->seen_at = writes + 1;
		}
	}
	return sum;
}

// callers gives where the function that wrote the counter will return to, and that one's caller.
INLINE void callers(void *ctx, u64 to[2])
{
	u64 frames[3] = {};

	bpf_get_stack(ctx, frames, sizeof(frames), 0);
	to[0] = frames[1];
	to[1] = frames[2];
}

INLINE int umount_takes(void *ctx, struct watched *w, u32 slot, u64 now)
{
	u64 tid = (u32)bpf_get_current_pid_tgid();
	struct umounting *u = bpf_map_lookup_elem(&umounts, &tid);
	struct umounting fresh = {};

	if (u) {
		if (u->mount == w->mount)
			u->depth++;
		return 0;
	}
	fresh.mount = w->mount;
	fresh.ts = now;
	fresh.depth = 1;
	callers(ctx, fresh.callers);
	fresh.before = total(slot, fresh.ts);
	// Counted by the task that takes it off again, and by none else.
	__sync_fetch_and_add(&w->window.active, 1);
	if (bpf_map_update_elem(&umounts, &tid, &fresh, 1)) {
		__sync_fetch_and_add(&w->window.active, -1);
		count_lost(LOST_TABLE, 1);
	}
	return 0;
}

INLINE int umount_drops(void *ctx, struct watched *w, u32 slot)
{
	u64 tid = (u32)bpf_get_current_pid_tgid();
	struct umounting *u = bpf_map_lookup_elem(&umounts, &tid);
	struct full *f;

	if (!u || u->mount != w->mount)
		return 0;
	if (--u->depth > 0)
		return 0;
	u64 now[2], then[2] = {u->callers[0], u->callers[1]};

	callers(ctx, now);
	if (now[0] && now[0] == then[0] && now[1] == then[1]) {
		// A lookup gives back at once what it took when the tree of mounts was changed meanwhile, and
		// begins anew: __legitimize_mnt. The umount is still to come.
		bpf_map_delete_elem(&umounts, &tid);
		__sync_fetch_and_add(&w->window.active, -1);
		return 0;
	}
	u64 began = u->ts;
	s64 before = u->before;
	// What is dropped after the counting was there until then, what is taken after it was not.
	s64 count = total(slot, bpf_ktime_get_ns()) + 1;

	bpf_map_delete_elem(&umounts, &tid);
	w->window.last_from = began;
	w->window.last_to = bpf_ktime_get_ns();
	__sync_fetch_and_add(&w->window.active, -1);
	f = new_event(EV_UMOUNT);
	if (!f)
		return 0;
	f->e.ts = w->window.last_to;
	f->e.since = began;
	f->e.before = before;
	f->e.count = count;
	f->e.flags |= F_COUNT;
	about(&f->e);
	mounted(&f->e, (struct mount *)w->mount);
	struct mount *m = (struct mount *)w->mount;

	names(f->e.where, &m->mnt, get(m, mnt.mnt_root));
	read_call(&f->e.got);
	f->e.let.nr = -1;
	f->e.nlet = kernel_stack(ctx, f->e.let_frames);
	user_stack(f);
	bpf_ringbuf_submit(f, 0);
	return 0;
}

// moved finds the word that was just written, SLOTS if none was: the trap does not say.
INLINE u32 moved(u32 cpu)
{
	for (u32 slot = 0; slot < SLOTS; slot++) {
		u32 k = slot * CPUS + cpu;
		struct cell *c = bpf_map_lookup_elem(&cells, &k);
		s32 now = 0;

		if (!c || !c->addr)
			continue;
		bpf_probe_read_kernel(&now, sizeof(now), (void *)c->addr);
		if (now != c->last)
			return slot;
	}
	return SLOTS;
}

SEC("perf_event") int written(void *ctx)
{
	// Before anybody can see that the write is told of.
	u64 ts = bpf_ktime_get_ns();
	u32 cpu = bpf_get_smp_processor_id(), slot = moved(cpu), k = slot * CPUS + cpu;
	struct cell *c = bpf_map_lookup_elem(&cells, &k);
	struct watched *w = bpf_map_lookup_elem(&watches, &slot);
	s32 now = 0, delta; // one up or down: more only where a write before the first was missed

	if (!c || !w || !c->addr)
		return 0;
	bpf_probe_read_kernel(&now, sizeof(now), (void *)c->addr);
	delta = now - c->last;
	c->last = now;
	c->writes++;
	if (c->seen_at == c->writes && c->seen < ts)
		ts = c->seen;
	if (w->gone || !w->armed)
		return 0;
	struct mount *m = (struct mount *)w->mount;

	// The mount may be gone and its memory somebody else's.
	if (get(m, mnt_id) != w->id || (u64)get(m, mnt_pcp) != w->pcp || unique_of(m) != w->unique) {
		w->gone = 1;
		return 0;
	}
	count_lost(LOST_SEEN, 1);
	if (in_umount())
		return delta > 0 ? umount_takes(ctx, w, slot, ts) : umount_drops(ctx, w, slot);
	if (delta > 0) {
		__sync_fetch_and_add(&w->window.known, 1);
		if (!taken(ctx, w->mount, ts))
			w->window.whole = 0;
		return 0;
	}
	dropped(ctx, m, &w->window, ts, w->window.active || w->window.last_to ? total(slot, ts) : -1);
	return 0;
}

// What is asked of resolve.
struct ask {
	u32 fd; // of the process that asks
	u32 slot;
	u32 step; // 1: find the counter, 2: read it
	u32 done;
};

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct ask);
} asked SEC(".maps");

// resolve runs for each task in the context of the process that asks, and does its work for the first.
SEC("iter/task") int resolve(struct bpf_iter__task *ctx)
{
	u32 zero = 0;
	struct ask *a = bpf_map_lookup_elem(&asked, &zero);

	if (!ctx->task || !a || a->done || a->slot >= SLOTS)
		return 0;
	struct file *file = file_of(a->fd);

	if (!file)
		return 0;
	u32 slot = a->slot;
	struct watched *w = bpf_map_lookup_elem(&watches, &slot);

	if (!w)
		return 0;
	struct mount *m = mount_of(get(file, f_path.mnt));
	u64 pcp = (u64)get(m, mnt_pcp);

	for (u32 i = 0; i < CPUS && i < cpus; i++) {
		u32 k = slot * CPUS + i;
		struct cell *c = bpf_map_lookup_elem(&cells, &k);
		s32 v = 0;

		if (!c)
			continue;
		if (a->step == 1) {
			u64 own = percpu_base(i);

			c->addr = own ? pcp + own + field_offset(struct mnt_pcp, mnt_count) : 0;
			bpf_probe_read_kernel(&v, sizeof(v), (void *)c->addr);
			c->last = v;
			continue;
		}
		// It is watched now, and what was written before that was not seen. A write whose trap
		// is just being handled looks the same, but not for long.
		int try;

		for (try = 0; try < 256; try++) {
			bpf_probe_read_kernel(&v, sizeof(v), (void *)c->addr);
			if (v == *(volatile s32 *)&c->last)
				break;
		}
		if (try == 256)
			c->last = v;
	}
	if (a->step == 1) {
		struct window none = {};

		w->window = none;
		w->armed = w->gone = 0;
		w->mount = (u64)m;
		w->pcp = pcp;
		w->id = get(m, mnt_id);
		w->super = (u64)get(m, mnt.mnt_sb);
		w->dev = get(get(m, mnt.mnt_sb), s_dev);
		struct mnt_namespace *ns = get(m, mnt_ns);

		if (ns && ns != (void *)-22)
			w->ns = get(ns, ns.inum);
		w->unique = unique_of(m);
	}
	if (a->step == 2) {
		w->window.whole = 1;
		w->armed = 1;
	}
	a->done = 1;
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
