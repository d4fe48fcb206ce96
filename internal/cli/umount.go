// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/umount"
)

type umountOptions struct {
	json    bool
	explain bool
	risks   []string
	umount.Options
}

func newUmount(s *stdio) *cobra.Command {
	var o umountOptions
	c := &cobra.Command{
		Use:   "umount PATH",
		Short: "unmount what somebody keeps looking into, and say who",
		Long: `umount unmounts PATH, and tries again for some time where it is busy: who looks into every mount
once a second is past a millisecond later. Who was in the way is said all the same, so that it can be
cured. Where somebody stays, the mount is left as it is, and who holds it is said.

umount(2) succeeds while a copy of the mount lives on elsewhere, and then the device stays busy.
With --then-device-free success is only when the file system is gone.

--freeze stops a unit of systemd from running at each try, and lets it go on in between; it goes on
however this command ends. A unit that the host, ssh or this command needs is refused.

--lazy detaches the mount at once, and the file system lives on unseen until the last one lets go. It
is refused while somebody may write to it.`,
		Example: `  shisa umount /mnt
  shisa umount --wait 1m --then-device-free /mnt
  shisa umount --explain /mnt                           with the stacks of those in the way
  shisa umount --freeze vmtoolsd.service /mnt`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.ready(c); err != nil {
				return err
			}
			return runUmount(c.Context(), o, args[0], s)
		},
	}
	f := c.Flags()
	f.BoolVar(&o.json, "json", false, "print one JSON document")
	f.DurationVar(&o.Wait, "wait", 10*time.Second, "try for at most `TIME`; 0 tries once")
	f.BoolVar(&o.explain, "explain", false, "show the stacks of those who were in the way")
	f.StringVar(&o.Freeze, "freeze", "", "stop `UNIT` from running at each try")
	f.BoolVar(&o.DeviceFree, "then-device-free", false, "wait until the file system is gone and its device free")
	f.BoolVar(&o.Lazy, "lazy", false, "detach it at once, if nobody may write to it")
	f.Var((*repeated)(&o.risks), "accept-risk", "accept a risk for one mount, as `RISK:PATH`; lazy: it is "+
		"written to after it was detached")
	return c
}

// ready refuses command lines that make no sense.
func (o *umountOptions) ready(c *cobra.Command) error {
	for _, text := range o.risks {
		switch name, path, _ := strings.Cut(text, ":"); {
		case name != umount.Risk:
			return usageError(c, "--accept-risk %s: there is no risk of that name, known is: %s", text, umount.Risk)
		case path == "":
			return usageError(c, "--accept-risk %s: it does not say for which mount, want %s:PATH", text,
				umount.Risk)
		}
	}
	switch {
	case o.Wait < 0:
		return usageError(c, "--wait %s: want a time that is not below zero", o.Wait)
	case o.Lazy && o.Freeze != "":
		return usageError(c, "--lazy and --freeze, want one of them: what is detached at once waits for nobody")
	case len(o.risks) > 0 && !o.Lazy:
		return usageError(c, "--accept-risk is for --lazy")
	}
	return nil
}

// samePath compares names as texts: what is mounted there may not answer.
func samePath(a, b string) bool {
	one, err1 := filepath.Abs(a)
	other, err2 := filepath.Abs(b)
	return err1 == nil && err2 == nil && one == other
}

func runUmount(ctx context.Context, o umountOptions, path string, s *stdio) (err error) {
	o.AcceptLazy = slices.ContainsFunc(o.risks, func(text string) bool {
		_, of, _ := strings.Cut(text, ":")
		return samePath(of, path)
	})
	w, done := umountWorld(o.Wait)
	defer func() { err = errors.Join(err, done()) }()
	r, err := umount.Unmount(ctx, w, path, o.Options)
	switch {
	case errors.Is(err, umount.ErrRefused), errors.Is(err, fs.ErrPermission):
		return withStatus(finding.StatusRefused, err)
	case err != nil:
		return err
	}
	if o.json {
		err = render.JSON(s.out, render.UmountSchema, r)
	} else {
		err = render.Umount(s.out, r, o.explain, s.style(false))
	}
	if err != nil {
		return err
	}
	return exitWith(r.Status[0])
}

// umountWorld is this host, as umount sees it. What costs time is opened when it is needed; done gives
// it back.
func umountWorld(wait time.Duration) (w umount.World, done func() error) {
	opened := func() error { return nil }
	host := sync.OnceValue(func() (h holders.Host) {
		h, opened = holdersHost(context.Background())
		return h
	})
	look := func(ctx context.Context, t holders.Target) (*holders.Report, error) {
		return holders.Scan(ctx, host(), t, holders.Options{})
	}
	w = umount.World{
		Host:  linux.Open(""),
		Guard: umount.StartGuard,
		Watch: func(ctx context.Context, m linux.Mount) (umount.Watcher, error) { return watchMount(ctx, m, wait) },
		Scan: func(ctx context.Context, path string) (*holders.Report, error) {
			t, err := holders.Resolve(ctx, host(), path)
			if err != nil {
				return nil, err
			}
			return look(ctx, t)
		},
		ScanSystem: func(ctx context.Context, m linux.Mount) (*holders.Report, error) {
			return look(ctx, holders.SystemOf(m))
		},
		Kernel: func() (umount.Kernel, error) {
			if refs, ok := host().Kernel.(*probe.Refs); ok {
				return refs, nil
			}
			return nil, host().NoKernel
		},
	}
	return w, func() error { return opened() }
}

// mountWatcher is a trace of one mount.
type mountWatcher struct{ *trace.Trace }

// aMoment is for how long a watchpoint may slow down all programs where nobody asked for it.
const aMoment = time.Minute

// watchMount watches by what is most exact on one mount, if that is for a moment.
func watchMount(ctx context.Context, m linux.Mount, wait time.Duration) (umount.Watcher, error) {
	o := trace.Options{Host: linux.Open(""), Mounts: []linux.Mount{m}, First: trace.Exact()}
	if wait > aMoment {
		o.First = trace.Names()
	}
	o.Stacks, _ = trace.NewStacks(ctx, o.Host, o.Mounts)
	t, err := trace.Start(ctx, o)
	if err != nil {
		return nil, errors.Join(err, o.Stacks.Close())
	}
	return mountWatcher{t}, nil
}

func (w mountWatcher) Engine() string { return w.Trace.Engine().Name }

func (w mountWatcher) Tell(ctx context.Context) (failed []umount.Try, lost int64) {
	for _, f := range w.Trace.Tell(ctx) {
		failed = append(failed, umount.Try{At: f.At, Holders: f.Holders})
	}
	l, err := w.Lost()
	if err != nil {
		l.Drops++ // how many is not known
	}
	return failed, l.Drops + l.Tables + l.Programs
}
