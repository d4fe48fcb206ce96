// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package scan

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/refs"
)

// ranking turns the findings on all images into causes.
type ranking struct {
	images   map[string]*check.Image
	base     map[string]string   // what an image rests on
	over     map[string][]string // what rests on a file, directly
	machines map[string][]string // who uses an image

	list []*Cause
	at   map[causeKey]*Cause
}

// causeKey tells findings apart that have not one cause.
type causeKey struct{ code, object string }

// causes ranks what was found: by harm, what others hang on before those, leaks last.
func causes(ctx context.Context, images []check.Image, edges []Edge, places []hypervisor.Place, pools []*refs.Census,
) []Cause {
	r := &ranking{images: map[string]*check.Image{}, base: map[string]string{}, over: map[string][]string{},
		machines: map[string][]string{}, at: map[causeKey]*Cause{}}
	for i := range images {
		img := &images[i]
		r.images[img.Path] = img
		for _, h := range img.Use.Holders {
			r.uses(img.Path, h.Name)
		}
	}
	for _, p := range places {
		r.uses(p.Path, p.Machine)
	}
	for _, e := range edges {
		r.base[e.From] = e.To
		r.over[e.To] = append(r.over[e.To], e.From)
	}
	for i := range images {
		r.image(&images[i])
	}
	r.fold()
	r.poolCauses(ctx, pools)
	for _, c := range r.list {
		r.finish(c)
	}
	return r.order()
}

func (r *ranking) uses(path, machine string) {
	if machine != "" && !slices.Contains(r.machines[path], machine) {
		r.machines[path] = append(r.machines[path], machine)
	}
}

// image makes causes of the findings on one image; those that another one explains become its
// symptoms.
func (r *ranking) image(img *check.Image) {
	first := map[string]finding.Finding{} // of each code
	for _, f := range img.Findings {
		if _, ok := first[f.Code]; !ok {
			first[f.Code] = f
		}
	}
	// root follows what explains a finding to its end. Findings that explain each other have none,
	// and stand for themselves.
	root := func(f finding.Finding) string {
		at := f
		for range len(first) {
			i := slices.IndexFunc(at.DependsOn, func(code string) bool {
				_, ok := first[code]
				return ok && code != at.Code
			})
			if i < 0 {
				return at.Code
			}
			at = first[at.DependsOn[i]]
		}
		return f.Code
	}
	made := map[string]*Cause{}
	for _, f := range img.Findings {
		if root(f) == f.Code && f.Severity != finding.Note {
			made[f.Code] = r.add(img, f)
		}
	}
	for _, f := range img.Findings {
		switch code := root(f); {
		case code == f.Code:
		case made[code] != nil:
			made[code].Symptoms = append(made[code].Symptoms, f)
		case f.Severity != finding.Note:
			r.add(img, f) // what explains it is only a note
		}
	}
}

// add takes a finding into its cause: the one of its kind on the same object, and for what is alike
// on many images the one of them all.
func (r *ranking) add(img *check.Image, f finding.Finding) *Cause {
	object := img.Path
	key := causeKey{f.Code, object}
	switch {
	case f.Code == finding.CH01.Code, f.Code == finding.CH03.Code:
		// It is the base that is missing or hurt, for all its overlays.
		object = cmp.Or(r.base[img.Path], img.Path)
		key.object = object
	case f.Code == finding.CH02.Code:
		key.object = r.ring(img.Path)
	case f.Severity == finding.Waste:
		key.object = ""
	}
	c := r.at[key]
	if c == nil {
		c = &Cause{Code: f.Code, Name: f.Name, Severity: f.Severity, Certainty: f.Certainty, Next: f.Next,
			Objects: []string{}, Affects: []string{}, Machines: []string{},
			Findings: []finding.Finding{}, Symptoms: []finding.Finding{}}
		r.at[key] = c
		r.list = append(r.list, c)
	}
	if f.Severity.Rank() < c.Severity.Rank() {
		c.Severity = f.Severity
	}
	// Images come one after the other, so an object that is known is the last one.
	if n := len(c.Objects); n == 0 || c.Objects[n-1] != object {
		c.Objects = append(c.Objects, object)
	}
	c.Findings = append(c.Findings, f)
	return c
}

// ring names the circle that a chain runs into, by the first name in it.
func (r *ranking) ring(path string) string {
	seen := map[string]bool{}
	for !seen[path] {
		seen[path] = true
		next, ok := r.base[path]
		if !ok {
			return path
		}
		path = next
	}
	least := path
	for at := r.base[path]; at != path; at = r.base[at] {
		least = min(least, at)
	}
	return least
}

// fold makes overlays that cannot use their base because of its header symptoms of that.
func (r *ranking) fold() {
	r.list = slices.DeleteFunc(r.list, func(c *Cause) bool {
		if c.Code != finding.CH03.Code {
			return false
		}
		header := r.at[causeKey{finding.QC01.Code, c.Objects[0]}]
		if header == nil {
			return false
		}
		header.Symptoms = append(header.Symptoms, c.Findings...)
		return true
	})
}

// finish fills in what hangs on a cause, and its sentence.
func (r *ranking) finish(c *Cause) {
	known := map[string]bool{}
	for _, o := range c.Objects {
		known[o] = true
	}
	for todo := slices.Clone(c.Objects); len(todo) > 0 && c.Severity != finding.Waste; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, o := range r.over[at] {
			if !known[o] {
				known[o] = true
				c.Affects, todo = append(c.Affects, o), append(todo, o)
			}
		}
	}
	slices.Sort(c.Objects)
	slices.Sort(c.Affects)
	for _, path := range slices.Concat(c.Objects, c.Affects) {
		c.Machines = append(c.Machines, r.machines[path]...)
	}
	slices.Sort(c.Machines)
	c.Machines = slices.Compact(c.Machines)
	c.Summary = r.sentence(c)
}

func (r *ranking) sentence(c *Cause) string {
	first := c.Findings[0]
	n := len(c.Findings)
	switch {
	case n == 1:
		return first.Summary
	case c.Code == finding.CH01.Code:
		return fmt.Sprintf("the backing file %s is not there; %d images rest on it", c.Objects[0], n)
	case c.Code == finding.CH03.Code:
		return fmt.Sprintf("the backing file %s cannot be used; %d images rest on it", c.Objects[0], n)
	case c.Code == finding.CH02.Code:
		return first.Summary
	case c.Severity == finding.Waste:
		var clusters, bytes int64
		for _, f := range c.Findings {
			clusters += f.Count
			if img := r.images[f.Object]; img != nil {
				bytes += f.Count * img.ClusterBytes
			}
		}
		return fmt.Sprintf("%s: %d clusters (%d bytes) in %d images; nothing shows that data is lost",
			titleOf(c.Code, first), clusters, bytes, len(c.Objects))
	}
	return fmt.Sprintf("%s: %d findings", titleOf(c.Code, first), n)
}

// titleOf is what a rule is about.
func titleOf(code string, f finding.Finding) string {
	for _, rule := range finding.Rules() {
		if rule.Code == code {
			return rule.Title
		}
	}
	return f.Summary
}

// order puts the worst first, and before each what its images rest on if that is hurt as well.
func (r *ranking) order() []Cause {
	slices.SortFunc(r.list, func(a, b *Cause) int {
		return cmp.Or(
			cmp.Compare(a.Severity.Rank(), b.Severity.Rank()),
			cmp.Compare(sureness(a), sureness(b)),
			cmp.Compare(len(b.Objects)+len(b.Affects), len(a.Objects)+len(a.Affects)),
			strings.Compare(a.Objects[0], b.Objects[0]),
			strings.Compare(a.Code, b.Code),
		)
	})
	hurt := map[string][]*Cause{}
	for _, c := range r.list {
		for _, o := range c.Objects {
			if c.Severity.Rank() < finding.Waste.Rank() {
				hurt[o] = append(hurt[o], c)
			}
		}
	}
	out := make([]Cause, 0, len(r.list))
	told := map[*Cause]bool{}
	tell := func(c *Cause) {
		if !told[c] {
			told[c] = true
			out = append(out, *c)
		}
	}
	for _, c := range r.list {
		for _, o := range c.Objects {
			way := r.below(o)
			for i := len(way) - 1; i >= 0; i-- {
				for _, b := range hurt[way[i]] {
					tell(b)
				}
			}
		}
		tell(c)
	}
	return out
}

// below gives what an image rests on, the nearest first.
func (r *ranking) below(path string) []string {
	var way []string
	seen := map[string]bool{path: true}
	for {
		next, ok := r.base[path]
		if !ok || seen[next] {
			return way
		}
		seen[next] = true
		way = append(way, next)
		path = next
	}
}

func sureness(c *Cause) int {
	return slices.Index([]finding.Certainty{finding.Sure, finding.Likely, finding.Possible}, c.Certainty)
}
