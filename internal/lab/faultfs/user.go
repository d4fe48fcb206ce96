// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// User is a program that uses what may hang.
type User struct {
	PID     int
	Command string // its name, as the kernel shows it
	// State is what it was waited for to be in: the letter of proc(5), D or S.
	State byte

	cmd   *exec.Cmd
	ended chan error
}

// Use starts a program that is to get stuck, and waits until it is in a state. stdin may be nil.
// The program is given back with an error, too, if it was started: what has to go on first for it
// to end, its caller knows.
func Use(state byte, stdin *os.File, argv ...string) (*User, error) {
	u := &User{Command: argv[0], State: state, ended: make(chan error, 1)}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	u.cmd = &exec.Cmd{Path: path, Args: argv, Dir: "/",
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}}
	if stdin != nil {
		u.cmd.Stdin = stdin
	}
	if err := launch(u.cmd, u.ended); err != nil {
		return nil, err
	}
	u.PID = u.cmd.Process.Pid
	if err := u.until(state); err != nil {
		return u, fmt.Errorf("%s is not in state %c: %w", argv[0], state, err)
	}
	return u, nil
}

// until waits until the program is in a state and stays there: one that is about to wait may be in
// it for a moment for another reason.
func (u *User) until(state byte) error {
	const often = 20
	seen := 0
	return until(func() (bool, error) {
		now, err := stateOf("/proc/" + strconv.Itoa(u.PID))
		if now == 'Z' {
			err = errors.Join(err, errors.New("it has ended"))
		}
		if seen++; now != state {
			seen = 0
		}
		return seen >= often, err
	})
}

// Kill sends SIGKILL and does not wait: where the program waits for an answer that the kernel
// already asked for, it turns to D and stays. That is waited for.
func (u *User) Kill() error {
	if err := unix.Kill(u.PID, unix.SIGKILL); err != nil {
		return err
	}
	u.State = 'D'
	return u.until('D')
}

// End ends the program and waits until it is gone. What it waits for has to come to its end first.
func (u *User) End() error {
	err := u.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-u.ended: // killed, or with an error of what it used: both are as they should be
		return err
	case <-time.After(2 * patience): // Disk.Close ends the server before
		return errors.Join(err, fmt.Errorf("%s (%d) does not end", u.Command, u.PID))
	}
}
