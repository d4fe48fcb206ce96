// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package faultfs makes storage fail on purpose, and what lives on it with it: a FUSE file system
// whose files follow a small language of faults (language.go), disks made of such files with ext4,
// xfs or btrfs on them (Disk), and named worlds in which something is wrong, with what is true of
// each as data (Scenarios).
//
// The file system is served by a child process: whoever serves one must never touch what hangs on
// it, and a child that is stopped is one more way of hanging. A program that makes any begins with
//
//	if faultfs.IsChild(os.Args) { faultfs.Serve() }
//
// and lives in a mount namespace of its own (hold.Apart), so that nobody else on the machine sees
// these mounts. What hangs holds up sync(2) of everybody nevertheless, so nothing hangs for long.
//
// All goes away with Close, whatever state it is in, and with the program when that is killed: the
// kernel then ends the child, the end of the child ends all requests that wait, and the namespace
// takes the mounts with it.
package faultfs

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
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
)

// ErrUnavailable: this machine or this user cannot make it, for errors.Is.
var ErrUnavailable = errors.New("cannot be made here")

const (
	// patience is how long anything here may take that is certain to come.
	patience = 5 * time.Minute
	// maxReplyBytes bounds a line from the child: a rule, numbers, an error.
	maxReplyBytes = 256 << 10
)

// Stored is a file of the file system.
type Stored struct {
	Name  string `json:"name"`
	Store string `json:"store"` // the file that keeps its bytes
	// Cached: the kernel caches it, as that of any file system. Without, each read and write of it
	// is a request.
	Cached bool `json:"cached"`
}

// FS is a mounted file system, seen by the process that mounted it.
type FS struct {
	Dir string

	cmd    *exec.Cmd
	orders *os.File // its end is the child's
	said   *os.File
	lines  *bufio.Reader
	words  bytes.Buffer // what the child wrote to its standard error
	ended  chan error   // how the child ended
	frozen bool
	killed bool       // on purpose
	mu     sync.Mutex // one order at a time
}

// Mount shows files at dir, an existing directory. It is ErrUnavailable outside a mount namespace
// of our own, and where this kernel or user cannot mount it.
func Mount(dir string, stored ...Stored) (*FS, error) {
	return start(setup{Dir: dir, Files: stored})
}

func start(s setup) (*FS, error) {
	f := &FS{Dir: s.Dir, ended: make(chan error, 1)}
	if err := f.start(s); err != nil {
		return nil, fmt.Errorf("serve %s: %w", s.Dir, err)
	}
	return f, nil
}

func (f *FS) start(s setup) error {
	if err := apart(); err != nil {
		return err
	}
	arg, err := json.Marshal(s)
	if err != nil {
		return err
	}
	ordered, orders, err := os.Pipe()
	if err != nil {
		return err
	}
	said, saying, err := os.Pipe()
	if err != nil {
		return errors.Join(err, ordered.Close(), orders.Close())
	}
	f.orders, f.said, f.lines = orders, said, bufio.NewReaderSize(said, maxReplyBytes)
	f.cmd = &exec.Cmd{Path: "/proc/self/exe", Args: []string{childName, string(arg)}, Dir: "/",
		// The race detector would wait for a second before a program ends.
		Env:   []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"},
		Stdin: ordered, Stdout: saying, Stderr: &f.words,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}}
	if !s.Autofs {
		err = f.connect()
	}
	if err == nil {
		err = launch(f.cmd, f.ended)
	}
	err = errors.Join(err, ordered.Close(), saying.Close())
	for _, dev := range f.cmd.ExtraFiles {
		err = errors.Join(err, dev.Close()) // whoever has it open keeps all waiting that wait
	}
	if err != nil {
		return errors.Join(err, orders.Close(), said.Close(), takeDown(s.Dir))
	}
	if _, err := f.listen(); err != nil {
		return errors.Join(err, f.end())
	}
	return nil
}

// connect mounts the file system, and hands the child the other end. The child gets a namespace
// without any mount. In ours it could be the last one, and then it would unmount our disks at its
// end, before the kernel closes its end of the connection: it would wait for itself, for ever.
func (f *FS) connect() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		err = errors.Join(err, ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	f.cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "/dev/fuse")}
	f.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d", fd, maxWriteBytes)
	err = unix.Mount("faultfs", f.Dir, "fuse.faultfs", unix.MS_NOSUID|unix.MS_NODEV, data)
	if lacking(err) {
		err = errors.Join(err, ErrUnavailable)
	}
	return err
}

// launch starts a program and has it waited for: ended gets how it ended.
func launch(cmd *exec.Cmd, ended chan<- error) error {
	started := make(chan error)
	go func() {
		// The kernel ends the child with the thread that started it, so that thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	return <-started
}

// apart tells whether what this process mounts is passed on to nobody.
func apart() error {
	mounts, err := linux.Open("").Mounts(context.Background(), 0)
	if err != nil {
		return err
	}
	if passedOn(mounts) {
		return fmt.Errorf("mounts are shared with others: %w", ErrUnavailable)
	}
	return nil
}

// passedOn tells whether what is mounted below the root reaches others.
func passedOn(mounts []linux.Mount) bool {
	return slices.ContainsFunc(mounts, func(m linux.Mount) bool {
		return m.Point == "/" && m.Shared != 0
	})
}

// listen takes the child's next line.
func (f *FS) listen() (reply, error) {
	var r reply
	if err := f.said.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return r, err
	}
	line, err := f.lines.ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	switch {
	case err != nil:
		return r, fmt.Errorf("no answer from the child: %w", err)
	case r.Language:
		return r, fmt.Errorf("%w: %s", ErrLanguage, r.Error)
	case r.Unavailable:
		return r, fmt.Errorf("%s: %w", r.Error, ErrUnavailable)
	case r.Error != "":
		return r, errors.New(r.Error)
	}
	return r, nil
}

func (f *FS) order(o order) (reply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen {
		return reply{}, errors.New("the child is frozen")
	}
	if err := json.NewEncoder(f.orders).Encode(o); err != nil {
		return reply{}, err
	}
	return f.listen()
}

// Fault is a rule that is set.
type Fault struct {
	fs   *FS
	file string
	id   int
}

// Set sets a rule for a file. The error is ErrLanguage where the text is none.
func (f *FS) Set(file, text string) (*Fault, error) {
	r, err := f.order(order{Verb: "set", File: file, Text: text})
	if err != nil {
		return nil, fmt.Errorf("set a fault of %s: %w", file, err)
	}
	return &Fault{fs: f, file: file, id: r.ID}, nil
}

// Count tells what became of the rule so far.
func (t *Fault) Count() (Count, error) {
	r, err := t.fs.order(order{Verb: "count", File: t.file, ID: t.id})
	return r.Count, err
}

// Wait waits until the counts are as wanted.
func (t *Fault) Wait(so func(Count) bool) (c Count, err error) {
	err = until(func() (bool, error) {
		c, err = t.Count()
		return so(c), err
	})
	if err != nil {
		err = fmt.Errorf("wait for %q, which is at %+v: %w", c.Rule, c, err)
	}
	return c, err
}

// Hit waits until the rule has done something to a request.
func (t *Fault) Hit() error {
	_, err := t.Wait(func(c Count) bool { return c.Hit > 0 })
	return err
}

// Waiting waits until a request waits by the rule.
func (t *Fault) Waiting() error {
	_, err := t.Wait(func(c Count) bool { return c.Waiting > 0 })
	return err
}

// Lift takes the rule away. What waits by it goes on.
func (t *Fault) Lift() error { return t.lift(0) }

// Fail takes the rule away. What waits by it fails.
func (t *Fault) Fail(with unix.Errno) error { return t.lift(with) }

func (t *Fault) lift(then unix.Errno) error {
	_, err := t.fs.order(order{Verb: "lift", File: t.file, ID: t.id, Then: then})
	return err
}

// Clear takes all rules of a file away, or of all files for "". What waits goes on.
func (f *FS) Clear(file string) error {
	_, err := f.order(order{Verb: "lift", File: file})
	return err
}

// PID is the process that serves.
func (f *FS) PID() int { return f.cmd.Process.Pid }

// Freeze stops the child, as SIGSTOP does: nothing is answered any more. It waits until that is so.
func (f *FS) Freeze() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := unix.Kill(f.PID(), unix.SIGSTOP); err != nil {
		return err
	}
	f.frozen = true
	return until(func() (bool, error) { return stopped(f.PID()) })
}

// Thaw lets the child go on.
func (f *FS) Thaw() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = false
	return unix.Kill(f.PID(), unix.SIGCONT)
}

// Kill ends the child at once, as a daemon that crashed: all that waits for it fails, and the mount
// stays without anybody behind it.
func (f *FS) Kill() error {
	f.killed = true
	return f.cmd.Process.Kill()
}

// rescue is what f is to be given up with after a while: what does not come to its end with a
// server that answers, does without one. The server's end is an error then.
func (f *FS) rescue() *time.Timer {
	return time.AfterFunc(patience, func() { f.cmd.Process.Kill() })
}

// Close ends it and waits until it is gone. What is mounted from its files is unmounted before;
// that a file is open for longer than a moment is an error.
func (f *FS) Close() error {
	defer f.rescue().Stop()
	return errors.Join(f.relieve(), takeDown(f.Dir), f.end())
}

// end ends the child, and takes down what it could not.
func (f *FS) end() error {
	err := f.orders.Close()
	var ended error
	select {
	case ended = <-f.ended:
	case <-time.After(patience):
		ended = errors.Join(errors.New("does not end"), f.cmd.Process.Kill(), <-f.ended)
	}
	if ended != nil && !f.killed {
		err = errors.Join(err, fmt.Errorf("the child that served %s: %w: %s", f.Dir, ended,
			strings.TrimSpace(f.words.String())))
	}
	return errors.Join(err, f.said.Close(), takeDown(f.Dir))
}

// relieve lets all go on that waits, also where the child is frozen.
func (f *FS) relieve() error {
	if f.killed {
		return nil
	}
	if f.frozen {
		if err := f.Thaw(); err != nil {
			return err
		}
	}
	return f.Clear("")
}
