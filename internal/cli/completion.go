// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"
)

type completionOptions struct {
	shell string
	root  *cobra.Command
}

func newCompletion(s *stdio) *cobra.Command {
	var o completionOptions
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "a script that completes command lines in a shell",
		Long:  `completion prints a script that lets a shell complete the commands, flags and arguments of shisa.`,
		Example: `  shisa completion bash > /etc/bash_completion.d/shisa
  shisa completion zsh > "${fpath[1]}/_shisa"
  shisa completion fish > ~/.config/fish/completions/shisa.fish`,
		Args:              wantArgs(1, 1),
		ValidArgsFunction: firstOf(cobra.ShellCompDirectiveNoFileComp, "bash", "zsh", "fish"),
		RunE: func(c *cobra.Command, args []string) error {
			o.shell, o.root = args[0], c.Root()
			if o.shell != "bash" && o.shell != "zsh" && o.shell != "fish" {
				return usageError(c, "unknown shell %q, want bash, zsh or fish", o.shell)
			}
			return runCompletion(c.Context(), o, s)
		},
	}
}

// firstOf completes the first argument by words; then says what of the others.
func firstOf(then cobra.ShellCompDirective, words ...string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, then
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// complete says by what flags of c are completed.
func complete(c *cobra.Command, by map[string]cobra.CompletionFunc) {
	for name, fn := range by {
		if err := c.RegisterFlagCompletionFunc(name, fn); err != nil {
			panic(err) // there is no such flag
		}
	}
}

// directories completes a directory.
func directories(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// bashWords replaces a function of cobra's script that calls one of the package bash-completion, and
// without that package prints an error at each press of Tab. Bash's own words are then enough: they
// are split at "=" and ":" too, which hides at most a suggestion. So are its own names of files and directories, for
// the other function of that package that the script calls.
const bashWords = `
__shisa_init_completion()
{
    COMPREPLY=()
    if declare -F _get_comp_words_by_ref >/dev/null; then
        _get_comp_words_by_ref "$@" cur prev words cword
        return
    fi
    words=("${COMP_WORDS[@]}")
    cword=$COMP_CWORD
    cur=${words[cword]}
    prev=${words[cword-1]}
}
declare -F _filedir >/dev/null || _filedir()
{
    local IFS=$'\n' kind=-f
    [ "$1" = -d ] && kind=-d
    compopt -o filenames 2>/dev/null
    COMPREPLY+=($(compgen $kind -- "$cur"))
}
`

func runCompletion(_ context.Context, o completionOptions, s *stdio) error {
	switch o.shell {
	case "bash":
		if err := o.root.GenBashCompletionV2(s.out, true); err != nil {
			return err
		}
		_, err := io.WriteString(s.out, bashWords)
		return err
	case "zsh":
		return o.root.GenZshCompletion(s.out)
	}
	return o.root.GenFishCompletion(s.out, true)
}
