// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/ask"
)

// Mount is a file system at a directory: mounted, or only said to be in /etc/fstab.
type Mount struct {
	linux.Mount
	// Namespace is the inode of the mount namespace, Own that it is that of the first process.
	Namespace uint64
	Own       bool
	// FS is the index in FSs, -1 if none.
	FS int
	// Probe is what it answered, nil if it was not asked; NotAsked says why not.
	Probe    *Answer
	NotAsked string
	// Hidden: another mount covers it, and nothing of it can be reached by its name.
	Hidden bool
	// NFS is set for NFS.
	NFS  *NFS
	From Source
}

// Answer is what a mount answered to a child that looked at it once.
type Answer = ask.Answer

// NFS is what mountstats and the options tell of an NFS mount.
type NFS struct {
	Server              string // the address or name
	Addr                string // the address that the kernel uses, "" if not known
	Export              string
	Vers                string // "4.2"
	Soft, NoLock, Async bool
	// Timeo is in tenths of a second.
	Timeo, Retrans int
	// Since the mount: operations, those sent again, major timeouts; Backlog and Pending are requests
	// that wait now. -1 where the kernel does not tell.
	Ops, Retransmits, Timeouts int64
	// Idle is how long nothing was heard from the server, as far as the transport tells; -1 else.
	Idle time.Duration
	// Waiting is how many requests were sent and not answered, at least.
	Waiting int64
	// Stalled: none of them was answered for so long that the mount was not asked.
	Stalled bool

	received int64 // answers since the mount
}

// FS is a file system, mounted or on a disk that nobody runs.
type FS struct {
	Type  string // "ext4", "xfs", "btrfs", "gfs2", "nfs4", "fuse.sshfs" ...
	UUID  string
	Label string
	// Device is the name of the device without /dev, "" if there is none; Source what mountinfo names.
	Device, Source string
	// Names are others of the device: "mapper/vg-root" of dm-0, and those that the kernel may have for it, of a machine
	// that does not run.
	Names []string
	// Mounts are the indexes in Mounts.
	Mounts []int
	// Super is what the superblock, or the kernel's view of it in /sys/fs, tells; nil if not known.
	Super *Super
	// Log is the state of its journal on a disk that was read, nil if it was not.
	Log *FSLog
	// Hurt are inodes that the log speaks of, with their names where those were looked for.
	Hurt []HurtFile
	// HurtUnseen: not all processes could be looked at for who has those open.
	HurtUnseen bool
	From       Source
}

// HurtFile is a file by its inode.
type HurtFile struct {
	Inode uint64
	// Path is in the file system, as seen from where it is mounted first; "" if it was not found.
	Path string
	// Open is the name by which a process has it open, which may know it by another, and By that process; "" where
	// nobody has. It is of a machine that runs.
	Open, By string
}

// Super is the record that a file system keeps of itself.
type Super struct {
	// Errors counts errors since the last check, FirstError and LastError are their times.
	Errors                int64
	FirstError, LastError time.Time
	FirstFunc, LastFunc   string
	FirstInode, LastInode uint64
	// State is "clean", "not clean", "errors" of ext4 on a disk.
	State string
	// OnError is what ext4 does at an error: "continue", "remount-ro", "panic"; "" for others.
	OnError string
	// Checked is when it was last checked, Made when it was made.
	Checked, Made time.Time
	// Written is when it was written last, on a disk.
	Written time.Time
	// Aborted is the error for which the kernel gave the journal up, on a disk; 0 if it did not.
	Aborted int64
	// Reserved is in blocks.
	Reserved uint64
	// Withdrawn is gfs2's, Shutdown xfs's where the kernel tells.
	Withdrawn, Shutdown bool
	// Frozen: somebody froze a gfs2, on whichever node. Blocked: its locks wait for a recovery.
	Frozen, Blocked bool
	// DeviceErrors are btrfs's counters by device: "write_errs", "read_errs", "flush_errs",
	// "corruption_errs", "generation_errs".
	DeviceErrors map[string]map[string]int64
	// Retries are xfs's answers to errors of metadata: "metadata/EIO/max_retries" -> -1.
	Retries map[string]string
	From    Source
}

// FSLog is the state of a journal of a file system that is not mounted.
type FSLog struct {
	// Dirty: there is something to be replayed. Replayed transactions, in the view of the reader.
	Dirty    bool
	Replayed int64
	// Incomplete are the reasons why the view is not whole.
	Incomplete []string
	// Written is the last change of the file system as its superblock has it, zero if not known.
	Written time.Time
	From    Source
}

// Device is a block device.
type Device struct {
	linux.Block
	// Driver is that of the device on its bus ("sd", "virtio_blk", "nvme"), HostDriver that of the
	// adapter ("virtio_scsi", "pvscsi", "mpt3sas", "ahci", "iscsi_tcp"), "" if not known.
	Driver, HostDriver          string
	Vendor, Model, Serial, WWID string
	SizeBytes                   int64
	ReadOnly                    bool
	Removable, Rotational       bool
	// State is that of SCSI ("running", "offline", "blocked", "transport-offline") or NVMe ("live").
	State string
	// Timeout, EHTimeout are of SCSI or NVMe, 0 if there are none. MaxRetries is -2 if not known.
	Timeout, EHTimeout time.Duration
	MaxRetries         int
	// Timeouts counts commands that timed out (iotmo_cnt), Errors those that failed (ioerr_cnt); -1 if
	// not known.
	Timeouts, Errors int64
	// InFlight is how many requests are under way.
	InFlight int64
	// UUID is that of device mapper, "" for others: "LVM-..." and "mpath-..." are the same on all hosts.
	UUID string
	// On are the names of the devices that it rests on; Backing is the file of a loop device.
	On      []string
	Backing string
	// FS is what it holds, as far as that is known without reading it.
	Array *Array
	Paths *Multipath
	From  Source
}

// Array is an md device.
type Array struct {
	Level, State   string // "raid1", "active"
	Wanted, Active int
	Failed         []string // members
	// Action is "idle", "resync", "recover", "check" ...
	Action string
}

// Multipath is a multipath device of device mapper.
type Multipath struct {
	// Queue: requests are kept for ever while there is no path, by the kernel's Table, or where that is "" by the
	// setting NoPathRetry.
	Queue          bool
	Table          string
	NoPathRetry    string
	Active, Failed int
}
