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
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/vault"
)

// changeOptions are what repair, apply, undo and recover have in common: where they keep what takes
// a change back, and which risks the user accepts.
type changeOptions struct {
	json    bool
	all     bool
	state   string
	journal string
	risks   []string
	// more are risks that only this command knows, each with what is accepted.
	more [][2]string
}

func (o *changeOptions) flags(c *cobra.Command) *pflag.FlagSet {
	f := c.Flags()
	jsonFlag(c, &o.json)
	f.BoolVar(&o.all, "all", false, "show every step, range and raw value instead of at "+
		"most 20 of a kind")
	stateFlag(c, &o.state, "keep receipts below `DIR`")
	f.StringVar(&o.journal, "journal", "", "keep undo files in `DIR` instead of beside the image")
	text, names := "accept a risk for one image, as `RISK:IMAGE`", []string{}
	for _, r := range o.knownRisks() {
		text += "; " + r[0] + ": " + r[1]
		names = append(names, r[0]+":")
	}
	f.Var((*repeated)(&o.risks), "accept-risk", text+" (may be repeated)")
	complete(c, map[string]cobra.CompletionFunc{
		"journal": directories,
		"accept-risk": cobra.FixedCompletions(names,
			cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace),
	})
	return f
}

// stateFlag is the flag that names the state directory, see stateDir.
func stateFlag(c *cobra.Command, v *string, usage string) {
	c.Flags().StringVar(v, "state", "", usage+" (default $SHISA_STATE, or else "+
		"/var/lib/shisa for root and $XDG_STATE_HOME/shisa for others)")
	complete(c, map[string]cobra.CompletionFunc{"state": directories})
}

// stateDir is the state directory, absolute: the one that the flag --state names, else the one that
// the environment variable SHISA_STATE does, else the usual one.
func stateDir(named string) (string, error) {
	if dir := cmp.Or(named, os.Getenv("SHISA_STATE")); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := vault.StateDir(os.Geteuid() == 0, os.Getenv)
	if err != nil {
		err = finding.WithHint(err, "name one with --state DIR or in SHISA_STATE")
	}
	return dir, err
}

// knownRisks are those that can be accepted by name, each with what is accepted.
func (o *changeOptions) knownRisks() [][2]string {
	return append([][2]string{{"no-locks", "its file system keeps no locks, and nobody else uses it"}}, o.more...)
}

// risk is one that the user accepts, for one image.
type risk struct{ name, image string }

// ready refuses command lines that would fail after the work only, and gives the risks.
func (o *changeOptions) ready(c *cobra.Command) ([]risk, error) {
	var all []risk
	var known []string
	for _, r := range o.knownRisks() {
		known = append(known, r[0])
	}
	for _, text := range o.risks {
		name, image, ok := strings.Cut(text, ":")
		switch {
		case !slices.Contains(known, name):
			return nil, usageError(c, "--accept-risk %s: there is no risk of that name, known are: %s", text,
				strings.Join(known, ", "))
		case !ok || image == "":
			return nil, usageError(c, "--accept-risk %s: it does not say for which image, want %s:IMAGE",
				text, name)
		}
		all = append(all, risk{name, image})
	}
	if o.journal == "" {
		return all, nil
	}
	_, err := diskio.Look(o.journal)
	switch {
	case errors.Is(err, diskio.ErrDirectory):
		return all, nil
	case err == nil:
		err = fmt.Errorf("%s: not a directory", o.journal)
	}
	return nil, finding.WithHint(fmt.Errorf("--journal: %w", err), "name a directory that is there")
}

// accepted reports whether a risk was accepted for the image at path.
func accepted(risks []risk, name, path string) bool {
	is, err := diskio.Look(path)
	return err == nil && slices.ContainsFunc(risks, func(r risk) bool {
		st, err := diskio.Look(r.image)
		return r.name == name && err == nil && st.ID == is.ID
	})
}

// engine gives the options of carrying out, undoing or recovering a change of image.
func (o *changeOptions) engine(risks []risk, image string, p *progress) (apply.Options, error) {
	state, err := stateDir(o.state)
	return apply.Options{
		StateDir: state, JournalDir: o.journal, AcceptNoLocks: accepted(risks, "no-locks", image),
		Progress: p.Part,
	}, err
}

// operand is the name of a file as a word of a command line, and never a flag.
func operand(name string) string {
	if strings.HasPrefix(name, "-") {
		name = "./" + name
	}
	return render.Word(name)
}

// commands gives the command lines that take back what was done to an image, or say that its data
// was put right.
func (o *changeOptions) commands(image, id string) render.Commands {
	flags := ""
	if o.state != "" {
		flags += " --state " + render.Word(o.state)
	}
	undo := "shisa undo"
	if o.journal != "" {
		undo += " --journal " + render.Word(o.journal)
	}
	return render.Commands{Undo: undo + flags + " " + operand(image),
		Resolve: "shisa repair" + flags + " --resolved " + id + " " + operand(image)}
}

// verifier examines an image after a change.
type verifier = func(ctx context.Context, r io.ReaderAt, sizeBytes int64) error

// verify gives the examination of an image after a change that should end as after says. What a raw image holds is
// held against the plan byte by byte, and there is nothing else to examine: nil.
func verify(image string, after *plan.Plan, p *progress) verifier {
	if after.Object.Format == "raw" {
		return nil
	}
	return func(ctx context.Context, r io.ReaderAt, size int64) error {
		return repair.Verify(ctx, r, size, after, qcow2.CheckOptions{Name: image, Progress: p.Set,
			DataFileBytes: dataFileBytes(ctx, image, r, size)})
	}
}

// dataFileBytes is the length of an image's external data file, 0 if it is not there, -1 if the image
// has none or that is not known. It opens nothing.
func dataFileBytes(ctx context.Context, image string, r io.ReaderAt, size int64) int64 {
	h, err := qcow2.ReadHeader(r, size)
	if err != nil || !h.HasDataFile() {
		return -1
	}
	link, err := diskio.Within(ctx, check.DefaultReadTimeout, func() (disk.Link, error) {
		return disk.Policy{Follow: true}.ResolveData(image, h.DataFile, nil), nil
	}, nil)
	switch {
	case err == nil && link.State == disk.LinkMissing:
		return 0
	case err != nil || link.State != disk.LinkOK || link.Stat.Block:
		return -1
	}
	return link.Stat.SizeBytes
}

// unused refuses an image that a program uses.
func unused(ctx context.Context, image string, timeout time.Duration) error {
	use, busy, err := check.InUse(ctx, image, check.Options{ReadTimeout: timeout})
	if err != nil || !busy {
		return err
	}
	hint := "stop the machine or program that uses it, and try again"
	other := func(h check.Holder) bool {
		return filepath.Base(h.Command) != "shisa" && (h.Writing || use.State != check.UseWrite)
	}
	if len(use.Holders) > 0 && !slices.ContainsFunc(use.Holders, other) {
		hint = "another shisa is at work on it: wait until it ends, and try again"
	}
	return withStatus(finding.StatusRefused,
		finding.WithHint(fmt.Errorf("%s is %s", image, render.InUse(use)), hint))
}

// changeError gives an error of a change its status and hint. name is what the user calls the
// image.
func changeError(ctx context.Context, err error, name string) error {
	hint := func(text string) error { return finding.WithHint(oneLine{err}, text) }
	refused := func(text string) error { return withStatus(finding.StatusRefused, hint(text)) }
	var later *apply.LaterError
	switch {
	case err == nil, errors.As(err, new(*statusError)):
		return err
	case errors.Is(err, apply.ErrInterrupted):
		return withStatus(finding.StatusHalfDone, hint("shisa recover "+operand(name)))
	case errors.Is(err, apply.ErrRolledBack) && ctx.Err() != nil:
		return withStatus(finding.StatusInterrupted, errors.New("interrupted; the image is as it was"))
	case errors.Is(err, apply.ErrRolledBack):
		return withStatus(finding.StatusHalfDone, hint("nothing is left in the middle; shisa recover "+
			operand(name)+" confirms that"))
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return withStatus(finding.StatusInterrupted, errors.New("interrupted; the image was not touched"))
	case errors.Is(err, apply.ErrUnfinished) && errors.Is(err, fs.ErrPermission):
		return refused("run it as root, or as the user whom the undo file belongs to")
	case errors.Is(err, apply.ErrUnfinished):
		return refused("shisa recover " + operand(name))
	case errors.Is(err, diskio.ErrNoLocks):
		return refused("if nobody else uses it, on no host: --accept-risk=no-locks:" + render.Word(name))
	case errors.Is(err, diskio.ErrNoSync) && errors.Is(err, vault.ErrReceipt):
		return refused("keep receipts on a local file system with --state DIR")
	case errors.Is(err, diskio.ErrNoSync):
		return refused("keep the undo file on a local file system with --journal DIR")
	case errors.Is(err, diskio.ErrInUse):
		// Who it is, the locks do not say.
		if err := unused(ctx, name, 0); err != nil {
			return err
		}
		return refused("stop the machine or program that uses it, and try again")
	case errors.Is(err, apply.ErrUsed):
		return refused("a plan is carried out once; make a new one: shisa repair " + operand(name))
	case errors.As(err, &later):
		return refused("undo the later one first: shisa undo --receipt " + later.ID + " " + operand(name))
	case errors.Is(err, apply.ErrChanged):
		return withStatus(finding.StatusRefused, oneLine{err})
	case errors.Is(err, plan.ErrNewer), errors.Is(err, vault.ErrNewer):
		return hint("use the version of shisa that made it, or a newer one")
	case errors.Is(err, plan.ErrEdited):
		return refused("make a new plan: shisa repair --out FILE IMAGE")
	case errors.Is(err, plan.ErrNotPlan):
		return hint("make a new plan: shisa repair --out FILE IMAGE")
	}
	if text := storageHint(err); text != "" {
		return hint(text)
	}
	return oneLine{err}
}

// storageHint says what to do where a change could not begin for want of room or of a right, "" where
// that is not why.
func storageHint(err error) string {
	var at *fs.PathError
	errors.As(err, &at)
	switch full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT); {
	case errors.Is(err, apply.ErrNoRoom):
		return "make room, or keep the undo file elsewhere with --journal DIR"
	case full && errors.Is(err, vault.ErrReceipt):
		return "nothing was changed; make room, or keep receipts elsewhere with --state DIR"
	case full:
		return "nothing was changed; make room, or keep the undo file elsewhere with --journal DIR"
	case errors.Is(err, syscall.EROFS) && !errors.Is(err, vault.ErrReceipt) && at != nil:
		return at.Path + " lies on storage that is mounted read-only, or that the kernel made so after an " +
			"error; look at the kernel's messages, and mount it for writing"
	case errors.Is(err, syscall.EIO):
		return "nothing was changed; the storage fails, and the kernel's messages say where"
	case !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS):
		return ""
	case errors.Is(err, vault.ErrReceipt):
		return "keep receipts elsewhere with --state DIR, or run it as one who may write there"
	case at != nil && at.Op == "create":
		return "keep the undo file elsewhere with --journal DIR, or run it as one who may write there"
	}
	return "run it as root, or as one who may write to the image"
}

// oneLine is an error that may be several, on one line.
type oneLine struct{ error }

func (e oneLine) Error() string { return strings.ReplaceAll(e.error.Error(), "\n", "; ") }
func (e oneLine) Unwrap() error { return e.error }

// showReceipt writes a receipt, and gives the statuses that it stands for.
func (o *changeOptions) showReceipt(
	s *stdio, r *vault.Receipt, name string, statuses ...int,
) error {
	if o.json {
		doc := &render.ReceiptDocument{Status: finding.OrderStatus(statuses...), Receipt: *r}
		return render.JSON(s.out, vault.ReceiptSchema, doc)
	}
	next := o.commands(name, r.ID)
	if r.State != vault.Committed {
		next = render.Commands{}
	}
	return render.Receipt(s.out, r, name, next, s.style(o.all))
}

// leftStatuses are the exit statuses that apply where so much is left wrong or was not seen.
func leftStatuses(remains []finding.Finding, blind []finding.Blind, wrong bool) []int {
	var all []int
	if wrong || finding.Worst(remains) != finding.Note {
		all = append(all, finding.StatusFound)
	}
	if len(blind) > 0 {
		all = append(all, finding.StatusCannotTell)
	}
	return finding.OrderStatus(all...)
}

// carryOut applies a plan, shows what became of it, and gives the error to end with.
func (o *changeOptions) carryOut(
	ctx context.Context, p *plan.Plan, risks []risk, name string, s *stdio,
) error {
	image := vault.PathOf(p.Object)
	if err := unused(ctx, image, 0); err != nil {
		return err
	}
	bar := newProgress(s, "repairing")
	opts, err := o.engine(risks, image, bar)
	if err != nil {
		return err
	}
	opts.Verify = verify(image, p, bar)
	r, err := apply.Apply(ctx, p, opts)
	bar.Done()
	if err != nil {
		if errors.Is(err, apply.ErrChanged) {
			hint := "make a new plan: shisa repair " + operand(name)
			if !slices.ContainsFunc(p.Steps, func(s plan.Step) bool { return strings.HasPrefix(s.Code, "QC") }) {
				hint = "make a new plan, by the command that made this one"
			}
			err = finding.WithHint(err, hint)
		}
		err = changeError(ctx, err, name)
		if r == nil {
			return err
		}
		// It was rolled back: the receipt tells of that, the error why.
		return errors.Join(o.showReceipt(s, r, name, statusOf(err)), err)
	}
	left := leftStatuses(r.Remains, r.Blind, len(r.Hurt) > 0)
	if err := o.showReceipt(s, r, name, left...); err != nil {
		return err
	}
	return exitWith(left[0])
}

// statusOf is the status that an error ends the program with.
func statusOf(err error) int {
	var se *statusError
	if errors.As(err, &se) {
		return se.status
	}
	return finding.StatusFailed
}
