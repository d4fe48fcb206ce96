// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/render"
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
	if n != "" && !slices.Contains(filesModes, string(n)) {
		return usageError(c, "--files=%s, want one of %s", string(n), strings.Join(filesModes, ", "))
	}
	return nil
}

// within gives the time that naming files may take.
func (n namesFiles) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if n == "auto" || n == "" {
		return context.WithTimeout(ctx, filesTime)
	}
	return context.WithCancel(ctx)
}

// image tells what the guest ranges of findings about one image are for; limited is what within gave
// for ctx.
func (n namesFiles) image(ctx, limited context.Context, path, format string, policy disk.Policy,
	fs []finding.Finding,
) (owners []finding.Owner, note string, crash []finding.Finding) {
	owners = []finding.Owner{}
	if n == "never" || ctx.Err() != nil || len(inside.Hurting(fs)) == 0 {
		return owners, "", nil
	}
	found, note, err := inside.NameImage(limited, path, inside.Options{Policy: policy, Format: format}, fs)
	owners = append(owners, found...)
	switch {
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded):
		note = lateNote
	case ctx.Err() != nil:
		note = "interrupted"
	default:
		note = "which files are hurt could not be told: " + err.Error()
	}
	return owners, note, inside.Crashed(path, err)
}

// name tells for each image what the guest ranges of its findings are for. Where there are many, those
// are not all shown that it had no time for, so that their number is said.
func (n namesFiles) name(ctx context.Context, images []check.Image, policy disk.Policy, s *stdio) {
	limited, cancel := n.within(ctx)
	defer cancel()
	if late := n.nameWithin(ctx, limited, images, policy); late > 0 && len(images) > 1 {
		fmt.Fprintf(s.err, "shisa: which files are hurt was not told of %s, for want of time: --files tells\n",
			render.Count(late, "image", "images"))
	}
}

// nameWithin is name within the time of limited; late is how many images there was no time for.
func (n namesFiles) nameWithin(ctx, limited context.Context, images []check.Image, policy disk.Policy) (late int64) {
	for i := range images {
		img := &images[i]
		var crash []finding.Finding
		img.Hurt, img.HurtNote, crash = n.image(ctx, limited, img.Path, img.Format, policy, img.Findings)
		img.Findings = append(img.Findings, crash...)
		if img.HurtNote == lateNote {
			late++
		}
	}
	return late
}

// lateNote is said of an image where there was no time to tell which files are hurt.
const lateNote = "which files are hurt was not told within two seconds: --files tells"

// plan tells what the guest ranges are for that a plan leaves wrong.
func (n namesFiles) plan(ctx context.Context, p *plan.Plan, path string, policy disk.Policy) {
	limited, cancel := n.within(ctx)
	defer cancel()
	wrong := slices.Clone(p.Remains)
	for _, h := range p.Hurt {
		wrong = append(wrong, finding.Finding{Code: h.Code, Severity: finding.Lost, Guest: h.Guest,
			Snapshot: h.Snapshot})
	}
	var crash []finding.Finding
	p.Files, p.FilesNote, crash = n.image(ctx, limited, path, string(image.Qcow2), policy, wrong)
	p.Remains = append(p.Remains, crash...)
}
