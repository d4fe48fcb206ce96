// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"slices"
	"strings"
)

// Bounds of one script. What is beyond them is not understood, and said so.
const (
	maxScriptBytes = 256 << 10
	maxShellNodes  = 20000
	maxShellDepth  = 60
)

// unknown stands in a word for what is not known before it runs: the value of a variable, the output of a
// command.
const unknown = "\x00"

// whole stands in a word before a value in quotes: it is one word even if it is empty.
const whole = "\x01"

// node is a part of a script as the shell's grammar has it (POSIX.1-2017, "Shell Command Language", 2.10). Only what
// is needed to tell which commands run is kept.
type node struct {
	kind string // "simple", "and", "or", "not", "pipe", "list", "if", "loop", "for", "case", "function", "subshell"
	line int
	// words of a simple command, redirections apart; name of a function.
	words []string
	// to are the files that its output goes to.
	to []string
	// background: it is not waited for.
	background bool
	// parts: operands; of "if" condition, then, and the rest; of "loop" condition and body; of "case" the branches.
	parts []*node
}

// shellParser reads a script.
type shellParser struct {
	text  string
	at    int
	line  int
	nodes int
	// bad tells that it was not understood from there on.
	bad bool
	// heredocs are the ends of texts that begin with the next line.
	heredocs []string
	depth    int
}

// parseShell reads a script. ok is false if not all of it was understood.
func parseShell(text string, line int) (n *node, ok bool) {
	p := &shellParser{text: text, line: line}
	if len(text) > maxScriptBytes {
		p.text, p.bad = text[:maxScriptBytes], true
	}
	n = p.list(nil)
	p.space()
	return n, !p.bad && p.at >= len(p.text)
}

func (p *shellParser) make(kind string, parts ...*node) *node {
	if p.nodes++; p.nodes > maxShellNodes {
		p.bad = true
	}
	return &node{kind: kind, line: p.line, parts: parts}
}

func (p *shellParser) done() bool { return p.bad || p.at >= len(p.text) }

// space skips blanks, comments and continued lines.
func (p *shellParser) space() {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == ' ' || c == '\t' || c == '\r':
			p.at++
		case c == '\\' && p.at+1 < len(p.text) && p.text[p.at+1] == '\n':
			p.at += 2
			p.line++
		case c == '#':
			i := strings.IndexByte(p.text[p.at:], '\n')
			if i < 0 {
				p.at = len(p.text)
			} else {
				p.at += i
			}
		default:
			return
		}
	}
}

// newline takes the end of a line, and the texts that follow it.
func (p *shellParser) newline() {
	p.at++
	p.line++
	for _, end := range p.heredocs {
		for p.at < len(p.text) {
			line, _, _ := strings.Cut(p.text[p.at:], "\n")
			p.at = min(len(p.text), p.at+len(line)+1)
			p.line++
			if strings.TrimLeft(line, "\t") == end {
				break
			}
		}
	}
	p.heredocs = nil
}

// blank skips what is between commands.
func (p *shellParser) blank() {
	for {
		p.space()
		if p.at < len(p.text) && p.text[p.at] == '\n' {
			p.newline()
			continue
		}
		return
	}
}

// peek gives the reserved word or operator that is next, "" for others.
func (p *shellParser) peek() string {
	p.space()
	rest := p.text[min(p.at, len(p.text)):]
	for _, op := range []string{"&&", "||", ";;&", ";;", ";&", ";", "&", "|", "(", ")", "\n"} {
		if strings.HasPrefix(rest, op) {
			return op
		}
	}
	i := strings.IndexAny(rest, " \t\r\n;&|()<>\"'$`\\")
	if i < 0 {
		i = len(rest)
	}
	if slices.Contains([]string{"if", "then", "else", "elif", "fi", "do", "done", "case", "esac", "while", "until", "for",
		"{", "}", "!", "function", "[[", "select", "time"}, rest[:i]) {
		return rest[:i]
	}
	return ""
}

// accept takes a word or operator if it is next.
func (p *shellParser) accept(word string) bool {
	if p.peek() != word {
		return false
	}
	p.at += len(word)
	return true
}

// expect takes one that has to come.
func (p *shellParser) expect(word string) {
	p.blank()
	if !p.accept(word) {
		p.bad = true
	}
}

// list reads commands up to one of some words.
func (p *shellParser) list(ends []string) *node {
	n := p.make("list")
	if p.depth++; p.depth > maxShellDepth {
		p.bad = true
	}
	defer func() { p.depth-- }()
	for {
		p.blank()
		next := p.peek()
		if p.done() || slices.Contains(ends, next) {
			if len(n.parts) == 0 && len(ends) > 0 && !slices.Contains(ends, ";;") {
				p.bad = true // an error to the shell as well
			}
			return n
		}
		switch next {
		case ")", "}", "then", "else", "elif", "fi", "do", "done", "esac", ";;", ";", "&", "&&", "||", "|":
			p.bad = true
			return n
		}
		c := p.andOr()
		n.parts = append(n.parts, c)
		switch p.peek() {
		case "&":
			p.at++
			c.background = true
		case ";":
			p.at++
		case "\n":
		default:
			if next := p.peek(); !p.done() && !slices.Contains(ends, next) {
				p.bad = true
				return n
			}
		}
	}
}

func (p *shellParser) andOr() *node {
	n := p.pipeline()
	for !p.bad {
		var kind string
		switch p.peek() {
		case "&&":
			kind = "and"
		case "||":
			kind = "or"
		default:
			return n
		}
		p.at += 2
		p.blank()
		left := n
		n = p.make(kind, left, p.pipeline())
		n.line = left.line
	}
	return n
}

func (p *shellParser) pipeline() *node {
	not := false
	for p.peek() == "!" || p.peek() == "time" {
		not = not != (p.peek() == "!")
		p.at += len(p.peek())
	}
	n := p.command()
	if p.peek() == "|" {
		n = p.make("pipe", n)
		for p.peek() == "|" && !p.bad {
			p.at++
			if p.at < len(p.text) && p.text[p.at] == '&' {
				p.at++
			}
			p.blank()
			n.parts = append(n.parts, p.command())
		}
	}
	if not {
		n = p.make("not", n)
	}
	return n
}

// command reads one command, compound or not.
func (p *shellParser) command() *node {
	if p.done() {
		p.bad = true
		return p.make("list")
	}
	line := p.line
	var n *node
	switch p.peek() {
	case "(":
		p.at++
		if strings.HasPrefix(p.text[p.at:], "(") { // arithmetic
			p.until("))")
			n = p.make("unknown")
			break
		}
		n = p.make("subshell", p.list([]string{")"}))
		p.expect(")")
	case "{":
		p.at++
		n = p.list([]string{"}"})
		p.expect("}")
	case "if":
		p.at += 2
		n = p.conditional()
	case "while", "until":
		not := p.peek() == "until"
		p.at += 5
		cond := p.list([]string{"do"})
		if not {
			cond = p.make("not", cond)
		}
		p.expect("do")
		n = p.make("loop", cond, p.list([]string{"done"}))
		p.expect("done")
	case "for", "select":
		n = p.forLoop()
	case "case":
		n = p.cases()
	case "function":
		p.at += len("function")
		name, _ := p.word()
		if p.accept("(") {
			p.expect(")")
		}
		p.blank()
		n = p.make("function", p.command())
		n.words = []string{name}
	case "[[":
		n = p.test()
	default:
		return p.simple()
	}
	n.line = line
	p.redirects(n)
	return n
}

// conditional reads an "if" behind that word, or an "elif".
func (p *shellParser) conditional() *node {
	if p.depth++; p.depth > maxShellDepth {
		p.bad = true
	}
	defer func() { p.depth-- }()
	n := p.make("if", p.list([]string{"then"}))
	p.expect("then")
	n.parts = append(n.parts, p.list([]string{"elif", "else", "fi"}))
	switch p.peek() {
	case "elif":
		p.at += 4
		n.parts = append(n.parts, p.conditional())
		return n
	case "else":
		p.at += 4
		n.parts = append(n.parts, p.list([]string{"fi"}))
	}
	p.expect("fi")
	return n
}

func (p *shellParser) forLoop() *node {
	p.at += len(p.peek())
	p.space()
	n := p.make("for")
	if strings.HasPrefix(p.text[p.at:], "((") {
		p.until("))")
		n.words = []string{unknown, unknown}
	} else if name, ok := p.word(); ok {
		n.words = []string{name}
		p.blank()
		if in, ok := p.aheadWord(); ok && in == "in" {
			p.word()
			for {
				w, ok := p.word()
				if !ok {
					break
				}
				n.words = append(n.words, w)
			}
		} else {
			n.words = append(n.words, unknown)
		}
	}
	p.accept(";")
	p.expect("do")
	n.parts = []*node{p.list([]string{"done"})}
	p.expect("done")
	return n
}

// cases reads a "case". Of its patterns nothing is kept: each branch may run or not.
func (p *shellParser) cases() *node {
	p.at += 4
	n := p.make("case")
	p.word()
	p.blank()
	p.word() // in
	for !p.done() {
		p.blank()
		if p.accept("esac") {
			return n
		}
		p.accept("(")
		for !p.done() && p.peek() != ")" {
			if _, ok := p.word(); !ok && !p.accept("|") {
				p.bad = true
			}
		}
		p.accept(")")
		n.parts = append(n.parts, p.list([]string{";;", ";&", ";;&", "esac"}))
		switch next := p.peek(); next {
		case ";;", ";&", ";;&":
			p.at += len(next)
		}
	}
	p.bad = true
	return n
}

// until skips what is not understood, up to a word.
func (p *shellParser) until(end string) {
	i := strings.Index(p.text[p.at:], end)
	if i < 0 {
		p.bad = true
		return
	}
	p.line += strings.Count(p.text[p.at:p.at+i], "\n")
	p.at += i + len(end)
}

// test reads "[[ ... ]]" as the words of a test.
func (p *shellParser) test() *node {
	p.at += 2
	n := p.make("simple")
	n.words = []string{"["}
	for !p.done() {
		p.blank()
		if op := p.peek(); op != "" {
			p.at += len(op)
			n.words = append(n.words, op)
			continue
		}
		if rest := p.text[p.at:]; rest != "" && (rest[0] == '<' || rest[0] == '>') {
			n.words = append(n.words, rest[:1])
			p.at++
			continue
		}
		w, ok := p.word()
		if !ok {
			break
		}
		if n.words = append(n.words, w); w == "]]" {
			return n
		}
	}
	p.bad = true
	return n
}

// simple reads a simple command, or the definition of a function.
func (p *shellParser) simple() *node {
	n := p.make("simple")
	for !p.bad {
		p.redirects(n)
		w, ok := p.word()
		if !ok {
			break
		}
		n.words = append(n.words, w)
		if len(n.words) == 1 && p.peek() == "(" {
			p.at++
			p.expect(")")
			p.blank()
			f := p.make("function", p.command())
			f.words = []string{w}
			return f
		}
	}
	if len(n.words) == 0 && len(n.to) == 0 {
		p.bad = true
	}
	return n
}
