// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/holders"
)

const (
	// scanEvery is how often one mount is scanned at most: a umount that is tried again and again
	// must not meet our own looking.
	scanEvery = time.Second
	// scanWait is how long a scan is waited for when its failure is due.
	scanWait = 2 * time.Second
)

// moments does what is to be done at the moment of a failure: one at a time.
type moments struct {
	ctx     context.Context
	o       Options
	running sync.WaitGroup

	mu      sync.Mutex
	busy    bool
	scanned map[int]time.Time // when a mount was scanned last
}

// moment is what was found at the moment of one failure.
type moment struct {
	note string
	done chan struct{}
	r    *holders.Report
	err  error
}

func newMoments(ctx context.Context, o Options) *moments {
	return &moments{ctx: ctx, o: o, scanned: map[int]time.Time{}}
}

// begin starts what is to be done for a failure, nil if there is nothing.
func (m *moments) begin(f Failure) *moment {
	if m.o.Scan == nil && m.o.Moment == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy {
		return &moment{note: "the moment of this failure was not looked at: that of one before was"}
	}
	scan := m.o.Scan != nil && f.Mount.ID != 0
	note := ""
	if scan && time.Since(m.scanned[f.Mount.ID]) < scanEvery {
		scan = false
		note = "who holds it for good was not looked for again: it was within the last second"
	}
	if !scan && m.o.Moment == nil {
		return &moment{note: note}
	}
	if scan {
		m.scanned[f.Mount.ID] = time.Now()
	}
	x := &moment{note: note, done: make(chan struct{})}
	m.busy = true
	m.running.Go(func() {
		if scan {
			x.r, x.err = m.o.Scan(m.ctx, f.Mount.ID)
		}
		close(x.done)
		if m.o.Moment != nil {
			m.o.Moment(m.ctx, f)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.busy = false
	})
	return x
}

// result gives what the scan found, or says why there is nothing.
func (x *moment) result() (*holders.Report, string) {
	if x.done == nil {
		return nil, x.note
	}
	timer := time.NewTimer(scanWait)
	defer timer.Stop()
	select {
	case <-x.done:
	case <-timer.C:
		return nil, "the look for those who hold it for good did not end in time"
	}
	if x.err != nil {
		return nil, "who holds it for good is not known: " + x.err.Error()
	}
	return x.r, x.note
}

func (m *moments) wait() { m.running.Wait() }
