// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

#include "kern.h"
#include "percpu.h"

char _license[] SEC("license") = "Dual MIT/GPL";

// question is what user space asks about one place in the kernel's memory.
struct question {
	u64 kind;
	u64 addr;
};

struct {
	UINT(type, MAP_ARRAY);
	TYPE(key, u32);
	TYPE(value, struct question);
	UINT(max_entries, 1024);
} questions SEC(".maps");

// cpus answers with the offset of each CPU.
SEC("iter/bpf_map_elem")
int cpus(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = ctx->value;
	if (!q || !q->kind)
		return 0;
	u64 base = percpu_base(q->addr);
	bpf_seq_write(ctx->meta->seq, &base, sizeof(base));
	return 0;
}
