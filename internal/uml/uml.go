// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package uml runs User Mode Linux: a kernel of Linux that is a process of this host (Debian's package
// user-mode-linux, linux.uml). It has drivers for ext4, XFS and Btrfs that are not the host's, so a disk that
// one does not trust can be mounted in it.
//
// [Run] confines the process: it is nobody (or the user who called), without capabilities, in namespaces
// of its own, without a network, and of the host's files it sees only those that it is given. A kernel that
// the disk took over has these files and nothing else. [RunUnconfined] has the rights of its caller, and
// may have the host's whole root as its own: it is for guests that the laboratory made.
//
// The guest's first process is a program of ours that is given to it, or what the disk has. What it has to
// say it says with a [Reporter], one line of JSON each, on a line of its own that the kernel's messages do not go to.
// Every guest is a session of its own, is killed as a whole, and does not outlive this process, even if that is killed:
// but for one that is not confined and has not the rights of root.
//
// A program that calls Run has to begin with
//
//	if uml.IsStage(os.Args) { os.Exit(uml.Stage()) }
package uml

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Errors of Run, for errors.Is. Others are those of the machine, of the guest, and of ctx.
var (
	// ErrUnavailable: User Mode Linux is not installed here.
	ErrUnavailable = errors.New("no User Mode Linux is installed here")
	// ErrConfine: this host does not let the guest be shut in, so it is not run.
	ErrConfine = errors.New("the guest cannot be confined")
	// ErrReport: the guest said something that is no line of JSON, or too much.
	ErrReport = errors.New("the guest said what it should not")
)

const (
	// Program is what runs if Options name none.
	Program = "linux.uml"
	// DefaultMemoryMiB is a guest's memory. A replay of a large journal fits.
	DefaultMemoryMiB = 256
	// DefaultTimeout is how long a guest may run.
	DefaultTimeout = 5 * time.Minute

	maxMemoryMiB = 8192
	// maxLine and maxLines bound what a guest says, maxConsole what is kept of its kernel's messages.
	maxLine, maxLines, maxConsole = 1 << 20, 10000, 256 << 10
	// maxFiles and maxDisks bound what a guest is given.
	maxFiles, maxDisks = 256, 16
)

// Disk is a disk of a guest, as /dev/ubda, /dev/ubdb and so on.
type Disk struct {
	// Path is a regular file of the host. One that begins as a copy-on-write file of User Mode Linux does
	// ("OOOM") is not opened as such, but is no disk for a confined guest either.
	Path     string
	ReadOnly bool
}

// File is a file of the guest's root. It cannot be written to there.
type File struct {
	// Name is its place below the root, as "init" or "lib/modules/x.ko".
	Name string
	// Path is the file of the host that is copied; with "" the file holds Content.
	Path    string
	Content []byte
}

// Options say what is run. Of the zero value only Init is missing.
type Options struct {
	// Program is the kernel: a path, or a name that is looked for. "" is Program.
	Program string
	// MemoryMiB is the guest's memory, 0 means DefaultMemoryMiB. The host gives it as it is used.
	MemoryMiB int
	// Timeout ends the guest, 0 means DefaultTimeout.
	Timeout time.Duration
	// Init is the first process, a path in the guest, and Args its arguments. The kernel adds some of
	// its own behind them. With "" the kernel looks for one.
	Init string
	Args []string
	// Env is more of the first process's environment, as NAME=VALUE.
	Env []string
	// Files are all that the guest's root holds, beside the empty directories dev, mnt, proc, run, sys
	// and tmp. The root is hostfs, read-only. RunUnconfined takes none.
	Files []File
	// Root is for RunUnconfined: the directory of the host that is the guest's root by hostfs,
	// read-only; with "" Append has to say what the root is.
	Root  string
	Disks []Disk
	// Append are more words of the kernel's command line.
	Append []string
}

// Result is what came of a guest. There is one with an error as well, of what there was until then.
type Result struct {
	// Lines are what it said, in their order.
	Lines []json.RawMessage
	// Console is the end of what its kernel said.
	Console []byte
	// Took is how long it ran, CPU what it and its processes used.
	Took, CPU time.Duration
}

// Find gives the path of User Mode Linux, or ErrUnavailable. program is as in Options.
func Find(program string) (string, error) {
	if program == "" {
		program = Program
	}
	p, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return filepath.Abs(p)
}

// Run runs a guest that is confined, until it turns itself off. It blocks, at most for the timeout.
func Run(ctx context.Context, o Options) (*Result, error) {
	if o.Root != "" {
		return &Result{}, errors.New("a confined guest has no root of the host")
	}
	if err := o.check(); err != nil {
		return &Result{}, err
	}
	program, err := Find(o.Program)
	if err != nil {
		return &Result{}, err
	}
	return runStage(ctx, &o, program)
}

// RunUnconfined runs a guest with the rights of this process, until it turns itself off. The guest can
// do to the host what this process can: it is for guests that one made oneself.
func RunUnconfined(ctx context.Context, o Options) (*Result, error) {
	if len(o.Files) > 0 {
		return &Result{}, errors.New("a guest that is not confined has the files of its root")
	}
	if err := o.check(); err != nil {
		return &Result{}, err
	}
	program, err := Find(o.Program)
	if err != nil {
		return &Result{}, err
	}
	return runOpen(ctx, &o, program)
}

// check refuses what would make another command line than is meant.
func (o *Options) check() error {
	if o.MemoryMiB < 0 || o.MemoryMiB > maxMemoryMiB || len(o.Files) > maxFiles || len(o.Disks) > maxDisks {
		return fmt.Errorf("a guest with %d MiB, %d files and %d disks: at most %d, %d and %d", o.MemoryMiB,
			len(o.Files), len(o.Disks), maxMemoryMiB, maxFiles, maxDisks)
	}
	words := append(append([]string{o.Init}, o.Append...), o.Env...)
	for _, d := range o.Disks {
		// A comma separates the disk from what would lie below it.
		if strings.Contains(d.Path, ",") && o.Root != "" {
			return fmt.Errorf("the name of the disk %q has a comma", d.Path)
		}
	}
	for _, w := range append(words, o.Args...) {
		if strings.ContainsAny(w, " \t\n\"\x00") {
			return fmt.Errorf("the kernel's command line cannot have %q", w)
		}
	}
	for _, f := range o.Files {
		if !path.IsAbs("/"+f.Name) || path.Clean("/"+f.Name) != "/"+f.Name || f.Name == "" {
			return fmt.Errorf("the name of the file %q leads elsewhere", f.Name)
		}
	}
	return nil
}

func (o *Options) memory() int {
	if o.MemoryMiB == 0 {
		return DefaultMemoryMiB
	}
	return o.MemoryMiB
}

func (o *Options) timeout() time.Duration {
	if o.Timeout == 0 {
		return DefaultTimeout
	}
	return o.Timeout
}

// arguments is the kernel's command line. root is the directory that is hostfs, "" for none; disks are
// the files of the disks, as the kernel sees them.
func (o *Options) arguments(root string, disks []string) []string {
	line := []string{"mem=" + strconv.Itoa(o.memory()) + "M", "noreboot", "panic=-1",
		// Nothing is read from here; the kernel's words go out, and the report on a line of its own.
		"con=null", "con0=null,fd:1", "ssl=null", "ssl0=null,fd:" + strconv.Itoa(reportFD)}
	if root != "" {
		line = append(line, "root=none", "rootfstype=hostfs", "rootflags="+root, "ro")
	}
	for i, d := range disks {
		// d: it is data, also if it begins like a copy-on-write file that names another; c: not locked
		// here; t: nothing is punched out of it.
		flags := "dct"
		if o.Disks[i].ReadOnly {
			flags += "r"
		}
		line = append(line, "ubd"+strconv.Itoa(i)+flags+"="+d)
	}
	line = append(line, o.Append...)
	if o.Init != "" {
		line = append(line, "init="+o.Init)
	}
	// What the kernel does not know is for the first process: NAME=VALUE before "--" its environment.
	line = append(line, o.Env...)
	if len(o.Args) > 0 {
		line = append(append(line, "--"), o.Args...)
	}
	return line
}

// environ is that of the kernel's own process: TMPDIR is where it keeps the guest's memory, HOME where it
// makes a socket.
func environ(memory, home string) []string {
	env := []string{"TMPDIR=" + memory, "HOME=" + home, "PATH=/usr/bin:/bin"}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "GORACE=") || strings.HasPrefix(e, "GOCOVERDIR=") {
			env = append(env, e)
		}
	}
	return env
}
