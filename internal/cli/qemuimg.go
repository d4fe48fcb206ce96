// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/qemuimg"
)

// newQemuImg is the command as the help shows it. Main hands its arguments to RunQemuImg, since
// they follow other rules than those of all other commands.
func newQemuImg(s *stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "qemu-img check|compare|info|map ...",
		Short: "the same engine, with qemu-img's options, output and exit codes",
		Long: `qemu-img takes the options of qemu-img 7.2, and writes and returns what that does, so that scripts
made for it run unchanged. It looks only: of qemu-img's sub-commands there are check, compare, info
and map, and check -r is refused. Called by the name qemu-img, the program behaves so at once.

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
	return qemuimg.Run(ctx, qemuimg.Env{Stdout: stdout, Stderr: stderr, Posix: posix, Version: v}, args)
}
