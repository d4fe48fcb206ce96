// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// Kind is a way in which something is held.
type Kind string

// The kinds.
const (
	OpenFD       Kind = "open_fd"
	OPath        Kind = "o_path" // a descriptor that only stands for the name
	Cwd          Kind = "cwd"
	Root         Kind = "root" // of a process that changed it
	Exe          Kind = "exe"
	Mapping      Kind = "mapping"
	UnixSocket   Kind = "unix_socket"  // bound to a name there, which may be gone
	InFlight     Kind = "fd_in_flight" // sent over a socket and not received
	IOUring      Kind = "io_uring"     // registered with an io_uring, or of a request to it
	AIO          Kind = "aio"          // of a request of io_submit(2)
	SystemCall   Kind = "system_call"  // of a call that waits in the kernel
	ImageMount   Kind = "image_mount"  // a file system that is mounted of a file there
	FuseBacking  Kind = "fuse_backing" // a file there that FUSE reads past its server
	NestedMount  Kind = "nested_mount"
	Loop         Kind = "loop" // a loop device made of a file there
	Swap         Kind = "swap"
	Uprobe       Kind = "uprobe"         // a probe defined in tracefs
	BinfmtMisc   Kind = "binfmt_misc"    // an interpreter that the kernel keeps open
	Fanotify     Kind = "fanotify"       // an event that was not read
	Peer         Kind = "peer"           // a copy of the mount that is in use by something unknown
	Bind         Kind = "bind"           // the same file system mounted elsewhere
	Namespace    Kind = "namespace"      // a copy of the mount in another namespace
	Overlay      Kind = "overlay"        // a layer of an overlay
	Detached     Kind = "detached_mount" // a mount that is in no namespace
	Mounted      Kind = "mounted"        // for a device or image: where it is mounted
	DeviceHolder Kind = "device_holder"  // a device made of it: device mapper, bcache
	MD           Kind = "md"             // an array that it belongs to
	Served       Kind = "nbd"            // a process that serves a network block device
	ImageLock    Kind = "image_lock"     // QEMU's lock on an image, whose holder is not seen
	MountContext Kind = "mount_context"  // fspick(2) or fsopen(2): it is about to be changed or mounted
	Frozen       Kind = "frozen"         // by fsfreeze(8), or for a snapshot
	Lookup       Kind = "lookup"         // a system call that walks to a name there; only tracing sees it
	Ending       Kind = "exit"           // a process that ends, with all that it had; only tracing sees it
	Internal     Kind = "kernel"         // something in the kernel that has no kind here
)

// kindOrder is how holders are listed and, of several ways in which one process holds one file, which
// is told.
func kindOrder(k Kind) int {
	return slices.Index([]Kind{NestedMount, Mounted, OpenFD, OPath, Cwd, Root, Exe, Mapping, UnixSocket,
		InFlight, IOUring, AIO, FuseBacking, SystemCall, Loop, ImageMount, Swap, DeviceHolder, MD, Served, ImageLock, Uprobe, BinfmtMisc, Fanotify,
		Lookup, Ending, MountContext, Frozen, Internal, Peer, Overlay, Bind, Namespace, Detached}, k)
}

// release says how a holder is released.
func (h *Holder) release() string {
	switch h.Kind {
	case NestedMount, Mounted, Bind:
		return h.releaseMount()
	case Loop:
		return "unmount what is on /dev/" + h.Device + ", then: losetup -d /dev/" + h.Device
	case Swap:
		return "swapoff " + finding.Word(h.Path)
	case Uprobe:
		return fmt.Sprintf("echo '-:%s' >> uprobe_events (in tracefs)", h.Device)
	case BinfmtMisc:
		return "echo -1 > /proc/sys/fs/binfmt_misc/" + h.Device
	case DeviceHolder:
		return "take /dev/" + h.Device + " apart: dmsetup remove, vgchange -an or cryptsetup close"
	case MD:
		return "mdadm --stop /dev/" + h.Device
	case ImageMount:
		return "unmount what is made of it: " + cmp.Or(h.Device, "a file system of a file")
	case Overlay:
		return "unmount the overlay that has it as a layer"
	case Frozen:
		return "fsfreeze --unfreeze " + finding.Word(h.Path)
	case ImageLock:
		return "stop the machine that runs on it, perhaps on another host"
	case Namespace:
		return h.releaseNamespace()
	}
	return h.releaseProcess()
}

// releaseMount says how a mount goes. The root is not unmounted by its name: umount(2) of it makes the
// file system read-only, for all who have it mounted, and succeeds.
func (h *Holder) releaseMount() string {
	switch {
	case h.Path == "/" && h.Process.PID == 0:
		return "it is the root of this system: it goes when the system is shut down"
	case h.Path == "/":
		return stop(h.Process) + ", and all others whose root it is"
	case h.Process.PID == 0:
		return "umount " + finding.Word(h.Path)
	}
	return fmt.Sprintf("nsenter -t %d -m umount %s", h.Process.PID, finding.Word(h.Path))
}

func (h *Holder) releaseNamespace() string {
	switch {
	case h.Process.PID == 0:
		return "find who keeps the namespace: a descriptor or a bind mount of it"
	case h.FD >= 0:
		return stop(h.Process) + ": its descriptor keeps a namespace without processes"
	case h.Path == "/":
		return h.releaseMount()
	}
	return fmt.Sprintf("nsenter -t %d -m umount %s, or %s", h.Process.PID, finding.Word(cmp.Or(h.Path, "PATH")),
		stop(h.Process))
}

// releaseProcess says how what a process holds is released.
func (h *Holder) releaseProcess() string {
	if h.Process.PID == 0 {
		return "it is the kernel's own: see what the kind stands for"
	}
	switch h.Kind {
	case Cwd:
		return "change its directory (cd /), or " + stop(h.Process)
	case Fanotify:
		return "let it read its events, or " + stop(h.Process)
	case SystemCall:
		return "let its system call end, or " + stop(h.Process)
	case InFlight:
		return "let it receive what was sent to it, or " + stop(h.Process)
	}
	return stop(h.Process)
}

// stop says how a process is ended by those who started it.
func stop(p Process) string {
	switch {
	case p.Machine != "":
		return "stop the machine " + p.Machine
	case p.Container != "":
		return "stop the container " + shortContainer(p.Container)
	case p.UserUnit != "":
		return fmt.Sprintf("systemctl --user --machine=%d@ stop %s", max(p.UID, 0), p.UserUnit)
	case p.PID == 1:
		return "it is the first process, which starts and stops services: see those"
	case p.Unit != "" && strings.HasSuffix(p.Unit, ".service"):
		return "systemctl stop " + p.Unit
	}
	return fmt.Sprintf("end process %d", p.PID)
}

// shortContainer cuts the id of a container as its runtime does on its command line.
func shortContainer(name string) string {
	const short, long = 12, 64
	if i := strings.LastIndexAny(name, ":/"); len(name)-i-1 == long {
		return name[:i+1+short]
	}
	return name
}
