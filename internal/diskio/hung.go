// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// hung knows the looks that were given up and still wait for their storage, each of which keeps a thread of the operating
// system: a program that looks again and again for months would come to have more of them than it may.
type hung struct {
	mu  sync.Mutex
	all map[any]*hang // by a lookFor
}

// lookFor is what is looked for, by its type, at a path: names may answer where what they hold does not.
type lookFor[T any] struct{ path string }

// hang is since when something does not answer, and when it is asked once more.
type hang struct{ since, next time.Time }

// maxHung is how long at most something that hangs is not asked again: so long what was mounted in its place is not seen. A
// month of it leaves some 700 threads.
const maxHung = time.Hour

type hungKey struct{}

// WithHung is for programs that go on: WithinAt and Sweep then begin no look where an earlier one still hangs.
func WithHung(ctx context.Context) context.Context {
	return context.WithValue(ctx, hungKey{}, &hung{all: map[any]*hang{}})
}

func hungOf(ctx context.Context) *hung {
	h, _ := ctx.Value(hungKey{}).(*hung)
	return h
}

// WithinAt is Within for a look at a path. Below WithHung, where an earlier look for the same was given up and has not come
// back, it returns ErrTimeout at once, with since when. As soon as that one comes back the path is looked at again; and
// each time that it has hung for twice as long, maxHung at most, since what hangs may have been mounted anew and never come back.
func WithinAt[T any](ctx context.Context, path string, d time.Duration, fn func() (T, error), late func(T)) (T, error) {
	h := hungOf(ctx)
	if h == nil {
		return Within(ctx, d, fn, late)
	}
	key, begun := lookFor[T]{path}, time.Now()
	if err := h.refuse(key); err != nil {
		var none T
		return none, err
	}
	back := false // under h.mu
	val, err := Within(ctx, d, func() (T, error) {
		defer h.answered(key, &back)
		return fn()
	}, late)
	if errors.Is(err, ErrTimeout) {
		h.gaveUp(key, begun, &back)
	}
	return val, err
}

// gaveUp notes that a look began at a time and is not waited for any more, unless it is back.
func (h *hung) gaveUp(key any, begun time.Time, back *bool) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !*back && h.all[key] == nil {
		h.all[key] = &hang{since: begun, next: again(begun)}
	}
}

// answered notes that a look is back.
func (h *hung) answered(key any, back *bool) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	*back = true
	delete(h.all, key)
}

// again is when something is asked once more that hangs since a time.
func again(since time.Time) time.Time {
	now := time.Now()
	return now.Add(min(max(now.Sub(since), time.Minute), maxHung))
}

// refuse is ErrTimeout where a look still hangs that is not to be begun once more yet.
func (h *hung) refuse(key any) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	is := h.all[key]
	switch {
	case is == nil:
		return nil
	case time.Now().Before(is.next):
		return fmt.Errorf("%w since %s", ErrTimeout, is.since.UTC().Format(time.RFC3339))
	}
	is.next = again(is.since)
	return nil
}

// swept gives the paths where a look of an earlier sweep hangs.
func (h *hung) swept() map[string]bool {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	paths := map[string]bool{}
	for key := range h.all {
		if k, ok := key.(lookFor[Swept]); ok {
			paths[k.path] = true
		}
	}
	return paths
}

// hanging is why a sweep does not look at a path, nil where it does. It is asked when the sweep comes to that path: one of
// other directories tries nothing once more that it does not come to.
func (r *sweep) hanging(path string) error {
	if !r.hangs[path] {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.anew[path] {
		return nil
	}
	if err := r.hung.refuse(lookFor[Swept]{path}); err != nil {
		return err
	}
	if r.anew == nil {
		r.anew = map[string]bool{}
	}
	r.anew[path] = true
	return nil
}

// answers notes what answered that was looked at once more: all but where somebody was given up.
func (r *sweep) answers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for path := range r.anew {
		r.hung.answered(lookFor[Swept]{path}, new(bool))
	}
}
