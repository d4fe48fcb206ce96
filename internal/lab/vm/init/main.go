// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Command init is the first process of a guest of package vm. It mounts what programs expect, loads
// modules, runs the checks of its plan one after the other, reports each in a line of JSON on a serial
// line, and turns the machine off.
//
// The checks are run by a second process of the same program: the first one buries those whose parents
// are gone.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/vm"
)

// checker is the argument of the second process.
const checker = "checks"

func main() {
	if os.Getpid() != 1 {
		if len(os.Args) == 2 && os.Args[1] == checker {
			check()
			return
		}
		fmt.Fprintln(os.Stderr, "init: only the first process of a guest runs this")
		os.Exit(1)
	}
	if err := first(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err) // on the console
		if err := say(vm.Line{Failed: err.Error()}); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
		}
	}
	unix.Sync()
	fmt.Fprintln(os.Stderr, "init: power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// first is what the first process does.
func first() error {
	if err := prepare(); err != nil {
		return err
	}
	p, err := plan()
	if err != nil {
		return err
	}
	for _, m := range p.Modules {
		if err := load(m); err != nil {
			return err
		}
	}
	if err := mountMore(); err != nil {
		return err
	}
	c := exec.Command("/init", checker)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	c.Dir = "/"
	if err := c.Start(); err != nil {
		return err
	}
	return bury(c.Process.Pid)
}

// bury waits for all children until pid has ended.
func bury(pid int) error {
	for {
		var status unix.WaitStatus
		child, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("wait for the checks: %w", err)
		case child == pid && status != 0:
			return fmt.Errorf("what runs the checks ended with status %#x", uint32(status))
		case child == pid:
			return nil
		}
	}
}

func plan() (p vm.Plan, err error) {
	b, err := os.ReadFile(vm.PlanPath)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	return p, err
}

// say writes a line of the report. The serial line gives it as it is.
func say(l vm.Line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(vm.ReportPath, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return err
	}
	// All of it, before it is closed. The runtime's own signals end the wait early.
	for {
		if err := unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1); err != unix.EINTR {
			return err
		}
	}
}
