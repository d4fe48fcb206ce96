// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog

import "strings"

// A pattern is the text of a message with what varies in braces. It has to fit the whole text.
//
//	{name}   a word: at least one byte, no space, up to what follows in the pattern
//	{name#}  a decimal number, perhaps negative
//	{name~}  any text, perhaps none, up to where what follows is first
//	{name*}  any text up to where what follows is last; once in a pattern. The name of a task may
//	         hold spaces, colons and brackets
//	{name^}  a word that names a journal, without the inode at its end: sda1 of "sda1-8"
//	<...>    what may be missing
//
// A name that is empty is not kept.

// maxFields is how many fields a pattern may have.
const maxFields = 12

// token is a literal text, or a field.
type token struct {
	kind byte // 'l' for a literal; else as in patterns, 'w' for a word
	text string
}

// wording is one pattern without anything that may be missing.
type wording struct {
	form   *Form
	tokens []token
}

// expand gives a pattern with and without each part that may be missing, the fullest first.
func expand(pattern string) []string {
	open := strings.LastIndexByte(pattern, '<')
	if open < 0 {
		return []string{pattern}
	}
	shut := open + strings.IndexByte(pattern[open:], '>')
	with := expand(pattern[:open] + pattern[open+1:shut] + pattern[shut+1:])
	return append(with, expand(pattern[:open]+pattern[shut+1:])...)
}

// parse takes an expanded pattern apart.
func parse(pattern string) []token {
	var out []token
	for pattern != "" {
		open := strings.IndexByte(pattern, '{')
		if open < 0 {
			return append(out, token{'l', pattern})
		}
		if open > 0 {
			out = append(out, token{'l', pattern[:open]})
		}
		shut := strings.IndexByte(pattern, '}')
		name, kind := pattern[open+1:shut], byte('w')
		if n := len(name); n > 0 && strings.IndexByte("#~*^", name[n-1]) >= 0 {
			name, kind = name[:n-1], name[n-1]
		}
		out = append(out, token{kind, name})
		pattern = pattern[shut+1:]
	}
	return out
}

// fields are those found so far; of no more than maxFields.
type fields struct {
	list [maxFields]Field
	n    int
}

func (f *fields) add(name, value string) {
	if name != "" && f.n < maxFields {
		f.list[f.n] = Field{name, value}
		f.n++
	}
}

// fits tells whether tokens fit a text, and keeps the fields.
func fits(tokens []token, s string, f *fields) bool {
	for i := range tokens {
		t := &tokens[i]
		if t.kind == 'l' {
			if !strings.HasPrefix(s, t.text) {
				return false
			}
			s = s[len(t.text):]
			continue
		}
		if t.kind == '*' {
			return fitsLast(tokens[i:], s, f)
		}
		n := length(t.kind, s, tokens[i+1:])
		if n < 0 {
			return false
		}
		value := s[:n]
		if t.kind == '^' {
			value = journalDevice(value)
		}
		f.add(t.text, value)
		s = s[n:]
	}
	return s == ""
}

// length is how much of a text a field takes that rest follows, -1 if it does not fit.
func length(kind byte, s string, rest []token) int {
	if kind == '#' {
		return digits(s)
	}
	limit := len(s)
	if kind != '~' {
		if sp := strings.IndexByte(s, ' '); sp >= 0 {
			limit = sp
		}
	}
	if len(rest) == 0 {
		if limit < len(s) || kind != '~' && limit == 0 {
			return -1
		}
		return limit
	}
	if len(rest) == 1 { // what ends the pattern ends the text
		n := len(s) - len(rest[0].text)
		if n > limit || n == 0 && kind != '~' || !strings.HasSuffix(s, rest[0].text) {
			return -1
		}
		return n
	}
	n := strings.Index(s, rest[0].text) // fields stand apart, so this is a literal
	if kind != '~' && n == 0 {
		n = strings.Index(s[1:], rest[0].text) + 1
		if n == 0 {
			return -1
		}
	}
	if n > limit {
		return -1
	}
	return n
}

// fitsLast tries a field that takes as much as it can, then less.
func fitsLast(tokens []token, s string, f *fields) bool {
	if len(tokens) == 1 {
		f.add(tokens[0].text, s)
		return true
	}
	kept, next := f.n, tokens[1].text
	for end := len(s); ; {
		n := strings.LastIndex(s[:end], next)
		if n < 0 {
			return false
		}
		f.n = kept
		f.add(tokens[0].text, s[:n])
		if fits(tokens[1:], s[n:], f) {
			return true
		}
		end = n + len(next) - 1
	}
}

// digits is the length of a number at the beginning, -1 if there is none.
func digits(s string) int {
	n := 0
	if strings.HasPrefix(s, "-") {
		n = 1
	}
	start := n
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	if n == start {
		return -1
	}
	return n
}

// journalDevice takes the inode of the journal from its name: the kernel calls one "sda1-8", one on a
// device of its own "sda1", and writes slashes as exclamation marks (fs/jbd2/journal.c).
func journalDevice(name string) string {
	i := strings.LastIndexByte(name, '-')
	if i > 0 && name[:i] != "dm" && digits(name[i+1:]) == len(name)-i-1 && name[i+1:] != "" {
		name = name[:i]
	}
	if strings.IndexByte(name, '!') < 0 {
		return name
	}
	return strings.ReplaceAll(name, "!", "/")
}

// index finds the wordings that a text may have, by one byte of it.
type index struct {
	// first are those that begin with a literal, by its first byte.
	first map[byte][]wording
	// after are those that begin with a field and ": ", by the byte that comes then.
	after map[byte][]wording
	// within are the others, with a text that has to be somewhere in them.
	within []inner
}

type inner struct {
	text  string
	words []wording
}

func newIndex(forms []Form) *index {
	x := &index{first: map[byte][]wording{}, after: map[byte][]wording{}}
	for i := range forms {
		for _, p := range forms[i].Patterns {
			for _, e := range expand(p) {
				x.add(wording{&forms[i], parse(e)})
			}
		}
	}
	return x
}

func (x *index) add(w wording) {
	const sep = ": "
	if w.tokens[0].kind == 'l' {
		c := w.tokens[0].text[0]
		x.first[c] = append(x.first[c], w)
		return
	}
	if lit := w.tokens[1].text; strings.HasPrefix(lit, sep) && len(lit) > len(sep) && w.tokens[0].kind == 'w' {
		x.after[lit[len(sep)]] = append(x.after[lit[len(sep)]], w)
		return
	}
	longest := ""
	for _, t := range w.tokens {
		if t.kind == 'l' && len(t.text) > len(longest) {
			longest = t.text
		}
	}
	for i := range x.within {
		if x.within[i].text == longest {
			x.within[i].words = append(x.within[i].words, w)
			return
		}
	}
	x.within = append(x.within, inner{longest, []wording{w}})
}

func (x *index) match(s string) (Match, bool) {
	if s == "" {
		return Match{}, false
	}
	if m, ok := try(x.first[s[0]], s); ok {
		return m, true
	}
	if i := strings.Index(s, ": "); i >= 0 && i+2 < len(s) {
		if m, ok := try(x.after[s[i+2]], s); ok {
			return m, true
		}
	}
	for i := range x.within {
		if strings.Contains(s, x.within[i].text) {
			if m, ok := try(x.within[i].words, s); ok {
				return m, true
			}
		}
	}
	return Match{}, false
}

// try gives the first wording that fits.
func try(list []wording, s string) (Match, bool) {
	for i := range list {
		w := &list[i]
		if t := &w.tokens[0]; t.kind == 'l' && !strings.HasPrefix(s, t.text) {
			continue
		}
		var f fields
		if fits(w.tokens, s, &f) {
			return Match{w.form, append([]Field(nil), f.list[:f.n]...)}, true
		}
	}
	return Match{}, false
}
