// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

type diskCpOptions struct {
	guestOptions
	resume bool
}

func newDiskCp(s *stdio) *cobra.Command {
	var o diskCpOptions
	c := &cobra.Command{
		Use:   "cp DISK[:PART][:/PATH] TARGET",
		Short: "copy files and directories out of the guest",
		Long: `cp copies a file, or a directory with all that is in it, out of the guest: with modes, times, extended
attributes, hard and symbolic links, and holes; as root with owners and devices too. If TARGET is a directory the
copy gets its own name in it, otherwise TARGET is the copy.

Nothing that exists is changed, and nothing is ever made outside of TARGET, whatever links the guest has. A file gets
its name when it is whole. With --resume, what is there with the guest's size and time is kept.

The exit status is 4 if something could not be read or made; the rest is copied then.`,
		Example: `  shisa disk cp vm.qcow2:/srv/data rescued
  shisa disk cp --resume vm.qcow2:/ rescued
  shisa disk cp vm.qcow2@monday:/etc/passwd .`,
		Args: wantArgs(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return runDiskCp(c.Context(), o, args[0], args[1], s)
		},
	}
	f := o.flags(c)
	o.pathFlag(f)
	f.BoolVar(&o.resume, "resume", false, "keep what an earlier copy left that is whole")
	return c
}

func runDiskCp(ctx context.Context, o diskCpOptions, arg, target string, s *stdio) error {
	return o.into(ctx, arg, true, func(l *look, from *files.Found) error {
		return o.copy(ctx, l, from, target, s)
	})
}

func (o *diskCpOptions) copy(ctx context.Context, l *look, from *files.Found, target string,
	s *stdio,
) (err error) {
	dir, name := filepath.Split(filepath.Clean(target))
	if st, err := os.Stat(target); err == nil && st.IsDir() {
		dir, name = target, path.Base(from.Path)
		if from.Path == "/" {
			name = "."
		}
	}
	dir = cmp.Or(dir, ".")
	tree, err := diskio.NewTree(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	p := newProgress(s, "copying")
	done, err := inside.Copy(ctx, from, l.fs, tree, name, inside.CopyOptions{Resume: o.resume,
		Owner:    os.Geteuid() == 0,
		Progress: func(bytes, _ int64) { p.Set(min(bytes, l.used()), l.used()) }})
	p.Done()
	if err == nil {
		err = l.compare(ctx, from)
	}
	if errors.Is(err, fs.ErrExist) {
		err = finding.WithHint(err, "copy to another place, or go on with an earlier copy: --resume")
	}
	return l.copied(s, o.json, filepath.Join(dir, name), done, err)
}

// copied shows what was copied.
func (l *look) copied(s *stdio, json bool, to string, done *inside.Copied, err error) error {
	end := l.end(done.Lost, err)
	doc := render.NewGuestCopy(l.head, to, done, end)
	if json {
		if err := render.JSON(s.out, render.GuestCopySchema, doc); err != nil {
			return err
		}
		return l.finish(s, end, false)
	}
	nothing := done.Files+done.Directories+done.Links+done.Nodes+done.Kept+done.Lost+done.Unset == 0
	if err == nil || !nothing {
		if err := render.GuestCopy(s.out, doc, s.style(false)); err != nil {
			return err
		}
	}
	if errors.As(err, new(*fs.PathError)) {
		return withStatus(end.Status[0], err) // with its hint
	}
	return l.finish(s, end, true)
}
