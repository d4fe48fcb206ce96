// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/repair"
)

// rebuildOptions are what a user knows of an image whose header is lost.
type rebuildOptions struct {
	newFile                string
	clusterSize, size      byteSize
	backing, backingFormat string
	dataFile               string
	l1, reftable           int64
	version                int

	hasBacking bool
}

// fieldFlags names the flags that give a field which nothing shows.
var fieldFlags = map[string]string{
	qcow2.FieldClusterBits: "--cluster-size SIZE", qcow2.FieldSize: "--size SIZE",
	qcow2.FieldBacking:  "--backing NAME, or --backing '' where there is none",
	qcow2.FieldDataFile: "--data-file NAME",
	qcow2.FieldL1Off:    "--l1-offset OFFSET", qcow2.FieldReftableOff: "--reftable-offset OFFSET",
	qcow2.FieldVersion: "--image-version 2 or 3",
}

// rebuildFlags lists the flags that go only with --rebuild-header.
var rebuildFlags = []string{"cluster-size", "size", "backing", "backing-format", "data-file",
	"l1-offset", "reftable-offset", "image-version"}

func (o *rebuildOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.newFile, "rebuild-header", "",
		"for an image whose header is lost: with --apply make `NEWFILE`, a copy with a new header")
	f.Var(&o.clusterSize, "cluster-size", "with --rebuild-header: clusters have this size")
	f.Var(&o.size, "size", "with --rebuild-header: the virtual disk has this size")
	f.StringVar(&o.backing, "backing", "",
		"with --rebuild-header: the backing file is `NAME`, '' for none")
	f.StringVar(&o.backingFormat, "backing-format", "",
		"with --rebuild-header: the backing file has format `FMT`")
	f.StringVar(&o.dataFile, "data-file", "",
		"with --rebuild-header: the external data file is `NAME`")
	f.Int64Var(&o.l1, "l1-offset", 0,
		"with --rebuild-header: the L1 table lies at `OFFSET` of the file")
	f.Int64Var(&o.reftable, "reftable-offset", 0,
		"with --rebuild-header: the refcount table lies at `OFFSET` of the file")
	f.IntVar(&o.version, "image-version", 0,
		"with --rebuild-header: the image has version `N`, 2 or 3")
}

// ready refuses flags that make no sense together, and a new file that is there.
func (o *rebuildOptions) ready(c *cobra.Command) error {
	o.hasBacking = c.Flags().Changed("backing")
	var wrong []string
	c.Flags().Visit(func(f *pflag.Flag) {
		with := slices.Contains([]string{"rebuild-header", "apply", "json", "all", "direct",
			"read-timeout", "state",
			"journal"}, f.Name)
		if slices.Contains(rebuildFlags, f.Name) == (o.newFile == "") && !with {
			wrong = append(wrong, "--"+f.Name)
		}
	})
	switch {
	case o.newFile == "":
		wrong = slices.DeleteFunc(wrong, func(n string) bool {
			return !slices.Contains(rebuildFlags, n[2:])
		})
		if len(wrong) > 0 {
			return usageError(c, "%s: only with --rebuild-header", strings.Join(wrong, ", "))
		}
		return nil
	case len(wrong) > 0:
		return usageError(c, "--rebuild-header goes not with %s", strings.Join(wrong, ", "))
	}
	_, err := diskio.Look(o.newFile)
	switch {
	case err == nil, errors.Is(err, diskio.ErrDirectory), errors.Is(err, diskio.ErrSpecial):
		return newFileError(o.newFile, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return newFileError(o.newFile, err)
	}
	return nil
}

// newFileError says why a new file was not made.
func newFileError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		return withStatus(finding.StatusRefused, finding.WithHint(
			fmt.Errorf("make %s: there is a file of that name", name),
			"nothing is ever written over: choose a name that does not exist"))
	case errors.Is(err, diskio.ErrNoSpace):
		return finding.WithHint(err, "name a file on storage that has room for a copy")
	case errors.Is(err, apply.ErrInterrupted):
		return withStatus(finding.StatusHalfDone, finding.WithHint(err,
			"the image was not touched; remove "+operand(name)+" when the storage answers again"))
	}
	return fmt.Errorf("make %s: %w", name, err)
}

// runRebuild finds out what the header of an image was, and with --apply makes a copy that has it.
func runRebuild(ctx context.Context, o repairOptions, image string, s *stdio) error {
	real, err := diskio.RealPath(image)
	if err != nil {
		return fmt.Errorf("repair %s: %w", image, bare(err))
	}
	if err := unused(ctx, real, o.readTimeout); err != nil {
		return err
	}
	p, size, err := o.planHeader(ctx, real, s)
	if err != nil {
		return err
	}
	doc := &render.HeaderDocument{Image: real, NewFile: o.rebuild.newFile, HeaderPlan: *p}
	statuses := []int{finding.StatusFound}
	next := o.line
	if o.apply && len(p.Missing) == 0 {
		bar := newProgress(s, "copying")
		made := apply.NewFile{Source: real, Target: o.rebuild.newFile, SizeBytes: size, Writes: p.Writes}
		err := apply.MakeNew(ctx, made, apply.Options{
			Verify:   verifyHeader(o.rebuild.newFile, p, bar),
			Progress: bar.Part,
		})
		bar.Done()
		if err != nil {
			return changeError(ctx, newFileError(o.rebuild.newFile, err), image)
		}
		doc.Made = true
		statuses = headerStatuses(p)
		next = "shisa repair " + operand(o.rebuild.newFile)
	}
	doc.Status = finding.OrderStatus(statuses...)
	if o.json {
		err = render.JSON(s.out, render.HeaderSchema, doc)
	} else {
		err = render.Header(s.out, doc, fieldFlags, next, s.style(o.all))
	}
	if err != nil {
		return err
	}
	return exitWith(doc.Status[0])
}

// headerStatuses says how the copy with the new header stands.
func headerStatuses(p *repair.HeaderPlan) []int {
	var all []int
	if p.Counts == nil || len(p.Blind) > 0 {
		all = append(all, finding.StatusCannotTell)
	}
	if p.Counts != nil && p.Counts.Corruptions+p.Counts.Leaks+p.Counts.CheckErrors > 0 {
		all = append(all, finding.StatusFound)
	}
	return all
}

// planHeader finds out what the header was. It reads the data of the file.
func (o *repairOptions) planHeader(ctx context.Context, real string, s *stdio) (
	*repair.HeaderPlan, int64, error,
) {
	open := diskio.Open
	if o.direct {
		open = diskio.OpenDirect
	}
	f, err := open(real)
	if err != nil {
		return nil, 0, err
	}
	bar := newProgress(s, "searching")
	defer bar.Done()
	r := &o.rebuild
	opts := repair.HeaderOptions{Name: strings.ToValidUTF8(real, "\uFFFD"),
		ClusterBytes: int64(r.clusterSize),
		SizeBytes:    int64(r.size), Version: r.version, L1Offset: r.l1, ReftableOffset: r.reftable,
		BackingFormat: r.backingFormat, DataFile: r.dataFile, Progress: bar.Set}
	if r.hasBacking {
		opts.Backing = &r.backing
	}
	size := f.Size()
	p, err := check.Reading(ctx, f, o.readTimeout, func(g *check.Guarded) (*repair.HeaderPlan, error) {
		return repair.RebuildHeader(ctx, g, size, opts)
	})
	switch {
	case errors.Is(err, repair.ErrHeaderOptions):
		return nil, 0, withStatus(finding.StatusUsage, err)
	case errors.Is(err, qcow2.ErrNoEvidence):
		return nil, 0, withStatus(finding.StatusFound, fmt.Errorf("repair %s: %w", real, err))
	case err != nil:
		return nil, 0, repairError(ctx, err, real)
	}
	return p, size, nil
}

// verifyHeader examines the new file: a check must find what it found behind the planned header.
func verifyHeader(name string, p *repair.HeaderPlan, bar *progress) verifier {
	return func(ctx context.Context, r io.ReaderAt, size int64) error {
		h, err := qcow2.ReadHeader(r, size)
		if err != nil || p.Counts == nil || h.HasDataFile() {
			return err
		}
		res, err := qcow2.Check(ctx, r, size, qcow2.CheckOptions{Name: name, DataFileBytes: -1,
			Progress: bar.Set})
		if err == nil && res.Counts != *p.Counts {
			err = fmt.Errorf("the check of the new file finds %+v, planned was %+v", res.Counts, *p.Counts)
		}
		return err
	}
}
