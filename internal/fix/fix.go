// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package fix keeps units of systemd from being started in a machine that is off, or in a tree of files: it
// masks them, or takes away a link that enables one. What comes out is a plan.
//
// Our own code does not write guests' file systems. A real kernel does it: in User Mode Linux, confined, or
// with the driver of this host. It gets the guest's volume with a layer in memory over it, mounts it, which
// replays the journal, makes the change, and unmounts it. What then differs from the volume, block by block,
// is the plan of the image:
//
//	image ── chain ── disk ── volume ──read──┐
//	                                    layer in memory <──> kernel: mount, change, unmount
//	                                         │
//	image <── plan <── blocks of the disk <──┘ what differs
//
// In a raw image the blocks are overwritten in place; of a qcow2 image package repair says what is written
// in place and what gets new clusters. Undoing gives back all of it, byte for byte.
package fix

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Errors, for errors.Is.
var (
	// ErrRefused: the change is not made, and the text says why. Nothing was written.
	ErrRefused = errors.New("not changed")
	// ErrNothing: it is already as wanted.
	ErrNothing = errors.New("nothing to change")
	// ErrEngine: no kernel can be had for it here, or it failed.
	ErrEngine = errors.New("no kernel made the change")
)

// Kind is a kind of change.
type Kind string

// The kinds.
const (
	// Mask lets a name in /etc/systemd/system lead to /dev/null, which no other file of that unit
	// overrides. A file that is there is kept beside it, see Aside.
	Mask Kind = "mask"
	// Unlink takes away a symbolic link that enables a unit.
	Unlink Kind = "unlink"
)

// Change is one change of a name in the machine.
type Change struct {
	Kind Kind `json:"kind"`
	// Path is absolute in the machine.
	Path string `json:"path"`
	// Link is what the link that is taken away says; one that says something else stays. "" is any.
	Link string `json:"link"`
}

const (
	// UnitDir is where the administrator's units are.
	UnitDir = "/etc/systemd/system"
	// masked is what a masked unit's name leads to.
	masked = "/dev/null"
	// Aside is behind the name of a file that a mask took the place of. systemd reads no such file.
	Aside = ".shisa-aside"
	// maxChanges bounds the changes of one plan.
	maxChanges = 32
	// maxUnitName is the longest name that systemd takes (UNIT_NAME_MAX), with its zero.
	maxUnitName = 255
)

// unitTypes are those that can be masked for good. A slice or scope is not started by what loops.
var unitTypes = [...]string{".service", ".timer", ".target", ".path", ".socket", ".mount", ".automount", ".swap"}

// ValidUnit reports whether a name is one that systemd has for a unit, as systemd.unit(5) says: letters,
// digits, and :-_.\ with at most one @, and a type.
func ValidUnit(name string) bool {
	ext := path.Ext(name)
	stem := strings.TrimSuffix(name, ext)
	if !slices.Contains(unitTypes[:], ext) || stem == "" || len(name) > maxUnitName || stem[0] == '@' {
		return false
	}
	return !strings.ContainsFunc(stem, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') &&
			!strings.ContainsRune(`:-_.\@`, r)
	}) && strings.Count(stem, "@") <= 1
}

// MaskUnit is the change that masks a unit.
func MaskUnit(unit string) Change { return Change{Kind: Mask, Path: UnitDir + "/" + unit} }

// Check refuses changes that are no changes of units: the error is ErrRefused.
func Check(changes []Change) error {
	if len(changes) == 0 || len(changes) > maxChanges {
		return fmt.Errorf("%w: %d changes, want 1 to %d", ErrRefused, len(changes), maxChanges)
	}
	for i, c := range changes {
		if err := c.check(); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		if slices.ContainsFunc(changes[:i], func(o Change) bool { return o.Path == c.Path }) {
			return fmt.Errorf("%w: %s twice", ErrRefused, c.Path)
		}
	}
	return nil
}

func (c *Change) check() error {
	dir, name := path.Split(c.Path)
	dir = strings.TrimSuffix(dir, "/")
	switch {
	case path.Clean(c.Path) != c.Path || !ValidUnit(name):
		return fmt.Errorf("%q is no unit of the machine", c.Path)
	case c.Kind == Mask && slices.Contains(Vital(), name):
		return fmt.Errorf("%s is not masked: no machine starts without it", name)
	case c.Kind == Mask && dir == UnitDir:
		return nil
	case c.Kind == Unlink && path.Dir(dir) == UnitDir && slices.Contains([]string{".wants", ".requires",
		".upholds"}, path.Ext(dir)) && ValidUnit(strings.TrimSuffix(path.Base(dir), path.Ext(dir))):
		return nil
	}
	return fmt.Errorf("%q is no place where units are masked or enabled (%s)", c.Path, c.Kind)
}

// Vital are the units without which no machine starts, or is stopped in order.
func Vital() []string {
	return []string{"default.target", "sysinit.target", "basic.target", "multi-user.target", "graphical.target",
		"local-fs.target", "local-fs-pre.target", "initrd.target", "sockets.target", "timers.target", "paths.target",
		"shutdown.target", "reboot.target", "poweroff.target", "final.target", "umount.target", "-.mount",
		"systemd-journald.service", "dbus.service", "dbus.socket", "dbus-broker.service"}
}

// String says what is done.
func (c Change) String() string {
	if c.Kind == Mask {
		return "mask " + path.Base(c.Path)
	}
	return "take away " + c.Path
}

// words says what several changes do.
func words(changes []Change) string {
	all := make([]string, len(changes))
	for i, c := range changes {
		all[i] = c.String()
	}
	return strings.Join(all, " and ")
}
