// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/ways"
	"github.com/shisa-vm/shisa/internal/render"
)

func newBaseMissing(s *stdio) *cobra.Command {
	var o poolOptions
	var from []string
	var g glanceOptions
	c := &cobra.Command{
		Use:   "missing POOL",
		Short: "list the bases that are gone, and how to bring them back",
		Long: `missing lists each base that is needed and not there, and how it can be brought back, the best way first, with
what proves it: its shield, a process that still has it open, or a file of another node (--from). Such a candidate
is held against the SHA-256 that "shisa base protect" recorded. Where none was, it is held against the images that
rest on the base: they hold pieces of it, and of the right one many times as many as of any other. With --glance, the
image service is asked for the images that the bases were made of.

It only reads. The exit status is 3 if anything is missing.`,
		Example: `  shisa base missing /var/lib/nova/instances
  shisa base missing --from /mnt/node2/_base /var/lib/nova/instances
  shisa base missing --glance https://cloud:9292 /var/lib/nova/instances`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return runBaseMissing(c.Context(), o, g, from, args[0], s)
		},
	}
	o.flags(c)
	o.novaFlag(c)
	c.Flags().Var((*repeated)(&from), "from", "candidates are `FILE`, or the files in that directory; may be given again")
	g.flags(c)
	return c
}

// ways tells how what is missing in a pool can be brought back.
func (o *poolOptions) ways(ctx context.Context, pool string, from []string, s *stdio) (*ways.Report, error) {
	c, err := o.census(ctx, pool, s)
	if err != nil {
		return nil, err
	}
	bar := newProgress(s, "reading candidates")
	defer bar.Done()
	return ways.Find(ctx, c, ways.Options{From: from,
		Progress: func(what string, done, total int64) { bar.Part(filepath.Base(what), done, total) }})
}

func runBaseMissing(ctx context.Context, o poolOptions, g glanceOptions, from []string, pool string, s *stdio) error {
	r, err := o.ways(ctx, pool, from, s)
	if err != nil {
		return err
	}
	if g.url != "" && len(r.Missing) > 0 {
		if err := g.offer(ctx, r); err != nil {
			return err
		}
	}
	if o.json {
		err = render.JSON(s.out, render.BaseMissingSchema, r)
	} else {
		err = render.BaseMissing(s.out, r, pool, render.Style{Width: s.width, Color: s.colour, All: o.all})
	}
	if err != nil {
		return err
	}
	return exitWith(r.Status[0])
}

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
				return runBaseRemake(c.Context(), o, a, args[0], s)
			case g.url != "" && len(args) == 2:
				return usageError(c, "either CANDIDATE or --glance")
			case g.url != "":
				return runBaseFetch(c.Context(), o, g, a, args[0], s)
			case len(args) < 2:
				return usageError(c, "CANDIDATE, --glance or --make says what is to be in its place")
			}
			a.candidate = args[1]
			return runBaseAdopt(c.Context(), o, a, args[0], s)
		},
	}
	o.actFlags(c)
	f := c.Flags()
	f.StringVar(&name, "for", "", "the base that is missing: the `NAME` of its file")
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

func missingHint(err error, pool string) error {
	return finding.WithHint(err, "shisa base missing "+render.Word(pool)+" lists what is")
}

// runBaseRemake makes a base again that held nothing of anybody's.
func runBaseRemake(ctx context.Context, o poolOptions, a adopting, pool string, s *stdio) (err error) {
	r, err := o.ways(ctx, pool, nil, s)
	if err != nil {
		return err
	}
	if _, err := r.FormatOf(a.name); err != nil {
		return missingHint(err, pool)
	}
	way, err := r.Remade(a.name)
	if err != nil {
		return err
	}
	if !a.unproved {
		return finding.WithHint(withStatus(finding.StatusRefused, fmt.Errorf("%s would not be the very same: %s", a.name, way.Why)),
			"if that is to be: --accept-risk=remade:"+render.Word(a.name))
	}
	act, done, err := o.act(r.Bases, s)
	if err != nil {
		return err
	}
	defer done()
	n, err := bases.Remake(ctx, a.name, act)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Discard()) }()
	way.File = n.ID()
	way.Why = "made again; " + way.Why
	return o.adopt(ctx, a, n.Path, way, pool, act, s)
}

func runBaseAdopt(ctx context.Context, o poolOptions, a adopting, pool string, s *stdio) error {
	r, err := o.ways(ctx, pool, []string{a.candidate}, s)
	if err != nil {
		return err
	}
	way, err := r.Proved(a.name, a.candidate)
	if err != nil {
		return missingHint(err, pool)
	}
	if err := a.refused(way, a.candidate); err != nil {
		return err
	}
	dir, err := refs.BasesIn(ctx, pool, o.baseName, 0)
	if err != nil {
		return err
	}
	act, done, err := o.act(dir, s)
	if err != nil {
		return err
	}
	defer done()
	return o.adopt(ctx, a, a.candidate, way, pool, act, s)
}

// adopt puts a file in the place of a base, and writes what was done.
func (o *poolOptions) adopt(ctx context.Context, a adopting, path string, way ways.Way, pool string, act bases.Options, s *stdio) error {
	why := string(way.Proof) + ": " + way.Why
	if a.reason != "" {
		why += "; " + a.reason
	}
	d, err := bases.Adopt(ctx, path, way.File, a.name, why, act)
	if errors.Is(err, bases.ErrThere) {
		return withStatus(finding.StatusRefused, err)
	}
	if err != nil {
		return actError(err, pool)
	}
	return o.did(d, s)
}
