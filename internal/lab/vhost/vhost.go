// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package vhost gives an image to a guest of User Mode Linux through QEMU's own block layer: qemu-storage-daemon has
// the image open, and serves it by vhost-user-blk. What the guest writes is in the image as a machine of QEMU would have
// put it there, and what the image's storage does to the daemon the guest sees.
//
//	guest      ext4 on /dev/vda         virtio_blk, virtio_uml
//	   |       shared memory, a socket (docs/interop/vhost-user.rst of QEMU)
//	daemon     qcow2, and what lies below it
//	   |
//	image      a file, on whatever storage
//
// It needs the kernel of Debian's user-mode-linux, where virtio_uml is built in. For tests.
package vhost

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	// Program is what serves an image.
	Program = "qemu-storage-daemon"
	// Module is what a guest has to load, and Device what the first disk then is.
	Module, Device = "virtio_blk", "/dev/vda"

	// patience is how long the daemon may take to start, and to end.
	patience = 5 * time.Minute
	// blockDevice is the number of the kind of device (virtio 1.2, section 5).
	blockDevice = "2"
)

// Disk is an image that is served. Its methods are for one goroutine.
type Disk struct {
	dir     string
	command *exec.Cmd
	words   bytes.Buffer
	ended   chan error
	stopped bool
	closed  bool
}

// Serve serves an image of a format of QEMU's, as "qcow2", for one guest at a time, which may write. Close ends it; so
// does the end of this process, even if it is killed.
func Serve(image, format string) (d *Disk, err error) {
	if strings.Contains(image, ",") {
		return nil, fmt.Errorf("serve %s: a comma separates options", image)
	}
	// The name of a socket has 107 bytes at most (unix(7)).
	d = &Disk{ended: make(chan error, 1)}
	if d.dir, err = os.MkdirTemp("", "vhost-"); err != nil {
		return nil, err
	}
	ready := filepath.Join(d.dir, "ready")
	d.command = exec.Command(Program, "--blockdev", "driver=file,node-name=file,filename="+image,
		"--blockdev", "driver="+format+",node-name=disk,file=file", "--export",
		"type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path="+d.socket(), "--pidfile", ready)
	d.command.Stderr = &d.words
	d.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the kernel ends it with the thread that started it
		defer runtime.UnlockOSThread()
		err := d.command.Start()
		started <- err
		if err == nil {
			d.ended <- d.command.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.dir))
	}
	// It writes its number when all is served.
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(ready)
		switch {
		case err == nil && bytes.HasSuffix(text, []byte("\n")):
			return d, nil
		case len(d.ended) > 0 || time.Now().After(end):
			_ = d.Kill() // it may have ended
			err := fmt.Errorf("serve %s: %s: %v: %s", image, Program, <-d.ended, bytes.TrimSpace(d.words.Bytes()))
			return nil, errors.Join(err, os.RemoveAll(d.dir))
		}
	}
}

func (d *Disk) socket() string { return filepath.Join(d.dir, "socket") }

// Argument is the word of the kernel's command line by which a guest has the disk.
func (d *Disk) Argument() string { return "virtio_uml.device=" + d.socket() + ":" + blockDevice }

// Stop stops the daemon: the disk answers nothing any more, as one whose storage hangs.
func (d *Disk) Stop() error {
	d.stopped = true
	return d.command.Process.Signal(syscall.SIGSTOP)
}

// Continue has the daemon go on.
func (d *Disk) Continue() error {
	d.stopped = false
	return d.command.Process.Signal(syscall.SIGCONT)
}

// Kill kills the daemon, as a crash of QEMU would: what it has in memory is lost. Close is still to be called.
func (d *Disk) Kill() error { return d.command.Process.Kill() }

// Close ends the daemon, which writes what it has, and tells what went wrong with it. After Kill that it was killed is
// no error. A second call does nothing.
func (d *Disk) Close() error {
	if d.closed {
		return nil
	}
	d.closed = true
	err := d.command.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if d.stopped {
		err = errors.Join(err, d.Continue())
	}
	select {
	case end := <-d.ended:
		err = errors.Join(err, d.end(end))
	case <-time.After(patience):
		err = errors.Join(err, fmt.Errorf("%s did not end within %v", Program, patience), d.Kill(), <-d.ended)
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// end says what is wrong with the way in which the daemon ended.
func (d *Disk) end(err error) error {
	e := (*exec.ExitError)(nil)
	if errors.As(err, &e) {
		if s, ok := e.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGKILL {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", Program, err, d.words.String())
	}
	return nil
}
