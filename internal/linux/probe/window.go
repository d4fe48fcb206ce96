// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	// maxTargets is TARGETS in window.c, maxText TEXT in engine.h.
	maxTargets = 8
	maxText    = 160
)

func (e *Engine) openWindow(targets []Target, ringBytes uint32) error {
	if len(targets) > maxTargets {
		return fmt.Errorf("it can tell of %d mounts or of all, not of %d", maxTargets, len(targets))
	}
	spec, err := loadWindow()
	if err != nil {
		return err
	}
	all, space := uint32(1), uint32(0)
	if len(targets) > 0 {
		var st unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/mnt", &st); err != nil {
			return fmt.Errorf("look at the mount namespace: %w", err)
		}
		all, space = 0, uint32(st.Ino)
	}
	resize(spec, ringBytes)
	if err := errors.Join(spec.Variables["any"].Set(all), spec.Variables["own_space"].Set(space),
		spec.Variables["own_umount"].Set(int64(unix.SYS_UMOUNT2))); err != nil {
		return err
	}
	var o windowObjects
	if err := load(e.name, spec, &o); err != nil {
		return err
	}
	e.shut = append(e.shut, &o)
	if err := fill(o.Classes); err != nil {
		return err
	}
	targets = slices.Clone(targets)
	for _, t := range targets {
		if err := o.note(t); err != nil {
			return err
		}
	}
	e.follow = func(place int, t Target) error {
		old := targets[place].Dev
		targets[place] = t
		if !slices.ContainsFunc(targets, func(o Target) bool { return o.Dev == old }) {
			if err := o.Devices.Delete(kernelDev(old)); err != nil {
				return err
			}
		}
		return o.note(t)
	}
	if err := e.start(o.Events, o.Lost, o.Mode); err != nil {
		return err
	}
	e.underWay = func() (int64, error) {
		var u windowUmounted
		err := o.Seen.Get(&u)
		return int64(u.Active), err
	}
	for _, at := range []struct {
		name string
		p    *ebpf.Program
	}{{"sys_exit", o.Leave}, {"sys_enter", o.Enter}, {"sched_process_exit", o.Gone},
		{"signal_deliver", o.Killed}} {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: at.name, Program: at.p})
		if err != nil {
			return fmt.Errorf("%w: attach to %s: %w", ErrRefused, at.name, err)
		}
		e.shut = append(e.shut, l)
	}
	return nil
}

// note has the calls on a mount told of.
func (o *windowObjects) note(t Target) error {
	dev := kernelDev(t.Dev)
	if err := o.Devices.Put(dev, uint32(t.ID)); err != nil {
		return fmt.Errorf("note mount %d: %w", t.ID, err)
	}
	// A path that does not fit is not compared: calls on it are known by device only.
	if len(t.Path) >= maxText || t.Path == "/" {
		return nil
	}
	var at windowPrefix
	at.Bits = uint32(8 * copy(at.Text[:], t.Path))
	if err := o.Places.Put(at, windowPlace{Dev: dev, Len: uint32(len(t.Path))}); err != nil {
		return fmt.Errorf("note %s: %w", t.Path, err)
	}
	return nil
}
