// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"slices"

	"github.com/shisa-vm/shisa/internal/linux"
)

// maxPast bounds the mounts that are remembered after they were unmounted: far more than are watched.
const maxPast = 64

// places are the mounts that are watched. What is told of them may be read when they are gone, and the
// numbers of mounts are given again, so each has its time.
type places struct {
	now  []place // the engine's targets
	past []place // the latest last
}

// place is a mount, and when it was there: CLOCK_MONOTONIC, ns. until is 0 while nothing says that it
// was unmounted.
type place struct {
	linux.Mount
	since, until int64
}

func placesOf(mounts []linux.Mount) places {
	var p places
	for _, m := range mounts {
		p.now = append(p.now, place{Mount: m})
	}
	return p
}

// at gives those that were there at a time.
func (p *places) at(ts int64) []linux.Mount {
	var all []linux.Mount
	for _, each := range [][]place{p.now, p.past} {
		for _, m := range each {
			if ts >= m.since && (m.until == 0 || ts <= m.until) {
				all = append(all, m.Mount)
			}
		}
	}
	return all
}

// ended notes that a mount was unmounted.
func (p *places) ended(id int, ts int64) {
	for _, each := range [][]place{p.now, p.past} {
		for i, m := range each {
			if m.ID == id && ts >= m.since && (m.until == 0 || ts <= m.until) {
				each[i].until = ts
			}
		}
	}
}

// away tells whether any was unmounted and nothing else is watched in its place.
func (p *places) away() bool {
	return slices.ContainsFunc(p.now, func(m place) bool { return m.until != 0 })
}

// put watches another mount in a place, found at a time.
func (p *places) put(i int, m linux.Mount, now int64) {
	old := p.now[i]
	if old.until == 0 {
		old.until = now // that it was unmounted is told of later
	}
	if len(p.past) == maxPast {
		p.past = slices.Delete(p.past, 0, 1)
	}
	p.past = append(p.past, old)
	p.now[i] = place{Mount: m, since: now}
}

// follow watches what is mounted now where targets were: where all are asked for, or else those of
// which a umount was seen.
func (t *Trace) follow(ctx context.Context, all bool) (err error) {
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.followed = err
	}()
	now, err := monotonic()
	if err != nil {
		return err
	}
	table, err := t.o.Host.Mounts(ctx, 0)
	if err != nil {
		return err
	}
	for i, old := range t.places.now {
		at := -1
		for j, m := range table {
			if m.Point == old.Point {
				at = j // of several the last covers the others
			}
		}
		if at < 0 || !all && old.until == 0 {
			continue
		}
		x, err := target(ctx, t.engine.Name(), table[at])
		if err != nil {
			return err
		}
		err = t.engine.Follow(i, x)
		if x.File != nil {
			x.File.Close()
		}
		if err != nil {
			return err
		}
		t.places.put(i, table[at], now)
	}
	return nil
}
