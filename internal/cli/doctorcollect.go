// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"cmp"
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
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/render"
)

type doctorCollectOptions struct {
	write         bool
	output, label string
	// root and disk say whose evidence is gathered, both "" for this machine.
	root, disk string
	diskOptions
}

func newDoctorCollect(s *stdio) *cobra.Command {
	var o doctorCollectOptions
	c := &cobra.Command{
		Use:   "collect -o FILE",
		Short: "gather evidence into a file, to be looked at elsewhere",
		Long: `collect gathers all that the doctor would look at on this machine, or in a copy of its files, or on the disk of a dead
guest, into one file, which "shisa doctor --bundle FILE" reads anywhere. It has exactly what the rules ask for, what could not
be read with its reason, and nothing else: of logs only the messages that are known.

Passwords, keys and other secrets are taken out before anything is written, and what was taken out is listed. The file can be looked
into with tar: it is a tar archive, compressed by zstd.`,
		Example: `  shisa doctor collect -o web1.shisa
  shisa doctor collect -o dead.shisa --disk /images/dead.qcow2
  shisa doctor --bundle web1.shisa --bundle web2.shisa
  tar --zstd -tf web1.shisa`,
		Args: wantArgs(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.output == "" {
				return usageError(c, "-o FILE is wanted: where the evidence goes")
			}
			if o.output == "-" && o.json {
				return usageError(c, "-o - and --json are both for standard output, want one of them")
			}
			dead := o.root != "" || o.disk != ""
			if o.root != "" && o.disk != "" || dead && o.write {
				return usageError(c, "want one of --root, --disk and --write-probe, which is for a machine that runs")
			}
			return runDoctorCollect(c.Context(), o, s)
		},
	}
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.BoolVar(&o.follow, "follow", false, "with --disk: open backing files wherever they are")
	f.Var((*repeated)(&o.pools), "pool", "with --disk: open backing files below `DIR` too (may be repeated)")
	f.StringVarP(&o.output, "output", "o", "", "write to `FILE`, which must not exist yet; - is standard output")
	f.StringVar(&o.label, "label", "", "call the machine `NAME` instead of by its own name")
	f.StringVar(&o.root, "root", "", "gather from the system whose files are below `DIR`")
	f.StringVar(&o.disk, "disk", "", "gather from the guest whose disk is `IMAGE`, or IMAGE:PART")
	f.BoolVar(&o.write, "write-probe", false, "ask each mount for a file without a name as well")
	return c
}

func runDoctorCollect(ctx context.Context, o doctorCollectOptions, s *stdio) error {
	switch {
	case o.output == "-" && s.width > 0:
		return finding.WithHint(errors.New("write the bundle to a terminal: it is no text"),
			"give it a file, -o FILE, or send standard output to one, or to another program")
	case o.output != "-" && exists(o.output):
		return o.taken()
	}
	of := o.live
	switch {
	case o.root != "":
		of = o.copied
	case o.disk != "":
		of = o.dead
	}
	// It is written when it is whole.
	var bundle bytes.Buffer
	e, left, err := of(ctx, &bundle)
	if err != nil {
		return fmt.Errorf("gather evidence: %w", err)
	}
	d := render.NewCollected(o.output, e, left)
	if o.output == "-" {
		_, err = bundle.WriteTo(s.out)
		err = cmp.Or(err, render.Collected(s.err, d, render.Style{Width: s.barWidth}))
		return cmp.Or(err, exitWith(d.Status[0]))
	}
	if err := o.save(&bundle); err != nil {
		return err
	}
	if o.json {
		err = render.JSON(s.out, render.CollectedSchema, d)
	} else {
		err = render.Collected(s.out, d, s.style(false))
	}
	return cmp.Or(err, exitWith(d.Status[0]))
}

// save writes the bundle to a new file.
func (o *doctorCollectOptions) save(bundle *bytes.Buffer) error {
	f, err := diskio.CreatePrivate(o.output)
	if errors.Is(err, fs.ErrExist) {
		return o.taken()
	} else if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	_, err = bundle.WriteTo(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the bundle %s: %w", o.output, err)
	}
	return nil
}

func (o *doctorCollectOptions) taken() error {
	err := finding.WithHint(fmt.Errorf("write the bundle %s: there is a file of that name", o.output),
		"nothing is ever written over: choose a name that does not exist")
	return withStatus(finding.StatusRefused, err)
}

// collect gathers from a tree; files are what asking the machine gave.
func (o *doctorCollectOptions) collect(ctx context.Context, t tree.Tree, files map[string][]byte, now time.Time, w io.Writer) (
	*evidence.Evidence, []tree.LeftOut, error,
) {
	version, _, _ := buildFacts(debug.ReadBuildInfo())
	return evidence.Collect(ctx, t, files, evidence.Options{Now: now, Label: o.label}, version, w)
}

// live gathers from this machine.
func (o *doctorCollectOptions) live(ctx context.Context, w io.Writer) (*evidence.Evidence, []tree.LeftOut, error) {
	t, err := tree.OpenLive(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	now := time.Now()
	files, err := askLive(ctx, t, evidence.ProbeOptions{Now: now, Label: o.label, Write: o.write})
	if err != nil {
		return nil, nil, err
	}
	return o.collect(ctx, t, files, now, w)
}

// copied gathers from a copy of a machine's files.
func (o *doctorCollectOptions) copied(ctx context.Context, w io.Writer) (*evidence.Evidence, []tree.LeftOut, error) {
	t, err := tree.OpenDirectory(ctx, o.root)
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	return o.collect(ctx, t, nil, time.Now(), w)
}

// dead gathers from the disk of a guest that does not run.
func (o *doctorCollectOptions) dead(ctx context.Context, w io.Writer) (e *evidence.Evidence, left []tree.LeftOut, err error) {
	g := guestOptions{diskOptions: o.diskOptions}
	l, name, err := g.open(ctx, o.disk)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	now := time.Now()
	t, err := inside.System(ctx, l.Guest, name.Part, o.label, now)
	if err != nil {
		return nil, nil, err
	}
	if e, left, err = o.collect(ctx, t, nil, now, w); err == nil && len(l.Changed()) > 0 {
		err = withStatus(finding.StatusRefused, finding.WithHint(fmt.Errorf("another program changed %s meanwhile", l.Changed()[0]),
			"shut the guest down, or take the evidence inside of it: shisa doctor collect"))
	}
	return e, left, err
}

// gatherBundle reads evidence that was collected elsewhere.
func gatherBundle(ctx context.Context, name string) (*evidence.Evidence, error) {
	const is = "a bundle is a file that \"shisa doctor collect\" writes"
	f, err := diskio.Open(name)
	switch {
	case errors.Is(err, diskio.ErrDirectory):
		return nil, finding.WithHint(fmt.Errorf("read the bundle: %w", err), is+"; one that was unpacked, or the files of a "+
			"machine, are read by --root DIR")
	case errors.Is(err, diskio.ErrSpecial):
		return nil, finding.WithHint(fmt.Errorf("read the bundle: %w", err), is+"; write what comes from elsewhere to one first")
	case err != nil:
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	defer f.Close()
	t, info, err := tree.ReadBundle(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		return nil, finding.WithHint(fmt.Errorf("%s: %w", name, err), is+"; the disk of a machine is read by --disk, its files by --root, "+
			"and what was cut on the way has to be copied anew")
	}
	return evidence.Gather(ctx, t, evidence.Options{Now: info.Made, Label: info.Label})
}
