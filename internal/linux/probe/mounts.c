// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// Super blocks, their mounts, the counters of these, and the paths of what is in them.

#include "kern.h"
#include "percpu.h"
#include "question.h"

char _license[] SEC("license") = "Dual MIT/GPL";

// Steps of one run. What they write must fit into the 32 KiB that the kernel has for one element.
// The verifier goes through each step of a loop, so there are as few as do for the usual machine.
#define MOUNTS 8
#define SUPERS 16
#define CHILDREN 64
#define CPUS 64
#define NAMES 16
#define DEPTH 40 // of a red-black tree: 2^20 mounts

#define MNT_INTERNAL 0x4000   // include/linux/mount.h
#define MNT_DOOMED 0x1000000  // its last reference is gone
#define MNT_CURSOR 0x10000000 // until 6.8: a reader's place in the list, no mount

// mount_found is what is told of a mount.
struct mount_found {
	struct header head;
	u64 addr, super, unique;
	u64 ns, parent, root, point, pcp;
	u64 root_ino;
	u32 id, dev, inum, flags;
	s32 group, master, parent_group, parent_master, parent_id;
	u32 about; // enum mount_flag
};

enum mount_flag {
	MOUNT_INTERNAL = 1,    // the kernel's own, in no namespace from the start
	MOUNT_ROOT = 2,        // of its namespace
	MOUNT_PINS_PARENT = 4, // this kernel counts a mount as a reference to the one it is on
};

INLINE void say_mount(struct bpf_iter__bpf_map_elem *ctx, struct question *q, struct mount *m)
{
	struct mount_found f = { .head = header_of(q, FOUND_MOUNT, sizeof(f)) };
	struct super_block *sb = get(m, mnt.mnt_sb);
	struct mount *parent = get(m, mnt_parent), *master = get(m, mnt_master);
	struct dentry *root = get(m, mnt.mnt_root);
	struct mnt_namespace *ns = get(m, mnt_ns);
	struct inode *inode = get(root, d_inode);

	f.addr = (u64)m;
	f.super = (u64)sb;
	if (field_exists(((struct mount___unique *)0)->mnt_id_unique))
		f.unique = get((struct mount___unique *)m, mnt_id_unique);
	f.root = (u64)root;
	f.root_ino = get(inode, i_ino);
	f.point = (u64)get(m, mnt_mountpoint);
	f.pcp = (u64)get(m, mnt_pcp);
	f.id = get(m, mnt_id);
	f.dev = get(sb, s_dev);
	f.flags = get(m, mnt.mnt_flags);
	// A mount of the kernel's own has an error where others have their namespace.
	if ((s64)ns < 0 && (s64)ns >= -4095) {
		ns = NULL;
		f.about |= MOUNT_INTERNAL;
	}
	if (f.flags & MNT_INTERNAL)
		f.about |= MOUNT_INTERNAL;
	if (ns && get(ns, root) == m)
		f.about |= MOUNT_ROOT;
	if (!field_exists(((struct mount___over *)0)->overmount))
		f.about |= MOUNT_PINS_PARENT;
	f.ns = (u64)ns;
	f.inum = get(ns, ns.inum);
	f.group = get(m, mnt_group_id);
	f.master = get(master, mnt_group_id);
	if (parent != m) {
		struct mount *above = get(parent, mnt_master);
		f.parent = (u64)parent;
		f.parent_id = get(parent, mnt_id);
		f.parent_group = get(parent, mnt_group_id);
		f.parent_master = get(above, mnt_group_id);
	}
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
}

// mount tells of one.
SEC("iter/bpf_map_elem")
int mount(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct mount *m = (void *)q->addr;
	if ((u64)get(m, mnt.mnt_sb) != q->super || (get(m, mnt.mnt_flags) & MNT_DOOMED))
		say(ctx, q, FOUND_LOST, (u64)m, 0);
	else
		say_mount(ctx, q, m);
	return 0;
}

// next_in_chain is the mount after m of the super block, the first for NULL, NULL after the last.
// What only one kernel has is reached on that kernel alone, so each has a loop of its own.
INLINE struct mount *next_in_chain(struct super_block *sb, struct mount *m)
{
	if (m)
		return get((struct mount___chain *)m, mnt_next_for_sb);
	return get((struct super_block___chain *)sb, s_mounts);
}

INLINE struct mount *next_in_list(struct super_block *sb, struct mount *m)
{
	struct list_head *end = &((struct super_block___list *)sb)->s_mounts, *next;
	if (m)
		next = get((struct mount___list *)m, mnt_instance.next);
	else
		next = peek(&end->next);
	return next == end ? NULL : (void *)container(next, struct mount___list, mnt_instance);
}

#define EACH_OF_SUPER(next)                                                                        \
	for (int i = 0; i <= MOUNTS; i++) {                                                        \
		struct super_block *sb = (void *)q->addr;                                          \
		struct mount *m = (void *)s->at;                                                   \
		if (m && (get(m, mnt.mnt_sb) != sb || (get(m, mnt.mnt_flags) & MNT_DOOMED))) {     \
			say(ctx, q, FOUND_LOST, (u64)m, 0);                                           \
			return 0;                                                                  \
		}                                                                                  \
		if (m && i > 0)                                                                    \
			say_mount(ctx, q, m);                                                         \
		if (i == MOUNTS)                                                                   \
			break;                                                                     \
		s->at = (u64)next(sb, m);                                                          \
		if (!s->at)                                                                        \
			return 0;                                                                  \
	}

// mounts_of_super tells of all mounts of the super block addr, after the mount from, which has the
// number want. One that was taken off the list leads nowhere, or to what was behind it once.
SEC("iter/bpf_map_elem")
int mounts_of_super(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s)
		return 0;
	s->at = q->from;
	if (q->from && get((struct mount *)q->from, mnt_id) != q->want) {
		say(ctx, q, FOUND_LOST, q->from, 0);
		return 0;
	}
	if (field_exists(((struct mount___chain *)0)->mnt_next_for_sb)) {
		EACH_OF_SUPER(next_in_chain)
	} else {
		EACH_OF_SUPER(next_in_list)
	}
	struct found f = { .head = header_of(q, FOUND_MORE, sizeof(f)), .extra = s->at };
	f.flags = get((struct mount *)s->at, mnt_id);
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

// next_in_tree is the mount of the namespace with the lowest unique number above s->n, which is that
// number then.
INLINE struct mount *next_in_tree(struct mnt_namespace *ns, struct scratch *s)
{
	s->at = (u64)get((struct mnt_namespace___tree *)ns, mounts.rb_node);
	s->m = 0;
	for (int i = 0; i < DEPTH && s->at; i++) {
		struct rb_node *node = (void *)s->at;
		struct mount *m = (void *)container(node, struct mount___node, mnt_node);
		if (get((struct mount___unique *)m, mnt_id_unique) > s->n) {
			s->m = (u64)m;
			s->at = (u64)get(node, rb_left);
		} else {
			s->at = (u64)get(node, rb_right);
		}
	}
	s->n = get((struct mount___unique *)s->m, mnt_id_unique);
	return (struct mount *)s->m;
}

// next_in_namespace is the same for kernels without numbers; s->n is an address.
INLINE struct mount *next_in_namespace(struct mnt_namespace *ns, struct scratch *s)
{
	struct list_head *end = &((struct mnt_namespace___list *)ns)->list, *next;
	if (s->n)
		next = get((struct mount___list *)s->n, mnt_list.next);
	else
		next = peek(&end->next);
	s->n = (u64)container(next, struct mount___list, mnt_list);
	return next == end ? NULL : (void *)s->n;
}

#define EACH_OF_NAMESPACE(next)                                                                    \
	for (int i = 0; i < MOUNTS; i++) {                                                         \
		struct mount *m = next((void *)s->of, s);                                          \
		if (!m)                                                                            \
			return 0;                                                                  \
		if ((u64)get(m, mnt_ns) != s->of) {                                                \
			say(ctx, q, FOUND_LOST, (u64)m, 0);                                           \
			return 0;                                                                  \
		}                                                                                  \
		u32 id = get(m, mnt_id), flags = get(m, mnt.mnt_flags);                            \
		if (!(flags & MNT_CURSOR) && (!q->want || q->want == id))                          \
			say_mount(ctx, q, m);                                                         \
	}

// mounts_of_namespace tells of the mounts of the namespace addr, of our own if that is 0.
SEC("iter/bpf_map_elem")
int mounts_of_namespace(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s)
		return 0;
	s->of = q->addr;
	if (!q->addr) {
		struct task_struct *self = (void *)bpf_get_current_task();
		struct nsproxy *proxy = get(self, nsproxy);
		s->of = (u64)get(proxy, mnt_ns);
	}
	s->n = q->from;
	if (field_exists(((struct mount___node *)0)->mnt_node)) {
		EACH_OF_NAMESPACE(next_in_tree)
	} else {
		EACH_OF_NAMESPACE(next_in_namespace)
	}
	say(ctx, q, FOUND_MORE, 0, s->n);
	return 0;
}

// children counts the mounts that hang below the mount addr.
SEC("iter/bpf_map_elem")
int children(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s)
		return 0;
	struct mount *m = (void *)q->addr;
	if ((u64)get(m, mnt.mnt_sb) != q->super) {
		say(ctx, q, FOUND_LOST, q->addr, 0);
		return 0;
	}
	s->at = q->from ? q->from : (u64)&m->mnt_mounts;
	s->n = 0;
	for (int i = 0; i < CHILDREN; i++) {
		struct mount *m = (void *)q->addr;
		struct list_head *next = peek(&((struct list_head *)s->at)->next);
		if (next == &m->mnt_mounts) {
			say(ctx, q, FOUND_NUMBER, q->addr, s->n);
			return 0;
		}
		if (get(container(next, struct mount, mnt_child), mnt_parent) != m) {
			say(ctx, q, FOUND_LOST, q->addr, 0);
			return 0;
		}
		s->at = (u64)next;
		s->n++;
	}
	say(ctx, q, FOUND_NUMBER, q->addr, s->n);
	say(ctx, q, FOUND_MORE, 0, s->at);
	return 0;
}

// bases has the offset of each CPU that may be, as user space was told by cpus; 0 for no such CPU.
struct {
	UINT(type, MAP_ARRAY);
	TYPE(key, u32);
	TYPE(value, u64);
	UINT(max_entries, 8192); // the most that Linux takes: NR_CPUS of x86
} bases SEC(".maps");

// cpus answers with the offset of the CPU addr.
SEC("iter/bpf_map_elem")
int cpus(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (q)
		say(ctx, q, FOUND_NUMBER, q->addr, percpu_base(q->addr));
	return 0;
}

// counts adds up the counters that the mount addr has on each CPU: of references, and of writers.
// A mount's counter on one CPU may well be below 0: what one takes another may give back.
SEC("iter/bpf_map_elem")
int counts(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s)
		return 0;
	struct mount *m = (void *)q->addr;
	if ((u64)get(m, mnt.mnt_sb) != q->super || (u64)get(m, mnt_pcp) != q->also) {
		say(ctx, q, FOUND_LOST, q->addr, 0);
		return 0;
	}
	s->n = 0;
	s->m = 0;
	for (u32 i = 0; i < CPUS; i++) {
		u32 cpu = q->from + i;
		u64 *base = bpf_map_lookup_elem(&bases, &cpu);
		struct mnt_pcp own;
		if (!base)
			break;
		if (cpu >= q->want)
			break;
		if (bpf_probe_read_kernel(&own, sizeof(own), (void *)(q->also + *base))) {
			say(ctx, q, FOUND_LOST, q->addr, 0);
			return 0;
		}
		s->n += (s64)own.mnt_count;
		s->m += (s64)own.mnt_writers;
	}
	struct found f = { .head = header_of(q, FOUND_NUMBER, sizeof(f)), .addr = q->addr };
	f.mnt = s->n;
	f.extra = s->m;
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	if (q->from + CPUS < q->want)
		say(ctx, q, FOUND_MORE, 0, q->from + CPUS);
	return 0;
}

// super_found is what is told of a super block.
struct super_found {
	struct header head;
	u64 addr, root, flags, magic;
	u32 dev, bdev;
	s32 active, frozen;
	u8 type[32], id[32];
};

INLINE void say_super(struct bpf_iter__bpf_map_elem *ctx, struct question *q,
		      struct super_block *sb)
{
	struct super_found f = { .head = header_of(q, FOUND_SUPER, sizeof(f)) };
	struct file_system_type *type = get(sb, s_type);
	struct block_device *bdev = get(sb, s_bdev);
	f.addr = (u64)sb;
	f.root = (u64)get(sb, s_root);
	f.flags = get(sb, s_flags);
	f.magic = get(sb, s_magic);
	f.dev = get(sb, s_dev);
	f.bdev = get(bdev, bd_dev);
	f.active = get(sb, s_active.counter);
	f.frozen = get(sb, s_writers.frozen);
	bpf_probe_read_kernel_str(f.type, sizeof(f.type), get(type, name));
	bpf_probe_read_kernel_str(f.id, sizeof(f.id), &sb->s_id);
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
}

// supers tells of all super blocks there are, mounted or not: of the one that our root is of, and
// of those after it on the list that goes round. One that is found there has a root that says so;
// the list's head, which is none, has not, nor has one that is being taken down: of such only that at
// addr is told.
SEC("iter/bpf_map_elem")
int supers(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	if (!q || !s)
		return 0;
	struct task_struct *self = (void *)bpf_get_current_task();
	struct fs_struct *fs = get(self, fs);
	struct vfsmount *at = get(fs, root.mnt);
	s->n = (u64)get(at, mnt_sb);
	s->at = q->from ? q->from : s->n;
	for (int i = 0; i < SUPERS; i++) {
		struct super_block *sb = (void *)s->at;
		struct dentry *root = get(sb, s_root);
		struct list_head *next;
		if ((root && get(root, d_sb) == sb) || (u64)sb == q->addr)
			say_super(ctx, q, sb);
		next = get(sb, s_list.next);
		if (!next || next == &sb->s_list) { // it was taken off the list
			say(ctx, q, FOUND_LOST, (u64)sb, 0);
			return 0;
		}
		s->at = (u64)container(next, struct super_block, s_list);
		if (s->at == s->n)
			return 0;
	}
	say(ctx, q, FOUND_MORE, 0, s->at);
	return 0;
}

// name_found is one part of a path.
struct name_found {
	struct header head;
	char name[256];
};

enum path_flag {
	PATH_FIRST = 1, // tell of the inode too
	PATH_CROSS = 2, // beyond the mount's root, to that of its namespace
};

// The flags of what is told of the inode.
enum inode_flag {
	INODE_DELETED = 1, // no name leads to it
	INODE_OUTSIDE = 2, // not below the root of the mount, the path is from the file system's
};

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	TYPE(key, u32);
	TYPE(value, struct name_found);
	UINT(max_entries, 1);
} names SEC(".maps");

// say_inode begins the answer to a question about a path.
INLINE void say_inode(struct bpf_iter__bpf_map_elem *ctx, struct question *q)
{
	struct found f = { .head = header_of(q, FOUND_PATH, sizeof(f)), .addr = q->addr };
	struct dentry *d = (void *)q->addr;
	struct inode *inode = get(d, d_inode);
	f.extra = get(inode, i_ino);
	if (!get(d, d_hash.pprev) && get(d, d_parent) != d)
		f.flags = INODE_DELETED;
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
}

// say_end is for the root of a mount, of a file system or, if it is neither's, of what is outside.
INLINE void say_end(struct bpf_iter__bpf_map_elem *ctx, struct question *q, struct dentry *d)
{
	struct found f = { .head = header_of(q, FOUND_PATH, sizeof(f)), .flags = INODE_OUTSIDE };
	struct mount *m = (void *)q->also, *parent = get(m, mnt_parent);
	if (!m)
		return;
	if (d == get(m, mnt.mnt_root)) {
		if (!(q->flags & PATH_CROSS) || parent == m)
			return;
		f.head.kind = FOUND_MORE;
		f.addr = (u64)get(m, mnt_mountpoint);
		f.mnt = (u64)parent;
	}
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
}

// path_of tells the names from the dentry addr up to the root of the mount also, of the file system
// if that is 0, the last name first.
SEC("iter/bpf_map_elem")
int path_of(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	struct scratch *s = scratch();
	u32 zero = 0;
	struct name_found *n = bpf_map_lookup_elem(&names, &zero);
	if (!q || !s || !n)
		return 0;
	struct dentry *first = (void *)q->addr;
	struct mount *m = (void *)q->also;
	if (q->super && (u64)get(first, d_sb) != q->super) {
		say(ctx, q, FOUND_LOST, q->addr, 0);
		return 0;
	}
	if (q->flags & PATH_FIRST)
		say_inode(ctx, q);
	s->at = q->addr;
	s->m = (u64)get(m, mnt.mnt_root);
	for (int i = 0; i < NAMES; i++) {
		struct dentry *d = (void *)s->at, *up = get(d, d_parent);
		if ((u64)d == s->m || up == d) {
			say_end(ctx, q, d);
			return 0;
		}
		u32 len = get(d, d_name.len);
		const u8 *name = get(d, d_name.name);
		if (!up || !len || len > 255 ||
		    bpf_probe_read_kernel_str(n->name, sizeof(n->name), name) <= 0) {
			say(ctx, q, FOUND_LOST, (u64)d, 0);
			return 0;
		}
		u32 size = (sizeof(n->head) + len + 1 + 7) & 0x1f8;
		if (size > sizeof(*n))
			return 0;
		n->head = header_of(q, FOUND_NAME, size);
		bpf_seq_write(ctx->meta->seq, n, size);
		s->at = (u64)up;
	}
	struct found f = { .head = header_of(q, FOUND_MORE, sizeof(f)), .addr = s->at, .mnt = q->also };
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

SHOWN(struct mount_found, shown_mount_found);
SHOWN(struct super_found, shown_super_found);
SHOWN(enum mount_flag, shown_mount_flag);
SHOWN(enum path_flag, shown_path_flag);
SHOWN(enum inode_flag, shown_inode_flag);
