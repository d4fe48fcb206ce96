// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// errAbandoned is what a reader gets that comes back to an image which was given up.
var errAbandoned = errors.New("the image was given up")

// limiter spreads reads so that they stay under a rate.
type limiter struct {
	rate  int64 // bytes a second, 0: no bound
	now   func() time.Time
	sleep func(context.Context, time.Duration) error

	mu   sync.Mutex
	free time.Time // when the next read may begin
}

// wait waits for the turn of a read of n bytes.
func (l *limiter) wait(ctx context.Context, n int) error {
	if l == nil || l.rate <= 0 {
		return nil
	}
	l.mu.Lock()
	now := l.now()
	start := l.free
	if start.Before(now) {
		start = now
	}
	l.free = start.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	l.mu.Unlock()
	if pause := start.Sub(now); pause > 0 {
		return l.sleep(ctx, pause)
	}
	return nil
}

// guard reads an image under a rate and remembers when a read last ended, so that storage which
// hangs is seen. A read that hangs cannot be ended: its goroutine stays until the storage answers.
type guard struct {
	ctx     context.Context
	r       io.ReaderAt
	limit   *limiter
	timeout time.Duration

	gone    atomic.Bool  // given up: no read is begun any more
	under   atomic.Int64 // reads under way
	last    atomic.Int64 // when the last one ended, or the first of those under way began
	started time.Time    // last counts from here
}

// guard makes the reader of an open file.
func (r *runner) guard(ctx context.Context, f *diskio.File) *guard {
	g := &guard{ctx: ctx, r: f, limit: r.limit, timeout: r.timeout, started: time.Now()}
	if r.reader != nil {
		g.r = r.reader(f)
	}
	return g
}

// ReadAt is io.ReaderAt.
func (g *guard) ReadAt(p []byte, off int64) (int, error) { return g.read(g.r, p, off) }

// read reads from r.
func (g *guard) read(r io.ReaderAt, p []byte, off int64) (int, error) {
	if err := g.limit.wait(g.ctx, len(p)); err != nil {
		return 0, err
	}
	if g.gone.Load() {
		return 0, errAbandoned
	}
	if g.under.Add(1) == 1 {
		g.last.Store(int64(time.Since(g.started)))
	}
	n, err := r.ReadAt(p, off)
	g.last.Store(int64(time.Since(g.started)))
	g.under.Add(-1)
	return n, err
}

// stuck reports whether reads are under way and none has ended for the whole of the timeout.
func (g *guard) stuck() bool {
	return g.under.Load() > 0 && time.Since(g.started)-time.Duration(g.last.Load()) > g.timeout
}

// cancelGrace is how long reads that are under way may take to end after an interruption.
const cancelGrace = 500 * time.Millisecond

// during runs fn, which reads through g only, and gives it up when g is stuck, or ctx ended and fn
// does not follow. late is called once fn has returned, whenever that is.
func during[T any](ctx context.Context, g *guard, fn func() (T, error), late func()) (T, error) {
	type result struct {
		val T
		err error
	}
	done := make(chan result, 1)
	go func() {
		val, err := fn()
		late()
		done <- result{val, err}
	}()
	tick := time.NewTicker(max(g.timeout/8, time.Millisecond))
	defer tick.Stop()
	cancelled := ctx.Done()
	var grace <-chan time.Time
	var none T
	for {
		select {
		case r := <-done:
			return r.val, r.err
		case <-cancelled:
			cancelled, grace = nil, time.After(cancelGrace)
		case <-grace:
			g.gone.Store(true)
			return none, ctx.Err()
		case <-tick.C:
			if g.stuck() {
				g.gone.Store(true)
				return none, fmt.Errorf("%w: no read ended for %v", diskio.ErrTimeout, g.timeout)
			}
		}
	}
}
