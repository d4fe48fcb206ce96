// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/vault"
)

type repairOptions struct {
	changeOptions
	apply       bool
	out         string
	leaks       bool
	reclaim     bool
	compareData bool
	only        []string
	split       bool
	snapshots   bool
	zeroLost    bool
	subclusters string
	place       []string
	resolved    string
	rebuild     rebuildOptions
	follow      bool
	pools       []string
	direct      bool
	workers     int
	memory      byteSize
	readTimeout time.Duration
	files       namesFiles

	places map[int64]int64 // from place
	line   string          // the command line that applies what is planned
}

func newRepair(s *stdio) *cobra.Command {
	var o repairOptions
	c := &cobra.Command{
		Use:   "repair IMAGE",
		Short: "plan how a damaged image is mended, and mend it",
		Long: `repair looks at a qcow2 image and prints what it would mend, in which order, why, how sure
that is, and what would still be wrong afterwards. It changes nothing. --apply carries the plan out
at once; --out saves it for "shisa apply".

Nothing that holds data is freed, punched out or cut off: what nothing explains stays. Before the
first byte is written an undo file with all old and new bytes lies beside the image; "shisa undo"
gives the old bytes back, and "shisa recover" puts right what a power cut left in the middle.

An image whose header is lost is not mended in place: --rebuild-header makes a copy with a new
header, found from the tables in the file, and leaves the image as it is.

It takes one image, since a plan is read and agreed to for each; "shisa check" takes many and directories.

The exit status of a plan is 3 if there is something to mend or something stays wrong, and 0 if
not. An image that a program uses is refused.`,
		Example: `  shisa repair vm.qcow2
  shisa repair --apply vm.qcow2
  shisa repair --out plan.json vm.qcow2; shisa apply plan.json
  shisa repair --only QC05 --apply vm.qcow2          nothing but COPIED flags
  shisa repair --reclaim --apply vm.qcow2            free leaks that are proved to be worthless, too
  shisa repair --place 0x580000=2 vm.qcow2           a lost L2 table whose place you know
  shisa repair --rebuild-header new.qcow2 vm.qcow2   for an image whose header is lost
  shisa repair --resolved 5f0c2f3a9d1e4b7c8a6d5e4f3a2b1c0d vm.qcow2`,
		Args: oneImage,
		RunE: func(c *cobra.Command, args []string) error {
			risks, err := o.ready(c, args[0])
			if err != nil {
				return err
			}
			switch {
			case o.rebuild.newFile != "":
				return runRebuild(c.Context(), o, args[0], s)
			case o.resolved != "":
				return runResolved(c.Context(), o, args[0], s)
			}
			return runRepair(c.Context(), o, risks, args[0], s)
		},
	}
	o.flags(c)
	return c
}

// oneImage refuses several images: a plan is read and agreed to for each.
func oneImage(c *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageErrorOf(c, finding.WithHint(
			fmt.Errorf("repair takes one image, and %d are named: a plan is read and agreed to for each", len(args)),
			"shisa check takes several, and says which of them need it"))
	}
	return wantArgs(1, 1)(c, args)
}

func (o *repairOptions) flags(c *cobra.Command) {
	f := o.changeOptions.flags(c)
	f.BoolVar(&o.apply, "apply", false, "carry the plan out at once")
	f.StringVar(&o.out, "out", "", "save the plan in `FILE`, which must not exist yet; it holds "+
		"metadata of the guest's disk")
	f.BoolVar(&o.leaks, "leaks", false, "mend nothing but leaks that are proved to be worthless")
	f.BoolVar(&o.reclaim, "reclaim", false, "free leaks that are proved to be worthless, beside "+
		"mending the rest")
	f.BoolVar(&o.compareData, "compare-data", false, "with --leaks or --reclaim: read all data to "+
		"find leaked clusters that equal one in use")
	f.StringSliceVar(&o.only, "only", nil,
		"mend only what `RULE` finds, such as QC05 (may be repeated)")
	f.BoolVar(&o.split, "split", false, "give each of several guest ranges that share a cluster a "+
		"copy of its own")
	f.BoolVar(&o.snapshots, "forgotten-snapshots", false, "name a snapshot table in the header again "+
		"that the header lost; they may have been deleted just before a crash")
	f.BoolVar(&o.zeroLost, "zero-lost", false, "let what points past the end of the file read as "+
		"zeros")
	f.StringVar(&o.subclusters, "subclusters", "",
		"where a bitmap says that subclusters are stored and zero, `WHICH` "+
			"counts: data or zero")
	f.Var((*repeated)(&o.place), "place", "put the L2 table at an offset of the file into an "+
		"entry of the L1 table, as `OFFSET=L1INDEX` (may be repeated)")
	f.StringVar(&o.resolved, "resolved", "",
		"say that the guest data that the repair with `RECEIPT` left wrong was restored")
	o.rebuild.flags(c)
	f.BoolVar(&o.follow, "follow", false, "open backing files wherever they are")
	f.Var((*repeated)(&o.pools), "pool", "open backing files below `DIR` too (may be repeated)")
	f.BoolVar(&o.direct, "direct", false, "read past the page cache")
	f.IntVar(&o.workers, "workers", 0,
		"read and examine at most `N` tables at once (0 is one for each CPU)")
	f.Var(&o.memory, "memory", "use at most so much memory for counting references, and for what is "+
		"changed (0 is 1G and 4G)")
	f.DurationVar(&o.readTimeout, "read-timeout", check.DefaultReadTimeout,
		"give the image up when no read of it completes for `TIME`, such as 90s")
	o.files.flag(c)
	c.MarkFlagsMutuallyExclusive("out", "apply")
	for _, other := range []string{"reclaim", "only", "split", "forgotten-snapshots", "zero-lost",
		"subclusters", "place"} {
		c.MarkFlagsMutuallyExclusive("leaks", other)
	}
	o.completions(c)
}

func (o *repairOptions) completions(c *cobra.Command) {
	codes := []string{}
	for _, r := range finding.Rules() {
		if mendable(r) {
			codes = append(codes, r.Code+"\t"+r.Title)
		}
	}
	none := cobra.ShellCompDirectiveNoFileComp
	complete(c, map[string]cobra.CompletionFunc{
		"only":        cobra.FixedCompletions(codes, none),
		"subclusters": cobra.FixedCompletions([]string{"data", "zero"}, none),
		"place":       cobra.NoFileCompletions,
		"resolved":    cobra.NoFileCompletions,
		"pool":        directories,
	})
}

// mendable reports whether a rule is one about the tables of a qcow2 image.
func mendable(r finding.Rule) bool {
	return strings.HasPrefix(r.Code, "QC") && r.Code != finding.QC25.Code &&
		r.Code != finding.QC26.Code
}

// ready refuses command lines that make no sense, and what would fail after the work only.
func (o *repairOptions) ready(c *cobra.Command, image string) ([]risk, error) {
	risks, err := o.changeOptions.ready(c)
	if err != nil {
		return nil, err
	}
	for i, name := range o.only {
		at := slices.IndexFunc(finding.Rules(), func(r finding.Rule) bool {
			return mendable(r) && (strings.EqualFold(r.Code, name) || r.Name == name)
		})
		if at < 0 {
			return nil, usageError(c, "--only %s: there is no such rule about qcow2 images, want a code "+
				"such as QC05", name)
		}
		o.only[i] = finding.Rules()[at].Code
	}
	switch {
	case o.workers < 0:
		return nil, usageError(c, "--workers %d, want 0 or more", o.workers)
	case o.readTimeout <= 0:
		return nil, usageError(c, "--read-timeout %v, want more than 0", o.readTimeout)
	case o.subclusters != "" && o.subclusters != "data" && o.subclusters != "zero":
		return nil, usageError(c, "--subclusters %s, want data or zero", o.subclusters)
	case o.compareData && !o.leaks && !o.reclaim:
		return nil, usageError(c, "--compare-data is about leaks, want --leaks or --reclaim with it")
	}
	if o.places, err = placesOf(o.place); err != nil {
		return nil, usageErrorOf(c, err)
	}
	if o.resolved != "" {
		if !vault.IsID(o.resolved) {
			return nil, usageError(c, "--resolved %s, want the 32 hexadecimal digits of a receipt",
				o.resolved)
		}
		var other []string
		c.Flags().Visit(func(f *pflag.Flag) {
			if !slices.Contains([]string{"resolved", "state", "journal", "json", "all"}, f.Name) {
				other = append(other, "--"+f.Name)
			}
		})
		if len(other) > 0 {
			return nil, usageError(c, "--resolved mends nothing, and goes not with %s",
				strings.Join(other, ", "))
		}
	}
	if err := cmp.Or(o.rebuild.ready(c), o.files.ready(c)); err != nil {
		return nil, err
	}
	o.line = applyLine(c, o.out, image)
	return risks, newFile(o.out)
}

// placesOf reads the values of --place.
func placesOf(list []string) (map[int64]int64, error) {
	places, entries := map[int64]int64{}, map[int64]bool{}
	for _, text := range list {
		off, entry, ok := strings.Cut(text, "=")
		o, err := strconv.ParseInt(off, 0, 64)
		e, err2 := strconv.ParseInt(entry, 0, 64)
		_, twice := places[o]
		switch {
		case !ok || err != nil || err2 != nil || o <= 0 || e < 0:
			return nil, fmt.Errorf("--place %s, want an offset in the file and an L1 entry, such as "+
				"0x580000=2", text)
		case twice:
			return nil, fmt.Errorf("--place %s: the table at %s is placed twice", text, off)
		case entries[e]:
			return nil, fmt.Errorf("--place %s: L1 entry %d is given twice", text, e)
		}
		places[o], entries[e] = e, true
	}
	return places, nil
}

// newFile refuses a file for a plan that is there; "" is none.
func newFile(out string) error {
	if out == "" {
		return nil
	}
	switch _, err := diskio.Look(out); {
	case err == nil, errors.Is(err, diskio.ErrDirectory), errors.Is(err, diskio.ErrSpecial):
		return outError(out, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return outError(out, err)
	}
	if _, err := diskio.Look(filepath.Dir(out)); !errors.Is(err, diskio.ErrDirectory) {
		return outError(out, fmt.Errorf("%s: not a directory", filepath.Dir(out)))
	}
	return nil
}

// outError says why a plan was not saved.
func outError(name string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return withStatus(finding.StatusRefused, finding.WithHint(
			fmt.Errorf("save the plan as %s: there is a file of that name", name),
			"nothing is ever written over: choose a name that does not exist"))
	}
	return fmt.Errorf("save the plan: %w", err)
}

// applyLine is the command line that carries out what this one plans.
func applyLine(c *cobra.Command, out, image string) string {
	words := []string{"shisa", "repair", "--apply"}
	only := func(string) bool { return true }
	last := image
	if out != "" {
		words, last = []string{"shisa", "apply"}, out
		kept := []string{"journal", "state", "accept-risk"}
		only = func(name string) bool { return slices.Contains(kept, name) }
	}
	c.Flags().Visit(func(f *pflag.Flag) {
		if slices.Contains([]string{"json", "all", "out", "apply", "resolved"}, f.Name) || !only(f.Name) {
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			word := "--" + f.Name
			if f.Value.Type() != "bool" || v != "true" {
				word += "=" + render.Word(v)
			}
			words = append(words, word)
		}
	})
	return strings.Join(append(words, operand(last)), " ")
}

// runRepair makes a plan, and shows it, saves it or carries it out.
func runRepair(ctx context.Context, o repairOptions, risks []risk, image string, s *stdio) error {
	p, err := makePlan(ctx, &o, image, s)
	if err != nil {
		return err
	}
	if o.apply && !p.Empty() {
		return o.carryOut(ctx, p, risks, image, s)
	}
	if o.out != "" {
		if err := saveDocument(o.out, plan.Schema, p); err != nil {
			return err
		}
	}
	next := o.commands(image, "")
	next.Apply = o.line
	if err := o.showPlan(s, p, image, o.out, next); err != nil {
		return err
	}
	return exitWith(p.Status[0])
}

func (o *changeOptions) showPlan(s *stdio, p *plan.Plan, name, saved string,
	next render.Commands) error {
	if o.json {
		return render.JSON(s.out, plan.Schema, p)
	}
	return render.Plan(s.out, p, name, saved, next, s.style(o.all))
}

// saveDocument writes a plan into a new file, which is on the disk when it returns.
func saveDocument(name, schema string, p any) error {
	f, err := diskio.CreatePrivate(name)
	if err != nil {
		return outError(name, err)
	}
	err = render.JSON(f, schema, p)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return outError(name, err)
	}
	return nil
}

// repairError gives an error of planning its status and hint.
func repairError(ctx context.Context, err error, image string) error {
	switch {
	case errors.Is(err, repair.ErrMemory):
		return finding.WithHint(err, "allow more with --memory")
	case errors.Is(err, diskio.ErrTimeout):
		return withStatus(finding.StatusCannotTell, fmt.Errorf("%s: %w", image, err))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return withStatus(finding.StatusCannotTell, finding.WithHint(err,
			"the file became shorter while it was read"))
	}
	return changeError(ctx, err, image)
}
