// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// LintReport is what the rules about restarts say of unit files in a directory (schema shisa.reboot.lint/1).
type LintReport struct {
	// Status are the exit statuses that apply, the first is the program's.
	Status []int `json:"status"`
	// Directory is where the files are, Kind "system" if they are those of a whole system, "files" if units lie in it
	// like the files of a repository.
	Directory string `json:"directory"`
	Kind      string `json:"kind"`
	// Units is how many unit files were judged.
	Units int `json:"units"`
	// Findings are what is wrong, the worst first.
	Findings []Finding `json:"findings"`
	// NotLookedAt is what could not be read, or told.
	NotLookedAt []Missing `json:"not_looked_at"`
}

// lintRules are the rules that files alone can be asked.
func lintRules() []Rule {
	return slices.DeleteFunc(Rules(), func(r Rule) bool {
		return !strings.HasPrefix(r.Code, "TM") || r.Code == "TM08" || r.Code == "TM09"
	})
}

// Lint judges the unit files below the root of a tree: those of a system, if there is one that would start, or else those
// that lie in it anywhere, as though they were installed and enabled. The error is that it could not be read at all, or
// fs.ErrNotExist if there are no unit files.
func Lint(ctx context.Context, t tree.Tree, name string, now time.Time) (*LintReport, error) {
	rep := &LintReport{Directory: name, Kind: "system", Findings: []Finding{}, NotLookedAt: []Missing{}}
	set, err := units.Load(ctx, t)
	if err != nil && !tree.Missing(err) && !errors.Is(err, tree.ErrNotCollected) && ctx.Err() == nil {
		rep.miss(evidence.Gap{Part: evidence.PartUnits, Reason: evidence.Reason(err)})
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err == nil && set.Default != "" && !set.Bare {
		e, err := evidence.Gather(ctx, t, evidence.Options{Now: now, Label: name})
		if err != nil {
			return nil, err
		}
		rep.judge(e)
		return rep.done(), nil
	}
	rep.Kind = "files"
	sets, err := units.LoadFlat(ctx, t)
	if errors.Is(err, fs.ErrNotExist) && len(rep.NotLookedAt) > 0 {
		return rep.done(), nil
	}
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		e := &evidence.Evidence{Kind: t.Kind(), Label: name, Now: now, Units: s}
		for _, g := range s.Gaps {
			e.Gaps = append(e.Gaps, evidence.Gap{Part: evidence.PartUnits, Object: g.Path, Reason: g.Reason})
		}
		rep.judge(e)
	}
	return rep.done(), nil
}

// judge asks the rules about one set of units.
func (rep *LintReport) judge(e *evidence.Evidence) {
	var all []Result
	for _, r := range lintRules() {
		if e.Units != nil && e.Units.Flat && slices.Contains([]string{"TM03", "TM04", "TM05", "TM06"}, r.Code) {
			continue // of plain files all are enabled, as a first boot would; for the others see below
		}
		all = append(all, r.judge(e)...)
	}
	if e.Units != nil && e.Units.Flat {
		all = append(all, lintTimers(e)...)
	}
	for _, got := range all {
		switch got.Outcome {
		case Fail:
			rep.Findings = append(rep.Findings, *got.Finding)
		case Unknown:
			rep.miss(evidence.Gap{Part: evidence.PartUnits, Object: got.Object.Name, Reason: got.Why})
		}
	}
	for _, g := range e.Gaps {
		if g.Part == evidence.PartUnits {
			rep.miss(g)
		}
	}
	for _, u := range e.Units.Units {
		if u.Path != "" && own(e.Units, u) {
			rep.Units++
		}
	}
}

func (rep *LintReport) miss(g evidence.Gap) {
	if m := (Missing{rep.Directory, g}); !slices.Contains(rep.NotLookedAt, m) {
		rep.NotLookedAt = append(rep.NotLookedAt, m)
	}
}

// done orders what was found, and gives the statuses. Notes are no faults.
func (rep *LintReport) done() *LintReport {
	slices.SortStableFunc(rep.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity.Rank(), b.Severity.Rank()), cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.Object.Name, b.Object.Name))
	})
	if slices.ContainsFunc(rep.Findings, func(f Finding) bool { return f.Severity != finding.Note }) {
		rep.Status = append(rep.Status, finding.StatusFound)
	}
	if len(rep.NotLookedAt) > 0 {
		rep.Status = append(rep.Status, finding.StatusCannotTell)
	}
	if len(rep.Status) == 0 {
		rep.Status = []int{finding.StatusClean}
	}
	return rep
}
