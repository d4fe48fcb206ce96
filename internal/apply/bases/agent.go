// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/fleet"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// AgentOptions say what an agent does.
type AgentOptions struct {
	Pass PassOptions
	// Every is how long it rests between two passes; 0 is ten minutes. Once: it makes one pass, and ends.
	Every time.Duration
	Once  bool
	// Protect, if set, has each pass protect the bases as well, and bring back what is needed and missing.
	Protect *ProtectOptions
	// Events tells of removals, to bring a base back at once; nil has every pass find them. It needs Protect.
	Events Events
	// Tell is told of each thing that happens.
	Tell func(pool.Happened) error
}

// Agent makes a pass again and again until ctx ends, or once. complete tells of the last one whether everything was read
// that may need a base. It ends with the error of ctx, those of Pass, of Watch, and of Tell: who started it starts it
// again.
func Agent(ctx context.Context, a AgentOptions, o Options) (complete bool, err error) {
	every := cmp.Or(a.Every, passEvery)
	pass := func(ctx context.Context) (*refs.Census, error) {
		r, c, err := again(ctx, a.Pass, o)
		if err != nil {
			return nil, err
		}
		complete = r.Complete
		return c, a.Tell(pool.Happened{Time: r.Time, What: pool.Reported, Why: reportWords(r)})
	}
	if a.Protect != nil {
		w := WatchOptions{Protect: *a.Protect, Every: every, Census: pass, Events: a.Events, Tell: a.Tell}
		if a.Once {
			err = (&watcher{o: newKeeper(o).Options, w: w}).pass(ctx)
		} else {
			err = Watch(ctx, w, o)
		}
		return complete, err
	}
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		if _, err := pass(ctx); err != nil || a.Once {
			return complete, err
		}
		timer.Reset(every)
		select {
		case <-ctx.Done():
			return complete, context.Cause(ctx)
		case <-timer.C:
		}
	}
}

// maxAgain is how often a pass is begun that another one of this node overtakes: a person who asks for one disturbs no agent,
// and agents that run side by side disturb each other for ever.
const maxAgain = 5

// again is Pass, which is made anew where another agent of this node reported while it looked.
func again(ctx context.Context, p PassOptions, o Options) (r *pool.Report, c *refs.Census, err error) {
	for range maxAgain {
		if r, c, err = Pass(ctx, p, o); !errors.Is(err, ErrTwice) {
			break
		}
	}
	return r, c, err
}

// Describe makes one pass, and gives what the node says to those that do not share its directory.
func Describe(ctx context.Context, p PassOptions, o Options) (*pool.Inventory, error) {
	r, c, err := again(ctx, p, o)
	if err != nil {
		return nil, err
	}
	s, err := pool.Read(ctx, o.Bases, newKeeper(o).Timeout)
	if err != nil {
		return nil, err
	}
	return fleet.Describe(r, c, s), nil
}

// reportWords says in words what a report says.
func reportWords(r *pool.Report) string {
	uses := int64(len(r.Uses))
	for i := range r.Uses {
		uses += r.Uses[i].More
	}
	text := fmt.Sprintf("report %d: %s in %s; %d in quarantine seen", r.Seq, finding.Count(uses, "use", "uses"),
		finding.Count(r.Images, "image", "images"), len(r.Observed))
	waiting := 0
	for _, d := range r.Draining {
		waiting += len(d.Observed)
	}
	if waiting > 0 {
		text += fmt.Sprintf(", %d waited for", waiting)
	}
	if !r.Complete {
		text += "; " + notSeen(len(r.Gaps))
	}
	return text
}
