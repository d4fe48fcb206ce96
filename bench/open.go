// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/lab/zoo"
)

// openSamples is how many images the generator adds to the zoo.
const openSamples = 60

// open counts the images of the zoo, sound and broken, all of them readable, on which shisa check
// could not tell.
func open(ctx context.Context, b *bench, dir string) result {
	res, err := b.open(ctx, filepath.Join(dir, "zoo"))
	if err != nil {
		res.failed = err.Error()
	}
	return res
}

func (b *bench) open(ctx context.Context, dir string) (res result, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return res, err
	}
	defer os.RemoveAll(dir)
	if _, err := zoo.Fill(ctx, dir); err != nil {
		return res, err
	}
	for i := range uint64(openSamples) {
		path := filepath.Join(dir, fmt.Sprintf("made-%d.qcow2", i))
		if err := lab.Write(path, lab.RandomSpec(i)); err != nil {
			return res, err
		}
		if i%2 == 1 {
			if _, err := lab.Break(path, i); err != nil {
				return res, err
			}
		}
	}
	d, err := b.checkJSON(ctx, dir)
	if err != nil {
		return res, err
	}
	images, unknown := 0, len(d.Blind)
	for _, img := range d.Images {
		if img.Format != "qcow2" {
			continue // formats without a check
		}
		images++
		if img.Verdict == finding.CannotTell || len(img.Blind) > 0 {
			unknown++
			fmt.Fprintf(b.log, "      open: %s: %+v\n", filepath.Base(img.Path), img.Blind)
		}
	}
	if images < openSamples {
		return res, fmt.Errorf("%d qcow2 images in the report, want %d or more", images, openSamples)
	}
	res.text = fmt.Sprintf("%d of %d images", unknown, images)
	res.goals = []outcome{{goal: count("open answers", 0), got: float64(unknown)}}
	return res, nil
}
