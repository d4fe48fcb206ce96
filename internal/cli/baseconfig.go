// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/config"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/roll"
)

// configFlag has what the configuration says of POOL, the first argument, apply before the command runs. Without POOL all
// pools are meant that it names.
func (o *poolOptions) configFlag(c *cobra.Command) {
	configFlag(c.Flags(), &o.config)
	c.PreRunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			o.pool = args[0]
		}
		return o.configure(c.Context())
	}
}

func configFlag(f *pflag.FlagSet, v *string) {
	f.StringVar(v, "config", "", "what is said of pools of base images in `FILE` applies (default "+config.Default+
		", which need not be there)")
}

// configure takes what the configuration says of the pool, if it does. A pool that it names several times, as by two
// directories of instances that share their bases, is one, of which all is true that is said anywhere.
func (o *poolOptions) configure(ctx context.Context) error {
	all, err := config.Read(ctx, o.config)
	if err != nil {
		return err
	}
	if o.node = all.Node; o.pool == "" {
		return o.configureAll(ctx, all)
	}
	if len(all.All) == 0 {
		return nil
	}
	if _, err := realPath(ctx, o.pool); errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil // the command says so
	} else if err != nil {
		return err
	}
	plain := *o
	o.joint, o.plain = newJoint(all.All, o.pool), &plain
	o.joint.look(ctx)
	return o.join(len(all.All), o.joint.with(len(all.All)))
}

// join takes what the configuration says of one of the pools of the joint, by all of its names.
func (o *poolOptions) join(i int, with []int) error {
	o.at, o.joined = i, with
	for k := range o.joint.all {
		p := &o.joint.all[k]
		if !slices.Contains(with, k) {
			o.elsewhere = append(o.elsewhere, p)
			continue
		}
		if k != i {
			o.baseDirs = append(o.baseDirs, basesAt(p))
		}
		if err := o.take(p); err != nil {
			return err
		}
	}
	return nil
}

// basesAt is the directory of bases by what the configuration says.
func basesAt(p *config.Pool) string {
	if name := cmp.Or(p.Bases, "_base"); filepath.Base(p.Path) != name {
		return filepath.Join(p.Path, name)
	}
	return p.Path
}

// configureAll takes all pools of the configuration, each once.
func (o *poolOptions) configureAll(ctx context.Context, all *config.Pools) error {
	o.joint = newJoint(all.All, "")
	o.joint.look(ctx)
	for i := range all.All {
		with, ok := o.joint.lead(i)
		if !ok {
			continue
		}
		one, err := o.one(i, with)
		if err != nil {
			return err
		}
		o.several = append(o.several, *one)
	}
	for i := range all.All {
		o.joint.end(i)
	}
	return nil
}

// one gives the options for one of the pools of the configuration.
func (o *poolOptions) one(i int, with []int) (*poolOptions, error) {
	one := *o
	one.several = nil
	one.pool, one.among = o.joint.all[i].Path, true
	if one.baseName == "_base" {
		one.baseName = cmp.Or(o.joint.all[i].Bases, "_base")
	}
	return &one, one.join(i, with)
}

// take takes what is said of a pool. What flags say comes on top of lists, and goes before the rest. The error is for what
// contradicts what is said of it elsewhere.
func (o *poolOptions) take(p *config.Pool) error {
	o.also = slices.Concat(o.also, p.Roots)
	o.nova = slices.Concat(o.nova, p.NovaExports)
	if o.said == nil {
		o.said = p
		if o.baseName == "_base" {
			o.baseName = cmp.Or(p.Bases, "_base")
		}
		return nil
	}
	both, was := *o.said, o.said
	if was.ComputeNodes != "" && p.ComputeNodes != "" && was.ComputeNodes != p.ComputeNodes {
		return fmt.Errorf("lines %d and %d of the configuration are about the same pool, and name two lists of hosts", was.Line, p.Line)
	}
	both.UUID, both.ComputeNodes = cmp.Or(was.UUID, p.UUID), cmp.Or(was.ComputeNodes, p.ComputeNodes)
	both.Libvirt, both.Members = slices.Concat(was.Libvirt, p.Libvirt), slices.Concat(was.Members, p.Members)
	both.Others = slices.DeleteFunc(slices.Concat(was.Others, p.Others), func(name string) bool {
		return slices.Contains(both.Members, name)
	})
	both.Protect, both.Watch = was.Protect || p.Protect, was.Watch || p.Watch
	if both.KeepAlive = max(was.KeepAlive, p.KeepAlive); min(was.KeepAlive, p.KeepAlive) > 0 {
		both.KeepAlive = min(was.KeepAlive, p.KeepAlive)
	}
	both.Quarantine, both.Purge = was.Quarantine && p.Quarantine, was.Purge && p.Purge
	o.said = &both
	return nil
}

// basesID tells which directory has the bases of a pool, unless it cannot be looked at.
func basesID(ctx context.Context, pool, baseName string) (id diskio.ID, known bool) {
	dir, err := refs.BasesIn(ctx, pool, baseName, 10*time.Second)
	if err != nil {
		return id, false
	}
	st, err := diskio.WithinAt(ctx, dir, 10*time.Second, func() (diskio.Stat, error) { return diskio.Look(dir) }, nil)
	return st.ID, errors.Is(err, diskio.ErrDirectory)
}

// realPath is the absolute path without symbolic links.
func realPath(ctx context.Context, path string) (string, error) {
	return diskio.WithinAt(ctx, path, 10*time.Second, func() (string, error) {
		real, err := diskio.RealPath(path)
		if err != nil {
			return "", err
		}
		return filepath.Abs(real)
	}, nil)
}

// rightPool refuses a pool that is not the one which the configuration means: its storage may not be mounted.
func (o *poolOptions) rightPool(c *refs.Census) error {
	if o.said == nil || o.said.UUID == "" || c.Pool == o.said.UUID {
		return nil
	}
	return poolError(fmt.Errorf("%s %w: its uuid is %q, and should be %q", c.Bases, bases.ErrOther, c.Pool, o.said.UUID), o.pool)
}

// saidElsewhere refuses a pool of which the configuration says something under a name that is not this directory now: its
// storage may be mounted here, and not there, and what it says, as where more images lie, does not apply.
func (o *poolOptions) saidElsewhere(c *refs.Census) error {
	for _, p := range o.elsewhere {
		if p.UUID != "" && p.UUID == c.Pool {
			return finding.WithHint(withStatus(finding.StatusRefused, fmt.Errorf("%s is pool %s, of which line %d of the configuration "+
				"speaks as %s, and that is not this directory now", c.Bases, c.Pool, p.Line, p.Path)),
				"mount it there, or put the path right in the configuration")
		}
	}
	return nil
}

// known gives the nodes that use a pool as others than the pool say, and what could not be asked.
func (o *poolOptions) known(ctx context.Context, c *refs.Census) ([]judge.Known, []error, error) {
	return roll.Call(ctx, c, o.said, linux.Open(""))
}

// censusBy takes censuses for who has a progress of its own, with what a configuration says of each pool.
func censusBy(config string, s *stdio) func(context.Context, refs.Options) (*refs.Census, error) {
	quiet := *s
	quiet.barWidth = 0
	return func(ctx context.Context, r refs.Options) (*refs.Census, error) {
		o := poolOptions{pool: r.Pool, baseName: r.BaseName, config: config}
		if err := o.configure(ctx); err != nil {
			return nil, err
		}
		return o.census(ctx, &quiet)
	}
}
