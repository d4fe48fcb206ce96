// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/render"
)

type compareOptions struct {
	diskOptions
	formatA, formatB     string
	snapshotA, snapshotB string
	cache                string
	strict, quiet        bool
	workers              int
}

func newCompare(s *stdio) *cobra.Command {
	var o compareOptions
	c := &cobra.Command{
		Use:   "compare IMAGE IMAGE",
		Short: "tell whether two disks hold the same",
		Long: `compare tells whether two disks hold the same bytes, whatever their formats and the images below
them, with the rules of qemu-img compare: if one is longer, what it has more must be zeros. Ranges that both have at
the same place of the same file, and those that are zeros by their maps, are not read.

With --strict their sizes must be the same too, and what is allocated.

The exit status is 0 if they are identical, 3 if they differ, 4 if it cannot be told because one could not be read to
its end.`,
		Example: `  shisa compare vm.qcow2 copy.raw
  shisa compare --follow before.qcow2 after.qcow2
  shisa compare --snapshot-a monday vm.qcow2 vm.qcow2
  shisa compare -q a.img b.img && echo same`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if o.workers < 0 {
				return usageError(c, "--workers %d, want 0 or more", o.workers)
			}
			if !slices.Contains(cacheModes, o.cache) {
				return usageError(c, "--cache %s, want one of %s", o.cache, strings.Join(cacheModes, ", "))
			}
			return runCompare(c.Context(), o, args[0], args[1], s)
		},
	}
	f := o.flags(c)
	f.StringVarP(&o.formatA, "format", "f", "", "take the first image for one of format `FMT`")
	f.StringVarP(&o.formatB, "second-format", "F", "", "take the second image for one of format `FMT`")
	f.Var((*given)(&o.snapshotA), "snapshot-a", "of the first image, compare the internal snapshot with that id or `NAME`")
	f.Var((*given)(&o.snapshotB), "snapshot-b", "of the second image, the one with that id or `NAME`")
	f.StringVarP(&o.cache, "cache", "T", cacheModes[0],
		"qemu-img's cache `MODE` for reading: none and directsync read past the page cache")
	f.BoolVarP(&o.strict, "strict", "s", false, "sizes and allocation must be the same too")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print nothing: the exit status tells")
	f.BoolP("progress", "p", false, "accepted as by qemu-img: a terminal shows progress anyway")
	f.IntVar(&o.workers, "workers", 0, "read at most `N` ranges at once (0 is one for each CPU)")
	return c
}

// cacheModes are those of qemu-img, the default first. Nothing is written, so they differ only in
// whether the page cache is read.
var cacheModes = []string{"writeback", "none", "off", "directsync", "writethrough", "unsafe"}

func runCompare(ctx context.Context, o compareOptions, pathA, pathB string, s *stdio) (err error) {
	open := func(path, format, snapshot string) (*disk.Chain, error) {
		c, err := disk.Open(ctx, path, disk.Options{
			Policy: o.policy(), Format: format, Snapshot: snapshot,
			Direct: slices.Contains([]string{"none", "off", "directsync"}, o.cache),
		})
		return c, diskError(err)
	}
	a, err := open(pathA, o.formatA, o.snapshotA)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := open(pathB, o.formatB, o.snapshotB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	p := newProgress(s, "comparing")
	r, err := disk.Compare(ctx, a, b, disk.CompareOptions{Strict: o.strict, Workers: o.workers, Progress: p.Set})
	p.Done()
	if err != nil && !errors.As(err, new(*disk.CompareError)) {
		return err
	}
	doc := render.NewCompareDocument(a, b, o.strict, r, err)
	switch {
	case o.json:
		err = render.JSON(s.out, render.CompareSchema, doc)
	case o.quiet && doc.Error != "":
		err = withStatus(doc.Status[0], errors.New(doc.Error))
	case o.quiet:
		err = nil
	default:
		err = render.Compare(s.out, doc, s.style(false))
	}
	if err != nil {
		return err
	}
	return exitWith(doc.Status[0])
}
