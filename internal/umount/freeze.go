// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

// The freezer of control groups, version 2 (Linux 5.2, Documentation/admin-guide/cgroup-v2.rst, "Core
// Interface Files"): "1" written to cgroup.freeze stops all processes below at their next return from
// the kernel; cgroup.events says "frozen 1" when all have. "0" lets them go on. A process that holds
// the mount when it is stopped goes on holding it: so between two tries the unit runs.
const (
	// freezeTimeout is how long is waited until all have stopped.
	freezeTimeout = time.Second
	freezePause   = 500 * time.Microsecond
	// maxGroups bounds the control groups that are looked through for a unit; maxDepth how deep.
	maxGroups = 100_000
	maxDepth  = 16
)

// freezer stops and continues the processes of one unit.
type freezer struct {
	name   string // as it was given
	dir    string
	file   *os.File // cgroup.freeze
	guard  Guard
	frozen bool
}

// newFreezer finds the unit and refuses what must not be stopped.
func newFreezer(ctx context.Context, w World, unit string, m linux.Mount) (*freezer, error) {
	dir, err := groupOf(ctx, w.Host, unit)
	if err != nil {
		return nil, err
	}
	if err := harmless(ctx, w.Host, unit, dir, m); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, "cgroup.freeze"), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("stop the unit %s: %w", unit, err)
	}
	f := &freezer{name: unit, dir: dir, file: file}
	if on, err := f.is(); err != nil || on {
		file.Close()
		if err == nil {
			err = fmt.Errorf("%w: somebody else has stopped it already", ErrRefused)
		}
		return nil, fmt.Errorf("stop the unit %s: %w", unit, err)
	}
	if f.guard, err = w.Guard(dir); err != nil {
		file.Close()
		return nil, fmt.Errorf("stop the unit %s: start what continues it if this program ends: %w", unit, err)
	}
	return f, nil
}

// is reports whether it is told to be stopped.
func (f *freezer) is() (bool, error) {
	b := make([]byte, 8)
	n, err := f.file.ReadAt(b, 0)
	if n == 0 {
		return false, err
	}
	return b[0] == '1', nil
}

// freeze stops the unit and waits until it has. One that does not stop in time is let go again.
func (f *freezer) freeze(ctx context.Context) error {
	f.frozen = true
	if _, err := f.file.WriteAt([]byte("1"), 0); err != nil {
		return errors.Join(fmt.Errorf("stop the unit %s: %w", f.name, err), f.thaw())
	}
	for end := time.Now().Add(freezeTimeout); ; {
		b, err := os.ReadFile(filepath.Join(f.dir, "cgroup.events"))
		switch {
		case err != nil:
			return errors.Join(fmt.Errorf("stop the unit %s: %w", f.name, err), f.thaw())
		case strings.Contains(string(b), "frozen 1"):
			return nil
		case ctx.Err() != nil:
			return errors.Join(ctx.Err(), f.thaw())
		case time.Now().After(end):
			return errors.Join(fmt.Errorf("stop the unit %s: %w: a process of it does not stop: it waits in "+
				"the kernel", f.name, ErrRefused), f.thaw())
		}
		time.Sleep(freezePause)
	}
}

// thaw lets the unit go on.
func (f *freezer) thaw() error {
	if !f.frozen {
		return nil
	}
	if _, err := f.file.WriteAt([]byte("0"), 0); err != nil {
		return finding.WithHint(fmt.Errorf("continue the unit %s: %w", f.name, err),
			"echo 0 > "+filepath.Join(f.dir, "cgroup.freeze"))
	}
	f.frozen = false
	return nil
}

// close lets the unit go on for good, and ends the guard.
func (f *freezer) close() error { return errors.Join(f.thaw(), f.guard.Close(), f.file.Close()) }

// groupOf is the directory of a unit's control group.
func groupOf(ctx context.Context, h *linux.Host, unit string) (string, error) {
	mounts, err := h.Mounts(ctx, 0)
	if err != nil {
		return "", err
	}
	root := ""
	for _, m := range mounts {
		if m.Type == "cgroup2" && m.Root == "/" {
			root = m.Point
		}
	}
	if root == "" {
		return "", fmt.Errorf("stop the unit %s: %w: there are no control groups of version 2 here", unit,
			errors.ErrUnsupported)
	}
	if unit != filepath.Base(unit) || unit == "." || unit == ".." {
		return "", fmt.Errorf("stop the unit %s: want the name of a unit, such as vmtoolsd.service", unit)
	}
	var found []string
	seen := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it ended
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !d.IsDir():
			return nil
		}
		if seen++; seen > maxGroups || strings.Count(strings.TrimPrefix(path, root), "/") > maxDepth {
			return fmt.Errorf("more than %d control groups, or deeper than %d", maxGroups, maxDepth)
		}
		if d.Name() == unit {
			found = append(found, path)
			return fs.SkipDir
		}
		return nil
	})
	switch {
	case err != nil:
		return "", fmt.Errorf("look for the unit %s: %w", unit, err)
	case len(found) == 0:
		return "", fmt.Errorf("stop the unit %s: it has no control group: %w", unit, fs.ErrNotExist)
	case len(found) > 1:
		return "", fmt.Errorf("stop the unit %s: %w: several have that name: %s", unit, ErrRefused,
			strings.Join(found, " "))
	}
	return found[0], nil
}

// harmless refuses to stop what the host or this program needs to go on.
func harmless(ctx context.Context, h *linux.Host, unit, dir string, m linux.Mount) error {
	pids, err := members(ctx, dir)
	if err != nil {
		return fmt.Errorf("stop the unit %s: %w", unit, err)
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("stop the unit %s: %w: %s", unit, ErrRefused, fmt.Sprintf(format, args...))
	}
	if len(pids) == 0 {
		return refuse("it has no processes")
	}
	above, err := ancestors(ctx, h)
	if err != nil {
		return fmt.Errorf("stop the unit %s: %w", unit, err)
	}
	for _, pid := range pids {
		if pid == 1 || slices.Contains(above, pid) {
			return refuse("process %d of it is the first one of the host, or one that started this program", pid)
		}
		d, err := h.Detail(ctx, pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it ended
		}
		if err != nil {
			return refuse("process %d of it cannot be looked at: %v", pid, err)
		}
		waits, err := h.Waits(ctx, pid)
		serves := false
		if err == nil && strings.HasPrefix(m.Type, "fuse") {
			serves, err = h.ServesFUSE(ctx, pid)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return refuse("process %d (%s) of it cannot be looked at: %v", pid, d.Comm, err)
		case strings.HasPrefix(d.Comm, "sshd"):
			return refuse("process %d of it is %s, by which people come in", pid, d.Comm)
		case waits:
			return refuse("process %d (%s) of it waits in the kernel and cannot be stopped", pid, d.Comm)
		case serves:
			return refuse("process %d (%s) of it serves a file system such as this one", pid, d.Comm)
		}
	}
	return nil
}

// members are the processes of a control group and of those below it.
func members(ctx context.Context, dir string) ([]int, error) {
	var pids []int
	groups := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != dir:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case d.Name() != "cgroup.procs":
			return nil
		}
		if groups++; groups > maxGroups {
			return fmt.Errorf("more than %d control groups", maxGroups)
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil // it ended
		}
		if err != nil {
			return err
		}
		for _, word := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return fmt.Errorf("%s: process %q", path, word)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

// ancestors are this process and those that started it.
func ancestors(ctx context.Context, h *linux.Host) ([]int, error) {
	out := []int{os.Getpid()}
	for pid := os.Getppid(); pid > 0 && !slices.Contains(out, pid); {
		out = append(out, pid)
		d, err := h.Detail(ctx, pid)
		if err != nil {
			return nil, fmt.Errorf("look at process %d, which started this program: %w", pid, err)
		}
		pid = d.Parent
	}
	return out, nil
}
