// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/roll"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBaseNode(s *stdio) *cobra.Command {
	c := &cobra.Command{
		Use:   "node list|join|retire POOL [NODE]",
		Short: "the nodes that use a pool: list them, add one, retire one",
		Long: `node says which nodes use a pool. Whoever used it once is a member for ever: a node that says nothing may come back
with all of its machines, and what it said last counts until then. Only a person who knows that it does not
come back can retire it, with a reason.`,
		Example: `  shisa base node list /var/lib/nova/instances
  shisa base node join /var/lib/nova/instances node4 --reason "new, in rack 7"
  shisa base node retire /var/lib/nova/instances node2 --reason "scrapped, machines moved to node4"`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return usageError(c, "no command was given")
		},
	}
	c.AddCommand(newBaseNodeList(s), newBaseNodeJoin(s), newBaseNodeRetire(s))
	return c
}

func newBaseNodeList(s *stdio) *cobra.Command {
	var o poolOptions
	c := &cobra.Command{
		Use:   "list [POOL]",
		Short: "list the nodes that use a pool, and when each was heard",
		Long: `list tells of every node that uses a pool when it said last what it needs, whether it could read everything, and which
bases only it needs. Strangers are those that Nova's list of hosts, the configuration, or the NFS server on this
host name, and that are no members: nothing is removed as long as there is one. It only reads. Without POOL it lists
those of each pool that the configuration names.

The exit status is 4 if anything could not be read that may be what a node said.`,
		Example: `  shisa base node list /var/lib/nova/instances
  shisa base node list --json /var/lib/nova/instances`,
		Args: wantArgs(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.wantPools(c); err != nil {
				return err
			}
			return o.each(c.Context(), s, func(ctx context.Context, o *poolOptions) (*render.BasePool, error) {
				return o.nodes(ctx, s)
			})
		},
	}
	o.flags(c)
	o.censusFlags(c)
	o.completePool(c, 0, nil)
	return c
}

// nodes lists the nodes that use the pool.
func (o *poolOptions) nodes(ctx context.Context, s *stdio) (*render.BasePool, error) {
	c, err := o.census(ctx, s)
	if err != nil {
		return nil, err
	}
	state, err := pool.Read(ctx, c.Bases, 10*time.Second)
	if err != nil {
		return nil, err
	}
	known, unknown, err := o.known(ctx, c)
	if err != nil {
		return nil, err
	}
	l := roll.Of(state, known, unknown, time.Now())
	return &render.BasePool{Path: o.pool, Status: l.Status, Nodes: l}, nil
}

func newBaseNodeJoin(s *stdio) *cobra.Command {
	var o poolOptions
	var reason string
	c := &cobra.Command{
		Use:   "join POOL [NODE]",
		Short: "make a node a member of a pool before it has said anything",
		Long: `join makes a node a member: nothing is removed until it has said what it needs. A node joins by itself with the first
pass of "shisa base agent", so that this is for one that has no agent yet, and for a host alone. Without NODE it is
this host.

It takes a retirement back: what the node said last counts again until it speaks, and the pins that stand for what it
used stay, see "shisa base unpin". It begins the pool where there is none. It acts at once and leaves a receipt:
"shisa undo" takes it back, as long as the node has said nothing since.`,
		Example: `  shisa base node join /var/lib/nova/instances
  shisa base node join /var/lib/nova/instances node4
  shisa base node join /var/lib/nova/instances node2 --reason "it was repaired after all"`,
		Args: wantArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			by := bases.Person{By: who(), Reason: cmp.Or(reason, "joined by hand")}
			return o.members(c.Context(), s, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
				node := act.Node
				if len(args) > 1 {
					node = args[1]
				}
				d, err := bases.Join(ctx, node, by, act)
				if errors.Is(err, bases.ErrMember) {
					err = finding.WithHint(withStatus(finding.StatusRefused, err), "shisa base node list "+render.Word(o.pool)+" lists them")
				}
				return d, err
			})
		},
	}
	o.actFlags(c)
	o.censusFlags(c)
	o.completePool(c, 1, nodesAre(true))
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` to keep: why")
	return c
}

func newBaseNodeRetire(s *stdio) *cobra.Command {
	var o poolOptions
	var reason string
	var risks []string
	c := &cobra.Command{
		Use:   "retire POOL NODE",
		Short: "say that a node does not come back; what it used is pinned",
		Long: `retire says that a node does not come back, so that it is not waited for any more. Every base that its last report names
is pinned first: its machines may be started elsewhere. A pin goes with "shisa base unpin". "shisa base node join"
takes it back, and so does the node itself when it says anything. It leaves a receipt: "shisa undo" has the node be what it
was, and takes the pins away that were made for it.

It is refused for a node that reported within 20 minutes, for one that never did, and for one that could not read
everything; each can be accepted by name.`,
		Example: `  shisa base node retire /var/lib/nova/instances node2 --reason "scrapped, machines moved to node4"
  shisa base node retire /var/lib/nova/instances node9 --reason "was never installed" --accept-risk=silent:node9`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usageError(c, "--reason is wanted: it is kept for who asks later")
			}
			r, err := retireRisks(c, risks, args[1])
			if err != nil {
				return err
			}
			return runBaseNodeRetire(c.Context(), o, args[1], reason, r, s)
		},
	}
	o.actFlags(c)
	o.censusFlags(c)
	o.completePool(c, 1, nodesAre(false))
	f := c.Flags()
	f.StringVar(&reason, "reason", "", "`TEXT` to keep: how it is known that the node does not come back")
	f.Var((*repeated)(&risks), "accept-risk", "take a `RISK`: alive:NODE, it reported a moment ago; silent:NODE, nobody knows "+
		"what it needs; incomplete:NODE, it could not see all that it needs")
	return c
}

// retireRisks takes the risks that were accepted for a node. The error is one of the command line.
func retireRisks(c *cobra.Command, risks []string, node string) (r bases.RetireOptions, err error) {
	for _, risk := range risks {
		switch risk {
		case "alive:" + node:
			r.Alive = true
		case "silent:" + node:
			r.Silent = true
		case "incomplete:" + node:
			r.Partly = true
		default:
			return r, usageError(c, "%q is no risk that can be taken here: alive:%s, silent:%s, incomplete:%s", risk, node, node, node)
		}
	}
	return r, nil
}

func runBaseNodeRetire(
	ctx context.Context, o poolOptions, node, reason string, r bases.RetireOptions, s *stdio,
) error {
	c, err := o.census(ctx, s)
	if err != nil {
		return err
	}
	known, _, err := o.known(ctx, c) // what could not be asked names nobody, and who is not known is refused
	if err != nil {
		return err
	}
	r.Known = roll.Names(known)
	return o.members(ctx, s, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
		_, d, err := bases.Retire(ctx, node, bases.Person{By: who(), Reason: reason}, r, act)
		risk := ""
		switch {
		case errors.Is(err, bases.ErrAlive):
			risk = "alive"
		case errors.Is(err, bases.ErrSilent):
			risk = "silent"
		case errors.Is(err, bases.ErrPartly):
			risk = "incomplete"
		case errors.Is(err, fs.ErrExist):
			return d, withStatus(finding.StatusRefused, err)
		case errors.Is(err, bases.ErrUnknown):
			return d, finding.WithHint(err, "shisa base node list "+render.Word(o.pool)+" lists them")
		default:
			return d, err
		}
		return d, finding.WithHint(withStatus(finding.StatusRefused, err), "if it is known all the same that it does not come back: "+
			"--accept-risk="+risk+":"+render.Word(node))
	})
}

// members does something to the nodes of the pool, and lists them as they are then.
func (o *poolOptions) members(ctx context.Context, s *stdio, do acting) error {
	d, err := o.done(ctx, s, do)
	if err != nil {
		return err
	}
	l, err := o.nodes(ctx, s)
	if err != nil {
		return err
	}
	l.Nodes.Receipt, l.Nodes.Undo = d.Receipt, d.Undo
	return o.show(l, s)
}
