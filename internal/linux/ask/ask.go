// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package ask asks mounts whether they answer, in child processes that are left behind where one does
// not: a process that waits in the kernel for storage cannot be ended, and would not let this one end.
//
// Each mount is asked once, by stat(2) and statfs(2) of its mount point, and by making a file without a
// name where that is wanted. A child asks one mount after the other and has nothing open of any of
// them, so that it is in the way of a umount for some microseconds only. The first that does not answer
// costs a child; no mount is asked by two, not by two runs of the program either: a child that hangs
// bears the number of the mount as its name.
package ask

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// Question is a mount that is to be asked.
type Question struct {
	// ID is its number in mountinfo, Point where it is.
	ID    int
	Point string
	// PID is a process that sees it, 0 if this one does.
	PID int
	// Write asks for a file without a name.
	Write bool
	// With joins mounts that hang together, as those of one server; "" is none of these. After one of
	// them did not answer the others are not asked.
	With string
	// Slow tells of a mount that waits for somebody else than a device; those are asked beside the
	// others.
	Slow bool
}

// Answer is what a mount answered.
type Answer struct {
	// Errno is the error of stat(2) on the mount point, StatfsErrno that of statfs(2), 0 if none;
	// -1 if the call was not made.
	Errno       int `json:"errno"`
	StatfsErrno int `json:"statfs_errno"`
	// Hung: there was no answer within Waited.
	Hung   bool          `json:"hung"`
	Waited time.Duration `json:"waited"`
	// ReadOnly is ST_RDONLY of statfs.
	ReadOnly bool `json:"read_only"`
	// Blocks of BlockSize bytes, how many are free for root and for others; inodes and the free ones.
	// A file system without a number of inodes has 0.
	BlockSize  uint64 `json:"block_size"`
	Blocks     uint64 `json:"blocks"`
	Free       uint64 `json:"free"`
	Avail      uint64 `json:"avail"`
	Inodes     uint64 `json:"inodes"`
	InodesFree uint64 `json:"inodes_free"`
	// WriteErrno is the error of making an unnamed file, -1 if that was not asked for.
	WriteErrno int `json:"write_errno"`
	// Other: the mount point leads to another mount.
	Other bool `json:"other"`
}

// Result is what became of a question: an answer, or why there is none.
type Result struct {
	Answer *Answer
	Why    string
}

// Options bound the asking. Zero values are the usual ones.
type Options struct {
	// Patience is how long one mount is waited for, Total all of them together.
	Patience, Total time.Duration
}

const (
	usualPatience = 2 * time.Second
	usualTotal    = 7 * time.Second
	// maxSlow is how many children ask mounts that may hang.
	maxSlow = 4
)

// Asker asks. It remembers the children that hang, of this process and of others.
type Asker struct {
	mu   sync.Mutex
	left []int // children that did not end
}

// round is one call of Ask.
type round struct {
	o   Options
	end time.Time

	mu      sync.Mutex
	results []Result
	mute    map[string]string // With -> the mount point that did not answer
	left    []int
}

// Ask asks mounts and gives the results in their order. It takes no longer than Options.Total and what
// a busy machine adds to that, whatever hangs. What ctx ends is told as such.
func (a *Asker) Ask(ctx context.Context, mounts []Question, o Options) []Result {
	o.Patience, o.Total = cmp.Or(o.Patience, usualPatience), cmp.Or(o.Total, usualTotal)
	r := &round{o: o, end: time.Now().Add(o.Total), results: make([]Result, len(mounts)), mute: map[string]string{}}
	a.reap()
	hang := a.hanging(ctx)
	var quick, slow []int
	for i, q := range mounts {
		switch pid := hang[q.ID]; {
		case pid != 0:
			r.results[i].Why = stillHangs(pid)
		case q.Slow:
			slow = append(slow, i)
		default:
			quick = append(quick, i)
		}
	}
	queues := []chan int{filled(quick), filled(slow)}
	var wait sync.WaitGroup
	for n := range min(len(slow), maxSlow) + min(len(quick), 1) {
		from := queues[1]
		if n == 0 && len(quick) > 0 {
			from = queues[0]
		}
		wait.Go(func() { r.work(ctx, mounts, from) })
	}
	wait.Wait()
	a.mu.Lock()
	a.left = append(a.left, r.left...)
	a.mu.Unlock()
	return r.results
}

// filled is a queue that has all that will be in it.
func filled(list []int) chan int {
	c := make(chan int, len(list))
	for _, i := range list {
		c <- i
	}
	close(c)
	return c
}

// work takes mounts from a queue until that is empty, with a new child whenever one hangs.
func (r *round) work(ctx context.Context, mounts []Question, queue <-chan int) {
	var c *child
	for i := range queue {
		q := &mounts[i]
		if why := r.not(ctx, q); why != "" {
			r.set(i, Result{Why: why})
			continue
		}
		if c == nil {
			var err error
			if c, err = start(); err != nil {
				r.set(i, Result{Why: "no process could be started to ask it: " + err.Error()})
				continue
			}
		}
		answer, why := c.ask(ctx, q, r.o.Patience)
		r.set(i, Result{answer, why})
		if why == "" && !answer.Hung {
			continue
		}
		if answer != nil && q.With != "" {
			r.mu.Lock()
			r.mute[q.With] = q.Point
			r.mu.Unlock()
		}
		r.leave(c.kill())
		c = nil
	}
	if c != nil {
		r.leave(c.end())
	}
}

// not says why a mount is not asked, "" if it is.
func (r *round) not(ctx context.Context, q *Question) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return "it was not asked: " + ctx.Err().Error()
	case r.mute[q.With] != "" && q.With != "":
		return "it was not asked, since " + q.With + " did not answer at " + r.mute[q.With]
	case time.Now().After(r.end):
		return "there was no time left to ask it, after others that did not answer"
	}
	return ""
}

func (r *round) set(i int, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results[i] = result
}

// leave remembers a child that did not end, 0 for one that did.
func (r *round) leave(pid int) {
	if pid == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = append(r.left, pid)
}

// reap takes away the children that ended at last.
func (a *Asker) reap() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = slices.DeleteFunc(a.left, ended)
}

// Left is how many children were left behind and have not ended.
func (a *Asker) Left() int {
	a.reap()
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.left)
}
