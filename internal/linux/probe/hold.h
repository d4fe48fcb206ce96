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
};

struct key {
	u64 mount;
	u64 tid;
};

struct hold {
	u64 ts;
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

// umounting is one umount under way, by its task.
struct umounting {
	u64 mount;
	u64 ts;      // begin
	u64 from, to; // of the check, 0: not seen
	s64 depth;   // watch: its own references
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

// taken notes a reference that the current task took. since: not later than that, ns.
NOINLINE int taken(void *ctx, u64 mount, u64 since)
{
	struct key k = {mount, (u32)bpf_get_current_pid_tgid()};
	u32 zero = 0;
	struct holds *h = bpf_map_lookup_elem(&held, &k);

	if (!h) {
		void *none = bpf_map_lookup_elem(&nothing, &zero);

		if (!none)
			return 0;
		if (bpf_map_update_elem(&held, &k, none, 1 /* BPF_NOEXIST */)) {
			count_lost(LOST_TABLE, 1);
			return 0;
		}
		h = bpf_map_lookup_elem(&held, &k);
		if (!h)
			return 0;
		h->ncommand = command_of(get(me(), mm), h->command);
	}
	u64 n = h->depth++;

	if (n >= DEPTH) // deeper ones are dropped first, and count as taken when the last was
		return 0;
	struct hold *t = &h->hold[n];

	t->ts = since;
	user_at(t->at, user_regs());
	read_call(&t->call);
	t->nframes = kernel_stack(ctx, t->frames);
	return 0;
}

// dropped takes the newest reference of the current task off, and tells of it if a umount may have
// met it. left: how many references the mount has now, -1 if that is not known.
NOINLINE int dropped(void *ctx, struct mount *m, struct window *w, s64 left)
{
	struct key k = {(u64)m, (u32)bpf_get_current_pid_tgid()};
	struct holds *h = bpf_map_lookup_elem(&held, &k);
	struct hold *t = NULL;
	u64 now = bpf_ktime_get_ns(), since = 0, over = 0;
	struct full *f;

	if (h) {
		u64 n = h->depth;

		if (n > 0) {
			h->depth = --n;
			over = n >= DEPTH;
			if (n >= DEPTH)
				n = DEPTH - 1;
			t = &h->hold[n];
			since = t->ts;
		}
	}
	if (w->active || (w->last_to && since <= w->last_to && now - w->last_to < SETTLE) || tells_all()) {
		f = new_event(EV_HOLD);
		if (f) {
			u64 at[2];

			f->e.ts = now;
			f->e.since = over ? 0 : since;
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
	if (h && h->depth == 0)
		bpf_map_delete_elem(&held, &k);
	return 0;
}
