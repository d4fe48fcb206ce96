// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mounts is what programs expect, as systemd mounts it.
type mounting struct {
	fs, at  string
	options string
	// may: what is not there is not mounted.
	may bool
}

// ownRoot makes the root a mount like others: pivot_root(2) refuses to leave that which the kernel began
// with.
func ownRoot() error {
	const at = "/mnt"
	return errors.Join(unix.Mount("/", at, "", unix.MS_BIND, ""), unix.Chdir(at),
		unix.Mount(at, "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
}

// prepare mounts what is needed first, and brings up the loopback device.
func prepare() error {
	if err := ownRoot(); err != nil {
		return fmt.Errorf("make a root: %w", err)
	}
	if err := mountAll([]mounting{
		{fs: "proc", at: "/proc"},
		{fs: "sysfs", at: "/sys"},
		{fs: "devtmpfs", at: "/dev"},
		{fs: "devpts", at: "/dev/pts", options: "gid=5,mode=620,ptmxmode=000"},
		{fs: "tmpfs", at: "/dev/shm"},
		{fs: "tmpfs", at: "/run", options: "mode=755"},
		{fs: "tmpfs", at: "/tmp"},
		{fs: "cgroup2", at: "/sys/fs/cgroup"},
		{fs: "tracefs", at: "/sys/kernel/tracing", may: true},
		{fs: "debugfs", at: "/sys/kernel/debug", may: true},
		{fs: "bpf", at: "/sys/fs/bpf", may: true},
	}); err != nil {
		return err
	}
	return errors.Join(os.MkdirAll("/run/lock", 0o755), unix.Sethostname([]byte("guest")), loopback())
}

// mountMore mounts what needs modules.
func mountMore() error {
	return mountAll([]mounting{
		{fs: "binfmt_misc", at: "/proc/sys/fs/binfmt_misc", may: true},
		{fs: "rpc_pipefs", at: "/var/lib/nfs/rpc_pipefs", may: true},
		{fs: "nfsd", at: "/proc/fs/nfsd", may: true},
	})
}

func mountAll(all []mounting) error {
	for _, m := range all {
		if err := os.MkdirAll(m.at, 0o755); err != nil && !m.may {
			return err
		}
		err := unix.Mount(m.fs, m.at, m.fs, 0, m.options)
		if err != nil && !m.may {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.at, err)
		}
	}
	return nil
}

// loopback brings up the device lo, which then has its addresses.
func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

// load gives a module to the kernel.
func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}
