// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/vm"
)

// grace is how long a check may take to show where it is, after its time is over.
const grace = 15 * time.Second

// check runs all checks.
func check() {
	err := checks()
	if err == nil {
		err = say(vm.Line{Ended: true})
	} else {
		err = errors.Join(err, say(vm.Line{Failed: err.Error()}))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
}

func checks() error {
	p, err := plan()
	if err != nil {
		return err
	}
	booted, err := since()
	if err == nil {
		err = say(vm.Line{Booted: &booted})
	}
	for _, c := range p.Checks {
		if err != nil {
			return err
		}
		r := run(c)
		err = say(vm.Line{Result: &r})
	}
	return err
}

// since is how long the kernel has been running, and what it calls itself.
func since() (b vm.Booted, err error) {
	var now unix.Timespec
	var name unix.Utsname
	err = errors.Join(unix.ClockGettime(unix.CLOCK_BOOTTIME, &now), unix.Uname(&name))
	return vm.Booted{Kernel: unix.ByteSliceToString(name.Release[:]), Took: time.Duration(now.Nano())}, err
}

// run runs one check in a session of its own. What is left of its first group of processes is killed.
func run(c vm.Check) vm.Result {
	r := vm.Result{Name: c.Name, Exit: -1}
	if len(c.Command) == 0 {
		r.Error = "no command"
		return r
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	out, words := vm.Tail{Max: vm.MaxOutput}, vm.Tail{Max: vm.MaxOutput}
	cmd := exec.CommandContext(ctx, c.Command[0], c.Command[1:]...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TMPDIR=/tmp"}, c.Env...)
	cmd.Dir = "/root"
	cmd.Stdout, cmd.Stderr = &out, &words
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGQUIT) }
	cmd.WaitDelay = grace
	begun := time.Now()
	err := cmd.Run()
	r.Took = time.Since(begun)
	if cmd.Process != nil {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // ESRCH: nobody is left
	}
	if s := cmd.ProcessState; s != nil {
		r.Exit = s.ExitCode()
	}
	if err != nil {
		r.Error = err.Error()
	}
	if ctx.Err() != nil {
		r.Error = fmt.Sprintf("not done after %v: %v", c.Timeout, err)
	}
	r.OK = err == nil && ctx.Err() == nil
	r.Stdout, r.Stderr = string(out.Bytes()), string(words.Bytes())
	return r
}
