// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

// guardWord is the first argument of a guard. No command has such a name.
const guardWord = "umount-guard"

// Guard is a process that lets a control group go on when this one ends, however it ends.
type Guard interface{ Close() error }

type guard struct {
	cmd  *exec.Cmd
	pipe *os.File // the guard reads until its end
}

// StartGuard starts a guard for the control group in dir: this program once more. Whoever uses this
// package must begin with
//
//	if umount.IsGuard(os.Args) { os.Exit(umount.RunGuard(os.Args)) }
func StartGuard(dir string) (Guard, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	c := exec.Command("/proc/self/exe", guardWord, dir)
	c.Stdin, c.Env = theirs, []string{}
	out, err := c.StdoutPipe()
	if err != nil {
		ours.Close()
		return nil, err
	}
	// A session of its own: what a terminal sends to this program does not reach it.
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	g := &guard{cmd: c, pipe: ours}
	// It says a byte when it is ready.
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		g.Close()
		return nil, fmt.Errorf("the guard did not start: %w", err)
	}
	return g, nil
}

// Close ends the guard, which lets the control group go on once more.
func (g *guard) Close() error {
	g.pipe.Close()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("the guard that continues what was stopped: %w", err)
	}
	return nil
}

// IsGuard tells whether the command line is that of a guard.
func IsGuard(args []string) bool { return len(args) == 3 && args[1] == guardWord }

// RunGuard waits until the one who started it ends, and lets the control group go on. It gives the exit
// status.
func RunGuard(args []string) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	f, err := os.OpenFile(filepath.Join(args[2], "cgroup.freeze"), os.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer f.Close()
	if _, err := os.Stdout.Write([]byte{0}); err != nil {
		return 1
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if _, err := f.WriteAt([]byte("0"), 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
