// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/finding"
)

// report puts together what is known.
func (r *runner) report(paths []string) *Report {
	rep := &Report{Paths: append([]string{}, paths...), Images: []Image{},
		Blind: slices.Concat([]finding.Blind{}, r.lost, r.opts.NotSeen)}
	for _, j := range r.jobs {
		j.judge()
		rep.Images = append(rep.Images, j.img)
		rep.Summary.count(&j.img, j.noCheck())
	}
	rep.Summary.Skipped, rep.Summary.Links = r.skipped, r.links
	rep.Summary.BlindSpots += int64(len(rep.Blind))
	slices.SortFunc(rep.Blind, func(a, b finding.Blind) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.What, b.What))
	})
	slices.SortStableFunc(rep.Images, worstFirst)
	rep.judge()
	return rep
}

// judge sets the verdict on one image.
func (j *job) judge() {
	finding.Sort(j.img.Findings)
	j.img.Verdict = finding.VerdictOf(j.img.Findings, j.img.Blind)
	if j.img.Verdict == finding.Clean && !j.done {
		j.img.Verdict = finding.CannotTell
	}
}

func (s *Summary) count(img *Image, noCheck bool) {
	s.Images++
	switch img.Verdict {
	case finding.Clean:
		s.Clean++
	case finding.Found:
		s.Found++
	default:
		s.CannotTell++
	}
	if img.Use.State == UseWrite {
		s.Running++
	}
	if noCheck {
		s.Unchecked++
	}
	for _, f := range img.Findings {
		// What a lost mapping counted is data, not waste.
		if f.Severity == finding.Waste {
			s.LeakedBytes += f.Count * img.ClusterBytes
		}
	}
	s.BlindSpots += int64(len(img.Blind))
}

// judge sets the verdict and the statuses of the whole.
func (rep *Report) judge() {
	var applies []int
	if rep.Summary.Found > 0 {
		applies = append(applies, finding.StatusFound)
	}
	if rep.Summary.CannotTell > 0 || rep.Summary.BlindSpots > 0 {
		applies = append(applies, finding.StatusCannotTell)
	}
	rep.Status = finding.OrderStatus(applies...)
	switch rep.Status[0] {
	case finding.StatusFound:
		rep.Verdict = finding.Found
	case finding.StatusCannotTell:
		rep.Verdict = finding.CannotTell
	default:
		rep.Verdict = finding.Clean
	}
}

// worstFirst orders images: by the harm of their worst finding, those that cannot be told before
// those that are clean, then by path.
func worstFirst(a, b Image) int {
	return cmp.Or(
		cmp.Compare(badness(a), badness(b)),
		cmp.Compare(sureness(a), sureness(b)),
		strings.Compare(a.Path, b.Path),
	)
}

func badness(img Image) int {
	worst := finding.Worst(img.Findings)
	switch {
	case worst != finding.Note:
		return worst.Rank()
	case img.Verdict == finding.CannotTell:
		return finding.Note.Rank()
	}
	return finding.Note.Rank() + 1
}

// sureness is 0 where the worst finding, which stands first, is sure.
func sureness(img Image) int {
	if len(img.Findings) == 0 {
		return 0
	}
	order := []finding.Certainty{finding.Sure, finding.Likely, finding.Possible}
	return slices.Index(order, img.Findings[0].Certainty)
}

// nothing says why nothing at all could be done, or is nil.
func (r *runner) nothing(paths []string, rep *Report) error {
	for _, j := range r.jobs {
		if j.done || j.img.Verdict == finding.Found {
			return nil
		}
	}
	where := strings.Join(paths[:min(len(paths), 3)], ", ")
	if n := len(paths) - 3; n > 0 {
		where += fmt.Sprintf(" and %d more", n)
	}
	switch {
	case len(paths)+len(r.opts.Maybe) == 0:
		return errors.New("check: no image was named")
	case len(r.jobs) == 0 && len(rep.Blind) == 0 && rep.Summary.Skipped+rep.Summary.Links == 0:
		return finding.WithHint(fmt.Errorf("check %s: there is nothing in it", where),
			"name an image, or a directory that holds some")
	case len(r.jobs) == 0 && len(rep.Blind) == 0 && rep.Summary.Links > 0:
		return finding.WithHint(
			fmt.Errorf("check %s: no disk image (files looked at: %d; symbolic links not followed: %d)",
				where, rep.Summary.Skipped, rep.Summary.Links),
			"name the images, or the directories that the links lead to")
	case len(r.jobs) == 0 && len(rep.Blind) == 0:
		return finding.WithHint(
			fmt.Errorf("check %s: not a disk image (files looked at: %d)", where, rep.Summary.Skipped),
			"images are told by their content; a raw disk without partitions must be named itself, "+
				"and be called .raw or .img")
	}
	return r.onlyFailures(rep)
}

// onlyFailures says why none of the images could be examined.
func (r *runner) onlyFailures(rep *Report) error {
	var first, hint string
	why := r.why
	n := len(rep.Blind)
	if n > 0 {
		first = rep.Blind[0].Object + ": " + rep.Blind[0].Reason
	}
	for _, img := range rep.Images {
		n++
		switch {
		case first != "":
		case len(img.Blind) > 0:
			first = img.Path + ": " + img.Blind[0].Reason
			why = r.jobs[slices.IndexFunc(r.jobs, func(j *job) bool { return j.path == img.Path })].why
		default:
			first = fmt.Sprintf("%s: format %s has no check", img.Path, img.Format)
			hint = "only qcow2 images have metadata that shisa can check"
		}
	}
	if n > 1 {
		first += fmt.Sprintf(" (and %d more that could not be examined)", n-1)
	}
	err := &failure{"check " + first, why}
	if hint == "" {
		return err // what why says itself
	}
	return finding.WithHint(err, hint)
}

// failure is an error whose cause stands in its text already, without the path.
type failure struct {
	text string
	why  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.why }
