// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/inside"
)

// filesTime is how long naming files may take where nobody asked for it.
const filesTime = 2 * time.Second

// namesFiles says whether the guests' files behind findings are named.
type namesFiles string

var filesModes = []string{"auto", "always", "never"}

// flag adds --files.
func (n *namesFiles) flag(c *cobra.Command) {
	f := c.Flags()
	f.StringVar((*string)(n), "files", filesModes[0], "name the guests' files that are hurt, `WHEN` auto (if it "+
		"takes less than two seconds), always or never")
	f.Lookup("files").NoOptDefVal = "always"
	complete(c, map[string]cobra.CompletionFunc{
		"files": cobra.FixedCompletions(filesModes, cobra.ShellCompDirectiveNoFileComp)})
}

// ready refuses other values.
func (n namesFiles) ready(c *cobra.Command) error {
	if !slices.Contains(filesModes, string(n)) {
		return usageError(c, "--files=%s, want one of %s", string(n), strings.Join(filesModes, ", "))
	}
	return nil
}

// name tells for each image what the guest ranges of its findings are for.
func (n namesFiles) name(ctx context.Context, images []check.Image, policy disk.Policy) {
	for i := range images {
		images[i].Hurt = []finding.Owner{}
	}
	if n == "never" || ctx.Err() != nil {
		return
	}
	limited := ctx
	if n == "auto" || n == "" {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, filesTime)
		defer cancel()
	}
	for i := range images {
		img := &images[i]
		if len(inside.Hurting(img.Findings)) == 0 {
			continue
		}
		owners, note, err := inside.NameImage(limited, img.Path,
			inside.Options{Policy: policy, Format: img.Format}, img.Findings)
		img.Hurt = append(img.Hurt, owners...)
		img.HurtNote = note
		switch {
		case err == nil:
		case errors.Is(err, context.DeadlineExceeded):
			img.HurtNote = "which files are hurt was not told within two seconds: --files tells"
		case ctx.Err() != nil:
			img.HurtNote = "interrupted"
		default:
			img.HurtNote = "which files are hurt could not be told: " + err.Error()
		}
	}
}
