// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	// MaxWatched is how many mounts the watch engine can tell of: a processor has four watchpoints.
	MaxWatched = 4
	// maxCPUs is CPUS in watch.c.
	maxCPUs = 1024
	// breakOnWrite is HW_BREAKPOINT_W of include/uapi/linux/hw_breakpoint.h.
	breakOnWrite = 2
	// counterBytes is the size of mnt_pcp.mnt_count, which mnt_writers follows.
	counterBytes = 4
)

func (e *Engine) openWatch(targets []Target, ringBytes uint32) error {
	switch {
	case len(targets) == 0:
		return errors.New("it needs to know which mounts to watch")
	case len(targets) > MaxWatched:
		return fmt.Errorf("a processor has watchpoints for %d mounts, not for %d", MaxWatched, len(targets))
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the processors: %w", err)
	}
	if cpus > maxCPUs {
		return fmt.Errorf("%d processors are more than %d", cpus, maxCPUs)
	}
	spec, err := loadWatch()
	if err != nil {
		return err
	}
	resize(spec, ringBytes)
	if err := spec.Variables["cpus"].Set(uint32(cpus)); err != nil {
		return err
	}
	var o watchObjects
	if err := load(e.name, spec, &o); err != nil {
		return err
	}
	e.shut = append(e.shut, &o)
	if err := fill(o.Classes); err != nil {
		return err
	}
	if err := e.start(o.Events, o.Lost, o.Mode); err != nil {
		return err
	}
	e.underWay = func() (n int64, err error) {
		for slot := range targets {
			var w watchWatched
			if err := o.Watches.Lookup(uint32(slot), &w); err != nil {
				return n, err
			}
			n += int64(w.Window.Active)
		}
		return n, nil
	}
	points := make([]points, len(targets))
	for i := range points {
		e.shut = append(e.shut, &points[i])
	}
	e.follow = func(place int, t Target) error {
		if err := points[place].Close(); err != nil {
			return err
		}
		return points[place].watch(&o, uint32(place), t, cpus)
	}
	for slot, t := range targets {
		if err := e.follow(slot, t); err != nil {
			return fmt.Errorf("watch the counter of mount %d: %w", t.ID, err)
		}
	}
	return nil
}

// points are the watchpoints of one mount, one on each processor.
type points []*os.File

// Close takes them off.
func (p *points) Close() error {
	var errs []error
	for _, f := range *p {
		errs = append(errs, f.Close())
	}
	*p = nil
	return errors.Join(errs...)
}

// watch sets a watchpoint on each CPU's word of one mount's counter. The words are found first, and
// read once all are watched.
func (p *points) watch(o *watchObjects, slot uint32, t Target, cpus int) error {
	if t.File == nil {
		return errors.New("no file is open on it")
	}
	if err := o.resolve(slot, t, 1); err != nil {
		return err
	}
	var w watchWatched
	if err := o.Watches.Lookup(slot, &w); err != nil {
		return err
	}
	if int(w.Id) != t.ID {
		return fmt.Errorf("mount %d lies over it", w.Id)
	}
	for cpu := range cpus {
		var c watchCell
		if err := o.Cells.Lookup(slot*maxCPUs+uint32(cpu), &c); err != nil {
			return err
		}
		if c.Addr == 0 {
			return fmt.Errorf("%w: where processor %d counts is not known", ErrRefused, cpu)
		}
		f, err := breakpoint(c.Addr, cpu, o.Written)
		if errors.Is(err, unix.ENODEV) {
			continue // not online
		}
		if err != nil {
			return fmt.Errorf("%w: set a watchpoint on processor %d: %w", ErrRefused, cpu, err)
		}
		*p = append(*p, f)
	}
	if len(*p) == 0 {
		return fmt.Errorf("%w: no processor has a watchpoint", ErrRefused)
	}
	return o.resolve(slot, t, 2)
}

// resolve has the kernel note where a mount's counter is (step 1), or what it holds (step 2).
func (o *watchObjects) resolve(slot uint32, t Target, step uint32) error {
	ask := watchAsk{Fd: uint32(t.File.Fd()), Slot: slot, Step: step}
	if err := o.Asked.Put(uint32(0), ask); err != nil {
		return err
	}
	if _, err := answers(o.Resolve, nil); err != nil {
		return err
	}
	if err := o.Asked.Lookup(uint32(0), &ask); err != nil {
		return err
	}
	if ask.Done == 0 {
		return fmt.Errorf("%w: descriptor %d was not found", ErrRefused, ask.Fd)
	}
	return nil
}

// breakpoint has a program run whenever a CPU writes the four bytes at an address of the kernel.
func breakpoint(addr uint64, cpu int, p *ebpf.Program) (*os.File, error) {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_BREAKPOINT, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Sample:  1, // each write
		Bp_type: breakOnWrite, Ext1: addr, Ext2: counterBytes,
		Bits: unix.PerfBitDisabled | unix.PerfBitExcludeUser | unix.PerfBitExcludeHv,
	}
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "watchpoint")
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, p.FD()); err != nil {
		f.Close()
		return nil, fmt.Errorf("attach the program: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
