// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/mount"
	"github.com/shisa-vm/shisa/internal/render"
)

type holdersOptions struct {
	json bool
	all  bool
	holders.Options
	tracing
	advising
}

func newHolders(s *stdio) *cobra.Command {
	var o holdersOptions
	c := &cobra.Command{
		Use:   "holders PATH|DEV|IMAGE",
		Short: "tell who keeps a mount, a device or an image busy",
		Long: `holders tells who keeps something busy: processes and threads in every mount namespace, what the
kernel holds for nobody (loop devices, swap, probes, sockets), copies of the mount elsewhere, and how each is
released.

Of a mount it reads the kernel's own count of references, and takes off what was found. What is left is said:
an empty list means nobody only where nothing is left. What keeps the file system after the umount is told
too; with --all-superblock that counts as holding it.

Nothing in the file system is looked at, so one that hangs holds nobody up.

Who is gone before anybody can look is found with --trace: it watches from before the umount on, and tells of each
that fails who held the mount when the kernel counted, with the system call and both stacks. --pollers finds
those who look at mounts on a period before anything fails.

--advise tells how they are kept from the mount for good: by an option of their own, or by a drop-in for their
unit. --write-dropin makes that as a plan, which "shisa apply" carries out and "shisa undo" takes back.`,
		Example: `  shisa holders /mnt
  shisa holders /dev/sdb1
  shisa holders /var/lib/libvirt/images/vm.qcow2
  shisa holders --json --all-superblock /mnt
  shisa holders --trace --for 1h /mnt
  shisa holders --pollers
  shisa holders --advise --pollers /mnt
  shisa holders --write-dropin vmtoolsd.service --apply /mnt`,
		Args: wantArgs(0, -1),
		RunE: func(c *cobra.Command, args []string) error {
			if cure, err := o.cures(c, args, &o.tracing); err != nil {
				return err
			} else if cure {
				return runCure(c.Context(), o, args[0], s)
			}
			if err := o.ready(c, args); err != nil {
				return err
			}
			switch {
			case o.engines:
				return runEngines(c.Context(), o.json, s)
			case o.pollers:
				return runPollers(c.Context(), o, s)
			case o.trace:
				return runTrace(c.Context(), o, args, s)
			}
			return runHolders(c.Context(), o, args[0], s)
		},
	}
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.BoolVar(&o.AllSuperblock, "all-superblock", false, "what only keeps the file system after the umount "+
		"counts as well")
	o.flags(c)
	o.adviceFlags(c)
	f.BoolVar(&o.all, "all", false, "list every holder instead of at most 20 lines of a kind")
	return c
}

// holdersHost is this host with the kernel's own lists, as far as they can be read; done gives them
// back.
func holdersHost(context.Context) (h holders.Host, done func() error) {
	h = holders.Host{Linux: linux.Open(""), Self: holders.Self()}
	refs, err := probe.OpenRefs()
	if err != nil {
		h.NoKernel = err
		return h, func() error { return nil }
	}
	h.Kernel = refs
	return h, refs.Close
}

func runHolders(ctx context.Context, o holdersOptions, name string, s *stdio) (err error) {
	h, done := holdersHost(ctx)
	defer func() { err = errors.Join(err, done()) }()
	o.Mounted = ownMounts()
	t, err := holders.Resolve(ctx, h, name)
	if err == nil {
		return askHolders(ctx, o, h, t, s)
	}
	if errors.Is(err, fs.ErrPermission) {
		err = withStatus(finding.StatusRefused, err)
	}
	return err
}

// ownMounts are the mounts that this program serves by other processes: of those, what to do is known.
func ownMounts() map[int]string {
	dir, err := stateDir("")
	if err != nil {
		return nil // without one there are none
	}
	points, _ := mount.Points(dir) // a record that cannot be read only leaves the usual advice
	all := map[int]string{}
	for _, p := range points {
		all[p.PID] = p.Dir
	}
	return all
}

func askHolders(ctx context.Context, o holdersOptions, h holders.Host, t holders.Target, s *stdio) error {
	r, err := holders.Scan(ctx, h, t, o.Options)
	if err != nil {
		return err
	}
	if o.json {
		err = render.JSON(s.out, render.HoldersSchema, r)
	} else {
		err = render.Holders(s.out, r, s.style(o.all))
	}
	if err != nil {
		return err
	}
	return exitWith(r.Status[0])
}
