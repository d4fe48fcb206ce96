// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/render"
)

// lookOptions are what check and scan have in common: how images are looked at and shown.
type lookOptions struct {
	json        bool
	all         bool
	html        htmlPage
	follow      bool
	pools       []string
	live        bool
	inflate     bool
	direct      bool
	workers     int
	memory      byteSize
	ioLimit     byteSize
	readTimeout time.Duration
	state       string
	files       namesFiles
}

func (o *lookOptions) flags(c *cobra.Command) {
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.BoolVar(&o.all, "all", false, "list every finding, range and image instead of at most 20 of a kind")
	o.html.flag(f)
	f.BoolVar(&o.follow, "follow", false, "open backing files wherever they are")
	f.Var((*repeated)(&o.pools), "pool", "open backing files below `DIR` too (may be repeated)")
	f.BoolVar(&o.live, "live", false, "take every image for one that a program writes to, for storage whose "+
		"writers this host cannot see")
	f.BoolVar(&o.inflate, "inflate", false, "unpack every compressed cluster; this reads all their data")
	f.BoolVar(&o.direct, "direct", false, "read past the page cache")
	f.IntVar(&o.workers, "workers", 0, "read and examine at most `N` tables at once (0 is one for each CPU)")
	f.Var(&o.memory, "memory", "use at most so much memory for counting references (0 is 1G)")
	f.Var(&o.ioLimit, "io-limit", "read at most so much in a second (0 is no limit)")
	f.DurationVar(&o.readTimeout, "read-timeout", check.DefaultReadTimeout,
		"give an image up when no read of it completes for `TIME`, such as 90s")
	stateFlag(c, &o.state, "look for receipts of earlier repairs below `DIR`")
	o.files.flag(c)
}

// options gives the options of the examination, which tells p how far it is.
func (o *lookOptions) options(p *progress) check.Options {
	opts := check.Options{
		Follow: o.follow, Pools: o.pools, Workers: o.workers, MemoryBytes: int64(o.memory),
		Direct: o.direct, IOLimit: int64(o.ioLimit), Inflate: o.inflate, ReadTimeout: o.readTimeout,
		Progress: func(at check.Progress) {
			if at.Walking {
				p.Set(at.Files, 0)
			} else {
				p.Set(at.BytesDone, at.Bytes)
			}
		},
	}
	if o.all {
		opts.MaxRanges = -1
	}
	if o.live {
		opts.Live = check.LiveAlways
	}
	return opts
}

// poolReady refuses a pool that is not there: nothing below it could be followed, and nobody would
// notice a typing error. One that does not answer is left to the examination, which says so.
func (o *lookOptions) poolReady(ctx context.Context, pool string) error {
	_, err := diskio.Within(ctx, o.readTimeout, func() (diskio.Stat, error) { return diskio.Look(pool) }, nil)
	switch {
	case errors.Is(err, diskio.ErrDirectory), errors.Is(err, diskio.ErrTimeout):
		return nil
	case err == nil:
		err = fmt.Errorf("%s: not a directory", pool)
	}
	return finding.WithHint(fmt.Errorf("--pool: %w", err), "name a directory that holds base images")
}

// ready refuses what would fail after the work only.
func (o *lookOptions) ready(c *cobra.Command) error {
	if o.workers < 0 {
		return usageError(c, "--workers %d, want 0 or more", o.workers)
	}
	if err := o.files.ready(c); err != nil {
		return err
	}
	if o.readTimeout <= 0 {
		return usageError(c, "--read-timeout %v, want more than 0", o.readTimeout)
	}
	for _, pool := range o.pools {
		if err := o.poolReady(c.Context(), pool); err != nil {
			return err
		}
	}
	return o.html.ready()
}

func newCheck(s *stdio) *cobra.Command {
	var o lookOptions
	c := &cobra.Command{
		Use:   "check IMAGE|DIR...",
		Short: "check the consistency of disk images",
		Long: `check looks at disk images, and at all images below directories, without changing anything. It says
which images are hurt, which parts of the guest's disk that stands for, how sure that is and what to do next. The backing files of
an image are checked as well where they lie in or below the named directories, the image's own or a --pool.

An image that a running machine writes to is examined until errors can be told from writes in
flight. What could not be read is listed, the rest is checked nevertheless.

Leaked clusters come last: they cost space and hurt nothing.

Where data of a guest is hurt, the files that it belongs to are named, if that takes less than two seconds; --files
names them however long it takes.`,
		Example: `  shisa check vm.qcow2
  shisa check /var/lib/libvirt/images
  shisa check --html report.html /var/lib/libvirt/images
  shisa check --json --all vm.qcow2`,
		Args: wantArgs(1, -1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.ready(c); err != nil {
				return err
			}
			return runCheck(c.Context(), o, args, s)
		},
	}
	o.flags(c)
	return c
}

func runCheck(ctx context.Context, o lookOptions, paths []string, s *stdio) error {
	p := newProgress(s, "checking")
	opts := o.options(p)
	if err := remember(ctx, o.state, &opts); err != nil {
		return err
	}
	r, err := check.Run(ctx, paths, opts)
	if partial(ctx, err, len(r.Images)) {
		o.files.name(ctx, r.Images, o.beside(r.Images), s)
	}
	p.Done()
	if !partial(ctx, err, len(r.Images)) {
		return err
	}
	page := o.html.write(o.all, func(w io.Writer, info render.PageInfo) error { return render.CheckHTML(w, r, info) })
	r.Status, page = withPage(r.Status, page)
	var show error
	if o.json {
		show = render.JSON(s.out, render.CheckSchema, r)
	} else {
		show = render.Check(s.out, r, s.style(o.all))
	}
	if err := cmp.Or(err, page, show); err != nil {
		return err
	}
	return exitWith(r.Status[0])
}

// beside lets what was examined be opened again, with all that lies beside it.
func (o *lookOptions) beside(images []check.Image) disk.Policy {
	dirs := slices.Clone(o.pools)
	for _, img := range images {
		if dir := filepath.Dir(img.Path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return disk.Policy{Dirs: dirs, Follow: o.follow}
}

// partial reports whether there is a result to show: there is one without an error, and what was
// found before an interruption is worth showing as well, but does not hide it.
func partial(ctx context.Context, err error, images int) bool {
	return err == nil || ctx.Err() != nil && images > 0
}
