// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/repair"
)

// rebuildHint is what can be done about a header that cannot be mended in place.
const rebuildHint = "shisa repair --rebuild-header NEWFILE IMAGE makes a copy with a new header"

// makePlan makes the plan of repairing an image that nobody uses, ready to be saved.
func makePlan(ctx context.Context, o *repairOptions, name string, s *stdio) (*plan.Plan, error) {
	resolve := func() (string, error) { return diskio.RealPath(name) }
	real, err := diskio.Within(ctx, o.readTimeout, resolve, nil)
	if err != nil {
		return nil, fmt.Errorf("repair %s: %w", name, bare(err))
	}
	if err := unused(ctx, real, o.readTimeout); err != nil {
		return nil, err
	}
	known, err := o.earlier(ctx, real)
	if err != nil {
		return nil, changeError(ctx, err, name)
	}
	open := diskio.Open
	if o.direct {
		open = diskio.OpenDirect
	}
	f, err := diskio.Within(ctx, o.readTimeout, func() (*diskio.File, error) { return open(real) },
		func(f *diskio.File) { f.Close() })
	if err != nil {
		return nil, err
	}
	bar := newProgress(s, "planning")
	defer bar.Done()
	notes := []string{}
	p, err := check.Reading(ctx, f, o.readTimeout, func(r *check.Guarded) (*plan.Plan, error) {
		p, told, err := o.plan(ctx, r, f, real, known.lost(), bar)
		notes = told
		return p, err
	})
	bar.Done()
	if err != nil {
		return nil, repairError(ctx, err, real)
	}
	lost := func(f finding.Finding) bool { return f.Code == finding.QC13.Code }
	if slices.ContainsFunc(p.Remains, lost) {
		// It may be what keeps a table from being put back.
		for _, n := range notes {
			fmt.Fprintf(s.err, "shisa: %s\n", render.Text(n))
		}
	}
	p.Remains = append(p.Remains, known.findings...)
	p.Blind = append(p.Blind, known.blind...)
	o.files.plan(ctx, p, real, disk.Policy{Dirs: o.pools, Follow: o.follow})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.Status = leftStatuses(p.Remains, p.Blind, !p.Empty() || len(p.Hurt) > 0)
	return p, p.Seal()
}

// lost reports whether leaked clusters may hold what an earlier repair took out of use. What could not
// be asked counts as yes.
func (b *before) lost() bool { return len(b.findings)+len(b.blind) > 0 }

// plan plans the repair of an open image.
func (o *repairOptions) plan(
	ctx context.Context, r *check.Guarded, f *diskio.File, real string, lost bool, bar *progress,
) (p *plan.Plan, notes []string, err error) {
	if err := isQcow2(r, f.Size(), real); err != nil {
		return nil, nil, err
	}
	shown := strings.ToValidUTF8(real, "\uFFFD")
	opts := repair.Options{
		Name: shown, Only: o.only, Leaks: o.leaks, Reclaim: o.reclaim, CompareData: o.compareData,
		Split: o.split, Snapshots: o.snapshots, ZeroLost: o.zeroLost, Subclusters: o.subclusters,
		Place:       o.places,
		MemoryBytes: int64(o.memory), Lost: lost,
		Check: qcow2.CheckOptions{Name: shown, Workers: o.workers, MemoryBytes: int64(o.memory),
			DataFileBytes: dataFileBytes(ctx, real, r, f.Size()), Progress: bar.Set},
	}
	if o.all {
		opts.Check.MaxRanges, opts.Check.AllEvidence = -1, true
	}
	policy := disk.Policy{Dirs: o.pools, Follow: o.follow}
	chain, err := disk.Open(ctx, real, disk.Options{Policy: policy})
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case err != nil && errors.As(err, new(*disk.LinkError)):
		notes = append(notes, fmt.Sprintf(
			"what the guest sees through the backing chain could not be asked: %v", err))
	case err == nil:
		defer chain.Close()
		opts.Disk = r.Also(chain)
	}
	if p, err = repair.Plan(ctx, r, f.Size(), opts); err != nil {
		return nil, notes, planError(err, real)
	}
	if h, herr := qcow2.ReadHeader(r, f.Size()); herr == nil && h.HasDataFile() && opts.Check.DataFileBytes < 0 {
		p.Blind = append(p.Blind, finding.Blind{Object: shown, What: "external data file",
			Reason: "its length cannot be told", Host: []finding.Range{}, Guest: []finding.Range{}})
	}
	was := f.Stat()
	now, err := f.StatNow()
	if err != nil {
		return nil, notes, err
	}
	if now.SizeBytes != was.SizeBytes || !now.ModTime.Equal(was.ModTime) ||
		!now.ChangeTime.Equal(was.ChangeTime) {
		return nil, notes, withStatus(finding.StatusRefused, finding.WithHint(
			fmt.Errorf("%s was written to while it was looked at", real),
			"find out who uses it, and try again"))
	}
	obj := &p.Object
	obj.Path, obj.Dev, obj.Ino, obj.ModTime = shown, was.Dev, was.Ino, was.ModTime
	if !utf8.ValidString(real) {
		obj.PathB64 = base64.StdEncoding.EncodeToString([]byte(real))
	}
	version, _, _ := buildFacts(debug.ReadBuildInfo())
	p.Tool, p.Created = "shisa "+version, time.Now()
	return p, notes, nil
}

// isQcow2 refuses what is no qcow2 image.
func isQcow2(r *check.Guarded, size int64, path string) error {
	format, err := image.Probe(r, size, path)
	switch {
	case err != nil:
		return withStatus(finding.StatusCannotTell, fmt.Errorf("repair %s: %w", path, err))
	case format == image.Qcow2:
		return nil
	case filepath.Ext(path) == ".qcow2" && format == image.Raw:
		return withStatus(finding.StatusFound, finding.WithHint(
			fmt.Errorf("repair %s: its header is not one of a qcow2 image", path), rebuildHint))
	}
	return finding.WithHint(fmt.Errorf("repair %s: it is an image of format %s, and only qcow2 "+
		"images are repaired",
		path, format), "if it was a qcow2 image, its header was overwritten: "+rebuildHint)
}

// planError says why there is no plan.
func planError(err error, path string) error {
	var open *qcow2.OpenError
	err = fmt.Errorf("repair %s: %w", path, err)
	switch {
	case errors.Is(err, qcow2.ErrUnsupported):
		return err // not understood is not touched
	case errors.Is(err, repair.ErrUnreadable):
	case !errors.As(err, &open):
		return err
	case errors.Is(err, qcow2.ErrRead):
		return withStatus(finding.StatusCannotTell, err)
	}
	return withStatus(finding.StatusFound, finding.WithHint(err, rebuildHint))
}

// bare is the cause in an error about a path, where the path is told already.
func bare(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// before is what earlier changes left behind in an image.
type before struct {
	findings []finding.Finding
	blind    []finding.Blind
}

// earlier looks for what earlier changes left behind in an image. One that was left in the middle
// is apply.ErrUnfinished.
func (o *changeOptions) earlier(ctx context.Context, image string) (*before, error) {
	var opts check.Options
	if err := remember(ctx, o.state, &opts); err != nil {
		return nil, err
	}
	found, err := opts.Remembered(ctx, image, false)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	b := &before{findings: found, blind: opts.NotSeen}
	if err != nil {
		b.blind = append(b.blind, finding.Blind{Object: image, What: "what earlier changes left",
			Reason: err.Error(),
			Host:   []finding.Range{}, Guest: []finding.Range{}})
	}
	err = apply.Finished(ctx, image,
		apply.Options{StateDir: stateDirOrNone(o.state), JournalDir: o.journal})
	if errors.Is(err, apply.ErrUnfinished) && !errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%s: %w", image, err)
	}
	return b, ctx.Err() // what could not be looked at is among the blind
}
