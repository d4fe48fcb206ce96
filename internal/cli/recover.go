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

// leaveRisk is what is accepted where a change is given up.
const leaveRisk = "leave-as-is"

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
receipt, or a directory: all undo files below it. Without a path it looks at what the state directory and
--journal know of. Changes that were made on another host, or cut off before their receipt was written, are
found by their image only. Changes of text files are put right too: a path is then one of the files, or the
receipt. A pool of base images in which an act was cut off is recovered as by "shisa base recover". It also takes away what processes of "shisa disk mount" left that were
killed, and ends the receipts of acts of "shisa base" that were cut off; of pools, see "shisa base recover".

Done twice it does nothing. An image that somebody else wrote to meanwhile is left as it is and
told of; --accept-risk=leave-as-is:IMAGE then gives the change up, so that the image can be used and repaired as
it is. Its undo file keeps the old bytes, under another name.`,
		Example: `  shisa recover vm.qcow2
  shisa recover                                      all that this host knows of
  shisa recover /var/lib/libvirt/images              all undo files below it
  shisa recover --forward vm.qcow2                   the new bytes instead of the old ones`,
		Args: wantArgs(0, -1),
		RunE: func(c *cobra.Command, args []string) error {
			risks, err := o.ready(c)
			if err != nil {
				return err
			}
			if len(args) == 1 && unfinishedPool(c.Context(), args[0]) {
				b := planOptions{poolOptions: poolOptions{pool: args[0], json: o.json, all: o.all, baseName: "_base", state: o.state}}
				if err := b.configure(c.Context()); err != nil {
					return err
				}
				return b.recover(c, s)
			}
			return runRecover(c.Context(), o, risks, args, s)
		},
	}
	o.more = [][2]string{{leaveRisk, "it was written to after a change of it was cut off, and stays as it is now: " +
		"the change is given up, and its undo file kept under another name"}}
	o.flags(c).BoolVar(&o.forward, "forward", false, "finish changes instead of taking them back")
	return c
}

func runRecover(
	ctx context.Context, o recoverOptions, risks []risk, paths []string, s *stdio,
) error {
	host := len(paths) == 0
	if host {
		paths = []string{""}
	}
	doc := &render.RecoverDocument{Changes: []render.Recovered{}, LookedAt: []render.LookedAt{},
		Errors: []string{}}
	statuses := []int{}
	var first error // why nothing could be done at a path
	failed := 0
	seen := map[string]bool{}
	for _, path := range paths {
		bar := newProgress(s, "recovering")
		opts, err := o.engine(risks, path, bar)
		if err != nil {
			return err
		}
		opts.Forward = o.forward
		opts.LeaveAsIs = func(image string) bool { return accepted(risks, leaveRisk, image) }
		opts.Looked = func(p apply.Place) { lookedAt(doc, p) }
		opts.VerifyOf = func(r *vault.Receipt) verifier {
			return verify(r.Image(), &plan.Plan{Object: r.Object, After: r.After, SizeAfterBytes: r.SizeAfterBytes}, bar)
		}
		all, err := apply.Recover(ctx, path, opts)
		bar.Done()
		statuses = append(statuses, o.outcomes(ctx, doc, all, seen)...)
		if ctx.Err() != nil {
			return o.endRecover(doc, append(statuses, finding.StatusInterrupted), host, s,
				errors.New("interrupted; what is listed as recovered is, for the rest run it again"))
		}
		if err = beyondOutcomes(err, all); err != nil {
			failed++
			if first == nil {
				first = recoverError(err, path)
			}
			// One that is not there among others is one that could not be looked at.
			statuses = append(statuses, finding.StatusCannotTell)
			doc.Errors = append(doc.Errors, oneLine{err}.Error())
		}
	}
	if host {
		statuses = append(statuses, o.mounts(doc, s)...)
		statuses = append(statuses, o.acts(ctx, doc, s)...)
	}
	if len(doc.Changes) == 0 && failed == len(paths) {
		return first
	}
	return o.endRecover(doc, statuses, host, s, first)
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
		r := render.Recovered{ID: out.ID, Image: out.Image, UndoPath: out.UndoPath, Files: out.Texts,
			Did: out.Did}
		if out.Err != nil {
			why := out.Err
			if errors.Is(why, diskio.ErrInUse) {
				// Who it is, the locks do not say.
				if err := unused(ctx, out.Image, 0); err != nil {
					why = err
				}
			}
			r.Error, r.Next = oneLine{why}.Error(), o.openNext(out)
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

// lookedAt notes a place, once.
func lookedAt(doc *render.RecoverDocument, p apply.Place) {
	for i := range doc.LookedAt {
		if at := &doc.LookedAt[i]; at.Path == p.Path {
			at.Receipts, at.UndoFiles = max(at.Receipts, p.Receipts), max(at.UndoFiles, p.UndoFiles)
			return
		}
	}
	doc.LookedAt = append(doc.LookedAt,
		render.LookedAt{Path: p.Path, Receipts: p.Receipts, UndoFiles: p.UndoFiles})
}

// openNext says what to do about a change that is still open.
func (o *recoverOptions) openNext(out apply.Outcome) string {
	again := "shisa recover " + operand(out.Image)
	if out.Image == "" {
		again = "shisa recover IMAGE"
	}
	switch {
	case errors.Is(out.Err, diskio.ErrInUse):
		return "stop the machine or program that uses it, then: " + again
	case errors.Is(out.Err, diskio.ErrNoLocks):
		return "if nobody else uses it, on no host: shisa recover --accept-risk=no-locks:" +
			render.Word(out.Image) + " " + operand(out.Image)
	case errors.Is(out.Err, apply.ErrChanged):
		return "the file was written to since, or replaced; doc/repair.md, \"When a recovery is refused\", " +
			"says how to go on; in the end shisa recover --accept-risk=" + leaveRisk + ":" + render.Word(out.Image) + " " +
			operand(out.Image) + " leaves it as it is"
	case errors.Is(out.Err, vault.ErrDamaged), errors.Is(out.Err, fs.ErrNotExist):
		return "look for the undo file, or a copy of it, and put it back in its place; then: " + again
	case errors.Is(out.Err, fs.ErrPermission):
		return "run it as root, or as one who may write there: " + again
	}
	return "when the storage answers again: " + again
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
	doc *render.RecoverDocument, statuses []int, host bool, s *stdio, why error,
) error {
	doc.Status = finding.OrderStatus(statuses...)
	var err error
	if o.json {
		err = render.JSON(s.out, render.RecoverSchema, doc)
	} else {
		err = render.Recover(s.out, doc, host, s.style(o.all))
	}
	switch {
	case err != nil:
		return err
	case why != nil:
		return withStatus(doc.Status[0], why)
	}
	return exitWith(doc.Status[0])
}
