// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/roll"
	"github.com/shisa-vm/shisa/internal/render"
)

// who is the person that runs the program, as far as the system knows.
func who() string {
	if sudo := os.Getenv("SUDO_USER"); sudo != "" {
		return sudo
	}
	u, err := user.Current()
	if err != nil {
		return fmt.Sprintf("uid %d", os.Getuid())
	}
	return u.Username
}

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
		Use:   "list POOL",
		Short: "list the nodes that use a pool, and when each was heard",
		Long: `list tells of every node that uses a pool when it said last what it needs, whether it could read everything, and which
bases only it needs. Strangers are those that Nova's list of hosts, the configuration, or the NFS server on this
host name, and that are no members: nothing is removed as long as there is one. It only reads.

The exit status is 4 if anything could not be read that may be what a node said.`,
		Example: `  shisa base node list /var/lib/nova/instances
  shisa base node list --json /var/lib/nova/instances`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return runBaseNodeList(c.Context(), o, args[0], s) },
	}
	o.flags(c)
	return c
}

func runBaseNodeList(ctx context.Context, o poolOptions, name string, s *stdio) error {
	c, err := o.census(ctx, name, s)
	if err != nil {
		return err
	}
	state, err := pool.Read(ctx, c.Bases, 10*time.Second)
	if err != nil {
		return err
	}
	known, unknown, err := o.known(ctx, c)
	if err != nil {
		return err
	}
	l := roll.Of(state, known, unknown, time.Now())
	if o.json {
		err = render.JSON(s.out, render.BaseNodesSchema, l)
	} else {
		err = render.BaseNodes(s.out, l, render.Style{Width: s.width, Color: s.colour, All: o.all})
	}
	if err != nil {
		return err
	}
	return exitWith(l.Status[0])
}

func newBaseNodeJoin(s *stdio) *cobra.Command {
	var o poolOptions
	var reason string
	c := &cobra.Command{
		Use:   "join POOL NODE",
		Short: "make a node a member of a pool before it has said anything",
		Long: `join makes a node a member: nothing is removed until it has said what it needs. A node joins by itself with the first
pass of "shisa base agent", so that this is for one that has no agent yet, and for a host alone.

It takes a retirement back; the pins that stand for what the node used stay, see "shisa base unpin". It begins
the pool where there is none.`,
		Example: `  shisa base node join /var/lib/nova/instances node4
  shisa base node join /var/lib/nova/instances node2 --reason "it was repaired after all"`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			by := bases.Person{By: who(), Reason: cmp.Or(reason, "joined by hand")}
			return runBaseNode(c.Context(), o, args[0], s, func(ctx context.Context, act bases.Options) error {
				_, err := bases.Join(ctx, args[1], by, act)
				if errors.Is(err, bases.ErrMember) {
					return withStatus(finding.StatusRefused, err)
				}
				return err
			})
		},
	}
	o.actFlags(c)
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
takes it back, and so does the node itself when it says anything.

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
			return runBaseNodeRetire(c.Context(), o, args[0], args[1], reason, r, s)
		},
	}
	o.actFlags(c)
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
	ctx context.Context, o poolOptions, name, node, reason string, r bases.RetireOptions, s *stdio,
) error {
	c, err := o.census(ctx, name, s)
	if err != nil {
		return err
	}
	known, _, err := o.known(ctx, c) // what could not be asked names nobody, and who is not known is refused
	if err != nil {
		return err
	}
	r.Known = roll.Names(known)
	return runBaseNode(ctx, o, name, s, func(ctx context.Context, act bases.Options) error {
		_, err := bases.Retire(ctx, node, bases.Person{By: who(), Reason: reason}, r, act)
		risk := ""
		switch {
		case errors.Is(err, bases.ErrAlive):
			risk = "alive"
		case errors.Is(err, bases.ErrSilent):
			risk = "silent"
		case errors.Is(err, bases.ErrPartly):
			risk = "incomplete"
		case errors.Is(err, fs.ErrExist):
			return withStatus(finding.StatusRefused, err)
		case errors.Is(err, bases.ErrUnknown):
			return finding.WithHint(err, "shisa base node list "+render.Word(name)+" lists them")
		default:
			return err
		}
		return finding.WithHint(withStatus(finding.StatusRefused, err), "if it is known all the same that it does not come back: "+
			"--accept-risk="+risk+":"+render.Word(node))
	})
}

// runBaseNode does something to the nodes of a pool, and lists them as they are then.
func runBaseNode(ctx context.Context, o poolOptions, name string, s *stdio,
	do func(ctx context.Context, act bases.Options) error,
) error {
	dir, err := refs.BasesIn(ctx, name, o.baseName, 10*time.Second)
	if err != nil {
		return err
	}
	act, done, err := o.act(dir, s)
	if err != nil {
		return err
	}
	err = do(ctx, act)
	done()
	if err != nil {
		return passError(err, name)
	}
	return runBaseNodeList(ctx, o, name, s)
}
