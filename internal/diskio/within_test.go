// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestWithin: it is waited for so long, and what comes later is released.
func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const d = 2 * time.Second
		slow := func(takes time.Duration) func() (int, error) {
			return func() (int, error) {
				time.Sleep(takes)
				return 7, nil
			}
		}
		if n, err := Within(t.Context(), d, slow(d-1), nil); n != 7 || err != nil {
			t.Errorf("Within = %d, %v, want what comes in time", n, err)
		}
		begun, late := time.Now(), make(chan int, 1)
		_, err := Within(t.Context(), d, slow(d+1), func(n int) { late <- n })
		if took := time.Since(begun); !errors.Is(err, ErrTimeout) || took != d {
			t.Errorf("Within = %v after %v, want %v after %v", err, took, ErrTimeout, d)
		}
		if n := <-late; n != 7 {
			t.Errorf("%d is released, want 7", n)
		}
	})
}

// TestWithinNoTurn: where all that is waited for has come by the time that this process has a turn again, the end of
// the time that was waited is not what is told; and one long time without a turn is not all of it.
func TestWithinNoTurn(t *testing.T) {
	for range 100 {
		done, over := make(chan result[int], 1), make(chan time.Time, 1)
		next := func() {
			over <- time.Time{}
			if len(done) == 0 {
				done <- result[int]{val: 7}
			}
		}
		next()
		<-done // the first part was without a turn
		if n, err := await(t.Context(), done, over, next); n != 7 || err != nil {
			t.Fatalf("await = %d, %v, want what came", n, err)
		}
	}
	done, over := make(chan result[int]), make(chan time.Time, 1)
	over <- time.Time{}
	begun := 1
	_, err := await(t.Context(), done, over, func() { begun++; over <- time.Time{} })
	if !errors.Is(err, ErrTimeout) || begun != parts {
		t.Errorf("await = %v after %d parts, want %v after %d", err, begun, ErrTimeout, parts)
	}
}
