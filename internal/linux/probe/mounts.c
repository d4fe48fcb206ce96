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

INLINE void say_mount(struct bpf_iter__bpf_map_elem *ctx, struct mount *m)
{
	struct mount_found f = { .head = header_of(ctx, FOUND_MOUNT, sizeof(f)) };
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
		say(ctx, FOUND_LOST, (u64)m, 0);
	else
		say_mount(ctx, m);
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
		if (m && get(m, mnt.mnt_sb) != sb) {                                               \
			say(ctx, FOUND_LOST, (u64)m, 0);                                           \
			return 0;                                                                  \
		}                                                                                  \
		if (m && i > 0)                                                                    \
			say_mount(ctx, m);                                                         \
		if (i == MOUNTS)                                                                   \
			break;                                                                     \
		m = next(sb, m);                                                                   \
		if (!m)                                                                            \
			return 0;                                                                  \
	}

// mounts_of_super tells of all mounts of the super block addr, after the mount from.
SEC("iter/bpf_map_elem")
int mounts_of_super(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct super_block *sb = (void *)q->addr;
	struct mount *m = (void *)q->from;

	if (field_exists(((struct mount___chain *)0)->mnt_next_for_sb)) {
		EACH_OF_SUPER(next_in_chain)
	} else {
		EACH_OF_SUPER(next_in_list)
	}
	say(ctx, FOUND_MORE, 0, (u64)m);
	return 0;
}

INLINE struct mount *mount_at(struct rb_node *node)
{
	return (void *)container(node, struct mount___node, mnt_node);
}

// search is where a search through a tree is. It lies in a map and not on the stack: what the
// verifier reads from there can be anything, so it need not follow each way through the tree.
struct search {
	u64 node, best;
};

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	TYPE(key, u32);
	TYPE(value, struct search);
	UINT(max_entries, 1);
} searches SEC(".maps");

// after is the mount of the namespace with the lowest unique number above unique.
INLINE struct mount *after(struct mnt_namespace *ns, u64 unique)
{
	u32 zero = 0;
	struct search *s = bpf_map_lookup_elem(&searches, &zero);
	if (!s)
		return NULL;
	s->node = (u64)get((struct mnt_namespace___tree *)ns, mounts.rb_node);
	s->best = 0;
	for (int i = 0; i < DEPTH; i++) {
		struct rb_node *node = (void *)s->node;
		struct mount *m = mount_at(node);
		if (!node)
			break;
		if (get((struct mount___unique *)m, mnt_id_unique) > unique) {
			s->best = (u64)m;
			s->node = (u64)get(node, rb_left);
		} else {
			s->node = (u64)get(node, rb_right);
		}
	}
	return (struct mount *)s->best;
}

// next_in_tree is the mount of the namespace after the one with the unique number *from.
INLINE struct mount *next_in_tree(struct mnt_namespace *ns, u64 *from)
{
	struct mount *m = after(ns, *from);
	*from = get((struct mount___unique *)m, mnt_id_unique);
	return m;
}

// next_in_namespace is the same for kernels without numbers, *from is an address.
INLINE struct mount *next_in_namespace(struct mnt_namespace *ns, u64 *from)
{
	struct list_head *end = &((struct mnt_namespace___list *)ns)->list, *next;
	if (*from)
		next = get((struct mount___list *)*from, mnt_list.next);
	else
		next = peek(&end->next);
	*from = (u64)container(next, struct mount___list, mnt_list);
	return next == end ? NULL : (void *)*from;
}

#define EACH_OF_NAMESPACE(next)                                                                    \
	for (int i = 0; i < MOUNTS; i++) {                                                         \
		struct mount *m = next(ns, &from);                                                 \
		if (!m)                                                                            \
			return 0;                                                                  \
		u32 flags = get(m, mnt.mnt_flags);                                                 \
		if (get(m, mnt_ns) != ns) {                                                        \
			say(ctx, FOUND_LOST, (u64)m, 0);                                           \
			return 0;                                                                  \
		}                                                                                  \
		if (!(flags & MNT_CURSOR) && (!q->want || q->want == get(m, mnt_id)))              \
			say_mount(ctx, m);                                                         \
	}

// mounts_of_namespace tells of the mounts of the namespace addr, of our own if that is 0.
SEC("iter/bpf_map_elem")
int mounts_of_namespace(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct mnt_namespace *ns = (void *)q->addr;
	if (!ns) {
		struct task_struct *self = (void *)bpf_get_current_task();
		struct nsproxy *proxy = get(self, nsproxy);
		ns = get(proxy, mnt_ns);
	}
	u64 from = q->from;

	if (field_exists(((struct mount___node *)0)->mnt_node)) {
		EACH_OF_NAMESPACE(next_in_tree)
	} else {
		EACH_OF_NAMESPACE(next_in_namespace)
	}
	say(ctx, FOUND_MORE, 0, from);
	return 0;
}

// children counts the mounts that hang below the mount addr.
SEC("iter/bpf_map_elem")
int children(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct mount *m = (void *)q->addr;
	struct list_head *end = &m->mnt_mounts, *at = q->from ? (void *)q->from : end;
	u64 n = 0;

	if ((u64)get(m, mnt.mnt_sb) != q->super) {
		say(ctx, FOUND_LOST, (u64)m, 0);
		return 0;
	}
	for (int i = 0; i < CHILDREN; i++) {
		at = peek(&at->next);
		if (at == end) {
			say(ctx, FOUND_NUMBER, (u64)m, n);
			return 0;
		}
		if (get(container(at, struct mount, mnt_child), mnt_parent) != m) {
			say(ctx, FOUND_LOST, (u64)m, 0);
			return 0;
		}
		n++;
	}
	say(ctx, FOUND_NUMBER, (u64)m, n);
	say(ctx, FOUND_MORE, 0, (u64)at);
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
		say(ctx, FOUND_NUMBER, q->addr, percpu_base(q->addr));
	return 0;
}

// counts adds up the counters that the mount addr has on each CPU: of references, and of writers.
// A mount's counter on one CPU may well be below 0: what one takes another may give back.
SEC("iter/bpf_map_elem")
int counts(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct mount *m = (void *)q->addr;
	struct found f = { .head = header_of(ctx, FOUND_NUMBER, sizeof(f)), .addr = q->addr };
	u64 shared = (u64)get(m, mnt_pcp);
	u32 cpu = q->from;
	s64 references = 0, writers = 0;

	if ((u64)get(m, mnt.mnt_sb) != q->super || shared != q->also) {
		say(ctx, FOUND_LOST, (u64)m, 0);
		return 0;
	}
	for (int i = 0; i < CPUS; i++, cpu++) {
		u64 *base = bpf_map_lookup_elem(&bases, &cpu);
		struct mnt_pcp own;
		if (!base || cpu >= q->want)
			break;
		if (!*base)
			continue;
		if (bpf_probe_read_kernel(&own, sizeof(own), (void *)(shared + *base))) {
			say(ctx, FOUND_LOST, (u64)m, 0);
			return 0;
		}
		references += own.mnt_count;
		writers += own.mnt_writers;
	}
	f.mnt = references;
	f.extra = writers;
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	if (cpu < q->want)
		say(ctx, FOUND_MORE, 0, cpu);
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

INLINE void say_super(struct bpf_iter__bpf_map_elem *ctx, struct super_block *sb)
{
	struct super_found f = { .head = header_of(ctx, FOUND_SUPER, sizeof(f)) };
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
// the list's head, which is none, has not.
SEC("iter/bpf_map_elem")
int supers(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct task_struct *self = (void *)bpf_get_current_task();
	struct fs_struct *fs = get(self, fs);
	struct vfsmount *at = get(fs, root.mnt);
	struct super_block *first = get(at, mnt_sb), *sb = q->from ? (void *)q->from : first;

	for (int i = 0; i < SUPERS; i++) {
		struct dentry *root = get(sb, s_root);
		struct list_head *next;
		if (root && get(root, d_sb) == sb)
			say_super(ctx, sb);
		next = get(sb, s_list.next);
		if (!next) {
			say(ctx, FOUND_LOST, (u64)sb, 0);
			return 0;
		}
		sb = container(next, struct super_block, s_list);
		if (sb == first)
			return 0;
	}
	say(ctx, FOUND_MORE, 0, (u64)sb);
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

// path_of tells the names from the dentry addr up to the root of the mount also, of the file system
// if that is 0, the last name first.
SEC("iter/bpf_map_elem")
int path_of(struct bpf_iter__bpf_map_elem *ctx)
{
	struct question *q = question_of(ctx);
	if (!q)
		return 0;
	struct dentry *d = (void *)q->addr;
	struct mount *m = (void *)q->also;
	struct name_found n = {};

	if (q->super && (u64)get(d, d_sb) != q->super) {
		say(ctx, FOUND_LOST, (u64)d, 0);
		return 0;
	}
	if (q->flags & PATH_FIRST) {
		struct found f = { .head = header_of(ctx, FOUND_PATH, sizeof(f)), .addr = (u64)d };
		struct inode *inode = get(d, d_inode);
		f.extra = get(inode, i_ino);
		if (!get(d, d_hash.pprev) && get(d, d_parent) != d)
			f.flags |= INODE_DELETED;
		bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	}
	for (int i = 0; i < NAMES; i++) {
		struct dentry *up = get(d, d_parent);
		struct dentry *root = m ? get(m, mnt.mnt_root) : NULL;
		if (d == root || up == d) {
			struct mount *parent = get(m, mnt_parent);
			if (m && d != root) {
				struct found f = { .head = header_of(ctx, FOUND_PATH, sizeof(f)) };
				f.flags = INODE_OUTSIDE;
				bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
				return 0;
			}
			if (!(q->flags & PATH_CROSS) || parent == m || !m)
				return 0;
			d = get(m, mnt_mountpoint);
			m = parent;
			continue;
		}
		u32 len = get(d, d_name.len);
		if (!up || !len || len > 255) {
			say(ctx, FOUND_LOST, (u64)d, 0);
			return 0;
		}
		if (bpf_probe_read_kernel_str(n.name, sizeof(n.name), get(d, d_name.name)) <= 0) {
			say(ctx, FOUND_LOST, (u64)d, 0);
			return 0;
		}
		u32 size = (sizeof(n.head) + len + 1 + 7) & ~7;
		n.head = header_of(ctx, FOUND_NAME, size);
		if (size <= sizeof(n))
			bpf_seq_write(ctx->meta->seq, &n, size);
		d = up;
	}
	struct found f = { .head = header_of(ctx, FOUND_MORE, sizeof(f)), .addr = (u64)d, .mnt = (u64)m };
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

SHOWN(struct mount_found, shown_mount_found);
SHOWN(struct super_found, shown_super_found);
SHOWN(enum mount_flag, shown_mount_flag);
SHOWN(enum path_flag, shown_path_flag);
SHOWN(enum inode_flag, shown_inode_flag);
