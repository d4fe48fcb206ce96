// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/scan"
)

type demoOptions struct {
	look  lookOptions
	dir   string
	keep  bool
	story string
}

func newDemo(s *stdio) *cobra.Command {
	o := demoOptions{look: lookOptions{readTimeout: check.DefaultReadTimeout}}
	c := &cobra.Command{
		Use:   "demo",
		Short: "make a small broken world and scan it; tell five stories",
		Long: `demo makes the disks of a few machines in a new directory, most of them hurt: a lost mapping, two
writers, a base image that was removed, a copy that broke off, harmless leaks, and sound ones. Then
it does what shisa scan does there.

After that it makes the five things anew, in small, that shisa comes from, and shows of each the command that one would
type and the two lines of its report that matter. With --story it shows one of them whole. For S4 it mounts, in a
mount namespace that nobody else sees, and watches the kernel by BPF: that needs root.

Nothing else on this host is changed. S1 looks at who has the base image open, and at the machines that are
configured here, as shisa base does.

The directories are removed at the end unless one is named or kept: the disks' or, with --story, the story's. The exit status is that
of the scan, so 3, and with --story 3 too; 1 if a story could not be shown.`,
		Example: `  shisa demo
  shisa demo --keep
  shisa demo --dir /tmp/world --html report.html
  shisa demo --story S2
  shisa demo --story S1 --dir /tmp/pool`,
		Args:              wantArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.ready(c); err != nil {
				return err
			}
			if o.story != "" {
				return runStory(c.Context(), o, s)
			}
			return runDemo(c.Context(), o, s)
		},
	}
	jsonFlag(c, &o.look.json)
	f := c.Flags()
	f.BoolVar(&o.look.all, "all", false, "list everything instead of at most 20 of a kind")
	o.look.html.flag(f)
	f.StringVar(&o.dir, "dir", "", "make the world in `DIR`, which must not exist yet, and leave it there")
	f.BoolVar(&o.keep, "keep", false, "do not remove the directory at the end")
	f.Var((*given)(&o.story), "story", "show the `STORY` S0, S1, S2, S3 or S4 whole, and no disks")
	c.MarkFlagsMutuallyExclusive("story", "html")
	complete(c, map[string]cobra.CompletionFunc{
		"story": firstOf(cobra.ShellCompDirectiveNoFileComp, storyCodes()...)})
	return c
}

func (o *demoOptions) ready(c *cobra.Command) error {
	if c.Flags().Changed("story") {
		o.story = strings.ToUpper(o.story)
		if len(o.story) == 1 {
			o.story = "S" + o.story
		}
		if storyOf(o.story) == nil {
			return usageError(c, "--story %s: want %s", o.story, strings.Join(storyCodes(), ", "))
		}
	}
	return o.look.ready(c)
}

func runDemo(ctx context.Context, o demoOptions, s *stdio) error {
	w, err := lab.NewWorld(ctx, o.dir)
	if err != nil {
		return worldError(err, o.dir)
	}
	kept := o.keep || o.dir != ""
	fmt.Fprintf(s.err, "In %s there are now:\n", render.Text(w.Dir))
	for _, i := range w.Images {
		fmt.Fprintf(s.err, "  %-24s %s\n", i.Path, i.What)
	}
	fmt.Fprintf(s.err, "\n$ shisa scan %s\n", render.Text(w.Dir))
	opts := scanOptions{lookOptions: o.look}
	var untold error
	opts.document = func(r *scan.Report) any {
		var d render.DemoScanDocument
		d.Report = *r
		d.Stories, untold = tellStories(ctx, s)
		return d
	}
	err = runScan(ctx, opts, []string{w.Dir}, s)
	if !kept {
		if rm := w.Remove(); rm != nil {
			return fmt.Errorf("remove the world: %w", rm)
		}
		fmt.Fprint(s.err, "\nThe directory is gone again. To keep it and look closer: shisa demo --keep\n")
	} else {
		fmt.Fprintf(s.err, "\nThe directory is still there. Look closer:\n"+
			"  shisa check --all %[1]s/machines/mail.qcow2\n  shisa repair %[1]s/machines/mail.qcow2\n  shisa info --backing-chain %[1]s/machines/web-1.qcow2\n"+
			"  shisa scan --html report.html %[1]s\n  rm -r %[1]s\n", render.Text(w.Dir))
	}
	if status := (*statusError)(nil); !errors.As(err, &status) || status.status != finding.StatusFound {
		return err // the scan did not get to its end
	}
	if !o.look.json {
		untold = showStories(ctx, s)
	}
	if untold != nil {
		return untold
	}
	return err
}

// worldError says why a world could not be made.
func worldError(err error, dir string) error {
	err = fmt.Errorf("make the world: %w", err)
	if dir != "" && errors.Is(err, fs.ErrExist) {
		err = finding.WithHint(withStatus(finding.StatusRefused, err),
			"nothing is ever written over: choose a name that does not exist")
	}
	return err
}
