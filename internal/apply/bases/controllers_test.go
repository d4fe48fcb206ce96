// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// noLocks is a file system on which nobody sees the lock of a controller.
type noLocks struct{ diskio.Disk }

func (d noLocks) OpenForRepair(path string) (diskio.Writable, error) {
	if filepath.Base(path) == pool.Controller {
		return nil, diskio.ErrNoLocks
	}
	return d.Disk.OpenForRepair(path)
}

func (d noLocks) CreateNew(path string, perm fs.FileMode) (diskio.Writable, error) {
	if filepath.Base(path) == pool.Controller {
		if err := os.WriteFile(path, nil, perm); err != nil {
			return nil, err
		}
		return d.Disk.OpenWithoutLocks(path)
	}
	return d.Disk.CreateNew(path, perm)
}

// crowd are controllers, nodes that launch machines, nodes that report, people who restore, and a cleaner that removes what
// nobody needs, all at once.
type crowd struct {
	*stock
	// launching is held for reading by launches between their look-up and their overlay, and taken by who drains.
	launching sync.RWMutex
	mu        sync.Mutex
	// overlays are what was launched, by its path, with the base that was found then.
	overlays map[string]overlay
	done     map[string]int
}

type overlay struct {
	base string
	ino  uint64
}

// TestTwoControllers lets two controllers, launches, reports, restores and a cleaner loose on one pool, without the lock that keeps
// controllers apart. Whatever happens: each machine finds the very file that its launch found, no file has two names,
// and every audit holds.
func TestTwoControllers(t *testing.T) {
	rounds := testenv.Rounds(4, 200, 200)
	did := map[string]int{}
	for round := range rounds {
		names := strings.Fields("a b c d e f g h")
		c := &crowd{stock: newStock(t, names...), overlays: map[string]overlay{}, done: did}
		o := c.options()
		o.Node = "n2"
		if _, err := Plan(t.Context(), nil, c.decision(), o); err != nil { // it notes the candidates, as n1 has
			t.Fatal(err)
		}
		c.reports()
		var all sync.WaitGroup
		ctx := t.Context()
		loop := func(n int, fn func(*rand.Rand)) {
			seed := uint64(round*10 + n)
			all.Go(func() {
				r := rand.New(rand.NewPCG(seed, 1))
				for range 12 {
					fn(r)
				}
			})
		}
		for n, node := range []string{"n1", "n2"} {
			loop(n, func(r *rand.Rand) { c.control(ctx, node, r) })
			loop(2+n, func(*rand.Rand) { c.pass(ctx, node) })
			loop(4+n, func(r *rand.Rand) { c.launch(names[r.IntN(len(names))], r) })
		}
		loop(6, func(r *rand.Rand) { c.restore(ctx, names[r.IntN(len(names))]) })
		loop(7, func(r *rand.Rand) { c.clean(names[r.IntN(len(names))]) })
		all.Wait()
		if d, err := Recover(t.Context(), c.decision(), c.options()); err != nil || len(d.Left) > 0 {
			t.Errorf("round %d: Recover = %+v, %v", round, d, err)
		}
		if got := c.problems(nil, true); got != nil {
			t.Errorf("round %d: %q", round, got)
		}
		for path, o := range c.overlays {
			if e, err := diskio.LookEntry(c.path(o.base)); err != nil || e.Ino != o.ino {
				t.Errorf("round %d: LOST: %s rests on %s, inode %d, and that is inode %d, %v", round, filepath.Base(path), o.base, o.ino, e.Ino, err)
			}
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d rounds: %v", rounds, did)
	wanted := []string{"quarantined", "reported", "cleaned"}
	if rounds >= 50 { // in a few, chance may leave some out
		wanted = append(wanted, "restored", "launched", "purged", "recovered", "quarantined of what was cleaned")
	}
	for _, what := range wanted {
		if did[what] == 0 {
			t.Errorf("nothing was %s: the test tries nothing", what)
		}
	}
}

func (c *crowd) count(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[what] += n
}

// control is a controller: it sets aside, removes, or recovers. What is refused is so by right.
func (c *crowd) control(ctx context.Context, node string, r *rand.Rand) {
	o := c.options()
	o.Node, o.Disk = node, noLocks{diskio.Host()}
	if r.IntN(4) == 0 {
		if d, err := Recover(ctx, c.decision(), o); err == nil {
			c.count("recovered", len(d.Recovered))
		}
		return
	}
	p, err := Plan(ctx, nil, c.decision(), o)
	if err != nil {
		return
	}
	if len(p.With(judge.MayPurge)) > 0 && r.IntN(2) == 0 {
		if d, err := Purge(ctx, p, PurgeOptions{Approve: p.SHA256, Allowed: true}, c.decision(), o); err == nil {
			c.count("purged", len(d.Purged))
		}
		return
	}
	d, err := Quarantine(ctx, p, c.decision(), o)
	if err == nil {
		c.count("quarantined", len(d.Quarantined))
	}
	for _, b := range p.With(judge.MayQuarantine) {
		if err == nil && b.State == refs.ByShield && slices.ContainsFunc(d.Quarantined, func(held string) bool {
			return strings.HasSuffix(held, "."+b.Name)
		}) {
			c.count("quarantined of what was cleaned", 1)
		}
	}
}

// pass is what a node does: it lists the quarantine, waits for its launches, looks, and says what it saw.
func (c *crowd) pass(ctx context.Context, node string) {
	s, err := pool.Read(ctx, c.dir, time.Minute)
	if err != nil || s.Policy == nil {
		return
	}
	c.drain()
	census, err := c.look(ctx)
	if err != nil {
		return
	}
	r := &pool.Report{Schema: pool.ReportSchema, Pool: s.Policy.UUID, Node: node, BootID: bootID, Seq: 1, Time: time.Now().UTC(),
		LaunchGraceSeconds: pool.SecondsOf(time.Duration(s.Policy.LaunchGrace)), Observed: []string{}, Draining: []pool.Draining{}, Gaps: []string{}, Uses: []pool.Use{}, Storages: []pool.BaseStorage{}}
	for i := range s.Reports {
		if s.Reports[i].Node == node {
			r.Seq = s.Reports[i].Seq + 1
		}
	}
	for _, h := range s.Held {
		if !slices.Contains(r.Observed, h.ID) {
			r.Observed = append(r.Observed, h.ID)
		}
	}
	fill(r, census)
	text, err := r.Text()
	if err == nil {
		err = newKeeper(c.options()).put(pool.Path(c.dir, pool.Nodes, pool.NodeFile(node)), text)
	}
	if err == nil {
		c.count("reported", 1)
	}
}

// drain waits until all that looked a name up before has its overlay.
func (c *crowd) drain() {
	c.launching.Lock()
	defer c.launching.Unlock()
}

// launch starts a machine, or ends one: it looks the base up, and a while later writes the image on top of it.
func (c *crowd) launch(base string, r *rand.Rand) {
	switch r.IntN(6) {
	case 0:
	case 1, 2, 3:
		c.mu.Lock()
		defer c.mu.Unlock()
		for path := range c.overlays {
			if err := os.Remove(path); err == nil {
				delete(c.overlays, path)
			}
			return
		}
		return
	default:
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		return
	}
	c.launching.RLock()
	defer c.launching.RUnlock()
	e, err := diskio.LookEntry(c.path(base))
	if err != nil {
		return // it would be downloaded
	}
	time.Sleep(time.Duration(r.IntN(4)) * time.Millisecond)
	path := filepath.Join(filepath.Dir(c.dir), fmt.Sprintf("disk-%d", r.Uint64()))
	if err := writeOverlay(path, c.path(base)); err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.overlays[path] = overlay{base, e.Ino}
	c.done["launched"]++
}

// clean removes a base that no machine rests on, as Nova does. What it removed is kept by its shield alone.
func (c *crowd) clean(base string) {
	time.Sleep(time.Millisecond)
	c.launching.Lock()
	defer c.launching.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.overlays {
		if o.base == base {
			return
		}
	}
	if err := os.Remove(c.path(base)); err == nil {
		c.done["cleaned"]++
	}
}

// restore is a person who wants a base back.
func (c *crowd) restore(ctx context.Context, base string) {
	d, err := Restore(ctx, base, RestoreOptions{}, c.options())
	if err == nil {
		c.count("restored", len(d.Restored))
	} else if !errors.Is(err, ErrNoShield) && !errors.Is(err, ErrThere) {
		c.count("not restored", 1)
	}
	time.Sleep(time.Millisecond)
}
