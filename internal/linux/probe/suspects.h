// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

// Suspects, as the syscall engine knows them. They are kept here until a umount fails, since nearly all
// succeed and many may come in a moment: what is told of is what people wait for, and nothing of it is
// lost for what nobody needs.
#pragma once
#include "engine.h"

#define KEPT 64 // suspects of umounts that have not failed yet

// umounted is what umounts there were.
struct umounted {
	u64 active;  // under way
	u64 from;    // begin of the last that began
	u64 failed;  // end of the last that failed, 0: none, or long ago
	u64 number;  // of the last
	u64 failures; // how many failed
	u64 suspects; // how many were put into kept
};

struct umounted seen = {};

struct entered {
	u64 ts;
	s64 nr;
	u64 args[6];
	u64 number; // umount: of suspects before it; what lets go: since when it had that
};

// told has what was told of a task for which failed umount, and what was kept of it for which umount
// under way: once is enough, but for what it had before. What it let go proves more than that it made a
// call.
struct telling {
	u32 tid, dev;
};

struct tale {
	u64 number, since; // twice the number, and 1 for what it let go
};

struct tales {
	struct tale failed, active;
};

struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 8192);
	TYPE(key, struct telling);
	TYPE(value, struct tales);
} told SEC(".maps");

// kept has suspects until a umount fails: nearly all umounts do not, and many come in a moment.
struct suspect {
	u64 users; // one may write or read it
	u64 ready; // not given yet
	struct full full;
};

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, KEPT);
	TYPE(key, u32);
	TYPE(value, struct suspect);
} kept SEC(".maps");

INLINE struct umounted *state(void)
{
	return &seen;
}

// more tells whether something says more than what was told.
INLINE int more(struct tale *told, u64 number, u64 since)
{
	return number > told->number || (number == told->number && since < told->since);
}

INLINE int own(struct suspect *s)
{
	if (!__sync_fetch_and_add(&s->users, 1))
		return 1;
	__sync_fetch_and_add(&s->users, -1);
	return 0;
}

// give has a suspect told of if that was not done.
GLOBAL give(struct suspect *s)
{
	u64 n = sizeof(struct event);

	if (!s || !s->ready)
		return 0;
	if (!own(s))
		return 0; // who writes it looks again
	if (s->ready) {
		s->ready = 0;
		if (!roomy() || bpf_ringbuf_output(&events, &s->full, sizeof(s->full), 0))
			if (bpf_ringbuf_output(&events, &s->full, n, 0))
				count_lost(LOST_RING, 1);
	}
	__sync_fetch_and_add(&s->users, -1);
	return 0;
}

// give_kept gives the suspects of a umount that failed, from when it began on. Who began to let go or to
// end before it may not have been done yet.
INLINE void give_kept(struct umounted *u, u64 first, u64 from)
{
	u64 n = *(volatile u64 *)&u->suspects - first;

	if (n > KEPT)
		count_lost(LOST_TABLE, n - KEPT);
	for (u32 i = 0; i < KEPT; i++) {
		u32 k = i;
		struct suspect *s = bpf_map_lookup_elem(&kept, &k);

		if (!s || !s->ready)
			continue;
		u64 since = s->full.e.flags & F_RELEASE ? from - SETTLE : from;

		if (s->full.e.ts >= since)
			give(s);
	}
}

// suspect writes down the current task.
NOINLINE int suspect(struct full *f, struct entered *c, u32 dev, u32 flags, struct path *what)
{
	struct umounted *u = state();

	if (!f || !c)
		return 0;
	begin_event(&f->e, EV_SUSPECT);
	f->e.flags = flags | (u->active ? F_IN_FLIGHT : 0);
	f->e.since = flags & F_RELEASE ? c->number : c->ts;
	f->e.dev = dev;
	about(&f->e);
	read_call(&f->e.got);
	f->e.let.nr = -1;
	if (what) {
		struct vfsmount *v = get(what, mnt);
		struct mount *m = mount_of(v);

		mounted(&f->e, m);
		names(f->e.where, v, get(what, dentry));
	}
	return 0;
}

// tell keeps the current task as a suspect of umounts under way, and of those to come that meet what it
// has only begun to let go. It is told of at once where a umount failed that it may have been in the way
// of.
NOINLINE int tell(void *ctx, struct entered *c, u32 dev, u32 flags, struct path *what)
{
	struct umounted *u = state();
	struct telling k = {(u32)bpf_get_current_pid_tgid(), dev};
	struct tales fresh = {}, *last = bpf_map_lookup_elem(&told, &k);

	if (!c)
		return 0;
	if (last)
		fresh = *last;
	u64 release = !!(flags & F_RELEASE), failures = *(volatile u64 *)&u->failures;
	u64 since = release ? c->number : c->ts, failed = u->failed, active = u->active;
	u64 failure = failures << 1 | release, number = u->number << 1 | release;
	u32 now = tells_all();

	if (failed && since <= failed && more(&fresh.failed, failure, since))
		now = 1;
	if (!now && (active ? !more(&fresh.active, number, since) : !release))
		return 0;
	if (now) {
		fresh.failed.number = failure;
		fresh.failed.since = since;
	}
	if (active) {
		fresh.active.number = number;
		fresh.active.since = since;
	}
	bpf_map_update_elem(&told, &k, &fresh, 0);
	u32 at = __sync_fetch_and_add(&u->suspects, 1) % KEPT;
	struct suspect *s = bpf_map_lookup_elem(&kept, &at);

	if (!s)
		return 0;
	if (!own(s)) {
		count_lost(LOST_TABLE, 1);
		return 0;
	}
	suspect(&s->full, c, dev, flags, what);
	if (now || active)
		user_stack(&s->full);
	s->ready = 1;
	__sync_fetch_and_add(&s->users, -1);
	// One that failed meanwhile did not find it.
	if (now || failures != *(volatile u64 *)&u->failures)
		give(s);
	return 0;
}
