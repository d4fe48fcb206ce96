// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/linux/code"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/qemuimg"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/repair"
	"github.com/shisa-vm/shisa/internal/vault"
)

// newQemuImg is the command as the help shows it. Main hands its arguments to RunQemuImg, since
// they follow other rules than those of all other commands.
func newQemuImg(s *stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "qemu-img check|compare|info|map ...",
		Short: "the same engine, with qemu-img's options, output and exit codes",
		Long: `qemu-img takes the options of qemu-img 7.2, and writes and returns what that does, so that scripts
made for it run unchanged. Of qemu-img's sub-commands there are check, compare, info and map. Called by
the name qemu-img, the program behaves so at once.

check -r repairs as "shisa repair --reclaim" does: nothing is freed that is not proved to be worthless, and
"shisa undo" takes the change back. Receipts go below the directory that SHISA_STATE names, else to the
usual one. What is left alone is said on lines that begin with "shisa: ".

Unlike all other commands it opens every backing file that a header names, as qemu-img does.`,
		Example: `  shisa qemu-img check --output=json vm.qcow2
  ln -s "$(command -v shisa)" ~/bin/qemu-img     let scripts find it by that name`,
		Annotations: map[string]string{ownStatus: `Those of qemu-img. check: 0 no errors, 1 not completed, 2 errors, 3 leaks only, 63 the format has no
check. compare: 0 the same, 1 not the same, 2 to 4 an error. info and map: 0 done, 1 an error.`},
		DisableFlagParsing: true,
		ValidArgsFunction:  firstOf(cobra.ShellCompDirectiveDefault, "check", "compare", "info", "map"),
		RunE: func(c *cobra.Command, args []string) error {
			return exitWith(RunQemuImg(c.Context(), append([]string{"qemu-img"}, args...), s.in, s.out, s.err))
		},
	}
}

// RunQemuImg carries out the command line of a qemu-img, args[0] being the name it was called by,
// and returns the exit code of qemu-img.
func RunQemuImg(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) int {
	if stdout == io.Writer(os.Stdout) {
		// qemu-img goes on where nobody reads its output any more, and its exit code tells the same.
		signal.Ignore(syscall.SIGPIPE)
		defer signal.Reset(syscall.SIGPIPE)
	}
	code.Trim()
	_, posix := os.LookupEnv("POSIXLY_CORRECT")
	v, _, _ := buildFacts(debug.ReadBuildInfo())
	env := qemuimg.Env{Stdout: stdout, Stderr: stderr, Posix: posix, Version: v,
		Repairer: &qemuRepairer{tool: "shisa " + v, now: time.Now}}
	return qemuimg.Run(ctx, env, args)
}

// qemuRepairer repairs for check -r, whose options have no room for directories.
type qemuRepairer struct {
	tool string
	now  func() time.Time
}

// Plan is qemuimg.Repairer.
func (q *qemuRepairer) Plan(ctx context.Context, j qemuimg.RepairJob) (*plan.Plan, error) {
	path, err := diskio.RealPath(j.Path)
	if err != nil {
		return nil, err
	}
	known, err := new(changeOptions).earlier(ctx, path)
	if err != nil {
		return nil, changeError(ctx, err, j.Path)
	}
	shown := strings.ToValidUTF8(path, "\uFFFD")
	opts := repair.Options{Name: shown, Reclaim: true, Lost: known.lost(), Check: j.Check}
	// qemu-img opens every backing file that a header names.
	chain, err := disk.Open(ctx, path, disk.Options{Policy: disk.Policy{Follow: true}})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil:
		defer chain.Close()
		opts.Disk = chain
	}
	p, err := planForQemu(ctx, j, opts)
	if err != nil {
		return nil, err
	}
	st := j.File.Stat()
	p.Created, p.Tool = q.now(), q.tool
	p.Object.Path, p.Object.Dev, p.Object.Ino, p.Object.ModTime = shown, st.Dev, st.Ino, st.ModTime
	if shown != path {
		p.Object.PathB64 = base64.StdEncoding.EncodeToString([]byte(path))
	}
	p.Remains = append(p.Remains, known.findings...)
	p.Blind = append(p.Blind, known.blind...)
	p.Status = leftStatuses(p.Remains, p.Blind, !p.Empty() || len(p.Hurt) > 0)
	return p, p.Seal()
}

// planForQemu mends what qemu-img check -r would, as far as that is proved to do no harm. -r leaks
// also clears the marks of the header, and sets COPIED flags right if nothing else is wrong then.
func planForQemu(ctx context.Context, j qemuimg.RepairJob, opts repair.Options) (*plan.Plan, error) {
	if !j.Leaks {
		return repair.Plan(ctx, j.File, j.File.Size(), opts)
	}
	marks := []string{finding.QC03.Code, finding.QC14.Code, finding.QC21.Code, finding.QC22.Code}
	opts.Only = append(slices.Clone(marks), finding.QC05.Code)
	p, err := repair.Plan(ctx, j.File, j.File.Size(), opts)
	if err != nil || p.After.CheckErrors+p.After.Corruptions+p.After.Leaks == 0 {
		return p, err
	}
	opts.Only = marks
	return repair.Plan(ctx, j.File, j.File.Size(), opts)
}

// Apply is qemuimg.Repairer.
func (q *qemuRepairer) Apply(ctx context.Context, p *plan.Plan, opts qcow2.CheckOptions) (string, error) {
	dir, err := stateDir("")
	if err != nil {
		return "", err
	}
	r, err := apply.Apply(ctx, p, apply.Options{StateDir: dir, Now: q.now,
		Verify: func(ctx context.Context, r io.ReaderAt, size int64) error {
			return repair.Verify(ctx, r, size, p, opts)
		}})
	image := render.Word(vault.PathOf(p.Object))
	switch {
	case errors.Is(err, diskio.ErrInUse):
		return "", err
	case errors.Is(err, diskio.ErrNoLocks):
		return "", finding.WithHint(err, "if nobody else uses it, on no host: shisa repair --apply --reclaim "+
			"--accept-risk=no-locks:"+image+" "+image)
	case errors.Is(err, apply.ErrNoRoom):
		return "", finding.WithHint(err, "make room, or keep the undo file elsewhere: shisa repair --apply "+
			"--reclaim --journal DIR "+image)
	case err != nil:
		return "", changeError(ctx, err, vault.PathOf(p.Object))
	}
	return r.Undo(), nil
}
