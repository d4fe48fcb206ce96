// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// Who asks for mounts again and again, before any umount fails: stat and statfs of the roots of
// mounts, by the path that was named or by the file that is open on it. Sums are kept here, so that a
// loop of a million calls costs no event.
#include "calls.h"

#define BURST 50000000ULL // ns: calls that follow one another closer are one poll
#define POLLS 16384

struct root {
	u8 text[TEXT];
};

// roots are the paths of mounts, ids their numbers; both give the place in user space's list.
struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, 16384);
	UINT(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	TYPE(key, struct root);
	TYPE(value, u32);
} roots SEC(".maps");

struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, 16384);
	UINT(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	TYPE(key, u32);
	TYPE(value, u32);
} ids SEC(".maps");

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct root);
} scratch SEC(".maps");

// poller is who polls what: a process, or a parent by the name of the children that it sends.
struct poller {
	u32 pid, root;
	u32 statfs, parent;
	u8 comm[16]; // of the children
};

struct polls {
	u64 begin, last; // of the last poll, ns
	u64 calls, periods;
	u64 sum, squares; // of periods, in ms and ms^2
	u64 start;        // of the process
	u32 ppid, uid, mntns, pad;
	u8 comm[16], pcomm[16];
};

struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, POLLS);
	TYPE(key, struct poller);
	TYPE(value, struct polls);
} polled SEC(".maps");

NOINLINE int note(struct poller *k, u64 now)
{
	struct polls fresh = {}, *p = bpf_map_lookup_elem(&polled, k);
	struct task_struct *t = me();

	if (p) {
		p->calls++;
		if (now - p->last > BURST) {
			u64 ms = (now - p->begin) / 1000000;

			p->periods++;
			p->sum += ms;
			p->squares += ms * ms;
			p->begin = now;
		}
		p->last = now;
		return 0;
	}
	// The parent's own key is about the parent.
	if (k->parent)
		t = get(t, real_parent);
	struct task_struct *up = get(t, real_parent);
	struct nsproxy *ns = get(t, nsproxy);

	fresh.begin = fresh.last = now;
	fresh.calls = 1;
	fresh.start = get((struct task_struct___engine *)get(t, group_leader), start_boottime);
	fresh.ppid = get(up, tgid);
	fresh.uid = bpf_get_current_uid_gid();
	if (ns)
		fresh.mntns = get(get(ns, mnt_ns), ns.inum);
	bpf_probe_read_kernel(fresh.comm, sizeof(fresh.comm), &t->comm);
	bpf_probe_read_kernel(fresh.pcomm, sizeof(fresh.pcomm), &up->comm);
	if (bpf_map_update_elem(&polled, k, &fresh, 0))
		count_lost(LOST_TABLE, 1);
	return 0;
}

// root_of gives the place of a mount whose root a file is, NULL for other files.
INLINE u32 *root_of(u64 fd)
{
	struct file *f = file_of(fd);

	if (!f)
		return NULL;
	struct mount *m = mount_of(get(f, f_path.mnt));

	if (!m || get(m, mnt.mnt_root) != get(f, f_path.dentry))
		return NULL;
	u32 id = get(m, mnt_id);

	return bpf_map_lookup_elem(&ids, &id);
}

SEC("raw_tp/sys_exit") int polls(struct raw *ctx)
{
	void *regs = (void *)ctx->args[0];
	s64 nr = call_number(regs);
	u32 class = class_of(nr), zero = 0, *root = NULL;
	u32 text = class & C_TEXT;
	u64 args[6];

	if (!(class & (C_STAT | C_STATX | C_STATFS)) || (s64)ctx->args[1] < 0)
		return 0;
	if (compat()) {
		count_lost(LOST_COMPAT, 1);
		return 0;
	}
	call_args(args, regs);
	struct root *r = bpf_map_lookup_elem(&scratch, &zero);

	if (!r)
		return 0;
	__builtin_memset(r, 0, sizeof(*r));
	if (text && text < 7)
		bpf_probe_read_user_str(r->text, TEXT, (void *)argument(args, text - 1));
	if (r->text[0] == '/')
		root = bpf_map_lookup_elem(&roots, r);
	else if (!r->text[0])
		root = root_of(args[0]); // the descriptor itself
	if (!root)
		return 0;
	u64 now = bpf_ktime_get_ns(), id = bpf_get_current_pid_tgid();
	struct poller k = {};

	k.root = *root;
	k.statfs = !!(class & C_STATFS);
	k.pid = id >> 32;
	note(&k, now);
	k.parent = 1;
	k.pid = get(get(me(), real_parent), tgid);
	bpf_get_current_comm(k.comm, sizeof(k.comm));
	note(&k, now);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
