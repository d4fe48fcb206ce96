// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// signalled is a program for scripts: "signalled SIGINT FILE COMMAND [ARG...]" runs the command, sends
// it the signal once it has the file open, however long it takes to get there, and ends as it does. FILE with a * is a
// pattern: the signal is sent once a file of that name is there.
func signalled() {
	status, err := signal(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "signalled:", err)
		status = 1
	}
	os.Exit(status)
}

func signal(args []string) (int, error) {
	if len(args) < 3 || unix.SignalNum(args[0]) == 0 {
		return 0, errors.New("want SIGNAL FILE COMMAND [ARG...]")
	}
	file, err := filepath.Abs(args[1])
	if err != nil {
		return 0, err
	}
	c := exec.Command(args[2], args[3:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for sent := false; ; {
		select {
		case err = <-ended:
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
				return exit.ExitCode(), nil
			}
			if err == nil && !sent {
				err = errors.New("the command ended before it opened the file")
			}
			return 0, err
		case <-time.After(10 * time.Millisecond):
			if !sent && got(c.Process.Pid, file) {
				sent = true
				if err := c.Process.Signal(unix.SignalNum(args[0])); err != nil {
					return 0, err
				}
			}
		}
	}
}

// got tells whether a process has got as far as it is to.
func got(pid int, file string) bool {
	if !strings.Contains(file, "*") {
		return hasOpen(pid, file)
	}
	there, err := filepath.Glob(file)
	return err == nil && len(there) > 0
}

// hasOpen tells whether a process has the file open.
func hasOpen(pid int, file string) bool {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == file {
			return true
		}
	}
	return false
}
