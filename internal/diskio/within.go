// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"context"
	"errors"
	"time"
)

// ErrTimeout: the storage did not answer in time.
var ErrTimeout = errors.New("the storage does not answer")

// parts is in how many parts a time that is waited for is counted.
const parts = 8

// Within runs fn, which may block for ever where storage is dead, and waits at most d for it: then
// it returns ErrTimeout, or the error of ctx if that ends first. A time in which this process itself had no
// turn, on a machine that is very busy, is none in which the storage did not answer: however long, it counts
// as one of a few parts of d. A system call that hangs cannot be ended, so the goroutine of fn stays behind
// until the storage answers; what fn returns then goes to late, which releases it. late may be nil.
func Within[T any](ctx context.Context, d time.Duration, fn func() (T, error), late func(T)) (T, error) {
	done, gone := make(chan result[T]), make(chan struct{})
	defer close(gone)
	go func() {
		val, err := fn()
		select {
		case done <- result[T]{val, err}:
		case <-gone:
			if err == nil && late != nil {
				late(val)
			}
		}
	}()
	timer := time.NewTimer(d / parts)
	defer timer.Stop()
	return await(ctx, done, timer.C, func() { timer.Reset(d / parts) })
}

// result is what a function gave.
type result[T any] struct {
	val T
	err error
}

// await waits for a result until the last part of the time is over; next begins another part.
func await[T any](ctx context.Context, done <-chan result[T], over <-chan time.Time, next func()) (T, error) {
	var none T
	for left := parts; ; {
		select {
		case r := <-done:
			return r.val, r.err
		case <-ctx.Done():
			return none, ctx.Err()
		case <-over:
		}
		if left--; left > 0 {
			next()
			continue
		}
		// It may have come while nobody had a turn.
		select {
		case r := <-done:
			return r.val, r.err
		default:
			return none, ErrTimeout
		}
	}
}
