// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/cilium/ebpf/link"
)

// maxRoots bounds the mounts that are looked at for polls; each takes three names: pollers.c, roots.
const maxRoots = 16384 / 3

// Poll says how one process asks for one mount again and again, or how the children of one do.
type Poll struct {
	// PID is the process, or the parent of those who ask where Children names them.
	PID      int
	Children string
	// Start is when the process started, of CLOCK_BOOTTIME, in ns.
	Start            int64
	Parent, UID      int
	Namespace        uint64
	Comm, ParentComm string
	// Target is the place of the mount in the list given to OpenPollers.
	Target int
	// Statfs: asked by statfs, else by stat.
	Statfs bool
	// Calls is how often, Polls in how many goes: calls within 50 ms are one.
	Calls, Polls int64
	// Period is from the begin of one go to that of the next, on average; CV its standard deviation
	// as a share of it. Both are 0 with less than two goes.
	Period time.Duration
	CV     float64
}

// Pollers counts who asks for mounts.
type Pollers struct {
	o    pollersObjects
	shut []io.Closer
}

// OpenPollers begins to count who asks for the mounts of targets.
func OpenPollers(targets []Target) (*Pollers, error) {
	if len(targets) > maxRoots {
		return nil, fmt.Errorf("look for pollers of %d mounts: at most %d can be looked at", len(targets), maxRoots)
	}
	spec, err := loadPollers()
	if err != nil {
		return nil, err
	}
	p := &Pollers{}
	if err := load("pollers", spec, &p.o); err != nil {
		return nil, err
	}
	p.shut = append(p.shut, &p.o)
	if err := p.begin(targets); err != nil {
		p.Close()
		return nil, fmt.Errorf("look for pollers: %w", err)
	}
	return p, nil
}

func (p *Pollers) begin(targets []Target) error {
	if err := fill(p.o.Classes); err != nil {
		return err
	}
	for i, t := range targets {
		// What lies over another mount has its path.
		for _, end := range []string{"", "/", "/."} {
			if len(t.Path)+len(end) < maxText && t.Path != "" {
				var r pollersRoot
				copy(r.Text[:], t.Path+end)
				if err := p.o.Roots.Put(r, uint32(i)); err != nil {
					return fmt.Errorf("note %s: %w", t.Path, err)
				}
			}
		}
		if err := p.o.Ids.Put(uint32(t.ID), uint32(i)); err != nil {
			return fmt.Errorf("note mount %d: %w", t.ID, err)
		}
	}
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_exit", Program: p.o.Polls})
	if err != nil {
		return fmt.Errorf("%w: attach to sys_exit: %w", ErrRefused, err)
	}
	p.shut = append(p.shut, l)
	return nil
}

// Polls gives all that asked so far, in no order.
func (p *Pollers) Polls() ([]Poll, error) {
	var (
		k   pollersPoller
		v   pollersPolls
		out []Poll
	)
	for it := p.o.Polled.Iterate(); ; {
		if !it.Next(&k, &v) {
			return out, it.Err()
		}
		q := Poll{PID: int(k.Pid), Start: int64(v.Start), Parent: int(v.Ppid), UID: int(v.Uid),
			Namespace: uint64(v.Mntns), Comm: text(v.Comm[:]), ParentComm: text(v.Pcomm[:]),
			Target: int(k.Root), Statfs: k.Statfs != 0, Calls: int64(v.Calls), Polls: int64(v.Periods) + 1}
		if k.Parent != 0 {
			q.Children = text(k.Comm[:])
		}
		if n := float64(v.Periods); n > 0 {
			mean := float64(v.Sum) / n
			q.Period = time.Duration(mean * float64(time.Millisecond))
			if mean > 0 {
				q.CV = math.Sqrt(max(float64(v.Squares)/n-mean*mean, 0)) / mean
			}
		}
		out = append(out, q)
	}
}

// Lost is how many callers did not fit into the table, and 32-bit calls that were not looked at.
func (p *Pollers) Lost() (full, compat int64, err error) {
	c, err := countersOf(p.o.Lost)
	return c.Full, c.Compat, err
}

// Close ends the count.
func (p *Pollers) Close() error {
	var errs []error
	for _, c := range p.shut {
		errs = append(errs, c.Close())
	}
	p.shut = nil
	return errors.Join(errs...)
}
