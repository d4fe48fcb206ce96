// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

// How user space and the programs of this directory talk: questions lie in an array, an iterator
// calls a program for each, and what the program finds it writes into the file that user space
// reads. A program takes a bounded number of steps; where there is more, it says from where, and
// is asked again. Nothing is locked and no reference is taken, so what is looked at may go
// meanwhile: the kernel frees it no earlier than the program ends (RCU), and an address that was
// kept from an earlier question is held against what it must be before it is believed.

#pragma once

#include "kern.h"

struct question {
	u64 addr;  // what is asked about
	u64 super; // only what is of this super block
	u64 from;  // where to go on: a number, or an address
	u64 also;  // a second address that goes with addr
	u64 of;    // a third, of what addr is a part of
	u32 want;  // of what is found, only what has this number; 0: all
	u32 flags;
	u32 number; // which of the questions it is
	u32 pass;   // in which pass it is asked
};

struct {
	UINT(type, MAP_ARRAY);
	TYPE(key, u32);
	TYPE(value, struct question);
	UINT(max_entries, 1024);
} questions SEC(".maps");

// pass tells the questions that are asked from those that were: they stay where they are.
volatile u32 pass;

// header begins each record.
struct header {
	u32 question; // its number
	u16 kind;     // enum found_kind
	u16 size;     // of the whole record, in bytes, a multiple of 8
};

enum found_kind {
	FOUND_MORE = 1,  // ask again, from there
	FOUND_BELOW,     // ask about addr as well, from extra
	FOUND_LOST,      // what was asked about is gone or, with extra 1, changed while it was looked at
	FOUND_UNKNOWN,   // this kernel keeps it in a way that is not known
	FOUND_TASK,
	FOUND_FILE,      // an open file of the super block
	FOUND_PATH,      // a path of the super block that something holds
	FOUND_SOCKET,    // of any family
	FOUND_MESSAGE,   // of a unix socket: the files of it (extra); with flags 1 a connection that is not
			 // accepted yet, of the socket addr
	FOUND_EVENT,     // a path that an event holds, if extra is the super block
	FOUND_ANONYMOUS, // a file of the kernel's own: a ring, a perf event, ...
	FOUND_NAMESPACE, // an open namespace
	FOUND_MOUNT,
	FOUND_SUPER,
	FOUND_NUMBER,
	FOUND_NAME,
};

// found is what most records are.
struct found {
	struct header head;
	u64 addr;
	u64 mnt;
	u64 dentry;
	u64 extra;
	s32 fd;
	u32 flags;
};

// header_of has no branch, as all else that stands in a loop: older verifiers follow each combination
// of them.
INLINE struct header header_of(struct question *q, enum found_kind kind, u32 size)
{
	struct header h = { .question = q->number, .kind = kind, .size = size };
	return h;
}

// question_of is the question that the program was called for, NULL if it is none.
INLINE struct question *question_of(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = ctx->value;
	if (!q || q->pass != pass)
		return NULL;
	return q;
}

// say writes a record. One that does not fit makes the kernel call the program again with an empty
// buffer, so no record is lost.
INLINE void say(struct bpf_iter__bpf_map_elem *ctx, struct question *q, enum found_kind kind, u64 addr,
		u64 extra)
{
	struct found f = { .head = header_of(q, kind, sizeof(f)), .addr = addr, .extra = extra };
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
}

// scratch is where a program keeps what changes as it goes through a loop. It lies in a map and not in
// registers: what the verifier reads from a map can be anything, so all ways through the body of the
// loop end alike, and it need not follow each combination of them. Verifiers before 6.12 would not get
// through these loops otherwise. Volatile: else the compiler reads for the next time round at the end
// of the body, which it puts before the loop, and Linux before 6.6 takes that for a loop without end.
struct scratch {
	volatile u64 at; // a place in a list or tree
	volatile u64 n, m, of;
	u64 words[32];
};

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	TYPE(key, u32);
	TYPE(value, struct scratch);
	UINT(max_entries, 1);
} scratches SEC(".maps");

INLINE struct scratch *scratch(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&scratches, &zero);
}

// What the Go side is to know of, though no map is of it.
#define SHOWN(type, name) type *name __attribute__((unused))
SHOWN(struct found, shown_found);
SHOWN(enum found_kind, shown_found_kind);
