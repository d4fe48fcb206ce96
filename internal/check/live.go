// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// How a running image is examined. QEMU writes a refcount before the entry that needs it, so at
// any one moment the file holds leaks at worst. But reading takes longer than a moment: a refcount
// read early and an entry read late contradict each other although nothing is wrong. Such errors
// are elsewhere each time; real ones stay where they are. So the image is examined again, a second
// or more later, until what was wrong every time no longer shrinks. Leaks cannot be told: what QEMU
// has allocated and not yet mapped looks like one.
//
// Where the file system can clone files (FICLONE), a clone would hold still. It is not made: looking
// creates nothing.
const (
	// roundPause is how long a write may be under way before its parts contradict each other for
	// longer than that.
	roundPause = time.Second
	// minRounds is how often an error must have been seen.
	minRounds = 3
	// maxRounds ends the examination of an image that shows other errors each time.
	maxRounds = 20
	// liveRanges bounds the ranges of one finding that are followed from round to round.
	liveRanges = 1 << 18
)

// examineQcow2 examines the open file f of a qcow2 image, and closes it. Its error is that of ctx.
func (r *runner) examineQcow2(ctx context.Context, j *job, f *diskio.File,
	workers int, memory int64) error {
	l := &live{runner: r, j: j,
		o: passOptions{workers: workers, memory: memory, maxRanges: r.opts.MaxRanges}}
	err := l.rounds(ctx, f)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		j.blind("image", err)
	}
	return r.remember(ctx, j)
}

// live follows one image from round to round.
type live struct {
	*runner
	j *job
	o passOptions
	n int // rounds so far
	// errs are the errors that every round had.
	errs   errorSet
	stable int // rounds in which errs stayed as they were
}

// rounds examines the image until it is known what is wrong with it. Its error is that of ctx, or
// says why the image was given up.
func (l *live) rounds(ctx context.Context, f *diskio.File) error {
	for {
		running := l.opts.Live == LiveAlways || l.j.img.Use.State == UseWrite
		o := l.o
		if running || l.n > 0 {
			o.maxRanges = liveRanges
		}
		p, err := l.onePass(ctx, l.j, f, running, o)
		if err != nil {
			return err
		}
		l.n++
		l.j.img.Use.Rounds = l.n
		if !running && p.changed == "" {
			// Nobody wrote: this is how it stands, leaks too.
			l.finish(p, nil)
			return nil
		}
		if !running {
			l.j.img.Use.State = UseWrite
			l.j.img.Use.Reason = p.changed
		}
		if l.take(p, running) {
			return nil
		}
		if f, err = l.again(ctx); err != nil {
			return err
		}
	}
}

// take takes in what a round found, and reports whether that is enough.
func (l *live) take(p *pass, running bool) bool {
	now := errorsOf(p)
	grown := l.n == 1
	if grown {
		l.errs = now
	} else if l.errs.keep(now) {
		l.stable = 0
	} else {
		l.stable++
	}
	// Without a known writer the next round may be a quiet one, which can tell leaks too; a few
	// chances are enough.
	enough := (running || l.n >= minRounds) && p.open == nil
	switch {
	case len(l.errs) == 0 && enough:
	case len(l.errs) > 0 && l.n >= minRounds && l.stable > 0:
	case l.n >= maxRounds:
		l.j.img.Blind = append(l.j.img.Blind, newBlind(l.j.path, "image", fmt.Sprintf(
			"a program writes to it, and after %d rounds it was still not clear which errors stay", l.n)))
		l.errs = errorSet{}
	default:
		return false
	}
	l.finish(p, l.errs)
	return true
}

// again waits and opens the image for the next round.
func (l *live) again(ctx context.Context) (*diskio.File, error) {
	if err := l.sleep(ctx, roundPause); err != nil {
		return nil, err
	}
	f, err := l.reopen(ctx, l.j)
	if err != nil {
		return nil, err
	}
	use, err := l.use(ctx, f, l.j)
	if err != nil {
		f.Close()
		return nil, err
	}
	// A writer that was only seen by its writes shows again in the next round if it goes on.
	use.Rounds = l.n
	if was := l.j.img.Use; (use.State == UseNone || use.State == UseUnknown) && was.State == UseWrite {
		use.Reason = join("; ", use.Reason, "when it was looked at before: "+was.Reason)
	}
	l.j.img.Use = use
	return f, nil
}

// finish makes the report of the last round. kept are the errors that stayed in a running image;
// nil says that the round saw the image at rest.
func (l *live) finish(p *pass, kept errorSet) {
	img := &l.j.img
	if p.open != nil {
		if kept == nil || len(kept) > 0 {
			l.j.unopened(p.open)
		}
		return
	}
	res := p.res
	img.Counts = res.Counts
	img.VirtualBytes, img.ClusterBytes = res.Header.SizeBytes, res.Header.ClusterSize()
	if p.names != nil {
		img.Snapshots = p.names
	}
	img.Blind = append(img.Blind, res.Blind...)
	img.Checked, l.j.done = true, true
	if kept == nil {
		img.Findings = append(img.Findings, res.Findings...)
		return
	}
	found := kept.findings(res.Findings, l.opts.MaxRanges)
	img.Findings = append(img.Findings, found...)
	img.Counts.Leaks, img.Counts.Corruptions = 0, 0
	for _, f := range found {
		if f.Severity != finding.Note {
			img.Counts.Corruptions += f.Count
		}
	}
	img.Notes = append(img.Notes, "leaks cannot be told while a program writes to the image")
	if lazy(res.Header) {
		img.Notes = append(img.Notes,
			"refcounts cannot be told while a program writes to the image: it writes them late (lazy refcounts)")
	}
}

// lazy reports whether the refcounts on disk may lag behind while the image is in use.
func lazy(h *qcow2.Header) bool {
	return h.Compatible&qcow2.CompatLazyRefcounts != 0 && h.Incompatible&qcow2.IncompatDirty != 0
}

// unopened reports an image whose header cannot be used.
func (j *job) unopened(e *qcow2.OpenError) {
	switch {
	case errors.Is(e, qcow2.ErrRead):
		j.blind("header", e)
	case errors.Is(e, qcow2.ErrUnsupported):
		j.blind("image", e)
	default:
		j.img.Findings = append(j.img.Findings, headerFinding(j.path, e))
		j.done = true
	}
}

// headerFinding reports a header that cannot be used.
func headerFinding(path string, e *qcow2.OpenError) finding.Finding {
	f := finding.New(finding.QC01, path, finding.Sure, "unusable", "the header cannot be used: "+e.Msg)
	f.Host = []finding.Range{{Offset: int64(e.Off), Length: 8}}
	f.Evidence = []finding.Evidence{{Source: "header", Offset: int64(e.Off), Text: e.Msg}}
	return f
}

// errorKey tells errors apart that are not about the same thing.
type errorKey struct {
	code, kind, snapshot string
}

// errorSet are the errors of one or more rounds, each with the places of the file and of the disk
// that it concerns, sorted and disjoint. An error without a place has none.
type errorSet map[errorKey]*places

type places struct {
	host, guest []finding.Range
	// cut: there are more than are listed.
	cut bool
}

// errorsOf gives the errors of a round. What may be a leak is none, nor are notes.
func errorsOf(p *pass) errorSet {
	if p.open != nil {
		return setOf(headerFinding("", p.open))
	}
	var errs []finding.Finding
	for _, f := range p.res.Findings {
		// A data file that grows is longer now than when its length was asked for.
		if decidable(f, p.res.Header) && (f.Code != finding.QC20.Code || !p.dataMoved) {
			errs = append(errs, f)
		}
	}
	return setOf(errs...)
}

func setOf(errs ...finding.Finding) errorSet {
	set := errorSet{}
	for _, f := range errs {
		k := keyOf(f)
		if set[k] == nil {
			set[k] = &places{}
		}
		at := set[k]
		at.host, at.guest = append(at.host, f.Host...), append(at.guest, f.Guest...)
		at.cut = at.cut || f.HostCut > 0 || f.GuestCut > 0
	}
	for _, at := range set {
		at.host, at.guest = joined(at.host), joined(at.guest)
	}
	return set
}

// decidable reports whether a finding can be an error of an image that a program writes to.
func decidable(f finding.Finding, h *qcow2.Header) bool {
	switch f.Code {
	case finding.QC03.Code, finding.QC14.Code, finding.QC13.Code:
		// Leaks, and data that would be lost if they were no leaks but the rest of a mapping.
		return false
	case finding.QC21.Code, finding.QC17.Code:
		// In use: a program that has it open marks it dirty, and keeps bitmaps in its memory.
		return false
	case finding.QC02.Code, finding.QC04.Code, finding.QC05.Code, finding.QC15.Code:
		return f.Severity != finding.Note && !lazy(h)
	}
	return f.Severity != finding.Note
}

// keyOf tells a finding by what it says: its text counts what it stands for, and a second error beside
// a real one, which is a write under way, must not make the real one look like another one in the
// next round.
func keyOf(f finding.Finding) errorKey { return errorKey{f.Code, f.Kind, f.Snapshot} }

// keep leaves in s only what now has as well, and reports whether anything was taken out.
func (s errorSet) keep(now errorSet) (shrunk bool) {
	for k, at := range s {
		other, ok := now[k]
		if !ok {
			delete(s, k)
			shrunk = true
			continue
		}
		host, guest := common(at.host, other.host), common(at.guest, other.guest)
		if other.cut && len(host) == 0 {
			shrunk = true // what it did not list may be there or not: this round decides nothing
			continue
		}
		if !slices.Equal(host, at.host) || !slices.Equal(guest, at.guest) {
			shrunk = true
		}
		if len(at.host) > 0 && len(host) == 0 {
			delete(s, k)
			continue
		}
		s[k] = &places{host, guest, at.cut && other.cut}
	}
	return shrunk
}

// findings gives the findings whose errors are in s, cut down to the places that s has.
func (s errorSet) findings(found []finding.Finding, maxRanges int) []finding.Finding {
	if maxRanges == 0 {
		maxRanges = defaultRanges
	}
	out := []finding.Finding{}
	codes := map[string]bool{}
	for _, f := range found {
		at, ok := s[keyOf(f)]
		if !ok {
			continue
		}
		host := common(joined(f.Host), at.host)
		if len(f.Host) > 0 && len(host) == 0 {
			continue
		}
		if !slices.Equal(host, joined(f.Host)) {
			// Part of it was a write under way: what is left is counted anew.
			f.Count = share(f.Count, bytesOf(f.Host), bytesOf(host))
			f.Host, f.Guest = host, common(joined(f.Guest), at.guest)
			f.EvidenceCut += int64(len(f.Evidence))
			f.Evidence = []finding.Evidence{}
		}
		f.Host, f.HostCut = cutTo(f.Host, f.HostCut, maxRanges)
		f.Guest, f.GuestCut = cutTo(f.Guest, f.GuestCut, maxRanges)
		codes[f.Code] = true
		out = append(out, f)
	}
	for i := range out {
		out[i].DependsOn = slices.DeleteFunc(slices.Clone(out[i].DependsOn),
			func(c string) bool { return !codes[c] })
	}
	return out
}

// defaultRanges is how many ranges a finding lists.
const defaultRanges = 20

func cutTo(list []finding.Range, cut int64, limit int) ([]finding.Range, int64) {
	if limit < 0 || len(list) <= limit {
		return list, cut
	}
	return list[:limit:limit], cut + int64(len(list)-limit)
}

// share is the part of count that falls on some bytes of all, one at least.
func share(count, all, some int64) int64 {
	if all <= 0 {
		return count
	}
	return max(1, int64(float64(count)*float64(some)/float64(all)))
}

func bytesOf(list []finding.Range) (n int64) {
	for _, r := range list {
		n += r.Length
	}
	return n
}

// joined sorts ranges and joins those that touch.
func joined(list []finding.Range) []finding.Range {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b finding.Range) int {
		switch {
		case a.Offset < b.Offset:
			return -1
		case a.Offset > b.Offset:
			return 1
		}
		return 0
	})
	out := list[:0]
	for _, r := range list {
		if n := len(out); n > 0 && out[n-1].End() >= r.Offset {
			out[n-1].Length = max(out[n-1].End(), r.End()) - out[n-1].Offset
		} else {
			out = append(out, r)
		}
	}
	return out
}

// common gives what two sorted, disjoint lists both have.
func common(a, b []finding.Range) []finding.Range {
	out := []finding.Range{}
	for len(a) > 0 && len(b) > 0 {
		from, to := max(a[0].Offset, b[0].Offset), min(a[0].End(), b[0].End())
		if from < to {
			out = append(out, finding.Range{Offset: from, Length: to - from})
		}
		if a[0].End() < b[0].End() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}
