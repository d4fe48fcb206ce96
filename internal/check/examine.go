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
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// directReaders is how many reads past the page cache are under way at once for one image: each waits
// for the storage.
const directReaders = 32

// baseBytes is what examining any image takes: buffers for the reads that are under way.
const baseBytes = 8 << 20

// memoryNeed estimates the memory that examining an image takes: its tables of tables, and eight
// bits for each cluster of the file, which holds the references of all scanners unless clusters are
// shared very often. The result decides how many images are examined at once.
func (j *job) memoryNeed() int64 {
	if j.header == nil {
		return baseBytes
	}
	clusters := j.stat.SizeBytes >> j.header.ClusterBits
	return baseBytes + 32*j.header.L1Entries + clusters
}

// metadataBytes estimates what has to be read, for the order of work.
func (j *job) metadataBytes() int64 {
	if j.header == nil {
		return 0
	}
	return j.stat.AllocatedBytes / max(j.header.ClusterSize()/8, 1)
}

// examineAll examines all images, the big ones first, as many at once as the memory allows. Its
// error is that of ctx.
func (r *runner) examineAll(ctx context.Context) error {
	order := slices.Clone(r.jobs)
	slices.SortStableFunc(order, func(a, b *job) int {
		return cmp.Compare(b.metadataBytes(), a.metadataBytes())
	})
	side := max(1, min(r.workers, len(order)))
	memory := semaphore.NewWeighted(r.memory)
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(side)
	for i, j := range order {
		// The last images have the processors to themselves.
		workers := max(1, r.workers/max(1, min(side, len(order)-i)))
		if r.opts.Workers <= 0 && workers == r.workers {
			workers = 0 // the check knows how many are of use for one image
		}
		grant := min(r.memory, max(j.memoryNeed(), r.memory/int64(side)))
		if memory.Acquire(inner, grant) != nil {
			break
		}
		g.Go(func() error {
			defer memory.Release(grant)
			if err := r.examine(inner, j, workers, grant); err != nil {
				return err
			}
			r.progress(func(p *Progress) { p.ImagesDone++ })
			return nil
		})
	}
	return cmp.Or(g.Wait(), ctx.Err())
}

// examine looks at one image. Its error is that of ctx: what is wrong with the image or cannot be
// seen goes into its report.
func (r *runner) examine(ctx context.Context, j *job, workers int, memory int64) error {
	if len(j.img.Blind) > 0 && j.img.Format == "" {
		return nil // it could not even be opened
	}
	f, err := r.reopen(ctx, j)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		j.blind("image", err)
		return nil
	}
	use, err := r.use(ctx, f, j)
	if err != nil {
		f.Close()
		return err
	}
	j.img.Use = use
	if j.img.Format != string(image.Qcow2) {
		f.Close()
		j.unchecked()
		return nil
	}
	r.dataFile(ctx, j)
	return r.examineQcow2(ctx, j, f, workers, memory)
}

// reopen opens an image that was looked at before.
func (r *runner) reopen(ctx context.Context, j *job) (*diskio.File, error) {
	f, err := r.open(ctx, j.candidate, r.opts.Direct)
	if err != nil {
		return nil, err
	}
	if f.Stat().ID != j.id {
		f.Close()
		return nil, diskio.ErrChanged
	}
	return f, nil
}

// unchecked is the end of looking at an image of another format than qcow2.
func (j *job) unchecked() {
	switch {
	case j.img.Format == string(image.Raw):
		j.done = true
	case j.img.Format != "":
		j.img.Notes = append(j.img.Notes, fmt.Sprintf("format %s has no check", j.img.Format))
	}
}

// noCheck reports whether the image is of a format that has no check.
func (j *job) noCheck() bool {
	return j.img.Format != "" && j.img.Format != string(image.Raw) && j.img.Format != string(image.Qcow2)
}

// pass is one examination of an image from its first to its last table.
type pass struct {
	running bool // examined as one that is written to
	res     *qcow2.Result
	open    *qcow2.OpenError // instead of res
	names   []string         // of internal snapshots
	// dataMoved: the external data file grew or shrank meanwhile.
	dataMoved bool
	changed   string // what shows that somebody wrote to it meanwhile, "" if nothing does
}

// onePass examines the open file f and closes it. Its error is that of ctx, or says why the image
// was given up.
func (r *runner) onePass(ctx context.Context, j *job, f *diskio.File, running bool,
	o passOptions) (*pass, error) {
	g := r.guard(ctx, f)
	before, start := f.Stat(), r.now()
	opts := qcow2.CheckOptions{
		Name: j.path, Workers: o.workers, MemoryBytes: o.memory, MaxRanges: o.maxRanges,
		AllEvidence:   r.opts.MaxRanges < 0,
		DataFileBytes: r.dataBytes(ctx, j), Inflate: r.opts.Inflate, Running: running,
		Progress: r.meter(),
	}
	if r.opts.Direct {
		opts.Readers = directReaders
	}
	p, err := during(ctx, g, func() (*pass, error) {
		p := &pass{running: running}
		var head, again [headBytes]byte
		n, headErr := g.ReadAt(head[:], 0)
		var err error
		p.res, err = qcow2.Check(ctx, g, f.Size(), opts)
		if err != nil && !errors.As(err, &p.open) {
			return nil, err
		}
		if p.res != nil {
			// A table that cannot be read is a finding of the check already.
			if t, err := qcow2.ReadSnapshots(g, f.Size(), p.res.Header); err == nil {
				p.names = snapshotNames(t)
			}
		}
		m, againErr := g.ReadAt(again[:], 0)
		if n != m || (headErr == nil) != (againErr == nil) || head != again {
			p.changed = "its header changed while we looked"
		}
		return p, nil
	}, func() { f.Close() })
	if err != nil {
		return nil, err
	}
	// A new descriptor: a network file system asks its server only when a file is opened.
	after, err := r.reopen(ctx, j)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			p.changed = "it was removed or renamed while we looked"
			return p, nil
		}
		return nil, err
	}
	defer after.Close()
	p.dataMoved = r.dataBytes(ctx, j) != opts.DataFileBytes
	switch now := after.Stat(); {
	case p.changed != "":
	case now.SizeBytes != before.SizeBytes:
		p.changed = "its length changed while we looked"
	case !now.ModTime.Equal(before.ModTime):
		p.changed = "its time of modification changed while we looked"
	case !now.ChangeTime.Equal(before.ChangeTime):
		p.changed = "its time of change changed while we looked"
	case p.dataMoved:
		p.changed = "the length of its external data file changed while we looked"
	case start.Sub(before.ModTime).Abs() < timeStep && len(errorsOf(p)) > 0:
		p.changed = "it was written to so lately that a further write would not show"
	}
	return p, nil
}

// timeStep is how coarse the times of files are: those of the kernel step by a tick, 10 ms at most.
const timeStep = 20 * time.Millisecond

// passOptions are what differs between the passes of one run.
type passOptions struct {
	workers, maxRanges int
	memory             int64
}

// meter gives the progress of one pass, which is added to that of all.
func (r *runner) meter() func(done, total int64) {
	if r.opts.Progress == nil {
		return nil
	}
	var mu sync.Mutex
	var lastDone, lastTotal int64
	return func(done, total int64) {
		mu.Lock()
		d, t := max(0, done-lastDone), total-lastTotal
		lastDone, lastTotal = lastDone+d, total
		mu.Unlock()
		r.progress(func(p *Progress) { p.BytesDone += d; p.Bytes += t })
	}
}

// dataFile finds the external data file, without opening it.
func (r *runner) dataFile(ctx context.Context, j *job) {
	if j.header == nil || !j.header.HasDataFile() {
		return
	}
	name := j.header.DataFile
	type where struct {
		link disk.Link
		near error // of looking beside the image
	}
	beside := filepath.Join(filepath.Dir(j.path), name)
	w, err := diskio.Within(ctx, r.timeout, func() (where, error) {
		w := where{r.policy.ResolveData(j.path, name, nil), fs.ErrNotExist}
		if w.link.State == disk.LinkMissing && name != "" {
			_, w.near = diskio.Look(beside)
		}
		return w, nil
	}, nil)
	switch {
	case err != nil:
		j.blind("external data file", err)
	case w.link.State == disk.LinkMissing && w.near == nil:
		j.dataPath = beside
		j.img.Notes = append(j.img.Notes, fmt.Sprintf(
			"its external data file %q lies beside it; qemu looks for it from the directory that it runs in",
			name))
	case w.link.State == disk.LinkMissing:
		text := fmt.Sprintf("the external data file %q is not there", name)
		if name == "" {
			text = "the image needs an external data file and does not name it"
		}
		j.img.Findings = append(j.img.Findings, finding.New(finding.QC20, j.path, finding.Sure, "missing", text))
	case w.link.Stat.Block:
		j.img.Notes = append(j.img.Notes,
			"its external data file is a block device, whose length was not held against the map")
	case w.link.Stat.ID != diskio.ID{}:
		j.dataPath = w.link.Path
	default:
		j.img.Blind = append(j.img.Blind, newBlind(j.path, "external data file", w.link.Reason))
	}
}

// dataBytes is the length of the external data file now, -1 if it is not known.
func (r *runner) dataBytes(ctx context.Context, j *job) int64 {
	if j.dataPath == "" {
		return -1
	}
	st, err := diskio.Within(ctx, r.timeout, func() (diskio.Stat, error) {
		return diskio.Look(j.dataPath)
	}, nil)
	if err != nil {
		return -1
	}
	return st.SizeBytes
}
