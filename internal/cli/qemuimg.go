// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/qemuimg"
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
"shisa undo" takes the change back. Receipts go to the directory that SHISA_STATE names, else to the usual
one. What is left alone is said on lines that begin with "shisa: ".

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
	_, posix := os.LookupEnv("POSIXLY_CORRECT")
	v, _, _ := buildFacts(debug.ReadBuildInfo())
	env := qemuimg.Env{Stdout: stdout, Stderr: stderr, Posix: posix, Version: v,
		Repairer: &qemuRepairer{tool: "shisa " + v, state: os.Getenv("SHISA_STATE"), now: time.Now}}
	return qemuimg.Run(ctx, env, args)
}

// qemuRepairer repairs for check -r, whose options have no room for directories.
type qemuRepairer struct {
	tool  string
	state string // the state directory, "" for the usual one
	now   func() time.Time
}

// Plan is qemuimg.Repairer.
func (q *qemuRepairer) Plan(ctx context.Context, j qemuimg.RepairJob) (*plan.Plan, error) {
	path, err := diskio.RealPath(j.Path)
	if err != nil {
		return nil, err
	}
	if err := q.unfinished(ctx, path); err != nil {
		return nil, err
	}
	p, err := planForQemu(ctx, j)
	if err != nil {
		return nil, err
	}
	st := j.File.Stat()
	p.Created, p.Tool = q.now().UTC(), q.tool
	p.Object.Path = path
	if !utf8.ValidString(path) {
		p.Object.PathB64 = base64.StdEncoding.EncodeToString([]byte(path))
	}
	p.Object.Dev, p.Object.Ino, p.Object.ModTime = st.ID.Dev, st.ID.Ino, st.ModTime.UTC()
	return p, nil
}

// planForQemu mends what qemu-img check -r would, as far as that is proved to do no harm. -r leaks
// also sets COPIED flags right and clears the marks of the header, if nothing else is wrong then.
func planForQemu(ctx context.Context, j qemuimg.RepairJob) (*plan.Plan, error) {
	opts := repair.Options{Name: j.Path, Reclaim: true, Check: j.Check}
	if !j.Leaks {
		return repair.Plan(ctx, j.File, j.File.Size(), opts)
	}
	opts.Only = []string{finding.QC03.Code, finding.QC14.Code, finding.QC21.Code, finding.QC22.Code}
	p, err := repair.Plan(ctx, j.File, j.File.Size(), opts)
	if err != nil || !onlyFlags(p) {
		return p, err
	}
	opts.Only = append(opts.Only, finding.QC05.Code)
	return repair.Plan(ctx, j.File, j.File.Size(), opts)
}

// onlyFlags reports whether a plan leaves nothing but wrong COPIED flags and marks of the header.
func onlyFlags(p *plan.Plan) bool {
	flags := false
	for _, f := range p.Remains {
		switch {
		case f.Severity == finding.Note:
		case f.Code == finding.QC05.Code:
			flags = true
		case f.Code != finding.QC21.Code && f.Code != finding.QC22.Code:
			return false
		}
	}
	return flags && p.After.CheckErrors+p.After.Leaks == 0
}

// unfinished refuses an image of which an earlier change was left in the middle.
func (q *qemuRepairer) unfinished(ctx context.Context, path string) error {
	dir, err := stateDir(q.state)
	if err != nil {
		return err
	}
	v, err := vault.New(vault.Options{StateDir: dir})
	if err != nil {
		return err
	}
	all, err := v.Find(ctx, path)
	for _, c := range all {
		switch {
		case c.Err != nil:
			err = fmt.Errorf("%w: %w", apply.ErrUnfinished, c.Err)
		case c.State.Unfinished():
			err = fmt.Errorf("%w: undo file %s (%s)", apply.ErrUnfinished, c.UndoPath, c.State)
		default:
			continue
		}
		return finding.WithHint(err, "run \"shisa recover\" on the image first")
	}
	return err
}

// Apply is qemuimg.Repairer.
func (q *qemuRepairer) Apply(ctx context.Context, p *plan.Plan, opts qcow2.CheckOptions) (string, error) {
	dir, err := stateDir(q.state)
	if err != nil {
		return "", err
	}
	r, err := apply.Apply(ctx, p, apply.Options{StateDir: dir, Now: q.now,
		Verify: func(ctx context.Context, r io.ReaderAt, size int64) error {
			return repair.Verify(ctx, r, size, p, opts)
		}})
	switch {
	case errors.Is(err, apply.ErrUnfinished), errors.Is(err, apply.ErrInterrupted):
		return "", finding.WithHint(err, "run \"shisa recover\" on the image first")
	case err != nil:
		return "", err
	}
	return r.Undo(), nil
}
