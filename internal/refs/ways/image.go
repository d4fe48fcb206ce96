// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package ways

import (
	"context"
	"fmt"
	"strings"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/glance"
)

// format tells which format a missing base had. Its error is that of ctx.
func (f *finder) format(ctx context.Context, m *Missing) (string, error) {
	for _, o := range f.recorded(m) {
		if o.Format != "" {
			return o.Format, nil
		}
	}
	asked := 0
	for i := range m.NeededBy {
		u := &m.NeededBy[i]
		if u.How != refs.Header && u.How != refs.ByName || u.Depth != 1 {
			continue
		}
		layers, err := diskio.Within(ctx, f.o.Timeout, func() ([]disk.Layer, error) {
			return disk.Walk(ctx, u.Holder, disk.Options{Single: true})
		}, nil)
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if err == nil && layers[0].Backing != nil && layers[0].Backing.Format != "" {
			return layers[0].Backing.Format, nil
		}
		if asked++; asked == maxOverlays {
			break
		}
	}
	return "raw", nil
}

// NotAsked notes that the image service did not tell what it has, and why.
func (r *Report) NotAsked(url, why string) {
	r.Gaps = append(r.Gaps, finding.Blind{Object: url, What: "images", Reason: why, Host: []finding.Range{}, Guest: []finding.Range{}})
	r.Status = finding.OrderStatus(append(r.Status, finding.StatusCannotTell)...)
}

// Offer adds images that missing bases were made of: Nova calls a base by the SHA-1 of the image's id. They are not
// downloaded yet, and are proved when they are.
func (r *Report) Offer(images []glance.Image) {
	for k := range r.Missing {
		m := &r.Missing[k]
		name, _, resized := strings.Cut(m.Name, "_")
		for i := range images {
			if g := &images[i]; g.BaseName() == name {
				m.Ways = append(m.Ways, offered(g, resized))
			}
		}
		rank(m.Ways)
	}
}

// offered is an image that a base was made of.
func offered(g *glance.Image, resized bool) Way {
	w := Way{How: Image, Proof: Unproved, Path: g.ID}
	algo, _ := g.Digest()
	what := fmt.Sprintf("the base is called by the id of the image %q (%s, %d bytes, %s)", g.Name, g.DiskFormat, g.SizeBytes, g.Status)
	switch {
	case resized:
		w.Why = what + ", and was made larger since: Nova changed its content then, so the image is another file"
	case g.Status != "active":
		w.Why = what + ", which cannot be downloaded"
	case algo == "":
		w.Why = what + ", of which the image service has no digest"
	default:
		w.Proof, w.Why = SameImage, what+"; what is downloaded is held against its "+algo+", and against what was recorded of the base"
	}
	return w
}

// Downloaded gives what is known of a download of an image that lies in a file: as for every candidate, and
// where nothing was recorded of the base, that it is the image that it was made of. The images on top of it cannot
// speak against that.
func (r *Report) Downloaded(name, path string, g *glance.Image) (Way, error) {
	w, err := r.Proved(name, path)
	algo, _ := g.Digest()
	if err != nil || w.Proof != Unproved && w.Proof != SameBlocks || algo == "" || g.BaseName() != name {
		return w, err
	}
	w.Proof = SameImage
	w.Why = fmt.Sprintf("the base is called by the id of the image %q, whose %s the download has; %s", g.Name, algo, w.Why)
	return w, nil
}

// FormatOf gives the format that a missing base had: ErrNotMissing, ErrElsewhere.
func (r *Report) FormatOf(name string) (string, error) {
	m, err := r.missing(name)
	if err != nil {
		return "", err
	}
	return m.Format, nil
}
