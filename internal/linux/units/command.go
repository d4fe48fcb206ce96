// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/calendar"
)

// command goes through one command, and tells whether it succeeds.
func (r *runner) command(ctx context.Context, p place, words []string) Truth {
	if r.step() || p.depth > maxShellDepth/4 {
		r.cut = true
		return Maybe
	}
	if len(words) == 0 || p.way == No {
		return Maybe
	}
	if strings.Contains(words[0], unknown) {
		return Maybe
	}
	found := r.find(ctx, words[0])
	base := path.Base(words[0])
	if found.exists == No && (!p.lax || strings.Contains(words[0], "/")) {
		p.missing = words[0]
		r.acting(ctx, p, base, words)
		return No
	}
	if rest, delay, is := r.wrapped(base, words); is {
		p.depth++
		p.delay += delay
		switch {
		case base == "systemctl" || len(rest) == 0:
			return Maybe
		case rest[0] == shellText:
			return r.shellText(ctx, p, rest[1:])
		}
		return r.command(ctx, p, rest)
	}
	if lang := interpreter(base); lang != "" {
		return r.interpret(ctx, p, lang, words)
	}
	if t, is := r.acting(ctx, p, base, words); is {
		return t
	}
	if found.script != "" {
		p.strict = strictScript(found.script)
		return r.scriptFile(ctx, p, found, words)
	}
	if base == "true" || base == "echo" || base == "sleep" || base == "sync" {
		return Yes
	}
	if base == "false" {
		return No
	}
	return Maybe
}

// shellText stands before a text that a shell is to run.
const shellText = unknown + "sh"

// wrapped tells of programs that run another one: which words are its command.
func (r *runner) wrapped(base string, words []string) (rest []string, delay time.Duration, is bool) {
	switch base {
	case "env":
		rest = past(words[1:], "uCS", true)
	case "nice", "ionice", "chrt", "nohup", "setsid", "stdbuf", "eatmydata", "systemd-cat", "systemd-inhibit",
		"setpriv", "time", "unshare", "nsenter", "strace", "capsh", "catchsegv", "ltrace", "exec", "command":
		rest = past(words[1:], "ncpiuoePtrGS", false)
		if base == "chrt" && len(rest) > 0 && number(rest[0]) {
			rest = rest[1:]
		}
	case "sudo", "doas", "pkexec":
		rest = past(words[1:], "ugpCThrtDR", true)
	case "timeout":
		if rest = past(words[1:], "ks", false); len(rest) > 0 {
			rest = rest[1:]
		}
	case "taskset":
		if rest = past(words[1:], "", false); len(rest) > 0 {
			rest = rest[1:]
		}
	case "flock":
		rest = past(words[1:], "wE", false)
		if len(rest) > 0 {
			rest = rest[1:]
		}
		if len(rest) > 1 && rest[0] == "-c" {
			rest = []string{shellText, rest[1]}
		}
	case "su", "runuser":
		for i, w := range words {
			if (w == "-c" || w == "--command") && i+1 < len(words) {
				return []string{shellText, words[i+1]}, 0, true
			}
		}
		if i := slices.Index(words, "--"); i > 0 && base == "runuser" {
			rest = words[i+1:]
		}
	case "busybox", "toybox":
		rest = words[1:]
	case "systemd-run":
		return r.systemdRun(words)
	case "xargs":
		rest = past(words[1:], "IinLPds", false)
	default:
		return nil, 0, false
	}
	return rest, 0, true
}

// past skips options, those of one letter in with take a word; assign skips NAME=VALUE as well.
func past(words []string, with string, assign bool) []string {
	for len(words) > 0 {
		w := words[0]
		name, _, is := strings.Cut(w, "=")
		switch {
		case w == "--":
			return words[1:]
		case len(w) == 2 && w[0] == '-' && strings.Contains(with, w[1:]):
			words = words[min(2, len(words)):]
		case len(w) > 1 && w[0] == '-', assign && is && isName(name):
			words = words[1:]
		default:
			return words
		}
	}
	return nil
}

func number(s string) bool {
	_, err := strconv.Atoi(s)
	return err == nil
}

// systemdRun reads systemd-run(1): what it runs now, or later.
func (r *runner) systemdRun(words []string) (rest []string, delay time.Duration, is bool) {
	rest = words[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
		w := rest[0]
		name, value, has := strings.Cut(w, "=")
		takes := slices.Contains([]string{"-u", "--unit", "-p", "--property", "--description", "--slice", "--uid", "--gid",
			"--nice", "-E", "--setenv", "--service-type", "--on-active", "--on-boot", "--on-startup", "--on-unit-active",
			"--on-unit-inactive", "--on-calendar", "--timer-property", "--working-directory", "-H", "--host", "-M",
			"--machine"}, name)
		rest = rest[1:]
		if takes && !has && len(rest) > 0 {
			value, rest = rest[0], rest[1:]
		}
		switch name {
		case "--":
			return rest, delay, true
		case "-H", "--host", "-M", "--machine":
			return nil, 0, true
		case "--on-active", "--on-boot", "--on-startup":
			delay += span(value)
		case "--on-calendar":
			delay += 24 * time.Hour // some time: it is no act of the start itself
		}
	}
	return rest, delay, true
}

// span reads a time span; one that is not understood is taken for long.
func span(text string) time.Duration {
	d, err := calendar.ParseSpan(text)
	if err != nil {
		return 24 * time.Hour
	}
	return d
}

// interpret goes through what an interpreter is given: a text, or a script.
func (r *runner) interpret(ctx context.Context, p place, lang string, words []string) Truth {
	rest := words[1:]
	if path.Base(words[0]) == "busybox" && len(rest) > 0 {
		rest = rest[1:]
	}
	if lang == "sh" {
		p.strict = strictBy(p.strict, rest)
	}
	for len(rest) > 0 && len(rest[0]) > 1 && (rest[0][0] == '-' || rest[0][0] == '+') {
		w := rest[0]
		rest = rest[1:]
		switch {
		case w == "--":
		case lang == "sh" && w[0] == '-' && w[1] != '-' && strings.HasSuffix(w, "c") && len(rest) > 0,
			lang == "sh" && strings.HasPrefix(w, "-c") && len(rest) > 0:
			return r.shellText(ctx, p, rest)
		case (w == "-c" || w == "-e" || w == "-r") && len(rest) > 0 && lang != "sh":
			r.search(p, lang, rest[0], "", p.chain[len(p.chain)-1].From)
			return Maybe
		case lang == "sh" && (w == "-o" || w == "+o" || w == "--rcfile" || w == "--init-file") && len(rest) > 0:
			rest = rest[1:]
			continue
		default:
			continue
		}
		break
	}
	if len(rest) == 0 {
		return Maybe
	}
	found := r.find(ctx, rest[0])
	if found.exists == No {
		return No
	}
	if found.script == "" && found.exists == Yes && !r.Flat {
		if b, err := r.t.Read(ctx, rest[0], maxScriptBytes); err == nil {
			found.script = string(b)
		}
	}
	if found.language = lang; found.script == "" {
		return Maybe
	}
	return r.scriptFile(ctx, p, found, rest)
}

// shellText goes through a text of the shell's; the words behind it are its arguments.
func (r *runner) shellText(ctx context.Context, p place, words []string) Truth {
	if len(words) == 0 {
		return Maybe
	}
	from := Source{}
	if len(p.chain) > 0 {
		from = p.chain[len(p.chain)-1].From
	}
	return r.shell(ctx, p, words[0], from, words[1:], "the text that sh -c runs")
}

// shell goes through a script.
func (r *runner) shell(ctx context.Context, p place, text string, from Source, args []string, name string) Truth {
	if r.costs(text) {
		return Maybe
	}
	tree, ok := parseShell(text, max(from.Line, 1))
	if !ok {
		r.doubt("not all of " + name + " was understood")
	}
	s := &shell{r: r, chain: p.chain, file: from.Path, vars: map[string]string{}, args: args, funcs: map[string]*node{}, active: map[string]int{},
		depth: p.depth + 1, way: p.way, why: p.why, strict: p.strict}
	for _, e := range r.environment() {
		if k, v, ok := strings.Cut(e, "="); ok && isName(k) {
			s.vars[k] = v
			s.lax = s.lax || k == "PATH"
		}
	}
	return s.run(ctx, tree)
}

// environment gives the variables that the unit sets itself.
func (r *runner) environment() []string {
	var all []string
	for _, s := range r.u.All("Service", "Environment") {
		all = append(all, words(s.Value)...)
	}
	return all
}

// scriptFile goes through a script by its language.
func (r *runner) scriptFile(ctx context.Context, p place, found program, words []string) Truth {
	if found.unread != "" {
		r.doubt(found.path + ": " + found.unread)
	}
	if slices.ContainsFunc(p.chain, func(s Step) bool { return s.From.Path == found.path }) {
		return Maybe // it runs itself: once more shows nothing else
	}
	p.depth++
	if found.language == "sh" {
		return r.shell(ctx, p, found.script, Source{found.path, 1}, words[1:], found.path)
	}
	r.search(p, found.language, found.script, found.path, Source{})
	return Maybe
}

// search looks for words that act in a script of a language that is not understood.
func (r *runner) search(p place, lang, text, file string, from Source) {
	if r.costs(text) {
		return
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		body := strings.TrimSpace(line)
		if body == "" || body[0] == '#' || strings.HasPrefix(body, "//") || strings.HasPrefix(body, "--") {
			continue
		}
		if what := mentioned(body); what != "" {
			q := p
			at := Source{file, n}
			if file == "" {
				at = from
			}
			if lang == "" {
				lang = "a script"
			}
			q.chain = append(slices.Clone(p.chain), Step{shown([]string{body}), at})
			q.way, q.why = Maybe, "it is written in "+lang+", of which only the words are known"
			r.act(q, what)
			return
		}
	}
}

// mentioned finds what a line of a program may do by the words in it.
func mentioned(line string) string {
	fields := strings.FieldsFunc(line, func(c rune) bool {
		return !(c == '-' || c == '_' || c == '.' || c == '/' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
	})
	for i, f := range fields {
		next := ""
		if i+1 < len(fields) {
			next = fields[i+1]
		}
		switch path.Base(f) {
		case "systemctl", "loginctl":
			if what := verbs(next); what != "" {
				return what
			}
		case "shutdown":
			if next == "-r" || next == "-h" || next == "now" || next == "-P" {
				return map[bool]string{true: Reboot, false: PowerOff}[next == "-r"]
			}
		case "reboot", "poweroff", "halt":
			if strings.HasPrefix(f, "/") || i > 0 && slices.Contains([]string{"system", "Popen", "run", "call", "check_call",
				"exec", "os.system", "subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.Popen"},
				fields[i-1]) {
				return path.Base(f)
			}
		case "init", "telinit":
			if next == "6" {
				return Reboot
			} else if next == "0" {
				return PowerOff
			}
		}
		if strings.HasSuffix(f, "sysrq-trigger") {
			return Crash
		}
	}
	return ""
}

// verbs are the commands of systemctl that act on the machine.
func verbs(word string) string {
	switch word {
	case "reboot", "poweroff", "halt", "kexec", "soft-reboot", "exit":
		return word
	}
	return ""
}
