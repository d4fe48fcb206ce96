// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// reportFD is where the kernel's process has the line for the report.
const reportFD = 3

// runOpen runs the kernel as it is.
func runOpen(ctx context.Context, o *Options, program string) (r *Result, err error) {
	home, err := os.MkdirTemp("", "uml-")
	if err != nil {
		return &Result{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(home)) }()
	memory := "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		memory = home
	}
	var disks []string
	for _, d := range o.Disks {
		full, err := filepath.Abs(d.Path)
		if err != nil {
			return &Result{}, err
		}
		disks = append(disks, full)
	}
	preload, err := Preload(home)
	if err != nil {
		return &Result{}, err
	}
	c := exec.Command(program, o.arguments(o.Root, disks)...)
	c.Env = append(environ(memory, home), preload)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if powerful() {
		// The kernel is the first process of a namespace: whoever kills it kills all of the guest, also when this
		// process is killed, which could not kill them one by one.
		c.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	return guest(ctx, o, c)
}

// guest runs a command that is a guest, or has one: its stdout is the console, and descriptor 3 the
// report.
func guest(ctx context.Context, o *Options, c *exec.Cmd) (*Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout(),
		fmt.Errorf("the guest was ended after %v", o.timeout()))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r, begun := &Result{}, time.Now()
	console, words := tail{max: maxConsole}, tail{max: maxConsole}
	said, listening := heard(func(p io.Reader) error {
		err := r.read(p)
		if err != nil {
			stop(err)
		}
		return err
	})
	shown, watching := heard(func(p io.Reader) error {
		_, err := io.Copy(&console, p)
		return err
	})
	c.Stdout, c.ExtraFiles = shown, append([]*os.File{said}, c.ExtraFiles...)
	c.Stderr = &words
	err := run(ctx, c, said, shown)
	lost := errors.Join(<-listening, <-watching)
	if e := (*exec.ExitError)(nil); errors.As(err, &e) && aborted(e) && halted(console.kept) {
		err = nil
	}
	err = errors.Join(err, lost)
	r.Took, r.Console = time.Since(begun), console.kept
	if s := c.ProcessState; s != nil {
		r.CPU = s.UserTime() + s.SystemTime()
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if err == nil {
		return r, nil
	}
	if c.Process == nil && c.SysProcAttr.Cloneflags != 0 && errors.Is(err, syscall.EPERM) {
		return r, fmt.Errorf("%w: namespaces for it: %w", ErrConfine, err)
	}
	if e := (*exec.ExitError)(nil); errors.As(err, &e) && e.ExitCode() == exitConfine {
		return r, fmt.Errorf("%w: %s", ErrConfine, bytes.TrimSpace(words.kept))
	}
	return r, fmt.Errorf("the guest: %w: %s", err, bytes.TrimSpace(words.kept))
}

// aborted tells whether a kernel, or the stage before it, ended by SIGABRT.
func aborted(e *exec.ExitError) bool {
	w, ok := e.Sys().(syscall.WaitStatus)
	return ok && (w.Signaled() && w.Signal() == syscall.SIGABRT || w.ExitStatus() == exitAborted)
}

// halted tells whether a kernel's last words are that the guest is off. User Mode Linux 6.1 is at times aborted by
// its C library while it takes its own threads down, which is behind all that the guest did.
func halted(console []byte) bool {
	console = bytes.TrimSpace(console)
	return bytes.HasSuffix(console, []byte("reboot: System halted")) || bytes.HasSuffix(console, []byte("reboot: Power down"))
}

// heard gives a pipe, and hears what is written to it until its writers have closed it.
func heard(hear func(io.Reader) error) (*os.File, <-chan error) {
	done := make(chan error, 1)
	from, to, err := os.Pipe()
	if err != nil {
		done <- err
		return nil, done
	}
	go func() { done <- errors.Join(hear(from), from.Close()) }()
	return to, done
}

// run runs a command that has some files, which are closed here, and kills its session when ctx ends and
// when it has ended. The kernel ends it with the thread that started it, so that thread has to stay.
func run(ctx context.Context, c *exec.Cmd, has ...*os.File) error {
	started, ended := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		for _, f := range has {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
		}
		if c.Process == nil {
			started <- 0
			ended <- err
			return
		}
		started <- c.Process.Pid
		ended <- errors.Join(err, c.Wait())
	}()
	pid := <-started
	if pid == 0 {
		return <-ended
	}
	// The processes of the guest are of its group, and may outlive the one that was started.
	kill := func() { _ = syscall.Kill(-pid, syscall.SIGKILL) }
	select {
	case err := <-ended:
		kill()
		return err
	case <-ctx.Done():
		kill()
		return <-ended
	}
}

// read takes the guest's report.
func (r *Result) read(from io.Reader) error {
	s := bufio.NewScanner(from)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		line := bytes.TrimSpace(s.Bytes())
		switch {
		case len(line) == 0:
		case !json.Valid(line):
			return fmt.Errorf("%w: %.200q", ErrReport, line)
		case len(r.Lines) == maxLines:
			return fmt.Errorf("%w: more than %d lines", ErrReport, maxLines)
		default:
			r.Lines = append(r.Lines, bytes.Clone(line))
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrReport, err)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct {
	max  int
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if len(t.kept) > 2*t.max {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-t.max:]...)
	}
	return len(p), nil
}
