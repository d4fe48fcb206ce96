// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package scan

import (
	"context"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// examine has the doctor look at the host, with what the check found of its images.
func (rep *Report) examine(ctx context.Context, opts Options) error {
	e, err := opts.Evidence(ctx)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		rep.NotLookedAt = append(rep.NotLookedAt, finding.Blind{Object: "this host", What: "evidence",
			Reason: err.Error(), Host: []finding.Range{}, Guest: []finding.Range{}})
		rep.Status = finding.OrderStatus(append(slices.Clone(rep.Status), finding.StatusCannotTell)...)
		if rep.Verdict == finding.Clean {
			rep.Verdict = finding.CannotTell
		}
		return nil
	}
	for i := range rep.Images {
		known(e, &rep.Images[i])
	}
	rep.Doctor = doctor.Examine([]*evidence.Evidence{e}, opts.Rules)
	rep.Status = finding.OrderStatus(append(slices.Clone(rep.Status), rep.Doctor.Status...)...)
	if rep.Doctor.Verdict == finding.Found || rep.Verdict == finding.Clean {
		rep.Verdict = rep.Doctor.Verdict
	}
	return nil
}

// known hands what the check found of an image to the evidence.
func known(e *evidence.Evidence, img *check.Image) {
	i := slices.IndexFunc(e.Images, func(x evidence.Image) bool { return x.Is(img.Path) })
	if i < 0 {
		i = len(e.Images)
		e.Images = append(e.Images, evidence.Image{Path: img.Path, Format: img.Format, Mount: e.MountOf(img.Path),
			From: evidence.Source{Path: img.Path}})
		if b := img.Backing; b != nil {
			x := &e.Images[i]
			x.Backing, x.BackingPath, x.BackingState = b.Name, b.Path, string(b.State)
		}
	}
	c := &evidence.Checked{Codes: []string{}, Time: time.Time{}}
	for _, f := range img.Findings {
		switch {
		case f.Severity == finding.Waste:
			c.Leaks += f.Count
		case f.Severity.Rank() < finding.Waste.Rank():
			c.Corruptions += f.Count
			if !slices.Contains(c.Codes, f.Code) {
				c.Codes = append(c.Codes, f.Code)
			}
		}
	}
	c.LeakBytes = c.Leaks * img.ClusterBytes
	if img.Checked {
		e.Images[i].Checked = c
	}
}
