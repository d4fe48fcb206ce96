// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/jail"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if jail.IsChild(os.Args) {
		os.Exit(jail.Serve())
	}
	if ask.IsChild(os.Args) {
		os.Exit(ask.Serve())
	}
	if os.Args[0] == "shisa" { // as the demo starts the program again
		os.Exit(Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	}
	testenv.Main(m)
}

// call runs one command line and gives what it printed.
func call(args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	status = Main(append([]string{"shisa"}, args...), strings.NewReader(""), &out, &err)
	return status, out.String(), err.String()
}

// everyCommand gives each command of the tree but the ones that cobra adds.
func everyCommand(t *testing.T) []*cobra.Command {
	t.Helper()
	root := newRoot(newStdio(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}))
	all := []*cobra.Command{root}
	for i := 0; i < len(all); i++ {
		all = append(all, all[i].Commands()...)
	}
	return all
}

func TestEveryCommandIsDescribed(t *testing.T) {
	for _, c := range everyCommand(t) {
		path := c.CommandPath()
		if c.Short == "" || c.Long == "" || !strings.HasPrefix(c.Example, "  ") {
			t.Errorf("%s: Short %q, Long %q, Example %q, want all three, examples indented by two",
				path, c.Short, c.Long, c.Example)
		}
		if strings.HasSuffix(c.Short, ".") || len(c.Short) > 64 {
			t.Errorf("%s: Short %q, want no full stop and at most 64 columns", path, c.Short)
		}
		if c.RunE == nil || c.Run != nil {
			t.Errorf("%s: want RunE, which can say how it ended", path)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			value, usage := pflag.UnquoteUsage(f)
			if value != strings.ToUpper(value) {
				t.Errorf("%s --%s: value %q, want a word of ours: `NAME` in the usage", path, f.Name, value)
			}
			if r := []rune(usage); len(r) == 0 || unicode.IsUpper(r[0]) && !unicode.IsUpper(r[1]) ||
				strings.HasSuffix(usage, ".") {
				t.Errorf("%s --%s: usage %q, want lower case and no full stop", path, f.Name, usage)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	gone, stop := context.WithCancel(context.Background())
	stop()
	missing := &fs.PathError{Op: "open", Path: "a", Err: fs.ErrNotExist}
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		want int
		text string
	}{
		{"done", context.Background(), nil, 0, ""},
		{"an error", context.Background(), errors.New("a: too deep"), 1, "shisa: a: too deep\n"},
		{"an error of a kind", context.Background(), missing, 1, "shisa: open a: file does not exist\n" +
			"hint: look at the spelling; a name that does not begin with / starts from the current directory\n"},
		{"a hint", context.Background(), finding.WithHint(missing, "look for a"), 1,
			"shisa: open a: file does not exist\nhint: look for a\n"},
		{"a status", context.Background(), exitWith(3), 3, ""},
		{"clean", context.Background(), exitWith(0), 0, ""},
		{"a status and an error", context.Background(), withStatus(5, errors.New("a: in use")), 5,
			"shisa: a: in use\n"},
		{"interrupted", gone, fmt.Errorf("read a: %w", context.Canceled), 130, "shisa: interrupted\n"},
		{"interrupted with a result", gone, exitWith(130), 130, "shisa: interrupted\n"},
		{"canceled by itself", context.Background(), context.Canceled, 1, "shisa: context canceled\n"},
		{"found before the signal", gone, exitWith(3), 3, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, err bytes.Buffer
			s := newStdio(strings.NewReader(""), &out, &err)
			if got := report(c.ctx, s, c.err, false); got != c.want || err.String() != c.text {
				t.Errorf("report(%v) = %d, %q, want %d, %q", c.err, got, err.String(), c.want, c.text)
			}
			if s.flush(); out.Len() > 0 {
				t.Errorf("report(%v) printed %q on stdout, want nothing", c.err, out.String())
			}
		})
	}
}

// TestUsage holds that no command line ends with 2, which is a panic's, whatever is wrong with it,
// and that asked for JSON the answer is JSON.
func TestUsage(t *testing.T) {
	lines := [][]string{{}, {"nonsense"}, {"--nonsense"}, {"-x"}, {"--"}, {""}}
	for _, c := range everyCommand(t)[1:] {
		if c.DisableFlagParsing {
			continue
		}
		words := strings.Fields(strings.TrimPrefix(c.CommandPath(), "shisa "))
		lines = append(lines, append(words, "--no-such-flag"), append(words, "--json=maybe"))
	}
	for _, args := range lines {
		status, stdout, stderr := call(args...)
		if status != finding.StatusUsage || stdout != "" || !strings.HasPrefix(stderr, "shisa: ") ||
			!strings.Contains(stderr, "\ntry: shisa help") {
			t.Errorf("shisa %q = %d, %q, %q, want %d, nothing and what to try",
				args, status, stdout, stderr, finding.StatusUsage)
		}
		status, stdout, _ = call(append([]string{"version", "--json"}, args...)...)
		var doc map[string]any
		want, schema := finding.StatusUsage, "shisa.error/1"
		if len(args) == 0 || args[0] == "--" && len(args) == 1 {
			want, schema = finding.StatusClean, "shisa.version/1" // nothing is wrong with it then
		}
		err := json.Unmarshal([]byte(stdout), &doc)
		if err != nil || doc["schema"] != schema || status != want {
			t.Errorf("shisa version --json %q = %d, %q, want %d and %s: %v", args, status, stdout, want, schema, err)
		}
	}
}

func TestResultThatCannotBeWritten(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		testenv.Lacks(t, "/dev/full")
	}
	defer full.Close()
	var stderr bytes.Buffer
	status := Main([]string{"shisa", "version"}, strings.NewReader(""), full, &stderr)
	if want := "no space left on device"; status != 1 || !strings.Contains(stderr.String(), want) {
		t.Errorf("status %d, stderr %q, want 1 and %q", status, stderr.String(), want)
	}
}

func TestByteSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "4096": 4096, "4096B": 4096, "64K": 64 << 10, "64k": 64 << 10, "20MiB": 20 << 20,
		"1.5G": 3 << 29, "2tb": 2 << 40, "1E": 1 << 60,
	} {
		var b byteSize
		if err := b.Set(in); err != nil || int64(b) != want {
			t.Errorf("Set(%q) = %d, %v, want %d", in, b, err, want)
		}
	}
	for _, in := range []string{"", "K", "-1", "1Q", "1KM", "1iB7", "0x10", "nan", "inf", "8E", "1e3K1"} {
		var b byteSize
		if err := b.Set(in); err == nil {
			t.Errorf("Set(%q) = %d, want an error", in, b)
		}
	}
}

func TestFill(t *testing.T) {
	in := "one two three\nfour\n\n  kept as   it is\nfive"
	want := "one two\nthree four\n\n  kept as   it is\nfive"
	if got := fill(in, 10); got != want {
		t.Errorf("fill(%q, 10) = %q, want %q", in, got, want)
	}
}

func TestProgress(t *testing.T) {
	now := time.Unix(0, 0)
	clock := func() time.Time { return now }
	var out bytes.Buffer
	p := startProgress(&out, 40, "check", clock)
	p.Set(1, 4) // too early to be worth a line
	now = now.Add(61 * time.Second)
	p.Set(2, 4)
	p.Set(3, 4) // too soon after the one before
	p.Done()
	p.Done()
	p.Set(4, 4)
	want := "\r" + fmt.Sprintf("check  [%-19s]  50%%  1:01", strings.Repeat("=", 9)) + "\x1b[K" + "\r\x1b[K"
	if got := out.String(); got != want {
		t.Errorf("progress printed %q, want %q", got, want)
	}
	out.Reset()
	p = startProgress(&out, 0, "check", clock)
	now = now.Add(time.Minute)
	p.Set(1, 2)
	if p.Done(); out.Len() > 0 {
		t.Errorf("progress printed %q where there is no terminal, want nothing", out.String())
	}
}

func TestProgressFitsItsLine(t *testing.T) {
	for width := range 60 {
		now := time.Unix(0, 0)
		p := startProgress(&bytes.Buffer{}, width, "a title that is longer than most", func() time.Time { return now })
		for _, total := range []int64{0, 1, 1 << 62} {
			if got := p.line(1<<40, total, 100*time.Hour); len(got) > max(width-1, 0) {
				t.Errorf("line(%d columns, total %d) = %q, want %d columns at most", width, total, got, width-1)
			}
		}
	}
}

// TestManPages has groff read every page: it warns of requests that it does not know.
func TestManPages(t *testing.T) {
	testenv.Need(t, "groff")
	for _, c := range everyCommand(t) {
		var page bytes.Buffer
		if err := writeMan(&page, c); err != nil {
			t.Fatal(err)
		}
		groff := exec.Command("groff", "-man", "-Tutf8", "-ww", "-rCHECKSTYLE=3", "-P-cbou")
		groff.Stdin = &page
		var warnings bytes.Buffer
		groff.Stderr = &warnings
		text, err := groff.Output()
		if err != nil || warnings.Len() > 0 {
			t.Errorf("the page of %s: %v, %s", c.CommandPath(), err, warnings.String())
		}
		words := strings.Join(strings.Fields(string(text)), " ")
		for _, want := range []string{c.Short, "EXIT STATUS", "EXAMPLES"} {
			if !strings.Contains(words, want) {
				t.Errorf("the page of %s has no %q:\n%s", c.CommandPath(), want, text)
			}
		}
	}
}

// TestManList: every command that people see has a page of its own, and names the one above it.
func TestManList(t *testing.T) {
	_, list, _ := call("man", "--list")
	for _, name := range []string{"check", "base", "base scan", "base node join", "qemu-img"} {
		if !slices.Contains(strings.Split(list, "\n"), name) {
			t.Errorf("man --list has no %q:\n%s", name, list)
		}
		status, page, stderr := call(append([]string{"man"}, strings.Fields(name)...)...)
		above := "shisa"
		if i := strings.LastIndex(name, " "); i > 0 {
			above += `\-` + strings.ReplaceAll(name[:i], " ", `\-`)
		}
		if status != 0 || !strings.HasSuffix(page, ".BR "+above+" (1)\n") {
			t.Errorf("man %s = %d, %q, ...%q, want %s below", name, status, stderr, page[max(0, len(page)-60):], above)
		}
	}
	if status, _, stderr := call("man", "base", "scna"); status != 64 || !strings.Contains(stderr, "base scna") {
		t.Errorf("man base scna = %d, %q", status, stderr)
	}
}

func TestCompletion(t *testing.T) {
	testenv.Need(t, "bash")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		status, stdout, stderr := call("completion", shell)
		if status != 0 || !strings.Contains(stdout, "shisa") || stderr != "" {
			t.Errorf("completion %s = %d, %.40q, %q, want a script", shell, status, stdout, stderr)
		}
	}
	// A shell without the package bash-completion has to find the words by itself.
	_, script, _ := call("completion", "bash")
	script += "COMP_WORDS=(shisa help ver) COMP_CWORD=2; __shisa_init_completion -n =:\n" +
		`echo "$cur $prev $cword ${#words[@]}"`
	if out, err := exec.Command("bash", "--norc", "-c", script).Output(); string(out) != "ver help 2 3\n" {
		t.Errorf("the words of bash = %q, %v, want ver, help, 2, 3", out, err)
	}
	// And the names of directories, in a directory of its own.
	_, script, _ = call("completion", "bash")
	script += "mkdir one two; touch three; cur=; _filedir -d; echo ${COMPREPLY[*]}; COMPREPLY=(); cur=t; _filedir; echo ${COMPREPLY[*]}\n"
	bash := exec.Command("bash", "--norc", "-c", script)
	bash.Dir = t.TempDir()
	if out, err := bash.Output(); string(out) != "one two\nthree two\n" && string(out) != "one two\ntwo three\n" {
		t.Errorf("the names of bash = %q, %v, want the directories, then what begins with t", out, err)
	}
	if _, stdout, _ := call("__complete", "ver"); !strings.HasPrefix(stdout, "version\t") {
		t.Errorf("completing ver = %q, want version", stdout)
	}
	for line, want := range map[string]string{
		"undo --journal": ":16\n", "recover --state": ":16\n", "check --state": ":16\n", "repair --pool": ":16\n",
		"apply": "json\n:8\n", "apply plan.json": ":4\n", "undo --accept-risk": "no-locks:\nneeded:\n:6\n",
	} {
		// 16 is for directories, 8 for files with an ending, 4 for no files.
		if _, got, _ := call(append(append([]string{"__complete"}, strings.Fields(line)...), "")...); got != want {
			t.Errorf("completing %s = %q, want %q", line, got, want)
		}
	}
	if status, _, stderr := call("completion", "csh"); status != 64 || !strings.Contains(stderr, "csh") {
		t.Errorf("completion csh = %d, %q, want 64 and its name", status, stderr)
	}
}
