// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
)

// diskOptions are what info, map and compare have in common: how the files below an image are found.
type diskOptions struct {
	json   bool
	follow bool
	pools  []string
}

func (o *diskOptions) flags(c *cobra.Command) *pflag.FlagSet {
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.BoolVar(&o.follow, "follow", false, "open backing files wherever they are, as qemu does")
	f.Var((*repeated)(&o.pools), "pool", "open backing files below `DIR` too (may be repeated)")
	// Scripts written for qemu-img pass it. There is nothing to share: no lock is ever taken.
	f.BoolP("force-share", "U", false, "accepted as by qemu-img: nothing is ever locked here")
	return f
}

func (o *diskOptions) policy() disk.Policy { return disk.Policy{Dirs: o.pools, Follow: o.follow} }

// diskError gives an error of opening a disk its exit status.
func diskError(err error) error {
	if errors.Is(err, disk.ErrNotFollowed) {
		return withStatus(finding.StatusRefused, err)
	}
	return err
}

// outputForm is the value of --output: the form of qemu-img.
type outputForm string

const (
	formHuman outputForm = "human"
	formJSON  outputForm = "json"
)

// flag adds --output to a command.
func (f *outputForm) flag(c *cobra.Command) {
	c.Flags().StringVar((*string)(f), "output", "", "show it in the `FORM` of qemu-img: human or json")
	words := cobra.FixedCompletions([]string{string(formHuman), string(formJSON)}, cobra.ShellCompDirectiveNoFileComp)
	if err := c.RegisterFlagCompletionFunc("output", words); err != nil {
		panic(err) // the flag was added above
	}
}

// ready refuses other values, and two forms at once.
func (f outputForm) ready(c *cobra.Command, json bool) error {
	switch {
	case f != "" && f != formHuman && f != formJSON:
		return usageError(c, "--output %s, want human or json", string(f))
	case f != "" && json:
		return usageError(c, "--json and --output are two forms of one result, want one of them")
	}
	return nil
}
