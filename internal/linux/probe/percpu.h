// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

// Where a CPU has its own copy of a variable, such as a mount's counter. The kernel adds an offset
// of each CPU to the address that all share; the table of these offsets is no symbol that a program
// may read. But the address of an element of our own map is known both ways.

#pragma once

#include "kern.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_array {
	void *pptrs[1];
};

enum bpf_func_id___percpu {
	BPF_FUNC_map_lookup_percpu_elem___percpu = 195, // 5.19
};

#pragma clang attribute pop

// only_here makes a newer kernel behave as an older one, for tests.
volatile const bool only_here = false;

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	TYPE(key, u32);
	TYPE(value, u64);
	UINT(max_entries, 1);
} anchor SEC(".maps");

// percpu_base gives what is to be added to a pointer shared by all CPUs to have cpu's own. It is 0
// where that cannot be told: before 5.19 on any CPU but cpu itself.
INLINE u64 percpu_base(u32 cpu)
{
	u32 zero = 0;
	void *map = &anchor, *own = NULL;
	// The verifier allows no arithmetic on pointers to maps and elements; a copy that it did not
	// see being made is a number.
	struct bpf_array *array = peek((struct bpf_array **)&map);
	u64 shared = (u64)peek(&array->pptrs[0]);
	if (!only_here &&
	    enum_exists(enum bpf_func_id___percpu, BPF_FUNC_map_lookup_percpu_elem___percpu))
		own = bpf_map_lookup_percpu_elem(&anchor, &zero, cpu);
	else if (cpu == bpf_get_smp_processor_id())
		own = bpf_map_lookup_elem(&anchor, &zero);
	own = peek(&own);
	return own && shared ? (u64)own - shared : 0;
}
