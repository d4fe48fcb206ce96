// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
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
	for _, arg := range args {
		if err := catOne(ctx, o, arg, s); err != nil {
			return err
		}
	}
	return nil
}

func catOne(ctx context.Context, o guestOptions, arg string, s *stdio) (err error) {
	l, err := o.into(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	f, err := l.at(ctx, true)
	if err != nil {
		return err
	}
	if err := inside.Cat(ctx, f, s.out); err != nil {
		if errors.Is(err, inside.ErrNotFile) {
			return err
		}
		return withStatus(finding.StatusCannotTell, fmt.Errorf("%s: %w", f.Path, err))
	}
	end := l.end(0, nil)
	return l.finish(s, end, true)
}
