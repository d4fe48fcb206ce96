// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/mount"
	"github.com/shisa-vm/shisa/internal/render"
)

type diskUmountOptions struct {
	json  bool
	state string
}

func newDiskUmount(s *stdio) *cobra.Command {
	var o diskUmountOptions
	c := &cobra.Command{
		Use:   "umount DIR",
		Short: "take away what mount shows at a directory",
		Long: `umount takes away what "shisa disk mount" shows at a directory, and waits until nothing is
left of it: no mount, no process, no loop device. It does so also after the process that served it was
killed. While programs use the directory it is refused. A command that runs with --kernel is told to
end.

What could not be read while it was mounted is told, and the exit status is 4 then.`,
		Example: "  shisa disk umount /mnt",
		Args:    wantArgs(1, 1),
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			if points := mountPoints(o.state, word); len(points) > 0 {
				return points, cobra.ShellCompDirectiveNoFileComp
			}
			return directories(c, args, word)
		},
		RunE: func(c *cobra.Command, args []string) error {
			return runDiskUmount(c.Context(), o, args[0], s)
		},
	}
	jsonFlag(c, &o.json)
	stateFlag(c, &o.state, "the record of the mount is below `DIR`")
	return c
}

// mountPoints gives the directories that may be meant by a word that was begun, with what is mounted
// there: by their whole names, and below the current directory as they are seen from it.
func mountPoints(named, word string) []string {
	state, err := stateDir(named)
	if err != nil {
		return nil
	}
	points, _ := mount.Points(state) // what cannot be read is no suggestion
	here, _ := os.Getwd()            // "" is above nothing
	var all []string
	for _, p := range points {
		dir := p.Dir
		if below, inside := strings.CutPrefix(dir, strings.TrimSuffix(here, "/")+"/"); inside && !strings.HasPrefix(word, "/") {
			dir = below
		}
		if strings.HasPrefix(dir, word) && render.Text(dir) == dir {
			all = append(all, cobra.CompletionWithDesc(dir, render.Text(p.Source)))
		}
	}
	return all
}

func runDiskUmount(ctx context.Context, o diskUmountOptions, dir string, s *stdio) error {
	state, err := stateDir(o.state)
	if err != nil {
		return err
	}
	gone, err := mount.Unmount(ctx, state, dir)
	if err != nil {
		return mountError(err, dir)
	}
	doc := render.NewGuestUmount(gone)
	if o.json {
		err = render.JSON(s.out, render.GuestUmountSchema, doc)
	} else {
		err = render.GuestUmount(s.err, doc, render.Style{Width: s.width})
	}
	if err != nil {
		return err
	}
	return exitWith(doc.Status[0])
}

// mounts takes away what processes that were killed left mounted, and gives the statuses.
func (o *recoverOptions) mounts(doc *render.RecoverDocument, s *stdio) []int {
	state, err := stateDir(o.state)
	if err != nil {
		return nil // recover has said so
	}
	say := warn(s)
	gone, err := mount.Recover(state)
	for _, g := range gone {
		say("took away the mount on " + g.Dir + ", whose process had been killed")
		for _, line := range g.Log {
			say(g.Dir + ": " + render.MountLine(line))
		}
	}
	if err == nil {
		return nil
	}
	for text := range strings.Lines(err.Error()) {
		text = strings.TrimSuffix(text, "\n")
		say(text)
		doc.Errors = append(doc.Errors, text)
	}
	return []int{finding.StatusHalfDone}
}
