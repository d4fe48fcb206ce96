// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import "golang.org/x/sys/unix"

// Effect is what a holder does to the one who unmounts.
type Effect string

const (
	// Blocks: umount(2) says EBUSY.
	Blocks Effect = "blocks"
	// Pins: umount(2) succeeds, and the file system stays in the kernel: its device stays busy.
	Pins Effect = "pins"
	// Hides: nothing is mounted there any more, EINVAL, and the device is busy all the same.
	Hides Effect = "hides"
	// Harmless: umount(2) succeeds and the device is free.
	Harmless Effect = "harmless"
	// Passes: umount(2) says EBUSY at one time and succeeds at another.
	Passes Effect = "passes"
)

// Errno is what umount(2) must say, nil for success.
func (e Effect) Errno() error {
	switch e {
	case Blocks:
		return unix.EBUSY
	case Hides:
		return unix.EINVAL
	}
	return nil
}

// Kind is a way of keeping a mount, its file system or its device busy.
type Kind struct {
	Name   string
	Effect Effect
	// Word is what a scan calls it, empty where none has a word for it: it has to say then that
	// something is unexplained. Nothing at all is to be said of what is Harmless.
	Word string

	make func(*child) error
	// namespaces are those that the child is in, flags of clone(2).
	namespaces uintptr
	// ownProgram: the child runs a copy of the program on the mount.
	ownProgram bool
	// outlives: what the child makes goes neither with it nor with the mount namespace, so the child
	// has to live to undo it.
	outlives bool
}

// Kinds lists all kinds in the order of the table.
func Kinds() []Kind {
	var all []Kind
	for _, part := range [][]Kind{files(), threads(), sockets(), requests(), kernel(), mounts(),
		superblocks(), harmless()} {
		all = append(all, part...)
	}
	return all
}

// files are the kinds that hang on a process' files, directories and memory.
func files() []Kind {
	return []Kind{
		{Name: "open-fd", Effect: Blocks, Word: "open_fd", make: openFD},
		{Name: "open-fd-deleted", Effect: Blocks, Word: "open_fd", make: openDeleted},
		// One open file in three places is one reference.
		{Name: "open-fd-thrice", Effect: Blocks, Word: "open_fd", make: openThrice},
		// One open file in two processes is one reference, too.
		{Name: "open-fd-shared", Effect: Blocks, Word: "open_fd", make: openShared},
		{Name: "open-fds", Effect: Blocks, Word: "open_fd", make: openMany},
		{Name: "open-fd-cwd-root", Effect: Blocks, Word: "open_fd", make: openAndThere},
		{Name: "open-fd-pid-namespace", Effect: Blocks, Word: "open_fd", make: openFD,
			namespaces: unix.CLONE_NEWPID},
		{Name: "o-path", Effect: Blocks, Word: "o_path", make: openPath},
		{Name: "cwd", Effect: Blocks, Word: "cwd", make: workThere},
		{Name: "cwd-deleted", Effect: Blocks, Word: "cwd", make: workInDeleted},
		{Name: "chroot", Effect: Blocks, Word: "root", make: rootThere},
		{Name: "exe", Effect: Blocks, Word: "exe", make: runThere, ownProgram: true},
		{Name: "mapping", Effect: Blocks, Word: "mapping", make: mapThere},
	}
}

// threads are the kinds that /proc/PID does not show, as it shows the first thread.
func threads() []Kind {
	return []Kind{
		{Name: "thread-cwd", Effect: Blocks, Word: "cwd", make: threadCwd},
		{Name: "thread-fd-table", Effect: Blocks, Word: "open_fd", make: threadFiles},
		{Name: "zombie-leader", Effect: Blocks, Word: "open_fd", make: zombieLeader},
		{Name: "blocked-open", Effect: Blocks, Word: "system_call", make: blockedOpen},
		{Name: "blocked-read", Effect: Blocks, Word: "system_call", make: blockedRead},
	}
}

// sockets are the kinds that hang on sockets.
func sockets() []Kind {
	return []Kind{
		{Name: "unix-socket", Effect: Blocks, Word: "unix_socket", make: bound},
		{Name: "unix-socket-deleted", Effect: Blocks, Word: "unix_socket", make: boundDeleted},
		{Name: "unix-socket-relative", Effect: Blocks, Word: "unix_socket", make: boundRelative},
		{Name: "unix-socket-accepted", Effect: Blocks, Word: "unix_socket", make: accepted},
		// The one that waits is no process' yet.
		{Name: "unix-socket-pending", Effect: Blocks, Word: "unix_socket", make: pending},
		{Name: "unix-socket-net-namespace", Effect: Blocks, Word: "unix_socket", make: bound,
			namespaces: unix.CLONE_NEWNET},
		{Name: "fd-in-flight", Effect: Blocks, Word: "fd_in_flight", make: inFlight},
		{Name: "fd-in-flight-open", Effect: Blocks, Word: "open_fd", make: inFlightOpen},
		{Name: "fd-in-flight-net-namespace", Effect: Blocks, Word: "fd_in_flight", make: inFlight,
			namespaces: unix.CLONE_NEWNET},
		{Name: "fd-in-flight-unaccepted", Effect: Blocks, Word: "fd_in_flight", make: inFlightUnaccepted},
		{Name: "fd-in-flight-orphan", Effect: Blocks, Word: "fd_in_flight", make: inFlightOrphan},
	}
}

// requests are the kinds that hang on what the kernel was asked to do.
func requests() []Kind {
	return []Kind{
		{Name: "io-uring-file", Effect: Blocks, Word: "io_uring", make: ringFile},
		{Name: "io-uring-request", Effect: Blocks, Word: "io_uring", make: ringRequest},
		{Name: "aio-request", Effect: Blocks, Word: "aio", make: aioRequest},
		{Name: "fanotify-event", Effect: Blocks, Word: "fanotify", make: unreadEvent},
		{Name: "fanotify-permission", Effect: Blocks, Word: "fanotify", make: unansweredEvent},
		{Name: "perf-uprobe", Effect: Blocks, Word: "uprobe", make: perfUprobe},
		{Name: "bpf-uprobe", Effect: Blocks, Word: "uprobe", make: bpfUprobe},
	}
}

// kernel are the kinds that belong to no process.
func kernel() []Kind {
	return []Kind{
		{Name: "loop", Effect: Blocks, Word: "loop", make: loopThere},
		{Name: "swap", Effect: Blocks, Word: "swap", make: swapThere, outlives: true},
		{Name: "uprobe", Effect: Blocks, Word: "uprobe", make: uprobeEvent, outlives: true},
		{Name: "binfmt-misc", Effect: Blocks, Word: "binfmt_misc", make: interpreter, outlives: true},
		{Name: "erofs-image", Effect: Blocks, Word: "image_mount", make: erofsImage},
		{Name: "fuse-backing", Effect: Blocks, Word: "fuse_backing", make: fuseBacking},
	}
}

// mounts are the kinds that are mounts themselves, or sit in mounts of other namespaces.
func mounts() []Kind {
	const own = unix.CLONE_NEWNS
	return []Kind{
		{Name: "nested", Effect: Blocks, Word: "nested_mount", make: nested},
		{Name: "peer", Effect: Blocks, Word: "open_fd", make: peer, namespaces: own},
		{Name: "peer-slave", Effect: Blocks, Word: "open_fd", make: slave, namespaces: own},
		{Name: "peer-user-namespace", Effect: Blocks, Word: "open_fd", make: peer,
			namespaces: own | unix.CLONE_NEWUSER},
		{Name: "peer-nested", Effect: Pins, Word: "namespace", make: peerNested, namespaces: own},
		{Name: "bind", Effect: Pins, Word: "bind", make: bind},
		{Name: "bind-file", Effect: Pins, Word: "bind", make: bindFile},
		{Name: "bind-fd", Effect: Pins, Word: "open_fd", make: bindFD},
		{Name: "bind-lazy-fd", Effect: Pins, Word: "open_fd", make: bindLazy},
		{Name: "namespace", Effect: Pins, Word: "namespace", make: idle, namespaces: own},
		{Name: "namespace-fd", Effect: Pins, Word: "namespace", make: idleWithFD, namespaces: own},
		{Name: "namespace-root", Effect: Pins, Word: "namespace", make: container, namespaces: own},
		{Name: "namespace-thread", Effect: Pins, Word: "namespace", make: idleThread},
		{Name: "namespace-empty", Effect: Pins, Word: "namespace", make: emptyNamespace},
		{Name: "namespace-bound", Effect: Pins, Word: "namespace", make: boundNamespace},
	}
}

// superblocks are the kinds that keep the file system, whatever becomes of its mount.
func superblocks() []Kind {
	return []Kind{
		{Name: "overlay-lower", Effect: Pins, Word: "overlay", make: overlayLower},
		{Name: "overlay-upper", Effect: Pins, Word: "overlay", make: overlayUpper},
		{Name: "overlay-lazy-fd", Effect: Pins, Word: "overlay", make: overlayLazy},
		{Name: "detached-mount", Effect: Pins, Word: "detached_mount", make: detached},
		{Name: "mount-context", Effect: Pins, Word: "mount_context", make: mountContext},
		{Name: "frozen", Effect: Pins, Word: "frozen", make: frozen, outlives: true},
		{Name: "lazy-fd", Effect: Hides, Word: "open_fd", make: lazy},
	}
}

// harmless are those that are taken for holders and are none.
func harmless() []Kind {
	return []Kind{
		{Name: "fanotify-mark", Effect: Harmless, make: fanotifyMark},
		{Name: "fanotify-fid-event", Effect: Harmless, make: unreadHandle},
		{Name: "inotify-watch", Effect: Harmless, make: inotifyWatch},
		{Name: "open-device", Effect: Harmless, make: openDevice},
		{Name: "abstract-socket", Effect: Harmless, make: abstract},
		{Name: "accounting", Effect: Harmless, make: accounting, namespaces: unix.CLONE_NEWPID},
		{Name: "landlock-rule", Effect: Harmless, make: landlockRule},
	}
}
