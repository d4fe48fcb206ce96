// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/render"
)

type doctorCollectOptions struct {
	json, write bool
	output      string
	label       string
}

func newDoctorCollect(s *stdio) *cobra.Command {
	var o doctorCollectOptions
	c := &cobra.Command{
		Use:   "collect -o FILE",
		Short: "gather evidence into a file, to be looked at elsewhere",
		Long: `collect gathers all that the doctor would look at on this machine into one file, which "shisa doctor --bundle FILE"
reads anywhere. It has exactly what the rules ask for, what could not be read with its reason, and nothing else: of logs only the
messages that are known.

Passwords, keys and other secrets are taken out before anything is written, and what was taken out is listed. The file can be looked
into with tar: it is a tar archive, compressed by zstd.`,
		Example: `  shisa doctor collect -o web1.shisa
  shisa doctor --bundle web1.shisa --bundle web2.shisa
  tar --zstd -tf web1.shisa`,
		Args: wantArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.output == "" {
				return usageError(c, "-o FILE is wanted: where the evidence goes")
			}
			return runDoctorCollect(c.Context(), o, s)
		},
	}
	jsonFlag(c, &o.json)
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "", "write to `FILE`, which must not exist yet")
	f.StringVar(&o.label, "label", "", "call the machine `NAME` instead of by its own name")
	f.BoolVar(&o.write, "write-probe", false, "ask each mount for a file without a name as well")
	return c
}

func runDoctorCollect(ctx context.Context, o doctorCollectOptions, s *stdio) error {
	t, err := tree.OpenLive(ctx)
	if err != nil {
		return err
	}
	defer t.Close()
	version, _, _ := buildFacts(debug.ReadBuildInfo())
	now := time.Now()
	files, err := evidence.Probe(ctx, t, evidence.ProbeOptions{Now: now, Label: o.label, Version: version, Write: o.write})
	if err != nil {
		return err
	}
	f, err := diskio.CreatePrivate(o.output)
	if errors.Is(err, fs.ErrExist) {
		err = finding.WithHint(fmt.Errorf("write the bundle %s: there is a file of that name", o.output),
			"nothing is ever written over: choose a name that does not exist")
		return withStatus(finding.StatusRefused, err)
	} else if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	e, left, err := evidence.Collect(ctx, t, files, evidence.Options{Now: now, Label: o.label}, version, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the bundle %s: %w", o.output, err)
	}
	d := render.NewCollected(o.output, e, left)
	if o.json {
		err = render.JSON(s.out, render.CollectedSchema, d)
	} else {
		err = render.Collected(s.out, d, render.Style{Width: s.width, Color: s.colour})
	}
	if err != nil {
		return err
	}
	return exitWith(d.Status[0])
}

// gatherBundle reads evidence that was collected elsewhere.
func gatherBundle(ctx context.Context, name string) (*evidence.Evidence, error) {
	f, err := diskio.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	defer f.Close()
	t, info, err := tree.ReadBundle(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return evidence.Gather(ctx, t, evidence.Options{Now: info.Made, Label: info.Label})
}
