// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// Who asks for mounts again and again, before any umount fails: stat and statfs of the roots of
// mounts, by the path that was named or by the file that is open on it. A path that does not begin with
// "/" is put behind that of the directory that it begins in. Sums are kept here, so that a loop of a
// million calls costs no event.
#include "calls.h"

#define BURST 50000000ULL // ns: calls that follow one another closer are one poll
#define POLLS 16384
#define PARTS 12 // names of the directory that a path begins in
#define PART 64  // bytes of one
#define UPS 4    // of "./" and "../" that a path begins with
#define AT_FDCWD -100

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

// joined is how a path is put together. What is longer than a root's text is none.
struct joined {
	u8 named[2 * TEXT]; // by the call
	u8 whole[4 * TEXT]; // a struct root, and room for what is written behind it
	u8 part[PARTS][PART];
	u64 mount, dentry; // of the directory
	u32 at;            // what of named is still to be gone
	u32 parts, off;    // how many there are, and how much is written
};

#define now(v) (*(volatile typeof(v) *)&(v))

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct joined);
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

// begins finds the directory that a path begins in: of a descriptor, or the task's own.
INLINE void begins(struct joined *j, s32 fd)
{
	struct fs_struct *fs;
	struct file *f;

	j->mount = j->dentry = 0;
	if (fd == AT_FDCWD) {
		fs = get(me(), fs);
		if (fs) {
			j->mount = (u64)mount_of(get(fs, pwd.mnt));
			j->dentry = (u64)get(fs, pwd.dentry);
		}
		return;
	}
	f = file_of((u32)fd);
	if (f) {
		j->mount = (u64)mount_of(get(f, f_path.mnt));
		j->dentry = (u64)get(f, f_path.dentry);
	}
}

// above goes to the directory above, also where that is of another mount.
INLINE void above(struct joined *j)
{
	struct mount *m = (struct mount *)j->mount;
	struct dentry *d = (struct dentry *)j->dentry;

	if (d == get(m, mnt.mnt_root)) {
		struct mount *below = get(m, mnt_parent);

		if (!below || below == m)
			return;
		d = get(m, mnt_mountpoint);
		m = below;
	}
	j->mount = (u64)m;
	j->dentry = (u64)get(d, d_parent);
}

// skip goes what a path begins with: "./" and "../".
GLOBAL skip(struct joined *j)
{
	if (!j)
		return 0;
	for (int i = 0; i < UPS; i++) {
		u32 at = now(j->at), n = 1;

		if (at >= TEXT || j->named[at] != '.')
			break;
		if (j->named[at + 1] == '.')
			n = 2;
		u8 end = j->named[at + n];

		if (end && end != '/')
			break;
		if (n == 2)
			above(j);
		now(j->at) = at + n + !!end;
	}
	return 0;
}

// walk notes the names of the directory, the last first. It gives 0 where there are more of them, or
// they are too long.
GLOBAL walk(struct joined *j)
{
	if (!j)
		return 0;
	struct mount *m = (struct mount *)j->mount;
	struct dentry *d = (struct dentry *)j->dentry;

	now(j->parts) = 0;
	for (int i = 0; i < 2 * PARTS; i++) {
		struct dentry *up = get(d, d_parent);
		u32 n = now(j->parts);

		if (d == get(m, mnt.mnt_root) || d == up) {
			struct mount *below = get(m, mnt_parent);

			if (!below || below == m)
				return 1;
			d = get(m, mnt_mountpoint);
			m = below;
			continue;
		}
		if (n >= PARTS || bpf_probe_read_kernel_str(j->part[n], PART, get(d, d_name.name)) == PART)
			return 0;
		now(j->parts) = n + 1;
		d = up;
	}
	return 0;
}

// join writes the path: the names, then what is still to be gone of what was named. It gives 0 where
// that is too long. What changes from turn to turn lies in memory, where the verifier does not follow it.
GLOBAL join(struct joined *j)
{
	if (!j)
		return 0;
	__builtin_memset(j->whole, 0, TEXT);
	now(j->off) = 0;
	for (int i = 0; i < PARTS; i++) {
		u32 n = now(j->parts), off = now(j->off);

		if (!n)
			break;
		if (--n >= PARTS || off >= TEXT)
			return 0;
		now(j->parts) = n;
		j->whole[off] = '/';
		long got = bpf_probe_read_kernel_str(j->whole + off + 1, PART, j->part[n]);

		if (got <= 0)
			return 0;
		now(j->off) = off + got;
	}
	u32 off = now(j->off), at = now(j->at);

	if (off >= TEXT || at >= TEXT)
		return 0;
	if (j->named[at]) {
		j->whole[off] = '/';
		bpf_probe_read_kernel_str(j->whole + off + 1, TEXT, j->named + at);
	} else if (!off) {
		j->whole[0] = '/';
	}
	return 1;
}

// root_of gives the place of a mount whose root a path leads to, NULL for other paths. In a namespace
// of its own a mount has another number, and mostly the same path.
INLINE u32 *root_of(struct joined *j)
{
	u32 at = now(j->at);

	if (!j->mount || !j->dentry || at >= TEXT)
		return NULL;
	if (!j->named[at]) {
		struct mount *m = (struct mount *)j->mount;
		u32 id = get(m, mnt_id), *root;

		if ((u64)get(m, mnt.mnt_root) != j->dentry)
			return NULL;
		root = bpf_map_lookup_elem(&ids, &id);
		if (root)
			return root;
	}
	if (!walk(j) || !join(j))
		return NULL;
	return bpf_map_lookup_elem(&roots, j->whole);
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
	struct joined *j = bpf_map_lookup_elem(&scratch, &zero);

	if (!j)
		return 0;
	__builtin_memset(j->named, 0, TEXT);
	j->at = 0;
	if (text && text < 7)
		bpf_probe_read_user_str(j->named, TEXT, (void *)argument(args, text - 1));
	if (j->named[0] == '/') {
		root = bpf_map_lookup_elem(&roots, j->named);
	} else {
		// What has a path as its second argument has the directory's descriptor as its first.
		begins(j, text == 1 ? AT_FDCWD : (s32)args[0]);
		skip(j);
		root = root_of(j);
	}
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
