// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"slices"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
)

// remember adds what earlier changes left behind in an image. Its error is that of ctx.
func (r *runner) remember(ctx context.Context, j *job) error {
	if r.opts.Remembered == nil {
		return nil
	}
	type memory struct {
		found []finding.Finding
		err   error
	}
	m, err := diskio.Within(ctx, r.timeout, func() (memory, error) {
		found, err := r.opts.Remembered(ctx, j.path, j.img.Use.State == UseWrite)
		return memory{found, err}, nil
	}, nil)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = m.err
	}
	if err != nil {
		j.blind("what earlier changes left", err)
	}
	for _, f := range m.found {
		j.recall(f, r.opts.MaxRanges)
	}
	return nil
}

// recall adds a finding about an earlier change, without the ranges that the check of today reports
// as well.
func (j *job) recall(f finding.Finding, maxRanges int) {
	if maxRanges == 0 {
		maxRanges = defaultRanges
	}
	switch f.Code {
	case finding.QC25.Code:
		if f.Guest = beyond(f.Guest, j.mixed(f.Snapshot)); len(f.Guest)+int(f.GuestCut) == 0 {
			return
		}
	case finding.QC26.Code:
		// Whatever else is wrong may be half of that change.
		for i := range j.img.Findings {
			if o := &j.img.Findings[i]; o.Code != f.Code && o.Code != finding.QC25.Code &&
				f.Severity != finding.Note {
				o.DependsOn = append(slices.Clone(o.DependsOn), f.Code)
			}
		}
	}
	f.Guest, f.GuestCut = cutTo(f.Guest, f.GuestCut, maxRanges)
	j.img.Findings = append(j.img.Findings, f)
}

// mixed gives the guest ranges, in the view of a snapshot, that are known to share clusters.
func (j *job) mixed(snapshot string) []finding.Range {
	var known []finding.Range
	for _, f := range j.img.Findings {
		if (f.Code == finding.QC06.Code || f.Code == finding.QC07.Code) && f.Snapshot == snapshot {
			known = append(known, f.Guest...)
		}
	}
	return joined(known)
}

// beyond gives the ranges of list that do not lie within one of known, which is sorted and
// disjoint.
func beyond(list, known []finding.Range) []finding.Range {
	return slices.DeleteFunc(slices.Clone(list), func(r finding.Range) bool {
		return slices.ContainsFunc(known, func(k finding.Range) bool {
			return k.Offset <= r.Offset && r.End() <= k.End()
		})
	})
}
