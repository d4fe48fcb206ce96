// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// maxIDs is how many mounts the hooks can tell apart from the rest: hooks.h, ids.
const maxIDs = 64

func (e *Engine) openFentry(targets []Target, ringBytes uint32) error {
	spec, err := loadFentry()
	if err != nil {
		return err
	}
	var o fentryObjects
	if err := e.loadHooks(spec, &o, targets, ringBytes); err != nil {
		return err
	}
	e.shut = append(e.shut, &o)
	for _, p := range []*ebpf.Program{o.MntputEnd, o.MntgetBegin, o.LegitimizeBegin, o.LegitimizeEnd,
		o.UmountEnd, o.CountEnd, o.BusyEnd, o.BusyBegin, o.SecurityBegin} {
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return fmt.Errorf("%w: attach %s: %w", ErrRefused, p, err)
		}
		e.shut = append(e.shut, l)
	}
	return e.startHooks(hookMaps{o.Classes, o.Ids, o.Events, o.Lost, o.Mode, o.Windows}, targets)
}

func (e *Engine) openKprobe(targets []Target, ringBytes uint32) error {
	spec, err := loadKprobe()
	if err != nil {
		return err
	}
	var o kprobeObjects
	if err := e.loadHooks(spec, &o, targets, ringBytes); err != nil {
		return err
	}
	e.shut = append(e.shut, &o)
	for _, at := range []struct {
		function   string
		begin, end *ebpf.Program
	}{
		// What ends something is attached first: nothing begins whose end is not seen.
		{"mntput", o.MntputBegin, o.MntputEnd},
		{"mntget", o.MntgetBegin, nil},
		{"__legitimize_mnt", o.LegitimizeBegin, o.LegitimizeEnd},
		{"path_umount", nil, o.UmountEnd},
		{"mnt_get_count", o.CountBegin, o.CountEnd},
		{"propagate_mount_busy", o.BusyBegin, o.BusyEnd},
		{"security_sb_umount", o.SecurityBegin, nil},
	} {
		if err := e.kprobe(at.function, at.begin, at.end); err != nil {
			return fmt.Errorf("%w: attach to %s: %w", ErrRefused, at.function, err)
		}
	}
	return e.startHooks(hookMaps{o.Classes, o.Ids, o.Events, o.Lost, o.Mode, o.Windows}, targets)
}

func (e *Engine) kprobe(function string, begin, end *ebpf.Program) error {
	if end != nil {
		l, err := link.Kretprobe(function, end, nil)
		if err != nil {
			return err
		}
		e.shut = append(e.shut, l)
	}
	if begin != nil {
		l, err := link.Kprobe(function, begin, nil)
		if err != nil {
			return err
		}
		e.shut = append(e.shut, l)
	}
	return nil
}

func (e *Engine) loadHooks(spec *ebpf.CollectionSpec, o any, targets []Target, ringBytes uint32) error {
	if len(targets) > maxIDs {
		return fmt.Errorf("it can tell of %d mounts or of all, not of %d", maxIDs, len(targets))
	}
	resize(spec, ringBytes)
	all := uint32(0)
	if len(targets) == 0 {
		all = 1
	}
	if err := spec.Variables["any"].Set(all); err != nil {
		return err
	}
	return load(e.name, spec, o)
}

// hookMaps are the maps that both objects of hooks.h have.
type hookMaps struct{ classes, ids, events, lost, mode, windows *ebpf.Map }

func (e *Engine) startHooks(m hookMaps, targets []Target) error {
	if err := fill(m.classes); err != nil {
		return err
	}
	targets = slices.Clone(targets)
	for _, t := range targets {
		if err := m.ids.Put(uint32(t.ID), uint32(1)); err != nil {
			return fmt.Errorf("note mount %d: %w", t.ID, err)
		}
	}
	e.follow = func(place int, t Target) error {
		if err := m.ids.Delete(uint32(targets[place].ID)); err != nil {
			return err
		}
		targets[place] = t
		return m.ids.Put(uint32(t.ID), uint32(1))
	}
	e.underWay = func() (n int64, err error) {
		var (
			mount uint64
			w     fentryWindow
		)
		it := m.windows.Iterate()
		for it.Next(&mount, &w) {
			n += int64(w.Active)
		}
		return n, it.Err()
	}
	return e.start(m.events, m.lost, m.mode)
}
