// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// Who refers to what is in a file system without a table of open files: calls that wait in the kernel,
// requests that the kernel was given, file systems that are mounted of a file, and files that FUSE reads
// past its server. It is asked only where the counters say that somebody is missing.

#include "kern.h"
#include "question.h"

char _license[] SEC("license") = "Dual MIT/GPL";

// Steps of one run, as in refs.c.
#define WORDS 40
#define REQUESTS 32
#define CONTEXTS 32
#define SLOTS 32

#define THREAD_BYTES 16384 // THREAD_SIZE of x86-64 and arm64 with pages of 4 KiB
#define KERNEL_THREAD 0x00200000 // PF_KTHREAD of include/linux/sched.h

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

// Where the stack of a task that sleeps ends: x86,
struct thread_struct___x86 {
	unsigned long sp;
};

struct task_struct___x86 {
	struct thread_struct___x86 thread;
};

// and arm64.
struct cpu_context {
	unsigned long sp;
};

struct thread_struct___arm {
	struct cpu_context cpu_context;
};

struct task_struct___arm {
	struct thread_struct___arm thread;
};

struct task_struct___stack {
	void *stack;
};

struct pt_regs___x86 {
	unsigned long orig_ax;
};

struct pt_regs___arm {
	int syscallno;
};

struct file_ref___inside {
	s64 counter;
};

struct file___ref { // 6.13
	struct {
		struct file_ref___inside refcnt;
	} f_ref;
};

struct file___count {
	struct {
		s64 counter;
	} f_count;
};

struct mm_struct___aio {
	struct kioctx_table *ioctx_table;
};

struct kioctx_table {
	unsigned int nr;
	struct kioctx *table[1];
};

struct kioctx {
	struct list_head active_reqs;
};

struct aio_kiocb {
	struct file *ki_filp;
	struct list_head ki_list;
};

struct hlist_head {
	struct hlist_node *first;
};

struct io_hash_bucket {
	struct hlist_head list;
};

struct io_hash_table {
	struct io_hash_bucket *hbs;
	unsigned int hash_bits;
};

struct io_ring_ctx___table { // 6.0
	struct io_hash_table cancel_table;
};

struct io_kiocb {
	struct file *file;
	struct hlist_node hash_node;
};

struct xarray {
	void *xa_head;
};

struct idr {
	struct xarray idr_rt;
};

struct xa_node {
	unsigned char shift;
	void *slots[64];
};

struct fuse_backing { // 6.9
	struct file *file;
};

struct fuse_conn {
	struct idr backing_files_map;
};

struct fuse_dev {
	struct fuse_conn *fc;
};

struct erofs_device_info___file { // 6.12
	struct file *file;
};

struct erofs_sb_info {
	struct erofs_device_info___file dif0;
};

struct super_block___info {
	void *s_fs_info;
};

#pragma clang attribute pop

struct sleeper_found {
	struct header head;
	u64 task, mm;
	u64 sp, end; // what is on the stack
	s64 nr;	     // of the system call, if it is in one
	s32 pid, tid, tgid;
	u32 flags;
	u8 comm[16];
};

// number_of is the number of the task in the namespace of pids that is so many levels deep.
INLINE s32 number_of(struct task_struct *task, u32 level)
{
	struct pid *pid = get(task, thread_pid);
	struct upid *numbers = pid->numbers;
	if (!pid || level > get(pid, level))
		return 0;
	return get((struct upid *)((char *)numbers + level * type_size(struct upid)), nr);
}

// sleepers tells of each thread of a program where its stack is. That of one which runs is elsewhere by
// the time that it is looked at.
SEC("iter/task")
int sleepers(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	if (!task)
		return 0;
	struct sleeper_found f = { .head = { .kind = FOUND_TASK, .size = sizeof(f) }, .nr = -1 };
	f.flags = get(task, flags);
	if (f.flags & KERNEL_THREAD)
		return 0;
	struct task_struct *self = (void *)bpf_get_current_task(), *leader = get(task, group_leader);
	struct pid *pid = get(self, thread_pid);
	u32 level = get(pid, level);
	u64 stack = (u64)get((struct task_struct___stack *)task, stack);
	f.task = (u64)task;
	f.mm = (u64)get(task, mm);
	f.end = stack + THREAD_BYTES;
	if (field_exists(((struct task_struct___x86 *)0)->thread.sp))
		f.sp = get((struct task_struct___x86 *)task, thread.sp);
	else if (field_exists(((struct task_struct___arm *)0)->thread.cpu_context.sp))
		f.sp = get((struct task_struct___arm *)task, thread.cpu_context.sp);
	if (f.sp < stack || f.sp >= f.end)
		f.sp = f.end;
	if (field_exists(((struct pt_regs___x86 *)0)->orig_ax)) {
		struct pt_regs___x86 *regs = (void *)(f.end - type_size(struct pt_regs___x86));
		f.nr = get(regs, orig_ax);
	} else if (field_exists(((struct pt_regs___arm *)0)->syscallno)) {
		struct pt_regs___arm *regs = (void *)(f.end - type_size(struct pt_regs___arm));
		f.nr = get(regs, syscallno);
	}
	f.pid = get(task, pid);
	f.tid = number_of(task, level);
	f.tgid = number_of(leader, level);
	bpf_probe_read_kernel_str(f.comm, sizeof(f.comm), &task->comm);
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

// tell tells of a file, if it is of the super block. It may be anything.
INLINE void tell(struct bpf_iter__bpf_map_elem *ctx, struct question *q, struct file *file)
{
	struct found f = { .head = header_of(q, FOUND_FILE, sizeof(f)), .addr = (u64)file, .fd = -1 };
	struct vfsmount *mnt = get(file, f_path.mnt);
	struct dentry *dentry = get(file, f_path.dentry);
	if (!file || (u64)get(mnt, mnt_sb) != q->super || (u64)get(dentry, d_sb) != q->super)
		return;
	f.mnt = (u64)mount_of(mnt);
	f.dentry = (u64)dentry;
	f.flags = get(file, f_flags);
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
}

// refers tells whether the file has a reference: memory of one that is gone is used again for files.
INLINE bool refers(struct file *file)
{
	if (field_exists(((struct file___ref *)0)->f_ref.refcnt))
		return get((struct file___ref *)file, f_ref.refcnt.counter) >= 0;
	if (field_exists(((struct file___count *)0)->f_count))
		return get((struct file___count *)file, f_count.counter) > 0;
	return false;
}

// stack tells of what lies on the stack of the task also, from the word from to of: open files of the
// super block, and paths, which are a mount with a directory entry behind it. What a call has there that
// waits is its own; what calls before it left between may be there too.
SEC("iter/bpf_map_elem")
int stack(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct task_struct *task = (void *)q->also;
	struct scratch *s = scratch();
	if (!s || get(task, pid) != q->want)
		return 0;
	s->n = peek((u64 *)q->from);
	for (int i = 0; i < WORDS; i++) {
		u64 at = q->from + i * 8;
		if (at >= q->of)
			return 0;
		u64 word = s->n, next = peek((u64 *)(at + 8));
		s->n = next;
		if (!(word >> 63) || (word & 7))
			continue;
		struct vfsmount *mnt = (void *)word;
		struct dentry *entry = (void *)next;
		if ((u64)get(mnt, mnt_sb) == q->super && (u64)get(entry, d_sb) == q->super) {
			struct found f = { .head = header_of(q, FOUND_PATH, sizeof(f)), .addr = at, .fd = -1 };
			f.mnt = (u64)mount_of(mnt);
			f.dentry = next;
			bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
		}
		if (refers((struct file *)word))
			tell(ctx, q, (struct file *)word);
	}
	say(ctx, q, FOUND_MORE, 0, q->from + WORDS * 8);
	return 0;
}

// queues tells of the queues of asynchronous requests (io_setup(2)) that the memory addr has.
SEC("iter/bpf_map_elem")
int queues(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s || !field_exists(((struct mm_struct___aio *)0)->ioctx_table))
		return 0;
	struct task_struct *task = (void *)q->also;
	struct mm_struct___aio *mm = (void *)q->addr;
	if (get(task, pid) != q->want || (u64)get(task, mm) != q->addr)
		return 0;
	s->at = (u64)get(mm, ioctx_table);
	if (!s->at)
		return 0;
	for (u32 i = 0; i < CONTEXTS; i++) {
		struct kioctx_table *table = (void *)s->at;
		u32 n = q->from + i;
		if (n >= get(table, nr))
			return 0;
		struct kioctx *queue = peek(&((struct kioctx **)&table->table)[n]);
		if (queue)
			say(ctx, q, FOUND_ANONYMOUS, 0, (u64)queue);
	}
	say(ctx, q, FOUND_MORE, 0, q->from + CONTEXTS);
	return 0;
}

// queue tells of the files of the requests that wait in the queue addr, those that can be called off: of
// others there is no list.
SEC("iter/bpf_map_elem")
int queue(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s)
		return 0;
	s->m = (u64)&((struct kioctx *)q->addr)->active_reqs;
	s->at = q->from ? q->from : s->m;
	for (int i = 0; i < REQUESTS; i++) {
		struct list_head *next = peek(&((struct list_head *)s->at)->next);
		if ((u64)next == s->m)
			return 0;
		if (!next || (u64)get(next, prev) != s->at) {
			say(ctx, q, FOUND_LOST, q->addr, 1);
			return 0;
		}
		tell(ctx, q, get(container(next, struct aio_kiocb, ki_list), ki_filp));
		s->at = (u64)next;
	}
	say(ctx, q, FOUND_MORE, 0, s->at);
	return 0;
}

// waiting tells of the files of the requests that the io_uring addr has waiting for something to happen:
// they are in a hash table, from is one and want the number of the next bucket.
SEC("iter/bpf_map_elem")
int waiting(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s || !field_exists(((struct io_ring_ctx___table *)0)->cancel_table.hbs))
		return 0;
	struct io_ring_ctx___table *ring = (void *)q->addr;
	s->of = (u64)get(ring, cancel_table.hbs);
	s->m = 1ULL << (get(ring, cancel_table.hash_bits) & 31);
	s->n = q->want;
	s->at = q->from;
	for (int i = 0; i < REQUESTS; i++) {
		if (!s->at) {
			if (!s->of || s->n >= s->m)
				return 0;
			struct io_hash_bucket *bucket = (void *)(s->of + s->n * type_size(struct io_hash_bucket));
			s->at = (u64)get(bucket, list.first);
			s->n++;
			continue;
		}
		struct hlist_node *node = (void *)s->at;
		if ((u64)peek(get(node, pprev)) != s->at) { // it was taken off
			say(ctx, q, FOUND_LOST, q->addr, 1);
			return 0;
		}
		tell(ctx, q, get(container(node, struct io_kiocb, hash_node), file));
		s->at = (u64)get(node, next);
	}
	struct found f = { .head = header_of(q, FOUND_MORE, sizeof(f)), .extra = s->at };
	f.flags = s->n;
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

// backings tells of the files that the server of the FUSE device addr gave to the kernel, to read and
// write them by itself. They are in a tree (include/linux/xarray.h): an entry that ends in binary 10 is
// a node, and with flags addr is one.
SEC("iter/bpf_map_elem")
int backings(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s || !field_exists(((struct fuse_conn *)0)->backing_files_map) ||
	    !field_exists(((struct fuse_backing *)0)->file))
		return 0;
	if (!q->flags) {
		struct fuse_conn *fc = get((struct fuse_dev *)q->addr, fc);
		u64 head = (u64)get(fc, backing_files_map.idr_rt.xa_head);
		if ((head & 3) == 2 && head > 4096)
			say(ctx, q, FOUND_BELOW, head, 0);
		else if (head)
			tell(ctx, q, get((struct fuse_backing *)head, file));
		return 0;
	}
	s->at = q->addr & ~3ULL;
	for (u32 i = 0; i < SLOTS; i++) {
		u32 n = q->from + i;
		if (n >= 64)
			return 0;
		struct xa_node *node = (void *)s->at;
		u64 slot = (u64)peek(&((void **)&node->slots)[n]);
		if ((slot & 3) == 2 && slot > 4096)
			say(ctx, q, FOUND_BELOW, slot, 0);
		else if (slot && !(slot & 3))
			tell(ctx, q, get((struct fuse_backing *)slot, file));
	}
	say(ctx, q, FOUND_MORE, 0, q->from + SLOTS);
	return 0;
}

// image tells of the file that the erofs with the super block addr is mounted of, if it is one.
SEC("iter/bpf_map_elem")
int image(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q || !field_exists(((struct erofs_sb_info *)0)->dif0.file))
		return 0;
	struct erofs_sb_info *info = get((struct super_block___info *)q->addr, s_fs_info);
	tell(ctx, q, get(info, dif0.file));
	return 0;
}

SHOWN(struct sleeper_found, shown_sleeper_found);
