// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

var (
	// ErrNoBase: no base of that name is there, or was set aside.
	ErrNoBase = errors.New("no base of that name")
	// ErrNoPin: no pin is of that name or id.
	ErrNoPin = errors.New("no pin of that name or id")
	// ErrNodePin: the pin stands for what a node used that was retired, and has to be named by its id.
	ErrNodePin = errors.New("a pin stands for what a retired node used, and has to be named by its id")
)

// PinOptions say why a base is pinned, and for how long.
type PinOptions struct {
	// Reason and By are a person's.
	Reason, By string
	// Until is when the pin ends, by the clock of the file server; the zero time is never.
	Until time.Time
}

// Pin says that a base is to be kept, whoever is found to need it: one that is there, in quarantine, or kept by its shield alone. The error is
// ErrNoBase.
func Pin(ctx context.Context, name string, p PinOptions, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("pin")
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	if !pool.IsName(name) {
		return nil, fmt.Errorf("%q is no name in a directory", name)
	}
	inode := uint64(0)
	switch e, err := diskio.LookEntry(filepath.Join(k.Bases, name)); {
	case err == nil:
		inode = e.Ino
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	default:
		h, err := heldFor(s, name, 0)
		if err != nil {
			return nil, err
		}
		kept := s.ShieldsOf(name)
		switch {
		case h != nil:
			name, inode = h.Name, h.File.Ino
		case len(kept) == 0:
			return nil, fmt.Errorf("%s: %w", name, ErrNoBase)
		case len(kept) == 1: // of several files that had the name all are meant
			inode = kept[0].ID.Ino
		}
	}
	defer func() { err = k.finish(ctx, d, err) }()
	if err := k.begin(ctx, s); err != nil {
		return nil, err
	}
	d = newDone(k.Bases, s)
	now, err := k.now(ctx)
	if err != nil {
		return d, err
	}
	if !p.Until.IsZero() && !p.Until.After(now) {
		return d, fmt.Errorf("a pin that ended on %s keeps nothing", p.Until.UTC().Format(time.RFC3339))
	}
	pin := &pool.Pin{Schema: pool.PinSchema, Name: name, Inode: inode, Reason: p.Reason, By: p.By, Node: k.Node, Time: now.UTC(),
		Uses: []pool.Use{}}
	if !p.Until.IsZero() {
		until := p.Until.UTC()
		pin.Until = &until
	}
	if pin.ID, err = plan.NewID(); err != nil {
		return d, err
	}
	return d, k.pin(ctx, pin, d)
}

// pin writes a pin.
func (k *keeper) pin(ctx context.Context, p *pool.Pin, d *pool.Done) error {
	step := pinStep(p, k.path(pool.Pins, pool.PinName(p.ID)))
	if err := k.will(step); err != nil {
		return err
	}
	if err := k.Disk.MakeDir(k.path(pool.Pins), 0o755); err != nil {
		return err
	}
	return k.putPin(ctx, p, &step, d)
}

func pinStep(p *pool.Pin, path string) vault.BaseStep {
	s := stepAt(vault.BasePin, p.Name, path, 0)
	s.ID = p.ID
	return s
}

// putPin writes a pin that was announced.
func (k *keeper) putPin(ctx context.Context, p *pool.Pin, step *vault.BaseStep, d *pool.Done) error {
	text, err := p.Text()
	if err != nil {
		return err
	}
	if err := k.step(ctx, "pin "+p.Name); err != nil {
		return err
	}
	err = k.put(step.At(), text)
	k.did(*step, err)
	if err != nil {
		return err
	}
	d.Pinned = append(d.Pinned, p.ID)
	return k.note(ctx, "pin", p.Name, p.Inode, step.At(), p.Reason)
}

// Unpin takes the pins of a base back, or the one with an id. They are kept under another name. The errors are ErrNoPin
// and ErrNodePin.
func Unpin(ctx context.Context, name, reason string, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("unpin")
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	if err := k.known(ctx, s); err != nil {
		return nil, err
	}
	var found []*pool.Pin
	for i := range s.Pins {
		p := &s.Pins[i]
		if p.ID == name || p.Name == name {
			found = append(found, p)
		}
		if p.ID != name && p.Name == name && len(p.Uses) > 0 {
			return nil, fmt.Errorf("%s: %w: %s", name, ErrNodePin, p.ID)
		}
	}
	if len(found) == 0 {
		return nil, errors.Join(append([]error{fmt.Errorf("%s: %w", name, ErrNoPin)}, s.Unread...)...)
	}
	d = newDone(k.Bases, s)
	k.pool = d.Pool
	defer func() { err = k.finish(ctx, d, err) }()
	for _, p := range found {
		if err := k.unpin(ctx, p, reason, d); err != nil {
			return d, err
		}
	}
	return d, nil
}

// unpin takes one pin back.
func (k *keeper) unpin(ctx context.Context, p *pool.Pin, reason string, d *pool.Done) error {
	gone := k.path(pool.Pins, pool.PinGoneName(p.ID))
	step := stepAt(vault.BaseUnpin, p.Name, gone, 0)
	step.ID = p.ID
	if err := k.will(step); err != nil {
		return err
	}
	if err := k.step(ctx, "unpin "+p.Name); err != nil {
		return err
	}
	err := k.renamePin(k.path(pool.Pins, pool.PinName(p.ID)), gone)
	k.did(step, err)
	if err != nil {
		return err
	}
	d.Unpinned = append(d.Unpinned, p.ID)
	return k.note(ctx, "unpin", p.Name, p.Inode, gone, reason)
}

func (k *keeper) renamePin(from, to string) error {
	e, err := diskio.LookEntry(from)
	if err != nil {
		return err
	}
	_, err = k.move(e.ID, from, to)
	return err
}
