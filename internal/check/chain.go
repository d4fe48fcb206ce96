// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// chains follows the backing files of all images as far as the policy allows, and adds those that
// were not found yet. A base is one job, whatever the number of its overlays. Its error is that of
// ctx.
func (r *runner) chains(ctx context.Context) error {
	r.sortJobs()
	// What is added is behind, so its own backing file is followed too.
	for i := 0; i < len(r.jobs); i++ {
		j := r.jobs[i]
		if j.header == nil || !j.header.HasBacking {
			continue
		}
		if err := r.follow(ctx, j); err != nil {
			return err
		}
	}
	r.circles()
	return nil
}

func (r *runner) sortJobs() {
	slices.SortFunc(r.jobs, func(a, b *job) int { return strings.Compare(a.path, b.path) })
}

// follow finds the backing file of one image.
func (r *runner) follow(ctx context.Context, j *job) error {
	name, format := j.header.Backing, j.header.BackingFormat
	j.img.Backing = &Backing{Name: name, Format: format}
	// Circles are seen in the graph of all images; only the depth counts here. Nothing has the ID 0.
	above := make([]diskio.ID, j.depth+1)
	link, err := diskio.Within(ctx, r.timeout, func() (disk.Link, error) {
		return r.policy.Resolve(j.path, name, format, above), nil
	}, nil)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	b := j.img.Backing
	b.Path, b.Reason = r.tidy(ctx, link), link.Reason
	if err != nil {
		b.State, b.Reason = BackingUnreadable, err.Error()
		j.blind("backing file", err)
		return nil
	}
	if link.State == disk.LinkNotFollowed && r.byID[link.Stat.ID] != nil {
		link.State = disk.LinkOK // somebody named it; it is looked at anyway
	}
	switch link.State {
	case disk.LinkOK, disk.LinkLoop:
		b.State, b.Reason = BackingChecked, ""
		return r.rest(ctx, j, link)
	case disk.LinkTooDeep:
		b.State = BackingTooDeep
		j.tooDeep()
	case disk.LinkNotFollowed, disk.LinkProtocol:
		b.State = BackingNotFollowed
		f := j.about(finding.CH06, finding.Sure, "outside", fmt.Sprintf("the backing file %s was not examined: %s",
			b.shown(), link.Reason))
		if link.Stat.Block {
			f.Next = "name the block device too, or use --follow"
		}
		if link.State == disk.LinkProtocol {
			f.Kind = "no_file"
			f.Next = "look at it where it is kept: it is no file of this host"
		}
		j.img.Findings = append(j.img.Findings, f)
	case disk.LinkMissing:
		b.State = BackingMissing
		text := fmt.Sprintf("the backing file %s is not there", b.shown())
		if link.Reason != "" {
			text += " (" + link.Reason + ")"
		}
		j.img.Findings = append(j.img.Findings, j.about(finding.CH01, finding.Sure, "missing", text))
	default:
		b.State = BackingUnreadable
		if err := link.Err(j.path, "backing file"); errors.Is(err, fs.ErrPermission) {
			// That this user may not look there is no fault of the image.
			j.img.Blind = append(j.img.Blind, newBlind(j.path, "backing file", b.shown()+": "+link.Reason))
			return nil
		}
		j.unusable(link.Reason)
	}
	return nil
}

// tidy is the path of a backing file without symbolic links and steps back, so that one file has
// one name whichever image names it.
func (r *runner) tidy(ctx context.Context, link disk.Link) string {
	if link.Path == "" || link.Real != "" {
		return link.Real
	}
	dir, base := filepath.Split(link.Path)
	real := r.realPath(ctx, cmp.Or(dir, "."))
	if real == "" {
		return filepath.Clean(link.Path)
	}
	return filepath.Join(real, base)
}

// rest makes the file that a link leads to a job, if it is none yet, and j its overlay.
func (r *runner) rest(ctx context.Context, j *job, link disk.Link) error {
	base := r.byID[link.Stat.ID]
	if base == nil {
		c := candidate{path: cmp.Or(link.Real, link.Path), id: link.Stat.ID, named: true, depth: j.depth + 1}
		if err := r.probe(ctx, c); err != nil {
			return err
		}
		if base = r.byID[link.Stat.ID]; base == nil {
			j.img.Backing.State, j.img.Backing.Reason = BackingUnreadable, "was not looked at"
			return nil // there are too many images, which was said
		}
	}
	j.base, j.img.Backing.Path = base, base.path
	switch {
	case base.img.Format == "" && len(base.img.Findings) > 0, errors.Is(base.headerErr, qcow2.ErrHeader):
		j.unusable("its header is broken")
	case base.stat.SizeBytes == 0 && base.img.Format == string(image.Raw):
		j.unusable("it is empty")
	default:
		j.compareFormats(base)
	}
	return nil
}

// compareFormats holds the format that an overlay names against what its base is.
func (j *job) compareFormats(base *job) {
	says, is := j.img.Backing.Format, base.img.Format
	switch {
	case says == "" || is == "" || says == is || len(base.img.Blind) > 0:
	case says == string(image.Raw):
		j.img.Findings = append(j.img.Findings, j.about(finding.CH05, finding.Sure, "called_raw", fmt.Sprintf(
			"the header says that the backing file %s is raw, but it is a %s image: "+
				"the guest sees the image file itself as its disk",
			base.path, is)))
	case !slices.Contains(knownFormats(), says):
		j.img.Findings = append(j.img.Findings, j.about(finding.CH05, finding.Sure, "unknown_format", fmt.Sprintf(
			"the header gives the backing file %s the format %q, which is not known; it is %s",
			base.path, says, is)))
	default:
		j.img.Findings = append(j.img.Findings, j.about(finding.CH03, finding.Sure, "other_format", fmt.Sprintf(
			"the backing file %s cannot be used: the header says that it is %s, but it is %s",
			base.path, says, is)))
	}
}

func knownFormats() []string {
	var names []string
	for _, f := range []image.Format{image.Raw, image.Qcow2, image.Qcow, image.VMDK, image.VHDX, image.VPC,
		image.VDI, image.QED, image.LUKS, image.Parallels, image.Bochs, image.Cloop, image.DMG} {
		names = append(names, string(f))
	}
	return names
}

// about makes a finding about the backing file of an image.
func (j *job) about(rule finding.Rule, sure finding.Certainty, kind, text string) finding.Finding {
	f := finding.New(rule, j.path, sure, kind, text)
	f.Evidence = []finding.Evidence{{Source: "header", Offset: 8, Value: j.img.Backing.Name,
		Text: "the name of the backing file"}}
	return f
}

func (j *job) unusable(why string) {
	j.img.Backing.Reason = why
	j.img.Findings = append(j.img.Findings, j.about(finding.CH03, finding.Sure, "unusable", fmt.Sprintf(
		"the backing file %s cannot be used: %s", j.img.Backing.shown(), why)))
}

func (j *job) tooDeep() {
	j.img.Findings = append(j.img.Findings, j.about(finding.CH04, finding.Sure, "too_deep", fmt.Sprintf(
		"the backing chain has more than %d images", disk.MaxDepth)))
}

// shown is the name of a backing file for people.
func (b *Backing) shown() string { return cmp.Or(b.Path, fmt.Sprintf("%q", b.Name)) }

// circles finds images whose chain runs in a circle, and chains that are too deep.
func (r *runner) circles() {
	length := map[*job]int{} // images of the chain, 0 while it is measured, -1 if it has no end
	for _, j := range r.jobs {
		var way []*job
		at := j
		for at != nil {
			if _, known := length[at]; known {
				break
			}
			length[at] = 0
			way = append(way, at)
			at = at.base
		}
		n := 0
		if at != nil {
			if n = length[at]; n == 0 {
				n = -1 // back on the way that we came
				r.circle(way[slices.Index(way, at):])
			}
		}
		for i := len(way) - 1; i >= 0; i-- {
			if n >= 0 {
				n++
			}
			length[way[i]] = n
			if n == -1 && way[i].img.Backing.State != BackingLoop {
				way[i].img.Findings = append(way[i].img.Findings, way[i].about(finding.CH02, finding.Sure, "above_circle",
					"the backing chain has no end: below "+way[i].base.path+" it runs in a circle"))
			}
			if n == disk.MaxDepth+1 && way[i].img.Backing.State == BackingChecked {
				way[i].tooDeep()
			}
		}
	}
}

// circle reports images that rest on each other.
func (r *runner) circle(ring []*job) {
	names := make([]string, 0, len(ring)+1)
	for _, j := range ring {
		names = append(names, filepath.Base(j.path))
	}
	names = append(names, filepath.Base(ring[0].path))
	text := strings.Join(names[:min(len(names), 8)], " -> ")
	if len(names) > 8 {
		text += fmt.Sprintf(" -> ... (%d images)", len(ring))
	}
	for _, j := range ring {
		j.img.Backing.State = BackingLoop
		j.img.Backing.Reason = "the chain runs in a circle: " + text
		j.img.Findings = append(j.img.Findings, j.about(finding.CH02, finding.Sure, "circle",
			"the backing chain runs in a circle: "+text))
	}
}
