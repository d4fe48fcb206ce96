// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/klog"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Ring gives the kernel's messages, one record at each read, which waits for it. EPIPE says that some were
// overwritten. Close ends a read.
type Ring interface{ io.ReadCloser }

// record is what the ring gave.
type record struct {
	klog.Record
	// lost is how many were overwritten before this one; -1 for a number that is not known.
	lost int64
	// err is why the ring gives no more.
	err error
}

// maxRate is how many records are read in a second: more would take more of the processor than this
// program is to take. The kernel keeps the others, and tells if there is no room left for them.
const maxRate = 200

// follow reads the ring until it ends or ctx does.
func follow(ctx context.Context, ring Ring, to chan<- record) {
	stop := context.AfterFunc(ctx, func() { ring.Close() })
	defer stop()
	give := func(r record) bool {
		select {
		case to <- r:
			return true
		case <-ctx.Done():
			return false
		}
	}
	buf := make([]byte, tree.RecordBytes)
	last, torn := int64(-1), false
	second, inIt := time.Now(), 0
	for {
		if inIt++; inIt > maxRate {
			if !sleep(ctx, time.Second-time.Since(second)) {
				return
			}
			second, inIt = time.Now(), 0
		} else if time.Since(second) > time.Second {
			second, inIt = time.Now(), 0
		}
		n, err := ring.Read(buf)
		switch {
		case errors.Is(err, unix.EPIPE):
			torn = true
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			give(record{err: err})
			return
		}
		rec, err := klog.ParseKmsg(string(buf[:n]))
		if err != nil {
			continue // the kernel writes no others; what somebody else does is no message
		}
		out := record{Record: rec}
		if torn {
			if out.lost = -1; last >= 0 && rec.Sequence > last {
				out.lost = rec.Sequence - last - 1
			}
		}
		last, torn = rec.Sequence, false
		if !give(out) {
			return
		}
	}
}

// sleep waits for a time; it is false where ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
