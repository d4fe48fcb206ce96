// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package scan looks at everything below some paths, or on this host, and says what is wrong by
// cause: what is hurt first, what hangs on it, and what was not looked at.
package scan

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/refs"
)

// Options say how a scan is done. The zero value is the safe and usual one.
type Options struct {
	Check check.Options
	// Home is the user's home directory, where a scan without paths looks for the user's own
	// machines; "" leaves them out.
	Home string
	// Evidence, if set, gives the evidence of this host, which the doctor looks at together with the
	// images, by Rules of the user too.
	Evidence func(ctx context.Context) (*evidence.Evidence, error)
	Rules    []doctor.Rule
	// Census, if set, tells who needs the base images of a pool; every pool that is met is looked at with it.
	Census func(ctx context.Context, o refs.Options) (*refs.Census, error)
}

// Report is the result of a scan (schema shisa.scan/1).
type Report struct {
	Verdict finding.Verdict `json:"verdict"`
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
	// Paths are the names that were asked for; none means that the places of this host were
	// looked at.
	Paths []string `json:"paths"`
	// Places are where this host keeps images, those that are not there as well.
	Places []hypervisor.Place `json:"places"`
	// Causes are what is wrong, the worst and what others hang on first.
	Causes []Cause       `json:"causes"`
	Images []check.Image `json:"images"`
	// Edges lead from overlays to what they rest on.
	Edges []Edge `json:"edges"`
	// Pools are the directories with base images that were met.
	Pools []PoolStand `json:"pools"`
	// NotLookedAt lists all that could not be examined, in an image or anywhere else.
	NotLookedAt []finding.Blind `json:"not_looked_at"`
	Summary     check.Summary   `json:"summary"`
	// Doctor is what the doctor says of this host, null where only images were looked at.
	Doctor *doctor.Report `json:"doctor"`
}

// Cause is one thing that is wrong, in one image or alike in several, with all that it explains.
type Cause struct {
	Code      string            `json:"code"`
	Name      string            `json:"name"`
	Severity  finding.Severity  `json:"severity"`
	Certainty finding.Certainty `json:"certainty"`
	// Summary says in one sentence what it is.
	Summary string `json:"summary"`
	// Objects are the images that have it, or the missing file.
	Objects []string `json:"objects"`
	// Affects are further images that rest on the objects.
	Affects []string `json:"affects"`
	// Machines are the virtual machines that use one of them, as far as is known.
	Machines []string `json:"machines"`
	// Findings are what was found, Symptoms the findings that they explain.
	Findings []finding.Finding `json:"findings"`
	Symptoms []finding.Finding `json:"symptoms"`
	Next     string            `json:"next"`
}

// Edge leads from an overlay to its backing file.
type Edge struct {
	From  string             `json:"from"`
	To    string             `json:"to"`
	State check.BackingState `json:"state"`
}

// Run scans paths, or where this host keeps images if there are none. The errors are those of
// check.Run; a host that has no images is none.
func Run(ctx context.Context, paths []string, opts Options) (*Report, error) {
	rep := &Report{Verdict: finding.CannotTell, Paths: append([]string{}, paths...),
		Places: []hypervisor.Place{}, Causes: []Cause{}, Images: []check.Image{}, Edges: []Edge{},
		Pools: []PoolStand{}, NotLookedAt: []finding.Blind{}}
	look, o := paths, opts.Check
	if len(paths) == 0 {
		host, err := survey(ctx, opts)
		rep.Places, rep.NotLookedAt = host.places, host.blind
		if err != nil {
			rep.Status = []int{finding.StatusInterrupted}
			if len(rep.NotLookedAt) > 0 {
				rep.Status = append(rep.Status, finding.StatusCannotTell)
			}
			return rep, err
		}
		look, o.Maybe = host.named, append(slices.Clone(o.Maybe), host.maybe...)
		// What the host's own configuration names may be followed.
		o.Pools = append(slices.Clone(o.Pools), host.pools...)
	}
	found, err := check.Run(ctx, look, o)
	if err != nil && len(paths) == 0 && ctx.Err() == nil && len(found.Images)+len(found.Blind) == 0 {
		// Nothing on this host looks like an image.
		found.Status, err = finding.OrderStatus(), nil
	}
	rep.take(found)
	var pools []*refs.Census
	if err == nil {
		pools, err = rep.bases(ctx, opts)
	}
	rep.rank(ctx, found, pools)
	rep.Places = shown(rep.Places, found.Images)
	if err == nil && opts.Evidence != nil {
		err = rep.examine(ctx, opts)
	}
	return rep, err
}

// shown leaves out the files that programs of machines have open and that are no images.
func shown(places []hypervisor.Place, images []check.Image) []hypervisor.Place {
	known := map[string]bool{}
	for _, img := range images {
		known[img.Path] = true
	}
	for _, p := range places {
		if p.Kind == hypervisor.PlaceImage {
			known[p.Path] = true
		}
	}
	return slices.DeleteFunc(places, func(p hypervisor.Place) bool {
		return p.Kind == hypervisor.PlaceProcess && p.Error == "" && !known[p.Path]
	})
}

// take takes over the report of a check and ranks what it found.
func (rep *Report) take(found *check.Report) {
	rep.Images, rep.Summary = found.Images, found.Summary
	applies := slices.Clone(found.Status)
	if len(rep.NotLookedAt) > 0 {
		applies = append(applies, finding.StatusCannotTell)
	}
	rep.Status = finding.OrderStatus(applies...)
	rep.NotLookedAt = append(rep.NotLookedAt, found.Blind...)
	for i := range rep.Images {
		img := &rep.Images[i]
		rep.NotLookedAt = append(rep.NotLookedAt, img.Blind...)
		if img.Backing == nil {
			continue
		}
		to := cmp.Or(img.Backing.Path, img.Backing.Name)
		rep.Edges = append(rep.Edges, Edge{From: img.Path, To: to, State: img.Backing.State})
		if img.Backing.State == check.BackingNotFollowed {
			rep.NotLookedAt = append(rep.NotLookedAt, finding.Blind{Object: to, What: "backing file",
				Reason: img.Backing.Reason, Host: []finding.Range{}, Guest: []finding.Range{}})
		}
	}
	slices.SortFunc(rep.Edges, func(a, b Edge) int { return strings.Compare(a.From, b.From) })
}

// rank puts what was found in order.
func (rep *Report) rank(ctx context.Context, found *check.Report, pools []*refs.Census) {
	slices.SortStableFunc(rep.NotLookedAt, func(a, b finding.Blind) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.What, b.What),
			strings.Compare(a.Reason, b.Reason))
	})
	rep.NotLookedAt = slices.CompactFunc(rep.NotLookedAt, func(a, b finding.Blind) bool {
		return a.Object == b.Object && a.What == b.What && a.Reason == b.Reason && len(a.Host)+len(b.Host) == 0
	})
	rep.Causes = causes(ctx, rep.Images, rep.Edges, rep.Places, pools)
	switch rep.Status[0] {
	case finding.StatusClean:
		rep.Verdict = finding.Clean
	case finding.StatusFound:
		rep.Verdict = finding.Found
	}
	if rep.Status[0] == finding.StatusInterrupted && found.Verdict == finding.Found {
		rep.Verdict = finding.Found
	}
}
