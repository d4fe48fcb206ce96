// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/render"
)

type planOptions struct {
	poolOptions
	risks []string
	only  []string
	out   string
}

const (
	// noOverlaysRisk is accepted for a node on which no image rests on a base any more, on all or on some of its storage.
	noOverlaysRisk = "no-overlays:"
	// otherStorageRisk is accepted for a node whose bases or images lie on another file system than before.
	otherStorageRisk = "other-storage:"
)

// risksFlag is for the commands that decide.
func (o *planOptions) risksFlag(c *cobra.Command) {
	c.Flags().Var((*repeated)(&o.risks), "accept-risk", "take a `RISK`: no-overlays:NODE, on that node no image rests on "+
		"another any more, at all or on some storage; other-storage:NODE, its file systems became others; and that is right")
}

// decision is how it is found out what may be done with the bases of a pool.
func (o *planOptions) decision(c *cobra.Command, name string, s *stdio) (bases.Decision, error) {
	d := bases.Decision{Known: o.known,
		Census: func(ctx context.Context) (*refs.Census, error) { return o.census(ctx, name, s) }}
	for _, r := range o.risks {
		none, isNone := strings.CutPrefix(r, noOverlaysRisk)
		other, isOther := strings.CutPrefix(r, otherStorageRisk)
		switch {
		case isNone && none != "":
			d.NoOverlays = append(d.NoOverlays, none)
		case isOther && other != "":
			d.OtherStorage = append(d.OtherStorage, other)
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
			d, err := o.decision(c, args[0], s)
			if err != nil {
				return err
			}
			return runBasePlan(c.Context(), o, d, args[0], s)
		},
	}
	o.actFlags(c)
	o.novaFlag(c)
	o.risksFlag(c)
	c.Flags().Var((*repeated)(&o.only), "only", "only the base `NAME`, or the one in quarantine under this id; may be given again")
	c.Flags().StringVar(&o.out, "out", "", "keep the plan in the new `FILE`")
	return c
}

func runBasePlan(ctx context.Context, o planOptions, by bases.Decision, name string, s *stdio) error {
	act, done, err := o.actOn(ctx, name, s)
	if err != nil {
		return err
	}
	p, err := bases.Plan(ctx, o.only, by, act)
	done()
	if err != nil {
		return basesError(err, name)
	}
	if o.out != "" {
		if err := saveDocument(o.out, judge.Schema, p); err != nil {
			return err
		}
	}
	if o.json {
		err = render.JSON(s.out, judge.Schema, p)
	} else {
		err = render.BasePlan(s.out, p, o.out, render.Style{Width: s.width, Color: s.colour, All: o.all})
	}
	if err != nil {
		return err
	}
	return exitWith(p.Status[0])
}

// actOn is act for a pool as the user names it.
func (o *poolOptions) actOn(ctx context.Context, name string, s *stdio) (bases.Options, func(), error) {
	dir, err := refs.BasesIn(ctx, name, o.baseName, 10*time.Second)
	if err != nil {
		return bases.Options{}, nil, err
	}
	return o.act(dir, s)
}

// readBasePlan reads a plan from a file, or from stdin if the name is "-".
func readBasePlan(name string, s *stdio) (*judge.Plan, error) {
	if name == "-" {
		return judge.Read(s.in)
	}
	f, err := diskio.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the plan: %w", err)
	}
	defer f.Close()
	p, err := judge.Read(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// basesError gives an error of an act on bases its status and hint.
func basesError(err error, pool string) error {
	again := "make a new one: shisa base plan --out FILE " + render.Word(pool)
	switch {
	case errors.Is(err, bases.ErrUnfinished):
		return finding.WithHint(withStatus(finding.StatusHalfDone, oneLine{err}), "shisa base recover "+render.Word(pool))
	case errors.Is(err, bases.ErrBusy):
		return finding.WithHint(withStatus(finding.StatusRefused, oneLine{err}), "wait until it has ended")
	case errors.Is(err, bases.ErrPurgeOff):
		return finding.WithHint(withStatus(finding.StatusRefused, oneLine{err}),
			"it takes purge: true for the pool in the configuration, and allow_purge in the pool's pool.json")
	case errors.Is(err, bases.ErrApproval):
		return finding.WithHint(withStatus(finding.StatusRefused, oneLine{err}), "read the plan, and give the digest that it ends with")
	case errors.Is(err, judge.ErrTooOld), errors.Is(err, judge.ErrOther), errors.Is(err, plan.ErrEdited):
		return finding.WithHint(withStatus(finding.StatusRefused, oneLine{err}), again)
	case errors.Is(err, plan.ErrNotPlan), errors.Is(err, plan.ErrNewer):
		return finding.WithHint(oneLine{err}, again)
	}
	return actError(err, pool)
}
