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
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/config"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/roll"
)

// configFlag has what the configuration says of POOL, the first argument, apply before the command runs.
func (o *poolOptions) configFlag(c *cobra.Command) {
	c.Flags().StringVar(&o.config, "config", "", "what is said of POOL in `FILE` applies (default "+config.Default+
		", which need not be there)")
	c.PreRunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return o.configure(c.Context(), args[0])
	}
}

// configure takes what the configuration says of a pool, if it does. What flags say comes on top of lists, and goes
// before the rest.
func (o *poolOptions) configure(ctx context.Context, pool string) error {
	all, err := config.Read(ctx, o.config)
	if err != nil {
		return err
	}
	if o.node = all.Node; len(all.All) == 0 {
		return nil
	}
	path, err := realPath(ctx, pool)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil // the command says so
	} else if err != nil {
		return err
	}
	for i := range all.All {
		p := &all.All[i]
		at, err := realPath(ctx, p.Path)
		if err != nil {
			continue // then it is not the one that was asked for, which has a path
		}
		name := cmp.Or(p.Bases, "_base")
		if path != at && path != filepath.Join(at, name) {
			continue
		}
		o.said = p
		if o.baseName == "_base" {
			o.baseName = name
		}
		o.also = append(o.also, p.Roots...)
		o.nova = append(o.nova, p.NovaExports...)
		return nil
	}
	return nil
}

// realPath is the absolute path without symbolic links.
func realPath(ctx context.Context, path string) (string, error) {
	return diskio.Within(ctx, 10*time.Second, func() (string, error) {
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
	err := fmt.Errorf("%s %w: its uuid is %q, and should be %q", c.Bases, bases.ErrOther, c.Pool, o.said.UUID)
	return finding.WithHint(withStatus(finding.StatusRefused, err), "mount it, or put its uuid right in the configuration")
}

// known gives the nodes that use a pool as others than the pool say, and what could not be asked.
func (o *poolOptions) known(ctx context.Context, c *refs.Census) ([]judge.Known, []error, error) {
	return roll.Call(ctx, c, o.said, linux.Open(""))
}
