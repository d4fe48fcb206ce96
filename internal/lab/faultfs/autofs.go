// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The parts of linux/auto_fs.h, protocol 5, that are used here. A packet is
//
//	 0  4  version of the protocol
//	 4  4  type: 3 missing indirect, 4 expire indirect, 5 missing direct, 6 expire direct
//	 8  4  token, to be handed back
//	12     who asks for what: device, inode, uid, gid, pid, tgid, name
//
// and its length is that of the C structure, padded to its alignment.
const (
	autofsPacketBytes = 304
	autofsToken       = 8
	autofsFail        = 0x9361 // AUTOFS_IOC_FAIL
	autofsVersion     = 5
)

// trap is a mount point of autofs. Whoever triggers it is counted, and told that there is nothing.
type trap struct {
	dir  string
	hits atomic.Int64
}

// beTrap mounts a direct mount point of autofs at dir. This process is in a group of its own, for
// which it is a plain directory.
func (c *child) beTrap(dir string) error {
	asked, asking, err := os.Pipe()
	if err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,pgrp=%d,minproto=%d,maxproto=%d,direct", asking.Fd(),
		unix.Getpgrp(), autofsVersion, autofsVersion)
	if err := unix.Mount("faultfs", dir, "autofs", 0, options); err != nil {
		return fmt.Errorf("mount autofs on %s: %w", dir, err)
	}
	if err := asking.Close(); err != nil { // the kernel's end stays, and goes with the mount
		return err
	}
	c.trap = &trap{dir: dir}
	ended := make(chan error, 1)
	go func() { ended <- c.trap.answer(asked) }()
	c.unmount = func() error {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err != nil && err != unix.EINVAL && err != unix.ENOENT { // the parent unmounts it first
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		return errors.Join(<-ended, asked.Close())
	}
	return nil
}

// answer counts and refuses until the mount is gone.
func (t *trap) answer(asked *os.File) error {
	packet := make([]byte, autofsPacketBytes)
	for {
		n, err := asked.Read(packet)
		if err != nil || n < autofsToken+4 {
			return nil // unmounted
		}
		t.hits.Add(1)
		if err := t.refuse(int(binary.NativeEndian.Uint32(packet[autofsToken:]))); err != nil {
			return fmt.Errorf("refuse what was asked of autofs: %w", err)
		}
	}
}

// refuse lets who asked go on, with nothing mounted.
func (t *trap) refuse(token int) error {
	root, err := unix.Open(t.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetInt(root, autofsFail, token), unix.Close(root))
}
