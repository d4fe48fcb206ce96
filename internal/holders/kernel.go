// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import "context"

// Kernel reads the kernel's own lists of mounts and of who refers to them. It walks no path.
type Kernel interface {
	// Mount gives a mount of this process's namespace by its number.
	Mount(ctx context.Context, id int) (KernelMount, error)
	// Supers gives the file systems on a device, also those that are mounted nowhere any more.
	Supers(ctx context.Context, dev uint64) ([]uint64, error)
	// Mounts gives all mounts of a file system.
	Mounts(ctx context.Context, super uint64) ([]KernelMount, error)
	// References gives who refers to any of them.
	References(ctx context.Context, super uint64) ([]Reference, error)
}

// KernelMount is a mount as the kernel has it. Addresses are names: each stands for one object.
type KernelMount struct {
	Addr, Super uint64
	ID          int
	Count       int64
	Dev         uint64
	// Namespace is the inode of its namespace, 0 where it is in none.
	Namespace uint64
	// Parent is the mount that it is mounted on, itself or 0 where there is none.
	Parent uint64
	// Root is the directory of the file system that it shows.
	Root string
	// Children are the mounts on it.
	Children int
	// Internal: it is a copy that a file system made for itself, as overlay does of its layers.
	Internal bool
	// Peer is its group of peers, Master that of the mounts it gets others' from; 0 for none.
	Peer, Master int
}

// Reference is one reference to a mount.
type Reference struct {
	Kind          Kind
	PID, TID, FD  int // FD is -1 where there is none
	Comm          string
	Holder        uint64 // the object that holds the mount: it counts once, however often it is found
	Mount         uint64
	Inode, Device uint64 // of what is open; Device is set for the nodes of devices
	Path          string
}
