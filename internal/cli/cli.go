// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package cli is the command line: one file a command, each with its options, its flags and a run
// that calls one library function and hands the result to render.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/fix"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/jail"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/code"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/uml"
	"github.com/shisa-vm/shisa/internal/umount"
)

// Main runs the program with argv, argv[0] being the name that it was called by, and returns its
// exit status. Called as qemu-img it speaks as qemu-img does.
func Main(argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return Machine{}.Main(argv, stdin, stdout, stderr)
}

// Main is the function Main on this machine.
func (m Machine) Main(argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if jail.IsChild(argv) {
		return jail.Serve()
	}
	if ask.IsChild(argv) {
		return ask.Serve()
	}
	if uml.IsStage(argv) {
		return uml.Stage()
	}
	if fix.IsChild(argv) {
		return fix.Serve(argv, stdin, stdout)
	}
	if umount.IsGuard(argv) {
		return umount.RunGuard(argv)
	}
	// A second signal ends the program at once: the first one gives the signals back.
	ctx, stop := signal.NotifyContext(context.Background(), endings()...)
	defer stop()
	context.AfterFunc(ctx, stop)

	var name string
	var args []string
	if len(argv) > 0 {
		name, args = filepath.Base(argv[0]), argv[1:]
	}
	switch {
	case name == "qemu-img":
		return RunQemuImg(ctx, argv, stdin, stdout, stderr)
	case len(args) > 0 && args[0] == "qemu-img":
		return RunQemuImg(ctx, args, stdin, stdout, stderr)
	}
	s := newStdio(stdin, stdout, stderr)
	s.machine = m
	return run(ctx, args, s)
}

// endings lists the signals that ask the program to end. Those that it was started to ignore, as by
// nohup, stay ignored.
func endings() []os.Signal {
	all := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}
	return slices.DeleteFunc(all, signal.Ignored)
}

// run carries out one command line.
func run(ctx context.Context, args []string, s *stdio) int {
	started := false
	root := newRoot(s)
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		// Cobra looks at these only after this function; here they are still usage errors.
		err := errors.Join(c.ValidateRequiredFlags(), c.ValidateFlagGroups())
		if started = err == nil; started {
			code.Trim() // what read the command line is not needed again
		}
		return err
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !started {
		err = usageErrorOf(cmd, err)
	}
	status := report(ctx, s, err, wantsJSON(args))
	if err := s.flush(); err != nil {
		// What was asked for did not arrive, so whatever was found, the caller does not know it.
		fmt.Fprintf(s.err, "shisa: write the result to standard output: %v\n", err)
		return finding.StatusFailed
	}
	return status
}

// wantsJSON tells whether the command line asks for a JSON document. It looks at the bare words
// since a command line that cannot be parsed has to be answered in JSON as well.
func wantsJSON(args []string) bool {
	if len(args) > 0 && args[0] == "qemu-img" {
		return false
	}
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
}

// statusError carries an exit status, and an error if there is something to say about it.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// exitWith ends the program with a status; whatever there is to say has been printed. Zero is no
// error.
func exitWith(status int) error {
	if status == finding.StatusClean {
		return nil
	}
	return &statusError{status: status}
}

// withStatus is err, printed as every error is, with an exit status other than StatusFailed.
func withStatus(status int, err error) error {
	if err == nil {
		return nil
	}
	return &statusError{status, err}
}

// usageError says what is wrong with the command line of c.
func usageError(c *cobra.Command, format string, args ...any) error {
	return usageErrorOf(c, fmt.Errorf(format, args...))
}

func usageErrorOf(c *cobra.Command, err error) error {
	if errors.As(err, new(*statusError)) {
		return err
	}
	if finding.HintOf(err) == "" {
		try := strings.TrimSpace("shisa help " + strings.TrimPrefix(c.CommandPath(), "shisa"))
		err = finding.WithHint(err, "try: "+strings.Join(strings.Fields(try), " "))
	}
	return &statusError{finding.StatusUsage, err}
}

// errorDocument, shisa.error/1, is what stdout holds when --json was given and there is no result.
type errorDocument struct {
	Status []int     `json:"status"`
	Error  errorText `json:"error"`
}

type errorText struct {
	Text string `json:"text"`
	Hint string `json:"hint"`
	// Ranges of the file that were changed, where that is the reason; RangesCut counts those left out.
	Ranges    []finding.Range `json:"ranges,omitempty"`
	RangesCut int64           `json:"ranges_cut,omitempty"`
}

// maxChanged is how many of the ranges that were changed are listed for people.
const maxChanged = 20

// report says what err says, on stderr and if nothing else was printed in JSON too, and gives the
// exit status.
func report(ctx context.Context, s *stdio, err error, json bool) int {
	if err == nil {
		return finding.StatusClean
	}
	status, text, hint := finding.StatusFailed, oneLine{err}.Error(), hintFor(err)
	if crash := inside.Crashed("", err); len(crash) > 0 {
		err = withStatus(finding.StatusFound, err)
		text, hint = crash[0].Code+" "+text, crash[0].Next
	}
	changed := new(apply.ChangedError)
	errors.As(err, &changed)
	var se *statusError
	switch {
	case errors.As(err, &se):
		status = se.status
		switch {
		case se.err == nil && status == finding.StatusInterrupted:
			text = "interrupted" // what was found until then is a result, and nobody said so yet
		case se.err == nil:
			return status
		}
	case wasInterrupted(ctx, err):
		status, text, hint = finding.StatusInterrupted, "interrupted", ""
	}
	if json && !s.out.used {
		// A failed write is kept by s.out and reported when it is flushed.
		_ = render.JSON(s.out, "shisa.error/1", errorDocument{[]int{status},
			errorText{text, hint, changed.Ranges, changed.Cut}})
	}
	text, hint = render.Text(text), render.Text(hint)
	fmt.Fprintf(s.err, "shisa: %s\n", text)
	for i, r := range changed.Ranges {
		if i == maxChanged {
			fmt.Fprintf(s.err, "  and %d more ranges\n", int64(len(changed.Ranges)-i)+changed.Cut)
			break
		}
		fmt.Fprintf(s.err, "  changed: %s\n", render.Range(r))
	}
	if hint != "" {
		if !strings.HasPrefix(hint, "try: ") {
			hint = "hint: " + hint
		}
		fmt.Fprintln(s.err, hint)
	}
	return status
}

// wasInterrupted tells whether err is that of somebody who ended the program.
func wasInterrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, syscall.EINTR))
}

// hintFor gives what the user can do about err: what it says itself, else what is true of its kind
// wherever it comes from.
func hintFor(err error) string {
	hint := finding.HintOf(err)
	switch {
	case hint != "":
	case errors.Is(err, fs.ErrPermission):
		hint = "run it as root, or as a user who may read this file and the directories above it"
	case errors.Is(err, fs.ErrNotExist):
		hint = "look at the spelling; a name that does not begin with / starts from the current directory"
	case errors.Is(err, diskio.ErrSpecial):
		hint = "FIFOs, sockets and character devices hold no image and are never opened"
	case errors.Is(err, diskio.ErrDirectory):
		hint = "name one image; check and scan take directories"
	case errors.Is(err, qcow2.ErrUnsupported):
		hint = "a newer program made it: what is not understood is not touched; look with that program"
	}
	return hint
}
