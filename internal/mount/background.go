// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// ReadyFD is the descriptor that a process in the background says on that it is ready.
const ReadyFD = 3

// Background runs this program once more with other arguments, in a session of its own, and waits
// until that one calls Ready or ends. It gives the status that Ready was told, or the exit status.
// Until then both print to the same place. When ctx ends first, the other one is told to end.
func Background(ctx context.Context, args []string) (status int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("start in the background: %w", err)
	}
	defer r.Close()
	c := exec.Command("/proc/self/exe", args...)
	c.Args[0] = os.Args[0]
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.ExtraFiles = []*os.File{w} // ReadyFD
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(c.Start(), w.Close()); err != nil {
		return 0, fmt.Errorf("start in the background: %w", err)
	}
	defer context.AfterFunc(ctx, func() {
		_ = c.Process.Signal(syscall.SIGTERM) // it may have ended
	})()
	var said [1]byte
	if n, _ := r.Read(said[:]); n == 1 {
		return int(said[0]), c.Process.Release()
	}
	err = c.Wait()
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	if err != nil {
		err = fmt.Errorf("the process in the background: %w", err)
	}
	return 0, err
}

// Ready lets go of the terminal and of the directory that the process was started in, and tells the
// one that started it with Background to end with a status.
func Ready(status int) error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("go to the background: %w", err)
	}
	for fd := range 3 {
		err = errors.Join(err, unix.Dup3(null, fd, 0))
	}
	err = errors.Join(err, unix.Close(null), os.Chdir("/"))
	_, werr := unix.Write(ReadyFD, []byte{byte(status)})
	err = errors.Join(err, werr, unix.Close(ReadyFD))
	if err != nil {
		return fmt.Errorf("go to the background: %w", err)
	}
	return nil
}
