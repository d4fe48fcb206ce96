// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
)

// shell goes through a script without running it. What decides whether a command runs is taken from the files of
// the tree; what is not known leaves both ways open.
type shell struct {
	r     *runner
	chain []Step
	file  string // the script, or that of the unit for sh -c
	vars  map[string]string
	args  []string
	funcs map[string]*node
	// active are the functions that are gone through at the moment, how often each.
	active map[string]int
	depth  int
	// way is what is known of whether the next command runs, with the reason where that is not certain.
	way   Truth
	why   string
	ended Truth // whether the script has ended before here
	// lax: there may be functions and programs that are not known.
	lax bool
	// strict: the first command that fails ends it (set -e), but for those in shielded.
	strict   Truth
	shielded int
}

// run gives whether a part succeeds.
func (s *shell) run(ctx context.Context, n *node) Truth {
	if s.r.step() || ctx.Err() != nil {
		return Maybe
	}
	if s.ended == Yes || s.way == No {
		return Maybe
	}
	switch n.kind {
	case "list":
		t := Yes
		for _, p := range n.parts {
			if p.background {
				s.asked(ctx, p)
				t = Yes
				continue
			}
			if t = s.run(ctx, p); s.ended == Yes {
				break
			}
		}
		return t
	case "simple":
		return s.failing(n, s.simple(ctx, n))
	case "and", "or":
		left := s.asked(ctx, n.parts[0])
		runs := left
		if n.kind == "or" {
			runs = opposite(left)
		}
		right := s.under(ctx, runs, n.parts[0], func() Truth { return s.run(ctx, n.parts[1]) })
		return joined(n.kind == "and", left, right)
	case "not":
		return opposite(s.asked(ctx, n.parts[0]))
	case "pipe":
		return s.failing(n, s.pipe(ctx, n))
	case "if":
		return s.branch(ctx, n)
	case "loop":
		t := s.asked(ctx, n.parts[0])
		if t == Yes {
			t = Maybe // it may be something that ends by itself; the first round runs all the same
			s.run(ctx, n.parts[1])
			return t
		}
		s.under(ctx, t, n.parts[0], func() Truth { return s.run(ctx, n.parts[1]) })
		return Maybe
	case "for":
		return s.each(ctx, n)
	case "case":
		for _, p := range n.parts {
			s.under(ctx, Maybe, n, func() Truth { return s.run(ctx, p) })
		}
		return Maybe
	case "function":
		s.funcs[n.words[0]] = n.parts[0]
		return Yes
	case "subshell":
		before, strict := s.ended, s.strict
		t := s.run(ctx, n.parts[0])
		s.ended, s.strict = before, strict
		return s.failing(n, t)
	}
	return Maybe
}

// under runs something that is reached only so far.
func (s *shell) under(ctx context.Context, runs Truth, by *node, do func() Truth) Truth {
	way, why := s.way, s.why
	switch {
	case runs == No:
		s.way = No
	case runs == Maybe && s.way == Yes:
		s.way, s.why = Maybe, fmt.Sprintf("line %d of %s decides whether it runs", by.line, s.file)
	}
	before := s.ended
	t := do()
	if s.ended == Yes && before != Yes && runs != Yes {
		s.ended = Maybe
		if runs == No {
			s.ended = before
		}
	}
	s.way, s.why = way, why
	if s.ended == Maybe && s.way == Yes {
		s.way, s.why = Maybe, fmt.Sprintf("line %d of %s may end it before", by.line, s.file)
	}
	return t
}

func (s *shell) branch(ctx context.Context, n *node) Truth {
	t := s.asked(ctx, n.parts[0])
	a := s.under(ctx, t, n.parts[0], func() Truth { return s.run(ctx, n.parts[1]) })
	b := Yes
	if len(n.parts) > 2 {
		b = s.under(ctx, opposite(t), n.parts[0], func() Truth { return s.run(ctx, n.parts[2]) })
	}
	switch {
	case t == Yes:
		return a
	case t == No:
		return b
	case a == b:
		return a
	}
	return Maybe
}

// pipe runs its parts; what goes into a file by its last one may come from the first.
func (s *shell) pipe(ctx context.Context, n *node) Truth {
	t := Maybe
	for i, p := range n.parts {
		if i > 0 && p.kind == "simple" && len(p.words) > 1 && path.Base(p.words[0]) == "tee" {
			if said, known := s.echoed(n.parts[i-1]); known {
				for _, to := range p.words[1:] {
					s.r.written(s, p, s.value(to), said)
				}
				continue
			}
		}
		strict := s.strict
		t = s.asked(ctx, p)
		s.strict = strict
	}
	return t
}

// each runs the body of a "for" with the first of its words that is known.
func (s *shell) each(ctx context.Context, n *node) Truth {
	if len(n.words) < 2 {
		return Yes
	}
	for _, w := range n.words[1:] {
		for _, v := range strings.Fields(s.value(w)) {
			s.vars[n.words[0]] = v
			if strings.ContainsAny(v, unknown+"*?[") {
				delete(s.vars, n.words[0])
				s.under(ctx, Maybe, n, func() Truth { return s.run(ctx, n.parts[0]) })
			} else {
				s.run(ctx, n.parts[0])
			}
		}
	}
	return Maybe
}

// value puts the values of variables into a word, as far as they are known.
func (s *shell) value(w string) string {
	if !strings.Contains(w, unknown) {
		return w
	}
	w = strings.ReplaceAll(w, whole, "")
	var b strings.Builder
	for i, part := range strings.Split(w, unknown) {
		switch v, known := s.vars[part]; {
		case i%2 == 0:
			b.WriteString(part)
		case known:
			b.WriteString(v)
		default:
			b.WriteString(unknown)
		}
		if b.Len() > maxValueBytes {
			return b.String()[:maxValueBytes] + unknown
		}
	}
	return b.String()
}

// maxValueBytes bounds the value of a variable, and a word with such in it.
const maxValueBytes = 4096

// simple runs a simple command.
func (s *shell) simple(ctx context.Context, n *node) Truth {
	words := make([]string, 0, len(n.words))
	for _, w := range n.words {
		v := s.value(w)
		bare := strings.Contains(w, unknown) && !strings.Contains(w, whole)
		if v == "" && bare {
			continue
		}
		if len(words) == 0 && bare && strings.ContainsAny(v, " \t") {
			words = append(words, strings.Fields(v)...) // $CMD
			continue
		}
		words = append(words, v)
	}
	for len(words) > 0 {
		name, value, is := strings.Cut(words[0], "=")
		if !is || !isName(name) {
			break
		}
		if len(words) == 1 || len(n.words) == 1 {
			s.assign(name, value)
		}
		words = words[1:]
	}
	said, known := s.echoed(n)
	for _, to := range n.to {
		if !known {
			said = unknown
		}
		s.r.written(s, n, s.value(to), said)
	}
	if len(words) == 0 {
		return Yes
	}
	if words[0] == unknown && len(words) > 1 { // what is not known may be empty: then the rest is the command
		return s.under(ctx, Maybe, n, func() Truth { return s.named(ctx, n, words[1:]) })
	}
	return s.named(ctx, n, words)
}

func (s *shell) assign(name, value string) {
	if name == "PATH" {
		s.lax = true
	}
	if strings.Contains(value, unknown) || s.way != Yes || len(value) > maxValueBytes {
		delete(s.vars, name)
	} else {
		s.vars[name] = value
	}
}

// named runs a command by its name: what the shell does itself, a function, or a program.
func (s *shell) named(ctx context.Context, n *node, words []string) Truth {
	if f := s.funcs[words[0]]; f != nil {
		defer func() { s.depth--; s.active[words[0]]-- }()
		s.depth++
		if s.active[words[0]]++; s.depth > maxShellDepth || s.active[words[0]] > 2 {
			return Maybe // it calls itself: once more shows nothing else
		}
		return s.run(ctx, f)
	}
	switch words[0] {
	case "set":
		s.options(words[1:])
		return Yes
	case ":", "true", "shift", "umask", "trap", "cd", "sleep", "echo", "printf", "logger", "sync", "wall":
		return Yes
	case "export", "readonly", "local", "declare", "typeset":
		for _, w := range words[1:] {
			if name, value, is := strings.Cut(w, "="); is && isName(name) {
				s.assign(name, value)
			}
		}
		return Yes
	case "false":
		return No
	case "read", "continue", "break", "getopts", "type", "mapfile", "readarray", "shopt", "wait", "kill", "jobs", "bg", "fg",
		"hash", "alias", "unalias", "let", "pushd", "popd", "dirs", "ulimit", "times", "enable", "print", "whence",
		"setopt", "emulate", "autoload", "disown", "caller", "compgen", "bind", "help", "history", "which":
		return Maybe
	case "unset":
		for _, w := range words[1:] {
			delete(s.vars, w)
		}
		return Yes
	case "exit", "return":
		s.leave(n)
		return Maybe
	case "test", "[":
		return s.r.test(ctx, strings.TrimSuffix(words[len(words)-1], "]]"), words[1:])
	case ".", "source":
		if len(words) > 1 {
			return s.source(ctx, n, words[1])
		}
		return Maybe
	case "exec", "eval", "command", "builtin", "then", "time":
		if len(words) == 1 {
			return Yes
		}
		if words[0] == "command" && (words[1] == "-v" || words[1] == "-V") {
			return s.r.find(ctx, words[len(words)-1]).exists
		}
		if words[0] == "eval" {
			return s.eval(ctx, n, strings.Join(words[1:], " "))
		}
		t := s.r.command(ctx, s.to(n, words[1:]), words[1:])
		if words[0] == "exec" {
			s.leave(n)
		}
		return t
	}
	return s.r.command(ctx, s.to(n, words), words)
}

// leave ends the script, as far as it is known that it gets here.
func (s *shell) leave(n *node) {
	if s.way == Yes {
		s.ended = Yes
		return
	}
	if s.ended != Yes {
		s.ended = Maybe
	}
}

// to is where a command stands.
func (s *shell) to(n *node, words []string) place {
	p := place{way: s.way, why: s.why, chain: s.chain, depth: s.depth, lax: s.lax}
	step := Step{shown(words), Source{s.file, n.line}}
	if len(s.chain) == 0 || s.chain[len(s.chain)-1] != step {
		p.chain = append(slices.Clone(s.chain), step)
	}
	return p
}

// source runs another script in this one.
func (s *shell) source(ctx context.Context, n *node, name string) Truth {
	p := s.r.find(ctx, name)
	if p.exists == No {
		return No
	}
	if p.script == "" && p.exists == Yes && !s.r.Flat {
		if b, err := s.r.t.Read(ctx, name, maxScriptBytes); err == nil {
			p.script = string(b) // it needs no first line
		}
	}
	if p.script == "" || p.language != "sh" && p.language != "" {
		s.lax = true
		return Maybe
	}
	if s.r.costs(p.script) {
		return Maybe
	}
	tree, ok := parseShell(p.script, 1)
	if !ok {
		s.r.doubt("not all of " + name + " was understood")
	}
	if s.depth++; s.depth > maxShellDepth/4 {
		s.depth--
		return Maybe // it reads itself
	}
	file, chain := s.file, s.chain
	s.chain = s.to(n, []string{".", name}).chain
	s.file = p.path
	t := s.run(ctx, tree)
	s.file, s.chain = file, chain
	s.depth--
	return t
}

func (s *shell) eval(ctx context.Context, n *node, text string) Truth {
	if s.r.costs(text) {
		return Maybe
	}
	tree, ok := parseShell(strings.ReplaceAll(text, unknown, ""), n.line)
	defer func() { s.depth-- }()
	if s.depth++; !ok || s.depth > maxShellDepth/4 {
		return Maybe
	}
	return s.run(ctx, tree)
}

// echoed gives what a command prints, where that is plain.
func (s *shell) echoed(n *node) (string, bool) {
	if n.kind != "simple" || len(n.words) == 0 {
		return "", false
	}
	switch path.Base(s.value(n.words[0])) {
	case "echo", "printf":
	case ":", "true":
		return "", true
	default:
		return "", false
	}
	words := n.words[1:]
	for len(words) > 0 && len(words[0]) > 1 && words[0][0] == '-' && strings.Trim(words[0][1:], "neE") == "" {
		words = words[1:]
	}
	if len(words) == 0 {
		return "", true
	}
	return s.value(words[0]), true
}

func opposite(t Truth) Truth {
	switch t {
	case Yes:
		return No
	case No:
		return Yes
	}
	return Maybe
}

// joined is "and" or "or" of two answers, of which the second is asked only where it decides.
func joined(and bool, a, b Truth) Truth {
	if and {
		switch {
		case a == No || a == Yes:
			if a == No {
				return No
			}
			return b
		case b == No:
			return No
		}
		return Maybe
	}
	return opposite(joined(true, opposite(a), opposite(b)))
}
