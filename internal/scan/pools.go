// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package scan

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/refs"
)

// novaBase is what OpenStack Nova calls a directory of base images unless it is told otherwise.
const novaBase = "_base"

// PoolStand is a directory with base images that was met, and how they stand.
type PoolStand struct {
	// Bases is the directory, without symbolic links.
	Bases string `json:"bases"`
	// UUID is what "shisa base protect" called the pool, "" where that never ran.
	UUID string `json:"uuid"`
	// Count is how many bases are there, Needed how many of those somebody needs, Unprotected how many of these
	// have no shield, Missing how many are needed and not there.
	Count       int64 `json:"count"`
	Needed      int64 `json:"needed"`
	Unprotected int64 `json:"unprotected"`
	Missing     int64 `json:"missing"`
}

// poolAt is a directory that may be a pool. bases: it holds nothing but base images; else it may have a directory of
// those in it.
type poolAt struct {
	dir   string
	bases bool
}

// poolsAt gives the directories that may be pools: by the names that were given, by where images lie and what they
// rest on, and by where this host keeps images.
func (rep *Report) poolsAt() (all []poolAt) {
	add := func(dir string) {
		if filepath.Base(dir) == novaBase {
			all = append(all, poolAt{dir, true})
		}
	}
	for _, p := range rep.Paths {
		add(filepath.Clean(p))
		add(filepath.Join(p, novaBase))
	}
	for i := range rep.Images {
		add(filepath.Dir(rep.Images[i].Path))
	}
	for _, e := range rep.Edges {
		add(filepath.Dir(e.To))
	}
	for _, p := range rep.Places {
		if p.Kind == hypervisor.PlaceDirectory && p.Readable {
			all = append(all, poolAt{p.Path, p.Bases})
		}
	}
	slices.SortFunc(all, func(a, b poolAt) int {
		if a.bases != b.bases && a.bases {
			return -1
		} else if a.bases != b.bases {
			return 1
		}
		return strings.Compare(a.dir, b.dir)
	})
	return slices.Compact(all)
}

// pools takes the census of each pool that was met, and gives them. Its error is that of ctx.
func (rep *Report) pools(ctx context.Context, census func(context.Context, refs.Options) (*refs.Census, error)) (
	all []*refs.Census, err error,
) {
	known := map[string]bool{}
	for _, at := range rep.poolsAt() {
		c, err := rep.pool(ctx, at, known, census)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			rep.NotLookedAt = append(rep.NotLookedAt, finding.Blind{Object: at.dir, What: "base images",
				Reason: err.Error(), Host: []finding.Range{}, Guest: []finding.Range{}})
		}
		if c == nil || len(c.All) == 0 {
			continue
		}
		all = append(all, c)
		rep.NotLookedAt = append(rep.NotLookedAt, c.Gaps...)
	}
	return all, nil
}

// pool takes one census, nil where there is no pool, or one that is known.
func (rep *Report) pool(ctx context.Context, at poolAt, known map[string]bool,
	census func(context.Context, refs.Options) (*refs.Census, error),
) (*refs.Census, error) {
	_, err := diskio.Within(ctx, lookTimeout, func() (diskio.Stat, error) { return diskio.Look(at.dir) }, nil)
	switch {
	case errors.Is(err, diskio.ErrDirectory):
	case errors.Is(err, diskio.ErrTimeout):
		return nil, err
	default:
		return nil, nil // what is missing in a directory that is not there is said by the images themselves
	}
	o := refs.Options{Pool: at.dir, BaseName: novaBase}
	if at.bases {
		o.BaseName = filepath.Base(at.dir)
	}
	dir, err := refs.BasesIn(ctx, o.Pool, o.BaseName, lookTimeout)
	if err != nil || known[dir] {
		return nil, err
	}
	known[dir] = true
	return census(ctx, o)
}

// bases takes the censuses of the pools that were met, and tells what they say of exit statuses. Its error is that of
// ctx.
func (rep *Report) bases(ctx context.Context, opts Options) ([]*refs.Census, error) {
	if opts.Census == nil {
		return nil, nil
	}
	all, err := rep.pools(ctx, opts.Census)
	status := slices.Clone(rep.Status)
	if len(rep.NotLookedAt) > 0 {
		status = append(status, finding.StatusCannotTell)
	}
	for _, c := range all {
		p := poolOf(c)
		if p.Count+p.Missing > 0 {
			rep.Pools = append(rep.Pools, p)
		}
		if p.Missing > 0 {
			status = append(status, finding.StatusFound)
		}
	}
	rep.Status = finding.OrderStatus(status...)
	return all, err
}

// poolCauses makes causes of what the censuses found.
func (r *ranking) poolCauses(ctx context.Context, all []*refs.Census) {
	names := map[string]string{}
	for _, c := range r.list {
		if c.Code == finding.CH01.Code {
			names[c.Objects[0]] = realName(ctx, c.Objects[0])
		}
	}
	for _, c := range all {
		for i := range c.All {
			if b := &c.All[i]; b.State == refs.Missing && filepath.Dir(b.Path) == c.Bases {
				r.missingBase(b, func(name string) string { return names[name] })
			}
		}
		p := poolOf(c)
		r.unprotected(c, &p)
	}
}

// realName is the name of a file that is not there, without symbolic links in its directory; its own name where that
// cannot be told.
func realName(ctx context.Context, path string) string {
	dir, err := diskio.Within(ctx, lookTimeout, func() (string, error) { return diskio.RealPath(filepath.Dir(path)) }, nil)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return path
	}
	return filepath.Join(dir, filepath.Base(path))
}

// poolOf tells how the bases of a pool stand.
func poolOf(c *refs.Census) PoolStand {
	p := PoolStand{Bases: c.Bases, UUID: c.Pool}
	for i := range c.All {
		switch b := &c.All[i]; {
		case b.State == refs.Missing:
			if filepath.Dir(b.Path) == c.Bases {
				p.Missing++
			}
		case b.State == refs.ByShield: // it was removed, and nobody's disk rests on a name that it has
		case len(b.Uses) == 0:
			p.Count++
		default:
			p.Count++
			p.Needed++
			if b.Shield == "" {
				p.Unprotected++
			}
		}
	}
	return p
}

// missingBase makes a cause of a base that is needed and not there. What its overlays say of it becomes a symptom.
func (r *ranking) missingBase(b *refs.Base, real func(string) string) {
	f := finding.New(finding.BI01, b.Path, finding.Sure, "missing", fmt.Sprintf(
		"the base %s is needed and not there; %s", b.Name, neededBy(b)))
	dir := finding.Word(filepath.Dir(b.Path))
	if f.Next = "the ways to bring it back, each with its proof: shisa base missing " + dir + "; who removed it: shisa base blame " +
		dir + " " + finding.Word(b.Name); b.Shield != "" {
		f.Next = "its shield has it, the very file: shisa base restore " + dir + " " + finding.Word(b.Name)
	}
	cause := causeOf(f)
	for _, u := range b.Uses {
		if u.Machine != "" {
			cause.Machines = append(cause.Machines, u.Machine)
		}
	}
	r.list = slices.DeleteFunc(r.list, func(x *Cause) bool {
		if x.Code != finding.CH01.Code || real(x.Objects[0]) != b.Path {
			return false
		}
		cause.Symptoms = append(cause.Symptoms, x.Findings...)
		// The name by which the images know it leads to them.
		if !slices.Contains(cause.Objects, x.Objects[0]) {
			cause.Objects = append(cause.Objects, x.Objects[0])
		}
		return true
	})
	if len(cause.Symptoms) == 0 {
		for _, u := range b.Uses {
			if u.How == refs.Header || u.How == refs.ByName {
				cause.Affects = append(cause.Affects, u.Holder)
			}
		}
	}
	r.list = append(r.list, cause)
}

// unprotected makes a cause of bases that have no second name.
func (r *ranking) unprotected(c *refs.Census, p *PoolStand) {
	if p.Unprotected == 0 {
		return
	}
	f := finding.New(finding.BI02, c.Bases, finding.Sure, "no_shield", fmt.Sprintf(
		"%d of the %d bases in it that somebody needs have no shield: who removes one takes the disks on it away",
		p.Unprotected, p.Needed))
	f.Count = p.Unprotected
	f.Next = "shisa base protect " + finding.Word(c.Bases) + " gives each a second name, which takes no space"
	r.list = append(r.list, causeOf(f))
}

// causeOf makes a cause of one finding.
func causeOf(f finding.Finding) *Cause {
	return &Cause{Code: f.Code, Name: f.Name, Severity: f.Severity, Certainty: f.Certainty, Next: f.Next,
		Objects: []string{f.Object}, Affects: []string{}, Machines: []string{},
		Findings: []finding.Finding{f}, Symptoms: []finding.Finding{}}
}

// neededBy counts what needs a base.
func neededBy(b *refs.Base) string {
	images, others := 0, 0
	for _, u := range b.Uses {
		if u.How == refs.Header || u.How == refs.ByName {
			images++
		} else {
			others++
		}
	}
	switch {
	case others == 0 && images == 1:
		return "1 image rests on it"
	case others == 0:
		return fmt.Sprintf("%d images rest on it", images)
	case images == 0:
		return fmt.Sprintf("%d others need it", others)
	}
	return fmt.Sprintf("%d images rest on it, and %d others need it", images, others)
}
