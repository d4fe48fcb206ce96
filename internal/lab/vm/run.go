// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

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

// QEMU is the emulator that guests run in.
const QEMU = "qemu-system-x86_64"

const (
	// maxLine bounds a line of a guest's report: two outputs, each byte of which may take six in JSON.
	maxLine = 2*6*MaxOutput + 1<<16
	// maxConsole is how much is kept of what the kernel says.
	maxConsole = 256 << 10
	// maxResults bounds how many checks a guest may answer.
	maxResults = 1000
)

// Run makes the files of a guest in a new directory, runs it, and takes both away. It ends when the
// guest has ended, or kills it when ctx is done or m.Limit is used up. What a guest said before it failed
// is in the report, with an error; where its time was over, its kernel was asked where it is before.
//
// QEMU has a session of its own and goes when this process does.
func (m Machine) Run(ctx context.Context, i Image) (r *Report, err error) {
	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	files := filepath.Join(dir, "files.cpio")
	if err := i.Write(ctx, files); err != nil {
		return nil, err
	}
	r, err = m.boot(ctx, i.Kernel.Image, files)
	if err == nil {
		err = r.complete(i.Checks)
	}
	if err != nil {
		err = fmt.Errorf("guest with %s: %w; its console ends with\n%s", i.Kernel.Package, err,
			r.Console[max(0, len(r.Console)-4096):])
	}
	return r, err
}

// complete holds that each check was answered.
func (r *Report) complete(checks []Check) error {
	for _, c := range checks {
		if _, ok := r.Result(c.Name); !ok {
			return fmt.Errorf("it said nothing of %s", c.Name)
		}
	}
	return nil
}

// boot runs QEMU until it ends. There is a report also with an error.
func (m Machine) boot(ctx context.Context, kernel, files string) (*Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, begun := &Report{}, time.Now()
	program := m.Program
	if program == "" {
		program = QEMU
	}
	words, console := Tail{Max: maxConsole}, Tail{Max: maxConsole}
	c := exec.CommandContext(ctx, program, m.arguments(kernel, files)...)
	c.Stderr = &words
	// Of its own: what a terminal sends to us does not reach it, and it is killed as one.
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	ours, its, err := monitor()
	if err != nil {
		return r, err
	}
	defer ours.Close()
	c.Cancel = func() error { return m.end(ctx, c.Process.Pid, ours) }
	said, listening := heard(func(p io.Reader) error {
		err := r.read(p)
		if err != nil {
			cancel(err)
		}
		return err
	})
	shown, watching := heard(func(p io.Reader) error {
		_, err := io.Copy(&console, p)
		return err
	})
	c.Stdout, c.ExtraFiles = said, []*os.File{shown, its}
	err = run(c, func(pid int) func() { return m.limit(pid, cancel) }, said, shown, its)
	err = errors.Join(err, <-listening, <-watching)
	r.Took, r.Console = time.Since(begun), console.Bytes()
	if s := c.ProcessState; s != nil {
		r.CPU = s.UserTime() + s.SystemTime()
	}
	if ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(words.Bytes()))
	}
	return r, nil
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

// run runs a command that has some files, which are closed here, and does what is to be done while it runs. The
// kernel ends it with the thread that started it, so that thread has to stay.
func run(c *exec.Cmd, beside func(pid int) (stop func()), has ...*os.File) error {
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		for _, f := range has {
			err = errors.Join(err, f.Close())
		}
		if c.Process != nil {
			stop := beside(c.Process.Pid)
			err = errors.Join(err, c.Wait())
			stop()
		}
		ended <- err
	}()
	return <-ended
}

// read takes the guest's report.
func (r *Report) read(from io.Reader) error {
	s := bufio.NewScanner(from)
	s.Buffer(nil, maxLine)
	ended := false
	for s.Scan() {
		var l Line
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			return fmt.Errorf("it said %.200q: %w", s.Text(), err)
		}
		switch {
		case ended || l.Result != nil && len(r.Results) >= maxResults:
			return errors.New("it went on after its end")
		case l.Booted != nil:
			r.Booted = *l.Booted
		case l.Result != nil:
			r.Results = append(r.Results, *l.Result)
		case l.Failed != "":
			return errors.New(l.Failed)
		}
		ended = l.Ended
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read its report: %w", err)
	}
	if !ended {
		return errors.New("it ended before it was done")
	}
	return nil
}
