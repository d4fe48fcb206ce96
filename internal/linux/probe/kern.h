// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

// What the programs of this directory need of the kernel, and no more: the fields that they read,
// by name. The loader finds where each is in the kernel that runs (CO-RE), so the order, the gaps
// and the size of a struct here mean nothing. A struct that changed between kernels has a flavour,
// whose name ends in three underscores and what sets it apart.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

#define SEC(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline

// Maps, as libbpf writes them down: types carry the numbers.
#define UINT(name, val) int(*name)[val]
#define TYPE(name, val) typeof(val) *name

enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_HASH = 5,
	MAP_PERCPU_ARRAY = 6,
	MAP_LRU_HASH = 9,
	MAP_RINGBUF = 27,
};

// Helpers by their number: include/uapi/linux/bpf.h, enum bpf_func_id.
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value,
				   u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static u32 (*bpf_get_smp_processor_id)(void) = (void *)8;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*bpf_get_current_uid_gid)(void) = (void *)15;
static long (*bpf_get_current_comm)(void *to, u32 size) = (void *)16;
static u64 (*bpf_get_current_task)(void) = (void *)35;
static long (*bpf_get_stack)(void *ctx, void *to, u32 size, u64 flags) = (void *)67;
static long (*bpf_probe_read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*bpf_probe_read_user_str)(void *to, u32 size, const void *from) = (void *)114;
static long (*bpf_probe_read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;
static long (*bpf_seq_write)(void *seq, const void *data, u32 len) = (void *)127;
static long (*bpf_ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static void *(*bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
static void (*bpf_ringbuf_discard)(void *data, u64 flags) = (void *)133;
static u64 (*bpf_ringbuf_query)(void *ring, u64 what) = (void *)134;
static void *(*bpf_map_lookup_percpu_elem)(void *map, const void *key, u32 cpu) = (void *)195;

// Questions that the loader answers for the kernel that runs.
#define field_exists(field) __builtin_preserve_field_info(field, 2)
#define field_offset(type, field) __builtin_preserve_field_info(((type *)0)->field, 0)
#define type_exists(type) __builtin_preserve_type_info(*(type *)0, 0)
#define type_size(type) __builtin_preserve_type_info(*(type *)0, 1)
#define enum_exists(type, value) __builtin_preserve_enum_value(*(type *)value, 0)

// container is the struct whose field is at ptr.
#define container(ptr, type, field) ((type *)((char *)(ptr) - field_offset(type, field)))

// get reads a field through a pointer that the verifier knows nothing of. Where that cannot be read
// the helper gives zeros; to look at its verdict would double what the verifier has to follow.
#define get(ptr, field)                                                                            \
	({                                                                                         \
		typeof((ptr)->field) got_;                                                         \
		bpf_probe_read_kernel(&got_, sizeof(got_), &(ptr)->field);                         \
		got_;                                                                              \
	})

// peek reads what is at a pointer.
#define peek(ptr)                                                                                  \
	({                                                                                         \
		typeof(*(ptr)) got_;                                                               \
		bpf_probe_read_kernel(&got_, sizeof(got_), ptr);                                   \
		got_;                                                                              \
	})

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next, *prev;
};

struct hlist_node {
	struct hlist_node *next, **pprev;
};

struct rb_node {
	unsigned long __rb_parent_color;
	struct rb_node *rb_right, *rb_left;
};

struct rb_root {
	struct rb_node *rb_node;
};

struct qstr {
	u32 len;
	const unsigned char *name;
};

struct hlist_bl_node {
	struct hlist_bl_node *next, **pprev;
};

struct dentry {
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
};

struct inode {
	u16 i_mode;
	u32 i_nlink;
	struct super_block *i_sb;
	unsigned long i_ino;
	u32 i_rdev;
	void *i_private;
};

struct file_system_type {
	const char *name;
};

struct block_device {
	u32 bd_dev;
};

typedef struct {
	int counter;
} atomic_t;

struct sb_writers {
	int frozen;
};

struct super_block {
	struct list_head s_list;
	u32 s_dev;
	unsigned long s_flags;
	unsigned long s_magic;
	struct file_system_type *s_type;
	struct dentry *s_root;
	atomic_t s_active;
	struct block_device *s_bdev;
	struct sb_writers s_writers;
	char s_id[32];
};

// Until 6.17 the mounts of a super block are on a list,
struct super_block___list {
	struct list_head s_mounts;
};

// and since then each points to the next.
struct super_block___chain {
	struct mount *s_mounts;
};

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
	int mnt_flags;
};

struct mnt_pcp {
	int mnt_count;
	int mnt_writers;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct mnt_pcp *mnt_pcp; // of each CPU
	struct list_head mnt_mounts; // children
	struct list_head mnt_child;
	const char *mnt_devname;
	struct mount *mnt_master;
	struct mnt_namespace *mnt_ns;
	int mnt_id;
	int mnt_group_id;
};

struct mount___list {
	struct list_head mnt_instance;
	struct list_head mnt_list;
};

struct mount___chain {
	struct mount *mnt_next_for_sb;
};

struct mount___unique { // 6.8
	u64 mnt_id_unique;
};

struct mount___node { // 6.8
	struct rb_node mnt_node;
};

// 6.17, which also no longer counts a mount as a reference to its parent ("don't have mounts pin
// their parents").
struct mount___over {
	struct mount *overmount;
};

struct ns_common {
	u32 inum;
};

struct mnt_namespace {
	struct ns_common ns;
	struct mount *root;
};

struct mnt_namespace___list {
	struct list_head list;
};

struct mnt_namespace___tree { // 6.8
	struct rb_root mounts;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	u32 f_mode;
	u32 f_flags;
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
};

struct fdtable {
	u32 max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct fs_struct {
	struct path root, pwd;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
};

struct upid {
	int nr;
};

struct pid {
	u32 level;
	struct upid numbers[1]; // as many as level says, and one more
};

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start, arg_end;
};

struct task_struct {
	int pid, tgid;
	u32 flags;
	struct task_struct *group_leader, *real_parent;
	struct mm_struct *mm;
	struct fs_struct *fs;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct pid *thread_pid;
	char comm[16];
};

#pragma clang attribute pop

// What iterators are called with. The verifier knows these by their offsets, so the loader is not to
// move them.
struct bpf_map;
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
};

// mount_of is the mount that a path names by its part that the whole kernel sees.
INLINE struct mount *mount_of(struct vfsmount *v)
{
	return v ? container(v, struct mount, mnt) : NULL;
}
