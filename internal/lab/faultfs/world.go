// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Scenario is a world that can be made.
type Scenario struct {
	Name string
	// What is wrong in it, in one sentence.
	What string

	make func(ctx context.Context, w *World) error
}

// World is a running scenario, with what is true of it.
type World struct {
	Scenario
	Dir string
	// Disks are the disks in it; Hurt is the one that something is wrong with, nil if none is.
	Disks []*Disk
	Hurt  *Disk
	// Mount is the mount point that something is wrong with, "" if none is.
	Mount string
	// Hangs: what touches Mount waits for as long as the world is.
	Hangs bool
	// File is the path of the file that is hurt, Inode its number; "" and 0 if it is no matter of one.
	File  string
	Inode uint64
	// Says are pieces of what the kernel wrote about it; all of them came.
	Says []string
	// Where are the bytes of the disk that a fault is about, Fault is that, nil where none is set.
	Where []Range
	Fault *Fault
	// Stuck are the programs that wait in it.
	Stuck []*User
	// Trap counts who triggers Mount, which is a mount point of autofs; nil elsewhere.
	Trap *Trap
	// Others are mount points with which nothing is wrong.
	Others []string

	log    *Log
	wrote  []Message
	served []*FS
	thaw   func() error   // nil where nothing is frozen
	last   []func() error // what is to be undone, in order
}

// Scenarios lists what can be made.
func Scenarios() []Scenario {
	return slices.Concat(ext4Scenarios(), xfsScenarios(), btrfsScenarios(), spaceScenarios(),
		stuckScenarios())
}

// Make makes a scenario by its name at dir, an existing directory. It is ErrUnavailable outside a
// mount namespace of our own, and where this kernel or user cannot make it.
func Make(ctx context.Context, name, dir string) (*World, error) {
	all := Scenarios()
	i := slices.IndexFunc(all, func(s Scenario) bool { return s.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("no scenario is called %q", name)
	}
	w := &World{Scenario: all[i], Dir: dir}
	log, err := OpenLog()
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	w.log = log
	if err := w.make(ctx, w); err != nil {
		return nil, errors.Join(fmt.Errorf("make %s: %w", name, err), w.Close())
	}
	return w, nil
}

// Kernel gives what the kernel has written about the disks of the world. What it says of errors of
// devices ("I/O error, dev loop0") it says ten times in five seconds of all devices of the machine
// together, and not beyond: such a message may be missing.
func (w *World) Kernel() ([]Message, error) {
	names := []string{"faultfs"}
	for _, d := range w.Disks {
		names = append(names, d.Name)
	}
	more, lost, err := w.log.Read(names...)
	if lost {
		err = errors.Join(err, errors.New("the kernel wrote more than it keeps"))
	}
	w.wrote = append(w.wrote, more...)
	return slices.Clone(w.wrote), err
}

// said waits until the kernel has written all of these, and makes them what it says.
func (w *World) said(pieces ...string) error {
	w.Says = append(w.Says, pieces...)
	err := until(w.allSaid)
	if err != nil {
		err = fmt.Errorf("the kernel wrote %+v, want %q in it: %w", w.wrote, w.Says, err)
	}
	return err
}

// allSaid tells whether all that the kernel is to say is said.
func (w *World) allSaid() (bool, error) {
	all, err := w.Kernel()
	for _, piece := range w.Says {
		has := func(m Message) bool { return strings.Contains(m.Text, piece) }
		if !slices.ContainsFunc(all, has) {
			return false, err
		}
	}
	return true, err
}

// provoke does something until the kernel has written all of these about it. Some messages it
// leaves out where others like them came of other devices just before, and one that has no newline
// of its own ("writeback error on inode", fs/iomap of Linux 6.1 and 6.18) nobody can read before
// the next one is written.
func (w *World) provoke(do func() error, pieces ...string) error {
	const pause = 50 * time.Millisecond
	w.Says = append(w.Says, pieces...)
	var last time.Time
	return until(func() (bool, error) {
		if time.Since(last) > pause {
			if err := do(); err != nil {
				return false, err
			}
			last = time.Now()
		}
		return w.allSaid()
	})
}

// CopyTo copies the disk that is hurt as it stands to a new file.
func (w *World) CopyTo(path string) error {
	if w.Hurt == nil {
		return fmt.Errorf("%s has no disk", w.Name)
	}
	return w.Hurt.CopyTo(path)
}

// Close takes all of it away: first all goes on that waits.
func (w *World) Close() error {
	var err error
	if w.thaw != nil {
		err = w.thaw()
	}
	for _, fs := range w.served {
		defer fs.rescue().Stop()
		err = errors.Join(err, fs.relieve())
	}
	for _, u := range w.Stuck {
		err = errors.Join(err, u.End())
	}
	for _, undo := range slices.Backward(w.last) {
		err = errors.Join(err, undo())
	}
	if err = errors.Join(err, w.log.Close()); err != nil {
		return fmt.Errorf("take %s away: %w", w.Name, err)
	}
	return nil
}

// later has fn done at the end.
func (w *World) later(fn func() error) { w.last = append(w.last, fn) }

// dir makes a new directory in the world.
func (w *World) dir(name string) (string, error) {
	path := w.Dir + "/" + name
	if err := os.Mkdir(path, 0o755); err != nil {
		return "", err
	}
	w.later(func() error { return os.Remove(path) })
	return path, nil
}

// disk makes a disk in the world. The first one is what is hurt, until something else is.
func (w *World) disk(ctx context.Context, name string, o DiskOptions) (*Disk, error) {
	dir, err := w.dir(name)
	if err != nil {
		return nil, err
	}
	d, err := NewDisk(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	w.later(d.Close)
	if d.FS != nil {
		w.served = append(w.served, d.FS)
	}
	w.Disks = append(w.Disks, d)
	if w.Hurt == nil {
		w.Hurt, w.Mount = d, d.Mount
	}
	return d, nil
}

// usedDisk is a disk with a file on it, and nothing to be written.
func (w *World) usedDisk(ctx context.Context, o DiskOptions) (*Disk, error) {
	d, err := w.disk(ctx, "disk", o)
	if err != nil {
		return nil, err
	}
	return d, errors.Join(os.WriteFile(d.Mount+"/file", []byte("text"), 0o644), d.Sync())
}

// set sets the fault that the world is about.
func (w *World) set(text string) (err error) {
	w.Fault, err = w.Hurt.Set(text)
	return err
}

// stuck notes a program that is stuck in the world, and ends with it.
func (w *World) stuck(u *User) {
	if u != nil {
		w.Stuck = append(w.Stuck, u)
	}
}
