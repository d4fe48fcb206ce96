// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// Who takes names away, or gives files other names: written down as the system call begins, since the
// process may have ended when somebody asks. Which name it was is not looked at: fanotify tells that, with the
// process.
#include "engine.h"

#define C_REMOVE 0x40000 // it takes a name away, or gives a file another
#define REMOVERS 4096

struct remover {
	u64 start; // CLOCK_BOOTTIME, ns
	u32 ncommand, ppid;
	u8 comm[16], pcomm[16];
	u8 command[COMMAND];
	u8 group[GROUPS][GROUP];
};

// removers are by process, those that were seen last.
struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, REMOVERS);
	TYPE(key, u32);
	TYPE(value, struct remover);
} removers SEC(".maps");

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct remover);
} fresh SEC(".maps");

// removes tells whether a 32-bit call does: arch/x86/entry/syscalls/syscall_32.tbl.
INLINE int compat_removes(s64 nr)
{
	return nr == 10 /* unlink */ || nr == 38 /* rename */ || nr == 301 /* unlinkat */ || nr == 302 /* renameat */ ||
	       nr == 353 /* renameat2 */;
}

SEC("raw_tp/sys_enter") int removes(struct raw *ctx)
{
	s64 nr = (s64)ctx->args[1];
	u32 zero = 0, pid;

	if (!(compat() ? compat_removes(nr) : !!(class_of(nr) & C_REMOVE)))
		return 0;
	struct remover *r = bpf_map_lookup_elem(&fresh, &zero);

	if (!r)
		return 0;
	for (int i = 0; i < sizeof(*r) / 8; i++)
		((volatile u64 *)r)[i] = 0;
	struct task_struct *t = me(), *up = get(t, real_parent);
	struct task_struct___engine *leader = (struct task_struct___engine *)get(t, group_leader);
	struct kernfs_node *k = get(get(get((struct task_struct___engine *)t, cgroups), dfl_cgrp), kn);

	pid = bpf_get_current_pid_tgid() >> 32;
	r->start = get(leader, start_boottime);
	r->ppid = get(up, tgid);
	bpf_get_current_comm(r->comm, sizeof(r->comm));
	bpf_probe_read_kernel(r->pcomm, sizeof(r->pcomm), &up->comm);
	for (int i = 0; i < GROUPS && k; i++) {
		bpf_probe_read_kernel_str(r->group[i], GROUP, get(k, name));
		k = above(k);
	}
	r->ncommand = command_of(get(t, mm), r->command);
	if (bpf_map_update_elem(&removers, &pid, r, 0))
		count_lost(LOST_TABLE, 1);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
