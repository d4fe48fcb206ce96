// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package hold keeps mounts busy on purpose, in every way that the kernel knows of, and holds what
// programs say about it against the kernel's own answer: what umount(2) says, and whether the
// device can be had for itself afterwards.
//
// A holder lives in a child process: it is released by ending that, and goes when the program that
// made it is killed. A program that makes any begins with
//
//	if hold.IsChild(os.Args) { hold.Serve() }
//
// and calls Apart, so that no mount of these is ever seen by others on the machine, and none stays.
package hold

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnavailable: this machine or this user cannot make it, for errors.Is.
var ErrUnavailable = errors.New("cannot be made here")

const (
	// patience is how long a holder may take to be made or to go, on a machine that may be very busy.
	patience = 5 * time.Minute
	// maxReportBytes bounds what a child says of itself: a few numbers and one path.
	maxReportBytes = 64 << 10
)

// Place is where a holder is made.
type Place struct {
	Mount  string // where the file system is mounted that is kept busy
	Device string // the block device that it is on
	Aside  string // an empty directory elsewhere, for what a maker needs besides
}

// Hold is something that keeps a place busy, and what a right answer says of it.
type Hold struct {
	Kind Kind `json:"-"`
	// PID is the process that has it, 0 where no process does.
	PID int
	// AlsoPID is another process that has the same, 0 for none.
	AlsoPID int
	// TID is the thread, 0 where it is no matter of one thread.
	TID int
	// FD is the file descriptor that it hangs on, -1 for none.
	FD int
	// Path is what is held, or where the mount is that holds; empty where there is none.
	Path string
	// Namespace is the mount namespace that it sits in, by inode; 0 is the one of Make.
	Namespace uint64

	process *process
}

// process is the child, seen from outside.
type process struct {
	cmd   *exec.Cmd
	life  *os.File // its end is the child's
	said  *os.File // what the child reports
	lines *bufio.Reader
	words bytes.Buffer // what the child wrote to its standard error
	ended chan error   // how the child ended
}

// report is what a child tells: what it made, or why it could not.
type report struct {
	Hold        Hold
	Error       string
	Unavailable bool
}

// Make keeps p busy in one way, until Release. It waits until that is so. Where this kernel or user
// cannot do it, the error is ErrUnavailable.
func Make(ctx context.Context, k Kind, p Place) (*Hold, error) {
	h, err := start(ctx, k, p)
	if err != nil {
		return nil, fmt.Errorf("make %s on %s: %w", k.Name, p.Mount, err)
	}
	return h, nil
}

func start(ctx context.Context, k Kind, at Place) (*Hold, error) {
	where, err := json.Marshal(at)
	if err != nil {
		return nil, err
	}
	program := "/proc/self/exe"
	if k.ownProgram {
		program = at.Mount + "/program"
		if err := copyFile("/proc/self/exe", program, 0o755); err != nil {
			return nil, err
		}
	}
	lifeEnd, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	said, saying, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, lifeEnd.Close(), life.Close())
	}
	p := &process{life: life, said: said, lines: bufio.NewReaderSize(said, maxReportBytes),
		ended: make(chan error, 1)}
	p.cmd = &exec.Cmd{Path: program, Args: []string{childName, k.Name, string(where)}, Dir: "/",
		Env: environment(), Stdin: lifeEnd, Stdout: saying, Stderr: &p.words, SysProcAttr: attributes(k)}
	err = p.launch()
	err = errors.Join(err, lifeEnd.Close(), saying.Close())
	if err != nil {
		return nil, errors.Join(err, life.Close(), said.Close())
	}
	h, err := p.listen(ctx)
	if err != nil {
		return nil, errors.Join(err, p.end())
	}
	h.Kind = k
	h.process = p
	if h.PID != 0 {
		h.PID = p.cmd.Process.Pid // its own is another one in a PID namespace
	}
	return h, nil
}

// attributes say how the child of a kind is started.
func attributes(k Kind) *syscall.SysProcAttr {
	// A group of its own: what a terminal sends to ours is no reason to end without tidying up.
	attr := &syscall.SysProcAttr{Setpgid: true, Cloneflags: k.namespaces, Pdeathsig: unix.SIGKILL}
	if k.outlives {
		attr.Pdeathsig = 0 // it sees our end at its standard input, and undoes what it made
	}
	if k.namespaces&unix.CLONE_NEWUSER != 0 {
		all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
		attr.UidMappings, attr.GidMappings = all, all
	}
	return attr
}

// launch starts the child and has it waited for.
func (p *process) launch() error {
	started := make(chan error)
	go func() {
		// The kernel ends the child with the thread that started it, so that thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.ended <- p.cmd.Wait()
		}
	}()
	return <-started
}

// listen takes a report of the child.
func (p *process) listen(ctx context.Context) (*Hold, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { p.said.SetReadDeadline(time.Now()) })
	defer stop()
	var r report
	line, err := p.lines.ReadSlice('\n')
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer from the child: %w", ctx.Err())
	}
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	switch {
	case err != nil:
		return nil, err // the child's end says why
	case r.Unavailable:
		return nil, fmt.Errorf("%s: %w", r.Error, ErrUnavailable)
	case r.Error != "":
		return nil, errors.New(r.Error)
	}
	return &r.Hold, nil
}

// Release ends the holder and waits until it is gone, with all that it made.
func (h *Hold) Release() error {
	if err := h.process.end(); err != nil {
		return fmt.Errorf("release %s: %w", h.Kind.Name, err)
	}
	return nil
}

// end ends the child, which undoes what it made.
func (p *process) end() error {
	err := errors.Join(p.life.Close(), p.said.Close())
	var ended error
	select {
	case ended = <-p.ended:
	case <-time.After(patience):
		ended = errors.Join(errors.New("does not end"), p.cmd.Process.Kill(), <-p.ended)
	}
	if ended != nil {
		ended = fmt.Errorf("%w: %s", ended, strings.TrimSpace(p.words.String()))
	}
	return errors.Join(err, ended)
}

// environment is what a child knows of ours: where programs are. The race detector would wait for a
// second before a program ends.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
}
