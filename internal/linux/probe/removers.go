// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Remover is a process that took a name away, or gave a file another one.
type Remover struct {
	// Start is when the process started, of CLOCK_BOOTTIME, in ns; Parent the process above it.
	Start            int64
	Parent           int
	Comm, ParentComm string
	// Command is the command line, of which 256 bytes are known; Cut: there may be more.
	Command []string
	Cut     bool
	// Groups are the names of the control group, the innermost first: three at most.
	Groups []string
}

// Removers knows the processes of this host that took names away lately, also those that have ended.
type Removers struct {
	o    removersObjects
	shut []io.Closer
}

// initPIDs is the inode of the first namespace of processes (include/uapi/linux/nsfs.h, PID_NS_INIT_INO).
const initPIDs = "pid:[4026531836]"

// OpenRemovers begins to write down who takes names away. The error matches ErrRefused where the kernel does not let
// it, and in a namespace of processes of its own, whose numbers the program does not know.
func OpenRemovers() (*Removers, error) {
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != initPIDs {
		return nil, fmt.Errorf("%w: processes have numbers of their own here (%s)", ErrRefused, ns)
	}
	spec, err := loadRemovers()
	if err != nil {
		return nil, err
	}
	resize(spec, uint32(os.Getpagesize())) // nothing is told by events
	r := &Removers{}
	if err := load("removers", spec, &r.o); err != nil {
		return nil, err
	}
	r.shut = append(r.shut, &r.o)
	if err := fill(r.o.Classes); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: r.o.Removes})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: attach to sys_enter: %w", ErrRefused, err), r.Close())
	}
	r.shut = append(r.shut, l)
	return r, nil
}

// Of gives what is known of a process. It is not ok where that took no name away by a system call of its own since
// OpenRemovers, or so many others did since that it was forgotten.
func (r *Removers) Of(pid int) (who Remover, ok bool, err error) {
	var v removersRemover
	err = r.o.Removers.Lookup(uint32(pid), &v)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return Remover{}, false, nil
	case err != nil:
		return Remover{}, false, fmt.Errorf("who process %d was: %w", pid, err)
	}
	who = Remover{Start: int64(v.Start), Parent: int(v.Ppid), Comm: text(v.Comm[:]), ParentComm: text(v.Pcomm[:])}
	if n := min(int(v.Ncommand), len(v.Command)); n > 0 {
		who.Command = strings.Split(strings.TrimSuffix(string(v.Command[:n]), "\x00"), "\x00")
		who.Cut = n == len(v.Command)
	}
	for _, g := range v.Group {
		if name := text(g[:]); name != "" {
			who.Groups = append(who.Groups, name)
		}
	}
	return who, true, nil
}

// Close ends it.
func (r *Removers) Close() error {
	var errs []error
	for _, c := range r.shut {
		errs = append(errs, c.Close())
	}
	r.shut = nil
	return errors.Join(errs...)
}
