// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// Who refers to what is in a file system: tasks by their directories, programs, mappings and open
// files, and what these carry in turn. An iterator tells of the tasks and of the addresses that they
// have; user space asks for each of these addresses once, however many tasks share it.

#include "kern.h"
#include "question.h"

char _license[] SEC("license") = "Dual MIT/GPL";

// Steps of one run. What they write must fit into the 32 KiB that the kernel has for one element.
// The verifier goes through each step of a loop, and loading is what a scan takes longest for, so
// there are as few as do for the usual process: the first table of open files has 64.
#define FILES 64
#define CARRIED 32 // files of a message or a ring
#define AREAS 64
#define MESSAGES 32
#define EVENTS 32

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct vm_area_struct {
	unsigned long vm_flags;
	struct mm_struct *vm_mm;
	struct file *vm_file;
};

// Until 6.1 the areas of memory are on a list,
struct vm_area_struct___list {
	struct vm_area_struct *vm_next;
};

struct mm_struct___list {
	struct vm_area_struct *mmap;
};

// and since then in a tree of nodes with up to 16 slots (include/linux/maple_tree.h).
struct maple_tree {
	void *ma_root;
};

struct mm_struct___tree {
	struct maple_tree mm_mt;
};

struct maple_range_64 {
	unsigned long pivot[15];
	void *slot[16];
};

struct maple_arange_64 {
	unsigned long pivot[9];
	void *slot[10];
};

struct maple_node {
	struct maple_range_64 mr64;
};

struct sock_common {
	u16 skc_family;
	unsigned char skc_state;
};

struct sk_buff_head {
	struct sk_buff *next;
};

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
};

struct unix_sock {
	struct path path;
};

struct socket {
	struct sock *sk;
};

struct sk_buff {
	struct sk_buff *next;
	struct sock *sk;
	char cb[48];
};

struct unix_skb_parms {
	struct scm_fp_list *fp;
};

struct scm_fp_list {
	short count;
	struct file *fp[1];
};

struct fsnotify_event {
	struct list_head list;
};

struct fanotify_event {
	struct fsnotify_event fse;
};

struct fanotify_path_event {
	struct fanotify_event fae;
	struct path path;
};

struct fanotify_group_private_data {
	struct list_head access_list;
};

struct fsnotify_group {
	struct list_head notification_list;
	struct fanotify_group_private_data fanotify_data;
};

struct io_rsrc_node {
	unsigned long file_ptr;
};

struct io_rsrc_data {
	u32 nr;
	struct io_rsrc_node **nodes;
};

struct io_file_table___nodes { // 6.13
	struct io_rsrc_data data;
};

struct io_ring_ctx___nodes {
	struct io_file_table___nodes file_table;
};

struct io_fixed_file {
	unsigned long file_ptr;
};

struct io_file_table___files { // 5.15
	struct io_fixed_file *files;
};

struct io_ring_ctx___files {
	struct io_file_table___files file_table;
	u32 nr_user_files;
};

struct trace_event_call {
	int flags;
};

struct pmu {
	const char *name;
};

struct perf_event {
	struct pmu *pmu;
	struct trace_event_call *tp_event;
};

struct trace_probe_event {
	struct trace_event_call call;
	struct list_head probes;
};

struct trace_probe {
	struct list_head list;
};

struct trace_uprobe {
	struct path path;
	struct trace_probe tp;
};

enum bpf_link_type {
	BPF_LINK_TYPE_UNSPEC,
};

struct bpf_link {
	enum bpf_link_type type;
};

struct bpf_uprobe_multi_link { // 6.6
	struct path path;
	struct bpf_link link;
};

struct bpf_perf_link { // 5.15
	struct bpf_link link;
	struct file *perf_file;
};

struct fs_context {
	struct dentry *root;
};

#pragma clang attribute pop

enum {
	LINK_PERF = 7,     // BPF_LINK_TYPE_PERF_EVENT, BPF_LINK_TYPE_UPROBE_MULTI
	LINK_UPROBES = 12, // of include/uapi/linux/bpf.h
	UNIX = 1,          // AF_UNIX
	LISTENS = 10,      // TCP_LISTEN, of unix sockets too
	SOCKETS = 0x534F434B,   // SOCKFS_MAGIC, ANON_INODE_FS_MAGIC, NSFS_MAGIC
	ANONYMOUS = 0x09041934, // of include/uapi/linux/magic.h
	NAMESPACES = 0x6e736673,
	FUSE_DEVICE = 10 << 20 | 229, // /dev/fuse, as the kernel writes the number
	FUSE_NAME = 0x65737566,       // what user space knows it by
	OVERLAY = 0x794c7630, // OVERLAYFS_SUPER_MAGIC
	S_IFMT = 0170000,     // of include/uapi/linux/stat.h
	S_IFDIR = 0040000,
	VM_WRITES = 0x08 | 0x20, // VM_SHARED and VM_MAYWRITE of include/linux/mm.h
};

struct held {
	u64 file, mnt, dentry, super;
};

struct task_found {
	struct header head;
	u64 task, files, fs, mm, ns;
	struct held root, pwd, exe;
	s32 pid, tid, tgid; // pid: as the kernel counts; the others as our own namespace does
	u32 flags, inum, pad;
	u8 comm[16];
};

INLINE struct held hold(struct path *path)
{
	struct path p = peek(path);
	struct held h = { .dentry = (u64)p.dentry };
	h.mnt = (u64)container(p.mnt, struct mount, mnt); // nonsense without a super block
	h.super = (u64)get(p.mnt, mnt_sb);
	return h;
}

// number_of is the number of the task in the namespace of pids that is so many levels deep.
INLINE s32 number_of(struct task_struct *task, u32 level)
{
	struct pid *pid = get(task, thread_pid);
	struct upid *numbers = pid->numbers;
	if (!pid || level > get(pid, level))
		return 0;
	return get((struct upid *)((char *)numbers + level * type_size(struct upid)), nr);
}

// tasks tells of each task that has something of its own: of the first of a process, and of threads
// that share not all with it.
SEC("iter/task")
int tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	if (!task)
		return 0;
	struct task_struct *self = (void *)bpf_get_current_task(), *leader = get(task, group_leader);
	struct pid *pid = get(self, thread_pid);
	u32 level = get(pid, level);
	struct task_found f = { .head = { .kind = FOUND_TASK, .size = sizeof(f) } };
	struct files_struct *files = get(task, files);
	struct fs_struct *fs = get(task, fs);
	struct mm_struct *mm = get(task, mm);
	struct nsproxy *proxy = get(task, nsproxy);

	if (task != leader && files == get(leader, files) && fs == get(leader, fs) &&
	    mm == get(leader, mm) && proxy == get(leader, nsproxy))
		return 0;
	struct mnt_namespace *ns = get(proxy, mnt_ns);
	struct file *exe = get(mm, exe_file);
	f.task = (u64)task;
	f.files = (u64)files;
	f.fs = (u64)fs;
	f.mm = (u64)mm;
	f.ns = (u64)ns;
	f.inum = get(ns, ns.inum);
	if (fs) {
		f.root = hold(&fs->root);
		f.root.file = (u64)&fs->root;
		f.pwd = hold(&fs->pwd);
		f.pwd.file = (u64)&fs->pwd;
	}
	if (exe) {
		f.exe = hold(&exe->f_path);
		f.exe.file = (u64)exe;
	}
	f.pid = get(task, pid);
	f.tid = number_of(task, level);
	f.tgid = number_of(leader, level);
	f.flags = get(task, flags);
	bpf_probe_read_kernel_str(f.comm, sizeof(f.comm), &task->comm);
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

// on tells whether what is at the address is a file of the super block. It may be anything, what was
// freed long ago too, in which one pointer to the super block is nothing rare: all ways must lead there.
INLINE bool on(struct file *file, u64 super)
{
	struct vfsmount *mnt = get(file, f_path.mnt);
	struct dentry *dentry = get(file, f_path.dentry);
	struct inode *inode = get(file, f_inode);
	return super && (u64)get(mnt, mnt_sb) == super && (u64)get(dentry, d_sb) == super &&
	       (u64)get(inode, i_sb) == super;
}

// below is the file of the super block that an open file of an overlay stands for, NULL if there is
// none. It is in the private data, of which the kernel tells no types where the overlay is a module
// (fs/overlayfs/file.c, readdir.c). For a directory these are two flags, two pointers, and the files of
// the layer and of the upper layer; for others the same two files, and until 6.12 that of the layer
// alone, without a struct.
INLINE struct file *below(struct file *file, u64 super)
{
	struct inode *inode = get(file, f_inode);
	struct file **pair = get(file, private_data);
	if ((get(inode, i_mode) & S_IFMT) == S_IFDIR)
		pair += 3;
	else if (on((struct file *)pair, super))
		return (struct file *)pair;
	struct file *layer = peek(&pair[0]), *upper = peek(&pair[1]);
	if (on(upper, super))
		return upper;
	return on(layer, super) ? layer : NULL;
}

// look tells of a file: that it is of the super block, or of a kind that may carry what is. User space
// knows the kinds by the first 8 bytes of the name that the kernel gives them.
INLINE void look(struct bpf_iter__bpf_map_elem *ctx, struct question *q, struct file *file, s32 fd)
{
	struct found f = { .head = header_of(q, FOUND_FILE, sizeof(f)), .addr = (u64)file, .fd = fd };
	struct vfsmount *mnt = get(file, f_path.mnt);
	struct dentry *dentry = get(file, f_path.dentry);
	struct super_block *sb = get(mnt, mnt_sb);
	unsigned long magic = get(sb, s_magic);
	f.mnt = (u64)mount_of(mnt);
	f.dentry = (u64)dentry;
	f.flags = get(file, f_flags);
	if (magic == OVERLAY && (u64)sb != q->super) {
		struct file *under = below(file, q->super);
		if (!under)
			return;
		f.addr = (u64)under;
		f.mnt = (u64)mount_of(get(under, f_path.mnt));
		f.dentry = (u64)get(under, f_path.dentry);
	} else if ((u64)sb != q->super) {
		struct inode *inode = get(file, f_inode);
		bool fuse = get(inode, i_rdev) == FUSE_DEVICE;
		if (magic == SOCKETS)
			f.head.kind = FOUND_SOCKET;
		else if (magic == ANONYMOUS || fuse)
			f.head.kind = FOUND_ANONYMOUS;
		else if (magic == NAMESPACES)
			f.head.kind = FOUND_NAMESPACE;
		else
			return;
		f.extra = (u64)get(file, private_data);
		f.mnt = get(inode, i_ino);
		bpf_probe_read_kernel(&f.dentry, sizeof(f.dentry), get(dentry, d_name.name));
		if (fuse)
			f.dentry = FUSE_NAME;
	}
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
}

// gone tells whether the task also is another one by now than the one that had the number want.
INLINE bool gone(struct question *q)
{
	struct task_struct *task = (void *)q->also;
	return get(task, pid) != q->want;
}

// files tells of the open files of the table addr, from the number from, which the task also has.
SEC("iter/bpf_map_elem")
int files(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct task_struct *task = (void *)q->also;
	struct files_struct *files = (void *)q->addr;
	if (gone(q) || get(task, files) != files) {
		say(ctx, q, FOUND_LOST, q->addr, 0);
		return 0;
	}
	struct scratch *s = scratch();
	struct fdtable *table = get(files, fdt);
	if (!s)
		return 0;
	s->at = (u64)get(table, fd);
	s->n = get(table, max_fds);
	for (u32 i = 0; i < FILES; i++) {
		u32 n = q->from + i;
		if (n >= s->n)
			return 0;
		struct file *file = peek(&((struct file **)s->at)[n]);
		if (file)
			look(ctx, q, file, n);
	}
	say(ctx, q, FOUND_MORE, 0, q->from + FILES);
	return 0;
}

// area tells of one area of memory, if it is of a file of the super block. The parts of a program
// lie side by side and are one: last is the file of the area before, and 1 more where that may be written
// to through it. What may be written to is said in extra.
INLINE void area(struct bpf_iter__bpf_map_elem *ctx, struct question *q,
		 struct vm_area_struct *vma, volatile u64 *last)
{
	struct file *file = get(vma, vm_file);
	struct vfsmount *mnt = get(file, f_path.mnt);
	u64 writes = 1;
	if (field_exists(((struct vm_area_struct *)0)->vm_flags))
		writes = (get(vma, vm_flags) & VM_WRITES) == VM_WRITES;
	bool again = ((u64)file | writes) == *last;
	*last = (u64)file | writes;
	if (again || (u64)get(mnt, mnt_sb) != q->super)
		return;
	struct found f = { .head = header_of(q, FOUND_FILE, sizeof(f)), .addr = (u64)file, .fd = -1 };
	f.mnt = (u64)mount_of(mnt);
	f.dentry = (u64)get(file, f_path.dentry);
	f.extra = writes;
	f.flags = get(file, f_flags);
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
}

// tree_areas looks at one node of the tree of areas, the root with flags 0, and says which are below
// it. An entry has the kind of node in its bits 3 to 6, and the bottom 8 bits are not part of the
// address; from is the last address that a node stands for (lib/maple_tree.c). Nodes are freed by
// RCU, and one that was replaced is its own parent.
INLINE void tree_areas(struct bpf_iter__bpf_map_elem *ctx, struct question *q, struct scratch *s)
{
	u64 entry = q->addr;
	s->m = q->from;
	if (!q->flags) {
		struct mm_struct___tree *mm = (void *)q->of;
		entry = (u64)get(mm, mm_mt.ma_root);
		s->m = ~0ULL;
		if ((entry & 3) != 2)
			return; // no node: one area at most, which no process has
	}
	u32 kind = entry >> 3 & 15;
	bool leaf = kind < 2, wide = kind == 3; // enum maple_type
	u32 pivots = field_offset(struct maple_range_64, pivot) / 8;
	u32 slots = field_offset(struct maple_range_64, slot) / 8, count = 16;
	if (wide) {
		pivots = field_offset(struct maple_arange_64, pivot) / 8;
		slots = field_offset(struct maple_arange_64, slot) / 8;
		count = 10;
	}
	entry &= ~0xffULL;
	if (bpf_probe_read_kernel(s->words, sizeof(s->words), (void *)entry) || s->words[0] == entry) {
		say(ctx, q, FOUND_LOST, q->of, 1);
		return;
	}
	s->at = 0;
	for (u32 i = 0; i < 16; i++) {
		u64 pivot = s->words[(pivots + i) & 31], in = s->words[(slots + i) & 31];
		// Behind the last slot is a pivot that is the node's own, or none.
		bool end = i >= count - 1 || pivot >= s->m || (!pivot && i);
		if (leaf && in && !(in & 3) && (u64)get((struct vm_area_struct *)in, vm_mm) == q->of)
			area(ctx, q, (void *)in, &s->at);
		if (!leaf && in)
			say(ctx, q, FOUND_BELOW, in, end ? s->m : pivot);
		if (end)
			return;
	}
}

// listed_areas is the same where they are on a list, from the area from.
INLINE void listed_areas(struct bpf_iter__bpf_map_elem *ctx, struct question *q, struct scratch *s)
{
	s->at = 0;
	s->n = q->from;
	if (!s->n) {
		struct mm_struct___list *mm = (void *)q->of;
		s->n = (u64)get(mm, mmap);
	}
	for (int i = 0; i < AREAS; i++) {
		struct vm_area_struct *vma = (void *)s->n;
		if (!vma)
			return;
		if ((u64)get(vma, vm_mm) != q->of) {
			say(ctx, q, FOUND_LOST, q->of, 1);
			return;
		}
		area(ctx, q, vma, &s->at);
		s->n = (u64)get((struct vm_area_struct___list *)vma, vm_next);
	}
	if (s->n)
		say(ctx, q, FOUND_MORE, 0, s->n);
}

// areas tells of the files that are mapped in the memory of, which the task also has. The lock of the
// memory is not taken: a process that hangs in a write to a mapping would never give it back.
SEC("iter/bpf_map_elem")
int areas(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct task_struct *task = (void *)q->also;
	struct scratch *s = scratch();
	if (!s)
		return 0;
	if (gone(q) || (u64)get(task, mm) != q->of)
		say(ctx, q, FOUND_LOST, q->addr, 0);
	else if (field_exists(((struct mm_struct___tree *)0)->mm_mt))
		tree_areas(ctx, q, s);
	else
		listed_areas(ctx, q, s);
	return 0;
}

// messages tells where a socket is bound (addr is a struct sock, with flags set a struct socket), and
// which files are on their way to it: in what is
// sent and not yet received, and in connections that are not accepted yet. from is a message.
SEC("iter/bpf_map_elem")
int messages(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct scratch *s = scratch();
	struct sock *sk = (void *)q->addr;
	if (!s)
		return 0;
	if (q->flags)
		sk = get((struct socket *)q->addr, sk);
	if (get(sk, __sk_common.skc_family) != UNIX)
		return 0;
	s->m = (u64)&sk->sk_receive_queue;
	s->at = q->from ? q->from : s->m;
	s->n = get(sk, __sk_common.skc_state) == LISTENS;
	if (!q->from) {
		struct unix_sock *u = (void *)sk;
		struct held h = hold(&u->path);
		if (h.super == q->super) {
			struct found f = { .head = header_of(q, FOUND_PATH, sizeof(f)) };
			f.addr = (u64)sk;
			f.mnt = h.mnt;
			f.dentry = h.dentry;
			bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
		}
	}
	for (int i = 0; i < MESSAGES; i++) {
		struct sk_buff *message = get((struct sk_buff *)s->at, next);
		if ((u64)message == s->m)
			return 0;
		if (!message) {
			say(ctx, q, FOUND_LOST, q->addr, 1);
			return 0;
		}
		// Without a branch: older verifiers would follow all combinations of them.
		struct found f = { .head = header_of(q, FOUND_MESSAGE, sizeof(f)), .flags = s->n };
		struct unix_skb_parms *parms = (void *)&message->cb;
		f.addr = (u64)get(message, sk);
		f.extra = (u64)get(parms, fp);
		bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
		s->at = (u64)message;
	}
	say(ctx, q, FOUND_MORE, 0, s->at);
	return 0;
}

// passed tells of the files of one message.
SEC("iter/bpf_map_elem")
int passed(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	for (u32 i = 0; i < CARRIED; i++) {
		struct scm_fp_list *list = (void *)q->addr;
		struct file **files = (void *)&list->fp;
		u32 n = q->from + i;
		if (n >= (get(list, count) & 0xff)) // SCM_MAX_FD is 253
			return 0;
		look(ctx, q, peek(&files[n]), -1);
	}
	say(ctx, q, FOUND_MORE, 0, q->from + CARRIED);
	return 0;
}

// rings tells of the files that are registered with the io_uring addr.
SEC("iter/bpf_map_elem")
int rings(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	bool nodes = field_exists(((struct io_ring_ctx___nodes *)0)->file_table.data.nodes);
	bool files = field_exists(((struct io_ring_ctx___files *)0)->file_table.files) &&
		     field_exists(((struct io_fixed_file *)0)->file_ptr);
	struct scratch *s = scratch();
	if (!s)
		return 0;
	if (nodes) {
		struct io_ring_ctx___nodes *ring = (void *)q->addr;
		s->n = get(ring, file_table.data.nr);
		s->at = (u64)get(ring, file_table.data.nodes);
	} else if (files) {
		struct io_ring_ctx___files *ring = (void *)q->addr;
		s->n = get(ring, nr_user_files);
		s->at = (u64)get(ring, file_table.files);
	} else {
		say(ctx, q, FOUND_UNKNOWN, q->addr, 0);
		return 0;
	}
	for (u32 i = 0; i < CARRIED; i++) {
		u32 n = q->from + i;
		unsigned long file = 0;
		if (n >= s->n)
			return 0;
		if (nodes) {
			struct io_rsrc_node *one = peek(&((struct io_rsrc_node **)s->at)[n]);
			file = get(one, file_ptr);
		} else if (files) {
			struct io_fixed_file *one = (void *)(s->at + n * type_size(struct io_fixed_file));
			file = get(one, file_ptr);
		}
		// The lowest bits say what can be done with the file.
		if (file)
			look(ctx, q, (struct file *)(file & ~7UL), -1);
	}
	say(ctx, q, FOUND_MORE, 0, q->from + CARRIED);
	return 0;
}

// events tells of the events that the fanotify group addr has for its reader, or with flags set of
// those that await the reader's answer. An event that is told by file handle holds no path, and what
// is there instead is the address of nothing.
SEC("iter/bpf_map_elem")
int events(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct scratch *s = scratch();
	struct fsnotify_group *group = (void *)q->addr;
	if (!s)
		return 0;
	if (!field_exists(((struct fanotify_path_event *)0)->path)) {
		say(ctx, q, FOUND_UNKNOWN, q->addr, 0);
		return 0;
	}
	s->m = (u64)&group->notification_list;
	if (q->flags) {
		if (!field_exists(((struct fsnotify_group *)0)->fanotify_data.access_list))
			return 0; // a kernel whose events await no answers
		s->m = (u64)&group->fanotify_data.access_list;
	}
	s->at = q->from ? q->from : s->m;
	for (int i = 0; i < EVENTS; i++) {
		struct list_head *next = peek(&((struct list_head *)s->at)->next);
		if ((u64)next == s->m)
			return 0;
		if (!next) {
			say(ctx, q, FOUND_LOST, q->addr, 1);
			return 0;
		}
		struct fanotify_path_event *event =
			(void *)container(next, struct fanotify_path_event, fae.fse.list);
		struct held h = hold(&event->path);
		struct found f = { .head = header_of(q, FOUND_EVENT, sizeof(f)), .addr = (u64)event };
		f.mnt = h.mnt;
		f.dentry = h.dentry;
		f.extra = h.super;
		bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
		s->at = (u64)next;
	}
	say(ctx, q, FOUND_MORE, 0, s->at);
	return 0;
}

// uprobes tells of the program that a perf event stops at, or a BPF link, with flags set.
SEC("iter/bpf_map_elem")
int uprobes(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct perf_event *event = (void *)q->addr;
	struct path *path = NULL;
	if (q->flags) {
		struct bpf_link *link = (void *)q->addr;
		u32 type = get(link, type);
		event = NULL;
		if (type == LINK_PERF && field_exists(((struct bpf_perf_link *)0)->perf_file)) {
			struct file *file = get(container(link, struct bpf_perf_link, link), perf_file);
			event = get(file, private_data);
		}
		if (type == LINK_UPROBES && field_exists(((struct bpf_uprobe_multi_link *)0)->path))
			path = &container(link, struct bpf_uprobe_multi_link, link)->path;
	}
	if (event && field_exists(((struct perf_event *)0)->tp_event) &&
	    field_exists(((struct trace_probe_event *)0)->probes) &&
	    field_exists(((struct trace_uprobe *)0)->path)) {
		struct trace_event_call *call = get(event, tp_event);
		struct pmu *pmu = get(event, pmu);
		u64 name = 0; // "uprobe" and its end, and whatever byte is behind
		bpf_probe_read_kernel(&name, sizeof(name), get(pmu, name));
		if (name << 8 == 0x65626f727075ULL << 8) {
			struct trace_probe_event *probe = container(call, struct trace_probe_event, call);
			struct list_head *first = get(probe, probes.next);
			path = &container(first, struct trace_uprobe, tp.list)->path;
		}
	}
	struct held h = hold(path);
	if (path && h.super == q->super) {
		struct found f = { .head = header_of(q, FOUND_PATH, sizeof(f)), .addr = (u64)path };
		f.mnt = h.mnt;
		f.dentry = h.dentry;
		bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	}
	return 0;
}

// contexts tells whether the mount that is being configured with addr is of the super block.
SEC("iter/bpf_map_elem")
int contexts(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct fs_context *context = (void *)q->addr;
	struct dentry *root = get(context, root);
	if ((u64)get(root, d_sb) == q->super) {
		struct found f = { .head = header_of(q, FOUND_PATH, sizeof(f)), .addr = q->addr };
		f.dentry = (u64)root;
		bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	}
	return 0;
}

SHOWN(struct held, shown_held);
SHOWN(struct task_found, shown_task_found);
