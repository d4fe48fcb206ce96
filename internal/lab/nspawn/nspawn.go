// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package nspawn boots the systemd of this machine in systemd-nspawn, again and again as a machine does
// that is restarted, and tells what became of each boot. It is the judge of what shisa says about units
// and timers.
//
// A guest is a [World], which is some files, above a small [Root] of this machine's own programs and
// units. Nothing of the machine's configuration is in it. It has this machine's clock; stamps and calendars are
// made relative to it.
//
//	one boot:  our child: own session, PID and mount namespace, cgroup
//	             overlay: what the guest changed / the world's files / the root
//	             systemd-nspawn     133: it asked for a reboot; 0: it went off
//	               systemd, as the first process
//
// Each boot is killed as a whole when it has run as long as was asked for, or when the process ends that
// started it. For tests and the comparison.
package nspawn

import (
	"errors"
	"io/fs"
	"time"
)

// ErrUnavailable: this machine has not what a guest needs. For errors.Is.
var ErrUnavailable = errors.New("systemd cannot be booted here")

// World is what a guest has besides a root. The zero value is a system that starts and does nothing.
type World struct {
	// Files are by their absolute names.
	Files map[string]File
	// Enable are the units that "systemctl enable" is called for before the first boot.
	Enable []string
	// MachineID is that of the guest: "" for one of its own, "uninitialized" for a first boot.
	MachineID string
	// Arguments are those of the kernel, as "systemd.mask=foo.service".
	Arguments []string
	// ReadOnly are directories that cannot be written to.
	ReadOnly []string
	// Forgets: what a boot changed is gone in the next one, but for /var/log.
	Forgets bool
	// OneBin: /usr/sbin is a link to /usr/bin, as on Arch.
	OneBin bool
	// Logind: D-Bus and logind run, as on most machines. It takes more time.
	Logind bool
}

// File is one of a world. It is a link if Link is set, a directory if Dir is.
type File struct {
	Text  string
	Link  string
	Dir   bool
	Mode  fs.FileMode // 0: 0644, or 0755 of directories
	Mtime time.Time   // zero: now
}

// Limits say how long a world runs. The zero value is none: each must be set.
type Limits struct {
	// Boots is how many boots there are at most.
	Boots int
	// Hold is how long a boot runs after all was started before it is believed to stay; First is the same of
	// the first one, 0 for no other.
	Hold, First time.Duration
	// Wall bounds one boot.
	Wall time.Duration
	// Cut are boots, from 0, whose power fails so long after all was started.
	Cut map[int]time.Duration
	// Shutdown has the last boot shut down in order when it has been held, not killed.
	Shutdown bool
}

// How a boot ended.
const (
	Rebooted = "reboot"   // it asked for it
	Off      = "poweroff" // as well
	Stayed   = "stayed"   // it ran until it was stopped
	Cut      = "cut"      // its power failed
)

// Boot is one boot of a world.
type Boot struct {
	Began, Ended time.Time
	// Up: all was started. UpAt is when.
	Up   bool
	UpAt time.Time
	// End is Rebooted, Off, Stayed or Cut.
	End string
	// Console is the end of what systemd wrote to it.
	Console string
}

// Outcome is what became of a world.
type Outcome struct {
	Boots []Boot
	// CPU is the time that all boots used; 0 where it is not counted.
	CPU time.Duration
	// layers have the guest's changes, until the outcome is closed.
	layers *layers
}

// Reboots is how many boots asked for another one.
func (o *Outcome) Reboots() (n int) {
	for i := range o.Boots {
		if o.Boots[i].End == Rebooted {
			n++
		}
	}
	return n
}

// Stays tells whether the last boot did not ask for its end.
func (o *Outcome) Stays() bool {
	return len(o.Boots) > 0 && o.Boots[len(o.Boots)-1].End == Stayed
}
