// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/uml"
)

// Kernels of today are built without version 4 of XFS. User Mode Linux, a kernel of before as a
// program, mounts it: the bench starts itself there as the first process, on the host's files.
const oldKernel = "linux.uml"

// In that kernel the bench learns from its environment what it is to do, in which directory it has its
// mounts, and where it leaves what it saw.
const (
	oldDoes = "SHISA_BENCH_OLD_DOES"
	oldOwn  = "SHISA_BENCH_OLD_OWN"
	oldOut  = "SHISA_BENCH_OLD_OUT"
)

const (
	oldLoading  = "load"
	oldShowing  = "show"
	oldPatience = 2 * time.Minute
	oldStart    = 8 * time.Second // to start, and write
)

// inOld is the command that starts the bench in the old kernel.
func inOld(ctx context.Context, g guest, does, own, out string) (*exec.Cmd, error) {
	program, err := exec.LookPath(oldKernel)
	if err != nil {
		return nil, fmt.Errorf("%w (on Debian: apt-get install user-mode-linux)", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	preload, err := uml.Preload(own)
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, program, "mem=400M", "root=/dev/root", "rootfstype=hostfs",
		"rootflags=/", "rw", "ubd0="+g.raw, "con=null", "con0=null,fd:1", "uml_dir="+own, "quiet",
		"init="+self, oldDoes+"="+does, oldOwn+"="+own, oldOut+"="+out)
	c.Env = append(os.Environ(), preload)
	// It is several processes, which go with their group only.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	return c, nil
}

// oldLoad has the old kernel write to a disk, and gives what ends it as a power cut would.
func oldLoad(ctx context.Context, g guest) (end func() error, err error) {
	own, err := os.MkdirTemp("", "uml-") // the names of its sockets must be short
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c, err := inOld(ctx, g, oldLoading, own, "-")
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		cancel()
		return nil, errors.Join(err, os.RemoveAll(own))
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	select {
	case err := <-ended:
		cancel()
		return nil, errors.Join(fmt.Errorf("%s ended at once: %w", oldKernel, err), os.RemoveAll(own))
	case <-time.After(oldStart):
	}
	return func() error {
		cancel()
		<-ended // killed, as was meant
		return os.RemoveAll(own)
	}, nil
}

// oldTree is what the old kernel shows of a disk.
func oldTree(ctx context.Context, g guest) (tree map[string]string, err error) {
	ctx, cancel := context.WithTimeout(ctx, oldPatience)
	defer cancel()
	own, err := os.MkdirTemp("", "uml-") // the names of its sockets must be short
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(own)
	out := filepath.Join(own, "tree.json")
	c, err := inOld(ctx, g, oldShowing, own, out)
	if err != nil {
		return nil, err
	}
	said, err := c.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", oldKernel, err, bytes.TrimSpace(said))
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return nil, fmt.Errorf("%s left nothing: %w: %s", oldKernel, err, bytes.TrimSpace(said))
	}
	return tree, json.Unmarshal(text, &tree)
}

// oldMain is the bench as the first process of the old kernel. It never returns there: the machine
// is switched off.
func oldMain() int {
	if err := oldWork(os.Getenv(oldDoes), os.Getenv(oldOwn), os.Getenv(oldOut)); err != nil {
		fmt.Println(err)
	}
	syscall.Sync()
	if err := syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println(err)
	}
	return 1
}

func oldWork(does, own, out string) error {
	at := filepath.Join(own, "at")
	device := filepath.Join(own, "device")
	if err := errors.Join(os.MkdirAll(at, 0o755), os.MkdirAll(device, 0o755),
		syscall.Mount("tmpfs", device, "tmpfs", 0, "")); err != nil {
		return err
	}
	const firstDisk = 98 << 8 // major and minor number of ubd0
	disk := filepath.Join(device, "disk")
	if err := errors.Join(syscall.Mknod(disk, syscall.S_IFBLK|0o600, firstDisk),
		syscall.Mount(disk, at, "xfs", syscall.MS_NOATIME, "")); err != nil {
		return err
	}
	if does == oldLoading {
		go func() {
			for {
				time.Sleep(700 * time.Millisecond)
				syscall.Sync()
			}
		}()
		return write(at, nil)
	}
	tree, err := kernelTree(at)
	if err != nil {
		return err
	}
	text, err := json.Marshal(tree)
	return errors.Join(err, syscall.Unmount(at, 0), os.WriteFile(out, text, 0o600))
}
