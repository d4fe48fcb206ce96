// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
)

// censusAge is how old the list of open files may be. A lock that it does not explain makes a new
// one at once.
const censusAge = 2 * time.Second

// censor keeps the list of open files while it is fresh.
type censor struct {
	host *linux.Host
	now  func() time.Time

	mu    sync.Mutex
	last  *linux.Census
	err   error
	taken time.Time
}

// at gives a list of open files that is not older than age.
func (c *censor) at(ctx context.Context, age time.Duration) (*linux.Census, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken.IsZero() || c.now().Sub(c.taken) > age {
		c.last, c.err = c.host.Census(ctx)
		c.taken = c.now()
	}
	return c.last, c.err
}

// use looks who uses an image now. Its error is that of ctx.
func (r *runner) use(ctx context.Context, f *diskio.File, j *job) (Use, error) {
	u := Use{Holders: []Holder{}}
	locks, lockErr := diskio.Within(ctx, r.timeout, f.Locks, nil)
	if ctx.Err() != nil {
		return u, ctx.Err()
	}
	census, censusErr := r.census.at(ctx, censusAge)
	u.Holders = holders(ctx, census, j)
	if lockErr == nil && (locks.Writer() || locks.Reader()) && len(u.Holders) == 0 {
		// Somebody came after the list was made.
		census, censusErr = r.census.at(ctx, 0)
		u.Holders = holders(ctx, census, j)
	}
	if ctx.Err() != nil {
		return u, ctx.Err()
	}
	u.decide(locks, lockErr, gaps(census, censusErr))
	return u, nil
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

// decide sets the state from the locks and holders.
func (u *Use) decide(locks diskio.LockState, lockErr error, gaps string) {
	writing := false
	for _, h := range u.Holders {
		writing = writing || h.Writing
	}
	switch {
	case lockErr == nil && locks.Writer():
		u.State, u.Reason = UseWrite, "a program holds the lock for writing"
		if len(u.Holders) == 0 {
			u.Reason += ", and cannot be seen from here"
			if gaps != "" {
				u.Reason += ": it is on another host, or " + gaps
			} else {
				u.Reason += ": it is on another host"
			}
		}
	case writing:
		u.State, u.Reason = UseWrite, "a program has it open for writing"
	case lockErr == nil && locks.Reader(), len(u.Holders) > 0:
		u.State, u.Reason = UseRead, "a program has it open for reading"
	case lockErr != nil && gaps != "":
		u.State, u.Reason = UseUnknown, fmt.Sprintf("%v; %s", reason(lockErr), gaps)
	case lockErr != nil:
		u.State, u.Reason = UseNone, fmt.Sprintf(
			"no process of this host has it open; its locks are not known: %v", reason(lockErr))
	case gaps != "":
		u.State, u.Reason = UseNone, "no lock is held; "+gaps
	default:
		u.State = UseNone
	}
}
