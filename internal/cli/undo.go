// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/vault"
)

type undoOptions struct {
	changeOptions
	receipt string
	// pools is the configuration of pools.
	pools string
}

func newUndo(s *stdio) *cobra.Command {
	var o undoOptions
	c := &cobra.Command{
		Use:   "undo RECEIPT|IMAGE|POOL",
		Short: "give an image the bytes back that it had before a repair",
		Long: `undo takes back the newest repair of an image, or the one that a receipt names, byte for
byte. The image is known by what it is, so it may have been renamed or copied since. A receipt is named by
its id, by its file, or by the undo file.

It is refused if anything was written to the image since the repair, and says where: what was
written then would be lost. Where several repairs are in force the newest is taken back first. A repair that
was undone before is nothing to do.

A change of text files is taken back the same way, by its receipt or by one of the files. A file that it made is
taken away; what it held is in the receipt.

So is an act of "shisa base", by its receipt or the newest in force by its pool, as far as nothing is lost by it: a shield that is the last name of a base stays, and so
does the name of a base that is needed, or may be.`,
		Example: `  shisa undo vm.qcow2
  shisa undo 5f0c2f3a9d1e4b7c8a6d5e4f3a2b1c0d
  shisa undo vm.qcow2.shisa-undo
  shisa undo --receipt 5f0c2f3a9d1e4b7c8a6d5e4f3a2b1c0d copy.qcow2   in a copy of the image
  shisa undo /var/lib/nova/instances                 the newest act of "shisa base" there
  shisa undo --journal /var/tmp vm.qcow2             its undo file was put there`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			risks, err := o.ready(c)
			if err != nil {
				return err
			}
			if o.receipt != "" && !vault.IsID(o.receipt) {
				return usageError(c, "--receipt %s, want the 32 hexadecimal digits of a receipt", o.receipt)
			}
			return runUndo(c.Context(), o, risks, args[0], s)
		},
	}
	o.more = [][2]string{{neededRisk, "a base that came back loses its name again, although it is needed or may be: " +
		"its shield keeps it"}}
	f := o.flags(c)
	f.StringVar(&o.receipt, "receipt", "", "take back the repair with the receipt `ID`")
	configFlag(f, &o.pools)
	return c
}

func runUndo(ctx context.Context, o undoOptions, risks []risk, name string, s *stdio) error {
	v, err := o.vault()
	if err != nil {
		return err
	}
	if id, err := o.textChange(ctx, v, name); err != nil || id != "" {
		if err != nil {
			return textError(ctx, err, id)
		}
		return o.undoTexts(ctx, v, id, s)
	}
	if id, err := baseAct(ctx, v, name); err != nil || id != "" {
		if err != nil {
			return textError(ctx, err, id)
		}
		return o.undoBases(ctx, v, id, risks, s)
	}
	image, id, err := o.whichChange(ctx, v, name)
	if err != nil {
		return changeError(ctx, err, name)
	}
	if err := unused(ctx, image, 0); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	begun := time.Now()
	bar := newProgress(s, "undoing")
	opts, err := o.engine(risks, image, bar)
	if err != nil {
		return err
	}
	r, err := apply.Undo(ctx, image, id, opts)
	bar.Done()
	if err != nil {
		known := o.listCandidates(ctx, v, image, err, s)
		switch {
		case errors.Is(err, apply.ErrChanged):
			err = finding.WithHint(err, "what was written since would be lost; the repair stays in place")
		case !errors.Is(err, apply.ErrNothing):
		case slices.ContainsFunc(known, func(c *vault.Candidate) bool { return c.State.Unfinished() }):
			err = finding.WithHint(oneLine{err}, "shisa recover "+operand(name))
		case len(known) == 0:
			err = finding.WithHint(oneLine{err},
				"undo files elsewhere are found with --journal, receipts with --state")
		}
		return changeError(ctx, err, image)
	}
	if r.Undone != nil && r.Undone.Before(begun) {
		fmt.Fprintf(s.err, "shisa: it was undone before, at %s\n", r.Undone.Format(time.RFC3339))
	}
	return o.showReceipt(s, r, image, finding.StatusClean)
}

// vault opens what the user named.
func (o *changeOptions) vault() (*vault.Vault, error) {
	state, err := stateDir(o.state)
	if err != nil {
		return nil, err
	}
	opts := vault.Options{StateDir: state}
	if o.journal != "" {
		dir, err := diskio.RealPath(o.journal)
		if err != nil {
			return nil, err
		}
		opts.JournalDirs = []string{dir}
	}
	return vault.New(opts)
}

// whichChange tells the image, and the receipt if one is meant: name is an image, the name of a
// receipt, the file of one, or an undo file.
func (o *undoOptions) whichChange(
	ctx context.Context, v *vault.Vault, name string,
) (image, id string, err error) {
	_, err = diskio.Look(name)
	base := filepath.Base(name)
	fileID, isReceipt := strings.CutSuffix(base, ".json")
	switch beside, isUndo := vault.IsUndoName(base); {
	case errors.Is(err, fs.ErrNotExist) && vault.IsID(name):
		id = name
	case err != nil:
		return "", "", err
	case isReceipt && vault.IsID(fileID):
		id = fileID
	case isUndo:
		p, err := v.Peek(ctx, name)
		if err != nil {
			return "", "", err
		}
		id, image = p.Receipt.ID, filepath.Join(filepath.Dir(name), beside)
		if _, err := diskio.Look(image); err != nil {
			image = ""
		}
	default:
		return name, o.receipt, nil
	}
	if o.receipt != "" && o.receipt != id {
		return "", "", fmt.Errorf("%s is of the change %s, and --receipt names another one", name, id)
	}
	if image == "" {
		r, err := v.Receipt(id)
		if err != nil {
			return "", "", err
		}
		image = r.Image()
	}
	return image, id, nil
}

// listCandidates tells which changes of an image are known, where none could be taken back, and gives
// them.
func (o *changeOptions) listCandidates(
	ctx context.Context, v *vault.Vault, image string, why error, s *stdio,
) []*vault.Candidate {
	if !errors.Is(why, apply.ErrNothing) && !errors.Is(why, apply.ErrChanged) {
		return nil
	}
	all, err := v.Find(ctx, image)
	if err != nil {
		fmt.Fprintf(s.err, "shisa: not all undo files and receipts could be looked at: %s\n",
			render.Text(oneLine{err}.Error()))
	}
	for i, c := range all {
		if i == 0 {
			fmt.Fprintln(s.err, "known changes of this image, or of one like it:")
		}
		switch {
		case c.Err != nil:
			fmt.Fprintf(s.err, "  %s: %s\n", render.Name(c.UndoPath), render.Text(oneLine{c.Err}.Error()))
		case c.Receipt == nil:
			fmt.Fprintf(s.err, "  %s: %s\n", render.Name(c.UndoPath), c.State)
		default:
			where := "undo file " + render.Name(c.UndoPath)
			if c.UndoPath == "" {
				where = "its undo file is gone"
			}
			fmt.Fprintf(s.err, "  %s  %s  %s, known by its %s, %s\n", c.ID,
				c.Receipt.Created.Format(time.RFC3339),
				c.State, c.Match, where)
		}
	}
	return all
}
