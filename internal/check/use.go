// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
)

const (
	// censusAge is how old the list of open files may be. A lock that it does not explain makes a
	// new one at once.
	censusAge = 2 * time.Second
	// censusShare is how many times longer than it took the list is used: images whose machines run
	// on another host all have locks that no list explains.
	censusShare = 10
)

// censor keeps the list of open files while it is fresh.
type censor struct {
	host *linux.Host
	now  func() time.Time

	mu   sync.Mutex
	last *linux.Census
	err  error
	// begun is when it was begun, took how long that took.
	begun time.Time
	took  time.Duration
}

// at gives a list of open files that was begun after the time since, or is so new that another one
// would cost more than it is worth; then fresh is false.
func (c *censor) at(ctx context.Context, since time.Time) (list *linux.Census, fresh bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.begun.IsZero() || c.begun.Before(since) && now.Sub(c.begun) > censusShare*c.took {
		c.begun = now
		c.last, c.err = c.host.Census(ctx)
		c.took = c.now().Sub(now)
	}
	return c.last, !c.begun.Before(since), c.err
}

// use looks who uses an image now. Its error is that of ctx.
func (r *runner) use(ctx context.Context, f *diskio.File, j *job) (Use, error) {
	u, late := Use{Holders: []Holder{}}, ""
	locks, lockErr := diskio.Within(ctx, r.timeout, f.Locks, nil)
	asked := r.now()
	if ctx.Err() != nil {
		return u, ctx.Err()
	}
	census, fresh, censusErr := r.census.at(ctx, asked.Add(-censusAge))
	if !fresh {
		late = "open files were listed some time before"
	}
	u.Holders = holders(ctx, census, j)
	if lockErr == nil && (locks.Writer() || locks.Reader()) && len(u.Holders) == 0 {
		// Somebody came after the list was made.
		census, fresh, censusErr = r.census.at(ctx, asked)
		u.Holders = holders(ctx, census, j)
		if late = ""; !fresh {
			late = "it began just now"
		}
	}
	if ctx.Err() != nil {
		return u, ctx.Err()
	}
	u.decide(locks, lockErr, gaps(census, censusErr), late)
	return u, nil
}

// join joins the texts that are not empty.
func join(sep string, texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), sep)
}

func holders(ctx context.Context, census *linux.Census, j *job) []Holder {
	out := []Holder{}
	if census == nil {
		return out
	}
	for _, h := range census.Holders(ctx, j.stat, j.real) {
		out = append(out, Holder{PID: h.PID, Command: h.Command(), Name: h.Machine(), Writing: h.Writing})
	}
	return out
}

// gaps says what of this host could not be looked at, "" if nothing.
func gaps(census *linux.Census, err error) string {
	if census == nil {
		return fmt.Sprintf("the processes of this host could not be looked at: %v", err)
	}
	return strings.Join(census.Gaps(), "; ")
}

// decide sets the state from the locks and holders. gaps are what of this host was not seen: then that
// nobody was seen says nothing of who was not. late is what makes the list of holders an old one.
//
// None of this is a blind spot of the check, and it never changes the exit status: whoever writes
// meanwhile shows by what changes, and on a host where users cannot see each other every check would
// end with "cannot tell".
func (u *Use) decide(locks diskio.LockState, lockErr error, gaps, late string) {
	writing := false
	for _, h := range u.Holders {
		writing = writing || h.Writing
	}
	switch {
	case lockErr == nil && locks.Writer():
		u.State, u.Reason = UseWrite, "a program holds the lock for writing"
		if len(u.Holders) == 0 {
			u.Reason += ", and cannot be seen from here"
			if why := join("; ", gaps, late); why != "" {
				u.Reason += ": it is on another host, or " + why
			} else {
				u.Reason += ": it is on another host"
			}
		}
	case writing:
		u.State, u.Reason = UseWrite, "a program has it open for writing"
	case lockErr == nil && locks.Reader(), len(u.Holders) > 0:
		u.State, u.Reason = UseRead, "a program has it open for reading"
	case lockErr != nil && gaps != "":
		u.State, u.Reason = UseUnknown, join("; ", reason(lockErr), gaps, late)
	case lockErr != nil:
		u.State, u.Reason = UseNone, fmt.Sprintf(
			"no process of this host has it open; its locks are not known: %v", join("; ", reason(lockErr), late))
	case gaps != "":
		u.State, u.Reason = UseUnknown, join("; ", "no lock is held", gaps, late)
	case late != "":
		u.State, u.Reason = UseNone, "no lock is held; "+late
	default:
		u.State = UseNone
	}
}
