// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

type planOptions struct {
	poolOptions
	risks []string
	only  []string
	out   string
	// plan is the file of the plan that is carried out.
	plan string
	// ends: acts are brought to their end.
	ends bool
}

const (
	// noOverlaysRisk is accepted for a node on which no image rests on a base any more, on all or on some of its storage.
	noOverlaysRisk = "no-overlays:"
	// otherStorageRisk is accepted for a node whose bases or images lie on another file system than before.
	otherStorageRisk = "other-storage:"
	// auditRisk is accepted for a node whose audit does not hold: it is set aside, and another begun.
	auditRisk = "audit:"
)

// risksFlag is for the commands that decide.
func (o *planOptions) risksFlag(c *cobra.Command) {
	audit := ""
	if o.ends {
		audit = "; audit:NODE, its audit does not hold, and another is begun"
	}
	c.Flags().Var((*repeated)(&o.risks), "accept-risk", "take a `RISK`: no-overlays:NODE, on that node no image rests on "+
		"another any more, at all or on some storage; other-storage:NODE, its file systems became others; and that is right"+audit)
}

// decision is how it is found out what may be done with the bases of a pool.
func (o *planOptions) decision(c *cobra.Command, s *stdio) (bases.Decision, error) {
	d := bases.Decision{Known: o.known, Census: func(ctx context.Context) (*refs.Census, error) {
		c, err := o.census(ctx, s)
		if err == nil && !o.ends { // which takes nothing away
			err = o.saidElsewhere(c)
		}
		return c, err
	}}
	for _, r := range o.risks {
		none, isNone := strings.CutPrefix(r, noOverlaysRisk)
		other, isOther := strings.CutPrefix(r, otherStorageRisk)
		audit, isAudit := strings.CutPrefix(r, auditRisk)
		switch {
		case isNone && none != "":
			d.NoOverlays = append(d.NoOverlays, none)
		case isOther && other != "":
			d.OtherStorage = append(d.OtherStorage, other)
		case isAudit && audit != "" && o.ends:
			d.NewAudits = append(d.NewAudits, audit)
		case o.ends:
			return d, usageError(c, "the risks that can be taken here are no-overlays:NODE, other-storage:NODE and audit:NODE")
		default:
			return d, usageError(c, "the risks that can be taken here are no-overlays:NODE and other-storage:NODE")
		}
	}
	return d, nil
}

func newBasePlan(s *stdio) *cobra.Command {
	var o planOptions
	c := &cobra.Command{
		Use:   "plan POOL",
		Short: "decide which bases may be set aside, or removed",
		Long: `plan decides for every base whether it has to stay, may be set aside, may be removed for good, or is to be brought
back, with all that speaks against it and what to do next. It removes nothing, and notes what it saw for the next
decision: no base is set aside before every node has spoken once more since no use of it was found first.

With --out the plan is kept in a file, for "shisa base quarantine" and "shisa base purge". It is good for an hour, and
everything is looked at again then.

The exit status is 3 if a base is missing or is to be brought back, 4 if anything could not be read, 6 if an act
came to no end.`,
		Example: `  shisa base plan /var/lib/nova/instances
  shisa base plan --out plan.json /var/lib/nova/instances
  shisa base plan --only 7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b --out plan.json /var/lib/nova/instances`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := o.decision(c, s)
			if err != nil {
				return err
			}
			return runBasePlan(c.Context(), o, d, s)
		},
	}
	o.actFlags(c)
	o.censusFlags(c)
	o.risksFlag(c)
	o.completePool(c, 0, nil)
	c.Flags().Var((*repeated)(&o.only), "only", "only the base `NAME`, or the one in quarantine under this id; may be given again")
	o.completeFlag(c, "only", plannedBases)
	c.Flags().StringVar(&o.out, "out", "", "keep the plan in the new `FILE`")
	return c
}

func runBasePlan(ctx context.Context, o planOptions, by bases.Decision, s *stdio) error {
	act, end, err := o.act(ctx, s)
	if err != nil {
		return err
	}
	p, err := bases.Plan(ctx, o.only, by, act)
	end()
	if err != nil {
		return poolError(err, o.pool)
	}
	if o.out != "" {
		if err := saveDocument(o.out, judge.Schema, p); err != nil {
			return err
		}
	}
	if o.json {
		err = render.JSON(s.out, judge.Schema, p)
	} else {
		err = render.BasePlan(s.out, p, o.out, s.style(o.all))
	}
	if err != nil {
		return err
	}
	if off := o.quarantineOff(); off != nil && len(p.With(judge.MayQuarantine)) > 0 {
		fmt.Fprintf(s.err, "shisa: %v: %s\n", off, finding.HintOf(off))
	}
	return exitWith(p.Status[0])
}

var errNoPlan = errors.New("read the plan")

// readBasePlan reads a plan from a file, or from stdin if the name is "-".
func readBasePlan(name string, s *stdio) (*judge.Plan, error) {
	if name == "-" {
		return judge.Read(s.in)
	}
	f, err := diskio.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoPlan, err)
	}
	defer f.Close()
	p, err := judge.Read(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// planFlags are those of the commands that carry a plan out.
func (o *planOptions) planFlags(c *cobra.Command) {
	o.actFlags(c)
	o.completePool(c, 0, nil)
	o.censusFlags(c)
	o.risksFlag(c)
	c.Flags().StringVar(&o.plan, "plan", "", "the `FILE` that \"shisa base plan --out\" made; - for standard input")
}

// wantPlan is for commands that carry a plan out.
func (o *planOptions) wantPlan(c *cobra.Command) error {
	if o.plan == "" {
		return usageError(c, "--plan FILE is missing; this makes one: shisa base plan --out FILE %s", render.Word(o.pool))
	}
	return nil
}

// carryOut does what the plan says with the bases for which it has a verdict; none says that there are none.
func (o *planOptions) carryOut(c *cobra.Command, s *stdio, verdict judge.Verdict, none string,
	do func(ctx context.Context, p *judge.Plan, by bases.Decision, act bases.Options) (*pool.Done, error),
) error {
	by, err := o.decision(c, s)
	if err != nil {
		return err
	}
	p, err := readBasePlan(o.plan, s)
	if err != nil {
		return poolError(err, o.pool)
	}
	if len(p.With(verdict)) == 0 {
		return finding.WithHint(withStatus(finding.StatusRefused, errors.New(none)),
			"what speaks against each: shisa base plan "+render.Word(o.pool))
	}
	return o.change(c.Context(), s, finding.StatusRefused, func(ctx context.Context, act bases.Options) (*pool.Done, error) {
		return do(ctx, p, by, act)
	})
}
