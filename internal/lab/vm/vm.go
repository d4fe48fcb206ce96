// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package vm runs programs of ours in other kernels than that of the machine: in guests of QEMU with
// kernels from Debian's packages, which are unpacked and never installed.
//
// A guest has no disk. Its file system is a cpio archive that is made for it (Image), with the programs
// that are to run, the modules of the kernel, and a first process of ours (package init below this one).
// What is to be run is a list of checks; the guest answers with one line of JSON for each of them.
//
// For tests and the comparison: it downloads packages, builds programs and starts QEMU.
package vm

import (
	"errors"
	"time"
)

// ErrUnavailable: this machine has not what a guest needs, or cannot get it. For errors.Is.
var ErrUnavailable = errors.New("no guest can be run here")

// Check is a command that runs in a guest. It passes if it ends with 0.
type Check struct {
	Name    string   `json:"name"`
	Command []string `json:"command"` // a path of the guest, and arguments
	Env     []string `json:"env"`     // besides PATH, HOME and TMPDIR
	// Timeout in ns: it is asked to show where it is then (SIGQUIT), and killed.
	Timeout time.Duration `json:"timeout"`
}

// Result is what became of a check.
type Result struct {
	Name string `json:"name"`
	// OK: it ended with 0. Exit is what it ended with, -1 if a signal or the guest ended it.
	OK   bool `json:"ok"`
	Exit int  `json:"exit"`
	// Error says why it did not run or how it ended, "" if it ended with 0.
	Error string `json:"error"`
	// Stdout and Stderr are what it wrote, the last MaxOutput bytes of each.
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
	// Took is how long it ran, in ns of the guest's clock.
	Took time.Duration `json:"took"`
}

// MaxOutput is how much is kept of what a check writes to stdout, and to stderr, in bytes.
const MaxOutput = 1 << 20

// Plan is what the first process of a guest reads from PlanPath.
type Plan struct {
	// Modules are files of the kernel's modules in the order in which they are loaded.
	Modules []string `json:"modules"`
	Checks  []Check  `json:"checks"`
}

// Where the first process finds its plan, and the serial line to which it writes what came of it.
const (
	PlanPath   = "/lab/plan.json"
	ReportPath = "/dev/ttyS1"
)

// Line is one line of a guest's report: one of its fields is set.
type Line struct {
	Booted *Booted `json:"booted,omitempty"` // the first line
	Result *Result `json:"result,omitempty"`
	Failed string  `json:"failed,omitempty"` // why the guest gives up
	Ended  bool    `json:"ended,omitempty"`  // the last line
}

// Booted is what a guest says when its modules are loaded.
type Booted struct {
	Kernel string        `json:"kernel"` // as in uname -r
	Took   time.Duration `json:"took"`   // since the kernel began, in ns of the guest's clock
}

// Report is what came of a guest.
type Report struct {
	Booted  Booted
	Results []Result // one for each check, in their order
	Console []byte   // the end of what the kernel said
	CPU     time.Duration
	Took    time.Duration
}

// Result gives what became of a check, and false if the guest said nothing of it.
func (r *Report) Result(name string) (Result, bool) {
	for _, x := range r.Results {
		if x.Name == name {
			return x, true
		}
	}
	return Result{}, false
}
