// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/lab/sweep"
)

// What a sweep tries. Every state of a quick one is one of the long one.
func sweepOptions(quick bool) sweep.Options {
	if quick {
		return sweep.Options{Cuts: 6, Seeds: 2}
	}
	return sweep.Options{Cuts: 60, Seeds: 6, Again: 1}
}

// sweepSpace is for the states of images of a few MiB, which come and go.
const sweepSpace = 256 << 20

func powerCutRows() []row {
	var rows []row
	for _, c := range sweep.Cases() {
		cut := func(ctx context.Context, b *bench, dir string) result { return powerCut(ctx, b, dir, c) }
		rows = append(rows, row{name: "power cut: " + c.Name, space: sweepSpace, special: cut})
	}
	return rows
}

// powerCut has both programs repair with a power cut at every change, and counts how they leave the
// image: worse than it was, or as nobody meant it to be.
func powerCut(ctx context.Context, b *bench, dir string, c sweep.Case) (res result) {
	if c.QemuImg == nil {
		res.theirsText = "has no such repair"
	} else {
		theirs, err := b.sweep(ctx, dir, c, sweep.QemuImg(b.qemuImg))
		if err != nil {
			return result{missing: err.Error()}
		}
		res.theirsText = theirs.String()
	}
	ours, err := b.sweep(ctx, dir, c, sweep.Shisa(b.shisa))
	if err != nil {
		res.failed = err.Error()
		return res
	}
	res.text = ours.String()
	for _, text := range ours.Bad {
		fmt.Fprintln(b.log, "      bad:", text)
	}
	res.goals = []outcome{
		{goal: count("states worse", 0), got: float64(ours.Worse())},
		{goal: count("half done", 0), got: float64(ours.Between)},
		{goal: count("unfenced", 0), got: float64(ours.Unfenced)},
		{goal: count("not recovered", 0), got: float64(ours.Failed)},
		{goal: count("false success", 0), got: float64(ours.False)}}
	if ours.NotUndone {
		res.failed = "undo does not give back the image"
	}
	// A program that does nothing would reach all of that.
	if ours.Exit != 0 && ours.Exit != 3 || ours.Changes == 0 {
		res.failed = fmt.Sprintf("repair without a cut: exit status %d after %d changes: %.500s", ours.Exit,
			ours.Changes, ours.Output)
	}
	return res
}

func (b *bench) sweep(ctx context.Context, dir string, c sweep.Case, t sweep.Tool) (*sweep.Table, error) {
	own := filepath.Join(dir, "sweep")
	if err := os.Mkdir(own, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(own)
	return sweep.Run(ctx, own, c, t, sweepOptions(b.quick))
}
