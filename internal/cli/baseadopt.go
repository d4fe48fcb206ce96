// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/ways"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBaseAdopt(s *stdio) *cobra.Command {
	var o poolOptions
	var name, reason string
	var risks []string
	var g glanceOptions
	var again bool
	c := &cobra.Command{
		Use:   "adopt POOL [CANDIDATE]",
		Short: "put a proved copy in the place of a base that is gone",
		Long: `adopt copies another file to where a missing base should be, after it was proved that it is that base: by the
SHA-256 that was recorded, or by the images that rest on it. A candidate that nothing speaks against, and too little
for, is taken only with --accept-risk=unproved:NAME; one that is refuted never is: a wrong base looks sound to every
check, and guests would read another disk's bytes.

The candidate may be a file of another node, or /proc/PID/fd/N of a process that has the base open; a file called
.nfsXXXX beside the bases is given the name of the base. Nothing is ever written over, and the candidate is only read.
A copy has the owner and the permissions of the other bases; the exit status is 5 if it could not be given those, and not
everybody may read it.

With --glance the image that the base was made of is downloaded instead: Nova calls a base by the SHA-1 of the image's
id. What comes is held against the digest that the service has, made raw if the base was, and held against what was
recorded of the base. The token is shown to no other server.

With --make a base of Nova that was swap space, or an empty file system for ephemeral disks, is made again, with
--accept-risk=remade:NAME: it is not the very same, and images on top of it rest on parts of it.`,
		Example: `  shisa base adopt --for 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b /var/lib/nova/instances /mnt/node2/_base/7d87e4ab...
  shisa base adopt --for golden.qcow2 /var/lib/libvirt/images /proc/4711/fd/12
  shisa base adopt --glance https://cloud:9292 --for 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b /var/lib/nova/instances`,
		Args: wantArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if name == "" {
				return usageError(c, "--for says which base it is to be")
			}
			risk := "unproved:" + name
			if again {
				risk = "remade:" + name
			}
			for _, r := range risks {
				if r != risk {
					return usageError(c, "the only risk that can be taken here is %s", risk)
				}
			}
			a := adopting{"", name, reason, len(risks) > 0}
			switch {
			case again && (g.url != "" || len(args) == 2):
				return usageError(c, "--make takes neither CANDIDATE nor --glance")
			case again:
				return o.remake(c.Context(), a, s)
			case g.url != "" && len(args) == 2:
				return usageError(c, "either CANDIDATE or --glance")
			case g.url != "":
				return o.fetch(c.Context(), g, a, s)
			case len(args) < 2:
				return usageError(c, "CANDIDATE, --glance or --make says what is to be in its place")
			}
			a.candidate = args[1]
			return o.adopt(c.Context(), a, s)
		},
	}
	o.actFlags(c)
	o.censusFlags(c)
	c.ValidArgsFunction = func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return directories(c, args, word)
		}
		return nil, cobra.ShellCompDirectiveDefault
	}
	f := c.Flags()
	f.StringVar(&name, "for", "", "the base that is missing: the `NAME` of its file")
	o.completeFlag(c, "for", goneBases)
	f.StringVar(&reason, "reason", "", "`TEXT` for the audit: why")
	f.Var((*repeated)(&risks), "accept-risk", "take a `RISK`: unproved:NAME, or remade:NAME")
	f.BoolVar(&again, "make", false, "make swap space, or an empty file system, again")
	g.flags(c)
	return c
}

// adopting is what is to be adopted.
type adopting struct {
	candidate, name, reason string
	unproved                bool
}

// refused gives the error for a way that may not be taken. what is the candidate.
func (a *adopting) refused(way ways.Way, what string) error {
	switch {
	case way.Proof == ways.Refuted:
		return withStatus(finding.StatusRefused, fmt.Errorf("%s is not %s: %s", what, a.name, way.Why))
	case way.Proof == ways.Unproved && !a.unproved:
		return finding.WithHint(withStatus(finding.StatusRefused,
			fmt.Errorf("nothing proves that %s is %s: %s", what, a.name, way.Why)),
			"if you know that it is: --accept-risk=unproved:"+render.Word(a.name))
	}
	return nil
}

// notMissing gives an error about a base that is to be had its hint.
func (o *poolOptions) notMissing(err error) error {
	if errors.Is(err, ways.ErrElsewhere) {
		return finding.WithHint(err, "shisa base missing "+render.Word(o.pool)+" tells in which, and how it comes back there")
	}
	return finding.WithHint(err, "shisa base missing "+render.Word(o.pool)+" lists what is")
}

// remake makes a base again that held nothing of anybody's.
func (o *poolOptions) remake(ctx context.Context, a adopting, s *stdio) error {
	r, err := o.ways(ctx, nil, s)
	if err != nil {
		return err
	}
	if _, err := r.FormatOf(a.name); err != nil {
		return o.notMissing(err)
	}
	way, err := r.Remade(a.name)
	if err != nil {
		return err
	}
	if !a.unproved {
		return finding.WithHint(withStatus(finding.StatusRefused, fmt.Errorf("%s would not be the very same: %s", a.name, way.Why)),
			"if that is to be: --accept-risk=remade:"+render.Word(a.name))
	}
	return o.change(ctx, s, finding.StatusRefused, func(ctx context.Context, act bases.Options) (d *pool.Done, err error) {
		n, err := bases.Remake(ctx, a.name, act)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, n.Discard()) }()
		way.File = n.ID()
		way.Why = "made again; " + way.Why
		return a.put(ctx, n.Path, way, act)
	})
}

// adopt puts a file of the user's in the place of a base.
func (o *poolOptions) adopt(ctx context.Context, a adopting, s *stdio) error {
	r, err := o.ways(ctx, []string{a.candidate}, s)
	if err != nil {
		return err
	}
	way, err := r.Proved(a.name, a.candidate)
	if err != nil {
		return o.notMissing(err)
	}
	if err := a.refused(way, a.candidate); err != nil {
		return err
	}
	return o.change(ctx, s, finding.StatusRefused, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
		return a.put(ctx, a.candidate, way, act)
	})
}

// put puts a file in the place of a base.
func (a *adopting) put(ctx context.Context, path string, way ways.Way, act bases.Options) (*pool.Done, error) {
	why := string(way.Proof) + ": " + way.Why
	if a.reason != "" {
		why += "; " + a.reason
	}
	d, err := bases.Adopt(ctx, path, way.File, a.name, bases.Proof{Why: why, SHA256: way.SHA256}, act)
	if errors.Is(err, bases.ErrThere) {
		err = withStatus(finding.StatusRefused, err)
	}
	return d, err
}
