// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"sync"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/config"
)

// joint knows which of the pools that the configuration names are the same one: by the directories of bases that they lead
// to. Storage is mounted and taken away while an agent runs, so it looks again and again. What cannot be looked at now stays
// what it was when it was seen last, so that nobody takes the images there for gone; what was never seen is the pool
// whose uuid the configuration gives for both.
type joint struct {
	all  []config.Pool
	pool string // the POOL of the command, which stands behind all of them; "" for none

	mu   sync.Mutex
	same [][]bool // by the last look that saw both
	seen []bool   // by the last look
	led  []bool   // somebody goes on with the pool of this one
}

// errJoined ends what goes on with a pool: the configuration says other things of it now, since other paths lead to it.
var errJoined = errors.New("other pools of the configuration are this one than before")

func newJoint(all []config.Pool, pool string) *joint {
	j := &joint{all: all, pool: pool}
	n := len(all)
	if pool != "" {
		n++
	}
	j.seen, j.led = make([]bool, n), make([]bool, n)
	for i := range n {
		j.same = append(j.same, make([]bool, n))
		for k := range n {
			j.same[i][k] = i == k || max(i, k) < len(all) && all[i].UUID != "" && all[i].UUID == all[k].UUID
		}
	}
	return j
}

// place is a directory of instances, or of bases, and what the latter is called.
type place struct{ path, bases string }

// place of i where it is compared with k: POOL is what it is by the name of the other one.
func (j *joint) place(i, k int) place {
	if i == len(j.all) {
		return place{j.pool, cmp.Or(j.all[k].Bases, "_base")}
	}
	return place{j.all[i].Path, cmp.Or(j.all[i].Bases, "_base")}
}

// look finds out which are the same now.
func (j *joint) look(ctx context.Context) {
	if len(j.same) < 2 {
		return
	}
	type pair struct{ i, k int }
	var pairs []pair
	for i := range j.same {
		for k := range j.same {
			if i < len(j.all) || k < len(j.all) {
				pairs = append(pairs, pair{i, k})
			}
		}
	}
	ids := j.ids(ctx, func(yield func(place) bool) {
		for _, p := range pairs {
			if !yield(j.place(p.i, p.k)) {
				return
			}
		}
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	clear(j.seen)
	for _, p := range pairs {
		a, known := ids[j.place(p.i, p.k)]
		j.seen[p.i] = j.seen[p.i] || known
		if b, both := ids[j.place(p.k, p.i)]; both && known {
			j.same[p.i][p.k] = a == b
		}
	}
}

// ids tells which directories places are, of those that can be looked at. One that hangs is waited for beside the others.
func (j *joint) ids(ctx context.Context, places iter.Seq[place]) map[place]diskio.ID {
	asked, ids := map[place]bool{}, map[place]diskio.ID{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for p := range places {
		if asked[p] {
			continue
		}
		asked[p] = true
		all.Go(func() {
			if id, known := basesID(ctx, p.path, p.bases); known {
				mu.Lock()
				defer mu.Unlock()
				ids[p] = id
			}
		})
	}
	all.Wait()
	return ids
}

// with gives those that are the same as one, in the order of the configuration; POOL is none of them.
func (j *joint) with(i int) (all []int) {
	for k := range j.all {
		if j.same[i][k] {
			all = append(all, k)
		}
	}
	return all
}

// lead is for who begins to go on with the pool of one, or does so anew. It tells with which others that is, and not ok where
// somebody does so by another one, or is to: by the first that can be looked at.
func (j *joint) lead(i int) (with []int, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	with, ok = j.with(i), true
	for _, k := range with {
		if k == i || !j.seen[k] {
			continue
		}
		// Who goes on with it already goes on: of two that do, as when one was mounted where the other is, the first.
		if !j.seen[i] || j.led[k] && (!j.led[i] || k < i) || !j.led[i] && k < i {
			ok = false
		}
	}
	j.led[i] = ok
	return with, ok
}

// still returns errJoined if others are the same as one than those with which it began, or somebody else leads.
func (j *joint) still(ctx context.Context, i int, with []int) error {
	j.look(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	now := j.with(i)
	if !slices.Equal(now, with) || slices.ContainsFunc(now, func(k int) bool { return k < i && j.led[k] && j.seen[k] }) {
		return errJoined
	}
	return nil
}

// end is for who led the pool of one.
func (j *joint) end(i int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.led[i] = false
}
