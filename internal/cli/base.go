// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/config"
)

// newBase is the command that has the commands about base images.
func newBase(s *stdio) *cobra.Command {
	c := &cobra.Command{
		Use:   "base VERB [POOL] [NAME]",
		Short: "base images: who needs them, and keeping them from being lost",
		Long: `base keeps base images from being lost: those that the disks of many machines rest on, and that a cleaner
removes as soon as it believes that nobody needs them.

POOL is the directory of instances with a directory of bases in it (of OpenStack Nova: /var/lib/nova/instances, with
_base), that directory itself, or a directory of images of libvirt.

Who needs a base is read from the headers of all images below the pool, whatever they are called and wherever their
chains lead, from what processes have open, and from the machines that are configured. What could not be read may need
any of them: then the exit status is 4.

What an administrator says of pools stands in ` + config.Default + ` (--config FILE). It applies where POOL is a path of
that file, or the directory of bases in it by any name: further directories and exports of Nova's database come on top of those of
the flags; what this host is called among the nodes, what the directory of bases is called, Nova's list of hosts,
and how often bases are touched go where no flag says it. A key that is not known, and one without a value,
are errors with their line. Without POOL scan, missing, protect, agent and node list are about all pools of that file.`,
		Example: `  shisa base scan /var/lib/nova/instances          who needs what
  shisa base why /var/lib/nova/instances NAME      all that needs one base
  shisa base missing /var/lib/nova/instances       what is missing, and the ways to bring it back
  shisa base protect /var/lib/nova/instances       keep them from being lost
  shisa base restore /var/lib/nova/instances NAME  bring one back
  shisa base blame /var/lib/nova/instances NAME    who removed it
  shisa base plan /var/lib/nova/instances          what nobody needs, and what speaks against removing it`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return usageError(c, "no command was given")
		},
	}
	c.AddCommand(newBaseScan(s), newBaseWhy(s), newBaseMissing(s), newBaseProtect(s), newBaseUnprotect(s),
		newBaseRestore(s), newBaseAdopt(s), newBaseHistory(s), newBaseBlame(s),
		newBaseNode(s), newBaseAgent(s), newBaseReport(s), newBaseFleet(s),
		newBasePlan(s), newBaseQuarantine(s), newBasePin(s), newBaseUnpin(s), newBasePurge(s), newBaseRecover(s))
	return c
}

// poolOptions are what the commands about base images have in common.
type poolOptions struct {
	// pool is POOL, as the user or the configuration names it; several are all of the configuration, where neither does.
	pool     string
	several  []poolOptions
	among    bool // it is one of several
	json     bool
	all      bool
	also     []string
	nova     []string
	baseName string
	// state is the state directory of the commands that change something.
	state string
	// kept gives the index of a pool, nil where all is to be read.
	kept func(key string) ([]byte, error)
	// config is the file of pools, "" for the usual one, and said what it says of this one, nil for nothing.
	config string
	said   *config.Pool
	// baseDirs are the directories of bases of this one by the other paths that the configuration has for it.
	baseDirs []string
	// elsewhere are the pools of the configuration that this one is not.
	elsewhere []*config.Pool
	// joint knows the pools of the configuration, nil where there are none; at is which of them this is, and joined are those
	// that are the same. plain is what the command line says alone. goesOn: each look finds anew which are the same;
	// anew: it is begun another time.
	joint  *joint
	at     int
	joined []int
	plain  *poolOptions
	goesOn bool
	anew   bool
	// node is what this host is called among the nodes, "" for its own name.
	node string
}

func (o *poolOptions) flags(c *cobra.Command) {
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.StringVar(&o.baseName, "base-name", "_base", "the directory of bases in POOL is called `NAME`")
	f.BoolVar(&o.all, "all", false, "list everything instead of at most 20 of a kind")
	o.configFlag(c)
}

// actFlags are the flags of the commands that change something.
func (o *poolOptions) actFlags(c *cobra.Command) {
	o.flags(c)
	stateFlag(c, &o.state, "keep receipts in `DIR`")
}

// censusFlags are for commands that look who needs the bases.
func (o *poolOptions) censusFlags(c *cobra.Command) {
	c.Flags().Var((*repeated)(&o.also), "also", "images below `DIR` may rest on the bases too; may be given again")
	c.Flags().Var((*repeated)(&o.nova), "nova",
		"machines of Nova's database need bases too, by its export `FILE`; may be given again")
	complete(c, map[string]cobra.CompletionFunc{"also": directories})
}

// census looks at who needs what in a pool, on this host.
func (o *poolOptions) census(ctx context.Context, s *stdio) (*refs.Census, error) {
	if o.goesOn && o.joint != nil {
		if err := o.joint.still(ctx, o.at, o.joined); err != nil {
			return nil, err
		}
	}
	bar := newProgress(s, "looking at files")
	defer bar.Done()
	l := refs.Options{Pool: o.pool, BaseName: o.baseName, Roots: o.also, BaseDirs: o.baseDirs, Nova: o.nova,
		Index: o.kept, Progress: func(files int64) { bar.Set(files, 0) }}
	if o.said != nil {
		l.ComputeNodes, l.Libvirt = o.said.ComputeNodes, o.said.Libvirt
	}
	c, err := hostCensus(ctx, l)
	if err != nil {
		return nil, err
	}
	return c, o.rightPool(c)
}

// hostCensus looks at who needs the bases of a pool, with what this host tells.
func hostCensus(ctx context.Context, o refs.Options) (c *refs.Census, err error) {
	t, err := tree.OpenLive(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	o.Host = &refs.Host{Linux: linux.Open(""), Tree: t}
	return refs.Look(ctx, o)
}
