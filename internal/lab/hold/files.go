// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

func openFD(c *child) (err error) {
	c.hold.FD, err = c.open("held", unix.O_RDWR)
	return err
}

func openDeleted(c *child) error {
	return errors.Join(openFD(c), os.Remove(c.hold.Path))
}

func openThrice(c *child) error {
	if err := openFD(c); err != nil {
		return err
	}
	_, err := unix.FcntlInt(uintptr(c.hold.FD), unix.F_DUPFD_CLOEXEC, 100)
	return errors.Join(err, mapped(c.hold.FD))
}

// openShared has another process with the same open file.
func openShared(c *child) error {
	if err := openFD(c); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(uintptr(c.hold.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), c.hold.Path)
	other := exec.Command("sleep", "infinity")
	other.Dir, other.ExtraFiles = "/", []*os.File{f}
	other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := errors.Join(other.Start(), f.Close()); err != nil {
		return err
	}
	c.hold.AlsoPID = other.Process.Pid
	c.later(func() error {
		err := other.Process.Kill()
		if _, waitErr := other.Process.Wait(); waitErr != nil {
			err = errors.Join(err, waitErr)
		}
		return err
	})
	return nil
}

// openMany opens many files, each of them twice.
func openMany(c *child) error {
	const many = 500
	for i := range many {
		fd, err := c.open(fmt.Sprintf("held-%d", i), unix.O_RDONLY)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		}
		if err != nil {
			return err
		}
	}
	return openFD(c)
}

// openAndThere has a file open, works there and has its root there: each is a reference.
func openAndThere(c *child) error {
	return errors.Join(openFD(c), unix.Chdir(c.Mount), unix.Chroot(c.Mount))
}

func openPath(c *child) (err error) {
	c.hold.FD, err = c.open("held", unix.O_PATH)
	return err
}

// mapped maps two pages of a file, apart from one another: two mappings.
func mapped(fd int) error {
	for i := range int64(2) {
		page := os.Getpagesize()
		_, err := unix.Mmap(fd, 2*i*int64(page), page, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("map: %w", err)
		}
	}
	return nil
}

func mapThere(c *child) error {
	fd, err := c.open("held", unix.O_RDONLY)
	if err != nil {
		return err
	}
	return errors.Join(mapped(fd), unix.Close(fd))
}

func workThere(c *child) error {
	c.hold.Path = c.Mount
	return unix.Chdir(c.Mount)
}

func workInDeleted(c *child) (err error) {
	if c.hold.Path, err = dir(c.Mount, "gone"); err != nil {
		return err
	}
	return errors.Join(unix.Chdir(c.hold.Path), os.Remove(c.hold.Path))
}

func rootThere(c *child) error {
	c.hold.Path = c.Mount
	return unix.Chroot(c.Mount) // the working directory stays where it is
}

// runThere has nothing to do: its program is on the mount.
func runThere(c *child) (err error) {
	c.hold.Path, err = os.Readlink("/proc/self/exe")
	return err
}

func threadCwd(c *child) (err error) {
	c.hold.Path = c.Mount
	c.hold.TID, err = onThread(func() error {
		return errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir(c.Mount))
	})
	return err
}

func threadFiles(c *child) error {
	path, err := c.file("held")
	if err != nil {
		return err
	}
	c.hold.Path = path
	c.hold.TID, err = onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			return err
		}
		// Not by os.Open: descriptors that the runtime makes for itself are for all threads.
		c.hold.FD, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	return err
}

// zombieLeader ends the first thread: /proc/PID is that of a zombie then, and shows no files.
func zombieLeader(c *child) error {
	if err := openFD(c); err != nil {
		return err
	}
	close(c.leave)
	return until(func() (bool, error) {
		stat, err := os.ReadFile("/proc/self/stat")
		var pid int
		var comm, state string
		_, scanErr := fmt.Sscan(string(stat), &pid, &comm, &state)
		return state == "Z", errors.Join(err, scanErr)
	})
}

// blockedOpen waits in open(2) for somebody to write to a named pipe: the file is open and is in no
// table of files yet.
func blockedOpen(c *child) error {
	path, err := c.fifo()
	if err != nil {
		return err
	}
	c.hold.TID, err = stuck(unix.SYS_OPENAT, func() error {
		_, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	return err
}

// blockedRead waits in read(2) on a descriptor that another thread closes.
func blockedRead(c *child) error {
	path, err := c.fifo()
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.hold.TID, err = stuck(unix.SYS_READ, func() error {
		_, err := unix.Read(fd, make([]byte, 1))
		return err
	})
	return errors.Join(err, unix.Close(fd))
}
