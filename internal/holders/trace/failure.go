// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
)

// Failure is a umount that failed since the mount was busy, with who held it.
type Failure struct {
	At      time.Time       `json:"at"`
	Mount   Mount           `json:"mount"`
	Verdict holders.Verdict `json:"verdict"`
	Umount  Umount          `json:"umount"`
	// References is what the kernel counted, -1 where the engine does not see it; Expected what it
	// counts while a mount that nobody holds is unmounted. Explained are those of Holders.
	References  int64 `json:"references"`
	Expected    int64 `json:"expected"`
	Explained   int64 `json:"explained"`
	Unexplained int64 `json:"unexplained"`
	// Holders are those who certainly held it first, then those who may have.
	Holders []holders.Holder `json:"holders"`
	// Scanned: those who hold it for good were looked for as well, at once.
	Scanned bool `json:"scanned"`
	// Engine is what was watched with, Coverage what that sees, Missing what it does not.
	Engine   string   `json:"engine"`
	Coverage []string `json:"coverage"`
	Missing  []string `json:"missing"`
	// Lost is what could not be told of since the watching began.
	Lost Lost `json:"lost"`
	// ObserverNS is how much longer a reference of the mount lasts for being watched, in ns, as
	// measured when the engine was tried.
	ObserverNS int64 `json:"observer_ns"`
	// Notes say what else is good to know.
	Notes []string `json:"notes"`
}

// Mount is the mount that was to be unmounted.
type Mount struct {
	// ID is its number, 0 if not known. UniqueID is never given again, 0 before Linux 6.8.
	ID       int    `json:"id"`
	UniqueID uint64 `json:"unique_id"`
	Path     string `json:"path"`
	Source   string `json:"source"`
	Type     string `json:"fstype"`
	// Device is MAJOR:MINOR of the file system.
	Device string `json:"device"`
	// Namespace is the inode of the mount namespace, 0 if not known.
	Namespace uint64 `json:"namespace"`
}

// Umount is the call that failed.
type Umount struct {
	Process holders.Process `json:"process"`
	Path    string          `json:"path"` // as it was named
	Flags   []string        `json:"flags"`
	// Errno is what it returned; ErrnoRead is false where that was concluded from the counter.
	Errno     string `json:"errno"`
	ErrnoRead bool   `json:"errno_read"`
	// CheckNS is how long the time lasted in which the kernel counted, in ns.
	CheckNS   int64           `json:"check_ns"`
	UserStack []holders.Frame `json:"user_stack"`
}

// Status gives the exit statuses that apply to a failure: somebody is named, or something stays
// unexplained.
func (f Failure) Status() []int {
	var all []int
	if len(f.Holders) > 0 {
		all = append(all, finding.StatusFound)
	}
	if f.Unexplained > 0 || len(f.Holders) == 0 {
		all = append(all, finding.StatusCannotTell)
	}
	return finding.OrderStatus(all...)
}
