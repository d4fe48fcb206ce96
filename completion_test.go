// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// completionHome makes a home directory with files to complete, and gives the environment of a shell
// that lives there. The test's own main stands in for the program (TestMain).
func completionHome(t *testing.T) (dir string, env []string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"disk1.qcow2", "disk2.raw", "with space.qcow2"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, append(os.Environ(), "HOME="+dir, "ZDOTDIR="+dir, "XDG_CONFIG_HOME="+dir+"/.config",
		"XDG_DATA_HOME="+dir+"/.local/share", "TERM=dumb", "LC_ALL=C.UTF-8")
}

// install puts the completion script of a shell where the shell looks for it.
func install(t *testing.T, env []string, shell, path string) {
	t.Helper()
	c := exec.Command("shisa", "completion", shell)
	c.Env = env
	script, err := c.Output()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, script, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFishCompletes asks a real fish, with the script where shisa help completion puts it.
func TestFishCompletes(t *testing.T) {
	testenv.Need(t, "fish")
	dir, env := completionHome(t)
	install(t, env, "fish", dir+"/.config/fish/completions/shisa.fish")
	for line, want := range map[string][]string{
		"shisa com":                 {"compare", "completion"},
		"shisa check --jso":         {"--json"},
		"shisa check disk":          {"disk1.qcow2", "disk2.raw"},
		"shisa check wi":            {"with space.qcow2"},
		"shisa completion ":         {"bash", "fish", "zsh"},
		"shisa info --output ":      {"human", "json"},
		"shisa qemu-img i":          {"info"},
		"shisa qemu-img info disk2": {"disk2.raw"},
		"shisa version ":            {},
	} {
		c := exec.Command("fish", "-c", "complete -C "+`"`+line+`"`)
		c.Dir, c.Env = dir, env
		out, err := c.Output()
		if err != nil {
			t.Fatalf("fish: %v", err)
		}
		got := []string{}
		for l := range strings.Lines(string(out)) {
			word, _, _ := strings.Cut(strings.TrimSuffix(l, "\n"), "\t")
			got = append(got, word)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("fish completes %q to %q, want %q", line, got, want)
		}
	}
}

// TestZshCompletes presses Tab in a real zsh, both with the script in its path of functions and with
// the script read in.
func TestZshCompletes(t *testing.T) {
	testenv.Need(t, "zsh")
	dir, env := completionHome(t)
	install(t, env, "zsh", dir+"/functions/_shisa")
	driver, err := filepath.Abs("testdata/completion/press-tab.zsh")
	if err != nil {
		t.Fatal(err)
	}
	lines := [][2]string{
		{"shisa comp", "shisa comp"}, // compare or completion
		{"shisa compl", "shisa completion "},
		{"shisa completion f", "shisa completion fish "},
		{"shisa check --jso", "shisa check --json "},
		{"shisa check disk1", "shisa check disk1.qcow2 "},
		{"shisa check wi", `shisa check with\ space.qcow2 `},
		{"shisa info --output j", "shisa info --output json "},
		{"shisa qemu-img i", "shisa qemu-img info "},
	}
	for _, setup := range []string{
		"fpath=(~/functions $fpath); autoload -U compinit; compinit -u -D",
		"autoload -U compinit; compinit -u -D; source <(shisa completion zsh)",
	} {
		args := []string{"-f", driver, setup}
		for _, l := range lines {
			args = append(args, l[0])
		}
		c := exec.Command("zsh", args...)
		c.Dir, c.Env = dir, env
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("zsh: %v: %s", err, out)
		}
		got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		if len(got) != len(lines) {
			t.Fatalf("zsh with %q gives %q, want %d lines", setup, out, len(lines))
		}
		for i, l := range lines {
			if got[i] != l[1] {
				t.Errorf("zsh with %q completes %q to %q, want %q", setup, l[0], got[i], l[1])
			}
		}
	}
}
