// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/inside"
)

func newDiskCat(s *stdio) *cobra.Command {
	var o guestOptions
	c := &cobra.Command{
		Use:   "cat DISK[:PART]:/PATH...",
		Short: "print a file of the guest",
		Long: `cat prints files of the guest byte for byte. Symbolic links lead to where they would in the guest.

What cannot be read ends the output there, with the exit status 4.`,
		Example: `  shisa disk cat vm.qcow2:/etc/fstab
  shisa disk cat vm.qcow2:/var/log/syslog | tail`,
		Args: wantArgs(1, -1),
		RunE: func(c *cobra.Command, args []string) error { return runDiskCat(c.Context(), o, args, s) },
	}
	f := o.flags(c)
	o.pathFlag(f)
	// The result is the file itself: there is no document to print.
	f.Lookup("json").Hidden = true
	return c
}

func runDiskCat(ctx context.Context, o guestOptions, args []string, s *stdio) error {
	if o.json {
		return withStatus(finding.StatusUsage, errors.New("cat prints the file itself, which is no JSON"))
	}
	var unsure error // what was printed may not be all or not true, but another file may be
	for _, arg := range args {
		if err := o.into(ctx, arg, true, func(l *look, f *files.Found) error {
			l.flat = true
			err := inside.Cat(ctx, f, s.out)
			switch {
			case errors.Is(err, inside.ErrNotFile):
				return err
			case err != nil:
				return withStatus(finding.StatusCannotTell, fmt.Errorf("%s: %w", f.Path, err))
			}
			unsure = cmp.Or(unsure, l.finish(s, l.end(0, nil), true))
			return nil
		}); err != nil {
			return err
		}
	}
	return unsure
}
