// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/vault"
)

type recoverOptions struct {
	changeOptions
	forward bool
}

func newRecover(s *stdio) *cobra.Command {
	var o recoverOptions
	c := &cobra.Command{
		Use:   "recover [PATH...]",
		Short: "put right what a power cut left unfinished",
		Long: `recover looks for changes that were cut off, and gives the images their old bytes back,
or with --forward the new ones. An undo that was cut off is finished. A path is an image, an undo file, a
receipt, or a directory: all undo files below it. Without a path all receipts in the state directory
are looked at.

Done twice it does nothing. An image that somebody else wrote to meanwhile is left as it is and
told of.`,
		Example: `  shisa recover
  shisa recover vm.qcow2
  shisa recover --forward /var/lib/libvirt/images`,
		Args: wantArgs(0, -1),
		RunE: func(c *cobra.Command, args []string) error {
			risks, err := o.ready(c)
			if err != nil {
				return err
			}
			return runRecover(c.Context(), o, risks, args, s)
		},
	}
	o.flags(c).BoolVar(&o.forward, "forward", false, "finish changes instead of taking them back")
	return c
}

func runRecover(
	ctx context.Context, o recoverOptions, risks []risk, paths []string, s *stdio,
) error {
	if len(paths) == 0 {
		paths = []string{""}
	}
	doc := &render.RecoverDocument{Changes: []render.Recovered{}, Errors: []string{}}
	statuses := []int{}
	var first error // why nothing could be done at a path
	seen := map[string]bool{}
	for _, path := range paths {
		bar := newProgress(s, "recovering")
		opts, err := o.engine(risks, path, bar)
		if err != nil {
			return err
		}
		opts.Forward = o.forward
		opts.VerifyOf = func(r *vault.Receipt) verifier {
			return verify(r.Image(), &plan.Plan{After: r.After, SizeAfterBytes: r.SizeAfterBytes}, bar)
		}
		all, err := apply.Recover(ctx, path, opts)
		bar.Done()
		statuses = append(statuses, o.outcomes(ctx, doc, all, seen)...)
		if ctx.Err() != nil {
			return o.endRecover(doc, append(statuses, finding.StatusInterrupted), s, ctx.Err())
		}
		if err = beyondOutcomes(err, all); err != nil {
			if first == nil {
				first = recoverError(err, path)
			}
			statuses = append(statuses, statusOf(recoverError(err, path)))
			doc.Errors = append(doc.Errors, oneLine{err}.Error())
		}
	}
	if len(doc.Changes) == 0 && first != nil {
		return first
	}
	return o.endRecover(doc, statuses, s, first)
}

// outcomes adds what was done to the document, each change once, and gives the statuses.
func (o *recoverOptions) outcomes(
	ctx context.Context, doc *render.RecoverDocument, all []apply.Outcome, seen map[string]bool,
) []int {
	var statuses []int
	for _, out := range all {
		key := out.ID + "\x00" + out.Image + "\x00" + out.UndoPath
		if seen[key] && out.Did == apply.DidNothing {
			continue
		}
		seen[key] = true
		r := render.Recovered{ID: out.ID, Image: out.Image, UndoPath: out.UndoPath, Did: out.Did}
		if out.Err != nil {
			why := out.Err
			if errors.Is(why, diskio.ErrInUse) {
				// Who it is, the locks do not say.
				if err := unused(ctx, out.Image, 0); err != nil {
					why = err
				}
			}
			r.Error = oneLine{why}.Error()
			statuses = append(statuses, finding.StatusHalfDone)
			switch {
			case errors.Is(out.Err, diskio.ErrInUse), errors.Is(out.Err, diskio.ErrNoLocks),
				errors.Is(out.Err, apply.ErrChanged):
				statuses = append(statuses, finding.StatusRefused)
			}
		}
		doc.Changes = append(doc.Changes, r)
	}
	return statuses
}

// beyondOutcomes gives what of a joined error the outcomes do not tell.
func beyondOutcomes(err error, all []apply.Outcome) error {
	errs := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		errs = slices.Clone(joined.Unwrap())
	}
	return errors.Join(slices.DeleteFunc(errs, func(e error) bool {
		return e == nil || slices.ContainsFunc(all, func(out apply.Outcome) bool {
			return out.Err != nil && errors.Is(e, out.Err)
		})
	})...)
}

// recoverError gives an error of looking for changes its status.
func recoverError(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, vault.ErrNotFound):
		return oneLine{fmt.Errorf("recover %s: %w", path, err)}
	}
	// What cannot be looked at may be a change in the middle.
	return withStatus(finding.StatusCannotTell, oneLine{err})
}

// endRecover shows the document and gives the error to end with.
func (o *recoverOptions) endRecover(
	doc *render.RecoverDocument, statuses []int, s *stdio, why error,
) error {
	doc.Status = finding.OrderStatus(statuses...)
	var err error
	if o.json {
		err = render.JSON(s.out, render.RecoverSchema, doc)
	} else {
		err = render.Recover(s.out, doc, o.style(s))
	}
	switch {
	case err != nil:
		return err
	case why != nil:
		return withStatus(doc.Status[0], why)
	}
	return exitWith(doc.Status[0])
}
