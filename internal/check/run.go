// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/linux"
)

// Run examines the images at and below paths. The report is never nil. The error is that of ctx, or
// says why nothing at all could be done; the report's Status is then 130 or 1, and it holds what is
// known nevertheless.
func Run(ctx context.Context, paths []string, opts Options) (*Report, error) {
	return newRunner(opts).whole(ctx, paths)
}

func (r *runner) whole(ctx context.Context, paths []string) (*Report, error) {
	err := r.run(ctx, paths)
	r.over.Store(true)
	if err != nil {
		r.cutOff()
	}
	rep := r.report(paths)
	if err != nil {
		rep.Status = finding.OrderStatus(append(rep.Status, finding.StatusInterrupted)...)
		if rep.Verdict == finding.Clean {
			rep.Verdict = finding.CannotTell
		}
		return rep, err
	}
	if err := r.nothing(paths, rep); err != nil {
		rep.Status, rep.Verdict = finding.OrderStatus(finding.StatusFailed), finding.CannotTell
		return rep, err
	}
	return rep, nil
}

// cutOff notes of each image that was not finished that it was not.
func (r *runner) cutOff() {
	for _, j := range r.jobs {
		if !j.done && !j.noCheck() && len(j.img.Blind) == 0 {
			j.img.Blind = append(j.img.Blind, newBlind(j.path, "image", "the examination was interrupted"))
		}
	}
}

// runner is the state of one run.
type runner struct {
	opts    Options
	workers int
	memory  int64
	timeout time.Duration
	now     func() time.Time
	sleep   func(context.Context, time.Duration) error
	limit   *limiter
	policy  disk.Policy
	// dirs are the directories that were named and the pools, which become the policy's roots.
	dirs   []string
	census censor
	// reader stands in for the storage in tests.
	reader func(*diskio.File) io.ReaderAt

	// over: whoever was given up and comes back tells nobody of its progress.
	over atomic.Bool

	mu   sync.Mutex
	jobs []*job
	byID map[diskio.ID]*job
	lost []finding.Blind // that belong to no image
	// why is the first error that made a blind spot.
	why     error
	skipped int64
	links   int64 // symbolic links that a walk met
	full    bool
	state   Progress
}

func newRunner(opts Options) *runner {
	r := &runner{
		opts: opts, workers: opts.Workers, memory: opts.MemoryBytes, timeout: opts.ReadTimeout,
		now: opts.Now, sleep: opts.Sleep, byID: map[diskio.ID]*job{},
		policy: disk.Policy{Follow: opts.Follow}, dirs: slices.Clone(opts.Pools),
	}
	if r.workers <= 0 {
		r.workers = runtime.GOMAXPROCS(0)
	}
	if r.memory <= 0 {
		r.memory = DefaultMemoryBytes
	}
	if r.timeout <= 0 {
		r.timeout = DefaultReadTimeout
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.sleep == nil {
		r.sleep = sleep
	}
	r.limit = &limiter{rate: opts.IOLimit, now: r.now, sleep: r.sleep}
	r.census = censor{host: linux.Open(opts.Root), now: r.now}
	return r
}

// sleep waits, or returns the error of ctx if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *runner) run(ctx context.Context, paths []string) error {
	if err := r.find(ctx, paths); err != nil {
		return err
	}
	// Once for all images: each one would wait for a directory that does not answer.
	for _, dir := range r.dirs {
		// One that cannot be looked at allows nothing.
		if real := r.realPath(ctx, dir); real != "" {
			r.policy.Roots = append(r.policy.Roots, real)
		}
	}
	if err := r.chains(ctx); err != nil {
		return err
	}
	r.progress(func(p *Progress) { p.Walking = false })
	return r.examineAll(ctx)
}

// add takes a job, unless its file is one already: then the first name, or the one that the user
// gave, stays.
func (r *runner) add(j *job) *job {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.byID[j.id]
	switch {
	case known == nil && len(r.jobs) >= maxImages:
		if !r.full {
			r.full = true
			r.lost = append(r.lost, newBlind(j.path, "image", fmt.Sprintf(
				"there are more than %d images, the others were left out", maxImages)))
		}
		return nil
	case known == nil:
		r.byID[j.id] = j
		r.jobs = append(r.jobs, j)
		r.state.Images++
		return j
	case j.named && j.depth == 0 && !(known.named && known.depth == 0),
		j.named == known.named && j.depth == known.depth && j.path < known.path:
		// Nothing was done yet but looking, so the names can be exchanged.
		*known = *j
	}
	return known
}

func (r *runner) skip() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skipped++
}

func (r *runner) skipLink() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links++
}

func (r *runner) blindSpot(object, what string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.why = cmp.Or(r.why, err)
	r.lost = append(r.lost, newBlind(object, what, reason(err)))
}

func (j *job) blind(what string, err error) {
	j.why = cmp.Or(j.why, err)
	j.img.Blind = append(j.img.Blind, newBlind(j.path, what, reason(err)))
}

func newBlind(object, what, why string) finding.Blind {
	return finding.Blind{Object: object, What: what, Reason: why,
		Host: []finding.Range{}, Guest: []finding.Range{}}
}

// reason is the text of err without the path, which stands beside it.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		// What stands around it says where in the file.
		return strings.Replace(err.Error(), pe.Error(), pe.Err.Error(), 1)
	}
	return err.Error()
}

// progress changes the state and tells it.
func (r *runner) progress(change func(*Progress)) {
	r.mu.Lock()
	change(&r.state)
	state := r.state
	r.mu.Unlock()
	if r.opts.Progress != nil && !r.over.Load() {
		r.opts.Progress(state)
	}
}

// open opens a file within the time that storage has.
func (r *runner) open(ctx context.Context, c candidate, direct bool) (*diskio.File, error) {
	open, openDirect := diskio.Open, diskio.OpenDirect
	if c.depth > 0 {
		// A header named it and the policy allowed that path, not what a link on it leads to by now.
		open = func(path string) (*diskio.File, error) { return diskio.OpenResolved(path, false) }
		openDirect = func(path string) (*diskio.File, error) { return diskio.OpenResolved(path, true) }
	}
	return diskio.Within(ctx, r.timeout, func() (*diskio.File, error) {
		if direct {
			// Not every file system can do without the page cache.
			if f, err := openDirect(c.path); !errors.Is(err, syscall.EINVAL) {
				return f, err
			}
		}
		return open(c.path)
	}, func(f *diskio.File) { f.Close() })
}

// realPath is the absolute path without symbolic links, "" if it cannot be told.
func (r *runner) realPath(ctx context.Context, path string) string {
	real, err := diskio.Within(ctx, r.timeout, func() (string, error) {
		return diskio.RealPath(path)
	}, nil)
	if err != nil {
		return "" // holders are found by the inode then
	}
	return real
}

func newImage(path string) Image {
	img := Image{Path: path, VirtualBytes: -1, FileBytes: -1, AllocatedBytes: -1,
		Use:       Use{State: UseUnknown, Reason: "was not looked at", Holders: []Holder{}},
		Snapshots: []string{}, Notes: []string{}, Findings: []finding.Finding{}, Blind: []finding.Blind{}}
	if !utf8.ValidString(path) {
		img.PathB64 = base64.StdEncoding.EncodeToString([]byte(path))
	}
	return img
}

// snapshotNames are the names of the internal snapshots; one without a name has its id.
func snapshotNames(t *qcow2.SnapshotTable) []string {
	names := make([]string, 0, len(t.Snapshots))
	for _, s := range t.Snapshots {
		if s.Name != "" {
			names = append(names, s.Name)
		} else {
			names = append(names, s.ID)
		}
	}
	return names
}
