// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package holders tells who keeps a mount, a block device or a disk image busy: processes, in every
// mount namespace, and what the kernel holds for nobody. Whether something is still missing from its
// list it asks the kernel, which counts the references to a mount: what is found is taken off that
// count, and what is left is said.
//
// Nothing here looks into the file system that is asked about, which may hang: names are compared as
// texts, links are read and not followed.
package holders

import (
	"context"
	"errors"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/linux/stack"
)

// Report says who keeps a mount, a device or an image busy.
type Report struct {
	// Status lists every exit status that applies, the one to exit with first.
	Status  []int   `json:"status"`
	Verdict Verdict `json:"verdict"`
	Target  Target  `json:"target"`
	// Audit is what the kernel counts on the mount that is asked about.
	Audit Audit `json:"audit"`
	// Mounts are all mounts of the file system, in every namespace and in none.
	Mounts []Mount `json:"mounts"`
	// Holders are who holds it: what keeps this umount from succeeding first.
	Holders []Holder `json:"holders"`
	// NotLooked is how many processes are protected and were not looked at.
	NotLooked int `json:"not_looked"`
	// Notes say what else is good to know.
	Notes []string `json:"notes"`
	// Blind is what could not be looked at, and why.
	Blind []finding.Blind `json:"blind"`
}

// Verdict is the answer in one word.
type Verdict string

// The verdicts.
const (
	// Free: nobody holds it. For a mount the kernel's counter agrees.
	Free Verdict = "free"
	// Busy: somebody does.
	Busy Verdict = "busy"
	// BusyPeer: only a copy of the mount in another place is held, to which the umount goes as well.
	BusyPeer Verdict = "busy_peer"
	// Nested: only mounts on it keep it.
	Nested Verdict = "nested"
	// Pinned: the mount is free, but its file system lives on after it is unmounted.
	Pinned Verdict = "superblock_pinned"
	// Unknown: nobody was found, and somebody may be there.
	Unknown Verdict = "unknown"
)

// Audit is the kernel's count of references to a mount, held against what was found.
type Audit struct {
	// Read: the counter could be read; else Reason says why not.
	Read   bool   `json:"read"`
	Reason string `json:"reason"`
	// Count is the counter, Baseline what it is of a mount that nobody uses. Own are the references of
	// this very process, which end with it. Explained are those of the holders that were found.
	Count       int64 `json:"count"`
	Baseline    int64 `json:"baseline"`
	Own         int64 `json:"own"`
	Explained   int64 `json:"explained"`
	Unexplained int64 `json:"unexplained"`
	// Writers is the kernel's own count of those who may write to the mount, by open files or for the
	// moment of a call.
	Writers int64 `json:"writers"`
	// Changed: the counter moved at every look, so somebody takes and drops references.
	Changed bool `json:"changed"`
	// Hints say what the unexplained ones may be.
	Hints []string `json:"hints"`
}

// Mount is a mount of the file system that is asked about.
type Mount struct {
	ID        int    `json:"id"`
	Namespace uint64 `json:"namespace"` // inode of the mount namespace, 0 where it is in none
	// Point is where it is mounted, as seen in its namespace; "" if that is not known.
	Point string `json:"point"`
	// Root is the directory of the file system that it shows.
	Root string `json:"root"`
	// Asked: it is the one that is asked about. Follows: it is a copy that is unmounted along with it.
	Asked   bool `json:"asked"`
	Follows bool `json:"follows"`
	// Count and Unexplained are as in Audit, -1 where the counter could not be read.
	Count       int64 `json:"count"`
	Unexplained int64 `json:"unexplained"`

	kernel probe.Mount
}

// Blocks is what a holder keeps from happening.
type Blocks string

// What may be kept from happening.
const (
	BlocksUmount     Blocks = "umount"     // the umount that is asked about
	BlocksSuperblock Blocks = "superblock" // the file system from ending after the umount
	BlocksDevice     Blocks = "device"     // the device or image from being free
)

// Certainty says how a holder was found.
type Certainty string

// The certainties. Only tracing knows the last two.
const (
	// Static: it was there when it was looked for, and what is there that way stays until it is
	// released.
	Static Certainty = "static"
	// HeldAtCheck: it held when the kernel decided that the mount is busy.
	HeldAtCheck Certainty = "held_at_check"
	// Overlap: it was in a system call on the mount meanwhile.
	Overlap Certainty = "overlap"
)

// Holder is one reference, or several of one process to the same open file.
type Holder struct {
	Kind      Kind      `json:"kind"`
	Certainty Certainty `json:"certainty"`
	Process   Process   `json:"process"`
	// MountID is the mount that is held, in MountNamespace; SameMount: the one that is asked about.
	MountID        int    `json:"mount_id"`
	MountNamespace uint64 `json:"mount_namespace"`
	SameMount      bool   `json:"same_mount"`
	Blocks         Blocks `json:"blocks"`
	// Path is the file or directory as its process sees it, "" if not known. Device is the device that
	// stands between: the loop device made of a file, the one that is made of a device.
	Path   string `json:"path"`
	Device string `json:"device"`
	// Deleted: no name leads to it any more.
	Deleted bool `json:"deleted"`
	// FD is the descriptor, -1 for none; AlsoFDs are others of the same open file in this process.
	FD      int   `json:"fd"`
	AlsoFDs []int `json:"also_fds"`
	// References are how many of the kernel's count on its mount it explains; 0 for a process that
	// shares its open file with one that is listed before.
	References int64 `json:"references"`
	// Writing tells whether the file system may be written to by it: a file is open or mapped for that.
	// It is nil where that is not known.
	Writing *bool `json:"writing,omitempty"`
	// Release says in one line how it is released.
	Release string `json:"release"`

	// What only tracing sees: the system call with its arguments, how long it held, in nanoseconds, and
	// the two stacks, innermost first.
	Syscall     string   `json:"syscall,omitempty"`
	Args        []string `json:"args,omitempty"`
	HeldNS      int64    `json:"held_ns,omitempty"`
	KernelStack []Frame  `json:"kernel_stack,omitempty"`
	UserStack   []Frame  `json:"user_stack,omitempty"`
}

// Frame is one function of a stack.
type Frame = stack.Frame

// Process is who holds. PID 0 is the kernel.
type Process struct {
	PID  int    `json:"pid"`
	TID  int    `json:"tid"` // the thread; PID unless only that thread holds
	PPID int    `json:"ppid"`
	Comm string `json:"comm"`
	// Parent is the short name of the one that started it.
	Parent  string   `json:"parent"`
	Cmdline []string `json:"cmdline"`
	Exe     string   `json:"exe"`
	UID     int      `json:"uid"` // -1 if not known
	// Unit is the unit of systemd, UserUnit that of a user's own manager, Container that of a
	// container runtime or machine manager, as "docker:ID". Machine is the name of the virtual machine
	// that it runs.
	Unit      string `json:"unit"`
	UserUnit  string `json:"user_unit"`
	Container string `json:"container"`
	Machine   string `json:"machine"`
	Cgroup    string `json:"cgroup"`
	// MountNamespace is the inode of its mount namespace, 0 if not known.
	MountNamespace uint64 `json:"mount_namespace"`
}

// Host is where to look.
type Host struct {
	Linux *linux.Host
	// Kernel reads the kernel's own lists, nil where that is not possible; then NoKernel says why.
	Kernel   Kernel
	NoKernel error
	// Self is this process, whose own references are no answer.
	Self int
}

// Options steer a scan.
type Options struct {
	// AllSuperblock: what only pins the file system counts as holding it.
	AllSuperblock bool
	// Mounted are mounts that this program serves by other processes, by their number: the directory
	// of each.
	Mounted map[int]string
}

// Scan looks who holds the target. The error is that of ctx, or says why nothing is known.
func Scan(ctx context.Context, h Host, t Target, o Options) (*Report, error) {
	s, err := newScan(ctx, h, t, o)
	if err != nil {
		return nil, err
	}
	switch t.Kind {
	case TargetMount:
		err = s.mount(ctx)
	case TargetDevice:
		err = s.device(ctx)
	case TargetImage:
		err = s.image(ctx)
	case TargetSystem:
		err = s.system(ctx, t.dev)
	default:
		err = errors.New("look for holders: the target is of no kind that has any")
	}
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.report(ctx), nil
}
