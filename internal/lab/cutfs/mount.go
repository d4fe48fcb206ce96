// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package cutfs is a directory whose power can be cut: the k-th call that changes something fails,
// everything after it fails, and what is then left is what a disk may hold. Nothing in it is of the
// programs that are tried on it, so it judges theirs and ours alike.
//
// The tree lives in memory and is served by FUSE in this process. It is mounted in a mount
// namespace of one thread: no other process sees it, programs run by that thread do, and the kernel
// takes it down with the thread, also when the process is killed.
package cutfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"runtime"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/apart"
)

// ErrUnavailable: this machine or this user cannot mount it, for errors.Is.
var ErrUnavailable = errors.New("no FUSE directory can be mounted")

// maxWriteBytes is the longest write that comes in one piece. A longer one is several to the disk.
const maxWriteBytes = 1 << 20

// FS is a mounted directory.
type FS struct {
	dir   string
	files *files
	work  chan func()
	done  chan error
}

// Mount shows t at dir, an existing directory, to what Do runs. It needs the rights of root, and
// gives ErrUnavailable where it cannot mount. t stays as it is.
func Mount(dir string, t *Tree) (*FS, error) {
	f := &FS{dir: dir, work: make(chan func()), done: make(chan error, 1),
		files: &files{RawFileSystem: fuse.NewDefaultRawFileSystem(), disk: newDisk(t)}}
	ready := make(chan error)
	go f.serve(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("mount on %s: %w: %w", dir, ErrUnavailable, err)
	}
	return f, nil
}

// serve is the thread that has the mount.
func (f *FS) serve(ready chan<- error) {
	// Never unlocked: the runtime ends the thread with the goroutine, and its namespace goes with it.
	runtime.LockOSThread()
	// Nobody else sees what is mounted there, and nothing of others stays mounted in it.
	if _, err := apart.Mounts(context.Background(), f.dir); err != nil {
		ready <- err
		return
	}
	server, err := fuse.NewServer(f.files, f.dir, &fuse.MountOptions{FsName: "cutfs", Name: "cutfs",
		DirectMountStrict: true, DisableXAttrs: true, DisableReadDirPlus: true,
		DisableSplice: true, MaxWrite: maxWriteBytes, Logger: log.New(io.Discard, "", 0)})
	if err != nil {
		ready <- err
		return
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve()
	}()
	err = server.WaitMount()
	if err == nil {
		ready <- nil
		for w := range f.work {
			w()
		}
	}
	f.unmount(served)
	if err != nil {
		ready <- err
	}
}

// unmount takes the directory down and waits until it is served no more.
func (f *FS) unmount(served <-chan struct{}) {
	// By force: a program that hangs must not keep it.
	err := unix.Unmount(f.dir, unix.MNT_FORCE|unix.MNT_DETACH)
	if err != nil {
		err = fmt.Errorf("unmount %s: %w", f.dir, err)
	} else {
		<-served
	}
	f.done <- err
}

// Do runs fn on the thread that sees the directory, and gives its error. Programs that fn starts
// see it too. They must not be started with a working directory in it: a program that is being
// started holds the processor that would have to answer.
func (f *FS) Do(fn func() error) error {
	err := make(chan error, 1)
	f.work <- func() { err <- fn() }
	return <-err
}

// CutAt makes the k-th changing call from now on the power cut; calls are counted from 1. It is
// set before anything runs.
func (f *FS) CutAt(k int) {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	f.files.disk.cutAt = f.files.disk.count + k
}

// Calls is how many changing calls there were, with the one that was the power cut.
func (f *FS) Calls() int {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	return f.files.disk.count
}

// Cut reports whether the power was cut.
func (f *FS) Cut() bool {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	return f.files.disk.cut
}

// Pending counts the changes that are not sure to be on the disk.
func (f *FS) Pending() int {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	return f.files.disk.pending()
}

// Log describes the changes that were made, and the one that was the power cut.
func (f *FS) Log() []string {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	var list []string
	for _, c := range f.files.disk.log {
		list = append(list, c.String())
	}
	if c := f.files.disk.flying; c != nil {
		list = append(list, c.String()+": the power is cut")
	}
	return list
}

// Writes lists the writes that were made.
func (f *FS) Writes() []Write {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	return f.files.disk.writes()
}

// Now is what a program sees that looks now, or would see without the cut.
func (f *FS) Now() *Tree {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	return f.files.disk.now.clone()
}

// Survivors is what the disk holds when the power is cut now, or at the cut that there was. The
// same seed gives the same; the modes None and All need none.
func (f *FS) Survivors(m Mode, seed uint64) *Tree {
	f.files.mu.Lock()
	defer f.files.mu.Unlock()
	return f.files.disk.survivors(m, seed)
}

// Unmount ends it. What is known of the disk stays known.
func (f *FS) Unmount() error {
	close(f.work)
	return <-f.done
}
