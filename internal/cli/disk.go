// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
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

DISK is an image of any format that is read (raw, qcow2, vmdk, vhdx, vhd, vdi), a device, a directory with a vmdk of
several files, or IMAGE@SNAPSHOT for an internal snapshot. Behind it, after colons, stand the part and the path:

  vm.qcow2                    the part is found if only one can be meant
  vm.qcow2:/etc/fstab
  vm.qcow2:2:/etc/fstab       the second partition
  vm.qcow2:vg/root:/etc       a logical volume; --disk gives its other disks
  vm.qcow2:LABEL=data:/       also UUID=, PARTLABEL=, PARTUUID=
  vm.qcow2:disk2p1:/          with --disk: partition 1 of the second disk
  vm.qcow2@monday:/etc        an internal snapshot

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
	f.Var((*repeated)(&o.more), "disk", "`IMAGE` is another disk of the same guest (may be repeated)")
	f.Var((*given)(&o.snapshot), "snapshot", "look into the internal snapshot with that id or `NAME`")
	f.Var((*given)(&o.part), "part", "look into the part `NAME`, as parts lists them")
	return f
}

// pathFlag adds --path, where one path is looked at.
func (o *guestOptions) pathFlag(f *pflag.FlagSet) {
	f.Var((*given)(&o.path), "path", "look at `PATH` in the guest")
}

// look is a guest that is opened, and the part of it that was meant.
type look struct {
	*inside.Guest
	head render.GuestHead
	fs   files.FS
	part int // the index of its volume
	// others are the parts that may hold files too, where nobody said which part is meant.
	others string
	// view is where a survey leaves its view; nil: that of the file system. below says what alone was
	// gone through without one.
	view  *files.View
	below string
	// mounted says which directories the guest mounts other file systems on, nil: that is not asked.
	// flat: what lies below the path is not gone through.
	mounted func(flat bool) []string
	flat    bool
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
			if errors.Is(err, inside.ErrForm) {
				err = withStatus(finding.StatusUsage, err)
			}
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

// openWhole is open where no part and no path may be meant.
func (o *guestOptions) openWhole(ctx context.Context, arg string) (*look, error) {
	l, name, err := o.open(ctx, arg)
	if err != nil {
		return nil, err
	}
	if rest := name.Part + name.Path; rest != "" {
		err := withStatus(finding.StatusUsage, fmt.Errorf("%s: whole disks are looked at, and no part or path of one: %s",
			name.Disk, rest))
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// fileSystem opens the file system that an argument means; the path is "/" if none was said.
func (o *guestOptions) fileSystem(ctx context.Context, arg string) (*look, error) {
	l, name, err := o.open(ctx, arg)
	if err != nil {
		return nil, err
	}
	part, err := l.Part(ctx, name.Part)
	if err == nil {
		if l.fs, err = l.FS(ctx, part); err != nil {
			err = l.kernelHint(part, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if l.part = part; name.Part == "" {
		l.others = l.otherParts()
	}
	l.head.Part, l.head.Path = l.Layout.Volumes[part].Name, cmp.Or(name.Path, "/")
	l.head.FileSystem = render.NewGuestFileSystem(l.fs.Info())
	return l, nil
}

// into opens the file system that an argument means, and calls fn with what is at its path. follow: a
// symbolic link leads on.
func (o *guestOptions) into(ctx context.Context, arg string, follow bool,
	fn func(l *look, at *files.Found) error,
) (err error) {
	l, err := o.fileSystem(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	at, err := inside.Lookup(ctx, l.fs, l.head.Path, follow)
	where := path.Clean(l.head.Path)
	if err == nil {
		where = at.Path
	}
	l.mounted = func(flat bool) []string { return l.MountedThere(ctx, l.fs, where, flat) }
	switch {
	case errors.Is(err, inside.ErrPath):
		return l.absent(err)
	case err != nil:
		return withStatus(finding.StatusCannotTell, err)
	}
	return fn(l, at)
}

// absent judges that nothing has a path. It is so only if all that was read on the way could be: a
// journal that was not replayed may hold the name.
func (l *look) absent(err error) error {
	if l.others != "" {
		err = finding.WithHint(err, fmt.Sprintf("only part %s was looked into; it may be in another: %s", l.head.Part,
			l.others))
	}
	l.flat = true
	end := l.end(0, nil)
	for _, n := range l.mounted(true) {
		err = finding.WithHint(err, n)
	}
	if end.Complete {
		return err
	}
	err = fmt.Errorf("%w, as far as can be told", err)
	if i := slices.IndexFunc(end.View.Problems, func(p files.Problem) bool { return p.Hides }); i >= 0 {
		err = fmt.Errorf("%w: %s", err, end.View.Problems[i].What)
	}
	return withStatus(end.Status[0], err)
}

// otherParts names the parts beside the one that is looked into that may hold files of the guest.
func (l *look) otherParts() string {
	var names []string
	can := inside.Readable(l.Guest)
	for i, v := range l.Layout.Volumes {
		if i != l.part && (slices.Contains(can, i) || v.NotExamined != "" && v.Kind != volume.Unknown) {
			names = append(names, fmt.Sprintf("%s (%s)", v.Name, v.Kind))
		}
	}
	return strings.Join(names, ", ")
}

// compare holds what has names against what is in use, where all of a file system was gone through:
// without checksums nothing else tells that a directory lost names. What it finds is part of the end.
func (l *look) compare(ctx context.Context, from *files.Found) error {
	if from.Entry.Ino != l.fs.Info().Root {
		l.only(from, "")
		return nil
	}
	_, view, err := files.Survey(ctx, l.fs, nil)
	l.view = &view
	return err
}

// only notes that no more than what is below a directory was gone through.
func (l *look) only(from *files.Found, levels string) {
	if from.File.Stat().IsDir() {
		l.below = levels + from.Path
	}
}

// used is how much of the file system is in use, in bytes: what copying all of it has to read at most.
func (l *look) used() int64 { return l.head.FileSystem.SizeBytes - l.head.FileSystem.FreeBytes }

// list shows the entries that run gives.
func (l *look) list(s *stdio, json bool, form render.GuestListText,
	run func(each func(render.GuestEntry, inside.Level) error) error,
) error {
	form.Raw = s.width == 0
	list := render.NewGuestListText(s.out, form, s.style(false))
	if json {
		var err error
		if list, err = render.NewGuestListJSON(s.out, l.head); err != nil {
			return err
		}
	}
	unread := int64(0)
	var write error
	err := run(func(e render.GuestEntry, at inside.Level) error {
		if e.Error != "" {
			unread++
		}
		write = list.Entry(e, at)
		return write
	})
	if write != nil {
		return write
	}
	end := l.end(unread, err)
	if err := list.End(end); err != nil {
		return err
	}
	return l.finish(s, end, !json)
}

// end judges what was read so far. unread counts what could not be, err is what ended it.
func (l *look) end(unread int64, err error) render.GuestEnd {
	view := l.fs.View()
	if l.view != nil {
		view = *l.view
	}
	end := render.NewGuestEnd(l.Guest, view, unread, err)
	end.Compared = l.view != nil && err == nil
	if l.mounted != nil && err == nil {
		end.Notes = append(end.Notes, l.mounted(l.flat)...)
	}
	if l.others != "" && l.view != nil {
		end.Notes = append(end.Notes, fmt.Sprintf("only part %s was gone through, since none was named; there are "+
			"also %s", l.head.Part, l.others))
	}
	if l.below != "" && end.Complete && !inside.Checksums(l.fs) {
		end.Notes = append(end.Notes, "only "+l.below+" was gone through; the directories of this file system "+
			"have no checksums, so what one lost is noticed only over the whole of it: shisa disk find "+
			operand(l.source()))
	}
	return end
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
