// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

// newDisk is the command that has the commands for looking into a guest's disk.
func newDisk(s *stdio) *cobra.Command {
	c := &cobra.Command{
		Use:   "disk COMMAND",
		Short: "look into a guest's disk: partitions, files, hurt sectors",
		Long: `disk looks into the disk of a guest, running or dead, without booting it, without mounting it and
without root. Nothing is ever written to it: what is in the journal of a guest that was not shut down is replayed in
memory.

DISK is an image of any format that is read (raw, qcow2, vmdk, vhdx, vhd), a device, a directory with a vmdk of
several files, or IMAGE@SNAPSHOT for an internal snapshot. Behind it, after colons, stand the part and the path:

  vm.qcow2                    the part is found if only one can be meant
  vm.qcow2:/etc/fstab
  vm.qcow2:2:/etc/fstab       the second partition
  vm.qcow2:vg/root:/etc       a logical volume; --disk names further disks of the volume group
  vm.qcow2:LABEL=data:/       also UUID=, PARTLABEL=, PARTUUID=

A file that exists by the whole name wins; --part and --path are the exact form.

What parses the guest's bytes runs in a child process without any rights.`,
		Example: `  shisa disk parts vm.qcow2                 what the disk is divided into
  shisa disk ls -l vm.qcow2:/var/log        a directory
  shisa disk cat vm.qcow2:/etc/fstab        a file
  shisa disk cp vm.qcow2:/srv rescued       copy a tree out
  shisa disk who --sector 4711 vm.qcow2     which file is hurt`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return usageError(c, "no command was given")
		},
	}
	c.AddCommand(
		newDiskParts(s), newDiskLs(s), newDiskCat(s), newDiskCp(s), newDiskFind(s), newDiskDf(s),
		newDiskStat(s), newDiskTree(s), newDiskHash(s), newDiskTar(s), newDiskWho(s),
		newDiskMount(s), newDiskUmount(s),
	)
	return c
}

// guestOptions are what the commands that look into a guest have in common.
type guestOptions struct {
	diskOptions
	format     string
	more       []string
	part, path string
	snapshot   string
}

func (o *guestOptions) flags(c *cobra.Command) *pflag.FlagSet {
	f := o.diskOptions.flags(c)
	f.StringVarP(&o.format, "format", "f", "", "take the image for one of format `FMT`")
	f.StringArrayVar(&o.more, "disk", nil, "`IMAGE` is another disk of the same guest (may be repeated)")
	f.StringVar(&o.snapshot, "snapshot", "", "look into the internal snapshot with that id or `NAME`")
	f.StringVar(&o.part, "part", "", "look into the part `NAME`, as parts lists them")
	return f
}

// pathFlag adds --path, where one path is looked at.
func (o *guestOptions) pathFlag(f *pflag.FlagSet) {
	f.StringVar(&o.path, "path", "", "look at `PATH` in the guest")
}

// look is a guest that is opened, and the part of it that was meant.
type look struct {
	*inside.Guest
	head render.GuestHead
	fs   files.FS
	// view is where a survey leaves its view; nil: that of the file system.
	view *files.View
}

// exists tells whether something has a name.
func exists(name string) bool {
	_, err := diskio.Look(name)
	return err == nil || !errors.Is(err, os.ErrNotExist)
}

// open opens the guest that an argument means, without choosing a part.
func (o *guestOptions) open(ctx context.Context, arg string) (*look, inside.Name, error) {
	name := inside.Name{Disk: arg}
	var err error
	if o.part == "" || o.path == "" || !exists(arg) {
		if name, err = inside.ParseName(arg, exists); err != nil {
			return nil, name, err
		}
	}
	if o.part != "" {
		name.Part = o.part
	}
	if o.snapshot != "" {
		name.Snapshot = o.snapshot
	}
	if o.path != "" {
		name.Path = o.path
	}
	g, err := inside.Open(ctx, name, inside.Options{Policy: o.policy(), Format: o.format, More: o.more})
	if err != nil {
		return nil, name, diskError(err)
	}
	return &look{Guest: g, head: render.GuestHead{Disk: name.Disk, Snapshot: name.Snapshot,
		FileSystem: render.NewGuestFileSystem(files.Info{})}}, name, nil
}

// into opens the file system that an argument means; the path is "/" if none was said.
func (o *guestOptions) into(ctx context.Context, arg string) (*look, error) {
	l, name, err := o.open(ctx, arg)
	if err != nil {
		return nil, err
	}
	part, err := l.Part(ctx, name.Part)
	if err == nil {
		l.head.Part = l.Layout.Volumes[part].Name
		l.fs, err = l.FS(ctx, part)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.head.FileSystem = render.NewGuestFileSystem(l.fs.Info())
	l.head.Path = name.Path
	if name.Path == "" {
		l.head.Path = "/"
	}
	return l, nil
}

// at finds the path that was meant.
func (l *look) at(ctx context.Context, follow bool) (*files.Found, error) {
	f, err := inside.Lookup(ctx, l.fs, l.head.Path, follow)
	if err != nil && !errors.Is(err, inside.ErrPath) {
		err = withStatus(finding.StatusCannotTell, err)
	}
	return f, err
}

// end judges what was read so far. unread counts what could not be, err is what ended it.
func (l *look) end(unread int64, err error) render.GuestEnd {
	view := l.fs.View()
	if l.view != nil {
		view = *l.view
	}
	return render.NewGuestEnd(view, unread, l.Missing(), l.Changed(), err).WithFindings(l.Crash())
}

// finish says what is not whole, and turns it into an exit status. Without text the result said it.
func (l *look) finish(s *stdio, e render.GuestEnd, text bool) error {
	if text {
		if err := render.GuestTrouble(s.err, e, render.Style{Width: s.width}); err != nil {
			return err
		}
		if e.Error != "" {
			return withStatus(e.Status[0], errors.New(e.Error))
		}
	}
	return exitWith(e.Status[0])
}
