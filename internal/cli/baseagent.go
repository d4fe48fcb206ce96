// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

// pass says who this node is, and how it looks.
func (o *poolOptions) pass(ctx context.Context, s *stdio) (bases.PassOptions, error) {
	host := linux.Open("")
	run, err := host.Run(ctx)
	if err != nil {
		return bases.PassOptions{}, err
	}
	p := bases.PassOptions{Machine: pool.MachineDigest(run.MachineID), Run: s.machine.run(host.Run),
		Census: func(ctx context.Context) (*refs.Census, error) { return o.census(ctx, s) }}
	if o.said != nil {
		p.Pool = o.said.UUID
	}
	return p, nil
}

func newBaseAgent(s *stdio) *cobra.Command {
	var o poolOptions
	var every time.Duration
	var once bool
	c := &cobra.Command{
		Use:   "agent [POOL]",
		Short: "tell the nodes that share a pool what this one needs",
		Long: `agent looks again and again who needs what on this node, and says so to all that share the pool, through the pool
itself: a base is removed for good only when the latest report of every node speaks for it. A node becomes a member
by its first report, and stays one for ever; see "shisa base node".

Each report names the bases in quarantine of which the node has looked for uses since it could see them there, and since
every launch that may have begun before had the time to write its disk (launch_grace in pool.json). With --once
it makes one pass and ends; what has to be waited for between passes is remembered in the report, whoever makes the
next one.

Without POOL it is the agent of all pools that the configuration names; one that is not there is told of, and tried again.

With protect: true in the configuration each pass does what "shisa base protect" does as well, and brings back what is
needed and missing; with watch: true as soon as it is removed.

Two machines that call themselves alike would each take back what the other said: the second is refused (exit status 5),
and nothing is removed until a person has seen to it. The pool has to be there: agent never begins one, since a
directory where nothing is mounted looks like that.`,
		Example: `  shisa base agent /var/lib/nova/instances
  shisa base agent --once /var/lib/nova/instances
  shisa base agent --every 5m --json /var/lib/nova/instances`,
		Args: wantArgs(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if every < time.Second {
				return usageError(c, "--every is less than a second")
			}
			if err := o.wantPools(c); err != nil {
				return err
			}
			goOn := func(ctx context.Context, o *poolOptions, s *stdio) error { return o.agent(ctx, every, false, s) }
			switch {
			case o.pool != "" && once:
				return o.agent(c.Context(), 0, true, s)
			case o.pool != "":
				return o.alone(c.Context(), s, goOn)
			case once:
				return o.agents(c.Context(), s)
			}
			return o.together(c.Context(), restart, s, goOn)
		},
	}
	o.actFlags(c)
	o.completePool(c, 0, nil)
	o.censusFlags(c)
	f := c.Flags()
	f.DurationVar(&every, "every", 10*time.Minute, "rest `D` between two passes")
	f.BoolVar(&once, "once", false, "make one pass, and end")
	return c
}

// agents makes one pass over each pool of the configuration.
func (o *poolOptions) agents(ctx context.Context, s *stdio) error {
	var all []render.BasePool
	for i := range o.several {
		one := &o.several[i]
		err := one.agent(ctx, 0, true, s)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := &render.BasePool{Status: []int{finding.StatusClean}}
		if se := new(statusError); errors.As(err, &se) && se.err == nil {
			p.Status[0] = se.status // the pass was made
		} else if err != nil {
			p = one.failed(err, s)
		}
		all = append(all, *p)
	}
	return exitWith(poolsStatus(all)[0])
}

// agent makes passes over a pool, until it is stopped or once.
func (o *poolOptions) agent(ctx context.Context, every time.Duration, once bool, s *stdio) (err error) {
	act, end, err := o.act(ctx, s)
	if err != nil {
		return err
	}
	defer end()
	a := bases.AgentOptions{Every: every, Once: once, Tell: func(h pool.Happened) error { return o.tell(h, act.Bases, s) }}
	if a.Pass, err = o.pass(ctx, s); err != nil {
		return err
	}
	if o.said != nil && o.said.Protect {
		a.Protect = &bases.ProtectOptions{KeepAlive: o.said.KeepAlive}
	}
	if o.said != nil && o.said.Watch && !once {
		events, err := hearOf(act.Bases, s)
		if err != nil {
			return err
		}
		if events != nil {
			defer func() { err = errors.Join(err, events.Close()) }()
			a.Events = events
		}
	}
	complete, err := bases.Agent(ctx, a, act)
	if err != nil {
		return poolError(err, o.pool)
	}
	if !complete {
		return exitWith(finding.StatusCannotTell)
	}
	return nil
}

func newBaseReport(s *stdio) *cobra.Command {
	var o poolOptions
	c := &cobra.Command{
		Use:   "report POOL",
		Short: "print what this node needs, for nodes that share no pool",
		Long: `report makes one pass as "shisa base agent --once" does, and prints what this node needs and which bases it has, as one
JSON document for "shisa base fleet": for nodes each of which has a pool of its own.

The exit status is 4 if anything could not be read that may need a base; the document says so too.`,
		Example: `  shisa base report /var/lib/nova/instances >node1.json`,
		Args:    wantArgs(1, 1),
		RunE:    func(c *cobra.Command, args []string) error { return runBaseReport(c.Context(), o, s) },
	}
	o.actFlags(c)
	o.completePool(c, 0, nil)
	o.censusFlags(c)
	return c
}

func runBaseReport(ctx context.Context, o poolOptions, s *stdio) error {
	act, end, err := o.act(ctx, s)
	if err != nil {
		return err
	}
	defer end()
	p, err := o.pass(ctx, s)
	if err != nil {
		return err
	}
	i, err := bases.Describe(ctx, p, act)
	end()
	if err != nil {
		return poolError(err, o.pool)
	}
	text, err := i.Text()
	if err != nil {
		return err
	}
	if _, err := s.out.Write(text); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if !i.Report.Complete {
		return exitWith(finding.StatusCannotTell)
	}
	return nil
}
