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

// Within runs fn, which may block for ever where storage is dead, and waits at most d for it: then
// it returns ErrTimeout, or the error of ctx if that ends first. A system call that hangs cannot be
// ended, so the goroutine of fn stays behind until the storage answers; what fn returns then goes
// to late, which releases it. late may be nil.
func Within[T any](ctx context.Context, d time.Duration, fn func() (T, error), late func(T)) (T, error) {
	type result struct {
		val T
		err error
	}
	done, gone := make(chan result), make(chan struct{})
	defer close(gone)
	go func() {
		val, err := fn()
		select {
		case done <- result{val, err}:
		case <-gone:
			if err == nil && late != nil {
				late(val)
			}
		}
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	var none T
	select {
	case r := <-done:
		return r.val, r.err
	case <-timer.C:
		return none, ErrTimeout
	case <-ctx.Done():
		return none, ctx.Err()
	}
}
